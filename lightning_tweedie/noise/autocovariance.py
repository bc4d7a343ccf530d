"""The autocovariance of stationary noise, estimated where there is nothing but noise, and read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.errors import UserError

__all__ = ["estimate_autocovariance", "read_correlation"]


def estimate_autocovariance(regions: ArrayLike, reach: int | Sequence[int]) -> NDArray[np.float64]:
    """Autocovariance of the noise in flat or blank regions, without bias if it reaches no further.

    The mean of each region is taken for what is below the noise. With it goes a part of the noise; how much at each
    distance is linear in the autocovariance, which is solved for that.

    Args:
        regions: Parts of images of one size, ``(N, ..., h, w)``, or of signals: constant but for the noise. What lies
            along the axes before, such as channels, is taken for further regions.
        reach: The largest distance at which elements are correlated, one number for the two axes of images, or one for
            each of the last axes, ``(reach,)`` for signals.

    Returns:
        ``(2 reach + 1, 2 reach + 1)``, distance zero in the middle. There it is the variance of the noise, whose root
        is ``sigma``, in the units of the regions.

    Raises:
        UserError: The regions are not numbers, or smaller than twice the reach.
    """
    reaches = (reach, reach) if isinstance(reach, int) else tuple(reach)
    values = np.asarray(regions, np.float64)
    size = values.shape[-len(reaches) :]
    if values.ndim <= len(reaches) or not np.isfinite(values).all():
        raise UserError(f"regions of shape {values.shape} must be several, of finite numbers: give (N, ..., h, w)")
    if min(reaches) < 0 or any(length <= 2 * r for length, r in zip(size, reaches, strict=True)):
        raise UserError(
            f"regions of {size} are too small for reach = {reaches}: each side must be more than twice that"
        )
    axes = tuple(range(-len(reaches), 0))
    noise = values - values.mean(axis=axes, keepdims=True)
    # Room for what would come in from the other end.
    padded = tuple(length + r for length, r in zip(size, reaches, strict=True))
    power = np.abs(np.fft.fftn(noise, padded, axes)) ** 2
    products = np.fft.ifftn(power.reshape(-1, *padded).mean(0)).real
    distances = [np.arange(-r, r + 1) for r in reaches]
    # Of all pairs at a distance: how many there are, and the share whose first element has one at each other distance.
    pairs = share = np.ones((1, 1))
    for length, distance in zip(size, distances, strict=True):
        inside = (np.arange(length) + distance[:, None]) % (4 * length) < length
        both = (inside[:, None] & inside).sum(2)
        pairs = np.kron(pairs, inside.sum(1))
        share = np.kron(share, both / inside.sum(1)[:, None])
    found = products[np.ix_(*distances)]
    count = np.prod(size)
    # With the mean m: E (z_i - m) (z_j - m) = c - E z_i m - E z_j m + E m^2.
    mixed = np.eye(found.size) - (share + share[::-1]) / count + pairs / count**2
    return np.linalg.solve(mixed, found.ravel() / pairs[0]).reshape(found.shape)


def read_correlation(path: str, name: str = "data.correlation") -> Correlation:
    """Reads an autocovariance from a ``.npy`` file.

    Args:
        path: The file, see :class:`~lightning_tweedie.correlation.Correlation`.
        name: The setting's name, for messages.

    Raises:
        UserError: It is not there, or is no autocovariance.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"{name} = {path!r} does not exist: give a .npy file with the autocovariance of the noise")
    try:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.number) or array.dtype.kind == "c":
            raise ValueError("no array of real numbers")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{name} = {path!r} cannot be read ({error}): give a .npy file with the autocovariance of the noise"
        ) from None
    try:
        return Correlation(array.astype(np.float64))
    except UserError as error:
        raise UserError(f"{name} = {path!r}: {error}") from None
