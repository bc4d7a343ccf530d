"""The Frechet distance between two sets of images, each summed up as a Gaussian in feature space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics

__all__ = ["frechet_distance", "gaussian_frechet_distance"]

_ROWS = 2000  # features that the standard error is estimated from, which makes it right within 3 percent or so


def gaussian_frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance between ``N(mean_a, cov_a)`` and ``N(mean_b, cov_b)``.

    ``|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a^(1/2) cov_b cov_a^(1/2))^(1/2))``, equation 6 of
    1706.08500. Unlike ``cov_a cov_b``, whose eigenvalues are the same, the symmetric product has only real ones in
    floating point too, also for singular covariances.

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
    # Any factor of cov_a in place of its symmetric root gives the same eigenvalues, and Cholesky's is had much faster.
    factor, failed = torch.linalg.cholesky_ex(cov_a)
    if failed:
        # Of few images it is singular, that of the other set need not be: they can change places.
        cov_a, cov_b = cov_b, cov_a
        factor, failed = torch.linalg.cholesky_ex(cov_a)
    if failed:
        values, vectors = torch.linalg.eigh(cov_a)
        factor = vectors * values.clamp(min=0).sqrt()
    product = torch.linalg.eigvalsh(factor.mT @ cov_b @ factor).clamp(min=0)
    return (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * product.sqrt().sum()


def frechet_distance(generated: FeatureStatistics, reference: FeatureStatistics) -> Estimate:
    """Squared Frechet distance between the Gaussians with the means and covariances of two sets of features.

    Sets of ``n`` images give too large a distance, by about ``1/n`` of something that depends on the features: compare
    numbers only at equal ``n``. The standard error says nothing about that; it is about the scatter from set to set.

    It is the delta method's. The squared distance is a smooth function of means and covariances, and a feature ``x``
    of the generated set, with mean ``m`` and covariance ``C``, moves it in proportion to ``2 (m - m_r) (x - m) +
    tr[(1 - T) ((x - m) (x - m)^T - C)]``, where ``T`` is the matrix of the optimal transport map to the reference's
    Gaussian; likewise for the reference with ``T^-1``. The variances of both, each over its ``n``, add up. A reference
    whose features are not known is taken for exact. Where the laws are all but equal these first-order terms vanish in
    truth, and their estimates, up to half too large, err on the safe side. Where a set has no more images than its
    features have dimensions its covariance is singular, the function is not smooth, and there is no standard error. Nor
    is there one where a covariance was stored so coarsely that it has negative eigenvalues.

    Args:
        generated: Statistics of one set.
        reference: Statistics of the other, in the same features (``FeatureStatistics.check``).

    Returns:
        The squared distance, not a number if a feature is not.

    Raises:
        UserError: If the features have different lengths.
    """
    d = reference.num_features
    if generated.num_features != d:
        raise UserError(
            f"features of length {generated.num_features} and {d} cannot be compared: use the same extractor for both"
        )
    distance = float(gaussian_frechet_distance(generated.mean, generated.cov, reference.mean, reference.cov))
    regular = generated.features is not None and all(s.n is None or s.n > d for s in (generated, reference))
    return Estimate(distance, _standard_error(generated, reference) if regular and math.isfinite(distance) else None)


def _standard_error(generated: FeatureStatistics, reference: FeatureStatistics) -> float | None:
    # Where features are constant the covariances are singular, and the distance is still smooth in the others. What
    # is added is nothing beside the variances that count.
    tiny = torch.finfo(torch.float64).tiny
    added = 1e-10 * (generated.cov.trace() + reference.cov.trace()) + tiny
    identity = torch.eye(generated.num_features, dtype=torch.float64)
    cov_g, cov_r = generated.cov + added * identity, reference.cov + added * identity
    factor, failed = torch.linalg.cholesky_ex(cov_r)
    if failed:
        return None
    product, turn = torch.linalg.eigh(factor.mT @ cov_g @ factor)
    # With cov_r = F F^T and F^T cov_g F = V L V^T: T = F V L^(-1/2) V^T F^T, so x^T T x is the square of a vector, and
    # so is x^T T^-1 x.
    root = product.clamp(min=tiny) ** 0.25
    shift = generated.mean - reference.mean
    variance = _variance(generated, shift, factor @ turn / root)
    if reference.features is not None:
        inverse = torch.linalg.solve_triangular(factor.mT, turn * root, upper=True)
        variance += _variance(reference, -shift, inverse)
    return variance**0.5


def _variance(statistics: FeatureStatistics, shift: Tensor, half: Tensor) -> float:
    """Variance of the distance due to the scatter of one set's features.

    Args:
        statistics: The set.
        shift: Its mean less the other's.
        half: ``H`` with ``H H^T`` the matrix of the transport map to the other.
    """
    assert statistics.features is not None and statistics.n is not None
    rows = statistics.features[:: -(-statistics.n // _ROWS)].double() - statistics.mean
    influence = 2 * rows @ shift + rows.square().sum(1) - (rows @ half).square().sum(1)
    return float(influence.var()) / statistics.n
