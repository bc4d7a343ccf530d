"""Reads every image once. Nothing else in this package knows how images are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_tweedie.data.images import ImageFiles, open_files
from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.estimation import choose_images
from lightning_tweedie.noise.patches import SIDE, Patches, take_patches

__all__ = ["BINS", "CROP", "Survey", "survey"]

BINS = 128
"""Of the histogram of values, at most."""
CROP = 64
"""Larger images are trained on in parts of this side."""
_SHOWN = 12
#: Floats that never go below the first, or go beyond the second, are not on the scale of [-1, 1].
_LEAST_LOW, _FAR = -0.05, 10.0


@dataclass
class Survey:
    """What a set of images consists of.

    Attributes:
        root: The folder, the archive or the file, as an absolute path.
        key: The array that was read, where a file has several.
        range: Which values become [-1, 1] of files of 16 bits that use fewer; None: all that their type can hold.
        count: Number of images that could be read.
        unreadable: For each file that could not be read, what is wrong with it.
        sizes: How many images there are of each (height, width).
        kinds: How many there are of each type of numbers.
        channels: 1 if all images are grey, 3 if there is colour, else as many as they have.
        low: The smallest value.
        high: The largest value.
        edges: Edges of the histogram's bins; where values have steps, as many steps in each.
        histogram: Share of the values in each bin.
        names: Names of the images that ``patches`` are from.
        patches: Patches of them.
        shown: Some images, ``(C, H, W)`` in [-1, 1] but for the noise.
    """

    root: Path
    key: str | None = None
    range: list[float] | None = None
    count: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    channels: int = 1
    low: float = float("inf")
    high: float = float("-inf")
    edges: Any = None
    histogram: Any = None
    names: list[str] = field(default_factory=list)
    patches: Patches = None  # type: ignore[assignment]
    shown: list[Tensor] = field(default_factory=list)

    @property
    def smallest(self) -> tuple[int, int]:
        """The least height and the least width of any image."""
        return min(h for h, _ in self.sizes), min(w for _, w in self.sizes)

    @property
    def unit(self) -> str:
        """That of sigma: ``[-1, 1]``, the scale to which images are brought, or ``data``, the units of the files."""
        return "[-1, 1]" if self.scaled else "data"

    @property
    def scaled(self) -> bool:
        """Whether all is on the scale of [-1, 1]: 8 and 16 bits are brought there, others may be in their own units."""
        others = [kind for kind in self.kinds if "-bit" not in kind]
        near = self.low <= _LEAST_LOW and max(-self.low, self.high) <= _FAR
        return not others or (near and all("float" in kind for kind in others))


def survey(path: str | Path, seed: int = 0, key: str | None = None, channels: int | None = None) -> Survey:
    """Reads all images of a folder or an archive, and takes patches of them, or of as many as are enough.

    Args:
        path: The folder, a tar or zip archive, or one file with many images.
        seed: Decides which images and patches are looked at closely.
        key: Which array of a file, where there may be several.
        channels: Channels of an image, where a file does not say which axis they are.

    Raises:
        UserError: There is no such place, no image in it can be read, or none has 8 x 8 pixels.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{str(path)!r} does not exist: give a folder or an archive of images")
    images = open_files(place, channels=channels, key=key)
    found = Survey(place.resolve(), key, _range_in_use(images), channels=_channels(images))
    chosen = choose_images(len(images), max(3, found.channels), seed)
    found.patches = take_patches(_read_all(images, found, {*chosen}), len(chosen), seed)
    if found.channels == 1:
        found.patches = found.patches.first_channel()
    counts, edges = np.histogram(found.patches.values.numpy(), bins=_bins(found.patches))
    found.edges, found.histogram = edges, counts / max(1, counts.sum())
    return found


def _channels(images: ImageFiles) -> int:
    """How many the first image has that can be opened; 1 also of colour, until some is seen."""
    for number, _ in images.items:
        try:
            channels = images.open(number)[1].channels
            return 1 if channels == 3 else channels
        except UserError:
            continue  # It is told when the image is looked at.
    return 1


