"""Several processes of torch.distributed on this machine, for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["in_processes"]


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(*arguments)`` returns on each of ``count`` processes that are joined by gloo.

    They are forked, so ``work`` may be any function; what it returns is tensors and plain data.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one, (count, folder, work, arguments), nprocs=count, start_method="fork")
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(count)]


def _one(rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    torch.save(work(*arguments), Path(folder, str(rank)))
    dist.destroy_process_group()
