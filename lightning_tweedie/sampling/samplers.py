"""Solvers of the reverse process, all in VE coordinates.

Each runs from the first level of a grid to the last and then returns ``D(x, last)``: for a grid that
ends at ``sigma_min`` this is EDM's final step to zero, for one that ends at the data's own level it is
a truncated sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import DenoiserLike, Noise, reverse_chain, reverse_step
from lightning_tweedie.levels import edm_levels, logistic_levels
from lightning_tweedie.tweedie import expand

__all__ = ["DEIS", "Ancestral", "DPMSolverPP2M", "Euler", "Heun", "SDEDPMSolverPP2M", "Sampler"]


class Sampler(ABC):
    """A solver with its grid of noise levels.

    Args:
        steps: Number of levels, at least 1.
        sigma_min: Last level of full sampling, ``> 0``, on the scale of the data.
        sigma_max: First level when sampling from pure noise.
        rho: Curvature of the grid (2206.00364, equation 5).
    """

    def __init__(self, steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if steps < 1 or not 0 < sigma_min < sigma_max:
            raise UserError(
                f"a sampler needs steps >= 1 and 0 < sigma_min < sigma_max, not steps = {steps}, "
                f"sigma_min = {sigma_min}, sigma_max = {sigma_max}"
            )
        self.steps = steps
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho

    @property
    def name(self) -> str:
        """What tables call it."""
        return type(self).__name__.lower()

    def levels(self, start: Tensor | float | None = None, truncate_at: float | None = None) -> Tensor:
        """The grid, float64 ``(K,)``, or ``(K, B)`` where ``start`` differs between items.

        Args:
            start: First level, ``()`` or ``(B,)``; ``sigma_max`` when absent.
            truncate_at: Level at which to stop instead of ``sigma_min``: levels below it are left
                out and the grid ends exactly there.
        """
        start = torch.as_tensor(self.sigma_max if start is None else start, dtype=torch.float64)
        # Data that are cleaner than sigma_min have nothing to lose: their grid stays at sigma_min.
        grid = self.grid(start.clamp(min=self.sigma_min))
        if truncate_at is None or truncate_at <= self.sigma_min:
            return grid
        if grid.ndim > 1:
            raise ValueError("truncated sampling starts from noise, not from data with levels of their own")
        return torch.cat([grid[grid > truncate_at], grid.new_tensor([truncate_at])])

    def grid(self, start: Tensor) -> Tensor:
        """All levels from ``start`` to ``sigma_min``, float64 ``(steps,)`` or ``(steps, B)``; EDM's grid."""
        return edm_levels(self.steps, self.sigma_min, start, self.rho)

    @abstractmethod
    def evaluations(self, levels: int) -> int:
        """Number of denoiser evaluations (NFE) on a grid of so many levels."""

    @abstractmethod
    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """Runs from ``levels[0]`` to ``levels[-1]``, rows of shape ``(B,)``."""

    @torch.no_grad()
    def __call__(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """Solves the reverse process.

        Args:
            denoiser: ``E[x_0 | x]`` from points ``(B, *shape)`` and levels ``(B,)``.
            x: Points ``(B, *shape)`` at ``levels[0]``.
            levels: Grid from :meth:`levels`.
            noise: Source of fresh noise; only stochastic solvers draw from it.

        Returns:
            Clean estimates ``(B, *shape)``.
        """
        rows = levels.to(x.device, x.dtype).reshape(len(levels), -1).expand(len(levels), len(x))
        return denoiser(self.solve(denoiser, x, rows, noise), rows[-1])


class Euler(Sampler):
    """First-order probability flow, ``x_s = D + (sigma_s / sigma_t) (x - D)``; the same as DDIM (2010.02502)."""

    def evaluations(self, levels: int) -> int:
        """One per level."""
        return levels

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        for t, s in zip(levels[:-1], levels[1:], strict=True):
            x0 = denoiser(x, t)
            x = x0 + expand(s / t, x) * (x - x0)
        return x


class Heun(Sampler):
    """Second-order probability flow, EDM's deterministic solver (2206.00364, algorithm 1)."""

    def evaluations(self, levels: int) -> int:
        """Two per step and one at the end: 35 for 18 levels."""
        return 2 * levels - 1

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        for t, s in zip(levels[:-1], levels[1:], strict=True):
            slope = (x - denoiser(x, t)) / expand(t, x)
            step = expand(s - t, x)
            ahead = x + step * slope
            slope_ahead = (ahead - denoiser(ahead, s)) / expand(s, x)
            x = x + step * 0.5 * (slope + slope_ahead)
        return x


class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M): second order from one evaluation a step, reusing the previous one (2211.01095, alg. 2)."""

    def evaluations(self, levels: int) -> int:
        """One per level."""
        return levels

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        previous = None
        for i in range(len(levels) - 1):
            t, s = levels[i], levels[i + 1]
            x0 = denoiser(x, t)
            target = _ahead(x0, previous, levels, i)
            x = target + expand(s / t, x) * (x - target)
            previous = x0
        return x


class DEIS(Sampler):
    """DEIS of third order in the angle of the noise (tAB-DEIS, 2204.13902): few evaluations for good samples.

    The flow is ``dx = e d sigma`` with the noise ``e = (x - D) / sigma``. Along the flow of a Gaussian of standard
    deviation 0.5, as images have, ``e`` is proportional to ``sin(theta)`` with ``theta = arctan(sigma / 0.5)``: in this
    angle it is smooth at all levels. So the last three answers are continued as a polynomial in ``theta``, which is
    integrated over ``sigma``. The first step has one answer to go by and is of first order; but it is among levels far
    above the data, where ``e`` hardly changes.

    Args:
        steps: Number of levels, at least 1: as many evaluations.
        sigma_min: Last level of full sampling, ``> 0``, on the scale of the data.
        sigma_max: First level when sampling from pure noise.
        rho: Scale of the grid (:func:`~lightning_tweedie.levels.logistic_levels`).
    """

    def __init__(self, steps: int = 12, sigma_min: float = 0.01, sigma_max: float = 80.0, rho: float = 2.0) -> None:
        super().__init__(steps, sigma_min, sigma_max, rho)

    def grid(self, start: Tensor) -> Tensor:
        """See :class:`Sampler`; dense where data are formed."""
        return logistic_levels(self.steps, self.sigma_min, start, self.rho)

    def evaluations(self, levels: int) -> int:
        """One per level."""
        return levels

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        known: list[Tensor] = []
        for i in range(len(levels) - 1):
            known = [*known[-2:], (x - denoiser(x, levels[i])) / expand(levels[i], x)]
            weights = _integrals(levels[i + 1 - len(known) : i + 1], levels[i + 1])
            for weight, its in zip(weights.to(x), known, strict=True):
                x = x + expand(weight, x) * its
        return x


class Ancestral(Sampler):
    """The reverse process itself, step by step with fresh noise (2006.11239); draws from posteriors."""

    def evaluations(self, levels: int) -> int:
        """One per level."""
        return levels

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        return reverse_chain(denoiser, x, levels, noise)


class SDEDPMSolverPP2M(Sampler):
    """SDE-DPM-Solver++(2M): the reverse process, extrapolating the denoiser from its last answer (2211.01095, sec. 6).

    Each step of :class:`Ancestral` holds the denoiser fixed, which makes draws too much alike: at 18 levels, those
    from the posterior of a Gaussian have 64 to 78 % of its variance. Here they have nearly all, at the same cost.
    """

    def evaluations(self, levels: int) -> int:
        """One per level."""
        return levels

    def solve(self, denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
        """See :class:`Sampler`."""
        previous = None
        for i in range(len(levels) - 1):
            x0 = denoiser(x, levels[i])
            x = reverse_step(x, _ahead(x0, previous, levels, i), levels[i], levels[i + 1], noise)
            previous = x0
        return x


def _ahead(x0: Tensor, previous: Tensor | None, levels: Tensor, i: int) -> Tensor:
    """The denoiser's answer half a step below ``levels[i]``, extrapolated from those there and at the level before.

    Half-log-SNR is ``-log sigma``, and along it a multistep solver extrapolates. An item that stays at one level
    (0 / 0) has nothing to extrapolate.
    """
    if previous is None:
        return x0
    step, before = (levels[i] / levels[i + 1]).log(), (levels[i - 1] / levels[i]).log()
    ratio = (step / before).nan_to_num(0.0, posinf=0.0)
    return x0 + expand(0.5 * ratio, x0) * (x0 - previous)


_POINTS, _SHARES = np.polynomial.legendre.leggauss(16)
"""Gauss' rule on [-1, 1]: exact to the rounding of floats for steps of any length."""


def _integrals(known: Tensor, end: Tensor) -> Tensor:
    """What each answer adds to the integral over sigma of the polynomial in the angle through all of them.

    Args:
        known: Levels of the answers, ``(k, B)``; the integral begins at the last.
        end: Level where it ends, ``(B,)``.

    Returns:
        Weights ``(k, B)``, float64; 0 for an item that stays at its level.
    """
    known, end = known.double(), end.double()
    points, shares = (torch.from_numpy(a).to(end)[:, None] for a in (_POINTS, _SHARES))
    half = (end / known[-1]).log() / 2
    sigma = known[-1] * (half * (1 + points)).exp()
    nodes, angle = (2 * known).atan(), (2 * sigma).atan()
    weights = (shares * half * sigma).repeat(len(known), 1, 1)
    for i in range(len(known)):
        for j in range(len(known)):
            if i != j:
                weights[i] *= (angle - nodes[j]) / (nodes[i] - nodes[j])
    return weights.sum(1).nan_to_num(0.0, 0.0, 0.0)
