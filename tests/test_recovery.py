"""From noisy data alone to the clean covariance; naive training does not get there, nor with noise of a wrong kind."""

from functools import cache

import pytest
import torch
from checks import Exact, assert_mean, generator
from torch import Tensor, nn

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.kernels import normal_like
from lightning_tweedie.levels import LogUniform
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.objectives import AmbientScoreMatching, Objective, ScoreMatching
from lightning_tweedie.oracles import GaussianOracle

MEAN = torch.tensor([0.3, -0.2]).double()
COV = torch.tensor([[0.5, 0.3], [0.3, 0.3]]).double()
EYE = torch.eye(2).double()
SIGMA_N, ITEMS, RUNS = 0.5, 2000, 8


class LinearDenoiser(nn.Module):
    """``D(x) = m + C (C + sigma^2 I)^-1 (x - m)`` with mean and covariance to be learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.root = nn.Parameter(EYE.clone())

    @property
    def cov(self) -> Tensor:
        return self.root @ self.root.T

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        total = self.cov + sigma.double()[:, None, None] ** 2 * EYE
        return self.mean + torch.linalg.solve(total, x - self.mean) @ self.cov


def learn(term: AmbientScoreMatching | ScoreMatching, run: int) -> LinearDenoiser:
    """One data set of noisy items and one training on it."""
    source = generator(run)
    x_n = GaussianOracle(MEAN, COV).sample(ITEMS, source)
    x_n += SIGMA_N * torch.randn(x_n.shape, generator=source, dtype=torch.float64)
    return trained(Objective(term), x_n, torch.full((ITEMS,), SIGMA_N), source)


def trained(
    objective: Objective,
    x_n: Tensor,
    sigma_n: Tensor,
    source: torch.Generator,
    correlation: Correlation | None = None,
    steps: int = 250,
) -> LinearDenoiser:
    model = LinearDenoiser()
    denoiser = Exact(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = WarmupCosine(optimizer, warmup=10, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(denoiser, x_n, sigma_n, correlation=correlation, generator=source).total.backward()
        optimizer.step()
        schedule.step()
    return model


@cache
def covariances(term: type[AmbientScoreMatching] | type[ScoreMatching]) -> Tensor:
    """What independent runs take the clean covariance to be, ``(RUNS, 2, 2)``."""
    return torch.stack([learn(term(LogUniform(0.05, 10.0)), run).cov.detach() for run in range(RUNS)])


def test_ambient_score_matching_finds_the_clean_covariance():
    assert_mean(covariances(AmbientScoreMatching), COV)


def test_its_standard_error_is_near_the_best_possible():
    """The maximum-likelihood estimate from noisy data, ``Cov(x_n) - sigma_n^2 I``, sets the scale."""
    noisy = COV + SIGMA_N**2 * EYE
    best = ((noisy.diag()[:, None] * noisy.diag() + noisy**2) / ITEMS).sqrt()
    spread = (covariances(AmbientScoreMatching) - COV).square().mean(0).sqrt()
    assert (spread < 3 * best).all()


def test_naive_score_matching_does_not():
    """The control fails the very assertion that the ambient objective passes: it learns the noisy covariance."""
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(covariances(ScoreMatching), COV)
    assert_mean(covariances(ScoreMatching), COV + SIGMA_N**2 * EYE)


MAP = torch.tensor([0.6, 0.4]).double()
SHAPE = Correlation(torch.tensor([-0.3, 1.0, -0.3]))
NOT_WHITE = {
    "a level per pixel": torch.diag(MAP**2),
    "correlated": SIGMA_N**2 * torch.tensor([[1.0, -0.6], [-0.6, 1.0]]).double(),
}
"""Covariance of the noise: two pixels of unlike variance, and two that are neighbours on both sides."""


@cache
def covariances_with(kind: str, told: bool) -> Tensor:
    """As above, from data whose noise is not white; told so, or told that it is white, of the same variance."""
    found = []
    for run in range(6):
        source = generator(run)
        x_0, normal = GaussianOracle(MEAN, COV).sample(ITEMS, source), normal_like(source)
        sigma_n = torch.full((ITEMS,), float(NOT_WHITE[kind].diagonal().mean().sqrt()), dtype=torch.float64)
        if kind == "correlated":
            x_n = x_0 + SIGMA_N * SHAPE.colour(normal(x_0))
        else:
            x_n = x_0 + MAP * normal(x_0)
            sigma_n = MAP.expand(ITEMS, 2) if told else sigma_n
        found.append(
            trained(
                Objective(AmbientScoreMatching(LogUniform(0.05, 10.0))),
                x_n,
                sigma_n,
                source,
                SHAPE if told and kind == "correlated" else None,
                150,
            ).cov.detach()
        )
    return torch.stack(found)


@pytest.mark.parametrize("kind", NOT_WHITE)
def test_with_noise_that_is_not_white_the_general_formula_finds_the_clean_covariance(kind):
    assert_mean(covariances_with(kind, told=True), COV)


@pytest.mark.parametrize("kind", NOT_WHITE)
def test_told_that_it_is_white_training_does_not(kind):
    """What is left of the noise stays in the data."""
    left = NOT_WHITE[kind] - NOT_WHITE[kind].diagonal().mean() * EYE
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(covariances_with(kind, told=False), COV)
    assert_mean(covariances_with(kind, told=False), COV + left)
