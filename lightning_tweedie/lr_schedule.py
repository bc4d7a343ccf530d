"""Learning rate over training."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupCosine"]


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine from the optimiser's rate down to a share of it.

    Args:
        optimizer: The optimiser whose rate is set.
        warmup: Optimiser steps of warm-up, ``>= 0``.
        total_steps: Length of the training in optimiser steps; the trainer's when left out.
        final: Rate at the end, as a share of the optimiser's, in [0, 1]. 1 keeps it constant.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: int = 500, total_steps: int | None = None, final: float = 0.0
    ) -> None:
        self.warmup = warmup
        self.total_steps = total_steps
        self.final = final
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """Share of the full rate after ``step`` optimiser steps, in [0, 1]."""
        warm = min(1.0, (step + 1) / (self.warmup + 1))
        if not self.total_steps:
            return warm
        done = min(1.0, max(0.0, (step - self.warmup) / max(1, self.total_steps - self.warmup)))
        return warm * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done)))

    def state_dict(self) -> dict[str, Any]:
        """How far the schedule has got. Its settings stay those of the configuration when a run is resumed."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "_last_lr": self._last_lr}

    def get_lr(self) -> list[float | Tensor]:
        """The rate of every parameter group."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
