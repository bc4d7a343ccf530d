"""The Frechet distance: closed forms, other implementations, its bias and its standard error."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from checks import assert_mean, generator
from torch import Tensor, nn
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.frechet import frechet_distance, gaussian_frechet_distance


def random_covariance(d: int, rank: int, seed: int) -> Tensor:
    a = torch.randn(d, rank, dtype=torch.float64, generator=generator(seed))
    return a @ a.mT / rank


def features(n: int, d: int, seed: int) -> Tensor:
    """Correlated, of a falling spectrum, not negative: as a network's are."""
    g = generator(1000 + seed)
    mixed = torch.randn(n, d, generator=g) @ (torch.randn(d, d, generator=generator(seed % 2)) / d**0.5)
    return (mixed * torch.arange(1, d + 1) ** -0.5 + 0.2).relu()


def distance(generated: Tensor, reference: Tensor) -> Estimate:
    return frechet_distance(FeatureStatistics(generated), FeatureStatistics(reference))


def with_sqrtm(generated: FeatureStatistics, reference: FeatureStatistics) -> float:
    """The original definition with scipy's matrix square root, in float64."""
    mean, other = generated.mean.numpy(), reference.mean.numpy()
    cov, cov_other = generated.cov.numpy(), reference.cov.numpy()
    root = scipy.linalg.sqrtm(cov @ cov_other)
    return float(((mean - other) ** 2).sum() + np.trace(cov + cov_other - 2 * root.real))


# Closed forms


def test_distance_of_commuting_gaussians() -> None:
    # Diagonal in one basis: |m_a - m_b|^2 + sum (s_a - s_b)^2.
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator(0)))[0]
    s_a, s_b = torch.rand(2, 6, dtype=torch.float64, generator=generator(1))
    m_a, m_b = torch.randn(2, 6, dtype=torch.float64, generator=generator(2))
    got = gaussian_frechet_distance(m_a, q * s_a**2 @ q.mT, m_b, q * s_b**2 @ q.mT)
    torch.testing.assert_close(got, (m_a - m_b).square().sum() + (s_a - s_b).square().sum())


@pytest.mark.parametrize("ranks", [(40, 40), (7, 7), (7, 40), (40, 7)])  # 7: singular, as with too few images
def test_distance_agrees_with_the_product_of_covariances(ranks: tuple[int, int]) -> None:
    a, b = (random_covariance(20, rank, seed) for seed, rank in enumerate(ranks))
    zero = torch.zeros(20, dtype=torch.float64)
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    # A zero eigenvalue of 1e-16 becomes 1e-8 under the root.
    torch.testing.assert_close(
        gaussian_frechet_distance(zero, a, zero, b), a.trace() + b.trace() - 2 * root, atol=1e-6, rtol=1e-9
    )
    torch.testing.assert_close(gaussian_frechet_distance(zero, a, zero, a), zero[0], atol=1e-6, rtol=0)


def test_distance_of_features_of_a_known_law() -> None:
    # Independent coordinates of std a and b, means 0 and m: d ((a - b)^2 + m^2), for the mean of several runs. The
    # estimate's own bias, of order d^2 (a^2 + b^2) / n, is far below the standard error at this n.
    a, b, m, n = 0.25, 0.15, 0.1, 20_000
    values = []
    for seed in range(8):
        g = generator(seed)
        reference, generated = a * torch.randn(n, 4, generator=g), b * torch.randn(n, 4, generator=g) + m
        values.append(distance(generated, reference).value)
    assert_mean(torch.tensor(values), 4 * ((a - b) ** 2 + m**2))


