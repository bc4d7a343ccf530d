"""The denoiser: a preconditioned network that answers with the expected clean datum."""

from __future__ import annotations

import math
from typing import Any

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
        self._has_sigma_data = False
        self.register_buffer("sigma_data", torch.tensor(math.nan))
        if sigma_data is not None:
            self.set_sigma_data(sigma_data)

    @property
    def has_sigma_data(self) -> bool:
        """Whether ``sigma_data`` is known yet."""
        # A GPU is not asked, and waited for, in every step.
        self._has_sigma_data = self._has_sigma_data or not bool(self.sigma_data.isnan())
        return self._has_sigma_data

    def set_sigma_data(self, sigma_data: float) -> None:
        """Fills in the standard deviation of the clean data, ``> 0``."""
        if not sigma_data > 0:
            raise UserError(
                f"sigma_data = {sigma_data} must be a positive number: the standard deviation of clean data"
            )
        self.sigma_data.fill_(sigma_data)
        self._has_sigma_data = True

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the backbone, in place; arguments are those of :func:`torch.compile`.

        The backbone alone, because it is nearly all of the work and because what surrounds it keeps its meaning: the
        preconditioning stays in float32 outside of autocast, and the backbone is always called with two tensors, while
        the level may come here as a number, each of which would be compiled anew. Names of weights stay as they are,
        and copies are not compiled. The size of the batch is no constant of the compiled code. What decides on it is
        the mode: training, the averages without gradient, and in Lightning's validation (``torch.inference_mode``) are
        compiled once each; so is a batch of one item, and on a CPU those under 16, for which PyTorch convolves
        differently.
        """
        self.backbone.compile(*args, **kwargs)

    @property
    def is_compiled(self) -> bool:
        """Whether the backbone is compiled."""
        return self.backbone._compiled_call_impl is not None

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
        scaled = expand(c.c_in, x) * x
        if self.is_compiled:
            for argument in (scaled, c.c_noise):
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        raw = self.backbone(scaled, c.c_noise)
        return expand(c.c_skip, x) * x + expand(c.c_out, x) * raw.to(x.dtype)
