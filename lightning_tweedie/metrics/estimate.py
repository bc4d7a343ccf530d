"""A number together with how far it may be off by chance."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Estimate", "mean_of"]


class Estimate(NamedTuple):
    """A measured value and its standard error.

    The standard error is the scatter of the value over repetitions with fresh items of the same laws. It says nothing
    about a bias, which small sets have in some measures.
    """

    value: float
    standard_error: float | None
    """``None`` where there is none to be had."""


def mean_of(values: Tensor) -> Estimate:
    """Mean over independent items ``(n,)``; no standard error for a single item or a mean that is not finite."""
    values = values.double()
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error if math.isfinite(error) else None)
