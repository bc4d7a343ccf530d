"""What a method asks of the network."""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
from registry import METHODS, make_objective
from torch import Tensor, nn

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.objectives import Objective, PosteriorReplay

__all__ = ["method_cost", "relative_cost"]


class _Counting(nn.Module):
    """Stands in for a denoiser, and counts the points that it is asked for: 1 for a pass, 3 for one there and back."""

    has_sigma_data = True

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data = torch.tensor(0.5)
        self.weight = nn.Parameter(torch.ones(()))
        self.passes = 0

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.passes += len(x) * (3 if torch.is_grad_enabled() else 1)
        return self.weight * x / (1 + torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1)) ** 2)


def relative_cost(objective: Objective, batch: int = 64, moments: int = 20) -> float:
    """Passes through the network of an average step of a training, relative to plain score matching.

    Args:
        objective: What is minimised.
        batch: Items of a step.
        moments: At so many shares of the training the passes are counted.
    """
    denoiser, generator = _Counting(), torch.Generator().manual_seed(0)
    replay = next((term for term in objective.terms.values() if isinstance(term, PosteriorReplay)), None)

    def step(progress: float) -> None:
        x_n = 0.5 * torch.randn(batch, 2, generator=generator)
        level = torch.full((batch,), 0.3)
        objective(cast(Denoiser, denoiser), x_n, level, teacher=denoiser, progress=progress, generator=generator)

    while replay is not None and not replay.buffer.is_full:  # which it is for nearly all of the training
        step(1.0)
    denoiser.passes, cycle = 0, replay.every if replay else 1
    for moment in range(moments):
        for _ in range(cycle):
            step((moment + 0.5) / moments)
    return denoiser.passes / (3 * batch * cycle * moments)


@cache
def method_cost(name: str) -> float | None:
    """The same of a method, over all of its steps; None for a distillation, which trains other networks beside it."""
    method = METHODS[name]
    if method.distilled:
        return None
    cost = relative_cost(make_objective(method.objective, method.settings))
    if method.first not in (None, "nonlocal_means"):
        cost = (cost + relative_cost(make_objective(method.first, {}))) / 2
    return round(cost, 3)
