"""Gaussian noise, put into every item once and for all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tweedie.randomness import item_noise

__all__ = ["inject"]


def inject(x_0: Tensor, sigma_n: Tensor, indices: Sequence[int], seed: int, stream: str = "noise") -> Tensor:
    """Makes noisy items of clean ones: ``x_n = x_0 + sigma_n z`` with ``z ~ N(0, I)``.

    The noise of an item is a pure function of ``(seed, stream, index)``. It must be: with fresh noise in every epoch
    the mean over the epochs would reveal ``x_0``. It is never clipped or rounded, so the result leaves [-1, 1].

    Args:
        x_0: Clean items, ``(B, *shape)``, in [-1, 1].
        sigma_n: Level of each item, ``(B,)``, ``>= 0``, on the same scale.
        indices: Number of each item in its data set, length ``B``.
        seed: The user's seed.
        stream: Keeps the noise of different sets (training, test) apart.

    Returns:
        Noisy items, ``(B, *shape)``, float32.
    """
    shape = x_0.shape[1:]
    z = torch.stack([item_noise(seed, stream, int(i), shape) for i in indices])
    return x_0 + sigma_n.reshape(-1, *[1] * len(shape)) * z
