"""Two ways of doing the same thing, timed in turns in one process: A B A B ..."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

__all__ = ["Row", "alternate", "block_seconds", "device", "machine", "ratios", "single"]


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> str:
    """What rows call the device."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} {platform.machine()} core(s)"


@dataclass
class Row:
    """One comparison.

    Args:
        section: Part of the benchmark.
        name: What was measured.
        against: What it was measured against; empty where there is nothing, and ``ratio`` is then a plain value.
        ratio: Median over the pairs.
        low: The least of the pairs.
        high: The greatest.
        what: What the ratio is one of, such as "time of a step" (less is better) or "images/s" (more is better).
        details: Other figures: seconds of either, sizes, counts.
        device: Where.
    """

    section: str
    name: str
    against: str
    ratio: float
    low: float
    high: float
    what: str
    details: dict[str, Any] = field(default_factory=dict)
    device: str = field(default_factory=machine)

    def as_dict(self) -> dict[str, Any]:
        """In plain types, rounded to what can be known."""
        rounded = {name: float(f"{getattr(self, name):.4g}") for name in ("ratio", "low", "high")}
        return {**asdict(self), **rounded}


def block_seconds(step: Callable[[], object], count: int) -> float:
    """Seconds of one call, from a block of so many; what a GPU was given to do is waited for."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def alternate(
    ways: dict[str, Callable[[], object]], pairs: int = 7, seconds: float = 1.0, warmup: int = 3
) -> dict[str, np.ndarray]:
    """Times several ways in turns, after a warm-up of each.

    Args:
        ways: What to call.
        pairs: Number of turns.
        seconds: Length of a block, about; never less than one call.
        warmup: Calls of each before anything is timed; compilation happens in them.

    Returns:
        Seconds of one call by turn, ``(pairs,)`` for each way.
    """
    counts = {}
    for name, step in ways.items():
        for _ in range(warmup):
            step()
        counts[name] = max(1, round(seconds / block_seconds(step, 1)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in tqdm(range(pairs), desc=" | ".join(ways), leave=False):
        # Every other turn in the opposite order: what slows down with time slows down both.
        for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(block_seconds(ways[name], counts[name]))
    return {name: np.array(values) for name, values in found.items()}


def ratios(
    section: str,
    times: dict[str, np.ndarray],
    against: str,
    what: str,
    *,
    faster: bool = False,
    details: dict[str, dict[str, Any]] | None = None,
) -> list[Row]:
    """One row for each way but the one that the others are measured against.

    Args:
        section: Part of the benchmark.
        times: Of :func:`alternate`.
        against: One of its names.
        what: What the ratio is one of.
        faster: The ratio is of speeds, not of times.
        details: Other figures by name.
    """
    rows = []
    for name, its in times.items():
        if name == against:
            continue
        ratio = times[against] / its if faster else its / times[against]
        more = {
            "seconds": float(f"{np.median(its):.4g}"),
            "seconds_against": float(f"{np.median(times[against]):.4g}"),
            "pairs": len(its),
            **(details or {}).get(name, {}),
        }
        rows.append(Row(section, name, against, float(np.median(ratio)), ratio.min(), ratio.max(), what, more))
    return rows


def single(section: str, name: str, values: Sequence[float], what: str, **details: Any) -> Row:  # noqa: ANN401
    """A row of what is measured against nothing: the median of some values."""
    return Row(section, name, "", float(np.median(values)), min(values), max(values), what, details)
