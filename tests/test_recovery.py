"""From noisy data alone to the clean covariance; the naive control does not get there."""

from functools import cache

import pytest
import torch
from checks import Exact, assert_mean, generator
from torch import Tensor, nn

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
    model = LinearDenoiser()
    denoiser, objective = Exact(model), Objective(term)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = WarmupCosine(optimizer, warmup=10, total_steps=250)
    for _ in range(250):
        optimizer.zero_grad()
        objective(denoiser, x_n, torch.full((ITEMS,), SIGMA_N), generator=source).total.backward()
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
