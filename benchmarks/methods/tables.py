"""Tables of the benchmark's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import Preset
from costs import method_cost
from scipy.stats import spearmanr

__all__ = ["Rows", "has_levels", "head", "heading", "kinds_of_noise", "names", "of", "page", "with_cost"]

Rows = Sequence[dict[str, Any]]
COST = (
    "Cost is the number of passes through the network in an average step, as a multiple of a plain step's; one there "
    "and back counts three times."
)


def of(rows: Rows, **settings: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - whatever a row holds
    """Those with these values."""
    return [row for row in rows if all(row[key] == value for key, value in settings.items())]


def names(rows: Rows, key: str) -> list[str]:
    """The values of a key, each once."""
    return list(dict.fromkeys(row[key] for row in rows))


def kinds_of_noise(rows: Rows) -> list[str]:
    """Those that the rows compare; none where it is of one kind."""
    kinds = names(rows, "noise") if "noise" in rows[0] else []
    return kinds if len(kinds) > 1 else []


def has_levels(rows: Rows) -> bool:
    """Whether the rows say how quality depends on a noise level."""
    return "@" not in rows[0]["problem"] or len(names(rows, "problem")) > 1


def head(metric: str) -> str:
    """What a table calls a metric."""
    if metric.startswith("excess_risk_"):
        return f"risk at {metric.removeprefix('excess_risk_')}"
    name = metric.removesuffix("_efficientnet-lite0-96").replace("_", " ")
    return name.replace("fid", "FID").replace("fd", "FD").replace("psnr", "PSNR")


def heading(row: dict[str, Any]) -> str:
    """What a table calls a problem."""
    name = row["problem"].partition("@")[0].partition("+")[0]
    kind = f", {row['noise']}" if row.get("noise", "as assumed") != "as assumed" else ""
    return f"{name}, noise {row['sigma_n']:g}{kind}"


def _value(rows: Rows, metric: str) -> str:
    """Mean over the seeds, and how far they scatter."""
    if any(metric not in row["metrics"] for row in rows):
        return "–"
    values = np.array([row["metrics"][metric] for row in rows])
    if not np.isfinite(values).all():
        return "diverged"
    digits = ".3f" if abs(values.mean()) < 10 else ".2f" if abs(values.mean()) < 60 else ".0f"
    return f"{values.mean():{digits}}" + (f" ± {values.std(ddof=1):{digits}}" if len(values) > 1 else "")


def with_cost(rows: Rows) -> list[dict[str, Any]]:
    """With ``relative_cost``: passes through the network of an average step, 1 for plain score matching.

    They are counted, since cells are run on different machines, and beside others. Null where they cannot be.
    """
    return [{**row, "relative_cost": method_cost(row["method"])} for row in rows]


def page(rows: Rows, preset: Preset, source: str, command: str, done: int, asked: int) -> str:
    """A page of the docs with one table for each problem.

    Args:
        rows: The finished cells.
        preset: What they are cells of.
        source: Name of the file with all figures.
        command: What made them.
        done: How many of its cells are finished.
        asked: How many it makes in all.
    """
    first, stem = rows[0], Path(source).stem
    seeds = sorted({row["seed"] for row in rows})
    over = f"mean and standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    if any(len(names(of(rows, title=title), "seed")) < len(seeds) for title in names(rows, "title")):
        over += "; where there is no deviation, seed 0 alone"
    so_far = f" ({done} of {asked} cells are there)" if done < asked else ""
    kinds = kinds_of_noise(rows)
    about = preset.about if kinds else f"{preset.about} {COST}"
    length = "" if first["steps"] == preset.steps else f", {first['steps']:,} steps"
    text = [
        f"# {preset.title}{length}",
        "",
        f"Made by `{command}`, which goes on where it was{so_far}, on {first['device']}: {first['steps']:,} steps of "
        f"{first['batch']} ({first['images_seen']:,} items seen) for every method, {over}; "
        f"{first['num']:,} samples of each are measured. {about} All figures are in "
        f"[{source}]({source}).",
        "",
    ]
    if kinds:
        return "\n".join([*text, f"![Every method by the kind of noise]({stem}_kinds.png)", "", *_by_kind(rows, kinds)])
    if has_levels(rows):
        text += [f"![Quality by noise level]({stem}_levels.png)", ""]
    text += [f"![Quality by cost]({stem}_cost.png)", ""]
    if "@" in first["problem"]:
        text += [f"![The same seeds by every method]({stem}_samples.png)", ""]
    for problem in names(rows, "problem"):
        text += _by_method(rows, problem)
        text += _choice(of(rows, problem=problem), preset.metric)
    return "\n".join(text)


def _by_method(rows: Rows, problem: str) -> list[str]:
    """A line for each method."""
    here = of(rows, problem=problem)
    metrics = list(dict.fromkeys(metric for row in here for metric in row["metrics"]))
    text = [f"## {heading(here[0])}", ""]
    text += [f"| method | {' | '.join(map(head, metrics))} | cost | ms per step | memory, MB |"]
    text += ["|---|" + "---:|" * (len(metrics) + 3)]
    for title in names(here, "title"):
        its = of(here, title=title)
        seconds = float(np.median([row["seconds_per_step"] for row in its]))
        values = " | ".join(_value(its, metric) for metric in metrics)
        memory = max(row["peak_memory_mb"] for row in its) or "–"  # where a training was there already
        cost = f"{its[0]['relative_cost']:.2f}" if its[0]["relative_cost"] else "–"
        text += [f"| {title} | {values} | {cost} | {1000 * seconds:.1f} | {memory} |"]
    return [*text, ""]


def _choice(rows: Rows, metric: str) -> list[str]:
    """What one would choose who has no clean data, in a sentence; nothing where there is no choice."""
    blind = [row for row in rows if row["config"]["data"] != "clean" and not row["config"]["clean_fraction"]]
    found = []
    for title in names(blind, "title"):
        its = [(row["metrics"][f"proximal_{metric}"], row["metrics"][metric]) for row in of(blind, title=title)]
        proximal, distance = np.mean(its, axis=0)
        if np.isfinite([proximal, distance]).all():
            found.append((proximal, distance, title))
    if len(found) < 3:
        return []
    first, second, third = [f"{title} ({proximal:.3g})" for proximal, _, title in sorted(found)[:3]]
    agreement = spearmanr([each[0] for each in found], [each[1] for each in found]).statistic
    return [
        f"By the proximal distance, which needs no clean data, one would choose {first}, then {second} or {third}. "
        f"It puts the {len(found)} ways to samples that do without clean data in the order of their true distances "
        f"with a rank correlation (Spearman) of {agreement:.2f}.",
        "",
    ]


def _by_kind(rows: Rows, kinds: Sequence[str]) -> list[str]:
    """For each metric a table with a line for each kind of noise."""
    titles, text = names(rows, "title"), []
    for metric in rows[0]["metrics"]:
        text += [f"## {head(metric)}", "", f"| noise | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
        for kind in kinds:
            its = [of(rows, noise=kind, title=title) for title in titles]
            text += [f"| {kind} | {' | '.join(_value(each, metric) if each else '–' for each in its)} |"]
        text += [""]
    return text
