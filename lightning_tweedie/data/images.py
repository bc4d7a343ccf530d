"""Images on disk: a folder, or an archive of them."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.errors import UserError

__all__ = ["ENDINGS", "ImageArchive", "ImageFolder", "read_image"]

#: The files that count as images; ``.npy`` holds floats, because noisy data cannot be stored in 8 bits exactly.
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".npy"})


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    # macOS puts files such as "._photo.jpg", which are no images, beside the images of an archive.
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def read_image(source: Path | bytes, channels: int, name: str | None = None) -> Tensor:
    """Reads one image.

    Args:
        source: A file's path, or its content.
        channels: 3 for colour, 1 for grey; images of the other kind are converted, transparency is put on white.
        name: What to call the image in messages (and its ending tells a ``.npy``); default: the path.

    Returns:
        ``(channels, H, W)``, float32: 8-bit and 16-bit images scaled to [-1, 1]; the floats of a ``.npy`` file,
        ``(channels, H, W)``, or ``(H, W)`` if grey, and of a TIFF as they are.

    Raises:
        UserError: The file is no image, or a damaged one.
    """
    name = str(source) if name is None and isinstance(source, Path) else str(name)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if name.lower().endswith(".npy"):
            return _from_floats(np.load(file, allow_pickle=False), channels, name)
        with Image.open(file) as image:
            image.load()
            return _from_pixels(image, channels)
    except UserError:
        raise
    # What Pillow raises for a damaged file depends on its format and on where the damage is.
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, Image.DecompressionBombError) as error:
        reason = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"the image {name} cannot be read ({reason}): mend or remove the file") from None


def _from_floats(array: np.ndarray, channels: int, name: str) -> Tensor:
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[0] != channels or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"the image {name} is an array of {array.dtype} with shape {array.shape}: "
            f"store floats in [-1, 1] with shape ({channels}, H, W)"
        )
    return torch.from_numpy(array.astype(np.float32))


def _from_pixels(image: Image.Image, channels: int) -> Tensor:
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16-bit grey, which convert() would cut off at 255.
        grey = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535 * 2 - 1)
        return grey.expand(channels, -1, -1).contiguous()
    if image.mode == "F":
        return torch.from_numpy(np.array(image)).expand(channels, -1, -1).contiguous()
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.array(image if image.mode == mode else image.convert(mode))
    pixels = torch.from_numpy(array).reshape(*array.shape[:2], channels).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1)


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(f"images have 1 channel (grey) or 3 (colour), not {channels}: give one of these numbers")


class ImageFolder(Dataset[Tensor]):
    """All images below a folder, in the order of their paths; folders need not mean anything.

    Args:
        root: The folder; it is searched to any depth.
        channels: 3 for colour, 1 for grey.

    Raises:
        UserError: There is no such folder, or no image in it.
    """

    def __init__(self, root: str | Path, channels: int = 3) -> None:
        _check_channels(channels)
        self.channels = channels
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise UserError(f"the folder {str(root)!r} does not exist: give the folder with the images")
        self.names = sorted(
            str(Path(folder, file).relative_to(self.root))
            for folder, _, files in os.walk(self.root, followlinks=True)
            for file in files
            if _is_image(file)
        )
        if not self.names:
            raise UserError(
                f"the folder {str(root)!r} holds no images: put files that end in {', '.join(sorted(ENDINGS))} there, "
                "or give another folder"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``(channels, H, W)``, float32."""
        return read_image(self.root / self.names[index], self.channels)


class ImageArchive(Dataset[Tensor]):
    """All images in a tar (plain, gz, bz2, xz) or zip archive, in the order of their names.

    The archive is read once; the encoded images stay in memory and are decoded when asked for. Nothing is written
    to the disk.

    Args:
        path: The archive.
        folder: Only images below this folder of the archive; default: all.
        channels: 3 for colour, 1 for grey.

    Raises:
        UserError: The archive is missing or damaged, or there is no such folder or no image in it.
    """

    def __init__(self, path: str | Path, folder: str = "", channels: int = 3) -> None:
        _check_channels(channels)
        self.channels = channels
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(f"the archive {str(path)!r} does not exist: give the path of a tar or zip file")
        parts = PurePosixPath(folder).parts
        try:
            members = _zip_members if zipfile.is_zipfile(self.path) else _tar_members
            found = {
                str(PurePosixPath(name)): read()  # "./a.png" and "a.png" are the same
                for name, read in members(self.path)
                if _is_image(name) and PurePosixPath(name).parts[: len(parts)] == parts
            }
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
            raise UserError(
                f"the archive {str(path)!r} cannot be read ({error}): give a whole tar or zip file"
            ) from None
        if not found:
            inside = f" below {folder!r}" if folder else ""
            raise UserError(f"the archive {str(path)!r} holds no images{inside}: look into it and mend the setting")
        self.names = sorted(found)
        self._contents = [found[name] for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``(channels, H, W)``, float32."""
        return read_image(self._contents[index], self.channels, f"{self.path}:{self.names[index]}")


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
