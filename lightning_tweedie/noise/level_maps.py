"""Noise levels that differ from pixel to pixel: a folder of maps beside a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["LevelMaps"]


class LevelMaps:
    """A map of the noise level for each image: ``photos/a.png`` belongs to ``maps/photos/a.npy``.

    A map holds standard deviations, the root of a map of variances, ``(H, W)`` or, where channels differ,
    ``(C, H, W)``. The images of one file, such as the pages of a TIFF, share a map.

    Args:
        folder: The maps.
        names: The images' files, by which their maps are called, but for the ending.
        largest: The largest level that can be meant, on the scale of data in [-1, 1].
        name: The setting's name, for messages.
        unit: How much one unit of that scale is in the units of the maps.

    Raises:
        UserError: Some image has no map.
    """

    def __init__(
        self, folder: str | Path, names: Sequence[str], largest: float, name: str = "data.sigma", unit: float = 1.0
    ) -> None:
        self.largest = largest
        self.name = name
        self.unit = unit
        self.files = [Path(folder) / PurePosixPath(its).with_suffix(".npy") for its in names]
        missing = [file for file in self.files if not file.is_file()]
        if missing:
            raise UserError(
                f"{name} = {str(folder)!r} has no map for {len(missing)} of {len(self.files)} images, among them "
                f"{missing[0]}: put .npy files there that are called like the images"
            )

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, shape: Sequence[int], transform: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The map of one image, ``(C, H, W)``, float32, on the scale of data in [-1, 1].

        Args:
            index: Number of the image.
            shape: Its shape ``(C, H, W)``; a map ``(H, W)`` is that of all channels.
            transform: What the image went through, if it only moves pixels.

        Raises:
            UserError: It cannot be read, or is no map.
        """
        file = self.files[index]
        try:
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
                raise ValueError("no array of real numbers")
        except (ValueError, OSError, EOFError) as error:
            raise UserError(
                f"the map {file} of {self.name} cannot be read ({error}): give a .npy array of standard deviations"
            ) from None
        if not ((array >= 0) & (array <= self.largest * self.unit)).all():  # written so that NaN fails too
            raise UserError(
                f"the map {file} of {self.name} has values from {array.min():.4g} to {array.max():.4g}: give standard "
                f"deviations from 0 to {self.largest * self.unit:g}, on the scale of "
                + ("data in [-1, 1] (8-bit units divided by 127.5)" if self.unit == 1.0 else "the data")
            )
        levels = torch.from_numpy(np.ascontiguousarray(array / self.unit, np.float32))
        levels = levels[None] if levels.ndim == 2 else levels
        levels = levels if transform is None or levels.ndim != 3 else transform(levels)
        if levels.ndim != 3 or len(levels) not in (1, shape[0]) or levels.shape[1:] != tuple(shape[1:]):
            raise UserError(
                f"the map {file} of {self.name} has shape {array.shape}, and its image has {tuple(shape)}: give a "
                "number for each pixel, (H, W) or (C, H, W)"
            )
        return levels.expand(*shape)
