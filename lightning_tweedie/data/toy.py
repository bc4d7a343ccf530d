"""Small problems with a known answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_tweedie.randomness import item_generator

__all__ = ["ring_means", "ring_sample"]


def ring_means(components: int = 8, radius: float = 1.0) -> Tensor:
    """Centres of a ring of Gaussians, ``(components, 2)``, float32: evenly spaced, the first at ``(radius, 0)``."""
    angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
    return (radius * torch.stack([angle.cos(), angle.sin()], dim=1)).float()


def ring_sample(count: int, components: int = 8, radius: float = 1.0, std: float = 0.1, seed: int = 0) -> Tensor:
    """Draws from a ring of equally likely, round Gaussians.

    Args:
        count: How many points.
        components: How many Gaussians.
        radius: Distance of their centres from the origin.
        std: Standard deviation of each, in each coordinate.
        seed: The same seed gives the same points.

    Returns:
        Points ``(count, 2)``, float32.
    """
    which = torch.from_numpy(item_generator(seed, "ring/component", 0).integers(components, size=count))
    z = torch.from_numpy(item_generator(seed, "ring/point", 0).standard_normal((count, 2))).float()
    return ring_means(components, radius)[which] + std * z
