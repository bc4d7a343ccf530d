"""Noise as it is, which need not be what a method takes it for: white and Gaussian, of a known level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["NOISE", "noisy"]

Draw = Callable[[Tensor, torch.Generator], Tensor]


def _gaussian(x_0: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x_0.shape, generator=generator)


def _laplace(x_0: Tensor, generator: torch.Generator) -> Tensor:
    share = torch.rand(x_0.shape, generator=generator, dtype=torch.float64) - 0.5
    return (-share.sign() * (1 - 2 * share.abs()).clamp(min=1e-12).log() / 2**0.5).float()


def _uniform(x_0: Tensor, generator: torch.Generator) -> Tensor:
    return 3**0.5 * (2 * torch.rand(x_0.shape, generator=generator) - 1)


def _correlated(x_0: Tensor, generator: torch.Generator) -> Tensor:
    """Over neighbouring pixels of a square image: white noise, smoothed with weights 1, 2, 1 in both directions."""
    side = round(x_0.shape[1] ** 0.5)
    image = torch.randn(len(x_0), side, side, generator=generator)
    for axis in (1, 2):
        image = (image.roll(1, axis) + 2 * image + image.roll(-1, axis)) / 6**0.5
    return image.reshape(x_0.shape)


NOISE: dict[str, tuple[str, Draw, float]] = {
    "": ("as assumed", _gaussian, 1.0),
    "under25": ("level taken 25 % too low", _gaussian, 0.75),
    "under10": ("level taken 10 % too low", _gaussian, 0.9),
    "over10": ("level taken 10 % too high", _gaussian, 1.1),
    "over25": ("level taken 25 % too high", _gaussian, 1.25),
    "laplace": ("Laplace", _laplace, 1.0),
    "uniform": ("uniform", _uniform, 1.0),
    "clipped": ("Gaussian, clipped to [-1, 1]", _gaussian, 1.0),
    "correlated": ("correlated between pixels", _correlated, 1.0),
}
"""Title, draws of variance 1, and the level that methods are told as a multiple of the true one."""


def noisy(x_0: Tensor, levels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Vectors ``(N, D)`` with noise of levels ``(N,)``."""
    x_n = x_0 + levels[:, None] * NOISE[kind][1](x_0, generator)
    return x_n.clamp(-1, 1) if kind == "clipped" else x_n
