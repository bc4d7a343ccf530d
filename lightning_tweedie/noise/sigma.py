"""The noise level of every item of a data set: one number, a range, a table, a function, or a folder of maps.

Every sigma is a standard deviation on the scale of the data, which live in [-1, 1].
"""

from __future__ import annotations

import csv
import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.level_maps import LevelMaps
from lightning_tweedie.randomness import item_generators

__all__ = ["AUTO", "LARGEST_SIGMA", "Sigma", "item_sigmas", "parse_sigma"]

Level = Callable[[Any], float]
"""From an item's name, or its number where items have no names, to its level."""

#: What a user may write: one level, a range ``[lo, hi]``, the path of a table or of a folder of maps, or a function, as
#: it is or as ``module.function``.
Sigma = float | Sequence[float] | str | Level

AUTO = "auto"
"""What a user writes for a level that is estimated from the data, see :mod:`lightning_tweedie.noise.estimation`."""

#: Data in [-1, 1] have at most variance 1, so here the noise has 25 times the power of the data or more: whoever
#: writes a larger number almost surely means 8-bit units.
LARGEST_SIGMA = 5.0


_TABLES = (".npy", ".csv", ".txt")


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


def _read_table(path: Path, name: str, unit: float | None) -> Tensor | dict[str, float]:
    if not path.is_file():
        raise UserError(
            f"{name} = {str(path)!r} is neither a number, nor a range [lo, hi], nor an existing file: "
            "give the path of a .npy, .csv or .txt table with one level per item, or of a folder of maps"
        )
    try:
        names, column = _columns(path, name) if path.suffix == ".csv" else (None, None)
        if column is not None:
            table = np.array(column, np.float64)
        elif path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        elif path.suffix in _TABLES:
            table = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None, ndmin=1)
        else:
            raise UserError(f"{name} = {str(path)!r} has an unknown ending: use .npy, .csv or .txt")
        table = np.asarray(table, np.float64)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, csv.Error) as error:
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
    levels = torch.from_numpy((table / (unit or 1.0)).astype(np.float32))
    return levels if names is None else dict(zip(names, levels.tolist(), strict=True))


