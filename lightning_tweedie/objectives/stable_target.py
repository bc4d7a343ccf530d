"""Targets with less noise: the mean of all data that a point may have come from."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stable_target", "target_weights"]


def target_weights(x_t: Tensor, variance: Tensor, reference: Tensor, admissible: Tensor) -> Tensor:
    """Probabilities that a point was made from each item of the reference, ``(B, R)``; see :func:`stable_target`."""
    # In float64: squared distances by way of products lose digits, and at low noise they are divided by little.
    points, items = x_t.flatten(1).double(), reference.flatten(1).double()
    squared = points.square().sum(1, keepdim=True) + items.square().sum(1) - 2 * points @ items.mT
    logits = -squared / (2 * variance.double()[:, None])
    return logits.masked_fill(~admissible, -torch.inf).softmax(1)


def stable_target(x_t: Tensor, variance: Tensor, reference: Tensor, admissible: Tensor) -> Tensor:
    """``E[x | x_t]`` if ``x`` is one of the reference items, each equally likely, and ``x_t = x + sqrt(variance) z``.

    Score matching regresses onto the item from which a point was made. In its place may stand the mean over the items
    from which it could have been made, by their probabilities: the expectation is the same, because that is what an
    expectation given ``x_t`` is, and the scatter is smaller (2302.00670). How much smaller depends on how many items
    of the reference are near: all the difference for points in the plane, none for images at low noise, where a point
    has one item only that it can have come from.

    Args:
        x_t: Points ``(B, *shape)``, each made from an item of the reference that was picked at random.
        variance: Variance of the noise that was put in, ``(B,)``, ``> 0``.
        reference: Items ``(R, *shape)``.
        admissible: From which of them each point could have been made, ``(B, R)`` boolean, one at least.

    Returns:
        ``(B, *shape)``.
    """
    weights = target_weights(x_t, variance, reference, admissible)
    return (weights @ reference.flatten(1).double()).to(x_t.dtype).reshape(x_t.shape)
