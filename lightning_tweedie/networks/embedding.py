"""Embedding of the noise level, and the initialisation that fully connected layers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def he_linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose output has the variance of its (rectified) input (1502.01852, eq. 10), without a bias at first.

    PyTorch's own start shrinks the signal by a factor of about three per layer: a plain network of a few layers
    then sits on a plateau for thousands of steps.
    """
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


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
        self.net = nn.Sequential(he_linear(2 * half, dim), nn.SiLU(), he_linear(dim, dim), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        """Embeds levels ``(B,)`` as ``(B, dim)``."""
        angles = c_noise[:, None] * self.frequencies
        return self.net(torch.cat([angles.sin(), angles.cos()], dim=1))
