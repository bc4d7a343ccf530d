r"""Tweedie's identities: the denoiser, the noise, the score and the velocity are one object.

For ``x = alpha x_0 + sigma z`` the posterior mean ``E[x_0 | x]`` determines the expected noise, the
score of the density of ``x`` and the velocity of the probability flow. For data that are themselves
noisy, ``x_n = x_0 + sigma_n z``, and a noisier ``x_t = x_n + sqrt(sigma_t^2 - sigma_n^2) eta``, the
*double* Tweedie identity (2404.10177, theorem 3.1) connects the two posterior means:

    E[x_n | x_t] = (1 - r) E[x_0 | x_t] + r x_t,        r = sigma_n^2 / sigma_t^2.

It holds with ``sigma_n`` one number, one per item, or a map with one value per pixel (independent
noise of unequal strength), as long as ``sigma_t`` is at least as large everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "eps_from_x0",
    "expand",
    "expected_noisy",
    "noise_share",
    "score_from_x0",
    "v_from_x0",
    "x0_from_eps",
    "x0_from_score",
    "x0_from_v",
]


def expand(value: Tensor | float, like: Tensor) -> Tensor:
    """Shapes a level so that it multiplies a batch.

    Args:
        value: One number, one per item ``(B,)``, or one per element ``(B, *shape)``.
        like: The batch ``(B, *shape)``, of any rank.

    Returns:
        ``value`` on the device and in the dtype of ``like``, broadcastable against it.

    Examples:
        >>> expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
    """
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=like.dtype, device=like.device)  # made there: a copy would be waited for
    value = value.to(like)
    if value.ndim == 0 or value.ndim == like.ndim:
        return value
    if value.ndim == 1:
        return value.reshape(-1, *[1] * (like.ndim - 1))
    raise ValueError(f"a level of shape {tuple(value.shape)} fits no batch of shape {tuple(like.shape)}")


def noise_share(sigma_n: Tensor | float, sigma_t: Tensor | float, like: Tensor) -> Tensor:
    """``r = sigma_n^2 / sigma_t^2``, the share of ``x_t``'s noise variance that the datum brought.

    Args:
        sigma_n: Level in the data, ``()``, ``(B,)`` or ``(B, *shape)``, in ``[0, sigma_t]``.
        sigma_t: Level of ``x_t``, ``()`` or ``(B,)``, ``> 0``.
        like: The batch ``(B, *shape)`` that ``r`` will multiply.

    Returns:
        ``r`` in [0, 1], broadcastable against ``like``.
    """
    return (expand(sigma_n, like) / expand(sigma_t, like)) ** 2


def expected_noisy(x0: Tensor, x_t: Tensor, r: Tensor) -> Tensor:
    """Double Tweedie: ``E[x_n | x_t]`` from ``x0 = E[x_0 | x_t]`` and the share ``r`` (2404.10177, thm 3.1)."""
    return (1 - r) * x0 + r * x_t


def eps_from_x0(x: Tensor, x0: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """Expected unit noise ``E[z | x]`` for ``x = alpha x_0 + sigma z``; shapes as in :func:`expand`."""
    return (x - expand(alpha, x) * x0) / expand(sigma, x)


def x0_from_eps(x: Tensor, eps: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """Inverse of :func:`eps_from_x0`."""
    return (x - expand(sigma, x) * eps) / expand(alpha, x)


def score_from_x0(x: Tensor, x0: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """Tweedie's formula: the score ``grad log p(x) = (alpha E[x_0 | x] - x) / sigma^2``."""
    return (expand(alpha, x) * x0 - x) / expand(sigma, x) ** 2


def x0_from_score(x: Tensor, score: Tensor, sigma: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
    """Inverse of :func:`score_from_x0`."""
    return (x + expand(sigma, x) ** 2 * score) / expand(alpha, x)


def v_from_x0(x: Tensor, x0: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """Velocity ``v = alpha E[z | x] - sigma E[x_0 | x]`` of variance-preserving schedules (2202.00512)."""
    return expand(alpha, x) * eps_from_x0(x, x0, sigma, alpha) - expand(sigma, x) * x0


def x0_from_v(x: Tensor, v: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """Inverse of :func:`v_from_x0`: ``(alpha x - sigma v) / (alpha^2 + sigma^2)``."""
    a, s = expand(alpha, x), expand(sigma, x)
    return (a * x - s * v) / (a**2 + s**2)
