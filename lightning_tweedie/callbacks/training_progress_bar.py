"""How far the whole training has got."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["TrainingProgressBar"]

_PAUSE = 0.2  # seconds


class TrainingProgressBar(TQDMProgressBar):
    """One bar over all optimiser steps, with the time that is left, instead of one for every epoch."""

    _moved = 0.0

    def on_train_start(self, *args: Any) -> None:
        """Opens the bar at the step from which the run goes on."""
        super().on_train_start(*args)
        bar, steps = self.train_progress_bar, self.trainer.estimated_stepping_batches
        bar.set_description("training")
        bar.unit = "step"
        # The steps of an earlier run took no time in this one.
        bar.initial = self.trainer.global_step
        bar.reset(total=int(steps) if math.isfinite(steps) else None)

    def on_train_epoch_start(self, *args: Any) -> None:
        """The bar goes on."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        bar, now = self.train_progress_bar, time.monotonic()
        # The loss is asked of the device, which is waited for: not more often than eyes can follow.
        if now - self._moved < _PAUSE and trainer.global_step != bar.total:
            return
        if trainer.global_step > bar.n and self._should_update(trainer.global_step, int(bar.total or -1)):
            self._moved = now
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar goes on."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What was logged for the bar, without the number of the run."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
