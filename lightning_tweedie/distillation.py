"""The LightningModule that distils a trained denoiser into a generator of one step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import LevelDistribution
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.objectives.score_distillation import ScoreDistillation
from lightning_tweedie.randomness import step_generator

__all__ = ["DistillationModule"]


class DistillationModule(TweedieModule):
    """Distils a denoiser of noisy data into a generator that makes a clean sample in one step.

    The generator is a denoiser of the teacher's architecture that begins at its weights, so its checkpoint is one like
    any other: sample it with one step from ``sigma_init``. Data say no more than shape and noise level; nothing is
    learnt from their values. Checkpoints hold the teacher too, so that a run is resumed with the weights that it began
    with, even if the teacher's file has changed since.

    Args:
        teacher: Checkpoint of the denoiser to learn from, of which the first weight average is taken.
        sigma_init: Level of the noise that the generator turns into a sample, ``> 0``, on the scale of the data.
        levels: Distribution of the levels at which samples are compared with data, truncated above each item's
            ``sigma_n``; log-uniform up to 5 when absent.
        stable: Average targets over the batch: less noise in the gradient where data have few dimensions.
        ema: Averages of the generator's weights; one with a half-life of 1000 steps when absent.
        optimizer: Makes the optimiser, of the generator and of the network that learns what samples look like.
        lr_scheduler: Makes the learning-rate schedule, stepped once per optimiser step; constant when absent.
        seed: Seed of the training noise.
        compile: Compile the backbones of all networks with ``torch.compile``.
        allow: Packages whose network classes the teacher may use, besides this library: their code is run.

    Raises:
        UserError: The teacher cannot be read, or a setting is wrong.
    """

    objective: ScoreDistillation

    def __init__(
        self,
        teacher: str,
        sigma_init: float = 2.5,
        levels: LevelDistribution | None = None,
        stable: bool = False,
        ema: EMA | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        allow: list[str] | None = None,
        compile: bool = False,
    ) -> None:
        trained = load_denoiser(teacher, allow or [])
        super().__init__(
            # In evaluation mode: a sample is made with all units, in training as afterwards.
            copy.deepcopy(trained.denoiser).requires_grad_(True),
            ScoreDistillation(trained.denoiser, sigma_init, levels, stable),
            ema,
            optimizer,
            lr_scheduler,
            seed,
            compile,
        )
        self.teacher = teacher
        self.teacher_sigma_n = trained.sigma_n

    def setup(self, stage: str) -> None:
        """Refuses data whose noise is not that from which the teacher has learnt."""
        super().setup(stage)
        sigma_n = self._data.get("sigma_n")
        if sigma_n is not None and sigma_n < self.teacher_sigma_n * (1 - 1e-6):
            raise UserError(
                f"data.sigma = {sigma_n:.4g} is below {self.teacher_sigma_n:.4g}, the noise from which the teacher "
                f"{self.teacher!r} has learnt, and below that it knows nothing: give the data that it was trained on"
            )

    def _evaluate(self, stage: str, batch: NoisyBatch, batch_idx: int) -> None:
        # The same noise in every validation, as for denoisers; the data's values play no part.
        generator = step_generator(self.seed, rank=self.global_rank, step=-1, micro_batch=batch_idx, device=self.device)
        losses = self.objective(
            self.eval_denoiser, batch.x_n, batch.sigma_n, correlation=batch.correlation, generator=generator
        )
        self.log(f"{stage}/loss", losses.terms["distance"], batch_size=len(batch.x_n), sync_dist=True, prog_bar=True)

    def predict_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        """Refused: a generator restores nothing."""
        raise UserError(
            f"a distilled generator makes samples and restores nothing: predict with its teacher, {self.teacher!r}"
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint without what is learnt beside the generator."""
        if not any(key.startswith("objective.fake.") for key in checkpoint["state_dict"]):
            raise UserError(
                "the checkpoint was not made by a DistillationModule: name a denoiser's as model.teacher and leave "
                "ckpt_path out"
            )
        super().on_load_checkpoint(checkpoint)
