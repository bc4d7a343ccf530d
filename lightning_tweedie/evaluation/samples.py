"""A set of samples: made by several processes, kept on disk, continued after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.store import ChunkStore, conditions
from lightning_tweedie.precision import full_precision
from lightning_tweedie.sampling import Sampler, sample

__all__ = ["CHUNK", "generate", "solver_facts"]

CHUNK = 250
"""Images that are dealt to a process at once and stored in one file. Batches end where a chunk does, and with them goes
the rounding of floats; so this is a constant, not a setting."""


def solver_facts(sampler: Sampler, truncate_at: float | None = None) -> dict[str, Any]:
    """What a row of results says of a solver: its name, its number of levels, and denoiser evaluations per sample."""
    nfe = sampler.evaluations(len(sampler.levels(truncate_at=truncate_at)))
    return {"sampler": sampler.name, "steps": sampler.steps, "nfe": nfe}


def generate(
    denoiser: Denoiser,
    shape: Sequence[int],
    n: int,
    sampler: Sampler,
    *,
    seed: int = 0,
    truncate_at: float | None = None,
    batch_size: int = 64,
    processes: Processes | None = None,
    store: Path | None = None,
    progress: str | None = None,
) -> Tensor:
    """Makes samples 0 ... n - 1 of a seed.

    They are bitwise the same on any number of processes, and the same up to the rounding of floats with any batch
    size. Every process must ask.

    Args:
        denoiser: A trained denoiser (use the EMA's), in evaluation mode.
        shape: Shape of one sample.
        n: Number of samples.
        sampler: Solver and grid of levels.
        seed: Together with its number determines a sample.
        truncate_at: Level at which to stop, usually ``sigma_n``, on the scale of the data; full sampling when absent.
        batch_size: Samples made at once.
        processes: Who shares the work; all processes there are when absent.
        store: Folder in which finished chunks are kept. What is there is not made again: an interrupted call
            continues, and one for more samples makes only those that are missing.
        progress: What the progress bar says; none when absent.

    Returns:
        The samples, ``(n, *shape)`` float32 on the CPU, on every process.

    Raises:
        UserError: The store holds samples of another network, sampler or seed, or cannot be written.
    """
    processes = Processes() if processes is None else processes
    item, chunks, finished = tuple(shape), processes.deal(n, CHUNK), ChunkStore(store)
    device = denoiser.sigma_data.device
    parts: dict[int, Tensor] = {}
    with processes.together():
        if store is not None and processes.is_first:
            finished.claim(conditions(denoiser, item, sampler, seed, truncate_at=truncate_at))
    with processes.together(), full_precision(device):
        for chunk in chunks:
            found = finished.read(f"{chunk.start:08d}", item)
            parts[chunk.start] = torch.empty(0, *item) if found is None else found[: len(chunk)]
        bar = tqdm(
            desc=progress,
            total=sum(map(len, chunks)),
            initial=sum(map(len, parts.values())),  # the time that is left follows from the new ones alone
            unit="image",
            leave=False,
            disable=progress is None or not processes.is_first,
        )
        with bar:
            for chunk in chunks:
                rows = [parts[chunk.start]]
                missing = chunk[len(rows[0]) :]
                for start in range(0, len(missing), batch_size):
                    indices = missing[start : start + batch_size]
                    size = (len(indices), *item)
                    made = sample(denoiser, size, sampler, seed=seed, indices=indices, truncate_at=truncate_at)
                    rows.append(made.float().cpu())
                    bar.update(len(indices))
                if missing:
                    parts[chunk.start] = torch.cat(rows)
                    finished.write(f"{chunk.start:08d}", parts[chunk.start])
    return processes.gather(parts, n)
