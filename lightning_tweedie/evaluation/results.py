"""Measured values with all that they depend on: as JSON, as CSV, as a table to read and as a plot."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_tweedie import __version__
from lightning_tweedie.files import write_whole
from lightning_tweedie.pictures import Picture

__all__ = ["Row", "append_to_run", "device_name", "markdown_table", "plot", "versions", "write_csv", "write_json"]


def versions() -> str:
    """The software that computed a value, for :attr:`Row.versions`."""
    return f"lightning_tweedie {__version__}, torch {torch.__version__}"


def device_name(device: torch.device) -> str:
    """The make of a GPU, or ``cpu``, for :attr:`Row.device`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass
class Row:
    """One measured value and all that it depends on; what does not apply is None.

    Args:
        subject: What was measured: a folder of images, a checkpoint.
        metric: Name of the measure, with its extractor unless that is the Inception network.
        value: The value.
        standard_error: Scatter of the value over repetitions, where it is known; no bound on a bias.
        n: Number of samples, or of restored items.
        n_reference: Number of reference images.
        extractor: Name of the network of the features.
        extractor_digest: SHA-256 of its weights.
        resize: How images reach its input size.
        sampling: ``full`` or ``truncated``.
        sampler: Name of the solver.
        steps: Its number of noise levels, before truncation.
        nfe: Denoiser evaluations per sample.
        seed: Seed of the samples, the noise and the choice of images.
        ema_half_life: Half-life of the weight average, in steps.
        checkpoint: Path of the checkpoint.
        checkpoint_digest: SHA-256 of it.
        step: Training steps that its weights have seen.
        sigma_n: Largest noise level of the training data, on the scale of data in [-1, 1].
        reference_digest: Digest of the reference images.
        generated_digest: Digest of the samples.
        device: Where it was computed.
        seconds: Time that it took, sampling included.
        versions: Of the software, see :func:`versions`.
    """

    subject: str
    metric: str
    value: float
    standard_error: float | None = None
    n: int | None = None
    n_reference: int | None = None
    extractor: str | None = None
    extractor_digest: str | None = None
    resize: str | None = None
    sampling: str | None = None
    sampler: str | None = None
    steps: int | None = None
    nfe: int | None = None
    seed: int | None = None
    ema_half_life: float | None = None
    checkpoint: str | None = None
    checkpoint_digest: str | None = None
    step: int | None = None
    sigma_n: float | None = None
    reference_digest: str | None = None
    generated_digest: str | None = None
    device: str | None = None
    seconds: float | None = None
    versions: str | None = None

    def plain(self) -> dict[str, Any]:
        """The fields for JSON, which has no word for what is not finite: that is null, and ``note`` says so."""
        facts = asdict(self)
        odd = [name for name, value in facts.items() if isinstance(value, float) and not math.isfinite(value)]
        note = "; ".join(f"{name} is {facts[name]}" for name in odd) or None
        return {name: None if name in odd else value for name, value in facts.items()} | {"note": note}


def write_json(rows: Sequence[Row], path: Path, *, files: Sequence[str] = (), replace: bool = False) -> None:
    """Writes ``{"rows": [...]}``; the values of a single subject stand beside it too, by the names of their metrics.

    Args:
        rows: What was measured.
        path: A new file.
        files: Names of what was written beside it, which are told under ``files``.
        replace: Whether the file may be there already.

    Raises:
        UserError: The file exists or cannot be written.
    """
    content: dict[str, Any] = {}
    # Only where a name says it all.
    if len({row.subject for row in rows}) == 1 and len({row.metric for row in rows}) == len(rows):
        content = {row.metric: row.plain()["value"] for row in rows}
    if files:
        content["files"] = list(files)
    content["rows"] = [row.plain() for row in rows]
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), replace=replace)


def write_csv(rows: Sequence[Row], path: Path, *, replace: bool = False) -> None:
    """Writes one line per value under the names of the fields; what does not apply is empty.

    Args:
        rows: What was measured.
        path: A new file.
        replace: Whether the file may be there already.

    Raises:
        UserError: The file exists or cannot be written.
    """
    write_whole(path, _csv(rows, header=True).encode(), replace=replace)


def _csv(rows: Sequence[Row], header: bool) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, [*(field.name for field in fields(Row)), "note"], lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows(row.plain() for row in rows)
    return text.getvalue()


