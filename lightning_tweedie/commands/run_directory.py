"""Each run has a directory of its own, which no other run ever writes to."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_tweedie.errors import UserError

__all__ = ["discard_if_unused", "is_first_process", "run_directory"]

VARIABLE = "LIGHTNING_TWEEDIE_RUN_DIRECTORY"
"""Tells the processes that Lightning starts for further devices where the first one writes."""


def is_first_process() -> bool:
    """Whether this is the one of a run's processes that writes and speaks."""
    return not getattr(rank_zero_only, "rank", 0) and not int(os.environ.get("NODE_RANK", 0))


def run_directory(runs: str, name: str, command: str) -> Path:
    """Makes the next free directory ``<runs>/<name>/<command>_<number>``.

    Making it reserves it, so runs that start at the same moment get different ones. Of several processes of one run
    the first decides.

    Args:
        runs: Folder of all runs.
        name: Name of the experiment.
        command: What is run, for example ``fit``.

    Raises:
        UserError: The name is not a name of a folder, or the directory cannot be made.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"name = {name!r} is not the name of a folder: use letters, digits and any of . _ + -")
    parent = Path(runs).expanduser() / name
    if not is_first_process():
        # Processes that somebody else started (torchrun, SLURM) learn the place from the first one's broadcasts.
        return Path(os.environ.get(VARIABLE, parent / f"{command}_pending"))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [p.name.removeprefix(f"{command}_") for p in parent.glob(f"{command}_*")]
        number = max((int(t) for t in taken if t.isdigit()), default=-1) + 1
        while True:
            path = parent / f"{command}_{number}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            os.environ[VARIABLE] = str(path.resolve())
            return path
    except OSError as error:
        raise UserError(
            f"the run's directory cannot be made in {str(parent)!r} ({error}): set --runs to another folder"
        ) from None


def discard_if_unused(path: Path) -> None:
    """Removes the directory of a run that failed before it had anything to show."""
    unused = not any(path.glob("checkpoints/*")) and not (path / "metrics.csv").exists()
    if is_first_process() and unused:
        shutil.rmtree(path, ignore_errors=True)
