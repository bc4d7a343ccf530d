"""Restoration of a noisy datum: its expected clean version, and draws of what it may have been."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling.samplers import Sampler, SDEDPMSolverPP2M
from lightning_tweedie.tweedie import expand

__all__ = ["one_step", "posterior_samples"]


@torch.no_grad()
def one_step(denoiser: Denoiser, x_n: Tensor, sigma_n: Tensor | float) -> Tensor:
    """``E[x_0 | x_n]``, the estimate of least squared error; clean items (``sigma_n = 0``) stay as they are.

    Args:
        denoiser: A trained denoiser.
        x_n: Noisy data ``(B, *shape)``.
        sigma_n: Their level, a number or ``(B,)``, ``>= 0``.

    Raises:
        UserError: if the level differs between pixels: the denoiser knows white noise only.
    """
    if isinstance(sigma_n, Tensor) and sigma_n.ndim > 1:
        raise UserError(
            "restoration needs one sigma per item, not a map: raise the noise to white noise first, with "
            "lightning_tweedie.kernels.raise_to_white"
        )
    sigma = torch.as_tensor(sigma_n, dtype=x_n.dtype, device=x_n.device).expand(len(x_n))
    # At sigma = 0 the scalings divide by zero; such an item needs no denoising.
    estimate = denoiser(x_n, torch.where(sigma > 0, sigma, torch.ones_like(sigma)))
    return torch.where(expand((sigma > 0).to(x_n.dtype), x_n) > 0, estimate, x_n)


@torch.no_grad()
def posterior_samples(
    denoiser: Denoiser,
    x_n: Tensor,
    sigma_n: Tensor | float,
    draws: int,
    sampler: Sampler | None = None,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Draws from ``p(x_0 | x_n)`` by running the reverse process from ``(x_n, sigma_n)`` to zero.

    Their mean estimates ``E[x_0 | x_n]``, their spread says how sure the model is, pixel by pixel.

    Args:
        denoiser: A trained denoiser that is right below ``sigma_n`` too.
        x_n: Noisy data ``(B, *shape)``.
        sigma_n: Their level, a number or ``(B,)``, ``> 0``.
        draws: Number of draws per item.
        sampler: A stochastic solver; :class:`SDEDPMSolverPP2M` with 18 levels when absent.
        seed: With the item's number and the draw's number determines a draw.
        indices: Numbers of the items, length ``B``; 0, 1, 2, ... when absent.

    Returns:
        ``(draws, B, *shape)``.
    """
    sampler = SDEDPMSolverPP2M() if sampler is None else sampler
    indices = range(len(x_n)) if indices is None else indices
    sigma = torch.as_tensor(sigma_n, dtype=torch.float64, device=x_n.device).expand(len(x_n))
    levels = sampler.levels(start=sigma)
    out = []
    for draw in range(draws):
        noise = SampleNoise(seed, indices, x_n.device, stream=f"draw {draw}")
        out.append(sampler(denoiser, x_n, levels, noise))
    return torch.stack(out)
