"""Solvers against what is known exactly: the laws of Gaussians and mixtures, and the flow of a Gaussian."""

import math

import pytest
import torch
from checks import Exact, assert_law, assert_mean, awake, generator
from torch import Tensor

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import normal_like
from lightning_tweedie.networks import MLP
from lightning_tweedie.oracles import GaussianOracle, MixtureOracle
from lightning_tweedie.sampling import (
    DEIS,
    Ancestral,
    DPMSolverPP2M,
    Euler,
    Heun,
    Sampler,
    SDEDPMSolverPP2M,
    one_step,
    posterior_samples,
    sample,
)

MEAN = torch.tensor([0.5, -0.5]).double()
COV = torch.tensor([[0.5, 0.3], [0.3, 0.25]]).double()
EYE = torch.eye(2).double()
GAUSSIAN = GaussianOracle(MEAN, COV)

SOLVERS = [Euler(500), Heun(40), DPMSolverPP2M(60), DEIS(30), Ancestral(150), SDEDPMSolverPP2M(60)]
"""With as many levels as each needs for its error to drown in that of a few thousand samples."""
each = pytest.mark.parametrize("sampler", SOLVERS, ids=lambda s: s.name)


def flow(x: Tensor, sigma_t: float, sigma_s: float) -> Tensor:
    """The exact probability flow of the Gaussian: along each axis distances shrink like the standard deviation."""
    stretch = ((GAUSSIAN.variances + sigma_s**2) / (GAUSSIAN.variances + sigma_t**2)).sqrt()
    return MEAN + ((x - MEAN) @ GAUSSIAN.axes * stretch) @ GAUSSIAN.axes.T


@each
def test_full_samples_of_a_gaussian_have_its_law(sampler):
    assert_law(sample(Exact(GAUSSIAN), (2000, 2), sampler), MEAN, COV)


@each
def test_full_samples_of_a_mixture_fall_on_its_modes(sampler):
    means, stds, weights = (
        torch.tensor([[-1.0], [1.0]]).double(),
        torch.tensor([0.1, 0.2]).double(),
        torch.tensor([0.3, 0.7]),
    )
    x = sample(Exact(MixtureOracle(means, stds, weights.double())), (2000, 1), sampler)[:, 0]
    right = x > 0
    assert_mean(right.double(), 0.7)
    assert_law(x[right, None], means[1], stds[1:, None] ** 2)
    assert_law(x[~right, None], means[0], stds[:1, None] ** 2)


@pytest.mark.parametrize(
    "solver, order, start",
    [(Euler, 1, 10.0), (Heun, 2, 10.0), (DPMSolverPP2M, 2, 10.0), (DEIS, 3, 1000.0), (DEIS, 2, 2.0)],
)
def test_order_of_convergence(solver, order, start):
    """Twice the steps divide the error by ``2^order``; that of DEIS counts where its first step is among pure noise."""
    x = start * torch.randn(20, 2, generator=generator(), dtype=torch.float64)
    exact = flow(x, start, 0.1)
    errors = []
    for steps in (100, 200, 400):
        grid = solver(steps + 1, sigma_min=0.1, sigma_max=start).levels()
        rows = grid[:, None].expand(-1, len(x))
        errors.append((solver().solve(GAUSSIAN, x, rows, normal_like(None)) - exact).square().mean().sqrt())
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_twelve_evaluations_of_deis_beat_thirty_five_of_heun():
    """By the distance from the end of the flow of a mixture in 64 dimensions; with DPM-Solver++(2M) they do not."""
    means = torch.randn(10, 64, generator=generator(), dtype=torch.float64) / 2
    mixture = Exact(MixtureOracle(means, torch.full((10,), 0.2)))

    def samples(sampler: Sampler) -> Tensor:
        return sample(mixture, (100, 64), sampler)

    end = samples(Heun(300))
    heun, deis, dpm = (
        (samples(sampler) - end).square().mean(1).sqrt().median() for sampler in (Heun(18), DEIS(12), DPMSolverPP2M(12))
    )
    assert 1.5 * deis < heun < 0.5 * dpm


@each
def test_truncated_samples_have_the_law_of_the_expected_clean_datum(sampler):
    """For a Gaussian ``E[x_0 | x_n]`` has covariance ``C (C + sigma_n^2 I)^-1 C``: blurred, but without noise."""
    x = sample(Exact(GAUSSIAN), (2000, 2), sampler, truncate_at=0.5)
    assert_law(x, MEAN, COV @ torch.linalg.solve(COV + 0.25 * EYE, COV))


