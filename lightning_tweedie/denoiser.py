"""The denoiser: a preconditioned network that answers with the expected clean datum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_tweedie.errors import UserError
from lightning_tweedie.preconditioning import edm_preconditioning
from lightning_tweedie.tweedie import expand

__all__ = ["Denoiser"]


class Denoiser(nn.Module):
    """``D(x, sigma) = E[x_0 | x_0 + sigma z = x]``, EDM-preconditioned (2206.00364).

    The scalings are computed in the dtype of the input; under autocast only the backbone runs in
    lower precision.

    Args:
        backbone: Raw network, called as ``backbone(x, c_noise)`` with ``x`` of shape ``(B, *shape)`` at
            unit variance and ``c_noise = ln(sigma) / 4`` of shape ``(B,)``; answers in the shape of ``x``.
        sigma_data: Standard deviation of the clean data on the scale of the data. Leave it out to have
            the data module's estimate filled in.
    """

    sigma_data: Tensor

    def __init__(self, backbone: nn.Module, sigma_data: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("sigma_data", torch.tensor(math.nan))
        if sigma_data is not None:
            self.set_sigma_data(sigma_data)

    @property
    def has_sigma_data(self) -> bool:
        """Whether ``sigma_data`` is known yet."""
        return not bool(self.sigma_data.isnan())

    def set_sigma_data(self, sigma_data: float) -> None:
        """Fills in the standard deviation of the clean data, ``> 0``."""
        if not sigma_data > 0:
            raise UserError(
                f"sigma_data = {sigma_data} must be a positive number: the standard deviation of clean data"
            )
        self.sigma_data.fill_(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The expected clean datum.

        Args:
            x: Noisy data ``(B, *shape)``.
            sigma: Noise level of each item, a number or ``(B,)``, ``> 0``, on the scale of the data.

        Returns:
            ``E[x_0 | x]``, ``(B, *shape)``, in the dtype of ``x``.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        c = edm_preconditioning(sigma, self.sigma_data.to(x.dtype))
        raw = self.backbone(expand(c.c_in, x) * x, c.c_noise)
        return expand(c.c_skip, x) * x + expand(c.c_out, x) * raw.to(x.dtype)
