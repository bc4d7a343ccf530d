"""Noise schedules as views of the variance-exploding (VE) coordinates.

The project computes with ``x_t = x_0 + sigma z`` (VE, Song et al. 2011.13456). Any schedule
``x_t = alpha(t) x_0 + sigma(t) z`` is the same process seen through a rescaling: dividing by ``alpha``
gives a VE point at level ``sigma / alpha``. Networks trained elsewhere in other coordinates are read
through these views, and noise arithmetic exists once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_tweedie.tweedie import expand

__all__ = ["VE", "VP", "Cosine", "RectifiedFlow", "Schedule"]


class Schedule(ABC):
    """Signal and noise scales ``alpha(t)``, ``sigma(t)`` of ``x_t = alpha x_0 + sigma z``."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at time ``t``, any shape."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale at time ``t``, any shape, in units of the data at time 0."""

    @abstractmethod
    def time(self, level: Tensor) -> Tensor:
        """The time at which ``sigma / alpha`` equals the VE ``level``; the inverse of :meth:`level`."""

    def level(self, t: Tensor) -> Tensor:
        """The VE noise level ``sigma(t) / alpha(t)``."""
        return self.sigma(t) / self.alpha(t)

    def to_ve(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A point of this schedule in VE coordinates.

        Args:
            x: Points ``(B, *shape)`` at time ``t``.
            t: Times, ``(B,)`` or a scalar tensor.

        Returns:
            The rescaled points and their VE levels.
        """
        return x / expand(self.alpha(t), x), self.level(t)

    def from_ve(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """A VE point ``(B, *shape)`` at ``level`` in this schedule's coordinates, with its time."""
        t = self.time(level)
        return x * expand(self.alpha(t), x), t


class VE(Schedule):
    """Variance exploding: ``alpha = 1``, ``sigma = t`` (2206.00364)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, ``t``."""
        return t

    def time(self, level: Tensor) -> Tensor:
        """The level itself."""
        return level


class VP(Schedule):
    """Variance preserving with a linear rate ``beta(t)``, ``t`` in [0, 1] (2011.13456, appendix C).

    Args:
        beta_min: Rate at ``t = 0``.
        beta_max: Rate at ``t = 1``.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        self.beta_min = beta_min
        self.beta_max = beta_max

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale ``exp(-B(t) / 2)``, with ``B`` the integral of the rate."""
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale ``sqrt(1 - exp(-B(t)))``."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def time(self, level: Tensor) -> Tensor:
        """Solves ``B(t) = log(1 + level^2)``; written without the cancellation of the textbook root."""
        target = torch.log1p(level**2)
        slope = self.beta_max - self.beta_min
        return 2 * target / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * target))


class Cosine(Schedule):
    """``alpha = cos(pi t / 2)``, ``sigma = sin(pi t / 2)``, ``t`` in [0, 1) (2102.09672 without offset)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return torch.sin(0.5 * math.pi * t)

    def time(self, level: Tensor) -> Tensor:
        """``2 / pi * atan(level)``."""
        return torch.atan(level) * (2 / math.pi)


class RectifiedFlow(Schedule):
    """Straight lines from data to noise: ``alpha = 1 - t``, ``sigma = t``, ``t`` in [0, 1) (2209.03003)."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale."""
        return t

    def time(self, level: Tensor) -> Tensor:
        """``level / (1 + level)``."""
        return level / (1 + level)
