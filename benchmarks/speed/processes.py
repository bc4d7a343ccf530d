"""Training with two processes against one, on a processor: what the exchange of gradients leaves of the second core.

Each run is started anew, and its processes have one thread each, so two of them keep two cores busy. On a machine with
two cores nothing is left for anything else; a third row therefore compares with one process of two threads.
"""

from __future__ import annotations

# Before Lightning: see lightning_tweedie/_torchvision.py.
import lightning_tweedie  # noqa: F401 isort: skip

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from loop import CLIP, Data
from pairs import Row, ratios
from tqdm import tqdm

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import UNet

HERE = Path(__file__).resolve().parent
ONE, TWO, THREADS = "1 process, 1 thread", "2 processes, 1 thread each", "1 process, 2 threads"
WAYS = {ONE: (1, 1, 1), TWO: (2, 1, 1), THREADS: (1, 2, 2)}
"""Processes, threads of each, and batches of which each one's is made."""


class Clock(Callback):
    """Seconds of a step after a warm-up, on the first process, written to a file.

    Args:
        warmup: Steps before.
        path: The file.
    """

    def __init__(self, warmup: int, path: str) -> None:
        self.warmup = warmup
        self.path = Path(path)
        self._start = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Starts and stops."""
        if trainer.global_step == self.warmup:
            self._start = time.perf_counter()
        elif trainer.global_step == trainer.max_steps and trainer.is_global_zero:
            seconds = (time.perf_counter() - self._start) / (trainer.max_steps - self.warmup)
            self.path.write_text(json.dumps(seconds))


def train(processes: int, batch: int, steps: int, path: str) -> None:
    """One run, in this process and those that it forks."""
    torch.manual_seed(0)
    network = UNet(1, width=32, multipliers=[1, 3], blocks=1, attention=[1], patch=2)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        max_steps=steps + 5,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[Clock(5, path)],
    )
    trainer.fit(
        TweedieModule(Denoiser(network), optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True)),
        Data(sigma=0.3, batch_size=batch),
    )


def seconds(way: str, batch: int, steps: int) -> float:
    """Seconds of a step of one run."""
    processes, threads, batches = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        command = [sys.executable, "-W", "ignore", str(HERE / "processes.py")]
        command += map(str, (processes, batches * batch, steps, path))
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
        return json.loads(path.read_text())


def rows(quick: bool = False) -> list[Row]:
    """Images per second of two processes, with 32 images on each."""
    if torch.cuda.is_available():
        return []  # one GPU is no two, and the processor beside it is not what trains
    batch, steps, pairs = (4, 5, 1) if quick else (32, 60, 3)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in tqdm(range(pairs), desc="runs", leave=False):
        for way in list(WAYS)[:: 1 if turn % 2 == 0 else -1]:
            processes, _, batches = WAYS[way]
            found[way].append(seconds(way, batch, steps) / (processes * batches * batch))
    times = {way: np.array(its) for way, its in found.items()}
    details = {
        way: {"batch_per_process": batch * batches, "cores": os.cpu_count()} for way, (_, _, batches) in WAYS.items()
    }
    against_one = ratios("processes", times, ONE, "images/s", faster=True, details=details)
    both = {way: times[way] for way in (TWO, THREADS)}
    return [*against_one, *ratios("processes", both, THREADS, "images/s", faster=True, details=details)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One run; its time goes to a file.")
    for name in ("processes", "batch", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("path")
    train(**vars(parser.parse_args()))
