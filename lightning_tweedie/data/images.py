"""Images on disk: a folder, an archive of them, or one file that holds many."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.formats.layout import Layout, find_layout
from lightning_tweedie.data.formats.registry import ENDINGS, find_format
from lightning_tweedie.data.formats.stored import Stored
from lightning_tweedie.data.scaled_images import ScaledImages
from lightning_tweedie.errors import UserError

__all__ = ["ImageArchive", "ImageFiles", "ImageFolder", "open_files"]


class ImageFiles(ScaledImages):
    """All images of several files, in the order of their names, and in each file in order.

    Attributes:
        files: Name of each file.
        items: For each image the number of its file, and its number there.
        names: Name of each image: its file, and its number there if there are several, ``stack.tif[3]``.

    Args:
        files: Names of the files.
        channels: Channels of every image; None: as many as the first one has.
        key: Which array of a file, where there may be several: a name in NPZ and HDF5, a number or name of a unit in
            FITS.
        convert: See :class:`ScaledImages`.
    """

    def __init__(
        self, files: Sequence[str], channels: int | None = None, key: str | None = None, convert: bool = True
    ) -> None:
        super().__init__(channels, convert)
        self.files = list(files)
        self.key = key
        counts = [self._count(number) for number in range(len(self.files))]
        self.items = _Places(counts)
        self.names: Sequence[str] = _Names(self.files, self.items)

    @abstractmethod
    def _source(self, number: int) -> Path | bytes:
        """A file's path, or its content."""

    @abstractmethod
    def place(self, number: int) -> str:
        """What messages call a file."""

    def _count(self, number: int) -> int:
        kind = find_format(self.files[number])
        assert kind is not None
        try:
            return self.open(number)[1].count if kind.several else 1
        except UserError:
            return 1  # It is told with its name when the image is read, and with how many others are bad too.

    def open(self, number: int) -> tuple[Stored, Layout]:
        """What a file holds, and where the images are in it.

        Raises:
            UserError: It cannot be read, or holds something else.
        """
        name = self.place(number)
        kind = find_format(self.files[number])
        assert kind is not None
        try:
            source = self._source(number)
            if kind.several and isinstance(source, Path):
                # Workers that were forked open it anew.
                stored = _opened(source, self.key, source.stat().st_mtime_ns, os.getpid())
            else:
                stored = kind.open(source, self.key)
        except UserError as error:
            raise UserError(f"the image {name} cannot be used: {error}") from None
        # What a damaged file raises depends on its format and on where the damage is.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the image {name} cannot be read ({reason}): mend or remove the file") from None
        return stored, find_layout(stored.shape, stored.axes, self.channels, name)

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, index: int) -> str:
        """The file's path, with the image's number where there are several."""
        number, inside = self.items[index]
        single = self.items.counts[number] == 1
        return f"the image {self.place(number)}" + ("" if single else f"[{inside}]")

    def find_several(self, indices: Sequence[int]) -> NDArray[Any] | None:
        """See :class:`ScaledImages`: those of files that hold several, all of one shape and type."""
        numbers, inside = self.items.find(np.asarray(indices))
        if (self.items.counts[numbers] == 1).any():
            return None
        images: NDArray[Any] | None = None
        for number in np.unique(numbers):
            here = numbers == number
            stored, layout = self.open(number)
            try:
                part = layout.take_several(stored.array, inside[here])
            except Exception:
                return None  # Which of them cannot be read comes out one by one.
            if len(part) == len(indices):
                return part
            images = np.empty((len(indices), *part.shape[1:]), part.dtype) if images is None else images
            if (part.shape[1:], part.dtype) != (images.shape[1:], images.dtype):
                return None
            images[here] = part
        return images

    def find(self, index: int) -> NDArray[Any]:
        """See :class:`ScaledImages`."""
        number, inside = self.items[index]
        stored, layout = self.open(number)
        try:
            image = layout.take(stored.array, inside)
            if layout.count == 1:
                stored.__dict__.pop("array", None)  # It will not be asked for again soon, and may be large.
            return image
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.describe(index)} cannot be read ({reason}): mend or remove the file") from None


