"""How close restored images are to the clean ones."""

from __future__ import annotations

from torch import Tensor

__all__ = ["psnr"]


def psnr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(2^2 / MSE)`` of each item, in decibels.

    The peak is 2, the width of [-1, 1]. Estimates that are images are clamped to that range first, as they are when
    they are shown or stored, so a number speaks of the picture beside it. This favours the noisy input most: without
    it, at noise level ``sigma_n``, that would have ``20 log10(2 / sigma_n)`` dB.

    Args:
        estimate: Restored items ``(B, *shape)``; images are ``(B, C, H, W)``.
        reference: The clean items ``(B, *shape)`` in [-1, 1].

    Returns:
        One value per item ``(B,)``, ``inf`` where the two are equal.
    """
    estimate = estimate.float().clamp(-1, 1) if estimate.ndim == 4 else estimate.float()
    error = (estimate - reference.float()).square().flatten(1).mean(1)
    return 10 * (4 / error).log10()
