"""How good samples are, in the course of training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import extract_features, reference_statistics
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.quality import METRICS, NoisyView, key, renoise, sample_quality
from lightning_tweedie.evaluation.results import Row, RunTable, versions
from lightning_tweedie.evaluation.samples import generate
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor
from lightning_tweedie.metrics.memorisation import memorisation
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import Heun, Sampler

__all__ = ["SampleQuality"]

_PROXIMAL = ("proximal_fid", "proximal_kid")

_LEAST = {"prc": 6}
"""Samples that a measure needs, where it is more than two: densities look at five neighbours."""


class SampleQuality(Callback):
    """Logs how samples compare with reference images, after validation and in tests.

    Samples are made once with the EMA weights, in float32, and shared by all measures:

    * ``fid`` and ``kid``, the Frechet and the kernel distance, and ``prc``, which is precision, recall, density and
      coverage, compare with as many clean training images (fewer if there are not so many), picked by the seed;
    * ``proximal_fid`` and ``proximal_kid`` put noise of the data's levels into the samples and compare with as many
      *noisy* training images: they need no clean image. With ``every_n_validations: 1`` they can choose the best
      checkpoint: ``ModelCheckpoint(monitor="proximal_fid")``, for the command line ``best_checkpoint.monitor``;
    * ``memorisation`` compares with all clean training images, in pixels and in features.

    The log keys are ``fid``, ``kid``, ``precision``, ... with the Inception network and ``fd_<name>``, ``kd_<name>``,
    ``precision_<name>``, ... with any other; ``_truncated`` is appended for samples truncated at the data's noise
    level, and ``_n`` to the first of them for the number of samples. Small sets give large distances: compare numbers
    only at equal ``n``, extractor and sampler. All of these stand beside each value, with its standard error, in the
    run's ``quality.jsonl``.

    The samples depend on the seed alone, and values are the same on any number of processes. The global random state
    is left alone. Features of training images are computed once and kept on disk.

    Args:
        metrics: Any of fid, kid, prc, proximal_fid, proximal_kid, memorisation; fid alone when null.
        extractor: ``inception``, ``efficientnet-lite0``, ``efficientnet-lite0-<resolution>`` or a network of one's own;
            see ``lightning_tweedie.metrics.features.resolve_extractor``.
        num_images: Number of samples, ``n``, at least 2.
        sampler: Solver and grid of levels; ``Heun`` with 18 levels when null.
        truncated: Measure truncated samples as well as full ones.
        every_n_validations: Only after every so many validations.
        batch_size: Images in one pass, on each process.
        seed: Seed of the samples, of the noise put into them and of the choice of training images.
        cache_dir: Where features of training images are kept; ``~/.cache/lightning_tweedie/statistics`` when null.

    Raises:
        UserError: If the data have not what a measure needs or are no images, the extractor cannot be had, another
            callback measures the same already, or a checkpoint would be chosen by a value that is not of its weights.
    """

    def __init__(
        self,
        metrics: list[str] | None = None,
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
        self.metrics = ["fid"] if metrics is None else list(dict.fromkeys(metrics))
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(f"SampleQuality.metrics names {metric!r}: give any of {', '.join(METRICS)}")
        if not self.metrics:
            raise UserError("SampleQuality.metrics is empty: name a measure, or remove the callback")
        for name, value, least in (
            ("num_images", num_images, self._least()),
            ("every_n_validations", every_n_validations, 1),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UserError(f"SampleQuality.{name} = {value} is too small: give at least {least}")
        self.extractor = extractor
        self.num_images = num_images
        self.sampler = Heun() if sampler is None else sampler
        self.truncated = truncated
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.seed = seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._validations = 0
        # Neither is part of the module or of a checkpoint: networks that are not trained do not belong there.
        self._extractor: FeatureExtractor | None = None
        self._others: dict[str, FeatureStatistics] = {}  # what each measure compares with
        self._levels = torch.zeros(1)  # of the noisy images among them
        self._training_pixels = torch.zeros(0)  # on the first process

    def _least(self) -> int:
        return max(_LEAST.get(metric, 2) for metric in self.metrics)

    @property
    def state_key(self) -> str:
        """Tells several of them apart in checkpoints."""
        solver = f"{self.sampler.name}-{self.sampler.steps}"
        return self._generate_state_key(
            metrics=self.metrics, extractor=self.extractor, n=self.num_images, sampler=solver, seed=self.seed
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for all that is needed, so that what is missing is missed before training."""
        if stage == "predict":
            return
        data: Any = getattr(trainer, "datamodule", None)
        clean = [metric for metric in self.metrics if metric not in _PROXIMAL]
        reference = None if data is None else data.reference_set()
        if data is None or (clean and reference is None):
            raise UserError(
                f"{clean[0] if clean else self.metrics[0]} compares with clean reference images and these data have "
                "none: write reference_set() of the data module, or set SampleQuality.metrics to proximal_fid, which "
                "compares with the noisy data"
            )
        if len(data.shape) != 3 or data.shape[0] not in (1, 3):
            raise UserError(
                f"SampleQuality compares images (1 or 3, H, W), not items of shape {data.shape}: remove the callback"
            )
        there = len(reference) if clean else len(data.noisy_set())  # type: ignore[arg-type]
        if there < self._least():
            raise UserError(
                f"SampleQuality compares with training images, and the {there} that there are do not suffice for "
                f"{', '.join(self.metrics)}: give at least {self._least()}, or remove the callback"
            )
        if self._extractor is None:
            self._extractor = resolve_extractor(self.extractor)
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and isinstance(other, SampleQuality) and other._extractor is not None:
                same = other._extractor.name == self._extractor.name
                for metric in self.metrics:
                    if metric in other.metrics and (same or metric == "memorisation"):
                        raise UserError(
                            f"two SampleQuality callbacks measure {metric} and would log it under one name, as the "
                            "mean of both: keep one, or give it another extractor"
                        )
            self._refuse_old_values(other, self._extractor)
        self._others = {}  # the data may be others than before

    def _refuse_old_values(self, other: Callback, extractor: FeatureExtractor) -> None:
        """The log keeps a value until the next one: a checkpoint saved in between would get that of other weights."""
        monitor = getattr(other, "monitor", None)
        if self.every_n_validations == 1 or monitor is None:
            return
        keys = [key(metric, name, extractor) for metric in self.metrics for name in METRICS[metric]]
        if monitor.removesuffix("_truncated") in keys:
            raise UserError(
                f"{type(other).__name__} goes by {monitor!r}, which is measured after every "
                f"{self.every_n_validations} validations only, and would take its old value for that of new weights: "
                "set SampleQuality.every_n_validations to 1, and make validations rarer if need be"
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
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        processes = Processes()
        sigma_n: float = trainer.datamodule.sigma_n  # type: ignore[attr-defined]
        stops: list[float | None] = [None, sigma_n] if self.truncated and sigma_n > 0 else [None]
        # Lightning validates in inference mode, and tensors made there cannot be used elsewhere.
        with torch.inference_mode(False), torch.no_grad():
            if not self._others:
                self._read_data(trainer, pl_module, processes)
            rows = [row for stop in stops for row in self._measure(trainer, pl_module, processes, stage, stop)]
        for row in rows:
            pl_module.log(row.metric + ("_truncated" if row.sampling == "truncated" else ""), row.value)
        pl_module.log(f"{rows[0].metric}_n", float(self._count(trainer)))
        if processes.is_first and not trial:
            RunTable(folder).append(rows)

    def _count(self, trainer: Trainer) -> int:
        return self._least() if trainer.fast_dev_run else self.num_images  # type: ignore[attr-defined]

    def _progress(self, trainer: Trainer, name: str) -> str | None:
        return None if trainer.progress_bar_callback is None else f"{type(self).__name__}, {name}"

    def _read_data(self, trainer: Trainer, pl_module: LightningModule, processes: Processes) -> None:
        """Features of what samples are compared with, once."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]

        def chosen(images: Any, stream: str) -> list[int]:
            order = item_generator(self.seed, f"quality/{stream}", 0).permutation(len(images))
            return sorted(order[: self._count(trainer)].tolist())

        def features(images: Any, indices: Sequence[int], name: str) -> FeatureStatistics:
            assert self._extractor is not None
            return reference_statistics(
                images,
                self._extractor,
                indices=indices,
                batch_size=self.batch_size,
                device=pl_module.device,
                processes=processes,
                cache_dir=self.cache_dir,
                progress=self._progress(trainer, name),
            )

        if clean := {"fid", "kid", "prc"} & set(self.metrics):
            images = data.reference_set()
            self._others |= dict.fromkeys(clean, features(images, chosen(images, "reference"), "reference images"))
        if proximal := set(_PROXIMAL) & set(self.metrics):
            noisy = NoisyView(data.noisy_set())
            indices = chosen(noisy, "noisy")
            self._others |= dict.fromkeys(proximal, features(noisy, indices, "noisy images"))
            self._levels = noisy.levels(indices)
        if "memorisation" in self.metrics:
            images = data.reference_set()
            # Any of them may have been learnt by heart.
            trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
            indices = chosen(images, "trial") if trial else list(range(len(images)))
            self._others["memorisation"] = features(images, indices, "training images")
            if processes.is_first:
                self._training_pixels = torch.stack([to_uint8(images[i]) for i in indices])

    def _renoise(self, image: Tensor, index: int) -> Tensor:
        """Sample ``index`` with noise like that of one of the noisy images."""
        return renoise(image[None], self._levels[index % len(self._levels), None], self.seed, [index])[0]

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, processes: Processes, stage: str, stop: float | None
    ) -> list[Row]:
        """All measures of one way of sampling; the same rows on every process."""
        start = time.perf_counter()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        denoiser: Any = pl_module.eval_denoiser
        ema: Any = pl_module.ema
        extractor = self._extractor
        assert extractor is not None
        name = "full samples" if stop is None else "truncated samples"
        samples = generate(
            denoiser,
            data.shape,
            self._count(trainer),
            self.sampler,
            seed=self.seed,
            truncate_at=stop,
            batch_size=self.batch_size,
            processes=processes,
            progress=self._progress(trainer, name),
        )
        features = partial(
            extract_features,
            samples,
            extractor,
            batch_size=self.batch_size,
            device=pl_module.device,
            processes=processes,
            progress=self._progress(trainer, f"features of {name}"),
        )
        ours: dict[str, FeatureStatistics] = {}
        for metric in self.metrics:
            # Measures of one kind share the features.
            kind = "noisy" if metric in _PROXIMAL else "clean"
            if kind not in ours:
                ours[kind] = features(transform=self._renoise if kind == "noisy" else None)
            ours[metric] = ours[kind]
        spent = time.perf_counter() - start
        facts: dict[str, Any] = {
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": extractor.resize,
            "sampling": "full" if stop is None else "truncated",
            "sampler": self.sampler.name,
            "steps": self.sampler.steps,
            "nfe": self.sampler.evaluations(len(self.sampler.levels(truncate_at=stop))),
            "seed": self.seed,
            "ema_half_life": ema.half_lives[0],
            "checkpoint": None if trainer.state.fn == TrainerFn.FITTING else trainer.ckpt_path,
            "step": ema.steps,  # the trainer counts from 0 when it tests a checkpoint
            "sigma_n": float(data.sigma_n),
            "device": str(pl_module.device),
            "versions": versions(),
        }
        rows: list[Row] = []
        with processes.together():
            for metric in self.metrics if processes.is_first else []:
                start = time.perf_counter()
                if metric == "memorisation":
                    results = self._memorise(samples, ours[metric])
                else:
                    results = sample_quality(ours[metric], self._others[metric], [metric.removeprefix("proximal_")])
                seconds = round(spent + time.perf_counter() - start, 3)
                for name, (value, standard_error) in results.items():
                    rows.append(
                        Row(
                            subject=stage,
                            metric=key(metric, name, extractor),
                            value=value,
                            standard_error=standard_error,
                            n=len(samples),
                            n_reference=self._others[metric].n,
                            generated_digest=_digest(ours[metric]),
                            reference_digest=_digest(self._others[metric]),
                            seconds=seconds,
                            **facts,
                        )
                    )
        return processes.tell(rows)

    def _memorise(self, samples: Tensor, generated: FeatureStatistics) -> dict[str, Estimate]:
        training = self._others["memorisation"]
        assert generated.features is not None and training.features is not None
        return memorisation(generated.features, training.features, to_uint8(samples), self._training_pixels)


def _digest(statistics: FeatureStatistics) -> str | None:
    return None if statistics.provenance is None else statistics.provenance.data_digest
