"""FITS, by astropy."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.formats.stored import Format, Stored, need
from lightning_tweedie.errors import UserError

__all__ = ["FitsFile"]

_GZIP = b"\x1f\x8b"


class FitsFile(Format):
    """FITS files, of whose units (HDUs) one holds the image; the planes of a cube are images, or channels on demand."""

    endings = (".fits", ".fit", ".fts", ".fits.gz")

    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """See :class:`Format`; ``key`` is the number or name of the unit, by default the first with an image."""
        fits = need("astropy.io.fits", "fits", "FITS")
        # Scaled integers come as the numbers that are meant: unsigned 16-bit as such, others as floats.
        if isinstance(source, bytes):
            packed = source[:2] == _GZIP
            file = fits.open(io.BytesIO(gzip.decompress(source) if packed else source))
        else:
            with source.open("rb") as start:
                packed = start.read(2) == _GZIP
            file = fits.open(source)
        units = [u for u in file if u.is_image and u.header.get("NAXIS", 0) >= 2]
        if key is not None:
            try:
                units = [file[int(key) if key.isdigit() else key]]
            except (KeyError, IndexError):
                raise UserError(f"key = {key!r} is not a unit (HDU) of the file, which has {len(file)}") from None
        if not units or not units[0].is_image or units[0].data is None or units[0].data.ndim < 2:
            raise UserError("there is no image in the file" if key is None else f"the unit {key!r} holds no image")
        array, header = units[0].data, units[0].header
        axes = "n" * (array.ndim - 2) + "YX"
        return Stored(
            array.shape, array.dtype.newbyteorder("="), axes, lambda: array, {"header": header, "packed": packed}
        )

    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """See :class:`Format`; with the other file's header, so that coordinates and exposure times stay."""
        from astropy.io import fits

        header = like.details["header"].copy(strip=True)
        for name in ("BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX"):
            header.remove(name, ignore_missing=True)
        content = io.BytesIO()
        fits.PrimaryHDU(np.ascontiguousarray(array), header).writeto(content, output_verify="silentfix")
        return gzip.compress(content.getvalue()) if like.details["packed"] else content.getvalue()