def test_bias_of_small_sets_is_the_known_one() -> None:
    # Equal laws, true distance 0. To second order the distance is |m - m'|^2 + sum D_ij^2 / (2 (l_i + l_j)) in the
    # eigenvectors of the covariance, D the difference of the empirical covariances, whose variance is known for
    # Gaussians: E D_ij^2 = (1/n + 1/m) l_i l_j (1 + [i = j]).
    n, m = 1000, 1500
    spectrum = torch.arange(1, 9, dtype=torch.float64) ** -1.0
    pairs = spectrum[:, None] * spectrum / (spectrum[:, None] + spectrum) / 2
    bias = (1 / n + 1 / m) * (spectrum.sum() + pairs.sum() + pairs.trace())
    values = []
    for seed in range(100):
        g = generator(seed)
        x, y = (torch.randn(size, 8, generator=g) * spectrum.sqrt() for size in (n, m))
        values.append(distance(x.float(), y.float()).value)
    # Higher orders bring another share of d / n or so of the bias.
    assert_mean(torch.tensor(values) / float(bias), 1.0)
    assert abs(np.mean(values)) > 10 * np.std(values) / 100**0.5  # the control: it is no estimate of 0


@pytest.mark.parametrize("n", [400, 20])  # 20: fewer than there are features
def test_identical_sets_are_at_distance_zero(n: int) -> None:
    x = features(n, 30, 0)
    assert abs(distance(x, x.clone()).value) < 1e-7 * float(FeatureStatistics(x).cov.trace())


# Other implementations


@pytest.mark.parametrize("d", [16, 192])
def test_agrees_with_scipy(d: int) -> None:
    generated, reference = FeatureStatistics(features(4 * d, d, 0)), FeatureStatistics(features(5 * d, d, 1))
    got = frechet_distance(generated, reference).value
    assert got == pytest.approx(with_sqrtm(generated, reference), rel=1e-8)


@pytest.mark.parametrize("n", [500, 60])  # 60: fewer than there are features
def test_agrees_with_torch_fidelity(n: int) -> None:
    generated, reference = features(n, 100, 0), features(n + 7, 100, 1)
    statistics = [fid_features_to_statistics(x) for x in (generated, reference)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert distance(generated, reference).value == pytest.approx(expected, rel=1e-5)


class Given(nn.Module):
    """Features that are given in place of images."""

    num_features = 9

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_agrees_with_torchmetrics() -> None:
    generated, reference = features(50, 9, 0), features(70, 9, 1)
    theirs = FrechetInceptionDistance(feature=Given())
    theirs.update(reference, real=True)
    theirs.update(generated, real=False)
    assert distance(generated, reference).value == pytest.approx(theirs.compute().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_process_without_an_image_stops_torchmetrics_and_not_us() -> None:
    # What a process holds that saw no image, once all have added up their sums.
    reference, generated = features(50, 9, 1), features(50, 9, 0)
    seen, idle = (FrechetInceptionDistance(feature=Given()) for _ in range(2))
    seen.update(reference, real=True)
    seen.update(generated, real=False)
    for name in seen._defaults:
        setattr(idle, name, getattr(seen, name))
    with pytest.raises(AttributeError, match="orig_dtype"):
        idle.compute()
    # Features are put together in order, of which one process may have none.
    shares = [generated[:30], generated[30:30], generated[30:]]
    assert distance(torch.cat(shares), reference) == distance(generated, reference)


# Standard error


def replicate(n: int, m: int, d: int, scale: float, shift: float, runs: int) -> tuple[Tensor, Tensor]:
    """Values and their standard errors on fresh Gaussian features."""
    g = generator(n + m)
    spread = torch.arange(1, d + 1) ** -0.5
    mix = torch.linalg.qr(torch.randn(d, d, generator=g))[0] if scale != 1 else torch.eye(d)
    estimates = []
    for _ in range(runs):
        x = (torch.randn(n, d, generator=g) * spread * scale) @ mix.mT + shift / d**0.5
        estimates.append(distance(x, torch.randn(m, d, generator=g) * spread))
    values, errors = zip(*estimates, strict=True)
    return torch.tensor(values), torch.tensor(errors)


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (300, 5000), (5000, 300)])
def test_standard_error_is_the_scatter_of_replications(n: int, m: int) -> None:
    values, errors = replicate(n, m, d=8, scale=1.3, shift=0.3, runs=200)
    # The deviation of 200 draws is itself uncertain by 1 / (2 * 200)^(1/2) = 5 percent; 5 such are 25.
    assert errors.mean() / values.std() == pytest.approx(1, abs=0.25)


