"""Pictures of samples in the course of training."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_tweedie.callbacks.picture import PictureCallback
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.pictures import Picture, panel
from lightning_tweedie.sampling import Heun, Sampler, sample

__all__ = ["SampleGrid"]


class SampleGrid(PictureCallback):
    """Draws noisy data | full samples | truncated samples after validation.

    The samples start from the same noise each time, so that a row of pictures shows one image develop.

    Args:
        num_samples: How many in each column: images stand in a square; of points in the plane take about 1000.
        sampler: Solver and grid of levels; ``Heun`` with 18 levels when null.
        every_n_validations: Only after every so many validations.
        seed: Seed of the samples.
    """

    def __init__(
        self, num_samples: int = 36, sampler: Sampler | None = None, every_n_validations: int = 1, seed: int = 0
    ) -> None:
        super().__init__("samples", num_samples, every_n_validations, Heun() if sampler is None else sampler, seed)
        self.num_samples = num_samples

    def draw(self, trainer: Trainer, pl_module: LightningModule, batch: NoisyBatch) -> Picture:
        """Makes the samples and draws them."""
        denoiser: Any = pl_module.eval_denoiser
        sigma_n = trainer.datamodule.sigma_n  # type: ignore[attr-defined]
        shape = (self.num_samples, *batch.x_n.shape[1:])
        columns = [
            (f"noisy data, sigma {float(batch.sigma_n.max()):.3g}", batch.x_n),
            ("full samples", sample(denoiser, shape, self.sampler, seed=self.seed)),
        ]
        if sigma_n > 0:
            truncated = sample(denoiser, shape, self.sampler, seed=self.seed, truncate_at=sigma_n)
            columns.append((f"samples truncated at {sigma_n:.3g}", truncated))
        return panel(columns, per_row=math.ceil(math.sqrt(self.num_samples)), side=56)
