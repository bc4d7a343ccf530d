"""Images from wherever they are: a folder, an archive, an array in a file."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.data.images import open_files
from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.sigma import LARGEST_SIGMA

__all__ = ["ImageArray", "holds_images", "open_images"]

# What reading a damaged file can end in.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)
# Ten standard deviations of the largest noise: what lies beyond is on another scale.
_BEYOND = 1 + 10 * LARGEST_SIGMA
# Samplers overshoot a little, and here and there by more. Images that were normalised by the mean and the deviation of
# ImageNet have a third and more of their values out there.
_EDGE, _FEW = 1.1, 0.01
_BYTES = 2**26
_NAMES = ("samples", "arr_0")
_LOOKED_AT = 64  # files of floats in a folder; an image at a time is slow


def open_images(path: str | Path, noisy: bool = False) -> Dataset[Tensor]:
    """Opens images for evaluation: items ``(3, H, W)`` or ``(1, H, W)``, float32 in [-1, 1], noisy ones beyond it.

    Args:
        path: One of

            * a folder, searched to any depth; of one in which ``samples.npz`` lies, which is what the command
              ``sample`` leaves, that file, because the pictures beside it show the same images once more;
            * a tar or zip archive of images;
            * a file ``.npy`` or ``.npz``: the array named ``samples`` (channels first), or ``arr_0`` (ADM's and EDM's
              name), or the only one: 8-bit integers, or floats on the scale of [-1, 1]; ``(N, H, W, C)``,
              ``(N, C, H, W)`` or ``(N, H, W)``. An ``.npy`` file is not read into memory.

            Grey images in folders and archives become colour images of the same 8-bit levels.
        noisy: Whether these are noisy images, whose floats may well lie outside [-1, 1]. Of others, but for arrays
            named ``samples``, at most one value in a hundred may be beyond 1.1: what has more is on another scale.

    Returns:
        The images, in the order of their names; folders and archives have ``names``.

    Raises:
        UserError: There is no such place, there are no images in it, or they are on another scale.
    """
    place = Path(path).expanduser()
    if place.is_dir() and (place / "samples.npz").is_file():
        place = place / "samples.npz"
    if place.suffix.lower() in (".npy", ".npz") and place.is_file():
        return ImageArray(place, noisy)
    if not place.exists():
        raise UserError(f"{str(path)!r} does not exist: give a folder or an archive of images, or a file .npz or .npy")
    images = open_files(place, channels=3)
    if all(name.lower().endswith(".npy") for name in images.files):
        images = open_files(place, convert=False)  # Unlike pictures these are never turned from grey to colour.
    if images.dtype.kind == "f":
        scale = _Scale()
        for i in range(min(len(images), _LOOKED_AT)):
            scale.see(images.raw(i))
        scale.check(place, noisy)
    return images


def holds_images(path: str | Path) -> bool:
    """Whether there are images beside what else is in an ``.npz`` file, as in ADM's reference batches."""
    try:
        with zipfile.ZipFile(Path(path).expanduser()) as file:
            return any(f"{name}.npy" in file.namelist() for name in _NAMES)
    except (OSError, zipfile.BadZipFile):
        return False


class ImageArray(Dataset[Tensor]):
    """All images in one NumPy file.

    Args:
        path: The file; see :func:`open_images`.
        noisy: Whether these are noisy images.

    Raises:
        UserError: It is damaged, or does not hold images on a known scale.
    """

    def __init__(self, path: str | Path, noisy: bool = False) -> None:
        self.path = Path(path)
        try:
            name, self.array = _read(self.path)
        except UserError:
            raise
        except _UNREADABLE as error:
            raise UserError(f"{str(self.path)!r} cannot be read ({error}): give a whole file of arrays") from None
        self._axis = self._find_channels(name)
        # Ours are known to be on the right scale, however wild the network that made them.
        self._check_scale(noisy or name == "samples")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``(C, H, W)``, float32."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Several at once."""
        images = torch.from_numpy(self.array[list(indices)].astype(np.float32))
        if self._axis is None:
            images = images[:, None]
        elif self._axis == 3:
            images = images.permute(0, 3, 1, 2)
        images = images / 127.5 - 1 if self.array.dtype == np.uint8 else images
        return list(images.contiguous().unbind())

    def _find_channels(self, name: str) -> int | None:
        """The axis of the channels; None for grey images without one."""
        shape = self.array.shape
        if len(shape) == 3 and shape[2] not in (1, 3) and 0 not in shape:
            return None
        axes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3) and 0 not in shape]
        if len(axes) == 1 or (axes and name == "samples"):
            return axes[0]
        either = " (the channels may be either axis)" if axes else ""
        raise UserError(
            f"{str(self.path)!r} holds an array {shape}{either}: give images (N, H, W, C) or (N, C, H, W) with C = 1 "
            "or 3, or grey ones (N, H, W)"
        )

    def _check_scale(self, wide: bool) -> None:
        kind = self.array.dtype
        if kind == np.uint8:
            return
        if not np.issubdtype(kind, np.floating):
            raise UserError(
                f"{str(self.path)!r} holds an array of {kind}, whose scale is not known: give uint8 (0..255) or floats "
                "in [-1, 1]"
            )
        scale = _Scale()
        rows = max(1, _BYTES // max(1, self.array[0].size * 8))
        for start in range(0, len(self), rows):
            part = np.asarray(self.array[start : start + rows])
            bad = ~np.isfinite(part).reshape(len(part), -1).all(axis=1)
            if bad.any():
                raise UserError(
                    f"image {start + int(bad.argmax())} of {str(self.path)!r} has values that are not finite: a "
                    "distance of such images is none; make it anew"
                )
            scale.see(part)
        scale.check(self.path, wide)


class _Scale:
    """Which numbers there are in images that are to be floats in [-1, 1]."""

    def __init__(self) -> None:
        self.low, self.high, self.beyond, self.total = np.inf, -np.inf, 0, 0

    def see(self, values: NDArray[Any]) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.beyond += int((np.abs(values) > _EDGE).sum())
        self.total += values.size

    def check(self, path: Path, wide: bool) -> None:
        """Refuses what is on another scale, and warns of what may be.

        Args:
            path: Where the images are.
            wide: Whether they may well lie outside [-1, 1], as noisy images do.

        Raises:
            UserError: They are on another scale.
        """
        low, high = self.low, self.high
        looks = None
        if low >= 0:
            looks = "[0, 1]" if high <= 1 else "8 bits"
        elif max(-low, high) > _BEYOND or (not wide and self.beyond > _FEW * self.total):
            looks = "an unknown scale"
        if looks is not None:
            raise UserError(
                f"{str(path)!r} has floats from {low:.4g} to {high:.4g}, which looks like {looks}: bring them to "
                "[-1, 1] (v in [0, 1] to 2 v - 1), or give uint8"
            )
        if low > -0.05:
            warnings.warn(
                f"{str(path)!r} has floats from {low:.4g} to {high:.4g}, which looks like [0, 1], and is taken as it "
                "stands: images are to be in [-1, 1]",
                stacklevel=2,
            )


def _read(path: Path) -> tuple[str, NDArray[Any]]:
    """The array of images in a file, and its name."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)  # nothing that could run code is read
    if isinstance(loaded, np.ndarray):
        return "", loaded
    with loaded as file:
        names = [name for name in _NAMES if name in file.files][:1] or file.files
        if len(names) != 1:
            raise UserError(
                f"{str(path)!r} holds {len(names)} arrays ({', '.join(names)}), none of them named samples or arr_0: "
                "give a file with images alone"
            )
        return names[0], file[names[0]]
