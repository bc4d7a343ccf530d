"""Whether samples are copies of training items: how near their nearest neighbours in the training set are.

No single number proves or refutes memorisation. In pixels a copy stands out by being far nearer to one training item
than to the second nearest; this misses copies of items that the training set holds twice, nearly or exactly (the second
nearest is then as near), and copies that are shifted or recoloured. In features, similarity to the nearest item finds
those, but has no level that means the same for all networks and data: compare it with that of held-out images, which
cannot have been copied. And look at the closest pairs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate, mean_of

__all__ = ["Neighbours", "memorisation", "nearest_neighbours"]

_COPY = 1 / 3  # of the distance to the second nearest item
_SIMILAR = (0.9, 0.95)
_ROWS, _OTHERS = 1000, 4096  # generated and training items that are compared at a time, at most


class Neighbours(NamedTuple):
    """The two nearest training items of each generated one, the nearest first."""

    index: Tensor  # type: ignore[assignment]  # hides the method of tuples
    """Their places in the training set, ``(n, 2)`` int64."""
    distance: Tensor
    """Their Euclidean distances, ``(n, 2)`` float64."""

    @property
    def ratio(self) -> Tensor:
        """Nearest over second nearest, ``(n,)``; an exact copy of an item that is there twice is one too: 0."""
        nearest, second = self.distance.unbind(1)
        return torch.where(nearest == 0, 0.0, nearest / second)


def nearest_neighbours(generated: Tensor, training: Tensor, memory: int = 1 << 26) -> Neighbours:
    """The two nearest training items of each generated one, exactly.

    All distances are computed, in float64: by way of the scalar products, and those of the two nearest once more from
    the differences, so that an exact copy has distance 0.

    Args:
        generated: ``(n, *shape)``, features or pixels.
        training: ``(m, *shape)`` on the same scale, ``m >= 2``.
        memory: Bytes for the items of either set that are there in float64 at a time.

    Returns:
        Indices and distances. A generated item that is not finite has distances that are not numbers.

    Raises:
        UserError: If the training set has fewer than two items, or items of another shape.

    Examples:
        >>> training = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
        >>> index, distance = nearest_neighbours(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), training)
        >>> index.tolist(), distance[1].tolist()
        ([[0, 1], [1, 0]], [0.0, 1.0])
    """
    if len(training) < 2:
        raise UserError(f"two nearest neighbours are looked for among {len(training)} training items: give more")
    if generated.shape[1:] != training.shape[1:]:
        raise UserError(
            f"generated items of shape {tuple(generated.shape[1:])} and training items of shape "
            f"{tuple(training.shape[1:])} cannot be compared: give the images that the model was trained on"
        )
    fit = max(1, memory // (8 * training[0].numel()))
    parts = generated.split(min(fit, _ROWS))
    found = [_nearest(part.flatten(1).double(), training, min(fit, _OTHERS)) for part in parts]
    return Neighbours(torch.cat([part.index for part in found]), torch.cat([part.distance for part in found]))


def _nearest(rows: Tensor, training: Tensor, chunk: int) -> Neighbours:
    best = rows.new_full((len(rows), 2), torch.inf)
    index = torch.zeros(len(rows), 2, dtype=torch.long, device=rows.device)
    for start in range(0, len(training), chunk):
        others = training[start : start + chunk].flatten(1).to(rows)
        # Squared distances less that of the row to the origin, which ranks them alike.
        squares = torch.addmm(others.square().sum(1), rows, others.mT, alpha=-2)
        near, places = squares.topk(min(2, len(others)), largest=False)
        best, order = torch.cat([best, near], dim=1).topk(2, largest=False)
        index = torch.cat([index, places + start], dim=1).gather(1, order)
    pairs = training[index.flatten().to(training.device)].flatten(1).to(rows).unflatten(0, (-1, 2))
    distance, order = (rows[:, None] - pairs).square().sum(2).sqrt().sort(1)
    return Neighbours(index.gather(1, order), distance)


def memorisation(generated_features: Tensor, training_features: Tensor, near: Neighbours) -> dict[str, Estimate]:
    """How much the generated items resemble single training items.

    ==========================  =====================================================================================
    ``memorised_share``         share of items whose nearest training image, in pixels, is less than a third as far as
                                the second nearest (the criterion of 2310.02664)
    ``distance_ratio_pixel``    mean ratio of the distances to the nearest and the second nearest; 0 for an exact copy
    ``distance_ratio_feature``  the same in features
    ``similarity_mean``         mean cosine similarity of an item's features to those of the nearest training item
    ``similarity_above_0.9``    share of items above this similarity, one of the levels of 2404.10177
    ``similarity_above_0.95``   likewise
    ==========================  =====================================================================================

    Args:
        generated_features: ``(n, d)``.
        training_features: ``(m, d)``, ``m >= 2``.
        near: What :func:`nearest_neighbours` finds in the pixels of the same items.

    Returns:
        The values above. Their standard errors are about fresh samples, for this training set. All are not numbers if
        an input is not.

    Raises:
        UserError: If the training set has fewer than two items, or the shapes do not fit.
    """
    pixel, feature = near.ratio, nearest_neighbours(generated_features, training_features).ratio
    # For vectors of length 1, |a - b|^2 = 2 - 2 a b.
    units = nearest_neighbours(F.normalize(generated_features.double()), F.normalize(training_features.double()))
    similarity = 1 - units.distance[:, 0].square() / 2
    values = {
        "memorised_share": pixel < _COPY,
        "distance_ratio_pixel": pixel,
        "distance_ratio_feature": feature,
        "similarity_mean": similarity,
    } | {f"similarity_above_{level:g}": similarity > level for level in _SIMILAR}
    if not (pixel.isfinite().all() and feature.isfinite().all()):
        return {name: Estimate(math.nan, None) for name in values}
    return {name: mean_of(value) for name, value in values.items()}
