"""How long a command takes to say something, and ``fit`` to train."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pairs import Row, single

from lightning_tweedie.cli import COMMANDS

CONFIG = Path(__file__).resolve().parents[2] / "configs/experiment/demo.yaml"
FIRST_STEP = [
    *("fit", "--config", str(CONFIG), "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"),
    *("--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"),
]
"""Nothing but one step of the demo and the checkpoint after it."""


def seconds(arguments: Sequence[str], times: int) -> list[float]:
    """Of the whole command, several times; the first one, which fills the system's caches, is not counted."""
    found = []
    for _ in range(1 + times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lightning_tweedie", *arguments], check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return found[1:]


def rows(quick: bool) -> list[Row]:
    """``--help`` of every command, and ``fit`` with one step."""
    names = ["", "sample"] if quick else ["", *COMMANDS]
    made = []
    for name in names:
        asked = [name, "--help"] if name else ["--help"]
        made.append(single("startup", " ".join(asked), seconds(asked, 1 if quick else 5), "seconds"))
    if quick:
        return made
    with tempfile.TemporaryDirectory() as runs:
        its = seconds([*FIRST_STEP, "--runs", runs], 3)
    return [*made, single("startup", "fit of the demo, one step, from start to end", its, "seconds")]