def test_standard_error_counts_both_sets() -> None:
    # The control: without the smaller set's part it would be several times too small.
    reference = torch.randn(300, 8, generator=generator())
    generated = 1.3 * torch.randn(20_000, 8, generator=generator(1))
    exact = FeatureStatistics(reference)
    exact = FeatureStatistics(mean=exact.mean, cov=exact.cov)  # features unknown: taken for exact
    both = distance(generated, reference).standard_error
    alone = frechet_distance(FeatureStatistics(generated), exact).standard_error
    assert both is not None and alone is not None and both > 3 * alone


def test_standard_error_of_equal_laws_is_on_the_safe_side() -> None:
    # The first order vanishes, and what is estimated of it is too large, by no more than a factor of two.
    values, errors = replicate(500, 500, d=8, scale=1.0, shift=0.0, runs=200)
    assert 1 < errors.mean() / values.std() < 2


def test_a_constant_feature_does_no_harm() -> None:
    x, y = features(300, 9, 0), features(400, 9, 1)
    constant = [torch.cat([part, torch.full((len(part), 1), 0.5)], dim=1) for part in (x, y)]
    for got, expected in zip(distance(*constant), distance(x, y), strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    # Varying on one side only, and on no side at all.
    half = torch.cat([x, torch.zeros(300, 1)], dim=1), torch.cat([y, torch.randn(400, 1, generator=generator())], dim=1)
    assert math.isfinite(distance(*half).standard_error or math.nan)
    assert distance(torch.ones(30, 3), torch.ones(30, 3)) == Estimate(0.0, 0.0)


def test_no_standard_error_where_the_covariance_is_singular() -> None:
    assert distance(features(100, 20, 0), features(21, 20, 1)).standard_error is not None
    assert distance(features(100, 20, 0), features(20, 20, 1)).standard_error is None
    assert distance(features(20, 20, 0), features(100, 20, 1)).standard_error is None


def test_no_standard_error_where_a_stored_covariance_is_not_one() -> None:
    # In float32, as some programs store it, a covariance of small rank has eigenvalues below zero.
    d = 60
    generated = FeatureStatistics(features(400, d, 0))
    other = features(400, d, 1)[:, :20] @ torch.randn(20, d, generator=generator(3)) * 1e3
    exact = FeatureStatistics(other)
    coarse = FeatureStatistics(mean=exact.mean, cov=exact.cov.float())
    wrong = coarse.cov - 1e-6 * coarse.cov.trace() / d * torch.eye(d, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(wrong)[0]) < 0
    found = frechet_distance(generated, FeatureStatistics(mean=exact.mean, cov=wrong))
    assert found.standard_error is None
    assert found.value == pytest.approx(frechet_distance(generated, exact).value, rel=1e-4)


def test_no_standard_error_without_the_generated_features() -> None:
    known = FeatureStatistics(features(100, 20, 0))
    estimate = frechet_distance(
        FeatureStatistics(mean=known.mean, cov=known.cov), FeatureStatistics(features(90, 20, 1))
    )
    assert estimate == (pytest.approx(distance(features(100, 20, 0), features(90, 20, 1)).value), None)


# Bad input


def test_one_broken_image_breaks_the_distance() -> None:
    x, y = features(50, 5, 0), features(50, 5, 1)
    x[7, 2] = torch.nan
    value, error = distance(x, y)
    assert math.isnan(value) and error is None


def test_one_image_is_no_distribution() -> None:
    with pytest.raises(UserError, match="two images or more, not 1"):
        FeatureStatistics(torch.zeros(1, 4))


def test_features_of_two_networks_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="length 5 and 6"):
        distance(features(50, 5, 0), features(50, 6, 1))
