"""Small patches of noisy images, taken apart into frequencies: the material of which noise is estimated.

White noise is independent between the coefficients of an orthonormal cosine transform and has the same variance in
each, while images have most of theirs in the low frequencies. So patches can be chosen by some coefficients, where
least of an image is, and the noise be measured in the others: the choice says nothing about the noise there, hence no
bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["SIDE", "Patches", "cosine_basis", "most_images", "take_patches"]

SIDE = 8
"""Pixels of a patch in each direction."""

_STRIDE = 4
#: Patches in all, and the fewest of an image: enough for a standard error of a thousandth, in about 100 MB.
_TOTAL, _FEWEST = 250_000, 64
#: Pixel values in all that are looked at for ends of the range and for steps between levels.
_VALUES = 1 << 22
#: An image is looked at in blocks of this size: where there are few images they stand in for them.
_BLOCK = 64
_FEW_IMAGES = 8
#: A level at an end of the range is a spike if it holds that many times as many values as the levels next to it.
_SPIKE, _LEAST_SPIKE = 4.0, 20


def most_images(channels: int) -> int:
    """So many images are enough; more would leave fewer than 64 patches of each."""
    return _TOTAL // (_FEWEST * channels)


def cosine_basis() -> Tensor:
    """Orthonormal cosines, a row for each frequency, ``(8, 8)`` float64."""
    k = torch.arange(SIDE, dtype=torch.float64)
    basis = torch.cos(math.pi / SIDE * (k + 0.5) * k[:, None]) * math.sqrt(2 / SIDE)
    basis[0] /= math.sqrt(2)
    return basis


@dataclass
class Patches:
    """Patches of ``I`` images with ``C`` channels.

    Attributes:
        coefficients: Cosine coefficients, ``(N, C, 8, 8)`` float32; the first is 8 times the patch's mean.
        low: Smallest value of each patch, ``(N, C)``.
        high: Largest value of each patch, ``(N, C)``.
        image: Number of the image that each patch is from, ``(N,)``.
        unit: As ``image``, but parts of images where there are few: what may be taken for independent, ``(N,)``.
        values: Values of pixels drawn from all images, sorted.
        images: Number of images ``I``.
    """

    coefficients: Tensor
    low: Tensor
    high: Tensor
    image: Tensor
    unit: Tensor
    values: Tensor
    images: int

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Tensor) -> Patches:
        """Some of the patches."""
        numbers = self.image[rows], self.unit[rows], self.values, self.images
        return Patches(self.coefficients[rows], self.low[rows], self.high[rows], *numbers)

    def first_channel(self) -> Patches:
        """Those of the first channel alone, for grey images that were read as colour."""
        numbers = self.image, self.unit, self.values, self.images
        return Patches(self.coefficients[:, :1], self.low[:, :1], self.high[:, :1], *numbers)

    @property
    def means(self) -> Tensor:
        """Mean of each patch, ``(N, C)``."""
        return self.coefficients[:, :, 0, 0] / SIDE

    @cached_property
    def energies(self) -> Tensor:
        """Squared coefficients, averaged over the channels, ``(N, 8, 8)``."""
        return self.coefficients.square().mean(1)

    @cached_property
    def levels(self) -> tuple[Tensor, Tensor]:
        """The values that occur among ``values``, ascending, and how often."""
        return self.values.unique_consecutive(return_counts=True)

    def clipped(self) -> tuple[float, float]:
        """Shares of all values at the lower and the upper end of the range, each 0 unless it is a spike.

        Noise has tails: the lowest value is rare, and those next to it more frequent. Where noise was cut off, what it
        would have had beyond the end is gathered there.
        """
        _, counts = self.levels
        shares = []
        for ordered in (counts, counts.flip(0)):
            if len(ordered) < 3:
                shares.append(0.0)  # two levels are ink on paper
                continue
            at, beside = int(ordered[0]), float(ordered[1:4].double().mean())
            spike = at >= _LEAST_SPIKE and at > _SPIKE * beside
            shares.append(at / len(self.values) if spike else 0.0)
        return shares[0], shares[1]

    def step(self) -> float | None:
        """The distance of neighbouring levels if all values lie on a grid, as those of 8-bit images; else None."""
        levels = self.levels[0].double()
        if not 2 <= len(levels) <= 1 << 16:
            return None
        gaps = levels.diff()
        # Rounding to float32 leaves differences of about 1e-7 where there is one level in truth.
        gaps = gaps[gaps > 4e-7 * float(levels.abs().max())]
        if not len(gaps):
            return None
        step = float(gaps.min())
        off = (gaps / step - (gaps / step).round()).abs().max()
        return step if off < 0.05 and len(levels) < len(self.values) / 4 else None


def take_patches(images: Iterable[Tensor], count: int, seed: int = 0) -> Patches:
    """Takes patches of images, fewer of each the more there are.

    Args:
        images: ``(C, H, W)``, floats on any scale, ``H`` and ``W`` at least 8; ``C`` is the same for all.
        count: How many images there are; at most :func:`most_images` are sensible.
        seed: Decides which patches are taken.

    Raises:
        UserError: There are none, or images are smaller than 8 x 8.
    """
    basis = cosine_basis().float()
    parts: list[tuple[Tensor, ...]] = []
    values: list[Tensor] = []
    for number, image in enumerate(images):
        if image.ndim != 3 or min(image.shape[1:]) < SIDE:
            raise UserError(
                f"noise is estimated from images of at least {SIDE} x {SIDE} pixels, and item {number} has shape "
                f"{tuple(image.shape)}: give its level as a number"
            )
        channels, height, width = image.shape
        share = max(_FEWEST, _TOTAL // (count * channels))
        rows, columns = (height - SIDE) // _STRIDE + 1, (width - SIDE) // _STRIDE + 1
        draw = item_generator(seed, "noise/patches", number)
        chosen = torch.arange(rows * columns)
        if len(chosen) > share:
            chosen = torch.from_numpy(draw.choice(rows * columns, share, replace=False)).sort().values
        top, left = chosen // columns, chosen % columns
        windows = image.float().unfold(1, SIDE, _STRIDE).unfold(2, SIDE, _STRIDE)
        pixels = windows[:, top, left].transpose(0, 1)  # (n, C, 8, 8)
        block = ((top * _STRIDE) // _BLOCK) * 4096 + (left * _STRIDE) // _BLOCK
        parts.append(
            (basis @ pixels @ basis.T, pixels.amin((2, 3)), pixels.amax((2, 3)), torch.full_like(top, number), block)
        )
        flat = image.float().flatten()
        few = max(64, _VALUES // count)
        values.append(flat if len(flat) <= few else flat[torch.from_numpy(draw.integers(len(flat), size=few))])
    if not parts:
        raise UserError("there are no images to estimate noise from: give some")
    coefficients, low, high, image_numbers, block = (torch.cat(part) for part in zip(*parts, strict=True))
    unit = image_numbers if len(parts) >= _FEW_IMAGES else image_numbers * (1 << 24) + block
    return Patches(
        coefficients=coefficients,
        low=low,
        high=high,
        image=image_numbers,
        unit=unit.unique(return_inverse=True)[1],
        values=torch.cat(values).sort().values,
        images=len(parts),
    )
