"""Exact denoisers against brute force."""

import pytest
import torch
from checks import assert_law, assert_mean, generator
from torch import Tensor

from lightning_tweedie.oracles import EmpiricalOracle, GaussianOracle, MixtureOracle

MEANS = torch.tensor([[-1.0, 0.5], [0.5, -0.5], [1.0, 1.0]]).double()
STDS = torch.tensor([0.2, 0.5, 0.1]).double()
WEIGHTS = torch.tensor([1.0, 2.0, 1.0]).double()


def quadrature(x: Tensor, sigma: float) -> Tensor:
    """``E[x_0 | x]`` of the mixture as a ratio of two integrals over a fine grid."""
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    square = ((x0[:, None] - MEANS) ** 2).sum(-1)
    prior = (WEIGHTS / STDS**2 * torch.exp(-square / (2 * STDS**2))).sum(-1)
    posterior = prior * torch.exp(-((x0 - x) ** 2).sum(-1) / (2 * sigma**2))
    return (posterior[:, None] * x0).sum(0) / posterior.sum()


@pytest.mark.parametrize("sigma", [0.1, 0.5, 3.0])
def test_mixture_against_quadrature(sigma):
    oracle = MixtureOracle(MEANS, STDS, WEIGHTS)
    for x in torch.randn(4, 2, generator=generator(), dtype=torch.float64):
        torch.testing.assert_close(oracle(x[None], sigma)[0], quadrature(x, sigma), rtol=1e-6, atol=1e-6)


def test_a_mixture_of_one_is_a_gaussian():
    x, sigma = torch.randn(5, 2, generator=generator(), dtype=torch.float64), torch.rand(5, generator=generator()) + 0.1
    gaussian = GaussianOracle(MEANS[0], 0.04 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(MixtureOracle(MEANS[:1], STDS[:1])(x, sigma), gaussian(x, sigma))


def test_gaussian_formula():
    root = torch.randn(3, 3, generator=generator(), dtype=torch.float64)
    m, cov, x, sigma = root[0], root @ root.T, root + 1, 0.7
    gain = cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(GaussianOracle(m, cov)(x, sigma), m + (x - m) @ gain.T)


def test_the_empirical_oracle_weighs_the_data_and_remembers_the_nearest():
    data = torch.randn(20, 1, 2, 2, generator=generator(), dtype=torch.float64)
    oracle, x = EmpiricalOracle(data), torch.randn(5, 1, 2, 2, generator=generator(1), dtype=torch.float64)
    square = ((x[:, None] - data) ** 2).sum((2, 3, 4))
    torch.testing.assert_close(oracle(x, 0.5), torch.einsum("bn,nchw->bchw", (-square / 0.5).softmax(1), data))
    torch.testing.assert_close(oracle(x, 1e-3), data[square.argmin(1)])
    torch.testing.assert_close(oracle(x, 1e4), data.mean(0).expand_as(x), rtol=0, atol=1e-6)


def test_samples_have_the_law_and_the_denoiser_is_their_regression():
    """``x_0 - D(x)`` is orthogonal to every function of ``x``: that is what a conditional expectation means."""
    cov = torch.tensor([[1.0, 0.5], [0.5, 0.4]]).double()
    gaussian, mixture = GaussianOracle(MEANS[0], cov), MixtureOracle(MEANS, STDS, WEIGHTS)
    assert_law(gaussian.sample(20_000, generator()), MEANS[0], cov)
    p = WEIGHTS / WEIGHTS.sum()
    spread = (p * STDS**2).sum() * torch.eye(2) + (MEANS.T * p) @ MEANS - torch.outer(p @ MEANS, p @ MEANS)
    assert_law(mixture.sample(20_000, generator()), p @ MEANS, spread)
    for oracle in (gaussian, mixture):
        x0 = oracle.sample(20_000, generator())
        x = x0 + 0.6 * torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
        for probe in (torch.ones_like(x), x, x.sin(), x.flip(1) ** 2):
            assert_mean((x0 - oracle(x, 0.6)) * probe, 0.0)
