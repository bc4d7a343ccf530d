"""Finished work on disk, so that an interrupted call continues where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_tweedie.digests import state_digest
from lightning_tweedie.errors import UserError
from lightning_tweedie.files import npy_bytes, write_whole
from lightning_tweedie.sampling import Sampler

__all__ = ["ChunkStore", "conditions"]


_CONDITIONS = "conditions.json"


def conditions(denoiser: nn.Module, shape: Sequence[int], sampler: Sampler, seed: int, **more: Any) -> dict[str, Any]:
    """All that a sample or a draw depends on besides its number, in plain types.

    Args:
        denoiser: The network.
        shape: Shape of one item.
        sampler: Solver and grid of levels.
        seed: Seed of the draws.
        more: What else matters, in plain types.
    """
    settings = {
        key: value for key, value in sorted(vars(sampler).items()) if isinstance(value, bool | int | float | str)
    }
    return {
        "network": state_digest(denoiser),
        "shape": list(shape),
        "sampler": sampler.name,
        **{f"sampler.{key}": value for key, value in settings.items()},
        "seed": seed,
        **more,
    }


class ChunkStore:
    """Rows of numbers in a folder, one file for each finished chunk.

    Args:
        folder: The folder, made when the first chunk is kept; nothing is kept when absent.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def claim(self, conditions: dict[str, Any]) -> None:
        """Makes sure that what is in the folder was made under these conditions; to be called on one process.

        Args:
            conditions: All that the rows depend on, in plain types; kept in the folder as ``conditions.json``.

        Raises:
            UserError: The folder belongs to others, or cannot be written.
        """
        if self.folder is None:
            return
        path = self.folder / _CONDITIONS
        if not path.is_file():
            if any(self.folder.glob("*.npy")):
                raise UserError(f"the folder {str(self.folder)!r} holds files of something else: choose another one")
            return write_whole(path, (json.dumps(conditions, indent=1) + "\n").encode())
        try:
            theirs = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{str(path)!r} cannot be read ({error}): remove the folder or choose another one"
            ) from None
        for key in conditions | theirs:
            if theirs.get(key) != conditions.get(key):
                raise UserError(
                    f"the content of {str(self.folder)!r} was made with {key} = {theirs.get(key)}, not "
                    f"{conditions.get(key)}: remove the folder or choose another one"
                )

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.npy"

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor | None:
        """The rows under this name, ``(k, *shape)`` float32.

        None if there are none of this shape (any if absent), or if the file is damaged: it will be made again.
        """
        if self.folder is None or not self._path(name).is_file():
            return None
        try:
            rows = np.load(self._path(name), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = rows.dtype == np.float32 and rows.ndim > 0 and shape in (None, rows.shape[1:])
        return torch.from_numpy(rows) if fits else None

    def write(self, name: str, rows: Tensor) -> None:
        """Keeps rows, ``(k, *shape)`` float32; replaces those of the same name."""
        if self.folder is not None:
            write_whole(self._path(name), npy_bytes(rows.numpy()))
