"""The scale of data: from the user's own units to [-1, 1] and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["DataScale"]

#: Types of which every value is used: their whole range becomes [-1, 1].
_WHOLE = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True)
class DataScale:
    """An affine map that takes ``low`` to -1 and ``high`` to 1; what lies beyond is not clipped.

    Attributes:
        low: In the units of the data.
        high: In the units of the data, larger than ``low``.
        dtype: Type of the numbers in the files, such as ``uint16``.

    Raises:
        UserError: The range is empty.

    Examples:
        >>> scale = DataScale(0, 4095, "uint16")
        >>> x = scale.scaled(np.array([0, 4095, 5000], np.uint16))
        >>> scale.restored(x)
        array([   0, 4095, 5000], dtype=uint16)
    """

    low: float
    high: float
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"the range [{self.low:g}, {self.high:g}] is empty or not finite: give low < high")

    @staticmethod
    def natural(dtype: np.dtype[Any] | str) -> DataScale | None:
        """The scale that a type has by itself.

        Returns:
            The whole range of unsigned integers of 8 and 16 bits; for floats [-1, 1], which leaves them as they are;
            None for other integers, of which only a small part is used.
        """
        kind = np.dtype(dtype)
        if kind.name in _WHOLE:
            return DataScale(0.0, _WHOLE[kind.name], kind.name)
        return DataScale(-1.0, 1.0, kind.name) if kind.kind == "f" else None

    @staticmethod
    def declared(limits: Sequence[float], dtype: np.dtype[Any] | str, name: str = "data.range") -> DataScale:
        """The scale of a range that the user gives, ``[low, high]``.

        Raises:
            UserError: These are not two numbers, the smaller one first.
        """
        if len(limits) != 2 or not (math.isfinite(limits[0]) and math.isfinite(limits[1]) and limits[0] < limits[1]):
            raise UserError(f"{name} = {list(limits)} is no range: give two numbers [low, high] with low < high")
        return DataScale(float(limits[0]), float(limits[1]), np.dtype(dtype).name)

    @property
    def unit(self) -> float:
        """How much one unit of the scaled data, and of every sigma there, is in the units of the data."""
        return (self.high - self.low) / 2

    @property
    def is_natural(self) -> bool:
        """Whether the type alone decides, not a range that was declared or measured."""
        return self == DataScale.natural(self.dtype)

    def for_dtype(self, dtype: np.dtype[Any] | str) -> DataScale | None:
        """The same for files of another type: a range is in the units of the data, and a natural scale is the type's.

        Returns:
            The scale; None if it is the type's and the type has none.
        """
        return DataScale.natural(dtype) if self.is_natural else DataScale(self.low, self.high, np.dtype(dtype).name)

    def scaled(self, values: NDArray[Any]) -> Tensor:
        """Data on the scale of [-1, 1], float32; computed in double precision, so that an offset costs nothing."""
        scaled = values.astype(np.float64)
        scaled -= (self.low + self.high) / 2
        scaled /= self.unit
        return torch.from_numpy(np.ascontiguousarray(scaled, dtype=np.float32))

    def restored(self, x: Tensor) -> NDArray[Any]:
        """Data in their own units and type; integers are rounded, and clipped where their type ends."""
        values = x.double().cpu().numpy() * self.unit + (self.low + self.high) / 2
        kind = np.dtype(self.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            values = np.rint(values).clip(limits.min, limits.max)
        return values.astype(kind)

    def in_units(self, deviation: ArrayLike) -> NDArray[np.float32]:
        """Standard deviations in the units of the data, from such on the scale of [-1, 1]."""
        return (np.asarray(deviation, np.float64) * self.unit).astype(np.float32)

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> DataScale:
        """What :meth:`as_dict` wrote.

        Raises:
            UserError: It was not that.
        """
        try:
            low, high, dtype = float(content["low"]), float(content["high"]), str(content["dtype"])
            if np.dtype(dtype).kind not in "iuf":
                raise ValueError(f"{dtype} is no type of real numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the model tells a scale of its data that is none ({error}): use another copy") from None
        return DataScale(low, high, dtype)
