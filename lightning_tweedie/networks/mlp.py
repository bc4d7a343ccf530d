"""A multilayer perceptron for vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_tweedie.networks.embedding import LevelEmbedding, he_linear

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected network on vectors, the level embedded and appended to the input.

    Args:
        dim: Length of a vector.
        width: Units per hidden layer.
        depth: Number of hidden layers.
        embedding: Size of the level's embedding.
    """

    def __init__(self, dim: int, width: int = 256, depth: int = 3, embedding: int = 64) -> None:
        super().__init__()
        self.dim = dim
        self.width = width
        self.depth = depth
        self.embedding = embedding
        self.level = LevelEmbedding(embedding)
        layers: list[nn.Module] = []
        for number in range(depth):
            layers += [he_linear(width if number else dim + embedding, width), nn.SiLU()]
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)  # starts as the best linear denoiser
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Maps vectors ``(B, dim)`` and levels ``c_noise`` ``(B,)`` to ``(B, dim)``."""
        return self.net(torch.cat([x, self.level(c_noise)], dim=1))