def append_to_run(rows: Sequence[Row], folder: Path) -> None:
    """Adds rows to the tables of a run, which grow in the course of training; to be called on one process.

    Args:
        rows: What was measured.
        folder: The run's directory: ``quality.jsonl`` there has one line of JSON for each value, ``quality.csv`` the
            same as a table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "quality.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row.plain(), allow_nan=False) + "\n" for row in rows)
    with (folder / "quality.csv").open("a", encoding="utf-8") as file:
        file.write(_csv(rows, header=file.tell() == 0))


class _Line(NamedTuple):
    """What tells the lines of a table, or the points of a plot, apart."""

    subject: str
    sampling: str | None
    sampler: str | None
    levels: int | None
    nfe: int | None
    step: int | None


def _line(row: Row) -> _Line:
    return _Line(row.subject, row.sampling, row.sampler, row.steps, row.nfe, row.step)


def _by_metric(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return found


def markdown_table(rows: Sequence[Row]) -> str:
    """A table to read: metrics as columns, subjects as rows, each value with its standard error, if there is one.

    Metrics of other subjects, such as restorations, stand in a table of their own. The values of a single subject stand
    below each other, and so do many values of few subjects. What they depend on is said below each table.

    Args:
        rows: What was measured.

    Returns:
        Lines of Markdown.

    Examples:
        >>> print(markdown_table([Row("a", "fid", 12.345, 0.21, n=500), Row("b", "fid", 3.0, 0.1, n=500)]), end="")
        |   | fid          |
        |---|--------------|
        | a | 12.35 ± 0.21 |
        | b | 3.00 ± 0.10  |
        <BLANKLINE>
        fid: n = 500
    """
    by_metric = _by_metric(rows)
    blocks: dict[tuple[_Line, ...], dict[str, list[Row]]] = {}
    for metric, its in by_metric.items():
        blocks.setdefault(tuple(dict.fromkeys(map(_line, its))), {})[metric] = its
    return "\n".join(_block(lines, its) for lines, its in blocks.items())


def _block(lines: Sequence[_Line], by_metric: dict[str, list[Row]]) -> str:
    """The table of metrics that have the same lines."""
    cells = {
        metric: {_line(row): _number(row.value, row.standard_error) for row in its} for metric, its in by_metric.items()
    }
    if len(lines) == 1 or (len(lines) <= 4 and len(cells) > 8):
        heads = []
        for line in lines:
            facts = line._asdict()
            subject = facts.pop("subject")
            heads.append(", ".join([subject, *(f"{name} {v}" for name, v in facts.items() if v is not None)]))
        table = [["", *heads], *([metric, *(its[line] for line in lines)] for metric, its in cells.items())]
    else:
        told = [i for i, name in enumerate(_Line._fields) if any(line[i] is not None for line in lines)]
        table = [[*("" if i == 0 else _Line._fields[i] for i in told), *cells]]
        for line in lines:
            labels = ["" if line[i] is None else str(line[i]) for i in told]
            table.append([*labels, *(its[line] for its in cells.values())])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in table]
    text.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join([*text, "", *_conditions(by_metric)]) + "\n"


def _conditions(by_metric: dict[str, list[Row]]) -> list[str]:
    """What the values depend on, one line for all metrics of which the same is true."""
    told: dict[str, list[str]] = {}
    for metric, rows in by_metric.items():
        facts = []
        for name, words in _CONDITIONS.items():
            values = dict.fromkeys(getattr(row, name) for row in rows)
            if given := [
                f"{value:g}" if isinstance(value, float) else str(value) for value in values if value is not None
            ]:
                facts.append(words.format(" or ".join(given)))
        told.setdefault(", ".join(facts), []).append(metric)
    return [f"{', '.join(metrics)}: {facts}" for facts, metrics in told.items() if facts]


_CONDITIONS = {
    "n": "n = {}",
    "n_reference": "{} reference images",
    "extractor": "extractor {}",
    "resize": "resize {}",
    "sigma_n": "sigma_n = {}",
    "seed": "seed {}",
}
"""What is said below a table, and how."""


def _number(value: float, standard_error: float | None) -> str:
    """The value with the digits that its standard error makes sense of; four where there is none."""
    if standard_error is None or not 0 < standard_error < math.inf or not math.isfinite(value):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(standard_error)))
    return f"{value:.{digits}f} ± {standard_error:.{digits}f}"


def plot(rows: Sequence[Row]) -> Picture:
    """One panel for each metric; the bars are one standard error.

    Where a sampler has values at several NFE they are drawn against NFE, else where there are values after several
    training steps, against the step; else each subject has a line of its own.

    Args:
        rows: What was measured.

    Returns:
        The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {metric: _curves(its) for metric, its in _by_metric(rows).items()}
    # What is drawn alike stands in rows of its own: a list is then written once, at the left.
    alike: dict[tuple[str | None, tuple[_Curve, ...]], list[str]] = {}
    for metric, (quantity, its) in curves.items():
        alike.setdefault((quantity, tuple(its)), []).append(metric)
    across = min(3, max(map(len, alike.values())))
    bands = [
        (quantity, metrics[start : start + across])
        for (quantity, _), metrics in alike.items()
        for start in range(0, len(metrics), across)
    ]
    inches = [0.35 * len(curves[metrics[0]][1]) + 0.9 if quantity is None else 3.2 for quantity, metrics in bands]

    labels = _labels(list(dict.fromkeys(curve for _, its in curves.values() for curve in its)))
    # An inch holds about 13 letters; the legend below the panels has as many columns as fit.
    abreast = max(1, int(5 * across / (max(map(len, labels.values())) / 13 + 0.7)))
    below = 0.22 * math.ceil(len(labels) / abreast) + 0.1

    # A Figure of its own: pyplot would keep global state and choose a display.
    figure = Figure(figsize=(5 * across, sum(inches) + below), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    cells = figure.add_gridspec(len(bands), across, height_ratios=inches)
    colours = {label: f"C{i % 10}" for i, label in enumerate(dict.fromkeys(labels.values()))}
    legend: dict[str, Any] = {}
    places = [(row, column, metric) for row, (_, metrics) in enumerate(bands) for column, metric in enumerate(metrics)]
    for row, column, metric in places:
        quantity, its = curves[metric]
        axes = figure.add_subplot(cells[row, column])
        axes.set_title(metric)
        axes.grid(alpha=0.3)
        for line, (curve, points) in enumerate(its.items()):
            known = sorted(point for point in points if math.isfinite(point[1]))
            x, value, error = zip(*known, strict=True) if known else ((), (), ())
            label = labels[curve]
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "capsize": 3, "color": colours[label]}
            if quantity is None:
                axes.errorbar(value, [line] * len(value), xerr=error, linestyle="none", **style)
            else:
                dashes = "--" if curve.sampling == "truncated" else "-"
                legend[label] = axes.errorbar(x, value, yerr=error, linestyle=dashes, **style)
        if quantity is None:
            axes.set_yticks(range(len(its)), [labels[curve] if column == 0 else "" for curve in its])
            axes.set_ylim(len(its) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=5)
        else:
            axes.set_xlabel(quantity)
        if quantity == "NFE":
            axes.set_xscale("log")
            ticks = _apart(sorted({x for points in its.values() for x, _, _ in points}))
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
            axes.minorticks_off()
    if legend:
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=abreast)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those numbers that can be written below a logarithmic axis without touching each other."""
    span = max(ticks[-1] / ticks[0], 1.0)
    kept = [ticks[-1]]
    for tick in reversed(ticks):
        if kept[-1] / tick > span**0.08:
            kept.append(tick)
    return kept[::-1]


_Point = tuple[float, float, float]
"""What a value is drawn against, the value, its standard error."""


class _Curve(NamedTuple):
    """Values that belong together in a plot."""

    subject: str
    sampling: str | None
    sampler: str | None
    levels: int | None


def _curves(rows: Sequence[Row]) -> tuple[str | None, dict[_Curve, list[_Point]]]:
    """What the values of a metric are best drawn against, and the curves that come of it."""
    choices: dict[str | None, Callable[[Row], tuple[float | None, _Curve]]] = {
        "NFE": lambda row: (row.nfe, _Curve(row.subject, row.sampling, row.sampler, None)),
        # The checkpoints of one run stand in one folder.
        "training step": lambda row: (
            row.step,
            _Curve(str(Path(row.checkpoint or row.subject).parent), row.sampling, row.sampler, row.steps),
        ),
        None: lambda row: (0, _Curve(row.subject, row.sampling, row.sampler, row.steps)),
    }
    curves: dict[_Curve, list[_Point]] = {}
    for quantity, choose in choices.items():
        curves = {}
        for row in rows:
            x, curve = choose(row)
            if x is not None:
                curves.setdefault(curve, []).append((x, row.value, row.standard_error or 0.0))
        if any(len({x for x, _, _ in points}) > 1 for points in curves.values()):
            return quantity, curves
    return None, curves


def _labels(curves: Sequence[_Curve]) -> dict[_Curve, str]:
    """Each curve by what tells it from the others."""
    labels = {}
    for curve in curves:
        # Of a long name the end tells more.
        subject = curve.subject if len(curve.subject) <= 40 else f"...{curve.subject[-37:]}"
        parts = [subject] if len({other.subject for other in curves}) > 1 else []
        for i in range(1, len(_Curve._fields)):
            if curve[i] is not None and len({other[i] for other in curves}) > 1:
                parts.append(f"{curve[i]} levels" if _Curve._fields[i] == "levels" else str(curve[i]))
        labels[curve] = ", ".join(parts) or subject
    return labels
