"""Images in units of their own, seen on the scale of [-1, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.errors import UserError

__all__ = ["ScaledImages"]

_LUMA = np.array([0.299, 0.587, 0.114])


class ScaledImages(Dataset[Tensor], ABC):
    """Images that are read as they are, and handed out on one scale for all of them.

    A subclass writes :meth:`find`, and :meth:`find_several` where that is quicker; it may have ``names``, one for each
    image.

    Args:
        channels: Channels of every image; None: as many as the first one has.
        convert: Whether grey becomes colour and colour grey where ``channels`` is 3 or 1. It changes the noise of data
            that are noisy by nature.
    """

    def __init__(self, channels: int | None = None, convert: bool = True) -> None:
        if channels is not None and channels < 1:
            raise UserError(f"data.channels = {channels} is too small: give 1 for grey, 3 for colour, or as it is")
        self.channels = channels
        self.convert = convert
        self._scale: DataScale | None = None
        self._first: tuple[int, np.dtype[Any]] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def find(self, index: int) -> NDArray[Any]:
        """One image as it is stored, ``(C, H, W)``, of any real type."""

    def find_several(self, indices: Sequence[int]) -> NDArray[Any] | None:
        """Several images as they are stored, ``(B, C, H, W)``; None where they must be found one by one."""
        return None

    @abstractmethod
    def describe(self, index: int) -> str:
        """What messages call an image."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the first image, which is that of all."""
        return self._expected()[1]

    @property
    def scale(self) -> DataScale:
        """The scale of all images; that of their type unless another one is set.

        Raises:
            UserError: Their type has none.
        """
        if self._scale is None:
            self._scale = DataScale.natural(self.dtype)
        if self._scale is None:
            raise UserError(
                f"{self.describe(0)} holds {self.dtype}, of which only a part of the range is used: say which with "
                "data.range, [low, high], or give sigma in the units of the data (data.sigma_units = data), for which "
                "the range is measured"
            )
        return self._scale

    @scale.setter
    def scale(self, scale: DataScale) -> None:
        self._scale = scale

    def _expected(self) -> tuple[int, np.dtype[Any]]:
        """Channels and type that every image must have."""
        if self._first is None:
            image = self._converted(0)
            self._first = len(image), image.dtype
        return self._first

    def raw(self, index: int) -> NDArray[Any]:
        """One image in its own units, ``(C, H, W)``, of the same number of channels and the same type as all others.

        Raises:
            UserError: It cannot be read, differs from the others, or has values that are not finite.
        """
        channels, dtype = self._expected()
        image = self._converted(index)
        if len(image) != channels:
            raise UserError(
                f"{self.describe(index)} has {len(image)} channels but others have {channels}: keep one kind, or, for "
                "grey and colour pictures, set data.channels to 1 or 3"
            )
        if image.dtype != dtype and not image.dtype.kind == dtype.kind == "f":
            raise UserError(
                f"{self.describe(index)} holds {image.dtype} but others hold {dtype}, which have another scale: keep "
                "one type"
            )
        if image.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(image)))):
            raise UserError(
                f"{self.describe(index)} has {bad} of {image.size} values that are not finite (NaN or infinite): fill "
                "them in, or leave the image out"
            )
        return image

    def _converted(self, index: int) -> NDArray[Any]:
        image = self.find(index)
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        if image.dtype.kind == "b":
            image = image.astype(np.uint8) * np.uint8(255)
        if image.dtype.kind not in "iuf":
            raise UserError(f"{self.describe(index)} holds {image.dtype}: give integers or floating point numbers")
        if self.channels in (None, len(image)):
            return image
        if self.channels == 1 and len(image) == 3 and (image == image[:1]).all():
            return image[:1]  # a grey picture, stored as a colour one
        if self.convert and self.channels == 3 and len(image) == 1:
            return np.repeat(image, 3, axis=0)
        if self.convert and self.channels == 1 and len(image) == 3:
            grey = np.tensordot(_LUMA, image.astype(np.float64), 1)[None]
            return (np.rint(grey) if image.dtype.kind in "iu" else grey).astype(image.dtype)
        raise UserError(
            f"{self.describe(index)} has {len(image)} channels, not {self.channels}: give other images, or settings "
            f"and a network for {len(image)} channels"
        )

    def __getitem__(self, index: int) -> Tensor:
        """Image ``(C, H, W)``, float32, on the scale of [-1, 1]."""
        return self.scale.scaled(self.raw(index))

    def take(self, indices: Sequence[int]) -> Tensor | None:
        """Several images at once, ``(B, C, H, W)``; None where they must be read, or refused, one by one."""
        found = self.find_several(indices)
        if found is None:
            return None
        found = found.astype(found.dtype.newbyteorder("="), copy=False)
        expected = (found.shape[1], found.dtype) == self._expected()
        if not expected or (found.dtype.kind == "f" and not np.isfinite(found).all()):
            return None
        return self.scale.scaled(found)
