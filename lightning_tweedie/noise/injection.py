"""Gaussian noise, put into every item once and for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.randomness import items_noise
from lightning_tweedie.tweedie import expand

__all__ = ["inject"]


def inject(
    x_0: Tensor,
    sigma_n: Tensor,
    indices: Sequence[int],
    seed: int,
    stream: str = "noise",
    correlation: Correlation | None = None,
) -> Tensor:
    """Makes noisy items of clean ones: ``x_n = x_0 + sigma_n z`` with ``z`` standard normal.

    The noise of an item is a pure function of ``(seed, stream, index)``. It must be: with fresh noise in every epoch
    the mean over the epochs would reveal ``x_0``. It is never clipped or rounded, so the result leaves [-1, 1].

    Args:
        x_0: Clean items, ``(B, *shape)``, in [-1, 1].
        sigma_n: Level of each item, ``(B,)``, or ``(B, *shape)`` where it differs from pixel to pixel, ``>= 0``, on the
            same scale.
        indices: Number of each item in its data set, length ``B``.
        seed: The user's seed.
        stream: Keeps the noise of different sets (training, test) apart.
        correlation: That of the noise between pixels; none when ``None``.

    Returns:
        Noisy items, ``(B, *shape)``, float32.
    """
    z = items_noise(seed, stream, indices, x_0.shape[1:])
    if correlation is not None:
        # One by one: its last digits do not depend on the batch.
        z = torch.cat([correlation.colour(its[None]) for its in z])
    return z.mul_(expand(sigma_n, x_0)).add_(x_0)
