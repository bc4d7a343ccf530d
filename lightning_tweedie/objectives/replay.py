"""Posterior replay: expectation maximisation with a buffer of posterior draws."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb, reverse_chain
from lightning_tweedie.levels import LevelDistribution, LogNormal, edm_levels
from lightning_tweedie.objectives.score_matching import ambient_query
from lightning_tweedie.objectives.term import Query, Step, Term

__all__ = ["PosteriorReplay"]


def _gather(x: Tensor) -> Tensor:
    """The rows of every rank, in rank order; the input itself in a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class PosteriorReplay(Term):
    """Learns the levels below ``sigma_n`` from the model's own guesses of the clean data.

    Running the reverse process from ``(x_n, sigma_n)`` to zero draws from ``p(x_0 | x_n)`` under the model.
    A buffer of such draws, a few of them renewed in every step by the teacher, serves as clean data for
    ordinary score matching at levels up to each datum's own ``sigma_n``; above it the ambient term rules.
    This is expectation maximisation with a lazy expectation step: its fixed point is maximum likelihood
    (2405.13712, 2502.05446).

    Args:
        weight: Factor of the term once it is fully on.
        start: Share of the training after which it sets in: ambient score matching first.
        ramp: Share of the training over which the weight then grows.
        share: Number of replayed items per item of the batch.
        capacity: Number of draws kept; oldest replaced first. The buffer is held on the training
            device, the same on every rank, and is part of checkpoints.
        refresh: Share of the batch for which new draws are made in each step, in (0, 1].
        steps: Reverse steps per draw.
        sigma_min: Level at which a draw ends (its expectation given that last level is kept).
        levels: Distribution of the training levels, truncated to ``(sigma_min, sigma_n]``; EDM's
            log-normal when absent.
    """

    name = "replay"

    def __init__(
        self,
        weight: float = 1.0,
        start: float = 0.5,
        ramp: float = 0.1,
        share: float = 0.5,
        capacity: int = 1024,
        refresh: float = 0.125,
        steps: int = 10,
        sigma_min: float = 0.01,
        levels: LevelDistribution | None = None,
    ) -> None:
        super().__init__(weight, start, ramp)
        if share <= 0 or capacity < 1 or not 0 < refresh <= 1 or steps < 1 or sigma_min <= 0:
            raise UserError(
                "PosteriorReplay needs share > 0, capacity >= 1, refresh in (0, 1], steps >= 1 and sigma_min > 0, not "
                f"share = {share}, capacity = {capacity}, refresh = {refresh}, steps = {steps}, sigma_min = {sigma_min}"
            )
        self.share = share
        self.capacity = capacity
        self.refresh = refresh
        self.steps = steps
        self.sigma_min = sigma_min
        self.levels = LogNormal() if levels is None else levels
        self.draws: Tensor | None = None
        self.draw_levels: Tensor | None = None
        self.written = 0

    @property
    def floor(self) -> float:
        """Items with less noise than this have nothing to replay."""
        return max(self.sigma_min, self.levels.sigma_min)

    def draw(self, step: Step, rows: Tensor) -> Tensor:
        """Posterior draws ``p(x_0 | x_n)`` for some rows of the batch, by the teacher.

        While the buffer fills for the first time the teacher knows nothing of the levels that a draw has to pass,
        and would leave noise behind of which expectation maximisation rids itself only slowly. Until then the
        expectation ``E[x_0 | x_n]`` stands in for a draw: the ambient term teaches it.
        """
        level = step.item_level[rows].clamp(min=self.sigma_min)
        # Noise that differs between pixels is first made equal; otherwise this adds nothing.
        x = perturb(step.x_n[rows], step.sigma_n[rows], level, step.noise)
        if self.written < self.capacity:
            with torch.no_grad():
                return step.teacher(x, level)
        grid = edm_levels(self.steps, self.sigma_min, level)
        x = reverse_chain(step.teacher, x, grid, step.noise)
        with torch.no_grad():
            return step.teacher(x, grid[-1].to(x.dtype))

    def _renew(self, step: Step) -> None:
        noisy = step.item_level > self.floor
        # The first call fills what one batch can fill; later ones renew a share of it.
        count = len(step.x_n) if self.draws is None else max(1, round(self.refresh * len(step.x_n)))
        # Noisy items first. Clean ones fill up, to be dropped below: gathering wants as many rows from every rank.
        rows = noisy.sort(descending=True, stable=True).indices[:count]
        fresh, level = _gather(self.draw(step, rows)), _gather(step.item_level[rows])
        keep = (level > self.floor).nonzero()[: self.capacity, 0]
        fresh, level = fresh[keep], level[keep]
        if self.draws is None or self.draw_levels is None:
            self.draws = fresh.new_zeros(self.capacity, *fresh.shape[1:])
            self.draw_levels = level.new_zeros(self.capacity)
        # A buffer from a checkpoint may still be on another device.
        self.draws, self.draw_levels = self.draws.to(fresh), self.draw_levels.to(level)
        slots = (self.written + torch.arange(len(fresh), device=fresh.device)) % self.capacity
        self.draws[slots], self.draw_levels[slots] = fresh, level
        self.written += len(fresh)

    def query(self, step: Step) -> Query | None:
        """Renews part of the buffer, then asks for replayed items at levels below their ``sigma_n``."""
        self._renew(step)
        if self.draws is None or self.draw_levels is None or self.written == 0:
            return None
        count = max(1, round(self.share * len(step.x_n)))
        filled = min(self.written, self.capacity)
        pick = torch.randint(filled, (count,), generator=step.generator, device=step.x_n.device)
        x_0, upper = self.draws[pick], self.draw_levels[pick]
        sigma_t = self.levels.sample(torch.full_like(upper, self.floor), upper=upper, generator=step.generator)
        replayed = Step(x_0, torch.zeros_like(upper), step.teacher, step.sigma_data, step.generator)
        return ambient_query(replayed, replayed.sigma_n, sigma_t)

    def get_extra_state(self) -> dict[str, Any]:
        """The buffer and its position."""
        return {"draws": self.draws, "draw_levels": self.draw_levels, "written": self.written}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the buffer."""
        # Copies: the buffer is written in place, and the state belongs to the caller.
        self.draws, self.draw_levels = copy.deepcopy((state["draws"], state["draw_levels"]))
        self.written = int(state["written"])