def _columns(path: Path, name: str) -> tuple[list[str] | None, list[str] | None]:
    """The columns ``file`` and ``sigma`` of a table with a header; None for what is not there."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        header = [field.strip() for field in reader.fieldnames or []]
        if not any(field[:1].isalpha() and field.lower() not in ("nan", "inf") for field in header):
            return None, None
        if "sigma" not in header:
            raise UserError(
                f"{name} = {str(path)!r} has the columns {', '.join(header)}: call that of the levels sigma, and that "
                "of the items' names, if there is one, file"
            )
        reader.fieldnames = header
        rows = list(reader)
    column = [row["sigma"] or "nan" for row in rows]
    if "file" not in header:
        return None, column
    names = [str(PurePosixPath((row["file"] or "").strip())) for row in rows]
    often, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{name} = {str(path)!r} has {times} levels for {often}: write one for each file")
    return names, column


def _find_function(path: str, name: str) -> Level | None:
    """The function that is called so; None if ``path`` is the name of none."""
    module, _, function = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")) or path.endswith(_TABLES):
        return None
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{name} = {path!r} is neither an existing file nor a function ({error}): give the path of a table, or "
            "module.function of what gives the level of an item by its name"
        ) from None
    if not callable(found):
        raise UserError(f"{name} = {path!r} is no function: give one that takes an item's name and gives its level")
    return found


def _computed(level: Level, items: Iterable[Any], name: str, unit: float) -> Tensor:
    """What a function says of each item."""
    levels = []
    for item in items:
        try:
            value = float(level(item))
        except Exception as error:  # the user's own code may raise anything
            raise UserError(
                f"{name}: the function gives no level for {item!r} ({type(error).__name__}: {error}): let it give a "
                "number for each item"
            ) from error
        levels.append(_check_level(value, f"{name} of {item}", unit))
    return torch.tensor(levels)


def parse_sigma(
    sigma: Sigma, name: str = "data.sigma", unit: float | None = 1.0
) -> float | tuple[float, float] | Tensor | dict[str, float] | Path | Level:
    """Reads and checks what the user wrote.

    Args:
        sigma: One level ``>= 0``; a range ``[lo, hi]`` with ``0 < lo <= hi``; the path of a table (``.npy``, ``.csv``
            or ``.txt``) with one level per item, or with a header and the columns ``sigma`` and ``file``; or the path
            of a folder of maps; or a function from an item's name to its level, as it is or as ``module.function``.
        name: The setting's name, for messages.
        unit: How much one unit of the scale [-1, 1] is in the units in which the levels are given; None: not known
            yet, they stay as they are.

    Returns:
        The level, the range, the table as a float32 tensor ``(N,)`` or as a level for each name, all of them on the
        scale of [-1, 1]; or the folder, or the function.

    Raises:
        UserError: A level is negative, not finite, or so large that it must be in other units; the range is
            empty; the table cannot be read; there is no such function.

    Examples:
        >>> parse_sigma([0.1, 0.5])
        (0.1, 0.5)
    """
    if isinstance(sigma, (str, Path)):
        path = Path(sigma).expanduser()
        if not path.exists() and (function := _find_function(str(sigma), name)):
            return function
        return path if path.is_dir() else _read_table(path, name, unit)
    if callable(sigma):
        return sigma
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


def item_sigmas(
    sigma: Sigma,
    count: int,
    seed: int,
    clean_fraction: float = 0.0,
    names: Sequence[str] | None = None,
    name: str = "data.sigma",
    unit: float = 1.0,
) -> Tensor | LevelMaps:
    """The noise level of each of ``count`` items, a pure function of the seed and the item's index.

    A range is drawn from uniformly in log sigma, because sigma is a scale: as many items fall between 0.1 and 0.2 as
    between 0.2 and 0.4.

    Args:
        sigma: One level; a range ``[lo, hi]``; the path of a table with exactly ``count`` levels, or with one for each
            of the ``names`` and maybe for others; or of a folder of maps, see
            :class:`~lightning_tweedie.noise.level_maps.LevelMaps`; or a function from the item's name, or from its
            number where there are no names, to its level.
        count: Number of items.
        seed: The user's seed.
        clean_fraction: Chance of each item to be clean, in [0, 1]; clean items have level 0. Whether an item is
            clean depends on the seed and its index alone, so the share comes out within binomial error.
        names: The items' files, by which tables, maps and functions know them, if they have any.
        name: The setting's name, for messages.
        unit: See :func:`parse_sigma`.

    Returns:
        Levels ``(count,)``, float32, ``>= 0``, on the scale of [-1, 1]; or the maps.

    Raises:
        UserError: See :func:`parse_sigma`; or the table has another length, or it or the folder lacks a file; or the
            function gives no level; or the fraction is not in [0, 1].
    """
    parsed = parse_sigma(sigma, name, unit)
    if not 0 <= clean_fraction <= 1:
        raise UserError(f"data.clean_fraction = {clean_fraction:g} is not a fraction: give a number from 0 to 1")
    if isinstance(parsed, (dict, Path)) and names is None:
        raise UserError(
            f"{name} = {str(sigma)!r} goes by the names of files, and the items of this data set have none: give a "
            "table of levels in the order of the items, or pairs (x_n, sigma_n) with sigma_n a number or a map"
        )
    if isinstance(parsed, Path):
        if clean_fraction:
            raise UserError(
                f"data.clean_fraction = {clean_fraction:g} does not go with maps of the level: give clean items maps "
                "of zeros"
            )
        return LevelMaps(parsed, names or [], LARGEST_SIGMA, name, unit)
    if isinstance(parsed, dict):
        missing = [file for file in names or [] if str(PurePosixPath(file)) not in parsed]
        if missing:
            raise UserError(
                f"{name} = {str(sigma)!r} has no level for {len(missing)} of {count} files, among them {missing[0]}: "
                "add them, named in the column `file` as they are called inside the folder of images"
            )
        levels = torch.tensor([parsed[str(PurePosixPath(file))] for file in names or []])
    elif isinstance(parsed, Tensor):
        if len(parsed) != count:
            raise UserError(
                f"{name} = {str(sigma)!r} holds {len(parsed)} levels but the set has {count} items: "
                "write one level per item, in the order of the items"
            )
        levels = parsed.clone()
    elif isinstance(parsed, tuple):
        low, high = parsed
        u = torch.tensor([draw.random() for draw in item_generators(seed, "sigma", range(count))], dtype=torch.float64)
        levels = (low * (high / low) ** u).float()
    elif callable(parsed):
        levels = _computed(parsed, range(count) if names is None else names, name, unit)
    else:
        levels = torch.full((count,), parsed)
    if clean_fraction:
        chance = np.array([draw.random() for draw in item_generators(seed, "clean", range(count))])
        levels[torch.from_numpy(chance < clean_fraction)] = 0.0
    return levels
