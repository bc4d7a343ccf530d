"""Tables and plots of the benchmark's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

__all__ = ["page", "plot"]

Rows = Sequence[dict[str, Any]]


def _of(rows: Rows, **settings: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in settings.items())]


def _names(rows: Rows, key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _value(rows: Rows, metric: str) -> str:
    """Mean over the seeds, and how far they scatter."""
    values = np.array([row["metrics"][metric] for row in rows])
    if len(values) == 0 or not np.isfinite(values).all():
        return "diverged" if len(values) else ""
    digits = ".3f" if abs(values.mean()) < 100 else ".0f"
    return f"{values.mean():{digits}}" + (f" ± {values.std(ddof=1):{digits}}" if len(values) > 1 else "")


def _cost(rows: Rows, problem: str, method: str) -> tuple[float, float]:
    """Seconds per step, and their ratio to those of plain score matching on the same problem."""
    seconds = float(np.median([row["seconds_per_step"] for row in _of(rows, problem=problem, method=method)]))
    plain = [row["seconds_per_step"] for row in _of(rows, problem=problem, method="clean")]
    return seconds, seconds / float(np.median(plain)) if plain else float("nan")


def page(rows: Rows, source: str, command: str) -> str:
    """A page of the docs with one table for each problem.

    Args:
        rows: The finished cells.
        source: Name of the file with all figures.
        command: What made them.
    """
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    over = f"mean and standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    text = [
        "# Methods where the answer is known",
        "",
        f"Made by `{command}` on {first['device']}: an MLP of 3 x 256 units, "
        f"{first['steps']:,} steps of {first['batch']} for every method, {over}. Excess risk is "
        "$E|D - D^*|^2 / E|x_0 - D^*|^2$ by noise level, 0 for the exact denoiser $D^*$; sliced Wasserstein is the "
        "distance of 10,000 samples from as many fresh data along 128 directions; spread is the root mean square "
        "distance of samples from the nearest centre, as a multiple of the clean data's. All figures are in "
        f"[{source}]({source}).",
        "",
        f"![Excess risk against the noise level]({Path(source).stem}.png)",
        "",
    ]
    for problem in _names(rows, "problem"):
        here = _of(rows, problem=problem)
        metrics = list(here[0]["metrics"])
        heads = [name.replace("excess_risk_", "risk at ").replace("_", " ") for name in metrics]
        text += [f"## {problem}, noise {here[0]['sigma_n']:g}", ""]
        text += [f"| method | {' | '.join(heads)} | ms per step | of a plain step | memory, MB |"]
        text += ["|---|" + "---:|" * (len(metrics) + 3)]
        for method in _names(here, "method"):
            its = _of(here, method=method)
            seconds, ratio = _cost(rows, problem, method)
            values = " | ".join(_value(its, metric) for metric in metrics)
            memory = max(row["peak_memory_mb"] for row in its)
            text += [f"| {its[0]['title']} | {values} | {1000 * seconds:.1f} | {ratio:.2f} | {memory} |"]
        text += [""]
    return "\n".join(text)


def plot(rows: Rows, path: Path) -> None:
    """Excess risk against the noise level, a panel for each problem."""
    problems = _names(rows, "problem")
    size = (4.5 * len(problems) + 3.5, 4.5)
    figure, axes = plt.subplots(1, len(problems), figsize=size, squeeze=False, layout="constrained")
    for axis, problem in zip(axes[0], problems, strict=True):
        here = _of(rows, problem=problem)
        levels: list[float] = []
        for number, method in enumerate(_names(here, "method")):
            its = _of(here, method=method)
            risks = [name for name in its[0]["metrics"] if name.startswith("excess_risk_")]
            levels = [float(name.removeprefix("excess_risk_")) for name in risks]
            values = [np.mean([row["metrics"][name] for row in its]) for name in risks]
            style = ("-", "--")[number // 10 % 2]
            axis.plot(levels, values, style, color=f"C{number % 10}", marker=".", label=its[0]["title"])
        sigma_n = here[0]["sigma_n"]
        axis.axvline(sigma_n, color="0.7", lw=1, zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="noise level", title=f"{problem}, noise of the data {sigma_n:g}")
        axis.set_xticks(levels, [f"{level:g}" for level in levels])
        axis.set_xticks([], minor=True)
    axes[0, 0].set_ylabel("excess risk")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
