"""What came of a sweep: one table of all runs, and the metric against the noise level."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_tweedie.files import write_whole
from lightning_tweedie.sweeps.parameters import flat, is_list
from lightning_tweedie.sweeps.run import Run, short_names, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Average", "averages", "best", "markdown_table", "write_results"]

NAME = "results"
"""Name of the files, before their endings."""


class Average(NamedTuple):
    """One point of the plot: the runs that differ in their seeds alone.

    Args:
        curve: The values of the parameters that tell curves apart, in words.
        x: What the metric is drawn against.
        mean: Mean of the metric over the runs.
        standard_error: Of the mean; None for a single run.
        values: The metric of each run.
    """

    curve: str
    x: float
    mean: float
    standard_error: float | None
    values: list[float]


def write_results(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Writes ``results.md``, ``.csv`` and ``.json`` into a sweep's directory, and ``.png`` if there is a curve to draw.

    Args:
        runs: All runs of the sweep, finished or not.
        folder: The sweep's directory.

    Returns:
        The files.
    """
    sweep = runs[0].sweep
    axis, points = averages(runs)
    first = best(runs)
    logged = [{k: v for k, v in run.metrics().items() if k not in ("epoch", "step")} for run in runs]
    content = {
        "name": sweep.name,
        "metric": {"name": sweep.metric, "goal": "maximize" if sweep.maximize else "minimize"},
        "best": None if first is None else first.name,
        "runs": [
            {
                "name": run.name,
                "state": run.state,
                "seconds": run.record.get("seconds"),
                "parameters": run.point,
                "value": run.value(),
                # JSON has no word for what is not finite.
                "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            }
            for run, metrics in zip(runs, logged, strict=True)
        ],
        "curves": {"against": axis, "points": [point._asdict() for point in points]},
    }
    names = sorted({name for metrics in logged for name in metrics})
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", "state", *runs[0].values, *names])
    for run, metrics in zip(runs, logged, strict=True):
        writer.writerow([run.name, run.state, *run.values.values(), *(metrics.get(name, "") for name in names)])
    files = {
        ".md": markdown_table(runs).encode(),
        ".csv": table.getvalue().encode(),
        ".json": f"{json.dumps(content, indent=1, allow_nan=False, default=str)}\n".encode(),
    }
    if axis is not None and points:
        picture = io.BytesIO()
        _figure(runs, axis, points).savefig(picture, format="png")
        files[".png"] = picture.getvalue()
    for ending, data in files.items():
        write_whole(folder / f"{NAME}{ending}", data)
    return [folder / f"{NAME}{ending}" for ending in files]


def best(runs: Sequence[Run]) -> Run | None:
    """The finished run with the best value, if there is one."""
    known = [(value, run) for run in runs if (value := run.value()) is not None]
    if not known:
        return None
    choose = max if runs[0].sweep.maximize else min
    return choose(known, key=lambda pair: pair[0])[1]


def markdown_table(runs: Sequence[Run]) -> str:
    """The parameters that vary, the metric and the state of each run, and which is best."""
    sweep = runs[0].sweep
    names = short_names(_varied(runs))
    rows = [[*names.values(), sweep.metric, "state", "run"]]
    for run in runs:
        value = run.value()
        shown = "" if value is None else f"{value:.4g}"
        rows.append([*(text(run.values[key]) for key in names), shown, run.state, run.name])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    first = best(runs)
    if first is not None:
        goal = "largest" if sweep.maximize else "smallest"
        lines += ["", f"The {goal} {sweep.metric} is that of {first.name}."]
    return "\n".join([*lines, ""])


def averages(runs: Sequence[Run]) -> tuple[str | None, list[Average]]:
    """The metric against the noise level, averaged over seeds.

    The noise level is the parameter whose name ends in ``sigma``; if it does not vary, the first parameter that is a
    number and varies stands in for it. Seeds are parameters whose names hold ``seed``. The other lists of values tell
    the curves apart; what was drawn from a range does not.

    Args:
        runs: The runs of a sweep.

    Returns:
        Name of the parameter, None if there is none, and the points in its order, curve by curve.
    """
    parameters = {".".join(path): spec for path, spec in flat(runs[0].sweep.parameters)}
    free = [key for key in _varied(runs) if "seed" not in key.rpartition(".")[2]]
    numbers = [key for key in free if all(_is_number(run.values[key]) for run in runs)]
    axis = next((key for key in numbers if key.rpartition(".")[2] == "sigma"), next(iter(numbers), None))
    if axis is None:
        return None, []
    names = short_names(_varied(runs))
    others = [key for key in free if key != axis and is_list(parameters[key])]
    groups: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        value = run.value()
        if value is not None:
            words = [
                f"{names[key]} {text(run.values[key])}" if _is_number(run.values[key]) else text(run.values[key])
                for key in others
            ]
            groups.setdefault((", ".join(words), float(run.values[axis])), []).append(value)
    points = []
    for (curve, x), values in groups.items():
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        points.append(Average(curve, x, statistics.fmean(values), error, values))
    return axis, sorted(points, key=lambda point: (point.curve, point.x))


def _varied(runs: Sequence[Run]) -> list[str]:
    """The parameters that are not the same by definition."""
    return [".".join(path) for path, spec in flat(runs[0].sweep.parameters) if "value" not in spec]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figure(runs: Sequence[Run], axis: str, points: Sequence[Average]) -> Figure:
    from matplotlib.figure import Figure

    sweep = runs[0].sweep
    # A Figure of its own: pyplot would keep global state and choose a display.
    figure = Figure(figsize=(6.5, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    drawn = not is_list(dict((".".join(path), spec) for path, spec in flat(sweep.parameters))[axis])
    for number, curve in enumerate(dict.fromkeys(point.curve for point in points)):
        its, colour = [point for point in points if point.curve == curve], f"C{number % 10}"
        axes.errorbar(
            [point.x for point in its],
            [point.mean for point in its],
            yerr=[point.standard_error or 0.0 for point in its],
            label=curve or None,
            color=colour,
            marker="o",
            capsize=3,
            linestyle="none" if drawn else "-",
        )
        for point in its if any(len(point.values) > 1 for point in its) else ():
            axes.plot([point.x] * len(point.values), point.values, "o", color=colour, alpha=0.35, markersize=4)
    ticks = sorted({point.x for point in points})
    if ticks[0] > 0 and ticks[-1] / ticks[0] >= 5:
        axes.set_xscale("log")
    if len(ticks) <= 8 and not drawn:
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylabel(sweep.metric)
    axes.set_title(sweep.name)
    axes.grid(alpha=0.3)
    if any(point.curve for point in points):
        axes.legend()
    if any(point.standard_error is not None for point in points):
        figure.supxlabel("faint: single seeds; bars: one standard error of their mean", fontsize=8)
    return figure
