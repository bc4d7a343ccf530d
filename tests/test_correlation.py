"""Stationary correlated noise: its coordinates, its law, its estimate, and what a grid that is not periodic costs."""

import re

import numpy as np
import pytest
import torch
from checks import assert_law, assert_mean, generator
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import normal_like, raise_to_white
from lightning_tweedie.noise.autocovariance import estimate_autocovariance, read_correlation
from lightning_tweedie.noise.injection import inject

SLANTED = torch.tensor([[0.0, 0.2, 0.1], [0.3, 1.0, 0.3], [0.1, 0.2, 0.0]]).double()
"""Not the same along rows, columns and the two diagonals."""


def covariance(autocovariance: Tensor, shape: tuple[int, int], periodic: bool = True) -> Tensor:
    """Covariance of the pixels of a grid, one by one."""
    middle = [length // 2 for length in autocovariance.shape]
    places = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    found = torch.zeros(len(places), len(places), dtype=torch.float64)
    around = range(-1, 2) if periodic else (0,)
    for a, (i, j) in enumerate(places):
        for b, (k, m) in enumerate(places):
            for up in around:
                for left in around:
                    row, column = k - i + up * shape[0] + middle[0], m - j + left * shape[1] + middle[1]
                    if 0 <= row < autocovariance.shape[0] and 0 <= column < autocovariance.shape[1]:
                        found[a, b] += autocovariance[row, column]
    return found


@pytest.mark.parametrize("shape", [(7,), (2, 6), (3, 4, 5), (2, 3, 4, 5)])
def test_hartley_coordinates_are_orthogonal_and_their_own_inverse(shape):
    x, y = torch.randn(2, 4, *shape, generator=generator()).double()
    for axes in range(1, len(shape) + 1):
        correlation = Correlation(torch.ones((1,) * axes))
        there = correlation.hartley(x)
        torch.testing.assert_close(correlation.hartley(there), x)
        torch.testing.assert_close((there * correlation.hartley(y)).sum(), (x * y).sum())


@pytest.mark.parametrize("shape", [(4, 5), (3, 3), (2, 4)])
def test_a_stationary_covariance_is_diagonal_there(shape):
    """With room to spare, with none, and folded where the grid is smaller than the autocovariance."""
    correlation = Correlation(3.0 * SLANTED)
    pixels = torch.eye(shape[0] * shape[1], dtype=torch.float64).reshape(-1, *shape)
    basis = correlation.hartley(pixels).flatten(1)
    variances = correlation.amplitudes(shape).flatten() ** 2
    expected = covariance(SLANTED, shape)
    # Folding adds distances up, and noise has the variance sigma_n^2 all the same.
    torch.testing.assert_close(basis @ torch.diag(variances) @ basis, expected / expected[0, 0])


def test_injected_noise_has_its_covariance_and_belongs_to_the_item():
    x_0, correlation = torch.full((4000, 2, 3, 4), 0.25), Correlation(SLANTED)
    x_n = inject(x_0, torch.full((4000,), 0.4), range(4000), seed=1, correlation=correlation)
    for channel in (x_n - x_0).double().flatten(2).unbind(1):
        assert_law(channel, torch.zeros(12).double(), 0.16 * covariance(SLANTED, (3, 4)))
    assert_mean((x_n - x_0).double().prod(1).flatten(1), 0.0)  # independent between channels
    again = inject(x_0[:2], torch.full((2,), 0.4), [7, 3], seed=1, correlation=correlation)
    assert torch.equal(again, x_n[[7, 3]])  # to the last digit: large data are made anew on each reading


def test_raised_noise_is_white_of_the_lowest_level_that_covers_it():
    n, correlation = 20_000, Correlation(SLANTED)
    sigma_n = torch.full((n,), 0.4).double()
    sigma_n[0] = 0.0
    noise = normal_like(generator())
    for kind in ("correlated", "a level per pixel"):
        if kind == "correlated":
            given, shaped = sigma_n, correlation
            x_n = 0.4 * correlation.colour(noise(torch.zeros(n, 1, 3, 4).double()))
            level = 0.4 * torch.linalg.eigvalsh(covariance(SLANTED, (3, 4))).max().sqrt()
        else:
            given, shaped = sigma_n[:, None, None, None] * torch.linspace(0.1, 2, 12).reshape(1, 3, 4).double(), None
            x_n, level = given * noise(given), 0.8
        x_n[0] = 0.25
        x, white = raise_to_white(x_n, given, shaped, noise)
        torch.testing.assert_close(white[1:], torch.full((n - 1,), float(level)).double())
        assert_law(x[1:].flatten(1), torch.zeros(12).double(), float(level) ** 2 * torch.eye(12).double())
        assert white[0] == 0 and torch.allclose(x[0], x_n[0])  # clean items stay clean
    unchanged = raise_to_white(x_n, sigma_n, None, noise)
    assert torch.equal(unchanged[0], x_n) and torch.equal(unchanged[1], sigma_n)


def test_the_autocovariance_is_estimated_from_flat_regions():
    """Of any brightness; the control does not put back what went with the mean."""
    truth = 0.04 * SLANTED
    z = torch.randn(60, 40, 12, 12, generator=generator()).double()
    noise = 0.2 * Correlation(SLANTED).colour(z)[..., :6, :6]  # a part of a larger field is not periodic
    regions = noise + torch.rand(60, 40, 1, 1, generator=generator(1))
    found = torch.stack([torch.from_numpy(estimate_autocovariance(some, 1)) for some in regions])
    assert_mean(found, truth)
    centred = (noise - noise.mean((-2, -1), keepdim=True)).square().mean((1, 2, 3))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(centred, truth[1, 1])
    lines = torch.stack([torch.from_numpy(estimate_autocovariance(some[..., :5], (2,))) for some in regions])
    assert_mean(lines, torch.tensor([0.0, 0.012, 0.04, 0.012, 0.0]).double())


def test_what_is_no_autocovariance_is_refused(tmp_path):
    for wrong, sentence in (
        (torch.ones(2, 3), "odd lengths"),
        (torch.tensor([0.5, 0.1, 0.5]), "put distance zero there"),
        (torch.tensor([0.5, torch.nan, 0.5]), "put distance zero there"),
        (torch.tensor([0.1, 1.0, 0.5]), "not a kernel that noise has been through"),
    ):
        with pytest.raises(UserError, match=sentence):
            Correlation(wrong)
    with pytest.raises(UserError, match=r"13% of its power would be negative"):
        Correlation(torch.tensor([0.9, 1.0, 0.9])).amplitudes((8,))
    with pytest.raises(UserError, match=r"2 axes does not fit items of shape \(8,\)"):
        Correlation(SLANTED).amplitudes((8,))
    with pytest.raises(UserError, match="not a map of it"):
        Correlation(SLANTED).levels(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
    with pytest.raises(UserError, match="more than twice"):
        estimate_autocovariance(np.zeros((5, 4, 4)), 2)
    with pytest.raises(UserError, match="finite numbers"):
        estimate_autocovariance(np.full((5, 8, 8), np.nan), 2)
    path = tmp_path / "correlation.npy"
    with pytest.raises(UserError, match=r"data\.correlation = .* does not exist"):
        read_correlation(str(path))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot be read"):
        read_correlation(str(path))
    np.save(path, np.ones((2, 2)))
    with pytest.raises(UserError, match=re.escape(f"data.correlation = {str(path)!r}: an autocovariance of shape")):
        read_correlation(str(path))


def test_on_a_grid_that_is_not_periodic_the_error_is_at_the_border():
    """Noise as it comes, with no wrap around the edge, and told to be periodic; the exact minimiser, by linear algebra.

    In units of the error that cannot be avoided, for noise with correlations 2/3 and 1/3 at distances 1 and 2.
    """
    n, kernel = 32, 0.16 * torch.tensor([[1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]]).double()
    there, told = (covariance(kernel, (1, n), periodic) for periodic in (False, True))
    white = 0.16 * torch.eye(n).double()
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs().double()
    clean = 0.3 * torch.exp(-distance / 6)

    def excess(told: Tensor) -> Tensor:
        """Of each pixel, a tenth above the variance that covers the noise."""
        eye = torch.eye(n).double()
        variance = 1.1 * torch.linalg.eigvalsh(covariance(kernel, (1, n))).max()
        # What minimises |(I - S/v) D x_t + S/v x_t - x_n|^2 if x_t = x_n + (v I - S)^(1/2) eta.
        noisy = (clean + there) @ torch.linalg.inv(clean + there + variance * eye - told)
        learnt = torch.linalg.solve(eye - told / variance, noisy - told / variance)
        exact = clean @ torch.linalg.inv(clean + variance * eye)
        error = (learnt - exact) @ (clean + variance * eye) @ (learnt - exact).T
        return error.diagonal() / (clean - exact @ clean).diagonal()

    found, control = excess(told), excess(white)
    assert found[0] == pytest.approx(0.061, abs=0.001) and found[1] < 0.01 and found[8:-8].max() < 1e-3
    assert control.min() > 0.1 and control[2:-2].min() > 0.25
