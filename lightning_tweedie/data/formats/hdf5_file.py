"""HDF5, by h5py."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.formats.stored import Format, Stored, need
from lightning_tweedie.errors import UserError

__all__ = ["Hdf5File"]


class Hdf5File(Format):
    """HDF5 files, of whose data sets one holds the images; it is read no further than what is asked for."""

    endings = (".h5", ".hdf5", ".hdf")

    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """See :class:`Format`."""
        h5py = need("h5py", "hdf5", "HDF5")
        file = h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r")
        arrays: dict[str, Any] = {}

        def note(name: str, thing: Any) -> None:  # noqa: ANN401
            if isinstance(thing, h5py.Dataset) and thing.ndim >= 2 and thing.dtype.kind in "iuf":
                arrays[name] = thing

        file.visititems(note)
        names = ", ".join(arrays) or "none"
        if key is None and len(arrays) != 1:
            raise UserError(f"the file holds {len(arrays)} arrays of two axes or more ({names}): say with `key` which")
        key = next(iter(arrays)) if key is None else key.strip("/")
        if key not in arrays:
            raise UserError(f"key = {key!r} is not an array of two axes or more in the file, which has {names}")
        found = arrays[key]
        details = {"key": key, "compression": found.compression, "attributes": dict(found.attrs)}
        axes = "YX" if found.ndim == 2 else "?" * found.ndim
        offset = found.id.get_offset()
        if offset is not None and isinstance(source, Path) and found.external is None:
            # In one piece: reading it past the library is many times as fast, image by image.
            map_it = partial(np.memmap, source, found.dtype, "r", offset, found.shape)
            return Stored(found.shape, found.dtype, axes, map_it, details)
        return Stored(found.shape, found.dtype, axes, lambda: found, details)

    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """See :class:`Format`; under the same name, with the same attributes, and without the file's other arrays."""
        import h5py

        content = io.BytesIO()
        packed = {"compression": "gzip", "shuffle": True} if like.details["compression"] else {}
        with h5py.File(content, "w") as file:
            made = file.create_dataset(like.details["key"], data=np.ascontiguousarray(array), **packed)
            for name, value in like.details["attributes"].items():
                made.attrs[name] = value
        return content.getvalue()
