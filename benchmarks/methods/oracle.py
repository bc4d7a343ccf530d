"""Training and measuring where the exact denoiser is known."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from problems import Problem
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.networks import MLP
from lightning_tweedie.objectives import Objective
from lightning_tweedie.randomness import step_generator

__all__ = ["TEST", "evaluate", "noisy_data", "train"]

LEARNING_RATE = 4e-3
TEACHER = 15
"""Half-life of the average that teaches, in steps."""
TEST = 10_000
"""Fresh points at each level, and samples."""


def noisy_data(problem: Problem, sigma_n: float, clean_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training data ``(N, D)`` with their levels ``(N,)``; the first ones are clean."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = problem.oracle.sample(problem.points, generator)
    levels = torch.full((len(x_0),), sigma_n)
    levels[: round(clean_fraction * len(x_0))] = 0.0
    return x_0 + levels[:, None] * torch.randn(x_0.shape, generator=generator), levels


def train(
    problem: Problem, objective: Objective, data: Tensor, levels: Tensor, steps: int, batch: int, seed: int
) -> tuple[Denoiser, float]:
    """Trains one network.

    Returns:
        Its average, and the seconds that a step took.
    """
    torch.manual_seed(seed)
    denoiser = Denoiser(MLP(problem.dim, width=256, depth=3), sigma_data=problem.sigma_data)
    ema = EMA([steps / 60, TEACHER])
    ema.attach(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    # Constant, with a short rise and a fall over the last fifth.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))
    )
    start = time.perf_counter()
    for step in tqdm(range(steps), mininterval=2, leave=False):
        generator = step_generator(seed, rank=0, step=step)
        which = torch.randint(len(data), (batch,), generator=generator)
        losses = objective(
            denoiser, data[which], levels[which], teacher=ema.teacher, progress=step / steps, generator=generator
        )
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(denoiser)
    return ema.denoiser, (time.perf_counter() - start) / steps


@torch.no_grad()
def evaluate(problem: Problem, denoise: Callable[[Tensor, Tensor], Tensor], samples: Tensor, seed: int) -> dict:
    """Excess risk at each level on fresh points, distance of the samples from fresh data, and their spread.

    Args:
        problem: The truth.
        denoise: The denoiser.
        samples: Samples ``(N, D)``.
        seed: Of the fresh points.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    row = {}
    for sigma in problem.levels:
        x_0 = problem.oracle.sample(TEST, generator)
        x = x_0 + sigma * torch.randn(x_0.shape, generator=generator)
        exact, level = problem.oracle(x, sigma), torch.full((TEST,), sigma)
        excess = (denoise(x, level) - exact).square().sum() / (x_0 - exact).square().sum()
        row[f"excess_risk_{sigma:g}"] = float(excess)
    fresh = problem.oracle.sample(len(samples), generator)
    directions = torch.nn.functional.normalize(torch.randn(problem.dim, 128, generator=generator), dim=0)
    gaps = (samples @ directions).sort(dim=0).values - (fresh @ directions).sort(dim=0).values
    row["sliced_wasserstein"] = float(gaps.square().mean().sqrt())
    if problem.std is not None:
        means = problem.oracle.means  # type: ignore[union-attr]
        nearest = means[torch.cdist(samples, means).argmin(1)]
        row["spread"] = float((samples - nearest).square().mean().sqrt()) / problem.std
    return row
