"""A backbone: a network for one-dimensional signals."""

import torch
from torch import Tensor, nn

from lightning_tweedie.networks.embedding import LevelEmbedding


class ConvNet1d(nn.Module):
    """Residual convolutions over time, each reaching twice as far as the one before.

    Arguments are in plain types and kept under their own names: so a checkpoint can tell how to build the network.
    """

    def __init__(self, channels: int = 1, features: int = 32, stages: int = 5) -> None:
        super().__init__()
        self.channels = channels
        self.features = features
        self.stages = stages
        self.level = LevelEmbedding(features)
        self.enter = nn.Conv1d(channels, features, 3, padding=1)
        widening = (nn.Conv1d(features, features, 3, padding=2**i, dilation=2**i) for i in range(stages))
        self.layers = nn.ModuleList(widening)
        self.leave = nn.Conv1d(features, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)  # at first the denoiser is the best linear one

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Maps signals ``(B, channels, length)`` of unit variance and levels ``(B,)`` to the shape of ``x``."""
        h, level = self.enter(x), self.level(c_noise)[:, :, None]
        for layer in self.layers:
            h = h + layer(torch.nn.functional.silu(h + level))
        return self.leave(torch.nn.functional.silu(h))
