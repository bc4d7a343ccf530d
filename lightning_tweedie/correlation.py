"""Stationary correlated noise, and the coordinates in which its elements are independent.

On a periodic grid a covariance that is the same everywhere is diagonal in the discrete Hartley transform, which is
real, orthogonal and its own inverse. There correlated noise is independent noise with a level for each coordinate,
white noise stays white, and distances stay what they are. So all that is right for maps of the level is right for
correlated noise, if the data are in these coordinates and the denoiser is asked in the data's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["Correlation"]

_NEGATIVE = 0.05
"""Share of the power that may come out negative: that of an estimate does, where there is next to none."""


class Correlation:
    """Correlation of noise between the elements of an item, the same everywhere in it.

    Args:
        autocovariance: Covariance of two elements by their distance, with distance zero in the middle: odd lengths, the
            same in the opposite direction. Its axes are the last ones of the items, ``(h, w)`` for images, ``(l,)`` for
            signals; what lies along the others, such as channels, is independent. Only its shape counts; how strong the
            noise is, says the standard deviation of an element, ``sigma_n``.

    Attributes:
        autocorrelation: The same, 1 at distance zero, float64.

    Raises:
        UserError: It is no autocovariance.
    """

    def __init__(self, autocovariance: Tensor | NDArray) -> None:
        given = torch.as_tensor(autocovariance).double()
        if given.ndim == 0 or any(length % 2 == 0 for length in given.shape):
            raise UserError(
                f"an autocovariance of shape {tuple(given.shape)} has no middle for distance zero: give odd lengths"
            )
        variance = given[tuple(length // 2 for length in given.shape)]
        opposite = given.flip(tuple(range(given.ndim)))
        # Written so that NaN fails too.
        if not (variance > 0 and bool((given.abs() <= variance * (1 + 1e-6)).all())):
            raise UserError(
                "an autocovariance is largest in the middle, where it is the variance, and this one is not: put "
                "distance zero there"
            )
        if not torch.allclose(given, opposite, rtol=0, atol=1e-3 * float(variance)):
            raise UserError(
                "an autocovariance is the same in opposite directions, and this one is not: give the covariance of two "
                "elements, not a kernel that noise has been through"
            )
        self.autocorrelation = (given + opposite) / (2 * variance)

    def hartley(self, x: Tensor) -> Tensor:
        """Items ``(B, *shape)`` in Hartley coordinates, or back: twice is once."""
        spectrum = torch.fft.fftn(x, dim=tuple(range(-self.autocorrelation.ndim, 0)), norm="ortho")
        return spectrum.real - spectrum.imag

    def around(self, denoiser: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """A denoiser of points in Hartley coordinates, which answers there too."""
        return lambda x, sigma: self.hartley(denoiser(self.hartley(x), sigma))

    def amplitudes(self, shape: Sequence[int]) -> Tensor:
        """Standard deviation of noise with ``sigma_n = 1`` in each Hartley coordinate, ``(*shape)``, float64.

        Their squares are the eigenvalues of the covariance and have the mean 1. The grid is periodic: elements at
        opposite ends are neighbours.

        Raises:
            UserError: Items of this shape have fewer axes, or no noise has this autocovariance.
        """
        axes = self.autocorrelation.ndim
        if axes > len(shape):
            raise UserError(f"an autocovariance with {axes} axes does not fit items of shape {tuple(shape)}")
        around = torch.zeros(tuple(shape[-axes:]), dtype=torch.float64)
        distances = [torch.arange(length) - length // 2 for length in self.autocorrelation.shape]
        places = torch.meshgrid(*(d % length for d, length in zip(distances, around.shape, strict=True)), indexing="ij")
        around.index_put_(places, self.autocorrelation, accumulate=True)
        power = torch.fft.fftn(around).real
        if (negative := float(-power.clamp(max=0).sum() / power.abs().sum())) > _NEGATIVE:
            raise UserError(
                f"no noise has this autocovariance, because {negative:.0%} of its power would be negative: it is cut "
                "off too near, or estimated from too little"
            )
        power = power.clamp(min=0)
        return (power / power.mean()).sqrt().expand(tuple(shape))

    def levels(self, sigma_n: Tensor, like: Tensor) -> Tensor:
        """Noise level of each Hartley coordinate of items.

        Args:
            sigma_n: Standard deviation of an element, ``(B,)``.
            like: The items ``(B, *shape)``.

        Returns:
            ``(B, *shape)``, in the dtype and on the device of ``like``.

        Raises:
            UserError: The level differs between elements.
        """
        if sigma_n.ndim != 1:
            raise UserError(
                "correlated noise has one sigma for each item, not a map of it: give the one or the correlation"
            )
        return sigma_n.reshape(-1, *[1] * (like.ndim - 1)).to(like) * self.amplitudes(like.shape[1:]).to(like)

    def largest(self, shape: Sequence[int]) -> float:
        """Level of the white noise that covers noise with ``sigma_n = 1`` in items of this shape, ``>= 1``."""
        return float(self.amplitudes(shape).max())

    def colour(self, z: Tensor) -> Tensor:
        """White noise ``(B, *shape)`` made into noise of this correlation and of the same variance."""
        return self.hartley(self.amplitudes(z.shape[1:]).to(z) * self.hartley(z))
