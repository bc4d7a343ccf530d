"""Random changes after the noise that keep white noise white.

Flips, quarter turns, whole-pixel shifts and crops only move pixels about. What they make of ``x_n = x_0 + sigma_n z``
is again a clean image (moved) plus white noise (moved) of the same level. Maps of the level move along. Correlated
noise must look the same after a flip or a turn; where it does not, they are refused. Whatever interpolates would
correlate the noise, and whatever came before the noise would be a leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["Augmentation"]

_PLAIN = ("hflip", "vflip", "rot90")
_SIZED = ("shift", "crop")
#: So many numbers are kept, of the last epochs.
_KEPT = 1 << 20
#: So much may an autocorrelation, 1 at its middle, change and still be the same: estimates are never quite symmetric.
_SAME = 0.05


class Augmentation:
    """Moves the pixels of noisy items, at random for each item and epoch.

    What happens to an item is a pure function of ``(seed, epoch, index)``: interrupted and resumed runs agree.

    Args:
        names: In the order in which they are applied: ``hflip`` (left-right, one time in two), ``vflip``
            (up-down, one time in two), ``rot90`` (0 to 3 quarter turns; square images only), ``shift:<n>`` (up to
            ``n`` pixels in both directions; what leaves on one side comes in on the other), ``crop:<n>``
            (a random ``n`` x ``n`` part; this one changes the shape).
        seed: The user's seed.

    Raises:
        UserError: A name is unknown, or its size is missing.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.seed = seed
        self.steps = [self._parse(name) for name in names]
        self._tables: dict[int, np.ndarray] = {}

    @staticmethod
    def _parse(text: str) -> tuple[str, int]:
        name, _, size = text.partition(":")
        if name in _PLAIN and not size:
            return name, 0
        if name in _SIZED and size.isdigit() and int(size) > 0:
            return name, int(size)
        raise UserError(
            f"data.augment: {text!r} is not allowed after the noise, where only hflip, vflip, rot90, shift:<pixels> "
            "and crop:<pixels> keep white noise white: use those, or a deterministic data.transform before the noise"
        )

    @property
    def crops(self) -> bool:
        """Whether one of the steps takes a part, so that items may be of different sizes."""
        return any(name == "crop" for name, _ in self.steps)

    def check(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an item afterwards.

        Raises:
            UserError: Items of this shape cannot be augmented so.
        """
        for name, size in self.steps:
            if len(shape) < 3:
                raise UserError(f"data.augment: {name} needs images (C, H, W), but the items have shape {shape}")
            height, width = shape[-2:]
            if name == "rot90" and height != width:
                raise UserError(f"data.augment: rot90 needs square images, but they are {height} x {width}: drop it")
            if name == "crop":
                if size > min(height, width):
                    raise UserError(
                        f"data.augment: crop:{size} does not fit images of {height} x {width}: choose a smaller crop"
                    )
                shape = (*shape[:-2], size, size)
        return shape

    def check_correlation(self, correlation: Correlation) -> None:
        """Makes sure that noise of this correlation has the same one afterwards.

        Raises:
            UserError: It has another one.
        """
        here = torch.atleast_2d(correlation.autocorrelation)
        moved = {"hflip": here.flip(-1), "vflip": here.flip(-2), "rot90": here.rot90(1, (-2, -1))}
        for name, _ in self.steps:
            there = moved.get(name, here)
            if there.shape != here.shape or float((there - here).abs().max()) > _SAME:
                raise UserError(
                    f"data.augment: {name} changes the correlation of the noise (data.correlation), which is not the "
                    "same in that direction: drop it"
                )

    def for_evaluation(self) -> Augmentation:
        """The part that changes the shape, which evaluation data must go through too."""
        other = Augmentation([], self.seed)
        other.steps = [step for step in self.steps if step[0] == "crop"]
        return other

    def _draws(self, epoch: int, highest: int) -> np.ndarray:
        """Numbers uniform on [0, 1) for all items of an epoch, ``(more than highest, steps, 2)``."""
        table = self._tables.get(epoch)
        if table is None or len(table) <= highest:
            # Drawn row by row from one generator: a longer table starts with the shorter one.
            count = 1 << highest.bit_length()
            table = item_generator(self.seed, "augment", epoch).random((count, len(self.steps), 2))
            self._tables[epoch] = table
            # A loader may be one epoch ahead.
            while len(self._tables) > max(2, _KEPT // table.size):
                del self._tables[next(iter(self._tables))]
        return table

    def __call__(self, tensors: Sequence[Tensor], indices: Sequence[int], epochs: Sequence[int]) -> list[Tensor]:
        """Moves the pixels of all tensors alike.

        Args:
            tensors: Each ``(B, ..., H, W)``: the noisy items, and what belongs to their pixels (a map of the noise
                level, the clean items).
            indices: Number of each item in its data set, length ``B``.
            epochs: The epoch in which each item is seen, length ``B``.

        Returns:
            The tensors, moved; new ones where anything moved.
        """
        if not self.steps:
            return list(tensors)
        items, times = np.asarray(indices), np.asarray(epochs)
        u = np.empty((len(items), len(self.steps), 2))
        for epoch in set(epochs):
            its = times == epoch
            u[its] = self._draws(epoch, int(items.max()))[items[its]]
        moved = [x.numpy() for x in tensors]
        for k, (name, size) in enumerate(self.steps):
            moved = [_move(x, name, size, u[:, k]) for x in moved]
        return [torch.from_numpy(x) for x in moved]


def _move(x: NDArray[Any], name: str, size: int, u: NDArray[np.float64]) -> NDArray[Any]:
    """One step, for a whole batch ``(B, ..., H, W)``; NumPy copies parts of arrays faster than torch."""
    if name in ("hflip", "vflip"):
        moved, those = x.copy(), u[:, 0] < 0.5
        moved[those] = np.flip(x[those], -1 if name == "hflip" else -2)
        return moved
    if name == "rot90":
        moved, turns = x.copy(), (u[:, 0] * 4).astype(int)
        for k in (1, 2, 3):
            moved[turns == k] = np.rot90(x[turns == k], k, (-2, -1))
        return moved
    if name == "shift":
        # A part of the image that goes on on the other side of each edge.
        by, shape = np.floor(u * (2 * size + 1)).astype(int) - size, x.shape[-2:]
        return _parts(np.pad(x, [(0, 0)] * (x.ndim - 2) + [(size, size)] * 2, mode="wrap"), size - by, shape)
    return _parts(x, np.floor(u * (np.array(x.shape[-2:]) - size + 1)).astype(int), (size, size))


def _parts(x: NDArray[Any], corners: NDArray[np.int_], shape: tuple[int, ...]) -> NDArray[Any]:
    """Of each image the part of a shape whose first pixel is at a corner, ``(B, 2)``."""
    parts = np.lib.stride_tricks.sliding_window_view(x, shape, axis=(-2, -1))
    return parts[np.arange(len(x)), ..., corners[:, 0], corners[:, 1], :, :]
