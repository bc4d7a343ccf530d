"""How good restorations of held-out data are, in the course of training."""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tweedie.callbacks.picture import first_items
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.restoration import noisy_items, restoration_quality, restore
from lightning_tweedie.evaluation.results import Row, RunTable, versions
from lightning_tweedie.sampling import Ancestral, Sampler

__all__ = ["RestorationQuality"]

_LOGGED_BY_MODULE = ("psnr_noisy", "psnr_one_step")
"""The module logs these as means over all held-out items; under one name the log would show the mean of both."""


class RestorationQuality(Callback):
    """Logs how close restorations are to the clean items, and how well their uncertainty is calibrated.

    After validation and in tests the first held-out items are restored with the EMA weights, in float32, and compared
    with the clean ones: ``val/psnr_draw``, ``val/psnr_mean``, ``val/ssim_noisy``, ``val/ssim_one_step``,
    ``val/ssim_draw``, ``val/ssim_mean`` (images of 11 x 11 pixels and more) and, for intervals of these nominal
    percentages, ``val/interval_coverage_50``, ``_80`` and ``_90``; ``test/...`` in tests. What each is, says
    ``lightning_tweedie.evaluation.restoration.restoration_quality``. All of them, ``psnr_noisy`` and
    ``psnr_one_step`` of the same items too, stand with their standard errors and conditions in the run's
    ``quality.jsonl``. With ``every_n_validations: 1`` they can choose the best checkpoint:
    ``ModelCheckpoint(monitor="val/psnr_mean", mode="max")``.

    The draws of an item depend on the seed and its number alone: every validation uses the same noise, the values do
    not depend on the number of processes, and the global random state is left alone.

    Args:
        num_images: Held-out items that are restored; fewer if there are not so many.
        draws: Posterior draws of each, at least 2; 19 make intervals of exactly 50, 80 and 90 %.
        sampler: Stochastic solver of the draws; ``Ancestral`` with 18 levels when null.
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
        super().__init__()
        for name, value, least in (
            ("num_images", num_images, 1),
            ("draws", draws, 2),
            ("every_n_validations", every_n_validations, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UserError(f"RestorationQuality.{name} = {value} is too small: give at least {least}")
        self.num_images = num_images
        self.draws = draws
        self.sampler = Ancestral() if sampler is None else sampler
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.seed = seed
        self._validations = 0
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
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            self._refuse_old_values(other)
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
                "RestorationQuality restores noisy items with one level each, and these data are clean or have maps of "
                "the level: remove it from trainer.callbacks"
            )
        if items.x_0 is None:
            raise UserError(
                "RestorationQuality compares with clean items and these data are noisy by nature: remove it from "
                "trainer.callbacks"
            )
        self._items["test" if stage == "test" else "val"] = items

    def _refuse_old_values(self, other: Callback) -> None:
        """The log keeps a value until the next one: a checkpoint saved in between would get that of other weights."""
        monitor = getattr(other, "monitor", None) or ""
        names = ("psnr_draw", "psnr_mean", "ssim_", "interval_coverage_")
        if self.every_n_validations > 1 and monitor.startswith(tuple(f"val/{name}" for name in names)):
            raise UserError(
                f"{type(other).__name__} goes by {monitor!r}, which is measured after every "
                f"{self.every_n_validations} validations only, and would take its old value for that of new weights: "
                "set RestorationQuality.every_n_validations to 1, and make validations rarer if need be"
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures if its turn has come."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        self._evaluate(trainer, pl_module, "test")

    def state_dict(self) -> dict[str, Any]:
        """How often there was a validation."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._validations = state_dict["validations"]

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        start = time.monotonic()
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        items, draws = self._items[stage], self.draws
        if trial:
            items, draws = first_items([items], 2), 2
        denoiser, ema = cast(Any, pl_module.eval_denoiser), cast(Any, pl_module.ema)
        restoration = restore(
            denoiser,
            items.x_n,
            items.sigma_n,
            items.index.tolist(),
            items.x_0,
            draws=draws,
            sampler=self.sampler,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=None if trainer.progress_bar_callback is None else "restorations",
        )
        quality = restoration_quality(restoration)
        for name, estimate in quality.items():
            if name not in _LOGGED_BY_MODULE:
                pl_module.log(f"{stage}/{name}", estimate.value)
        n = len(items.x_n)
        pl_module.log(f"{stage}/restoration_n", float(n))
        if trial or not trainer.is_global_zero:
            return
        RunTable(folder).append(
            [
                Row(
                    subject=stage,
                    metric=name,
                    value=estimate.value,
                    standard_error=estimate.standard_error,
                    n=n,
                    sampler=self.sampler.name,
                    steps=self.sampler.steps,
                    nfe=self.sampler.evaluations(self.sampler.steps),
                    seed=self.seed,
                    ema_half_life=ema.half_lives[0],
                    step=trainer.global_step,
                    sigma_n=float(items.sigma_n.max()),
                    device=str(pl_module.device),
                    seconds=round(time.monotonic() - start, 3),
                    versions=versions(),
                )
                for name, estimate in quality.items()
            ]
        )
