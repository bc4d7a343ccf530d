"""The Fréchet distance, from features to the number: ours and the others' on the same features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import scipy.linalg
import torch
from pairs import Row, alternate, ratios
from torch import Tensor, nn
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.frechet import frechet_distance, gaussian_frechet_distance

__all__ = ["rows"]

SIZES = ((1280, 2000), (2048, 10_000))
"""Length of the features, and images in either set: of EfficientNet-Lite0, and of Inception."""


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated ones of a falling spectrum, none negative, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, d, generator=generator) @ (torch.randn(d, d, generator=generator) / d**0.5)
    return (mixed * torch.arange(1, d + 1) ** -0.5 + 0.2).relu()


class Given(nn.Module):
    """Features that are given in place of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x


def ours(generated: Tensor, reference: Tensor) -> float:
    """The distance alone."""
    one, other = FeatureStatistics(generated), FeatureStatistics(reference)
    return float(gaussian_frechet_distance(one.mean, one.cov, other.mean, other.cov))


def with_error(generated: Tensor, reference: Tensor) -> float:
    """The distance, with its standard error."""
    return frechet_distance(FeatureStatistics(generated), FeatureStatistics(reference)).value


def torchmetrics(generated: Tensor, reference: Tensor) -> float:
    """By the eigenvalues of the product of the covariances, which is not symmetric."""
    metric = FrechetInceptionDistance(feature=Given(generated.shape[1]))
    metric.update(reference, real=True)
    metric.update(generated, real=False)
    return float(metric.compute())


def torch_fidelity(generated: Tensor, reference: Tensor) -> float:
    """The same, with NumPy."""
    one, other = (fid_features_to_statistics(part) for part in (generated, reference))
    return float(fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID])


def sqrtm(generated: Tensor, reference: Tensor) -> float:
    """The definition: the square root of that product."""
    one, other = FeatureStatistics(generated), FeatureStatistics(reference)
    root = scipy.linalg.sqrtm((one.cov @ other.cov).numpy())
    shift = (one.mean - other.mean).square().sum()
    return float(shift + one.cov.trace() + other.cov.trace()) - 2 * float(root.real.trace())


WAYS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "ours": ours,
    "ours, with its standard error": with_error,
    "torchmetrics": torchmetrics,
    "torch-fidelity": torch_fidelity,
    "SciPy's sqrtm": sqrtm,
}


def compared(d: int, n: int, pairs: int) -> list[Row]:
    """Seconds of each way as a multiple of ours, and how far its value is from ours."""
    sets = features(n, d, 0), features(n, d, 1)
    values = {name: way(*sets) for name, way in WAYS.items()}
    details = {
        name: {"value": float(f"{value:.6g}"), "off_ours": float(f"{abs(value / values['ours'] - 1):.1g}")}
        for name, value in values.items()
    }
    times = alternate({name: partial(way, *sets) for name, way in WAYS.items()}, pairs=pairs, warmup=0)
    found = ratios("frechet", times, "ours", "time", details=details)
    for row in found:
        row.name += f", {n:,} images, {d:,} features"
    return found


def rows(quick: bool) -> list[Row]:
    """See :mod:`benchmarks.speed`."""
    sizes = ((64, 40), (64, 100)) if quick else SIZES
    return [row for d, n in sizes for row in compared(d, n, 1 if quick else 2)]
