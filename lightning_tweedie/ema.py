"""Exponential moving averages of the denoiser's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError

__all__ = ["EMA"]


class EMA(nn.Module):
    """Averages of the denoiser over several horizons at once, beside the live weights.

    A half-life is counted in optimiser steps. Early on the horizon is shortened to a share of the steps
    taken so far, so that the average never holds on to the initial weights (2206.00364, appendix F.2).

    Args:
        half_lives: Steps after which a weight's influence has halved, one average for each; the first
            is the one that samples and metrics use, the shortest the one that teaches.
        ramp_up: Half-life at most this share of the steps taken, ``> 0``; infinity switches this off.
    """

    def __init__(self, half_lives: Sequence[float] = (1000.0,), ramp_up: float = 0.05) -> None:
        super().__init__()
        if not half_lives or min(half_lives) <= 0 or ramp_up <= 0:
            raise UserError(
                "EMA needs at least one half-life, all > 0, and ramp_up > 0, not "
                f"half_lives = {list(half_lives)}, ramp_up = {ramp_up}"
            )
        self.half_lives = [float(h) for h in half_lives]
        self.ramp_up = ramp_up
        self.steps = 0
        self.averages = nn.ModuleList()

    def attach(self, denoiser: Denoiser) -> None:
        """Starts every average at the denoiser's present weights."""
        self.averages = nn.ModuleList(copy.deepcopy(denoiser).eval().requires_grad_(False) for _ in self.half_lives)

    def train(self, mode: bool = True) -> EMA:
        """Averages stay in evaluation mode (no dropout in teachers and samplers)."""
        return super().train(False)

    @property
    def denoiser(self) -> Denoiser:
        """The average with the first half-life."""
        return self.averages[0]  # type: ignore[return-value]

    @property
    def teacher(self) -> Denoiser:
        """The average with the shortest half-life: what it teaches is up to date.

        Where the network learns from its own draws, progress is as slow as its teacher.
        """
        return self.averages[self.half_lives.index(min(self.half_lives))]  # type: ignore[return-value]

    def decay(self, half_life: float) -> float:
        """Share of the old average kept in the step just counted."""
        horizon = min(half_life, self.steps * self.ramp_up)
        return 0.5 ** (1 / horizon) if horizon > 0 else 0.0

    @torch.no_grad()
    def update(self, denoiser: Denoiser) -> None:
        """Counts one optimiser step and moves every average towards the live weights."""
        self.steps += 1
        live: list[Tensor] = list(denoiser.parameters())
        for half_life, average in zip(self.half_lives, self.averages, strict=True):
            averaged: list[Tensor] = list(average.parameters())
            torch._foreach_lerp_(averaged, live, 1 - self.decay(half_life))
            torch._foreach_copy_(list(average.buffers()), list(denoiser.buffers()))

    def get_extra_state(self) -> dict[str, Any]:
        """The step count, kept as a plain number so that no device has to be asked for it."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the step count."""
        self.steps = int(state["steps"])

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The averaged denoiser's answer; see :class:`Denoiser`."""
        return self.denoiser(x, sigma)
