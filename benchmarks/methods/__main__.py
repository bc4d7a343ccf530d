"""Every method against every other: the same data, network, steps and evaluation.

    python benchmarks/methods --preset oracle --out docs/benchmarks/oracle.json

Each cell, a method on a problem with a seed, runs in a process of its own and leaves a file in `runs/benchmarks`: an
interrupted benchmark goes on where it was, and a finished cell is never run again. Neither is one of which the rows are
in the file of results already, if its method was configured as it is now; to measure such a one again, delete its rows.
The tables and the plots are made from the cells. A cell that fails is reported, and the others are run all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cells import PRESETS, Cell
from images import Unfinished, run_images, true_fid
from oracle import run_oracle
from plots import plots
from registry import METHODS, method_config, same_method
from tables import page, with_cost
from tqdm import tqdm

from lightning_tweedie.evaluation.results import versions
from lightning_tweedie.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = 3
"""Exit status of a cell whose time was over."""


def run(cell: Cell, folder: Path, minutes: float | None) -> list[dict[str, Any]]:
    """Trains and measures; one row for each way of sampling."""
    if "@" in cell.problem:
        found = run_images(cell, folder / cell.name, minutes)
    else:
        found = run_oracle(cell)
    gpu = torch.cuda.is_available() and "@" in cell.problem
    title = METHODS[cell.method].title
    return [
        {
            **asdict(cell),
            "sampling": sampling,
            "title": title if sampling == "full" else f"{title}, {sampling}",
            "config": method_config(cell.method),
            **{key: value for key, value in found.items() if key != "measured"},
            "metrics": metrics,
            "images_seen": cell.steps * cell.batch,
            "device": torch.cuda.get_device_name() if gpu else f"one {platform.machine()} core",
            "versions": versions(),
            "commit": commit(),
            "command": f"python benchmarks/methods --cell {cell.name}",
        }
        for sampling, metrics in found["measured"].items()
    ]


def commit() -> str:
    """The state of the code."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return told.stdout.strip()


def finished(
    cell: Cell, folder: Path, minutes: float | None, known: bool, before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a cell, which is run unless it has been; none if it is not finished, or only known ones count."""
    path = folder / f"{cell.name}.json"
    if not path.is_file():
        found = [row for row in before if asdict(cell).items() <= row.items()]
        if found and same_method(found[0]["config"], cell.method):
            return found
        if known:
            return []
        command = [sys.executable, str(Path(__file__).parent), "--cell", cell.name, "--cells", str(folder)]
        command += ["--minutes", str(minutes)] if minutes else []
        with (folder / f"{cell.name}.log").open("w") as log:
            told = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
        if told.returncode:
            problem = "is not finished: call again" if told.returncode == UNFINISHED else f"failed: see {log.name}"
            tqdm.write(f"{cell.name} {problem}", file=sys.stderr)
            return []
        write_whole(path, told.stdout.encode())
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    if not same_method(rows[0]["config"], cell.method):
        tqdm.write(f"{cell.name} is of another {cell.method}: move {path} away, and its folder", file=sys.stderr)
        return []
    return rows


def add_true_fid(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Adds what is missing of the FID to rows whose cells are in the folder, and to their files."""
    cells = {Cell.of(row).name for row in rows if "@" in row["problem"] and "fid" not in row["metrics"]}
    for name in tqdm(sorted(name for name in cells if (folder / f"{name}.json").is_file()), desc="FID"):
        command = [sys.executable, str(Path(__file__).parent), "--cell", name, "--cells", str(folder), "--inception"]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(told.stdout)
        its = [row for row in rows if Cell.of(row).name == name]
        for row in its:
            row["metrics"]["fid"] = found[row["sampling"]]
        write_whole(folder / f"{name}.json", json.dumps(its, indent=1).encode())


def others(before: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Rows that are there already, of the same budget, but were not asked for now: they stay."""
    names, budgets = {cell.name for cell in cells}, {(cell.steps, cell.batch, cell.num) for cell in cells}
    return [
        row
        for row in before
        if (row["steps"], row["batch"], row["num"]) in budgets
        and Cell.of(row).name not in names
        and row["method"] in METHODS
        and same_method(row["config"], row["method"])
    ]


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By problem, method and seed, as the presets and the registry have them."""
    problems = [problem for preset in PRESETS.values() for problem in preset.problems]
    methods = list(METHODS)
    return sorted(rows, key=lambda row: (problems.index(row["problem"]), methods.index(row["method"]), row["seed"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="oracle")
    parser.add_argument("--problems", nargs="*", help="some of the preset's problems")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="some of the preset's methods")
    parser.add_argument("--seeds", type=int, help="how many; the preset's number when absent")
    parser.add_argument("--steps", type=int, help="the preset's when absent")
    parser.add_argument("--batch", type=int, help="the preset's when absent")
    parser.add_argument("--num", type=int, help="samples that are measured; the preset's when absent")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each on one core")
    parser.add_argument("--minutes", type=float, help="stop training images after so many and go on in the next call")
    parser.add_argument("--inception", action="store_true", help="the FID of images proper too, of finished cells")
    parser.add_argument("--known", action="store_true", help="run nothing: tables and plots of the finished cells")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "benchmarks", help="folder of finished cells")
    parser.add_argument("--cell", help="run this cell alone and print its rows")
    parser.add_argument("--out", type=Path, help="file for all rows as JSON; a page and plots go beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.cell:
        if args.inception:
            print(json.dumps(true_fid(Cell.read(args.cell), args.cells / args.cell)))
            return
        try:
            print(json.dumps(run(Cell.read(args.cell), args.cells, args.minutes), indent=1))
        except Unfinished as error:
            print(error, file=sys.stderr)
            raise SystemExit(UNFINISHED) from None
        return

    preset = PRESETS[args.preset]
    if unknown := {*(args.problems or ())} - {*preset.problems}:
        parser.error(f"{sorted(unknown)} is no problem of {args.preset}: choose from {', '.join(preset.problems)}")
    cells = [
        Cell(problem, method, seed, args.steps or preset.steps, args.batch or preset.batch, args.num or preset.num)
        for seed in range(args.seeds or preset.seeds)
        for problem in args.problems or preset.problems
        for method in args.methods or preset.methods
    ]
    args.cells.mkdir(parents=True, exist_ok=True)
    before = json.loads(args.out.read_text()) if args.out and args.out.is_file() else []
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda cell: finished(cell, args.cells, args.minutes, args.known, before), cells)
        rows = [row for rows in tqdm(found, total=len(cells), desc="cells") for row in rows]
    if args.inception:
        add_true_fid(rows, args.cells)
    rows = with_cost(in_order([*rows, *others(before, cells)]))
    if not rows:
        raise SystemExit("no cell is finished")
    # Who repeats it has no finished cells.
    asked = [each for each in (sys.argv[1:] if argv is None else argv) if each != "--known"]
    command = shlex.join(["python", "benchmarks/methods", *asked])
    there = {Cell.of(row).name for row in rows}
    done = sum(cell.name in there for cell in cells)
    text = page(rows, preset, args.out.name if args.out else "rows", command, done, len(cells))
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.out, (json.dumps(rows, indent=1) + "\n").encode())
        write_whole(args.out.with_suffix(".md"), text.encode())
        plots(rows, preset, args.out, args.cells)
    if done < len(cells) and not args.known:
        raise SystemExit("some cells are not finished")


if __name__ == "__main__":
    main()
