"""The posterior mean, the noise, the score and the velocity are one object; the double Tweedie identity."""

import pytest
import torch
from checks import generator
from hypothesis import given
from hypothesis import strategies as st

from lightning_tweedie import tweedie
from lightning_tweedie.oracles import GaussianOracle, MixtureOracle

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
"""Vectors, signals, images and volumes."""

scales = st.floats(0.05, 20.0)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@given(shape=shapes, sigma=scales, alpha=scales, per_item=st.booleans())
def test_round_trips(shape, sigma, alpha, per_item):
    x, x0 = randn(2, *shape, seed=1), randn(2, *shape, seed=2)
    sigma, alpha = (torch.tensor([v, 2 * v] if per_item else v, dtype=torch.float64) for v in (sigma, alpha))
    for to, back in [
        (tweedie.eps_from_x0, tweedie.x0_from_eps),
        (tweedie.score_from_x0, tweedie.x0_from_score),
        (tweedie.v_from_x0, tweedie.x0_from_v),
    ]:
        torch.testing.assert_close(back(x, to(x, x0, sigma, alpha), sigma, alpha), x0, rtol=1e-6, atol=1e-6)
    eps, score = tweedie.eps_from_x0(x, x0, sigma, alpha), tweedie.score_from_x0(x, x0, sigma, alpha)
    torch.testing.assert_close(score, -eps / tweedie.expand(sigma, x))


def test_tweedies_formula_gives_the_gradient_of_the_log_density():
    means, stds, sigma = randn(3, 2), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), 0.7
    x = randn(5, 2, seed=1).requires_grad_()
    variance = stds**2 + sigma**2
    log_density = torch.logsumexp(-((x[:, None] - means) ** 2).sum(-1) / (2 * variance) - variance.log(), dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(tweedie.score_from_x0(x, MixtureOracle(means, stds)(x, sigma), sigma), score)


@pytest.mark.parametrize("sigma_n", [0.0, 0.4, [0.1, 0.2, 0.3, 0.4, 0.0], "per pixel"])
def test_double_tweedie_against_gaussian_conditioning(sigma_n):
    """For ``x_0 ~ N(m, C)`` and noise ``S``: ``E[x_n | x_t] = m + (C + S)(C + sigma_t^2 I)^-1 (x_t - m)``."""
    root, m, x_t = randn(3, 3), randn(3, seed=1), randn(5, 3, seed=2)
    cov, eye = root @ root.T, torch.eye(3, dtype=torch.float64)
    sigma_t = torch.tensor([0.5, 0.7, 1.0, 2.0, 0.6], dtype=torch.float64)
    if sigma_n == "per pixel":
        sigma_n = torch.rand(5, 3, generator=generator(), dtype=torch.float64) * sigma_t[:, None]
    sigma_n = torch.as_tensor(sigma_n, dtype=torch.float64)

    x0 = GaussianOracle(m, cov)(x_t, sigma_t)
    r = tweedie.noise_share(sigma_n, sigma_t, x_t)
    expected = []
    for i in range(5):
        own = sigma_n[i] if sigma_n.ndim else sigma_n
        noise = torch.diag(own.expand(3) ** 2)
        expected.append(m + (cov + noise) @ torch.linalg.solve(cov + sigma_t[i] ** 2 * eye, x_t[i] - m))
    torch.testing.assert_close(tweedie.expected_noisy(x0, x_t, r), torch.stack(expected))


def test_expand_fits_every_rank_and_refuses_what_does_not_fit():
    for shape in [(2,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 1, 3, 4, 5)]:
        like = torch.zeros(shape)
        assert (tweedie.expand(torch.tensor([1.0, 2.0]), like) + like)[1].unique() == 2
    with pytest.raises(ValueError, match="fits no batch"):
        tweedie.expand(torch.zeros(2, 3), torch.zeros(2, 3, 4, 4))