def test_truncated_grids_are_the_full_one_cut_off():
    full, cut = Heun().levels(), Heun().levels(truncate_at=0.5)
    assert torch.equal(cut[:-1], full[full > 0.5]) and cut[-1] == 0.5
    assert torch.equal(Heun().levels(truncate_at=0.001), full)


def test_posterior_draws_have_the_posterior_law():
    """For a Gaussian: mean ``D(x_n)``, covariance ``C - C (C + sigma_n^2 I)^-1 C``; each item at its own level."""
    x_n, levels = torch.tensor([[1.0, 0.5], [-1.0, 1.0]]).double(), torch.tensor([0.8, 0.3]).double()
    n = 800
    draws = posterior_samples(Exact(GAUSSIAN), x_n.repeat(n, 1), levels.repeat(n), 2, Ancestral(100), seed=1)
    assert draws.shape == (2, 2 * n, 2)
    for item, level in enumerate(levels):
        cov = COV - COV @ torch.linalg.solve(COV + level**2 * EYE, COV)
        own = draws[:, item::2]
        assert_law(own.flatten(0, 1), GAUSSIAN(x_n, levels)[item], cov)
        assert_mean((own[0] - own[0].mean(0)) * (own[1] - own[1].mean(0)), 0.0)


def test_extrapolation_keeps_draws_from_being_too_much_alike():
    """At 18 levels: the variance of the posterior, where the plain reverse process has lost a fifth and more."""
    oracle = GaussianOracle(torch.zeros(2).double(), torch.diag(torch.tensor([0.3, 0.01]).double()))
    x_n, exact = torch.zeros(4000, 2).double(), 1 / (1 / torch.tensor([0.3, 0.01]).double() + 1 / 0.5**2)

    def share(sampler: Sampler) -> Tensor:
        return posterior_samples(Exact(oracle), x_n, 0.5, 1, sampler)[0].square().mean(0) / exact

    assert (share(Ancestral(18)) < 0.8).all()
    assert ((share(SDEDPMSolverPP2M(18)) - 1).abs() < 0.08).all()


def test_one_step_is_the_denoiser_and_leaves_clean_items_alone():
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    sigma = torch.tensor([0.5, 0.0, 2.0])
    expected = torch.stack([GAUSSIAN(x, 0.5)[0], x[1], GAUSSIAN(x, 2.0)[2]])
    torch.testing.assert_close(one_step(Exact(GAUSSIAN), x, sigma), expected)


@each
def test_clean_items_pass_through_posterior_sampling(sampler):
    """Their grid stays at ``sigma_min``, so all that happens to them is the denoiser's last answer, there."""
    x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    draws = posterior_samples(Exact(GAUSSIAN), x, torch.tensor([0.0, 0.5, 0.0]), 1, sampler)[0]
    torch.testing.assert_close(draws[[0, 2]], GAUSSIAN(x, sampler.sigma_min)[[0, 2]])
    assert draws.isfinite().all()


@each
def test_a_sample_does_not_depend_on_its_batch(sampler):
    torch.manual_seed(0)
    denoiser = Denoiser(awake(MLP(2, width=16)), sigma_data=0.5)
    together = sample(denoiser, (8, 2), sampler, seed=3)
    torch.testing.assert_close(
        sample(denoiser, (2, 2), sampler, seed=3, indices=[5, 2]), together[[5, 2]], rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(together, sample(denoiser, (8, 2), sampler, seed=4), atol=0.1)
    draws = posterior_samples(denoiser, together, 0.5, 2, sampler)
    alone = posterior_samples(denoiser, together[4:5], 0.5, 2, sampler, indices=[4])
    torch.testing.assert_close(alone, draws[:, 4:5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "sampler, evaluations",
    [
        (Heun(18), 35),
        (Euler(18), 18),
        (DPMSolverPP2M(18), 18),
        (DEIS(18), 18),
        (Ancestral(18), 18),
        (SDEDPMSolverPP2M(18), 18),
    ],
)
def test_number_of_evaluations(sampler, evaluations):
    calls = []

    def counting(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return GAUSSIAN(x, sigma)

    sample(Exact(counting), (2, 2), sampler)
    assert len(calls) == evaluations == sampler.evaluations(18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_come_in_the_precision_of_the_denoiser(dtype):
    denoiser = Denoiser(MLP(2, width=8), sigma_data=0.5).to(dtype)
    assert sample(denoiser, (2, 2)).dtype == dtype


def test_settings_without_sense_are_refused():
    with pytest.raises(UserError, match="steps >= 1"):
        Heun(steps=0)
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        Ancestral(sigma_min=1.0, sigma_max=0.5)
