"""How good restorations of held-out data are, in the course of training."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_tweedie.callbacks.picture import first_items
from lightning_tweedie.callbacks.quality_callback import QualityCallback
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.restoration import noisy_items
from lightning_tweedie.evaluation.restoration_measurement import measure_restorations
from lightning_tweedie.evaluation.results import Row
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.sampling import Sampler, SDEDPMSolverPP2M

__all__ = ["RestorationQuality"]

_LOGGED = ("psnr_draw", "psnr_mean", "ssim_", "interval_coverage_")
"""How the names of the values begin that are logged. Two more, ``psnr_noisy`` and ``psnr_one_step``, the module logs as
means over all held-out items; under one name the log would show the mean of both."""


class RestorationQuality(QualityCallback):
    """Logs how close restorations are to the clean items, and how well their uncertainty is calibrated.

    After validation and in tests the first held-out items are restored with the EMA weights, in float32, and compared
    with the clean ones: ``val/psnr_draw``, ``val/psnr_mean``, ``val/ssim_noisy``, ``val/ssim_one_step``,
    ``val/ssim_draw``, ``val/ssim_mean`` (images of 11 x 11 pixels and more) and, for intervals of these nominal
    percentages, ``val/interval_coverage_50``, ``_80`` and ``_90``; ``test/...`` in tests. What each is, says
    ``lightning_tweedie.evaluation.restoration.restoration_quality``. All of them, ``psnr_noisy`` and
    ``psnr_one_step`` of the same items too, stand with their standard errors and conditions in the run's
    ``quality.jsonl`` and ``quality.csv``. With ``every_n_validations: 1`` they can choose the best checkpoint:
    ``ModelCheckpoint(monitor="val/psnr_mean", mode="max")``.

    The draws of an item depend on the seed and its number alone: every validation uses the same noise, the values do
    not depend on the number of processes, and the global random state is left alone.

    Args:
        num_images: Held-out items that are restored; fewer if there are not so many.
        draws: Posterior draws of each, at least 2; 19 make intervals of exactly 50, 80 and 90 %.
        sampler: Stochastic solver of the draws; ``SDEDPMSolverPP2M`` with 18 levels when null.
        every_n_validations: Only after every so many validations.
        batch_size: Items restored at once on each process, 16 at most.
        seed: Seed of the draws.

    Raises:
        UserError: If there are no held-out items, or their clean versions are not known, or they hold no noise, or a
            checkpoint would be chosen by a value that is not of its weights.
    """

    def __init__(
        self,
        num_images: int = 64,
        draws: int = 19,
        sampler: Sampler | None = None,
        every_n_validations: int = 1,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_validations, batch_size, seed)
        self.require(num_images=(num_images, 1), draws=(draws, 2))
        self.num_images = num_images
        self.draws = draws
        self.sampler = SDEDPMSolverPP2M() if sampler is None else sampler
        self._items: dict[str, NoisyBatch] = {}

    @property
    def state_key(self) -> str:
        """Tells several of them apart in checkpoints."""
        solver = f"{self.sampler.name}-{self.sampler.steps}"
        return self._generate_state_key(n=self.num_images, draws=self.draws, sampler=solver, seed=self.seed)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the items, so that what is missing is missed before training."""
        if stage == "predict":
            return
        if any(isinstance(other, RestorationQuality) and other is not self for other in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "two RestorationQuality callbacks log under the same names, and the log would show the mean of both: "
                "keep one"
            )
        self.refuse_old_values(trainer, lambda monitor: monitor.startswith(tuple(f"val/{name}" for name in _LOGGED)))
        data: Any = getattr(trainer, "datamodule", None)
        loader = None if data is None else data.test_dataloader() if stage == "test" else data.val_dataloader()
        if not loader:
            raise UserError(
                "RestorationQuality restores held-out data and there are none: set data.holdout above 0, or remove it "
                "from trainer.callbacks"
            )
        batches = islice(loader, math.ceil(self.num_images / data.batch_size))
        items = noisy_items(first_items(list(batches), self.num_images))
        if items is None:
            raise UserError(
                "RestorationQuality restores noisy items, and these data are clean: remove it from trainer.callbacks"
            )
        if items.x_0 is None:
            raise UserError(
                "RestorationQuality compares with clean items and these data are noisy by nature: remove it from "
                "trainer.callbacks"
            )
        self._items["test" if stage == "test" else "val"] = items

    def measure(self, trainer: Trainer, pl_module: LightningModule, work: Work, facts: dict[str, Any]) -> list[Row]:
        """Restores and measures."""
        stage = facts["subject"]
        items, draws = self._items[stage], self.draws
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            items, draws = first_items([items], 2), 2
        denoiser: Any = pl_module.eval_denoiser
        rows, _ = measure_restorations(denoiser, items, self.sampler, draws, work, facts=facts)
        for row in rows:
            if row.metric.startswith(_LOGGED):
                pl_module.log(f"{stage}/{row.metric}", row.value)
        pl_module.log(f"{stage}/restoration_n", float(len(items.x_n)))
        return rows
