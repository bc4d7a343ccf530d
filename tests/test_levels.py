"""Training levels have exactly their truncated law; sampling grids are evenly spaced in what they say."""

import pytest
import torch
from checks import generator
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import LogNormal, LogUniform, edm_levels, logistic_levels

LOG_NORMAL, LOG_UNIFORM = LogNormal(mean=-1.2, std=1.2), LogUniform(0.01, 10.0)
UNTRUNCATED = [
    (LOG_NORMAL, stats.lognorm(1.2, scale=torch.tensor(-1.2).exp().item())),
    (LOG_UNIFORM, stats.loguniform(0.01, 10.0)),
]
"""Ours beside SciPy's, an independent implementation."""

each = pytest.mark.parametrize("levels, reference", UNTRUNCATED, ids=["LogNormal", "LogUniform"])


@each
@given(p=st.floats(1e-6, 1 - 1e-6))
def test_icdf_inverts_cdf(levels, reference, p):
    sigma = levels.icdf(torch.tensor(p, dtype=torch.float64))
    assert levels.cdf(sigma).item() == pytest.approx(p, rel=1e-9)
    assert reference.cdf(sigma.item()) == pytest.approx(p, rel=1e-6)


@each
def test_each_item_has_the_truncated_law(levels, reference):
    """Stratification binds the items of a batch together, yet leaves the law of each one alone."""
    lower = torch.tensor([0.0, 0.05, 0.5, 3.0])
    upper = torch.tensor([9.0, 0.06, 9.0, 4.0])
    source = generator()
    draws = torch.stack([levels.sample(lower, upper=upper, generator=source) for _ in range(2000)])
    for item in range(4):
        low, high = reference.cdf(max(lower[item].item(), levels.sigma_min)), reference.cdf(upper[item].item())
        share = (reference.cdf(draws[:, item].numpy()) - low) / (high - low)
        assert stats.kstest(share, "uniform").pvalue > 1e-3


@each
def test_a_batch_covers_its_law_evenly(levels, reference):
    """Of ``n`` equally probable bands each receives exactly one draw."""
    n, lower = 64, 0.2
    sigma = levels.sample(torch.full((n,), lower), generator=generator()).double()
    low, high = levels.cdf(torch.tensor([lower, levels.sigma_max], dtype=torch.float64))
    band = ((levels.cdf(sigma) - low) / (high - low) * n).floor().long()
    assert torch.equal(band.sort().values, torch.arange(n))


@given(lower=st.floats(0.0, 79.0), seed=st.integers(0, 1000))
def test_no_draw_is_at_or_below_the_datas_own_level(lower, seed):
    sigma = LOG_NORMAL.sample(torch.full((4,), lower), generator=generator(seed))
    assert (sigma > torch.tensor(lower)).all() and (sigma <= LOG_NORMAL.sigma_max).all()


@pytest.mark.parametrize("levels", [LOG_NORMAL, LOG_UNIFORM], ids=["LogNormal", "LogUniform"])
def test_no_draw_is_rounded_down_to_the_datas_own_level(levels):
    """In float32, in which squares of levels are subtracted: between neighbours there rounding decides."""
    lower = torch.linspace(0.01, 3, 1000)
    infinity = torch.tensor(torch.inf)
    upper = torch.nextafter(lower, infinity)
    assert (levels.sample(lower, upper=upper, generator=generator()) == upper).all()
    upper = torch.nextafter(torch.nextafter(upper, infinity), infinity)
    drawn = levels.sample(lower, upper=upper, generator=generator())
    assert (drawn > lower).all() and (drawn <= upper).all() and (drawn**2 - lower**2 > 0).all()
    assert 0.5 < (drawn < upper).float().mean() < 0.95  # three values, the middle one of twice the width


def test_a_level_above_all_training_levels_is_refused():
    with pytest.raises(UserError, match="between 90 and 80"):
        LOG_NORMAL.sample(torch.tensor([0.5, 90.0]))
    with pytest.raises(UserError, match="0 < sigma_min < sigma_max"):
        LogNormal(sigma_min=1.0, sigma_max=0.5)


def test_edm_levels_are_evenly_spaced_in_the_rho_th_root():
    grid = edm_levels(18, 0.002, 80.0, rho=7.0)
    assert grid.dtype == torch.float64
    torch.testing.assert_close(grid[[0, -1]], torch.tensor([80.0, 0.002], dtype=torch.float64))
    steps = (grid ** (1 / 7)).diff()
    assert (steps < 0).all()
    torch.testing.assert_close(steps, steps[:1].expand(17))


def test_logistic_levels_are_quantiles_of_equal_probability():
    grid = logistic_levels(12, 0.01, 80.0, rho=2.0)
    torch.testing.assert_close(grid[[0, -1]], torch.tensor([80.0, 0.01], dtype=torch.float64))
    shares = torch.from_numpy(stats.logistic(loc=0, scale=2).cdf(grid.log().numpy()))
    torch.testing.assert_close(shares.diff(), (shares[-1:] - shares[:1]).expand(11) / 11)


@pytest.mark.parametrize("levels", [edm_levels, logistic_levels])
def test_grids_per_item_are_those_of_the_items(levels):
    tops = torch.tensor([0.5, 2.0])
    grid = levels(5, 0.01, tops)
    for column, top in zip(grid.T, tops, strict=True):
        torch.testing.assert_close(column, levels(5, 0.01, top))
    assert levels(1, 0.01, 3.0).tolist() == pytest.approx([3.0])
