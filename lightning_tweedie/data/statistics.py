"""The spread of the clean data, found without seeing them."""

from __future__ import annotations

import math

import torch

from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.data.sampler import Draw
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["estimate_sigma_data"]

#: Values read at most: the standard error is far below what the preconditioning would notice.
_VALUES = 1 << 24
_FEWEST = 256


def estimate_sigma_data(dataset: NoisyDataset, seed: int = 0) -> float:
    """Standard deviation of the clean data, from noisy ones: ``sqrt(Var(x_n) - E[sigma_n^2])``.

    Noise and data are independent, so their variances add. The variance is that of all values of all items about
    their common mean.

    Args:
        dataset: Noisy items with known levels.
        seed: Chooses the items that are read, if there are too many to read them all.

    Returns:
        ``sigma_data > 0``, on the scale of the data.

    Raises:
        UserError: The noise is larger than the spread of the noisy data.
    """
    values = math.prod(dataset.shape)
    count = min(len(dataset), max(_FEWEST, _VALUES // values))
    rows = sorted(item_generator(seed, "sigma_data", 0).permutation(len(dataset))[:count].tolist())
    # Of a few large images several parts are looked at.
    looks = math.ceil(_FEWEST / count) if dataset.augmentation.crops else 1
    draws = [Draw(row, look) for look in range(looks) for row in rows]
    mean = square = noise = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(draws), dataset.chunk):
        batch = dataset.__getitems__(draws[start : start + dataset.chunk])
        x = batch.x_n.double()
        share = len(x) / len(draws)
        mean = mean + share * x.mean()
        square = square + share * x.square().mean()
        noise = noise + share * batch.sigma_n.double().square().mean()
    total = float(square - mean.square())
    variance = total - float(noise)
    if not variance > 0:
        raise UserError(
            f"data.sigma = {math.sqrt(float(noise)):.4g} is larger than the whole spread of the noisy data, "
            f"{math.sqrt(max(total, 0)):.4g}: the level is wrong or on another scale (it belongs to data in [-1, 1]; "
            "8-bit units are divided by 127.5)"
        )
    return math.sqrt(variance)
