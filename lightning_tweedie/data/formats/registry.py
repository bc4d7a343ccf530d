"""Which format a file has, by its ending."""

from __future__ import annotations

from pathlib import PurePosixPath

from lightning_tweedie.data.formats.fits_file import FitsFile
from lightning_tweedie.data.formats.hdf5_file import Hdf5File
from lightning_tweedie.data.formats.numpy_file import NumpyFile
from lightning_tweedie.data.formats.picture_file import PictureFile
from lightning_tweedie.data.formats.stored import Format
from lightning_tweedie.data.formats.tiff_file import TiffFile

__all__ = ["ENDINGS", "find_format"]

_FORMATS: tuple[Format, ...] = (PictureFile(), TiffFile(), NumpyFile(), Hdf5File(), FitsFile())
_BY_ENDING = {ending: kind for kind in _FORMATS for ending in kind.endings}

ENDINGS = tuple(_BY_ENDING)
"""What the names of files of images end in."""


def find_format(name: str) -> Format | None:
    """The format of a file of that name; None if it is no image.

    Examples:
        >>> find_format("night/m31.FITS.gz").endings[0]
        '.fits'
        >>> find_format("notes.txt")
    """
    path = PurePosixPath(name)
    # macOS puts files such as "._photo.jpg", which are no images, beside the images of an archive.
    if path.name.startswith("."):
        return None
    ending = "".join(path.suffixes[-2:]).lower()
    return _BY_ENDING.get(ending) or _BY_ENDING.get(path.suffix.lower())
