"""The Frechet distance between two sets of images, each summed up as a Gaussian in feature space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_tweedie.metrics.features import FeatureExtractor

__all__ = ["FrechetDistance", "gaussian_frechet_distance"]

_REFERENCE = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


def gaussian_frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance between ``N(mean_a, cov_a)`` and ``N(mean_b, cov_b)``.

    ``|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^(1/2) cov_b cov_a^(1/2))^(1/2))``, equation 6 of
    1706.08500. The symmetric form takes half the time of the eigenvalues of ``cov_a cov_b`` and has only
    real ones, also for singular covariances.

    Args:
        mean_a: ``(d,)`` float64, as all others.
        cov_a: ``(d, d)``, symmetric and positive semi-definite.
        mean_b: ``(d,)``.
        cov_b: ``(d, d)``.

    Returns:
        A scalar; not a number if an input is not.
    """
    if not all(bool(x.isfinite().all()) for x in (mean_a, cov_a, mean_b, cov_b)):
        return mean_a.new_tensor(torch.nan)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    product = torch.linalg.eigvalsh(root @ cov_b @ root)
    trace = cov_a.trace() + cov_b.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return (mean_a - mean_b).square().sum() + trace


class FrechetDistance(FrechetInceptionDistance):
    """Torchmetrics' Frechet distance with one of our extractors.

    The difference: the result is float64, and a process that saw no image may take part in it. Statistics
    are sums in float64 over all processes, so the distance does not depend on how images were divided
    among them. The reference stays when the metric is reset.

    Use: ``update(images, real=True)`` with reference images, ``update(images, real=False)`` with others,
    ``compute()``. Small sets give large distances (the estimate is biased by about ``1/n``): compare
    numbers only at equal ``n``.

    Args:
        extractor: Where features come from.
        kwargs: Further arguments of torchmetrics' ``Metric``.
    """

    def __init__(self, extractor: FeatureExtractor, **kwargs: Any) -> None:
        super().__init__(feature=extractor, reset_real_features=False, **kwargs)

    @property
    def extractor(self) -> FeatureExtractor:
        """Where features come from."""
        return self.inception  # type: ignore[return-value]

    def compute(self) -> Tensor:
        """The distance, a float64 scalar.

        Raises:
            RuntimeError: If either set has fewer than two images.
        """
        n_real, n_fake = int(self.real_features_num_samples), int(self.fake_features_num_samples)
        if min(n_real, n_fake) < 2:
            raise RuntimeError(f"a Frechet distance needs two images or more on both sides, not {n_real} and {n_fake}")
        return gaussian_frechet_distance(
            *_moments(self.real_features_sum, self.real_features_cov_sum, n_real),
            *_moments(self.fake_features_sum, self.fake_features_cov_sum, n_fake),
        )

    def reference_statistics(self) -> dict[str, Tensor]:
        """Sums over the reference images seen so far by all processes; every process must ask."""
        with self.sync_context():
            return {name: getattr(self, name).clone() for name in _REFERENCE}

    def load_reference_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Takes sums of an earlier run as this process' share; other processes must then have none."""
        for name in _REFERENCE:
            getattr(self, name).copy_(statistics[name])


def _moments(total: Tensor, outer: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance from the sums of features and of their outer products."""
    mean = total / n
    return mean, (outer - n * torch.outer(mean, mean)) / (n - 1)
