"""A set of samples: made by several processes, kept on disk, continued after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.store import ChunkStore, write_whole
from lightning_tweedie.sampling import Sampler, sample

__all__ = ["CHUNK", "generate"]

CHUNK = 250
"""Images that are dealt to a process at once and stored in one file. Batches end where a chunk does, and with them goes
the rounding of floats; so this is a constant, not a setting."""

_CONDITIONS = "conditions.json"


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
            _claim(store, _conditions(denoiser, item, sampler, seed, truncate_at))
    with processes.together(), torch.autocast(device.type, enabled=False):
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


def _conditions(
    denoiser: nn.Module, shape: tuple[int, ...], sampler: Sampler, seed: int, truncate_at: float | None
) -> dict[str, Any]:
    """All that a sample depends on besides its number."""
    settings = {
        key: value for key, value in sorted(vars(sampler).items()) if isinstance(value, bool | int | float | str)
    }
    return {
        "network": _state_digest(denoiser),
        "shape": list(shape),
        "sampler": sampler.name,
        **{f"sampler.{key}": value for key, value in settings.items()},
        "seed": seed,
        "truncate_at": truncate_at,
    }


def _state_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}/{tuple(value.shape)}/{value.dtype}/".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _claim(store: Path, conditions: dict[str, Any]) -> None:
    """Makes sure that the samples in a folder are those that are asked for."""
    path = store / _CONDITIONS
    if not path.is_file():
        if any(store.glob("*.npy")):
            raise UserError(f"the folder {str(store)!r} holds files of something else: choose another one")
        return write_whole(path, (json.dumps(conditions, indent=1) + "\n").encode())
    try:
        theirs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read ({error}): remove the folder or choose another one") from None
    for key in conditions | theirs:
        if theirs.get(key) != conditions.get(key):
            raise UserError(
                f"the samples in {str(store)!r} were made with {key} = {theirs.get(key)}, not {conditions.get(key)}: "
                "remove the folder or choose another one"
            )
