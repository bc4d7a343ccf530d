"""From sets of samples to rows of results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.evaluation.extraction import (
    Images,
    Transform,
    extract_features,
    reference_statistics,
    stacked_pixels,
)
from lightning_tweedie.evaluation.metric_names import PROXIMAL, key
from lightning_tweedie.evaluation.noisy_images import NoisyImages
from lightning_tweedie.evaluation.quality import sample_quality
from lightning_tweedie.evaluation.results import Row
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.memorisation import Neighbours, memorisation, nearest_neighbours

__all__ = ["ClosestPairs", "ImageSet", "Yardsticks", "measure_samples", "read_yardsticks"]

_PAIRS = 8


class ImageSet(NamedTuple):
    """Some of the images of a data set.

    Args:
        images: All of them.
        indices: Numbers of those that are meant.
        name: What messages call them.
    """

    images: Images
    indices: Sequence[int]
    name: str


@dataclass(frozen=True)
class Yardsticks:
    """What samples are compared with.

    Args:
        extractor: Network of the features.
        features: Those that each measure compares with, by its name.
        noisy: Where the noise of proximal measures comes from; None if there are none.
        training: 8-bit levels of all training images, ``(n, C, H, W)``, for ``memorisation``; on the first process
            alone.
    """

    extractor: FeatureExtractor
    features: dict[str, FeatureStatistics]
    noisy: NoisyImages | None = None
    training: Tensor | None = None


class ClosestPairs(NamedTuple):
    """Samples and the training images that are nearest to them in pixels, 8-bit levels ``(n, C, H, W)``."""

    by: str
    samples: Tensor
    training: Tensor


def read_yardsticks(
    metrics: Sequence[str],
    extractor: FeatureExtractor,
    work: Work,
    *,
    reference: ImageSet | None = None,
    statistics: FeatureStatistics | None = None,
    training: ImageSet | None = None,
    noisy: NoisyImages | None = None,
) -> Yardsticks:
    """Computes the features that samples are compared with, or finds them in the cache.

    Args:
        metrics: Any of ``lightning_tweedie.evaluation.metric_names.METRICS``.
        extractor: Network of the features.
        work: Who does it, and where.
        reference: Clean images for ``fid``, ``kid`` and ``prc``, if these are asked for.
        statistics: Of clean images, computed earlier: for ``fid``, and where there are no images for the others.
        training: All images of the training, for ``memorisation``: any of them may have been learnt by heart.
        noisy: Noisy images, for proximal measures.

    Raises:
        UserError: An item is no image, or training images are of several sizes.
    """
    found: dict[tuple[int, int], FeatureStatistics] = {}

    def features(its: ImageSet, name: str) -> FeatureStatistics:
        same = id(its.images), id(its.indices)  # the training images may be the reference too
        if same not in found:
            found[same] = reference_statistics(
                its.images,
                extractor,
                indices=its.indices,
                batch_size=work.batch_size,
                device=work.device,
                processes=work.processes,
                cache_dir=work.cache_dir,
                progress=work.told(f"features of the {name} images"),
            )
        return found[same]

    others: dict[str, FeatureStatistics] = {}
    pixels = None
    for metric in metrics:
        if metric in PROXIMAL:
            assert noisy is not None
            others[metric] = features(ImageSet(noisy.images, noisy.indices, "noisy"), "noisy")
        elif metric == "memorisation":
            assert training is not None
            with work.processes.together():  # early: it finds images of several sizes
                pixels = stacked_pixels(*training) if work.processes.is_first else None
            others[metric] = features(training, "training")
        elif statistics is not None and (metric == "fid" or reference is None):
            others[metric] = statistics
        else:
            assert reference is not None
            others[metric] = features(reference, "reference")
    return Yardsticks(extractor, others, noisy, pixels)


def measure_samples(
    samples: ImageSet,
    yardsticks: Yardsticks,
    work: Work,
    *,
    facts: dict[str, Any],
    progress: str = "samples",
    spent: float = 0.0,
) -> tuple[list[Row], list[ClosestPairs]]:
    """Measures a set of images by all yardsticks.

    Args:
        samples: The images.
        yardsticks: What they are compared with.
        work: Who does it, and where.
        facts: Fields of the rows that say what the samples are.
        progress: What progress bars call them.
        spent: Seconds that their making took.

    Returns:
        A row for each value, on every process; on the first the pairs of samples and training images that are closest,
        if ``memorisation`` is measured.

    Raises:
        UserError: An item is no image, there are too few, or they cannot be compared with the others.
    """
    rows: list[Row] = []
    pairs: list[ClosestPairs] = []
    noise = None if yardsticks.noisy is None else yardsticks.noisy.renoising(work.seed)
    kinds: list[tuple[bool, str, Transform | None]] = [(False, "features", None), (True, "features with noise", noise)]
    for proximal, name, transform in kinds:
        others = {metric: other for metric, other in yardsticks.features.items() if (metric in PROXIMAL) == proximal}
        if not others:
            continue
        start = time.perf_counter()
        features = extract_features(
            samples.images,
            yardsticks.extractor,
            indices=samples.indices,
            batch_size=work.batch_size,
            device=work.device,
            processes=work.processes,
            transform=transform,
            store=None if work.store is None else work.store / "features",
            progress=work.told(f"{progress}: {name}"),
        )
        so_far = spent + time.perf_counter() - start
        level = {} if not proximal or yardsticks.noisy is None else {"sigma_n": yardsticks.noisy.sigma_n}
        with work.processes.together():
            if work.processes.is_first:
                bar = tqdm(others.items(), desc=f"{progress}: measures", leave=False, disable=not work.shown)
                for metric, other in bar:
                    bar.set_postfix_str(metric)
                    start = time.perf_counter()
                    if metric == "memorisation":
                        assert yardsticks.training is not None
                        ours, theirs = _alike(stacked_pixels(*samples), yardsticks.training)
                        near = nearest_neighbours(ours, theirs)
                        pairs = _closest(ours, theirs, near)
                        assert features.features is not None and other.features is not None
                        results = memorisation(features.features, other.features, near)
                    else:
                        results = sample_quality(features, other, [metric.removeprefix("proximal_")])
                    more = _facts(yardsticks.extractor, features, other) | level
                    more["seconds"] = round(so_far + time.perf_counter() - start, 3)
                    rows += [
                        Row(metric=key(metric, its, yardsticks.extractor), value=value, standard_error=error, **told)
                        for told in [facts | work.facts() | more]
                        for its, (value, error) in results.items()
                    ]
    return work.processes.tell(rows), pairs


def _facts(extractor: FeatureExtractor, generated: FeatureStatistics, reference: FeatureStatistics) -> dict[str, Any]:
    def digest(statistics: FeatureStatistics) -> str | None:
        return None if statistics.provenance is None else statistics.provenance.data_digest

    return {
        "n": generated.n,
        "n_reference": reference.n,
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "resize": extractor.resize,
        "generated_digest": digest(generated),
        "reference_digest": digest(reference),
    }


def _alike(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels with as many channels: one may be grey, and the other read as if it were in colour."""
    if samples.shape[1] == training.shape[1]:
        return samples, training
    return samples.expand(-1, 3, -1, -1), training.expand(-1, 3, -1, -1)


def _closest(samples: Tensor, training: Tensor, near: Neighbours) -> list[ClosestPairs]:
    """The closest pairs, by either sense of the word."""
    pairs = []
    for by, nearness in (("closest samples", near.distance[:, 0]), ("smallest ratio of distances", near.ratio)):
        shown = nearness.argsort()[:_PAIRS]
        pairs.append(ClosestPairs(by, samples[shown], training[near.index[shown, 0]]))
    return pairs
