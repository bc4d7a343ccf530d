"""Pictures of restored validation items in the course of training."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tweedie.callbacks.picture import PictureCallback
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.restoration import noisy_items
from lightning_tweedie.kernels import raise_to_white
from lightning_tweedie.metrics.restoration import psnr
from lightning_tweedie.pictures import Picture, panel
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling import Sampler, SDEDPMSolverPP2M, one_step, posterior_samples

__all__ = ["RestorationGrid", "restoration_panel"]


class RestorationGrid(PictureCallback):
    """Draws noisy input | one-step estimate | a posterior draw | posterior mean | deviation | clean reference.

    Args:
        num_items: How many validation items.
        draws: Posterior draws per item, at least 2.
        sampler: Stochastic solver for the draws; ``SDEDPMSolverPP2M`` with 18 levels when null.
        every_n_validations: Only after every so many validations.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        num_items: int = 8,
        draws: int = 8,
        sampler: Sampler | None = None,
        every_n_validations: int = 1,
        seed: int = 0,
    ) -> None:
        sampler = SDEDPMSolverPP2M() if sampler is None else sampler
        super().__init__("restoration", num_items, every_n_validations, sampler, seed)
        if draws < 2:
            raise UserError(f"RestorationGrid.draws = {draws} is too small: their deviation needs at least 2")
        self.draws = draws

    def draw(self, trainer: Trainer, pl_module: LightningModule, batch: NoisyBatch) -> Picture | None:
        """Restores the items and draws them."""
        items = noisy_items(batch)
        if items is None:
            return None
        numbers = items.index.tolist()
        noise = SampleNoise(self.seed, numbers, items.x_n.device, "white")
        x, level = raise_to_white(items.x_n, items.sigma_n, items.correlation, noise)
        denoiser: Any = pl_module.eval_denoiser
        draws = posterior_samples(denoiser, x, level, self.draws, self.sampler, seed=self.seed, indices=numbers)
        return restoration_panel(items.x_n, one_step(denoiser, x, level), draws, items.x_0)


def restoration_panel(x_n: Tensor, estimate: Tensor, draws: Tensor, x_0: Tensor | None = None) -> Picture:
    """Draws restorations side by side, images one item per row with the mean PSNR of these items in the titles.

    Args:
        x_n: Noisy items ``(B, *shape)``, images or points.
        estimate: One-step estimates ``(B, *shape)``.
        draws: Posterior draws ``(K, B, *shape)``, ``K >= 2``.
        x_0: The clean items, if there are any.
    """
    columns = [
        ("noisy input", x_n),
        ("one-step estimate", estimate),
        ("one posterior draw", draws[0]),
        (f"mean of {len(draws)} draws", draws.mean(0)),
    ]
    if x_n.ndim == 4:
        if x_0 is not None:
            columns = [(f"{title}\n{float(psnr(x, x_0).mean()):.1f} dB", x) for title, x in columns]
        deviation = draws.var(0).mean(1, keepdim=True).sqrt()  # over channels: one grey image
        top = deviation.max().clamp(min=torch.finfo(deviation.dtype).tiny)
        columns.append((f"deviation, white = {float(top):.2f}", deviation / top * 2 - 1))
    if x_0 is not None:
        columns.append(("clean reference", x_0))
    return panel(columns)
