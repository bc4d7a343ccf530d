"""How much posterior draws scatter: their variance, as a share of the exact one, by solver and number of levels.

For the exact denoiser of a Gaussian every solver is linear, so the variance of its draws is the sum of the squares of
what each of its random numbers contributes, and is found exactly. The last two columns are
the shares of the truths within intervals that hold 50 and 90 % of the draws. For the probability flow, which draws
nothing, the variance is that of all its results, as a share of the data's.

    python benchmarks/draw_variance.py
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_tweedie.levels import edm_levels
from lightning_tweedie.sampling import Ancestral, DPMSolverPP2M, Sampler, SDEDPMSolverPP2M

GRIDS = ((0.5, 10, 0.025), (0.5, 24, 0.025), (0.1, 18, 0.002), (0.5, 18, 0.002), (0.1, 72, 0.002), (0.5, 72, 0.002))
"""Noise of the data, number of levels and the last of them: as in replay, and as in restoration."""


def exact_denoiser(variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """That of a centred Gaussian."""
    return lambda x, sigma: x * (variance / (variance + sigma**2))[:, None]


def moments(sampler: Sampler, variance: float, levels: Tensor) -> tuple[float, float]:
    """The factor of ``x_n`` in the mean of the draws, and the variance of the draws."""
    count = 0

    def noise(x: Tensor) -> Tensor:
        """The first item has no noise; every other one has a single random number, and it is 1."""
        nonlocal count
        count += 1
        return torch.zeros_like(x).index_fill(0, torch.tensor([count]), 1.0)

    x = torch.zeros(len(levels), 1, dtype=torch.float64)
    x[0] = 1.0
    draws = sampler(exact_denoiser(variance), x, levels, noise)
    return float(draws[0]), float(draws[1:].square().sum())


def kept(sampler: Sampler, variance: float, levels: Tensor) -> float:
    """The factor of ``x_n`` in the point at the last level."""
    x = torch.ones(1, 1, dtype=torch.float64)
    return float(sampler.solve(exact_denoiser(variance), x, levels[:, None], torch.zeros_like))


def main() -> None:
    """Prints the table."""
    print("| solver | noise | levels | last level | variance of data / of noise | variance of draws | 50 % | 90 % |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for sampler in (Ancestral(), SDEDPMSolverPP2M()):
        for sigma_n, steps, last in GRIDS:
            for ratio in (0.04, 0.25, 1.0, 4.0):
                variance = ratio * sigma_n**2
                exact = variance / (1 + ratio)
                mean, scatter = moments(sampler, variance, edm_levels(steps, last, sigma_n))
                # The truth scatters about the exact mean, the draws about theirs.
                error = exact + (mean - ratio / (1 + ratio)) ** 2 * (variance + sigma_n**2)
                half, most = (math.erf(width * math.sqrt(scatter / error / 2)) for width in (0.67449, 1.64485))
                figures = f"{ratio:g} | {scatter / exact:.4f} | {half:.3f} | {most:.3f}"
                print(f"| {sampler.name} | {sigma_n} | {steps} | {last} | {figures} |")
    # As replay makes them: 16 levels down to a twentieth of the noise, and 5 down to a quarter of it, which draws keep.
    for ratio in (0.04, 0.25, 1.0, 4.0):
        factor, _ = moments(DPMSolverPP2M(), ratio * 0.25, edm_levels(16, 0.025, 0.5))
        print(f"| dpmsolverpp2m | 0.5 | 16 | 0.025 | {ratio:g} | {factor**2 * (1 + ratio) / ratio:.4f} | | |")
    for ratio in (0.04, 0.25, 1.0, 4.0):
        factor = kept(DPMSolverPP2M(), ratio * 0.25, edm_levels(5, 0.125, 0.5))
        share = factor**2 * (1 + ratio) / (ratio + 0.0625)
        print(f"| dpmsolverpp2m | 0.5 | 5 | 0.125, kept | {ratio:g} | {share:.4f} | | |")


if __name__ == "__main__":
    main()
