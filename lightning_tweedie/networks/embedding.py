"""Embedding of the noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelEmbedding(nn.Module):
    """Sines and cosines of the level at geometrically spaced frequencies, then a small network.

    Args:
        dim: Size of the embedding.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        # c_noise = ln(sigma)/4 spans about [-1.6, 1.1]. Low frequencies (at most 4 radians per unit, a
        # factor 55 in sigma) let neighbouring levels share what they learn, and let a network that was
        # trained above the data's level answer sensibly a little below it.
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(4.0), half))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.net = nn.Sequential(nn.Linear(2 * half, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embeds levels ``(B,)`` as ``(B, dim)``."""
        angles = c_noise[:, None] * self.frequencies
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))
