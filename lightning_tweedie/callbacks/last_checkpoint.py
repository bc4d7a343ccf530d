"""The state from which a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_tweedie.errors import UserError

__all__ = ["LastCheckpoint"]


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` in the run's directory up to date: regularly, and at the end of the training.

    Lightning's ``ModelCheckpoint(save_last=True)`` leaves a ``last.ckpt`` of the last regular save, which is not the
    end, and with a ``monitor`` may save nothing at all. From the command line, a file is replaced only by a whole one.

    Args:
        every_n_train_steps: Optimiser steps between two saves.
    """

    def __init__(self, every_n_train_steps: int = 500) -> None:
        super().__init__()
        if every_n_train_steps < 1:
            raise UserError(
                f"last_checkpoint.every_n_train_steps = {every_n_train_steps} is too small: give at least 1"
            )
        self.every_n_train_steps = every_n_train_steps
        self.dirpath: str | None = None
        self._saved_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the run's directory."""
        log_dir = trainer.log_dir or trainer.default_root_dir  # asks all processes
        self.dirpath = str(Path(log_dir) / "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was resumed from is saved already."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after every so many optimiser steps; accumulated batches in between do not count."""
        if trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
