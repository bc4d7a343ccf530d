"""Posterior replay: expectation maximisation with a buffer of posterior draws."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb
from lightning_tweedie.levels import LevelDistribution, LogNormal, edm_levels
from lightning_tweedie.objectives.draw_buffer import DrawBuffer
from lightning_tweedie.objectives.score_matching import ambient_query
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.sampling import Sampler, SDEDPMSolverPP2M

__all__ = ["PosteriorReplay"]

_REFERENCE = 1024  # draws that stand for each other


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
            device unless ``on_cpu``, is the same on every rank, and is part of checkpoints.
        refresh: Share of the batch for which new draws are made in each step, in (0, 1].
        sampler: Stochastic solver of the draws, with its levels; when absent :class:`SDEDPMSolverPP2M` with 24 levels
            down to a twentieth of each item's ``sigma_n``. Draws must scatter right to a percent, because what is
            missing or too much adds up from round to round.
        first: What fills the buffer for the first time. ``"mean"``: expectations ``E[x_0 | x_n]``, which the ambient
            term teaches, because draws would have to pass levels of which nothing is known yet; ``"draw"``: draws all
            the same, for data with some clean items, which teach those levels.
        round_steps: Renew the buffer in rounds of so many steps: what is drawn in one comes into use with the next
            (2405.13712, 2502.05446). Draws come into use at once when null.
        on_cpu: Keep the buffer in the main memory.
        sigma_min: Items with less noise have nothing to replay.
        levels: Distribution of the training levels, truncated to ``(sigma_min, sigma_n]``; EDM's
            log-normal when absent.
        stable: Regress onto the mean of the draws that could have led to a point (2302.00670), of 1024 from the buffer:
            less noise in the gradient where data have few dimensions.
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
        sampler: Sampler | None = None,
        first: Literal["mean", "draw"] = "mean",
        round_steps: int | None = None,
        on_cpu: bool = False,
        sigma_min: float = 0.01,
        levels: LevelDistribution | None = None,
        stable: bool = False,
    ) -> None:
        super().__init__(weight, start, ramp)
        if share <= 0 or capacity < 1 or not 0 < refresh <= 1 or sigma_min <= 0:
            raise UserError(
                "PosteriorReplay needs share > 0, capacity >= 1, refresh in (0, 1] and sigma_min > 0, not "
                f"share = {share}, capacity = {capacity}, refresh = {refresh}, sigma_min = {sigma_min}"
            )
        if round_steps is not None and round_steps < 1:
            raise UserError(f"PosteriorReplay needs round_steps >= 1, not {round_steps}, or null for no rounds")
        self.share = share
        self.refresh = refresh
        self.sampler = sampler
        self.first = first
        self.round_steps = round_steps
        self.sigma_min = sigma_min
        self.levels = LogNormal() if levels is None else levels
        self.stable = stable
        device = "cpu" if on_cpu else None
        self.buffer = DrawBuffer(capacity, device)
        # Where there are rounds, this one's draws wait here for the next.
        self.upcoming = DrawBuffer(capacity, device) if round_steps else None
        self.steps_of_round = 0

    @property
    def floor(self) -> float:
        """Items with less noise than this have nothing to replay."""
        return max(self.sigma_min, self.levels.sigma_min)

    def draw(self, step: Step, rows: Tensor) -> Tensor:
        """Posterior draws ``p(x_0 | x_n)`` for some rows of the batch, by the teacher.

        While the buffer fills for the first time the teacher knows nothing of the levels that a draw has to pass,
        and would leave noise behind of which expectation maximisation rids itself only slowly. Until then the
        expectation ``E[x_0 | x_n]`` stands in for a draw, unless ``first`` says otherwise.
        """
        level = step.item_level[rows].clamp(min=self.sigma_min)
        # Noise that differs between pixels is first made equal; otherwise this adds nothing.
        x = perturb(step.x_n[rows], step.sigma_n[rows], level, step.noise)
        if self.first == "mean" and not self.buffer.is_full:
            with torch.no_grad():
                return step.teacher(x, level)
        if self.sampler is not None:
            return self.sampler(step.teacher, x, self.sampler.levels(start=level), step.noise)
        return SDEDPMSolverPP2M()(step.teacher, x, edm_levels(24, level / 20, level), step.noise)

    def _renew(self, step: Step) -> None:
        noisy = step.item_level > self.floor
        # The first call fills what one batch can fill; later ones renew a share of it.
        count = len(step.x_n) if self.buffer.draws is None else max(1, round(self.refresh * len(step.x_n)))
        # Noisy items first. Clean ones fill up, to be dropped below: gathering wants as many rows from every rank.
        rows = noisy.sort(descending=True, stable=True).indices[:count]
        fresh, level = _gather(self.draw(step, rows)), _gather(step.item_level[rows])
        keep = level > self.floor
        if self.upcoming is None or not self.buffer.is_full:
            return self.buffer.write(fresh[keep], level[keep])
        self.upcoming.write(fresh[keep], level[keep])
        self.steps_of_round += 1
        assert self.round_steps is not None
        if self.steps_of_round >= self.round_steps:
            self.buffer.write(*self.upcoming.take())
            self.steps_of_round = 0

    def query(self, step: Step) -> Query | None:
        """Renews part of the buffer, then asks for replayed items at levels below their ``sigma_n``."""
        self._renew(step)
        if self.buffer.written == 0:
            return None
        count = max(1, round(self.share * len(step.x_n)))
        picks = max(count, _REFERENCE) if self.stable else count
        items, kind = self.buffer.pick(picks, step.x_n, step.generator)
        x_0, upper = items[:count], kind[:count]
        sigma_t = self.levels.sample(torch.full_like(upper, self.floor), upper=upper, generator=step.generator)
        replayed = Step(x_0, torch.zeros_like(upper), step.teacher, step.sigma_data, step.generator)
        return ambient_query(replayed, replayed.sigma_n, sigma_t, (items, kind) if self.stable else None)

    def get_extra_state(self) -> dict[str, Any]:
        """The buffer, and where the round stands."""
        upcoming = None if self.upcoming is None else self.upcoming.state()
        return {"buffer": self.buffer.state(), "upcoming": upcoming, "steps_of_round": self.steps_of_round}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.buffer.restore(state["buffer"])
        if self.upcoming is not None and state["upcoming"] is not None:
            self.upcoming.restore(state["upcoming"])
            self.steps_of_round = int(state["steps_of_round"])
