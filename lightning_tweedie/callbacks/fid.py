"""The Frechet distance of samples to clean reference images, in the course of training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_tweedie.data.download import cache_folder
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.metrics.frechet import FrechetDistance
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import Heun, Sampler, sample

__all__ = ["FID"]

_CACHE_FORMAT = 1


class FID(Callback):
    """Logs the Frechet distance between samples and clean reference images after validation and in tests.

    Samples are made with the EMA weights, in float32, and compared with as many reference images (fewer if there
    are not so many), picked by the seed. The log key is ``fid`` with the Inception network and ``fd_<name>`` with any
    other; ``_truncated`` is appended for samples truncated at the data's noise level. Small sets give large
    distances: compare numbers only at equal ``n``, extractor and sampler. All of these stand beside each value in
    the run's ``fid.jsonl``.

    The set of samples depends on the seed alone, not on the number of processes, and the global random state is left
    alone. Statistics of the reference images are computed once and kept on disk.

    Args:
        extractor: ``inception``, ``efficientnet-lite0``, ``efficientnet-lite0-<resolution>`` or the path of a network;
            see ``lightning_tweedie.metrics.features.resolve_extractor``.
        num_images: Number of samples, ``n``, at least 2.
        sampler: Solver and grid of levels; ``Heun`` with 18 levels when null.
        truncated: Measure truncated samples as well as full ones.
        every_n_validations: Only after every so many validations.
        batch_size: Images in one pass, on each process.
        seed: Seed of the samples and of the choice of reference images.
        cache_dir: Where the reference statistics are kept; ``~/.cache/lightning_tweedie/fid`` when null.

    Raises:
        UserError: If the data have no clean reference images or are no images, or the extractor cannot be had or is
            another one's already.
    """

    def __init__(
        self,
        extractor: str = "inception",
        num_images: int = 2000,
        sampler: Sampler | None = None,
        truncated: bool = True,
        every_n_validations: int = 1,
        batch_size: int = 64,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_images", num_images, 2),
            ("every_n_validations", every_n_validations, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UserError(f"FID.{name} = {value} is too small: give at least {least}")
        self.extractor = extractor
        self.num_images = num_images
        self.sampler = Heun() if sampler is None else sampler
        self.truncated = truncated
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.seed = seed
        self.cache_dir = Path(cache_dir) if cache_dir else cache_folder("fid")
        self._validations = 0
        # Neither is part of the module or of a checkpoint: networks that are not trained do not belong there.
        self._metric: FrechetDistance | None = None
        self._reference_size = 0

    @property
    def state_key(self) -> str:
        """Tells several of them apart in checkpoints."""
        solver = f"{self.sampler.name}-{self.sampler.steps}"
        return self._generate_state_key(extractor=self.extractor, n=self.num_images, sampler=solver, seed=self.seed)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for all that is needed, so that what is missing is missed before training."""
        if stage == "predict" or self._metric is not None:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or data.reference_set() is None:
            raise UserError(
                "FID compares with clean reference images and these data have none: write reference_set() of the data "
                "module, or remove the callback"
            )
        if len(data.shape) != 3 or data.shape[0] not in (1, 3):
            raise UserError(f"FID compares images (1 or 3, H, W), not items of shape {data.shape}: remove the callback")
        extractor = resolve_extractor(self.extractor)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, FID) and other._metric and other._metric.extractor.log_key == extractor.log_key:
                raise UserError(
                    f"two FID callbacks log {extractor.log_key!r}, and the log would show the mean of both: keep one, "
                    "or give it another extractor"
                )
        self._metric = FrechetDistance(extractor)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures if its turn has come."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._evaluate(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures."""
        self._evaluate(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """How often there was a validation."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._validations = state_dict["validations"]

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric = self._metric
        assert metric is not None
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        count = 2 if trial else self.num_images
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        sigma_n = trainer.datamodule.sigma_n  # type: ignore[attr-defined]
        stops: list[float | None] = [None, sigma_n] if self.truncated and sigma_n > 0 else [None]
        # Lightning validates in inference mode; sums made there could not be added to elsewhere.
        with torch.inference_mode(False), torch.no_grad():
            metric.to(pl_module.device)
            self._see_reference(trainer, metric, count)
            for stop in stops:
                metric.reset()
                self._see_samples(trainer, pl_module, metric, count, stop)
                value = float(metric.compute())
                key = metric.extractor.log_key + ("" if stop is None else "_truncated")
                pl_module.log(key, value)
                if trainer.is_global_zero and not trial:
                    row = {"key": key, "value": value, "step": trainer.global_step}
                    folder.mkdir(parents=True, exist_ok=True)
                    with (folder / "fid.jsonl").open("a") as file:
                        file.write(json.dumps(row | self._facts(pl_module, metric, count, stop)) + "\n")
        pl_module.log(f"{metric.extractor.log_key}_n", float(count))

    def _facts(
        self, pl_module: LightningModule, metric: FrechetDistance, count: int, stop: float | None
    ) -> dict[str, Any]:
        """What the value depends on besides the weights."""
        return {
            "n": count,
            "n_reference": self._reference_size,
            "extractor": metric.extractor.name,
            "digest": metric.extractor.digest,
            "sampler": self.sampler.name,
            "steps": self.sampler.steps,
            "nfe": self.sampler.evaluations(len(self.sampler.levels(truncate_at=stop))),
            "truncated_at": stop,
            "ema_half_life": pl_module.ema.half_lives[0],  # type: ignore[union-attr, index]
            "seed": self.seed,
        }

    def _see_samples(
        self, trainer: Trainer, pl_module: LightningModule, metric: FrechetDistance, count: int, stop: float | None
    ) -> None:
        """Takes in this process' share of the samples."""
        shape = trainer.datamodule.shape  # type: ignore[attr-defined]
        denoiser: Any = pl_module.eval_denoiser
        for indices in self._share(trainer, count, f"FID, {'full' if stop is None else 'truncated'} samples"):
            images = sample(
                denoiser, (len(indices), *shape), self.sampler, seed=self.seed, indices=indices, truncate_at=stop
            )
            metric.update(images, real=False)

    def _see_reference(self, trainer: Trainer, metric: FrechetDistance, count: int) -> None:
        """Takes in the reference images, or the statistics of an earlier run, once."""
        reference: Dataset[Tensor] = trainer.datamodule.reference_set()  # type: ignore[attr-defined]
        total = len(reference)  # type: ignore[arg-type]
        if self._reference_size:
            return
        self._reference_size = min(count, total)
        chosen = sorted(item_generator(self.seed, "fid/reference", 0).permutation(total)[:count].tolist())
        path, found = None, False
        if trainer.is_global_zero:
            path = self.cache_dir / f"{_digest(reference, chosen, metric)}.pt"
            if found := path.is_file():
                metric.load_reference_statistics(torch.load(path, map_location="cpu", weights_only=True))
        if trainer.strategy.broadcast(found):
            return
        for places in self._share(trainer, len(chosen), "FID, reference"):
            images = torch.stack([reference[chosen[i]] for i in places])
            metric.update(images.to(metric.device), real=True)
        statistics = metric.reference_statistics()
        if path is not None:
            _store(statistics, path)

    def _share(self, trainer: Trainer, count: int, name: str) -> Iterator[range]:
        """This process' batches of ``0 ... count - 1``, with a progress bar on the first process.

        Whole batches are dealt out: a batch is the same on any number of processes, so that even rounding inside the
        networks is. A process may get none.
        """
        batches = [range(i, min(i + self.batch_size, count)) for i in range(0, count, self.batch_size)]
        mine = batches[trainer.global_rank :: trainer.world_size]
        hidden = not trainer.is_global_zero or trainer.progress_bar_callback is None
        with tqdm(total=sum(map(len, mine)), desc=name, unit="image", leave=False, delay=3, disable=hidden) as bar:
            for batch in mine:
                yield batch
                bar.update(len(batch))


def _digest(reference: Dataset[Tensor], chosen: list[int], metric: FrechetDistance) -> str:
    """Names the statistics by all that decides them: the images as the extractor sees them, and the extractor."""
    extractor = metric.extractor
    digest = hashlib.sha256(f"{_CACHE_FORMAT}/{extractor.name}/{extractor.digest}/{len(chosen)}".encode())
    for i in chosen:
        pixels = to_uint8(reference[i])
        digest.update(f"/{tuple(pixels.shape)}/".encode())
        digest.update(pixels.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _store(statistics: dict[str, Tensor], path: Path) -> None:
    """Writes a file that is there either whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: value.cpu() for name, value in statistics.items()}, draft)
        draft.replace(path)
    except OSError as error:
        rank_zero_warn(f"The statistics of the reference images are not kept for later runs: {error}")
