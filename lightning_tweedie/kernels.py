"""The only places with noise arithmetic: one way up and one way down.

* up: :func:`perturb` adds exactly the noise that is missing, and :func:`raise_to_white` so much of it that noise which
  differs between pixels, or is correlated, becomes white;
* down: :func:`reverse_step` draws the less noisy point given a clean estimate, and
  :func:`reverse_chain` repeats it with a denoiser's own estimates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.tweedie import expand

__all__ = ["DenoiserLike", "Noise", "normal_like", "perturb", "raise_to_white", "reverse_chain", "reverse_step"]

DenoiserLike = Callable[[Tensor, Tensor], Tensor]
"""Maps points ``(B, *shape)`` and levels ``(B,)`` to ``E[x_0 | x]``."""

Noise = Callable[[Tensor], Tensor]
"""A source of standard normal numbers: given a batch, it returns fresh noise of its shape."""


def normal_like(generator: torch.Generator | None) -> Noise:
    """A noise source that draws from ``generator`` (from torch's global state when it is ``None``)."""
    return lambda x: torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def perturb(x_n: Tensor, sigma_n: Tensor | float, sigma_t: Tensor | float, noise: Noise) -> Tensor:
    """Raises the noise from ``sigma_n`` to ``sigma_t``: ``x_t = x_n + sqrt(sigma_t^2 - sigma_n^2) eta``.

    In law it composes: raising to ``sigma_s`` and then to ``sigma_t`` is raising to ``sigma_t``.

    Args:
        x_n: Data ``(B, *shape)`` that hold noise of level ``sigma_n``.
        sigma_n: ``()``, ``(B,)`` or, for noise that differs between pixels, ``(B, *shape)``.
        sigma_t: Level to reach, ``()`` or ``(B,)``, at least ``sigma_n`` everywhere.
        noise: Source of ``eta``.

    Returns:
        ``x_t``, ``(B, *shape)``.
    """
    missing = expand(sigma_t, x_n) ** 2 - expand(sigma_n, x_n) ** 2
    return x_n + missing.clamp(min=0).sqrt() * noise(x_n)


def raise_to_white(
    x_n: Tensor, sigma_n: Tensor, correlation: Correlation | None, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Raises noise that is not white to white noise, of the lowest level that covers it.

    A denoiser knows white noise only: this comes before a restoration. White noise stays as it is.

    Args:
        x_n: Data ``(B, *shape)``.
        sigma_n: Their level, ``(B,)`` or, for noise that differs between pixels, ``(B, *shape)``.
        correlation: That of the noise; none when ``None``.
        noise: Source of what is added.

    Returns:
        Data with white noise, ``(B, *shape)``, and its level, ``(B,)``.
    """
    if correlation is not None:
        levels = correlation.levels(sigma_n, x_n)
        raised, white = raise_to_white(correlation.hartley(x_n), levels, None, noise)
        return correlation.hartley(raised), white
    if sigma_n.ndim == 1:
        return x_n, sigma_n
    white = sigma_n.flatten(1).amax(1)
    return perturb(x_n, sigma_n, white, noise), white


def reverse_step(x_t: Tensor, x0: Tensor, sigma_t: Tensor | float, sigma_s: Tensor | float, noise: Noise) -> Tensor:
    """Draws ``x_s`` given ``x_t`` and the clean ``x0``: the Gaussian bridge between them (2006.11239, eq. 6).

    With the true ``x_0`` this is exact for any jump. With a denoiser's estimate in its place it is a
    step of the reverse process, accurate when ``sigma_s / sigma_t`` is close to 1.

    Args:
        x_t: Points ``(B, *shape)`` at level ``sigma_t``.
        x0: Clean data or their estimate, ``(B, *shape)``.
        sigma_t: Present level, ``()`` or ``(B,)``, ``> 0``.
        sigma_s: Level to reach, in ``[0, sigma_t]``.
        noise: Source of the fresh noise.

    Returns:
        ``x_s = x0 + q (x_t - x0) + sigma_s sqrt(1 - q) z`` with ``q = sigma_s^2 / sigma_t^2``.
    """
    s = expand(sigma_s, x_t)
    q = (s / expand(sigma_t, x_t)) ** 2
    return x0 + q * (x_t - x0) + s * (1 - q).clamp(min=0).sqrt() * noise(x_t)


@torch.no_grad()
def reverse_chain(denoiser: DenoiserLike, x: Tensor, levels: Tensor, noise: Noise) -> Tensor:
    """Runs the reverse process through ``levels`` with the denoiser's own estimates.

    Args:
        denoiser: Maps points ``(B, *shape)`` and levels ``(B,)`` to ``E[x_0 | x]``.
        x: Points ``(B, *shape)`` at ``levels[0]``.
        levels: Descending levels, ``(K,)`` or one column per item ``(K, B)``.
        noise: Source of the fresh noise.

    Returns:
        Points at ``levels[-1]``; the input when there is only one level.
    """
    rows = levels.to(x.dtype).reshape(len(levels), -1).expand(len(levels), len(x))
    for sigma_t, sigma_s in zip(rows[:-1], rows[1:], strict=True):
        x = reverse_step(x, denoiser(x, sigma_t), sigma_t, sigma_s, noise)
    return x
