"""Clean distributions whose exact denoiser is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lightning_tweedie.data.toy import ring_means
from lightning_tweedie.oracles import GaussianOracle, MixtureOracle

__all__ = ["PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A distribution, and the noise through which it is seen.

    Args:
        oracle: The exact denoiser, which also draws.
        dim: Length of a vector.
        sigma_n: Noise level of the data.
        points: Size of the training set.
        levels: Where the excess risk is measured.
        std: Standard deviation around the centres, if the distribution is a mixture of equal round Gaussians.
        learning_rate: Of all methods. In many dimensions single targets say less, and at the rate for the plane
            networks get so rough that some samples run away.
    """

    oracle: MixtureOracle | GaussianOracle
    dim: int
    sigma_n: float
    points: int
    levels: tuple[float, ...]
    std: float | None = None
    learning_rate: float = 4e-3

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the clean data, over items and elements."""
        if isinstance(self.oracle, GaussianOracle):
            return float(self.oracle.variances.mean().sqrt())
        weights, means = self.oracle.weights, self.oracle.means
        between = weights @ (means - (weights @ means).mean()).square()
        return float((between.mean() + weights @ self.oracle.stds.square()).sqrt())


def ring() -> Problem:
    """Eight Gaussians of standard deviation 0.1 on the unit circle."""
    oracle = MixtureOracle(ring_means(), torch.full((8,), 0.1))
    return Problem(oracle, 2, 0.2, 20_000, (0.02, 0.05, 0.1, 0.2, 0.5), std=0.1)


def moons() -> Problem:
    """Two interleaved half circles, each a chain of 40 Gaussians of standard deviation 0.06: all but a smooth band."""
    angle = torch.linspace(0, math.pi, 40)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    means = torch.cat([upper, -upper])
    return Problem(MixtureOracle(means, torch.full((80,), 0.06)), 2, 0.2, 20_000, (0.02, 0.05, 0.1, 0.2, 0.5))


def spectrum() -> Problem:
    """A Gaussian in 64 dimensions, its variances falling like a power of their number, as those of photographs do."""
    variances = torch.arange(1, 65, dtype=torch.float64) ** -1.5
    axes = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    oracle = GaussianOracle(torch.zeros(64), (axes @ torch.diag(variances) @ axes.T).float())
    return Problem(oracle, 64, 0.2, 20_000, (0.02, 0.05, 0.1, 0.2, 0.5), learning_rate=1e-3)


def blobs() -> Problem:
    """Images of 8 x 8 pixels: twenty pictures of a bright spot and a bar, with Gaussian texture of 0.1 on each."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1)
    centre = 1 + 5 * torch.rand(20, 1, 1, 2, generator=generator)
    spot = (-(grid - centre).square().sum(-1) / 3).exp()
    angle = math.pi * torch.rand(20, 1, 1, generator=generator)
    across = (grid[..., 0] - 3.5) * angle.cos() + (grid[..., 1] - 3.5) * angle.sin()
    means = (2 * torch.maximum(spot, 0.7 * (-across.square()).exp()) - 1).reshape(20, 64)
    oracle = MixtureOracle(means, torch.full((20,), 0.1))
    return Problem(oracle, 64, 0.5, 20_000, (0.05, 0.1, 0.2, 0.5, 1.0), std=0.1, learning_rate=1e-3)


PROBLEMS = {"ring": ring, "moons": moons, "spectrum": spectrum, "blobs": blobs}
"""By name, each made when it is asked for."""
