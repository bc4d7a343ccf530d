"""A number together with how far it may be off by chance."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A measured value and its standard error.

    The standard error is the scatter of the value over repetitions with fresh items of the same laws. It says nothing
    about a bias, which small sets have in some measures.
    """

    value: float
    standard_error: float | None
    """``None`` where there is none to be had."""
