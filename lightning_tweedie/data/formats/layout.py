"""Where the images are in an array: which axes count them, and which one holds the channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.errors import UserError

__all__ = ["Layout", "find_layout"]

#: An axis of so many that nothing is known about holds channels: grey, colour, colour and one more.
_LIKELY = (1, 3, 4)


@dataclass(frozen=True)
class Layout:
    """How images lie in an array.

    Attributes:
        shape: Shape of the array.
        axes: One letter for each axis: ``N`` any number of times, ``C`` once or not at all, ``Y`` and ``X``.
    """

    shape: tuple[int, ...]
    axes: str

    @property
    def count(self) -> int:
        """How many images there are."""
        return math.prod(size for size, axis in zip(self.shape, self.axes, strict=True) if axis == "N")

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.shape[self.axes.index("C")] if "C" in self.axes else 1

    def place(self, index: int) -> tuple[int | slice, ...]:
        """What picks image number ``index`` out of the array, the last axis of images counting fastest."""
        counted = [size for size, axis in zip(self.shape, self.axes, strict=True) if axis == "N"]
        numbers = iter(np.unravel_index(index, counted) if counted else ())
        return tuple(int(next(numbers)) if axis == "N" else slice(None) for axis in self.axes)

    def take(self, array: Any, index: int) -> NDArray[Any]:  # noqa: ANN401
        """Image number ``index``, ``(C, H, W)``."""
        part = np.asarray(array[self.place(index)])
        inner = self.axes.replace("N", "")
        part = part if "C" in inner else part[None]
        inner = inner if "C" in inner else "C" + inner
        return part.transpose([inner.index(axis) for axis in "CYX"])

    def take_several(self, array: Any, indices: Sequence[int]) -> NDArray[Any]:  # noqa: ANN401
        """The images of these numbers, ``(B, C, H, W)``."""
        if not isinstance(array, np.ndarray):
            return np.stack([self.take(array, index) for index in indices])
        outer = [i for i, axis in enumerate(self.axes) if axis == "N"]
        inner = [self.axes.index(axis) for axis in "CYX" if axis in self.axes]
        places = np.unravel_index(indices, [self.shape[i] for i in outer])
        part = np.asarray(array).transpose(outer + inner)[places]
        return part if "C" in self.axes else part[:, None]

    def join(self, images: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The array of all images ``(C, H, W)``, in order: what :meth:`take` took apart."""
        array = np.empty(self.shape, images[0].dtype)
        inner = self.axes.replace("N", "")
        for index, image in enumerate(images):
            part = image if "C" in inner else image[0]
            array[self.place(index)] = part.transpose([("CYX" if "C" in inner else "YX").index(axis) for axis in inner])
        return array


def find_layout(shape: Sequence[int], axes: str, channels: int | None, name: str) -> Layout:
    """Decides what the axes of an array are that a file leaves open.

    Args:
        shape: Shape of the array.
        axes: What the file says, see :class:`~lightning_tweedie.data.formats.stored.Stored`.
        channels: How many channels an image has; None: 1, 3 or 4, where there is such an axis at either end.
        name: What messages call the file.

    Raises:
        UserError: There are several ways to read it, or none.

    Examples:
        >>> find_layout((20, 64, 64), "???", None, "a.npy").axes
        'NYX'
        >>> find_layout((20, 64, 64), "???", 20, "a.npy").axes
        'CYX'
        >>> find_layout((5, 64, 48, 3), "????", None, "a.npy").axes
        'NYXC'
    """
    shape, rank = tuple(shape), len(shape)
    if not shape or 0 in shape or axes.count("C") > 1 or not {2, 3, 4}.issuperset({rank} if "?" in axes else ()):
        raise UserError(f"{name} holds an array {shape}, in which there are no images: give (N, C, H, W) or less")
    if "n" in axes:
        likely = [i for i, axis in enumerate(axes) if axis == "n" and shape[i] == channels]
        if channels != 1 and "C" not in axes and len(likely) == 1:
            axes = axes[: likely[0]] + "C" + axes[likely[0] + 1 :]
        return Layout(shape, axes.replace("n", "N"))
    if "?" not in axes:
        return Layout(shape, axes)
    wanted = _LIKELY if channels is None else (channels,)
    # Channels first or last; without channels the first axis counts grey images.
    ways = {3: {"CYX": 0, "YXC": 2}, 4: {"NCYX": 1, "NYXC": 3}}.get(rank, {"YX": 0})
    found = [way for way, axis in ways.items() if rank == 2 or shape[axis] in wanted]
    if channels is None and len({shape[ways[way]] for way in found}) == 2:
        found = [min(found, key=lambda way: shape[ways[way]])]
    if not found and rank == 3 and channels in (1, None):
        found = ["NYX"]
    if len(found) != 1:
        either = "may be the first axis or the last" if found else f"are not {' or '.join(map(str, wanted))}"
        raise UserError(
            f"{name} holds an array {shape}, whose channels {either}: give images as (H, W), (C, H, W) or (N, C, H, W) "
            "and say how many channels they have"
        )
    return Layout(shape, found[0])
