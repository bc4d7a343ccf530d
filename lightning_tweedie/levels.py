"""Which noise levels are trained, and which are visited when sampling.

Ambient score matching has no gradient at ``sigma_t = sigma_n`` and none below, so training levels are
drawn from a distribution *truncated* above each item's own ``sigma_n`` (by the inverse distribution
function; clamping an untruncated draw would waste the clamped ones).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["LevelDistribution", "LogNormal", "LogUniform", "edm_levels", "logistic_levels"]


class LevelDistribution(ABC):
    """A distribution of training levels on ``[sigma_min, sigma_max]``, on the scale of the data.

    Args:
        sigma_min: Smallest level, ``> 0``.
        sigma_max: Largest level; large enough to drown the data.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise UserError(
                f"levels need 0 < sigma_min < sigma_max, not sigma_min = {sigma_min}, sigma_max = {sigma_max}"
            )
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    @abstractmethod
    def cdf(self, sigma: Tensor) -> Tensor:
        """Probability of a level below ``sigma``, before any truncation; float64, any shape."""

    @abstractmethod
    def icdf(self, p: Tensor) -> Tensor:
        """Inverse of :meth:`cdf`."""

    def sample(self, lower: Tensor, *, upper: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One level per item from the distribution truncated to ``(lower, upper]``.

        The uniform numbers behind a batch are stratified: each item's level has exactly the truncated
        law, and together they cover it evenly, which lowers the variance of the loss.

        Args:
            lower: Levels ``(B,)`` that the draws must exceed, for example each item's ``sigma_n``.
            upper: Levels ``(B,)`` that they must not exceed; ``sigma_max`` when absent.
            generator: Source of the numbers, on the device of ``lower``.

        Returns:
            Levels ``(B,)``, float32. On a GPU, which cannot be asked without waiting for it, NaN for an item whose
            ``lower`` is not below its upper end.

        Raises:
            UserError: On the CPU, if there is such an item.
        """
        low = lower.double().clamp(min=self.sigma_min)
        high = torch.full_like(low, self.sigma_max) if upper is None else upper.double().clamp(max=self.sigma_max)
        if low.device.type == "cpu" and bool((low >= high).any()):
            worst = int((low - high).argmax())
            raise UserError(
                f"no noise level lies between {low[worst].item():.4g} and {high[worst].item():.4g}: "
                "sigma_n must be below the levels' sigma_max (data are expected in [-1, 1])"
            )
        n = len(low)
        strata = torch.randperm(n, generator=generator, device=low.device)
        jitter = torch.rand(n, generator=generator, device=low.device, dtype=torch.float64)
        p_low, p_high = self.cdf(low), self.cdf(high)
        p = p_low + (strata + jitter) / n * (p_high - p_low)
        drawn = torch.minimum(torch.maximum(self.icdf(p), low), high)
        drawn = torch.where(low < high, drawn, torch.nan).float()
        # In float32 one in some ten million is rounded to its lower end, and losses may divide by the difference.
        above = torch.nextafter(lower.float(), torch.full_like(drawn, torch.inf))
        return torch.where(drawn > lower, drawn, torch.maximum(drawn, above))


class LogNormal(LevelDistribution):
    """``ln sigma`` normal, EDM's choice for images (2206.00364, table 1).

    Args:
        mean: Mean of ``ln sigma``.
        std: Standard deviation of ``ln sigma``.
        sigma_min: Smallest level.
        sigma_max: Largest level.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        super().__init__(sigma_min, sigma_max)
        self.mean = mean
        self.std = std

    def cdf(self, sigma: Tensor) -> Tensor:
        """``Phi((ln sigma - mean) / std)``."""
        return torch.special.ndtr((sigma.log() - self.mean) / self.std)

    def icdf(self, p: Tensor) -> Tensor:
        """``exp(mean + std Phi^-1(p))``."""
        return torch.exp(self.mean + self.std * torch.special.ndtri(p))


class LogUniform(LevelDistribution):
    """``ln sigma`` uniform between ``ln sigma_min`` and ``ln sigma_max``: every octave counts the same."""

    def cdf(self, sigma: Tensor) -> Tensor:
        """Share of the logarithmic range below ``sigma``."""
        return (sigma.log() - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    def icdf(self, p: Tensor) -> Tensor:
        """``sigma_min (sigma_max / sigma_min)^p``."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** p


def edm_levels(steps: int, sigma_min: Tensor | float, sigma_max: Tensor | float, rho: float = 7.0) -> Tensor:
    """EDM's sampling grid, from ``sigma_max`` down to ``sigma_min`` (2206.00364, equation 5).

    Args:
        steps: Number of levels, at least 1 (a single level is ``sigma_max``).
        sigma_min: Last level, ``> 0``; a number or ``(B,)``.
        sigma_max: First level; a number or ``(B,)``.
        rho: Curvature; 7 spends more levels near ``sigma_min``.

    Returns:
        Descending levels, float64 ``(steps,)`` or ``(steps, B)``.
    """
    high = torch.as_tensor(sigma_max, dtype=torch.float64) ** (1 / rho)
    low = torch.as_tensor(sigma_min, dtype=torch.float64, device=high.device) ** (1 / rho)
    return _even(steps, low, high) ** rho


def logistic_levels(steps: int, sigma_min: Tensor | float, sigma_max: Tensor | float, rho: float = 2.0) -> Tensor:
    """A grid that is dense where data are formed, from ``sigma_max`` down to ``sigma_min``.

    Levels are evenly spaced in ``sigma^(1/rho) / (1 + sigma^(1/rho))``: quantiles of a logistic law of ``ln sigma``
    with mean 0 and scale ``rho``. Below 1, half of the range of data, it is much like EDM's grid; far above, where
    a sample is nearly noise and nothing is decided, it has few levels.

    Args:
        steps: Number of levels, at least 1 (a single level is ``sigma_max``).
        sigma_min: Last level, ``> 0``; a number or ``(B,)``.
        sigma_max: First level; a number or ``(B,)``.
        rho: Scale of the law; the larger, the more levels at both ends.

    Returns:
        Descending levels, float64 ``(steps,)`` or ``(steps, B)``.
    """
    high = (torch.as_tensor(sigma_max, dtype=torch.float64).log() / rho).sigmoid()
    low = (torch.as_tensor(sigma_min, dtype=torch.float64, device=high.device).log() / rho).sigmoid()
    return (rho * _even(steps, low, high).logit()).exp()


def _even(steps: int, low: Tensor, high: Tensor) -> Tensor:
    """Evenly spaced from ``high`` down to ``low``, ``(steps,)`` or ``(steps, B)``."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64, device=high.device)
    ramp = ramp.reshape(-1, *[1] * torch.broadcast_tensors(high, low)[0].ndim)
    return high + ramp * (low - high)
