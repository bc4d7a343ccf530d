"""Every method against every other: the same data, network, steps and evaluation.

    python benchmarks/methods --preset oracle --out docs/benchmarks/oracle.json

Each cell, a method on a problem with a seed, runs in a process of its own and leaves a file in `runs/benchmarks`: an
interrupted benchmark goes on where it was, and a finished cell is never run again. The tables and the plot are made
from the cells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import TEST, evaluate, noisy_data, train
from problems import PROBLEMS
from registry import METHODS, make_objective
from tables import page, plot
from tqdm import tqdm

from lightning_tweedie.evaluation.results import versions
from lightning_tweedie.files import write_whole
from lightning_tweedie.sampling import one_step, sample

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cell:
    """One entry of the benchmark.

    Args:
        problem: Name of the problem.
        method: Name of the method.
        seed: Of the data, the weights and the training.
        steps: Optimiser steps.
        batch: Items in each.
    """

    problem: str
    method: str
    seed: int
    steps: int
    batch: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.problem}-{self.method}-seed{self.seed}-{self.steps}x{self.batch}"


def run(cell: Cell) -> dict[str, Any]:
    """Trains and measures."""
    problem, method = PROBLEMS[cell.problem](), METHODS[cell.method]
    sigma_n = 0.0 if method.data == "clean" else problem.sigma_n
    data, levels = noisy_data(problem, sigma_n, method.clean_fraction, cell.seed)
    steps, seconds = cell.steps, 0.0
    if method.first is not None:
        first, per_step = train(
            problem, make_objective(method.first), data, levels, cell.steps // 2, cell.batch, cell.seed
        )
        data, levels = one_step(first, data, levels), torch.zeros_like(levels)
        steps, seconds = cell.steps - cell.steps // 2, per_step * (cell.steps // 2)
    objective = make_objective(method.objective, method.plain_targets)
    denoiser, per_step = train(problem, objective, data, levels, steps, cell.batch, cell.seed)
    stop = problem.sigma_n if method.sampling == "truncated" else None
    samples = sample(denoiser, (TEST, problem.dim), seed=cell.seed, truncate_at=stop)
    metrics = evaluate(problem, denoiser, samples, cell.seed)
    return {
        **asdict(cell),
        "title": method.title,
        "sigma_n": problem.sigma_n,
        "clean_fraction": method.clean_fraction,
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
        "images_seen": cell.steps * cell.batch,
        "seconds_per_step": round((seconds + per_step * steps) / cell.steps, 6),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "device": f"{torch.get_num_threads()} {platform.machine()} core(s)",
        "versions": versions(),
        "command": f"python benchmarks/methods --cell {cell.name}",
    }


def commit() -> str:
    """The state of the code."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return told.stdout.strip()


def read(cell: str) -> Cell:
    """The cell of that name."""
    problem, method, seed, size = cell.split("-")
    steps, batch = size.split("x")
    return Cell(problem, method, int(seed.removeprefix("seed")), int(steps), int(batch))


def main() -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=["oracle"], default="oracle")
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each on one core")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "benchmarks", help="folder of finished cells")
    parser.add_argument("--cell", help="run this cell alone and print it")
    parser.add_argument("--out", type=Path, help="file for all rows as JSON; a page and a plot go beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.cell:
        print(json.dumps(run(read(args.cell)) | {"commit": commit()}))
        return

    cells = [
        Cell(problem, method, seed, args.steps, args.batch)
        for seed in range(args.seeds)
        for problem in args.problems
        for method in args.methods
    ]

    def finished(cell: Cell) -> dict[str, Any]:
        path = args.cells / f"{cell.name}.json"
        if not path.is_file():
            command = [sys.executable, str(Path(__file__).parent), "--cell", cell.name]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stderr=subprocess.DEVNULL)
            write_whole(path, told.stdout.encode())
        row: dict[str, Any] = json.loads(path.read_text())
        return row

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(tqdm(pool.map(finished, cells), total=len(cells), desc="cells"))
    command = shlex.join(["python", "benchmarks/methods", *sys.argv[1:]])
    if args.out:
        write_whole(args.out, (json.dumps(rows, indent=1) + "\n").encode())
        args.out.with_suffix(".md").write_text(page(rows, args.out.name, command))
        plot(rows, args.out.with_suffix(".png"))
    print(page(rows, "rows", command))


if __name__ == "__main__":
    main()
