"""The processes of one command: those that a launcher such as torchrun has started, or this one alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from lightning_tweedie.commands.output import choose_device
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    import torch

    from lightning_tweedie.evaluation.processes import Processes

__all__ = ["joined", "told_once"]

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. Shares take hours, and a launcher ends all when one has died."""


@contextmanager
def told_once() -> Iterator[None]:
    """Of several processes only the first tells a mistake, which all have found, or that it was interrupted."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        yield
    except (ArgumentError, UserError):
        if first:
            raise
        time.sleep(1)  # the launcher ends all processes when one has ended: not before the first has spoken
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if first:
            print("\nInterrupted. The same command goes on where this one stopped.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """Joins the processes that were started together, for the time of a command.

    Args:
        device: As on the command line; ``auto`` and ``cuda`` give each process of a machine a GPU of its own, in turn.

    Yields:
        The processes, and the device of this one.

    Raises:
        UserError: There is no such device.
    """
    import torch
    import torch.distributed as dist

    from lightning_tweedie.evaluation.processes import Processes

    launched = "RANK" in os.environ and dist.is_available() and not dist.is_initialized()
    if launched:
        # Whatever the device, what is exchanged lies in the memory of the CPU.
        dist.init_process_group("gloo", timeout=PATIENCE)
    processes = Processes()
    try:
        with processes.together():
            chosen = choose_device(device)
            if chosen.type == "cuda" and chosen.index is None and processes.size > 1:
                chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        yield processes, chosen
    finally:
        if launched:
            dist.destroy_process_group()