class _Places(Sequence[tuple[int, int]]):
    """Where each image is: its file, and its number there. Millions of them take no more room than their files do.

    Args:
        counts: Images of each file.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = np.array(counts)
        self._ends = self.counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, int]:  # type: ignore[override]
        number, inside = self.find(np.array(range(len(self))[index]))
        return int(number), int(inside)

    def find(self, indices: NDArray[np.int_]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        """The same of several images."""
        numbers = self._ends.searchsorted(indices, "right")
        return numbers, indices - self._ends[numbers] + self.counts[numbers]


class _Names(Sequence[str]):
    """What each image is called, made when it is asked for.

    Args:
        files: Names of the files.
        places: Where each image is.
    """

    def __init__(self, files: Sequence[str], places: _Places) -> None:
        self.files = files
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        number, inside = self.places[index]
        return self.files[number] if self.places.counts[number] == 1 else f"{self.files[number]}[{inside}]"


@lru_cache(maxsize=8)
def _opened(path: Path, key: str | None, changed: int, process: int) -> Stored:
    """Files with several images stay open for a while."""
    kind = find_format(path.name)
    assert kind is not None
    return kind.open(path, key)


class ImageFolder(ImageFiles):
    """All images below a folder, in the order of their paths; folders need not mean anything.

    Args:
        root: The folder, which is searched to any depth, or one file.
        channels: Channels of every image; None: as many as the first one has.
        key: See :class:`ImageFiles`.
        convert: See :class:`ScaledImages`.

    Raises:
        UserError: There is no such folder, or no image in it.
    """

    def __init__(
        self, root: str | Path, channels: int | None = None, key: str | None = None, convert: bool = True
    ) -> None:
        path = Path(root).expanduser()
        if path.is_file() and find_format(path.name):
            self.root, files = path.parent, [path.name]
        elif path.is_dir():
            self.root = path
            files = sorted(
                str(Path(folder, file).relative_to(path))
                for folder, _, names in os.walk(path, followlinks=True)
                for file in names
                if find_format(file)
            )
        else:
            raise UserError(f"the folder {str(root)!r} does not exist: give the folder with the images")
        if not files:
            raise UserError(
                f"the folder {str(root)!r} holds no images: put files that end in {', '.join(ENDINGS)} there, "
                "or give another folder"
            )
        super().__init__(files, channels, key, convert)

    def _source(self, number: int) -> Path:
        return self.root / self.files[number]

    def place(self, number: int) -> str:
        """The path of a file."""
        return str(self.root / self.files[number])


class ImageArchive(ImageFiles):
    """All images in a tar (plain, gz, bz2, xz) or zip archive, in the order of their names.

    The archive is read once; the encoded images stay in memory and are decoded when asked for. Nothing is written
    to the disk.

    Args:
        path: The archive.
        folder: Only images below this folder of the archive; default: all.
        channels: Channels of every image; None: as many as the first one has.
        key: See :class:`ImageFiles`.
        convert: See :class:`ScaledImages`.

    Raises:
        UserError: The archive is missing or damaged, or there is no such folder or no image in it.
    """

    def __init__(
        self,
        path: str | Path,
        folder: str = "",
        channels: int | None = None,
        key: str | None = None,
        convert: bool = True,
    ) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"the archive {str(path)!r} does not exist: give the path of a tar or zip file")
        parts = PurePosixPath(folder).parts
        if not zipfile.is_zipfile(self.path) and not tarfile.is_tarfile(self.path):
            raise UserError(
                f"the archive {str(path)!r} cannot be read (it is no tar or zip file, or breaks off): give a whole one"
            )
        try:
            members = _zip_members if zipfile.is_zipfile(self.path) else _tar_members
            found = {
                str(PurePosixPath(name)): read()  # "./a.png" and "a.png" are the same
                for name, read in members(self.path)
                if find_format(name) and PurePosixPath(name).parts[: len(parts)] == parts
            }
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
            raise UserError(
                f"the archive {str(path)!r} cannot be read ({error}): give a whole tar or zip file"
            ) from None
        if not found:
            inside = f" below {folder!r}" if folder else ""
            raise UserError(f"the archive {str(path)!r} holds no images{inside}: look into it and mend the setting")
        files = sorted(found)
        self._contents = [found[name] for name in files]
        super().__init__(files, channels, key, convert)

    def _source(self, number: int) -> bytes:
        return self._contents[number]

    def place(self, number: int) -> str:
        """The path of the archive, and of the file in it."""
        return f"{self.path}:{self.files[number]}"


def open_files(
    path: str | Path, folder: str = "", channels: int | None = None, key: str | None = None, convert: bool = True
) -> ImageFiles:
    """Opens a folder of images, an archive, or a single file; ``folder`` is one inside the first two.

    Raises:
        UserError: There is no such thing, or no image in it.
    """
    place = Path(path).expanduser()
    if place.is_file() and find_format(place.name) is None:
        return ImageArchive(place, folder, channels, key, convert)
    return ImageFolder(place / folder if place.is_dir() else place, channels, key, convert)


def _zip_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every file of a zip archive: its name, and how to read it before the next one is asked for."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, partial(archive.read, name)


def _tar_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Every file of a tar archive, front to back: its name, and how to read it before the next one is asked for."""
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read
