"""NumPy's own files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.formats.stored import Format, Stored
from lightning_tweedie.errors import UserError
from lightning_tweedie.files import npy_bytes

__all__ = ["NumpyFile"]


class NumpyFile(Format):
    """``.npy``, which is read no further than what is asked for, and ``.npz``, of whose arrays one holds the images."""

    endings = (".npy", ".npz")

    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """See :class:`Format`; nothing that could run code is read."""
        if isinstance(source, bytes):
            loaded = np.load(io.BytesIO(source), allow_pickle=False)
        else:
            loaded = np.load(source, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Stored.whole(loaded)
        with loaded as file:
            if key is None and len(file.files) != 1:
                names = ", ".join(sorted(file.files))
                raise UserError(f"the file holds {len(file.files)} arrays ({names}): say with `key` which one")
            key = file.files[0] if key is None else key
            if key not in file.files:
                raise UserError(f"key = {key!r} is not an array of the file, which has {', '.join(sorted(file.files))}")
            return Stored.whole(file[key], key=key)

    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """See :class:`Format`; of an ``.npz`` file only the array of images."""
        if "key" not in like.details:
            return npy_bytes(array)
        file = io.BytesIO()
        np.savez(file, **{like.details["key"]: array})  # type: ignore[arg-type]
        return file.getvalue()
