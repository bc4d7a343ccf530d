"""A data set that is an array in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.errors import UserError

__all__ = ["ArrayDataset"]


class ArrayDataset(Dataset[Tensor | tuple[Tensor, Tensor]]):
    """Items held in one array; 8-bit images stay 8-bit and are converted when they are read.

    Args:
        items: All items, ``(N, *shape)``: unsigned 8-bit integers, which become ``v / 127.5 - 1`` in [-1, 1], or
            floating point numbers, which are taken as they are.
        sigma_n: For data that are noisy by nature: their level, ``(N,)`` or ``(N, *shape)``, ``>= 0``, on the scale
            of the items. An item then is the pair ``(x_n, sigma_n)``.

    Raises:
        UserError: The numbers are of another type; the lengths differ.
    """

    def __init__(
        self, items: Tensor | NDArray[np.generic], sigma_n: Tensor | NDArray[np.generic] | None = None
    ) -> None:
        self.items = torch.as_tensor(items)
        if self.items.dtype != torch.uint8 and not self.items.is_floating_point():
            raise UserError(
                f"an array of {str(self.items.dtype).removeprefix('torch.')} has no known scale: "
                "give uint8 (0..255) or floats in [-1, 1]"
            )
        self.sigma_n = None if sigma_n is None else torch.as_tensor(sigma_n).float()
        if self.sigma_n is not None and len(self.sigma_n) != len(self.items):
            raise UserError(
                f"{len(self.sigma_n)} levels do not fit {len(self.items)} items: give one sigma_n for each item"
            )

    @property
    def scale(self) -> DataScale | None:
        """The scale of 8-bit items; None for floats, which are on that of [-1, 1] already."""
        return DataScale.natural("uint8") if self.items.dtype == torch.uint8 else None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        """One item ``(*shape)``, float32, or the pair of it and its level."""
        item = self.take([index])[0]
        return item if self.sigma_n is None else (item, self.sigma_n[index])

    def take(self, indices: Sequence[int]) -> Tensor:
        """Several items at once, ``(B, *shape)``, float32."""
        items = self.items[torch.as_tensor(indices, dtype=torch.int64)]
        return items.float().div_(127.5).sub_(1) if items.dtype == torch.uint8 else items.float()
