"""How good samples are, in the course of training."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_tweedie.callbacks.quality_callback import QualityCallback
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.metric_names import METRICS, PROXIMAL, keys, least
from lightning_tweedie.evaluation.noisy_images import NoisyImages, NoisyView
from lightning_tweedie.evaluation.results import Row
from lightning_tweedie.evaluation.sample_measurement import ImageSet, Yardsticks, measure_samples, read_yardsticks
from lightning_tweedie.evaluation.samples import generate, solver_facts
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import Heun, Sampler

__all__ = ["SampleQuality"]


class SampleQuality(QualityCallback):
    """Logs how samples compare with reference images, after validation and in tests.

    Samples are made once with the EMA weights, in float32, and shared by all measures:

    * ``fid`` and ``kid``, the Frechet and the kernel distance, and ``prc``, which is precision, recall, density and
      coverage, compare with as many clean training images (fewer if there are not so many), picked by the seed;
    * ``proximal_fid`` and ``proximal_kid`` put noise of the data's levels into the samples and compare with as many
      *noisy* training images: they need no clean image. With ``every_n_validations: 1`` they can choose the best
      checkpoint: ``ModelCheckpoint(monitor="proximal_fid")``, for the command line ``best_checkpoint.monitor``;
    * ``memorisation`` compares with all clean training images, in pixels and in features.

    The log keys are ``fid``, ``kid``, ``precision``, ... with the Inception network and ``fd_<name>``, ``kd_<name>``,
    ``precision_<name>``, ... with any other; what memorisation measures in pixels has no network in its name.
    ``_truncated`` is appended for samples truncated at the data's noise level, and ``_n`` to the first of them for the
    number of samples. Small sets give large distances: compare numbers only at equal ``n``, extractor and sampler. All
    of these stand beside each value, with its standard error, in the run's ``quality.jsonl`` and ``quality.csv``.

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
        super().__init__(every_n_validations, batch_size, seed, cache_dir)
        self.metrics = ["fid"] if metrics is None else list(dict.fromkeys(metrics))
        for metric in self.metrics:
            if metric not in METRICS:
                raise UserError(f"SampleQuality.metrics names {metric!r}: give any of {', '.join(METRICS)}")
        if not self.metrics:
            raise UserError("SampleQuality.metrics is empty: name a measure, or remove the callback")
        self.require(num_images=(num_images, least(self.metrics)))
        self.extractor = extractor
        self.num_images = num_images
        self.sampler = Heun() if sampler is None else sampler
        self.truncated = truncated
        # Neither is part of the module or of a checkpoint: networks that are not trained do not belong there.
        self._extractor: FeatureExtractor | None = None
        self._yardsticks: Yardsticks | None = None

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
        clean = [metric for metric in self.metrics if metric not in PROXIMAL]
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
        there = len(reference if clean else data.noisy_set())  # type: ignore[arg-type]
        if there < least(self.metrics):
            raise UserError(
                f"SampleQuality compares with training images, and the {there} that there are do not suffice for "
                f"{', '.join(self.metrics)}: give at least {least(self.metrics)}, or remove the callback"
            )
        if self._extractor is None:
            self._extractor = resolve_extractor(self.extractor)
        ours = self._keys()
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            theirs = other._keys() if isinstance(other, SampleQuality) and other is not self else {}
            if both := [metric for name, metric in ours.items() if name in theirs]:
                raise UserError(
                    f"two SampleQuality callbacks measure {both[0]} and would log it under one name, as the mean of "
                    "both: keep one, or name it in one of them only"
                )
        self.refuse_old_values(trainer, lambda monitor: monitor.removesuffix("_truncated") in ours)
        self._yardsticks = None  # the data may be others than before

    def _keys(self) -> dict[str, str]:
        """The measure behind each log key; nothing is known before the extractor is."""
        if self._extractor is None:
            return {}
        return {name: metric for metric in self.metrics for name in keys(metric, self._extractor)}

    def measure(self, trainer: Trainer, pl_module: LightningModule, work: Work, facts: dict[str, Any]) -> list[Row]:
        """Makes samples in each way and measures them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        count = least(self.metrics) if trial else self.num_images
        if self._yardsticks is None:
            self._yardsticks = self._read(data, work, count, trial)
        denoiser: Any = pl_module.eval_denoiser
        rows: list[Row] = []
        for stop in [None, data.sigma_n] if self.truncated and data.sigma_n > 0 else [None]:
            start = time.perf_counter()
            sampling = "full" if stop is None else "truncated"
            name = f"{type(self).__name__}, {sampling} samples"
            samples = generate(
                denoiser,
                data.shape,
                count,
                self.sampler,
                seed=self.seed,
                truncate_at=stop,
                batch_size=self.batch_size,
                processes=work.processes,
                progress=work.told(name),
            )
            found, _ = measure_samples(
                ImageSet(samples, range(count), name),
                self._yardsticks,
                work,
                facts=facts
                | {"sampling": sampling, "sigma_n": float(data.sigma_n)}
                | solver_facts(self.sampler, truncate_at=stop),
                progress=name,
                spent=time.perf_counter() - start,
            )
            rows += found
        for row in rows:
            pl_module.log(row.metric + ("_truncated" if row.sampling == "truncated" else ""), row.value)
        pl_module.log(f"{rows[0].metric}_n", float(count))
        return rows

    def _read(self, data: Any, work: Work, count: int, trial: bool) -> Yardsticks:  # noqa: ANN401
        """What samples are compared with; ``count`` of the images where not all are needed."""

        def chosen(images: Any, stream: str) -> list[int]:  # noqa: ANN401
            order = item_generator(self.seed, f"quality/{stream}", 0).permutation(len(images))
            return sorted(order[:count].tolist())

        assert self._extractor is not None
        reference = training = noisy = None
        if any(metric not in PROXIMAL for metric in self.metrics):
            clean = data.reference_set()
            reference = ImageSet(clean, chosen(clean, "reference"), "the reference")
            everything = reference.indices if trial else range(len(clean))
            training = ImageSet(clean, everything, "the training images")
        if any(metric in PROXIMAL for metric in self.metrics):
            view = NoisyView(data.noisy_set())
            grey, correlation = data.shape[0] == 1, view.noisy.correlation
            noisy = NoisyImages(view, chosen(view, "noisy"), view.level, data.sigma_n, grey, correlation)
        return read_yardsticks(self.metrics, self._extractor, work, reference=reference, training=training, noisy=noisy)
