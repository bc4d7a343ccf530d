"""Plots of the benchmark's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cells import Cell, Preset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tables import Rows, has_levels, head, heading, kinds_of_noise, names, of

from lightning_tweedie.pictures import panel, save

__all__ = ["plots"]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = count if count < 4 else 2
    lines = -(-count // columns)
    size = (4 * columns + 3.5, 4 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _style(number: int) -> dict[str, Any]:
    line, marker = (("-", "o"), ("--", "^"), (":", "s"), ("-.", "D"))[number // 10 % 4]
    return {"color": f"C{number % 10}", "ls": line, "marker": marker, "ms": 4}


def _mean(rows: Rows, metric: str) -> float:
    return float(np.mean([row["metrics"][metric] for row in rows]))


def _ticks(axis: Axes, levels: list[float]) -> None:
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.set_xticks([], minor=True)


def _values(axis: Axes) -> None:
    """Plain numbers at a logarithmic axis, several even within one power of ten."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if high < 100 * low else (1,))
    )
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def _finish(figure: Figure, axes: list[Axes], label: str, path: Path) -> None:
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(label)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines() if line.get_marker() != "None"}
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, max(height, 0.4 + 0.205 * len(lines)))  # a line of the legend, and its margins
    figure.legend(handles=list(lines.values()), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _excess_risks(rows: Rows, titles: dict[str, int], path: Path) -> None:
    """By noise level, a panel for each problem."""
    problems = names(rows, "problem")
    figure, axes = _panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        # Samples by another solver are of the same network.
        here = of(rows, problem=problem, sampling="full")
        risks = [name for name in here[0]["metrics"] if name.startswith("excess_risk_")]
        levels = [float(name.removeprefix("excess_risk_")) for name in risks]
        for title in names(here, "title"):
            its = of(here, title=title)
            axis.plot(levels, [_mean(its, name) for name in risks], label=title, **_style(titles[title]))
        axis.axvline(here[0]["sigma_n"], color="0.7", lw=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="noise level", title=heading(here[0]))
        _ticks(axis, levels)
    _finish(figure, axes, "excess risk", path)


def _by_noise(rows: Rows, titles: dict[str, int], metric: str, path: Path) -> None:
    """The main measure by the noise of the data."""
    figure, axes = _panels(1)
    for title, number in titles.items():
        its = of(rows, title=title)
        levels = sorted({row["sigma_n"] for row in its})
        axes[0].plot(levels, [_mean(of(its, sigma_n=s), metric) for s in levels], label=title, **_style(number))
    axes[0].set(xscale="log", yscale="log", xlabel="noise of the data")
    _ticks(axes[0], sorted({row["sigma_n"] for row in rows}))
    _values(axes[0])
    _finish(figure, axes, head(metric), path)


def _by_kind(rows: Rows, kinds: list[str], titles: dict[str, int], path: Path) -> None:
    """What restores and what samples, by the kind of noise."""
    figure, axes = _panels(2)
    figure.set_size_inches(14, 6)
    for axis, metric in zip(axes, ("restored", "sliced_wasserstein"), strict=True):
        for title, number in titles.items():
            its = of(rows, title=title)
            there = [kind for kind in kinds if of(its, noise=kind)]
            # Side by side, so that none hides another.
            places = [kinds.index(kind) + 0.1 * (number - (len(titles) - 1) / 2) for kind in there]
            style = _style(number) | {"ls": "", "ms": 6}
            axis.plot(places, [_mean(of(its, noise=kind), metric) for kind in there], label=title, **style)
        axis.set_xticks(range(len(kinds)), kinds, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_xticks(np.arange(len(kinds) - 1) + 0.5, minor=True)
        axis.grid(axis="x", which="minor", color="0.85")
        axis.set(title=head(metric), yscale="log")
        _values(axis)
    _finish(figure, axes, "", path)


def _by_cost(rows: Rows, titles: dict[str, int], metric: str, path: Path) -> None:
    """The main measure by the cost of a step, a panel for each problem."""
    problems = names(rows, "problem")
    figure, axes = _panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        here = of(rows, problem=problem)
        for title in names(here, "title"):
            its = of(here, title=title)
            axis.plot(its[0]["relative_cost"] or np.nan, _mean(its, metric), label=title, **_style(titles[title]))
        axis.set(yscale="log", xlabel="passes of a step, as a multiple of a plain one's", title=heading(here[0]))
        axis.set_xlim(0, 1.05 * axis.get_xlim()[1])
        _values(axis)
    _finish(figure, axes, head(metric), path)


def _samples(rows: Rows, cells: Path, path: Path) -> None:
    """The same seeds by all methods, at the middle one of the problems."""
    problems = names(rows, "problem")
    shown = of(rows, problem=problems[len(problems) // 2], seed=0)
    files = {row["title"]: cells / Cell.of(row).name / f"{row['sampling']}.npy" for row in shown}
    columns = [(title, torch.from_numpy(np.load(file))) for title, file in files.items() if file.is_file()]
    lines = [panel(columns[k : k + 5], per_row=4, side=56) for k in range(0, len(columns), 5)]
    # Where some cells were run elsewhere, a picture of the others does not replace that of all.
    if lines and (len(columns) == len(files) or not path.exists()):
        sheet = np.full((sum(len(line) for line in lines), max(line.shape[1] for line in lines), 3), 255, np.uint8)
        top = 0
        for line in lines:
            sheet[top : top + len(line), : line.shape[1]] = line
            top += len(line)
        path.unlink(missing_ok=True)
        save(sheet, path)


def plots(rows: Rows, preset: Preset, out: Path, cells: Path) -> None:
    """Writes them beside the JSON file, without what diverged.

    Pictures of samples are made from the cells' folders, where they are.
    """
    titles = {title: number for number, title in enumerate(names(rows, "title"))}
    rows = [row for row in rows if np.isfinite([*row["metrics"].values()]).all()]
    if not rows:
        return
    if kinds := kinds_of_noise(rows):
        _by_kind(rows, kinds, titles, out.with_name(f"{out.stem}_kinds.png"))
        return
    levels = out.with_name(f"{out.stem}_levels.png")
    if any(name.startswith("excess_risk_") for name in rows[0]["metrics"]):
        _excess_risks(rows, titles, levels)
    else:
        if has_levels(rows):
            _by_noise(rows, titles, preset.metric, levels)
        _samples(rows, cells, out.with_name(f"{out.stem}_samples.png"))
    _by_cost(rows, titles, preset.metric, out.with_name(f"{out.stem}_cost.png"))
