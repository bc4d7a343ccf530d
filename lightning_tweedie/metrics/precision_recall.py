"""Do samples lie where data lie, and are data where samples are: precision, recall, density, coverage.

All four compare an item with balls around the items of the other set, each as large as the distance to the k-th nearest
neighbour in its own set. They depend on both numbers of items: compare values only at equal ``n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.randomness import item_generator

__all__ = ["density_coverage", "precision_recall"]

_ROWS = 1000  # rows of a matrix of distances that are in memory at a time
_BLOCKS = 10  # parts of the sets whose scatter gives the standard error


def precision_recall(
    generated: FeatureStatistics, reference: FeatureStatistics, neighbours: int = 3
) -> dict[str, Estimate]:
    """Precision and recall of 1904.06991, equations 1 and 2.

    Precision is the share of generated items inside the ball of some reference item, recall the share of reference
    items inside the ball of some generated item. The values are torch-fidelity's.

    The standard errors come from the scatter between ten parts of both sets, and are right within a factor of two. That
    of a share of independent items, ``(p (1 - p) / n)^(1/2)``, can be much too small: the balls are random as well.

    Args:
        generated: Features ``(n, d)`` of one set.
        reference: Features ``(m, d)`` of the other. Its balls are found once, however many sets it is compared with.
        neighbours: Number ``k`` of the neighbour that decides the radius of a ball, at most 10.

    Returns:
        ``precision`` and ``recall``; not a number if a feature is not. There is no standard error where a part would
        have fewer than ``4 k`` items.

    Raises:
        UserError: If a set has too few items for ``neighbours``, or the lengths of the features differ.
    """
    _check(generated, reference, neighbours, least=neighbours + 1)
    return _estimates(_precision_recall, ("precision", "recall"), generated, reference, neighbours)


def density_coverage(
    generated: FeatureStatistics, reference: FeatureStatistics, neighbours: int = 5
) -> dict[str, Estimate]:
    """Density and coverage of 2002.09797.

    Density counts in how many balls of reference items a generated item lies, over ``k``; it is 1 on average for equal
    laws and may exceed 1. Coverage is the share of reference items whose ball holds a generated item. Unlike precision
    and recall neither trusts balls around generated items, of which outliers have large ones.

    Args:
        generated: Features ``(n, d)`` of one set.
        reference: Features ``(m, d)`` of the other. Its balls are found once, however many sets it is compared with.
        neighbours: Number ``k`` of the neighbour that decides the radius of a ball, at most 10.

    Returns:
        ``density`` and ``coverage``, with standard errors as in :func:`precision_recall`.

    Raises:
        UserError: If the reference has too few items for ``neighbours``, or the lengths of the features differ.
    """
    _check(generated, reference, neighbours, least=1)
    return _estimates(_density_coverage, ("density", "coverage"), generated, reference, neighbours)


def _precision_recall(generated: FeatureStatistics, reference: FeatureStatistics, neighbours: int) -> dict[str, float]:
    def share(items: FeatureStatistics, centres: FeatureStatistics) -> float:
        radii = _radii(centres, neighbours)
        inside = [(torch.cdist(part, _features(centres)) <= radii).any(1) for part in _features(items).split(_ROWS)]
        return float(torch.cat(inside).double().mean())

    return {"precision": share(generated, reference), "recall": share(reference, generated)}


def _density_coverage(generated: FeatureStatistics, reference: FeatureStatistics, neighbours: int) -> dict[str, float]:
    radii = _radii(reference, neighbours)
    covered = torch.zeros(len(radii), dtype=torch.bool)
    balls = 0
    for part in _features(generated).split(_ROWS):
        # Balls without their surface, as in the authors' code.
        inside = torch.cdist(part, _features(reference)) < radii
        balls += int(inside.sum())
        covered |= inside.any(0)
    return {
        "density": balls / (neighbours * len(_features(generated))),
        "coverage": float(covered.double().mean()),
    }


def _features(statistics: FeatureStatistics) -> Tensor:
    assert statistics.features is not None
    return statistics.features


def _radii(statistics: FeatureStatistics, neighbours: int) -> Tensor:
    """Distance of each item to its k-th nearest neighbour in the same set, ``(n,)``."""
    return statistics.neighbour_distances[:, neighbours - 1]


def _estimates(
    measure: Callable[[FeatureStatistics, FeatureStatistics, int], dict[str, float]],
    names: Sequence[str],
    generated: FeatureStatistics,
    reference: FeatureStatistics,
    neighbours: int,
) -> dict[str, Estimate]:
    """The values on all items, and standard errors from those on parts of them."""
    x, y = _features(generated), _features(reference)
    if not (x.isfinite().all() and y.isfinite().all()):
        return {name: Estimate(math.nan, None) for name in names}
    values = measure(generated, reference, neighbours)
    if min(len(x), len(y)) < 4 * neighbours * _BLOCKS:
        return {name: Estimate(value, None) for name, value in values.items()}
    # The standard error falls with the root of the number of items, so that of all follows from that of a part.
    parts = zip(_parts(x, "generated"), _parts(y, "reference"), strict=True)
    scattered = [measure(of_generated, of_reference, neighbours) for of_generated, of_reference in parts]
    return {
        name: Estimate(value, float(torch.tensor([part[name] for part in scattered]).std()) / _BLOCKS**0.5)
        for name, value in values.items()
    }


def _parts(features: Tensor, name: str) -> list[FeatureStatistics]:
    """Deals the features into parts at random: their order may mean something."""
    order = item_generator(0, f"precision/{name}", 0).permutation(len(features))
    return [FeatureStatistics(part) for part in features[torch.from_numpy(order)].tensor_split(_BLOCKS)]


def _check(generated: FeatureStatistics, reference: FeatureStatistics, neighbours: int, least: int) -> None:
    n, m = len(_features(generated)), len(_features(reference))
    if n < least or m <= neighbours:
        raise UserError(
            f"{n} generated and {m} reference images are too few to look at {neighbours} neighbours of each: give more "
            "images, or leave out prc"
        )
    if generated.num_features != reference.num_features:
        raise UserError(
            f"features of length {generated.num_features} and {reference.num_features} cannot be compared: use the "
            "same extractor for both"
        )
