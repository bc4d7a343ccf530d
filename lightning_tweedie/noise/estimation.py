"""The level of white Gaussian noise, from noisy images alone.

Of all patches those are taken whose low frequencies hold least energy, where the images are flat, and the noise is
measured in their high frequencies; the median over these leaves out what an image has there, and a camera. After
Ponomarenko et al. 2007 and Colom and Buades 2013 (doi 10.5201/ipol.2013.45). The patches of all images are one pool, so
that one flat corner anywhere serves the whole set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.patches import SIDE, Patches, most_images, take_patches
from lightning_tweedie.randomness import item_generator

__all__ = [
    "HIGH",
    "NoiseEstimate",
    "bootstrap",
    "choose_images",
    "estimate_noise",
    "estimate_of_set",
    "flatness",
    "measurable",
    "quietest",
]

_SUM = torch.arange(SIDE)[:, None] + torch.arange(SIDE)
HIGH = _SUM >= SIDE
"""The frequencies of a patch in which noise is measured, ``(8, 8)``."""
LOW = (_SUM > 0) & ~HIGH
"""Those by which patches are chosen."""
OVERLAP = 0.25
"""Patches that overlap by half count this much as independent ones."""

#: The share of all patches that is taken, and at least so many.
_SHARE, _FEWEST = 0.02, 64
#: From one image alone, where there are few.
_SHARE_OF_ONE, _FEWEST_OF_ONE = 0.1, 16
_RESAMPLES = 50
#: In units of sigma: that far from an end where values were cut off, the noise is whole.
_MARGIN = 3.0


@dataclass(frozen=True)
class NoiseEstimate:
    """A noise level with its uncertainty, on the scale of the images.

    Attributes:
        sigma: Standard deviation of the noise.
        standard_error: Of ``sigma``, by the bootstrap over images. What texture adds is not in it.
        per_image: The estimate from each image alone, ``(I,)``; NaN where an image has nothing to measure it in. That
            of an image full of texture is too large.
        whole: Share of the patches in which the noise is whole; 0 if it is cut off nearly everywhere, and then
            ``sigma`` is too small.
    """

    sigma: float
    standard_error: float
    per_image: Tensor
    whole: float


def quietest(
    order: Tensor, weights: Tensor | None = None, share: float = _SHARE, fewest: int = _FEWEST
) -> tuple[Tensor, Tensor]:
    """The patches with the least energy.

    Args:
        order: The numbers of all patches in the order of their energy, ``(N,)``.
        weights: How often each counts, ``(N,)``; once when absent.
        share: How many are taken, as a share of all.
        fewest: But at least so many.

    Returns:
        Their numbers ``(K,)``, and their shares ``(K,)``, which sum to 1.
    """
    ordered = torch.ones(len(order), dtype=torch.float64) if weights is None else weights[order].double()
    total = ordered.cumsum(0)
    # The one that reaches the limit is in.
    taken = (total - ordered < max(fewest, share * float(total[-1]))) & (ordered > 0)
    return order[taken], ordered[taken] / ordered[taken].sum()


def flatness(patches: Patches) -> Tensor:
    """The numbers of all patches, the flattest first, ``(N,)``."""
    return patches.energies[:, LOW].mean(1).argsort(stable=True)


def _level(patches: Patches, order: Tensor, weights: Tensor | None = None) -> float:
    chosen, shares = quietest(order, weights)
    return _root_median(patches, chosen, shares)


def _root_median(patches: Patches, chosen: Tensor, shares: Tensor) -> float:
    high = patches.energies[chosen][:, HIGH].double()
    return math.sqrt(float((shares[:, None] * high).sum(0).median()))


def measurable(patches: Patches) -> Patches:
    """Those patches in which noise is whole: not constant, and not cut off at an end of the range. There may be none.

    Args:
        patches: Of all images.

    Raises:
        UserError: All images are constant.
    """
    varied = (patches.high > patches.low).all(1)
    if not varied.any():
        raise UserError("the images are all flat, so there is no noise to estimate: give its level as a number")
    lower, upper = patches.clipped()
    low, high = float(patches.values[0]), float(patches.values[-1])

    def inside(margin: float) -> Tensor:
        """What is chosen by its values has a little too little noise; by the mean of a patch, all of it."""
        above = (patches.low > low).all(1) & (patches.means > low + margin).all(1)
        below = (patches.high < high).all(1) & (patches.means < high - margin).all(1)
        return varied & (above if lower else varied) & (below if upper else varied)

    whole = inside(0.0)
    for _ in range(2 if lower or upper else 0):
        if int(whole.sum()) >= _FEWEST:
            kept = patches[whole]
            whole = inside(_MARGIN * _level(kept, flatness(kept)))
    return patches[whole if int(whole.sum()) >= _FEWEST else torch.zeros_like(whole)]


def bootstrap(patches: Patches, measure: Callable[[Tensor], Tensor], seed: int) -> Tensor:
    """Standard error of what depends on which images there are.

    Args:
        patches: The patches.
        measure: From how often each patch counts, ``(N,)``, to a tensor.
        seed: Decides the resamples.

    Returns:
        The standard error of each entry of the tensor; infinite if there is but one unit.
    """
    units = int(patches.unit.max()) + 1
    draw = item_generator(seed, "noise/bootstrap", 0)
    results = []
    for _ in range(_RESAMPLES if units > 1 else 0):
        times = torch.bincount(torch.from_numpy(draw.integers(units, size=units)), minlength=units)
        counts = times[patches.unit]
        if counts.any():
            results.append(measure(counts))
    if not results:
        return torch.full_like(measure(torch.ones(len(patches))), math.inf)
    return torch.stack(results).std(0)


def estimate_noise(patches: Patches, seed: int = 0) -> NoiseEstimate:
    """The level of white Gaussian noise of the images that patches are from.

    It is too small for noise that is correlated between pixels, which lacks high frequencies, see
    :mod:`lightning_tweedie.noise.assumptions`; and too large where no part of any image is flat.

    Args:
        patches: Of all images, see :func:`lightning_tweedie.noise.patches.take_patches`.
        seed: Decides the resamples of the standard error.

    Raises:
        UserError: All images are constant.
    """
    kept = measurable(patches)
    whole = len(kept) / len(patches)
    # Where noise is cut off everywhere, there is nothing better.
    patches = kept if len(kept) else patches
    order = flatness(patches)
    sigma = _level(patches, order)
    error = float(bootstrap(patches, lambda counts: torch.tensor(_level(patches, order, counts)), seed))
    independent = max(1.0, OVERLAP * len(quietest(order)[0]) * patches.coefficients.shape[1])
    least = sigma / math.sqrt(2 * independent * int(HIGH.sum()))
    return NoiseEstimate(sigma, max(least, error if math.isfinite(error) else 0.0), _per_image(patches), whole)


def _per_image(patches: Patches) -> Tensor:
    result = torch.full((patches.images,), math.nan)
    low = patches.energies[:, LOW].mean(1)
    first = 0
    for number, count in enumerate(torch.bincount(patches.image, minlength=patches.images).tolist()):
        if count >= _FEWEST_OF_ONE:  # patches are in the order of the images
            order = first + low[first : first + count].argsort(stable=True)
            result[number] = _root_median(patches, *quietest(order, None, _SHARE_OF_ONE, _FEWEST_OF_ONE))
        first += count
    return result


def choose_images(total: int, channels: int, seed: int = 0) -> list[int]:
    """The numbers of those images, out of ``total``, from which noise is estimated: all, or as many as are enough."""
    count = min(total, most_images(channels))
    return sorted(item_generator(seed, "noise/images", 0).permutation(total)[:count].tolist())


def estimate_of_set(images: Any, seed: int = 0) -> NoiseEstimate:  # noqa: ANN401
    """As :func:`estimate_noise`, of a map-style set of images ``(C, H, W)``.

    Args:
        images: The set; of a large one a part is read, chosen by the seed.
        seed: Decides what is read.

    Raises:
        UserError: The items are no images, too small, or constant.
    """
    chosen = choose_images(len(images), images[0].shape[0] if images[0].ndim == 3 else 1, seed)
    return estimate_noise(take_patches((images[i] for i in chosen), len(chosen), seed), seed)
