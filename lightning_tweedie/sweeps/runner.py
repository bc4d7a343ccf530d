"""Runs what a sweep has left to run, several at once if need be."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from lightning_tweedie.errors import UserError
from lightning_tweedie.sweeps.run import Run

__all__ = ["run_all"]

PAUSE = 0.2
"""Seconds between two looks at the runs."""


def run_all(runs: Sequence[Run], parallel: int, progress: Callable[[], object]) -> tuple[list[Run], int | None]:
    """Runs all that are not finished. One that fails is named, and the others go on.

    Ctrl-C, SIGTERM and SIGHUP have the running ones save their state and end; a second one ends them at once. A run
    that goes on although its sweep was killed is waited for.

    Args:
        runs: All runs of the sweep.
        parallel: How many at a time.
        progress: Called whenever one has ended.

    Returns:
        Those that failed, and the signal that stopped the sweep, if one did.

    Raises:
        UserError: Their program cannot be found.
    """
    _check_program(runs[0])
    left = [run for run in runs if run.state != "finished"]
    running: dict[int, Run] = {}
    failed: list[Run] = []
    shown: tuple[int, ...] = ()
    with _signals() as told, tqdm(total=len(runs), initial=len(runs) - len(left), desc="sweep", unit="run") as bar:
        try:
            while (left or running) and not told:
                for slot in set(range(parallel)) - set(running):
                    if (run := _take(left)) is not None:
                        run.start(_environment(run, slot, parallel))
                        running[slot] = run
                for slot, run in list(running.items()):
                    if run.poll():
                        del running[slot]
                        if run.state == "failed":
                            failed.append(run)
                            bar.write(f"{run.name} failed: {run.reason} (its log is {run.directory / 'log.txt'})")
                        progress()
                counts = len(left), len(running), len(failed)
                if counts != shown or sys.stderr.isatty():
                    bar.n = len(runs) - len(left) - len(running)
                    bar.set_postfix(running=len(running), failed=len(failed))
                shown = counts
                time.sleep(PAUSE)
        finally:
            if running:
                bar.write("Stopping: the runs save their state. A second signal ends them at once.")
                _stop(list(running.values()), told)
    return failed, told[0] if told else None


def _take(left: list[Run]) -> Run | None:
    """Takes the first run that nobody else has, and drops those that somebody else has finished."""
    for run in list(left):
        if run.reserve():
            left.remove(run)
            if run.state != "finished":
                return run
            run.release()
    return None


def _stop(runs: Sequence[Run], told: Sequence[int]) -> None:
    """Ends runs, with their state saved unless there is a second signal, and records that they were interrupted."""
    for run in runs:
        run.stop(signal.SIGTERM)
    while not all([run.poll() for run in runs]):
        if len(told) > 1:
            for run in runs:
                run.stop(signal.SIGKILL)
        time.sleep(PAUSE)


def _check_program(run: Run) -> None:
    program = run.command()[0]
    if shutil.which(program, path=_path()) is None:
        raise UserError(f"command starts with {program!r}, which is not a program here: correct it in the sweep file")


def _path() -> str:
    """Where programs are looked for: first beside the interpreter that runs now, in its virtual environment."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _environment(run: Run, slot: int, parallel: int) -> dict[str, str]:
    """Variables of a run: a share of the machine, and in Weights & Biases one group for the sweep.

    Several runs at a time share the threads, and the GPUs that CUDA_VISIBLE_DEVICES lists are dealt out to them.
    """
    # Of the progress bars, which nobody watches, the log gets every hundredth state.
    environment = {"WANDB_RUN_GROUP": run.sweep.name, "TQDM_MINITERS": "100", **os.environ, "PATH": _path()}
    if parallel > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // parallel)))
        if devices := os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","):
            share = devices[slot::parallel] or [devices[slot % len(devices)]]
            if all(share):
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
    return environment


@contextmanager
def _signals() -> Iterator[list[int]]:
    """For the time being, signals that would end this process are noted down instead."""
    told: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) not in (None, signal.SIG_IGN):  # under nohup it stays ignored
            before[number] = signal.signal(number, lambda number, _: told.append(number))
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
