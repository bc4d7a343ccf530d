"""What `evaluate` measures, against what: whether it goes together, and the pictures that come of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from lightning_tweedie.commands.evaluation_data import Reference
from lightning_tweedie.commands.subjects import Checkpoint, Subject
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.metric_names import least
from lightning_tweedie.evaluation.noisy_images import NoisyImages
from lightning_tweedie.evaluation.restoration import calibration_curve, calibration_picture
from lightning_tweedie.evaluation.restoration_measurement import measure_restorations
from lightning_tweedie.evaluation.results import Row
from lightning_tweedie.evaluation.sample_measurement import ImageSet, measure_samples, read_yardsticks
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.pictures import Picture, panel
from lightning_tweedie.sampling import SDEDPMSolverPP2M

__all__ = ["Comparisons", "Restorations"]


@dataclass(frozen=True)
class Comparisons:
    """Sets of images, and what they are compared with.

    Args:
        metrics: Names of the measures.
        subjects: Sets of images, each with a line in the table.
        extractor: Network of the features.
        reference: Clean images; None if no measure needs them.
        training: All training images; None without ``memorisation``.
        noisy: Noisy training images; None if no measure needs them.
    """

    metrics: Sequence[str]
    subjects: Sequence[Subject]
    extractor: FeatureExtractor
    reference: Reference | None
    training: Reference | None
    noisy: NoisyImages | None

    @property
    def _statistics(self) -> FeatureStatistics | None:
        """Those of the reference, as far as they are used: beside images they serve the Frechet distance alone."""
        reference = self.reference
        return reference.statistics if reference and ("fid" in self.metrics or reference.images is None) else None

    def check(self) -> None:
        """Finds what does not go together.

        Raises:
            UserError: Something does not; it says what and how to mend it.
        """
        if self.reference is not None:
            self._check_reference(self.reference)
        if self.training is not None:
            if self.training.images is None:
                raise UserError(
                    f"memorisation compares pixels with those of training images, and reference = "
                    f"{self.training.name!r} holds statistics: give the images, or the data module with --data"
                )
            _check_count(f"images in {self.training.name!r}", len(self.training.indices), 2)
        if self.noisy is not None:
            _check_count("noisy images", len(self.noisy.indices), 2)
        for subject in self.subjects:
            _check_count(f"images in {subject.name!r}", len(subject), least(self.metrics))
            for name, other in (("memorisation", self.training), ("a proximal distance", self.noisy)):
                for shape in subject.shapes if other is not None else ():
                    _check_size(name, subject.name, shape, other.shape)  # type: ignore[union-attr]
            if self.noisy is not None and self.noisy.grey and subject.in_colour:
                raise UserError(
                    f"proximal measures put the noise of grey images into samples, and those of {subject.name!r} are "
                    "in colour: give noisy images in colour, or leave these measures out of --metrics"
                )

    def _check_reference(self, reference: Reference) -> None:
        if reference.n is not None:
            _check_count(f"reference images in {reference.name!r}", reference.n, least(self.metrics))
        if (statistics := self._statistics) is None:
            return
        try:
            statistics.check(self.extractor)
        except UserError as error:
            raise UserError(f"reference = {reference.name!r}: {error}") from None
        for metric in ("kid", "prc"):
            if metric in self.metrics and statistics.features is None and reference.images is None:
                raise UserError(
                    f"{metric} compares single features, and reference = {reference.name!r} holds only their mean and "
                    "covariance: give the images, or ask for fid alone"
                )

    def run(self, work: Work) -> tuple[list[Row], dict[str, Picture]]:
        """Does the work. Every process must ask.

        Returns:
            What was measured; on the first process with the picture ``neighbours``, if ``memorisation`` is measured.
        """
        statistics = self._statistics
        if self.reference and statistics and statistics.provenance is None and work.processes.is_first:
            print(
                f"warning: {self.reference.name!r} does not say which network, which resize and how many images it was "
                f"made with: the distance is right only if that was {self.extractor.name} with {self.extractor.resize}",
                file=sys.stderr,
            )
        yardsticks = read_yardsticks(
            self.metrics,
            self.extractor,
            work,
            reference=_images(self.reference),
            statistics=statistics,
            training=_images(self.training),
            noisy=self.noisy,
        )
        rows: list[Row] = []
        columns = []
        for number, subject in enumerate(self.subjects, start=1):
            progress = f"{number}/{len(self.subjects)} {subject.title}"
            start = time.perf_counter()
            samples = subject.images(work, f"{progress}: samples")
            spent = time.perf_counter() - start
            found, pairs = measure_samples(
                samples, yardsticks, work, facts=subject.facts(), progress=progress, spent=spent
            )
            rows += found
            about = f"{subject.title}:\n" if len(self.subjects) > 1 else ""
            for pair in pairs:
                for title, pixels in ((about + pair.by, pair.samples), ("nearest training images", pair.training)):
                    columns.append((title, pixels / 127.5 - 1))
        return rows, {"neighbours": panel(columns)} if columns else {}


@dataclass(frozen=True)
class Restorations:
    """What is restored, and by what.

    Args:
        checkpoints: Whose restorations are measured.
        held_out: Noisy items, with the clean ones.
        steps: Noise levels of posterior draws; each number is a line in the table.
        draws: Posterior draws of each item.
    """

    checkpoints: Sequence[Checkpoint]
    held_out: NoisyBatch
    steps: Sequence[int]
    draws: int

    def check(self) -> None:
        """Finds checkpoints of other data.

        Raises:
            UserError: There is one.
        """
        shape = tuple(self.held_out.x_n.shape[1:])
        for checkpoint in self.checkpoints:
            if checkpoint.trained.shape != shape:
                raise UserError(
                    f"restoration needs data like those of the training: {checkpoint.name!r} is about "
                    f"{checkpoint.trained.shape}, and the items of --data have the shape {shape}"
                )

    def run(self, work: Work) -> tuple[list[Row], dict[str, Picture]]:
        """Does the work. Every process must ask.

        Returns:
            What was measured, and the picture ``calibration``, if intervals are.
        """
        rows: list[Row] = []
        curves = {}
        ways = list(product(self.checkpoints, self.steps))
        for number, (checkpoint, steps) in enumerate(ways, start=1):
            denoiser = checkpoint.trained.denoiser.to(work.device)
            found, restoration = measure_restorations(
                denoiser,
                self.held_out,
                SDEDPMSolverPP2M(steps=steps),
                self.draws,
                work,
                facts=checkpoint.facts(),
                progress=f"{number}/{len(ways)} {checkpoint.name}, {steps} levels: restorations",
            )
            denoiser.to("cpu")
            rows += found
            about = f", {steps} levels" if len(self.steps) > 1 else ""
            curves[f"{checkpoint.name}{about}"] = calibration_curve(restoration)
        return rows, {"calibration": calibration_picture(curves)} if any(curves.values()) else {}


def _images(reference: Reference | None) -> ImageSet | None:
    if reference is None or reference.images is None:
        return None
    return ImageSet(reference.images, reference.indices, reference.name)


def _check_count(name: str, count: int, needed: int) -> None:
    if count < needed:
        raise UserError(f"there are only {count} {name}, and the measures need {needed}: give more, or other --metrics")


def _check_size(metric: str, name: str, size: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Pixels can be compared, and noise is the same, only in images of one size."""
    if size[1:] != other[1:]:
        raise UserError(
            f"{metric} needs images of one size, and those in {name!r} have {size[1]} x {size[2]} pixels where the "
            f"others have {other[1]} x {other[2]}: bring them to one size, or leave it out of --metrics"
        )
