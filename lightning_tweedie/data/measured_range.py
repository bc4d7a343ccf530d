"""A range of values that suits images of no known scale."""

from __future__ import annotations

import numpy as np

from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.data.scaled_images import ScaledImages
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["measure_scale"]

#: Values looked at in all and images at least.
_VALUES, _FEWEST = 1 << 24, 64
#: The share of values on each side that may lie beyond [-1, 1], and how far beyond.
_TAIL, _FAR = 0.001, 10.0


def measure_scale(images: ScaledImages, whole: bool, seed: int = 0) -> DataScale:
    """Finds the scale of images whose type does not say it.

    Args:
        images: The images.
        whole: Whether [-1, 1] is to hold every value of every image, as clean images must. Noisy ones may go beyond:
            there it holds all but one value in a thousand on either side, so that a hot pixel does not press the others
            together, and is wide enough that no value seen is farther out than 10.
        seed: Chooses the images that are looked at where it need not be all.

    Raises:
        UserError: All values are the same.
    """
    count = len(images)
    if not whole:
        count = min(count, max(_FEWEST, _VALUES // images.raw(0).size))
    rows = sorted(item_generator(seed, "range", 0).permutation(len(images))[:count].tolist())
    share = max(1, _VALUES // count)
    low, high, some = np.inf, -np.inf, []
    for row in rows:
        values = images.raw(row).reshape(-1)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not whole:
            some.append(values[:: max(1, -(-values.size // share))].astype(np.float64))
    if not low < high:
        raise UserError(f"all values of {images.describe(0)} and the others are {low:g}: there is nothing to learn")
    if whole:
        return DataScale(low, high, images.dtype.name)
    left, right = np.quantile(np.concatenate(some), [_TAIL, 1 - _TAIL])
    middle, half = (left + right) / 2, (right - left) / 2
    half = max(half, max(high - middle, middle - low) / _FAR)
    return DataScale(float(middle - half), float(middle + half), images.dtype.name)