def _bins(patches: Patches) -> int | NDArray[Any]:
    """Edges of a histogram. With other numbers of steps in its bins it would be a comb."""
    step = patches.step()
    if step is None:
        return BINS
    low, high = float(patches.values[0]), float(patches.values[-1])
    levels = round((high - low) / step) + 1
    each = -(-levels // BINS)
    return low + step * (each * np.arange(-(-levels // each) + 1) - 0.5)


def _range_in_use(images: ImageFiles) -> list[float] | None:
    """The range of as many bits as files of 16 bits use, such as [0, 4095] of a camera's 12; None if it is all."""
    highest = 0
    for number in range(len(images)):
        try:
            image = images.find(number)
        except UserError:
            continue  # It is told when the image is looked at.
        if image.dtype != np.uint16 or int(image.max(initial=0)) >> 15:
            return None
        highest = max(highest, int(image.max(initial=0)))
    return [0.0, float((1 << highest.bit_length()) - 1)] if highest else None


def _read_all(images: ImageFiles, found: Survey, chosen: set[int]) -> Iterator[Tensor]:
    """Reads all images, notes what they are, and hands on those of which patches are taken."""
    from tqdm import tqdm

    reasons = []
    for number in tqdm(range(len(images)), desc="reading", unit="image"):
        name = images.names[number]
        try:
            kind, image = _read(images, number, found.range)
            if not bool(image.isfinite().all()):
                raise UserError(f"{images.describe(number)} has values that are not finite: mend or remove the file")
            if found.channels not in (1, 3, len(image)) or (found.channels in (1, 3) and len(image) not in (1, 3)):
                raise UserError(
                    f"{images.describe(number)} has {len(image)} channels but others have {found.channels}: keep one "
                    "kind"
                )
        except UserError as error:
            found.unreadable[name] = str(error)
            reasons.append(str(error))
            continue
        found.count += 1
        found.kinds[kind] += 1
        found.sizes[(image.shape[1], image.shape[2])] += 1
        found.low, found.high = min(found.low, float(image.min())), max(found.high, float(image.max()))
        if image.shape[0] == 3 and not bool((image == image[:1]).all()):
            found.channels = 3
        if len(found.shown) < _SHOWN:
            found.shown.append(image)
        if number in chosen and min(image.shape[1:]) >= SIDE:
            found.names.append(name)
            yield image.expand(3, -1, -1) if len(image) == 1 and found.channels in (1, 3) else image
    if not found.count:
        raise UserError(f"none of the {len(images)} images can be read, the first one because {reasons[0]}")
    if not found.names:
        raise UserError(
            f"the images have fewer than {SIDE} x {SIDE} pixels, too few to tell noise from image: give larger ones"
        )


def _read(images: ImageFiles, number: int, limits: list[float] | None) -> tuple[str, Tensor]:
    """What sort of numbers an image holds, and it on the scale of these limits or of their type, if they have one."""
    found = images.find(number)
    if found.dtype.kind not in "iuf":
        raise UserError(f"{images.describe(number)} holds {found.dtype}: give integers or floating point numbers")
    scale = DataScale.natural(found.dtype) or DataScale(-1.0, 1.0, found.dtype.name)
    if limits is not None:
        scale = DataScale.declared(limits, found.dtype)
    bits = {"uint8": "8-bit", "uint16": "16-bit"}.get(found.dtype.name)
    sort = {1: "grey", 3: "colour"}.get(len(found), f"of {len(found)} channels")
    return f"{bits} {sort}" if bits else found.dtype.name, scale.scaled(found)


def stacked(images: list[Tensor]) -> Tensor:
    """Images cut to the smallest among them, from their middle, as one tensor in colours.

    Of other numbers of channels than grey and colour the first one is seen.
    """
    height, width = (min(image.shape[axis] for image in images) for axis in (1, 2))
    parts = []
    for image in images:
        top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
        seen = image if len(image) == 3 else image[:1]
        parts.append(seen[:, top : top + height, left : left + width].expand(3, -1, -1))
    return torch.stack(parts)
