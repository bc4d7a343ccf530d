"""The long work of `evaluate`: samples, features and restorations, and what is measured of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_tweedie.commands.evaluation_data import Noisy, Reference
from lightning_tweedie.commands.subjects import Checkpoint, Subject
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import extract_features, reference_statistics
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.quality import key, renoise, sample_quality
from lightning_tweedie.evaluation.restoration import (
    calibration_curve,
    calibration_picture,
    restoration_quality,
    restore,
)
from lightning_tweedie.evaluation.results import Row, versions
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.memorisation import memorisation, nearest_neighbours
from lightning_tweedie.pictures import Picture, panel, to_uint8
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import Ancestral

__all__ = ["Measurement"]

LEAST = 6
"""Images that precision and its kin need on either side: they look at five neighbours. Two are enough for others."""

PAIRS = 8
"""Closest pairs of a sample and a training image that are shown of each subject."""

AT_ONCE = 16
"""Items that are restored at once, at most: the batches are dealt to the processes, and there are few items."""

Images = Dataset[Tensor] | Tensor


@dataclass
class Measurement:
    """What is measured, against what, by what.

    Args:
        metrics: Names of the measures.
        subjects: Sets of images, each with a line in the table.
        checkpoints: Those whose restorations are measured.
        extractor: Network of the features; None if no measure needs them.
        reference: Clean images; None if no measure needs them.
        noisy: Noisy training images; None if no measure needs them.
        held_out: Noisy items to restore, with the clean ones; None if there is nothing to restore.
        steps: Noise levels of posterior draws; each number is a line in the table.
        draws: Posterior draws of each item.
        seed: Seed of samples, draws and noise.
        batch_size: Images in one pass.
        device: Where networks run.
        processes: Who shares the work.
        store: Folder for samples and features.
    """

    metrics: Sequence[str]
    subjects: Sequence[Subject]
    checkpoints: Sequence[Checkpoint]
    extractor: FeatureExtractor | None
    reference: Reference | None
    noisy: Noisy | None
    held_out: NoisyBatch | None
    steps: Sequence[int]
    draws: int
    seed: int
    batch_size: int
    device: torch.device
    processes: Processes
    store: Path

    def __post_init__(self) -> None:
        self._rows: list[Row] = []
        self._training: Tensor | None = None
        self._pairs: list[tuple[str, Tensor]] = []
        self._curves: dict[str, list[tuple[float, Estimate]]] = {}

    def check(self) -> None:
        """Finds what does not go together.

        Raises:
            UserError: Something does not; it says what and how to mend it.
        """
        if self.reference is not None:
            self._check_reference(self.reference)
        if self.noisy is not None:
            _check_count("noisy images", len(self.noisy.indices), 2)
        for subject in self.subjects:
            _check_count(f"images in {subject.name!r}", len(subject), LEAST if "prc" in self.metrics else 2)
            for name, other in (
                ("memorisation", self.reference if "memorisation" in self.metrics else None),
                ("a proximal distance", self.noisy),
            ):
                if other is not None:
                    _check_size(name, subject.name, subject.shape, other.shape)
        for checkpoint in self.checkpoints:
            assert self.held_out is not None
            shape = tuple(self.held_out.x_n.shape[1:])
            if checkpoint.trained.shape != shape:
                raise UserError(
                    f"restoration needs data like those of the training: {checkpoint.name!r} is about "
                    f"{checkpoint.trained.shape}, and the items of --data have the shape {shape}"
                )

    def _check_reference(self, reference: Reference) -> None:
        if reference.n is not None:
            _check_count(f"reference images in {reference.name!r}", reference.n, LEAST if "prc" in self.metrics else 2)
        if "memorisation" in self.metrics and reference.images is None:
            raise UserError(
                f"memorisation compares pixels with those of training images, and reference = {reference.name!r} "
                "holds statistics: give the images"
            )
        if (statistics := reference.statistics) is None:
            return
        assert self.extractor is not None
        try:
            statistics.check(self.extractor)
        except UserError as error:
            raise UserError(f"reference = {reference.name!r}: {error}") from None
        for metric in ("kid", "prc"):
            if metric in self.metrics and statistics.features is None:
                raise UserError(
                    f"{metric} compares single features, and reference = {reference.name!r} holds only their mean and "
                    "covariance: give the images, or ask for fid alone"
                )
        if statistics.provenance is None and self.processes.is_first:
            print(
                f"warning: {reference.name!r} does not say which network, which resize and how many images it was made "
                f"with: the distance is right only if that was {self.extractor.name} with {self.extractor.resize}",
                file=sys.stderr,
            )

    def run(self) -> tuple[list[Row], dict[str, Picture]]:
        """Does the work. Every process must ask.

        Returns:
            What was measured, and the pictures ``neighbours`` and ``calibration``, as far as asked for; on the first
            process alone.
        """
        reference = self._features_of_reference()
        noisy = self._features_of_noisy()
        for number, subject in enumerate(self.subjects, start=1):
            self._measure(subject, f"{number}/{len(self.subjects)} {subject.title}", reference, noisy)
        restorations = list(product(self.checkpoints, self.steps))
        for number, (checkpoint, steps) in enumerate(restorations, start=1):
            title = f"{number}/{len(restorations)} {checkpoint.name}, {steps} levels: restorations"
            self._restore(checkpoint, Ancestral(steps=steps), title)
        pictures = {}
        if self._pairs:
            pictures["neighbours"] = panel(self._pairs)
        if any(self._curves.values()):
            pictures["calibration"] = calibration_picture(self._curves)
        return self._rows, pictures

    def _features_of_reference(self) -> FeatureStatistics | None:
        if self.reference is None or self.reference.images is None:
            return None if self.reference is None else self.reference.statistics
        return self._features_kept(self.reference.images, self.reference.indices, "features of the reference")

    def _features_of_noisy(self) -> FeatureStatistics | None:
        if self.noisy is None:
            return None
        return self._features_kept(self.noisy.images, self.noisy.indices, "features of the noisy images")

    def _features_kept(self, images: Images, indices: list[int], progress: str) -> FeatureStatistics:
        assert self.extractor is not None
        return reference_statistics(
            images,
            self.extractor,
            indices=indices,
            batch_size=self.batch_size,
            device=self.device,
            processes=self.processes,
            progress=progress,
        )

    def _features(
        self, images: Images, indices: list[int], progress: str, noisy: Noisy | None = None
    ) -> FeatureStatistics:
        """Features of samples; with the noise of noisy images in them, if there are any."""
        assert self.extractor is not None
        return extract_features(
            images,
            self.extractor,
            indices=indices,
            batch_size=self.batch_size,
            device=self.device,
            processes=self.processes,
            transform=None if noisy is None else self._renoised(noisy),
            store=self.store / "features",
            progress=progress,
        )

    def _renoised(self, noisy: Noisy) -> Callable[[Tensor, int], Tensor]:
        """Puts noise into sample ``i``, at the level of some noisy image that belongs to ``i``."""
        order = item_generator(self.seed, "evaluate/levels", 0).permutation(len(noisy.indices))

        def transform(image: Tensor, index: int) -> Tensor:
            level = noisy.level(noisy.indices[order[index % len(order)]])
            return renoise(noisy.like(image)[None], level[None], self.seed, [index])[0]

        return transform

    def _measure(
        self, subject: Subject, title: str, reference: FeatureStatistics | None, noisy: FeatureStatistics | None
    ) -> None:
        """Everything about one set of images."""
        start = time.perf_counter()
        images, indices = subject.images(self.store, self.batch_size, self.processes, self.device, f"{title}: samples")
        sampled = time.perf_counter() - start
        for name, other, noise in (("features", reference, None), ("features with noise", noisy, self.noisy)):
            if other is None:
                continue
            start = time.perf_counter()
            features = self._features(images, indices, f"{title}: {name}", noise)
            spent = sampled + time.perf_counter() - start
            measures: dict[str, Callable[[], dict[str, Estimate]]] = {}
            for metric in self.metrics:
                plain = metric.removeprefix("proximal_")
                if metric == "restoration" or (metric != plain) != (noise is not None):
                    continue
                if metric == "memorisation":
                    measures[metric] = partial(self._memorise, subject, images, indices, features, other)
                else:
                    measures[metric] = partial(sample_quality, features, other, [plain])
            with self.processes.together():
                if self.processes.is_first:
                    self._add(subject, title, measures, features, other, noise, spent)

    def _add(
        self,
        subject: Subject,
        title: str,
        measures: dict[str, Callable[[], dict[str, Estimate]]],
        features: FeatureStatistics,
        other: FeatureStatistics,
        noise: Noisy | None,
        spent: float,
    ) -> None:
        """Adds rows; on the first process alone.

        Args:
            subject: What is measured.
            title: What progress bars call it.
            measures: The measures by their names.
            features: Those of the subject.
            other: Those that it is compared with.
            noise: Whose noise was put into the images first, if any.
            spent: Seconds that sampling and features took.
        """
        assert self.extractor is not None
        with tqdm(measures.items(), desc=f"{title}: measures", leave=False) as bar:
            for metric, measure in bar:
                bar.set_postfix_str(metric)
                start = time.perf_counter()
                results = measure()
                seconds = spent + time.perf_counter() - start
                facts = subject.facts() | self._common() | {"seconds": round(seconds, 2)}
                if noise is not None:
                    facts["sigma_n"] = noise.sigma_n
                for name, estimate in results.items():
                    self._rows.append(
                        Row(
                            subject=subject.name,
                            metric=key(metric, name, self.extractor),
                            value=estimate.value,
                            standard_error=estimate.standard_error,
                            n=features.n,
                            n_reference=other.n,
                            extractor=self.extractor.name,
                            extractor_digest=self.extractor.digest,
                            resize=self.extractor.resize,
                            generated_digest=_digest(features),
                            reference_digest=_digest(other),
                            **facts,
                        )
                    )

    def _common(self) -> dict[str, Any]:
        """What is the same in all rows."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"seed": self.seed, "device": device, "versions": versions()}

    def _memorise(
        self,
        subject: Subject,
        images: Images,
        indices: Sequence[int],
        features: FeatureStatistics,
        training: FeatureStatistics,
    ) -> dict[str, Estimate]:
        """How close samples are to training images; keeps the closest pairs for the picture."""
        assert self.reference is not None and self.reference.images is not None
        assert features.features is not None and training.features is not None
        if self._training is None:
            self._training = _stacked(self.reference.images, self.reference.indices, self.reference.name)
        samples, others = _stacked(images, indices, subject.name), self._training
        if samples.shape[1] != others.shape[1]:  # one is grey, and read as if it were in colour
            samples, others = (x.expand(-1, 3, -1, -1) for x in (samples, others))
        near = nearest_neighbours(samples, others)
        nearest, second = near.distance.unbind(1)
        ratio = torch.where(nearest == 0, 0.0, nearest / second)  # 0 / 0: a copy of what is there twice
        for name, nearness in (("closest samples", nearest), ("smallest ratio of distances", ratio)):
            shown = nearness.argsort()[:PAIRS]
            about = f"{subject.title}:\n" if len(self.subjects) > 1 else ""
            for title, pixels in (
                (f"{about}{name}", samples[shown]),
                ("nearest training images", others[near.index[shown, 0]]),
            ):
                self._pairs.append((title, pixels / 127.5 - 1))
        return memorisation(features.features, training.features, samples, others)

    def _restore(self, checkpoint: Checkpoint, sampler: Ancestral, title: str) -> None:
        """Everything about the restorations of one checkpoint."""
        assert self.held_out is not None and self.held_out.x_0 is not None
        start = time.perf_counter()
        denoiser = checkpoint.trained.denoiser.to(self.device)
        restoration = restore(
            denoiser,
            self.held_out.x_n,
            self.held_out.sigma_n,
            self.held_out.index.tolist(),
            self.held_out.x_0,
            draws=self.draws,
            sampler=sampler,
            seed=self.seed,
            batch_size=min(self.batch_size, AT_ONCE),
            processes=self.processes,
            progress=title,
        )
        denoiser.to("cpu")
        if not self.processes.is_first:
            return
        results = restoration_quality(restoration)
        facts = checkpoint.facts() | self._common()
        facts |= {
            "sigma_n": float(self.held_out.sigma_n.max()),
            "sampler": sampler.name,
            "steps": sampler.steps,
            "nfe": sampler.evaluations(sampler.steps),
            "seconds": round(time.perf_counter() - start, 2),
        }
        for name, (value, standard_error) in results.items():
            self._rows.append(Row(checkpoint.name, name, value, standard_error, n=len(self.held_out.x_n), **facts))
        about = f", {sampler.steps} levels" if len(self.steps) > 1 else ""
        self._curves[f"{checkpoint.name}{about}"] = calibration_curve(restoration)


def _digest(statistics: FeatureStatistics) -> str | None:
    return None if statistics.provenance is None else statistics.provenance.data_digest


def _check_count(name: str, count: int, least: int) -> None:
    if count < least:
        raise UserError(f"there are only {count} {name}, and the measures need {least}: give more, or other --metrics")


def _check_size(metric: str, name: str, size: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Pixels can be compared, and noise is the same, only in images of one size."""
    if size[1:] != other[1:]:
        raise UserError(
            f"{metric} needs images of one size, and those in {name!r} have {size[1]} x {size[2]} pixels where the "
            f"others have {other[1]} x {other[2]}: bring them to one size, or leave it out of --metrics"
        )


def _stacked(images: Images, indices: Sequence[int], name: str) -> Tensor:
    """8-bit levels of images, ``(n, C, H, W)``.

    Raises:
        UserError: They are not all of one size.
    """
    several = getattr(images, "__getitems__", None)
    found = several(indices) if several else [images[i] for i in indices]
    if len({tuple(image.shape) for image in found}) > 1:
        raise UserError(
            f"memorisation compares pixels, and the images in {name!r} have several sizes: bring them to one size, or "
            "leave memorisation out of --metrics"
        )
    return to_uint8(torch.stack(list(found)))
