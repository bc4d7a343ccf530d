"""Schedules are rescaling views of the variance-exploding coordinates."""

import pytest
import torch
from checks import generator
from hypothesis import given
from hypothesis import strategies as st

from lightning_tweedie.oracles import GaussianOracle
from lightning_tweedie.schedule import VE, VP, Cosine, RectifiedFlow

SCHEDULES = [VE(), VP(), VP(beta_min=1.0, beta_max=1.0), Cosine(), RectifiedFlow()]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@each
@given(level=st.floats(1e-3, 80.0))
def test_level_and_time_are_inverse(schedule, level):
    level = torch.tensor(level, dtype=torch.float64)
    torch.testing.assert_close(schedule.level(schedule.time(level)), level, rtol=1e-9, atol=0)


@each
def test_views_invert(schedule):
    x = torch.randn(3, 2, 4, 4, generator=generator(), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    back, time = schedule.from_ve(*schedule.to_ve(x, t))
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(time, t)


@each
def test_a_change_of_coordinates_does_not_change_the_prediction(schedule):
    """``E[x_0 | alpha x_0 + sigma z = x]`` by Gaussian conditioning equals the VE oracle seen through the view."""
    root = torch.randn(2, 2, generator=generator(), dtype=torch.float64)
    m, cov = torch.tensor([1.0, -2.0], dtype=torch.float64), root @ root.T
    x = torch.randn(3, 2, generator=generator(1), dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    for i in range(3):
        total = alpha[i] ** 2 * cov + sigma[i] ** 2 * torch.eye(2, dtype=torch.float64)
        expected = m + alpha[i] * cov @ torch.linalg.solve(total, x[i] - alpha[i] * m)
        torch.testing.assert_close(GaussianOracle(m, cov)(*schedule.to_ve(x, t))[i], expected)


@pytest.mark.parametrize("schedule", [VP(), Cosine()])
def test_variance_is_preserved(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_vp_loses_signal_at_the_rate_beta():
    """``d ln alpha / dt = -beta(t) / 2`` with ``beta`` linear (2011.13456)."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(VP(0.1, 20.0).alpha(t).log().sum(), t)
    torch.testing.assert_close(slope, -0.5 * (0.1 + t.detach() * 19.9))
