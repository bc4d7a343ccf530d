"""One way up and one way down, exact in law.

A sum of independent normal draws is determined by its coefficients, so laws are read off exactly: with
a "noise" of ones in place of the draw, a kernel shows the coefficient of its noise.
"""

import torch
from checks import assert_law, generator
from hypothesis import given
from hypothesis import strategies as st

from lightning_tweedie.kernels import normal_like, perturb, reverse_chain, reverse_step
from lightning_tweedie.oracles import GaussianOracle

levels = st.lists(st.floats(0.0, 50.0), min_size=3, max_size=3).map(sorted)
shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4)
ones, silence = torch.ones_like, torch.zeros_like


@given(levels=levels, shape=shapes)
def test_perturb_composes(levels, shape):
    """From ``sigma_n`` over ``sigma_s`` to ``sigma_t``, or at once: the same variance is added."""
    n, s, t = (torch.tensor([v, 2 * v], dtype=torch.float64) for v in levels)
    zero = torch.zeros(2, *shape, dtype=torch.float64)
    two = perturb(zero, n, s, ones) ** 2 + perturb(zero, s, t, ones) ** 2
    torch.testing.assert_close(two, perturb(zero, n, t, ones) ** 2, rtol=1e-9, atol=1e-9)


def test_perturb_brings_every_pixel_to_the_same_level():
    sigma_n = torch.rand(2, 3, 4, 4, generator=generator(), dtype=torch.float64)
    added = perturb(torch.zeros_like(sigma_n), sigma_n, torch.tensor([1.0, 2.0]), ones)
    total = (sigma_n**2 + added**2).sqrt()
    torch.testing.assert_close(total[0], torch.ones_like(total[0]))
    torch.testing.assert_close(total[1], 2 * torch.ones_like(total[1]))


@given(levels=levels, shape=shapes)
def test_reverse_step_is_the_gaussian_bridge(levels, shape):
    """``x_s`` and ``x_t = x_s + noise`` given ``x_0`` are jointly normal; conditioning gives the bridge."""
    _, s, t = (torch.tensor(v + 0.01, dtype=torch.float64) for v in levels)
    x_t, x0 = (torch.randn(2, *shape, generator=generator(i), dtype=torch.float64) for i in range(2))
    covariance, variance_t = s**2, t**2
    mean = x0 + covariance / variance_t * (x_t - x0)
    variance = s**2 - covariance**2 / variance_t
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, silence), mean, rtol=1e-9, atol=1e-9)
    coefficient = reverse_step(torch.zeros_like(x_t), torch.zeros_like(x0), t, s, ones)
    torch.testing.assert_close(coefficient**2, variance.expand_as(x_t), rtol=1e-9, atol=1e-9)


def test_up_and_down_again_restores_the_law():
    """From ``x_0`` up to ``sigma_t`` and, given ``x_0``, down to ``sigma_s``: variance ``sigma_s^2``, any jump."""
    noise = normal_like(generator())
    x0 = torch.full((20_000, 2), 3.0, dtype=torch.float64)
    x_s = reverse_step(perturb(x0, 0.0, 5.0, noise), x0, 5.0, 0.5, noise)
    assert_law(x_s, x0[0], 0.25 * torch.eye(2, dtype=torch.float64))


def test_reverse_chain_follows_the_reverse_process():
    """With the exact denoiser and small steps, ``p(x_t)`` becomes ``p(x_s)``; every item on its own grid."""
    mean, cov = torch.tensor([1.0, -1.0]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.5]]).double()
    oracle, noise, n = GaussianOracle(mean, cov), normal_like(generator()), 4000
    starts, ends = torch.tensor([2.0, 1.0]).double(), torch.tensor([0.5, 0.2]).double()
    grid = torch.stack([torch.linspace(a, b, 200) for a, b in zip(starts, ends, strict=True)], dim=1).double()
    x_t = perturb(oracle.sample(2 * n, generator(1)), 0.0, starts.repeat(n), noise)
    x_s = reverse_chain(oracle, x_t, grid.repeat(1, n), noise)
    for item in range(2):
        assert_law(x_s[item::2], mean, cov + ends[item] ** 2 * torch.eye(2, dtype=torch.float64))
    assert torch.equal(reverse_chain(oracle, x_t, grid[:1].repeat(1, n), noise), x_t)
