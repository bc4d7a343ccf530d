"""What callbacks that draw pictures have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.pictures import Picture, can_be_drawn, save
from lightning_tweedie.sampling import Sampler

__all__ = ["PictureCallback", "first_items", "send", "unused"]


class PictureCallback(Callback):
    """Draws a picture of the first validation items after validation.

    It is saved as ``pictures/<name>/step_<step>.png`` in the run's directory, with a number appended rather than
    overwriting a file, and sent to Weights & Biases if that is among the loggers.

    Args:
        name: Name of the pictures' folder and of the pictures in the log.
        num_items: How many validation items to keep for :meth:`draw`.
        every_n_validations: Only after every so many validations.
        sampler: Solver of what is drawn, for :meth:`draw`.
        seed: Seed of what is drawn, for :meth:`draw`.

    Raises:
        UserError: If items of this shape cannot be drawn.
    """

    def __init__(self, name: str, num_items: int, every_n_validations: int, sampler: Sampler, seed: int) -> None:
        super().__init__()
        for setting, value in (("number of items", num_items), ("every_n_validations", every_n_validations)):
            if value < 1:
                raise UserError(f"{type(self).__name__}: {setting} = {value} is too small: give at least 1")
        self.name = name
        self.num_items = num_items
        self.every_n_validations = every_n_validations
        self.sampler = sampler
        self.seed = seed
        self._validations = 0
        self._batches: list[NoisyBatch] = []

    @property
    def state_key(self) -> str:
        """Tells several callbacks of one class apart in checkpoints."""
        return self._generate_state_key(
            name=self.name,
            num_items=self.num_items,
            every_n_validations=self.every_n_validations,
            sampler=f"{self.sampler.name}-{self.sampler.steps}",
            seed=self.seed,
        )

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: LightningModule, batch: NoisyBatch) -> Picture | None:
        """Draws the picture, on the first process alone: nothing in here may wait for another one.

        Args:
            trainer: The trainer.
            pl_module: The module, whose ``eval_denoiser`` is to be used.
            batch: The first validation items, at most ``num_items``.

        Returns:
            The picture, or ``None`` if there is nothing to draw.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data that cannot be drawn."""
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and not can_be_drawn(data.shape):
            raise UserError(
                f"{type(self).__name__} draws images (1 or 3, H, W) and points (2,), not items of shape {data.shape}: "
                "remove the callback"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the items of the last validation."""
        self._batches = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: NoisyBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the first items."""
        if trainer.is_global_zero and sum(len(b.x_n) for b in self._batches) < self.num_items:
            self._batches.append(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws if its turn has come."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if not self._batches:
            return
        batch, self._batches = first_items(self._batches, self.num_items), []
        with torch.no_grad():
            picture = self.draw(trainer, pl_module, batch)
        if picture is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        save(picture, unused(folder / "pictures" / self.name / f"step_{trainer.global_step:08d}.png"))
        send(trainer, f"pictures/{self.name}", picture)

    def state_dict(self) -> dict[str, Any]:
        """How often there was a validation."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._validations = state_dict["validations"]


def first_items(batches: list[NoisyBatch], count: int) -> NoisyBatch:
    """The first ``count`` items of several batches as one."""
    clean = [b.x_0 for b in batches if b.x_0 is not None]
    return NoisyBatch(
        x_n=torch.cat([b.x_n for b in batches])[:count],
        sigma_n=torch.cat([b.sigma_n for b in batches])[:count],
        index=torch.cat([b.index for b in batches])[:count],
        x_0=torch.cat(clean)[:count] if clean else None,
        correlation=batches[0].correlation,
    )


def send(trainer: Trainer, key: str, picture: Picture) -> None:
    """Sends a picture to Weights & Biases if that is among the loggers; 8-bit ones are shown there as they are."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=key, images=[picture], step=trainer.global_step)


def unused(path: Path) -> Path:
    """The path, or the first of ``name-1``, ``name-2``, ... that does not exist."""
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
