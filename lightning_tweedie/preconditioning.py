"""EDM preconditioning: scalings that keep the network's input, output and target at unit variance."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Preconditioning", "edm_preconditioning", "edm_weight"]


class Preconditioning(NamedTuple):
    """The four scalings of ``D(x) = c_skip x + c_out F(c_in x, c_noise)``, each of the levels' shape."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: Tensor | float) -> Preconditioning:
    """EDM's scalings (2206.00364, table 1).

    Args:
        sigma: Noise levels, any shape, ``> 0``, on the scale of the data.
        sigma_data: Standard deviation of the *clean* data, on the same scale.

    Returns:
        The scalings. ``c_skip x`` is the best linear estimate of ``x_0``, so the network learns only
        what a Gaussian would not know.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    return Preconditioning(sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total, sigma.log() / 4)


def edm_weight(sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
    """``1 / c_out^2``: the loss weight under which every level starts with the same loss (2206.00364, sec. 5)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
