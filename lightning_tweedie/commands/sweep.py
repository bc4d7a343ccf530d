"""`sweep`: the runs of a sweep file, without a server."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_tweedie.commands.function_cli import call_with
from lightning_tweedie.errors import UserError

__all__ = ["main", "sweep"]


def sweep(
    file: str,
    out: str | None = None,
    parallel: int = 1,
    count: int | None = None,
    seed: int = 0,
) -> None:
    """Runs a sweep file of Weights & Biases without its server, with the very commands of its agent.

    Each run has a directory of its own with its parameters, its log and what it wrote. The same command goes on where
    it was interrupted: finished runs are not run again, the others continue from their last checkpoint. One table of
    all runs (results.md, results.csv, results.json) and the metric against the noise level (results.png) are kept up to
    date.

    Args:
        file: The sweep file, with method grid or random.
        out: Folder of the sweep; runs/sweep_<name of the file> when left out.
        parallel: Runs at a time. They share the threads, and the GPUs that CUDA_VISIBLE_DEVICES lists.
        count: How many runs, the first of a grid or that many draws; the file's run_cap when left out.
        seed: Of the draws of a random sweep.

    Raises:
        UserError: The sweep file or a setting is wrong.
    """
    from lightning_tweedie.sweeps.results import markdown_table, write_results
    from lightning_tweedie.sweeps.run import Run
    from lightning_tweedie.sweeps.runner import run_all
    from lightning_tweedie.sweeps.sweep_file import read_sweep

    if parallel < 1:
        raise UserError(f"parallel = {parallel} is too small: give at least 1")
    path = Path(file).expanduser()
    described = read_sweep(path)
    points = described.points(count, seed)
    folder = Path("runs", f"sweep_{path.stem}") if out is None else Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {str(folder)!r} cannot be made ({error}): set --out to another one") from None
    runs = [Run(described, point, folder) for point in points]
    if described.early_terminate:
        print("early_terminate is left to the server of Weights & Biases: here every run goes to its end.")
    finished = sum(run.state == "finished" for run in runs)
    print(f"{len(runs)} runs, {finished} of them finished, in {folder}", flush=True)

    failed, stopped = run_all(runs, parallel, lambda: write_results(runs, folder))
    if stopped is not None:
        print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        raise SystemExit(128 + signal.Signals(stopped))
    files = write_results(runs, folder)
    print(f"\n{markdown_table(runs)}\nWrote {', '.join(file.name for file in files)} to {folder}")
    silent = [run for run in runs if run.state == "finished" and run.value() is None]
    for run in failed:
        print(f"error: {run.name} failed: {run.reason} (its log is {run.directory / 'log.txt'})", file=sys.stderr)
    if silent:
        known = ", ".join(name for name in silent[0].metrics() if name not in ("epoch", "step")) or "nothing"
        print(
            f"error: {len(silent)} runs logged no finite {described.metric}, which metric.name asks for; "
            f"{silent[0].name} logged {known}",
            file=sys.stderr,
        )
    if failed or silent:
        raise SystemExit(1)


def main(argv: Sequence[str]) -> None:
    """Runs ``lightning_tweedie sweep``."""
    call_with(sweep, argv, positional=True)
