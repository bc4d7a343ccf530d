"""The noise level of every item of a data set: one number, a range, or a table.

Every sigma is a standard deviation on the scale of the data, which live in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["AUTO", "LARGEST_SIGMA", "Sigma", "item_sigmas", "parse_sigma"]

#: What a user may write: one level, a range ``[lo, hi]``, or the path of a table.
Sigma = float | Sequence[float] | str

AUTO = "auto"
"""What a user writes for a level that is estimated from the data, see :mod:`lightning_tweedie.noise.estimation`."""

#: Data in [-1, 1] have at most variance 1, so here the noise has 25 times the power of the data or more: whoever
#: writes a larger number almost surely means 8-bit units.
LARGEST_SIGMA = 5.0


def _check_level(sigma: float, name: str, unit: float | None = 1.0) -> float:
    if not math.isfinite(sigma):
        raise UserError(f"{name} = {sigma} is not a number: give a standard deviation >= 0")
    if sigma < 0:
        raise UserError(f"{name} = {sigma:g} is negative: give a standard deviation >= 0")
    if unit not in (None, 1.0) and sigma > LARGEST_SIGMA * unit:
        raise UserError(
            f"{name} = {sigma:g} is too large: the range of the data, which becomes [-1, 1], is only {2 * unit:g} in "
            "their own units; check the level and its units"
        )
    if unit == 1.0 and sigma > LARGEST_SIGMA:
        raise UserError(
            f"{name} = {sigma:g} is too large for data in [-1, 1]: if it is on the 8-bit scale 0..255, "
            f"write {sigma:g} / 127.5 = {sigma / 127.5:.4g}, or set sigma_units to data"
        )
    return float(sigma) / (unit or 1.0)


def _read_table(path: Path, name: str, unit: float | None) -> Tensor:
    if not path.is_file():
        raise UserError(
            f"{name} = {str(path)!r} is neither a number, nor a range [lo, hi], nor an existing file: "
            "give the path of a .npy, .csv or .txt table with one level per item"
        )
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        elif path.suffix in {".csv", ".txt"}:
            table = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None, ndmin=1)
        else:
            raise UserError(f"{name} = {str(path)!r} has an unknown ending: use .npy, .csv or .txt")
        table = np.asarray(table, np.float64)
    except UserError:
        raise
    except (ValueError, OSError, EOFError) as error:
        why = f"is not a table of numbers ({error})"
        raise UserError(f"{name} = {str(path)!r} {why}: write one level per item") from None
    if table.ndim == 2 and 1 in table.shape:
        table = table.reshape(-1)
    if table.ndim != 1 or not len(table):
        raise UserError(f"{name} = {str(path)!r} has shape {table.shape}: write one level per item, in one column")
    largest = math.inf if unit is None else LARGEST_SIGMA * unit
    bad = np.flatnonzero(~np.isfinite(table) | (table < 0) | (table > largest))
    if len(bad):
        _check_level(float(table[bad[0]]), f"{name} ({path}, item {bad[0]})", unit)
    return torch.from_numpy((table / (unit or 1.0)).astype(np.float32))


def parse_sigma(
    sigma: Sigma, name: str = "data.sigma", unit: float | None = 1.0
) -> float | tuple[float, float] | Tensor:
    """Reads and checks what the user wrote.

    Args:
        sigma: One level ``>= 0``; a range ``[lo, hi]`` with ``0 < lo <= hi``; or the path of a table
            (``.npy``, ``.csv`` or ``.txt``) with one level per item.
        name: The setting's name, for messages.
        unit: How much one unit of the scale [-1, 1] is in the units in which the levels are given; None: not known
            yet, they stay as they are.

    Returns:
        The level, the range, or the table as a float32 tensor ``(N,)``, on the scale of [-1, 1].

    Raises:
        UserError: A level is negative, not finite, or so large that it must be in other units; the range is
            empty; the table cannot be read.

    Examples:
        >>> parse_sigma([0.1, 0.5])
        (0.1, 0.5)
    """
    if isinstance(sigma, (str, Path)):
        return _read_table(Path(sigma).expanduser(), name, unit)
    if isinstance(sigma, Sequence):
        if len(sigma) != 2:
            raise UserError(
                f"{name} = {list(sigma)} has {len(sigma)} numbers: give one level, a range [lo, hi], "
                "or the path of a table with one level per item"
            )
        low, high = (_check_level(float(s), name, unit) for s in sigma)
        if not 0 < low <= high:
            raise UserError(
                f"{name} = [{low:g}, {high:g}] is not a range with 0 < lo <= hi: the levels are drawn uniformly in "
                "log sigma (for items without any noise use data.clean_fraction)"
            )
        return low, high
    return _check_level(float(sigma), name, unit)


def item_sigmas(sigma: Sigma, count: int, seed: int, clean_fraction: float = 0.0, unit: float = 1.0) -> Tensor:
    """The noise level of each of ``count`` items, a pure function of the seed and the item's index.

    A range is drawn from uniformly in log sigma, because sigma is a scale: as many items fall between 0.1 and 0.2 as
    between 0.2 and 0.4.

    Args:
        sigma: One level, a range ``[lo, hi]``, or the path of a table with exactly ``count`` levels.
        count: Number of items.
        seed: The user's seed.
        clean_fraction: Chance of each item to be clean, in [0, 1]; clean items have level 0. Whether an item is
            clean depends on the seed and its index alone, so the share comes out within binomial error.
        unit: See :func:`parse_sigma`.

    Returns:
        Levels ``(count,)``, float32, ``>= 0``, on the scale of [-1, 1].

    Raises:
        UserError: See :func:`parse_sigma`; or the table has another length; or the fraction is not in [0, 1].
    """
    parsed = parse_sigma(sigma, unit=unit)
    if not 0 <= clean_fraction <= 1:
        raise UserError(f"data.clean_fraction = {clean_fraction:g} is not a fraction: give a number from 0 to 1")
    if isinstance(parsed, Tensor):
        if len(parsed) != count:
            raise UserError(
                f"data.sigma = {str(sigma)!r} holds {len(parsed)} levels but the set has {count} items: "
                "write one level per item, in the order of the items"
            )
        levels = parsed.clone()
    elif isinstance(parsed, tuple):
        low, high = parsed
        u = torch.tensor([item_generator(seed, "sigma", i).random() for i in range(count)], dtype=torch.float64)
        levels = (low * (high / low) ** u).float()
    else:
        levels = torch.full((count,), parsed)
    if clean_fraction:
        chance = np.array([item_generator(seed, "clean", i).random() for i in range(count)])
        levels[torch.from_numpy(chance < clean_fraction)] = 0.0
    return levels
