"""Finished work on disk, so that an interrupted call continues where it was."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["ChunkStore", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is there either whole or not at all, whatever interrupts the writing.

    Args:
        path: The file, which is replaced if there is one; its folder is made if need be.
        content: What it is to hold.

    Raises:
        UserError: It cannot be written.
    """
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be written ({error}): make room, or choose another folder") from None


class ChunkStore:
    """Rows of numbers in a folder, one file for each finished chunk.

    Args:
        folder: The folder, made when the first chunk is kept; nothing is kept when absent.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

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
            write_whole(self._path(name), _npy(rows))


def _npy(rows: Tensor) -> bytes:
    """The content of a NumPy file."""
    file = io.BytesIO()
    np.save(file, rows.contiguous().numpy(), allow_pickle=False)
    return file.getvalue()
