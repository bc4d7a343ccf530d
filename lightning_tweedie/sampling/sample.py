"""Samples of the clean distribution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling.samplers import Heun, Sampler

__all__ = ["sample"]


def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    sampler: Sampler | None = None,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    truncate_at: float | None = None,
) -> Tensor:
    """Draws from the distribution that the denoiser has learnt.

    *Full* sampling follows the reverse process to the end and needs a denoiser that is right below the
    data's noise level too. *Truncated* sampling stops at that level and returns the denoiser's answer
    there: robust without any training below ``sigma_n``, but blurred (2404.10177, section 4).

    Args:
        denoiser: A trained :class:`Denoiser` (use the EMA's), in evaluation mode.
        shape: ``(B, *item)``.
        sampler: Solver and grid; :class:`Heun` with 18 levels when absent.
        seed: Together with the sample's number determines the sample.
        indices: Numbers of the samples, length ``B``; 0, 1, 2, ... when absent. A sample depends on
            its number, not on the batch in which it is made.
        truncate_at: Level at which to stop, usually ``sigma_n``; full sampling when absent.

    Returns:
        Samples ``(B, *item)`` on the denoiser's device.
    """
    sampler = Heun() if sampler is None else sampler
    levels = sampler.levels(truncate_at=truncate_at)
    noise = SampleNoise(seed, range(shape[0]) if indices is None else indices, denoiser.sigma_data.device)
    x = noise.normal(shape[1:]).to(denoiser.sigma_data) * float(levels[0])
    return sampler(denoiser, x, levels, noise)
