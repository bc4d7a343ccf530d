"""PNG, JPEG and the other formats of pictures, by Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_tweedie.data.formats.stored import Format, Stored
from lightning_tweedie.errors import UserError

__all__ = ["PictureFile"]


class PictureFile(Format):
    """Pictures of 8 bits, grey or colour, and grey PNG of 16 bits; transparency is put on white."""

    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
    several = False

    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """See :class:`Format`; of an animation the first picture."""
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # Pillow would keep the upper half of the bits and say nothing.
            if image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in image.tile):
                raise UserError(
                    f"a colour {image.format} of 16 bits cannot be read without loss: store it as TIFF, or in 8 bits"
                )
            image.load()
            name = image.format
            if image.mode.startswith("I"):
                return Stored.whole(np.asarray(image).astype(np.uint16), "YX", format=name)
            grey = image.mode in ("1", "L", "LA", "La")
            if image.has_transparency_data:
                picture = image.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", image.size, "white"), picture)
            else:
                picture = image
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
        return Stored.whole(pixels, "YX" if grey else "YXC", format=name)

    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """See :class:`Format`; JPEG and WebP at their best quality, which still is not lossless."""
        file = io.BytesIO()
        name = like.details["format"]
        best: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
        Image.fromarray(array).save(file, format=name, **best.get(name, {}))
        return file.getvalue()

    def holds(self, dtype: np.dtype[Any]) -> bool:
        """Only what these formats can store."""
        return dtype in (np.uint8, np.uint16)
