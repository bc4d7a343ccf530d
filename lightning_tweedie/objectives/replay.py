"""Posterior replay: expectation maximisation with a buffer of posterior draws."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb
from lightning_tweedie.levels import LevelDistribution, LogNormal, edm_levels
from lightning_tweedie.objectives.draw_buffer import DrawBuffer, Place
from lightning_tweedie.objectives.score_matching import ambient_query
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.sampling import DPMSolverPP2M, Sampler

__all__ = ["PosteriorReplay"]

_LAST = 1 / 20  # draws end at a twentieth of the noise, where what is left of it is 1/400 of its variance
_BATCHES = 4  # of draws are kept
_REFERENCE = 1024  # draws that stand for each other


def _processes() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1


def _gather(x: Tensor) -> Tensor:
    """The rows of every rank, in rank order; the input itself in a single process."""
    if _processes() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(_processes())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class PosteriorReplay(Term):
    """Learns the levels below ``sigma_n`` from the model's own guesses of the clean data.

    Running the reverse process from ``(x_n, sigma_n)`` to zero draws from ``p(x_0 | x_n)`` under the model.
    A buffer of such draws, renewed little by little by the teacher, serves as clean data for ordinary score
    matching at levels up to each datum's own ``sigma_n``; above it the ambient term rules.
    This is expectation maximisation with a lazy expectation step: its fixed point is maximum likelihood
    (2405.13712, 2502.05446). All that the next step uses of the draws is their law, and the probability flow carries
    noisy data to the same law without any noise of its own: the fixed point is the same and the way there shorter.
    Draws may also end before all noise is gone: they are cleaner noisy data then.

    Args:
        weight: Factor of the term once it is fully on.
        start: Share of the training after which it sets in: ambient score matching first.
        ramp: Share of the training over which the weight then grows.
        share: Number of replayed items per item of the batch. The ambient term gets as many less.
        capacity: Number of draws kept, which bounds the memory; oldest replaced first. When absent, those of four
            batches of all ranks: none is then older than ``4 / refresh`` steps, whatever the size of a batch. The
            buffer is held on the training device unless ``place`` says otherwise, is the same on every rank, and is
            part of checkpoints.
        refresh: Draws made per item of the batch and step, in (0, 1]: for all items of one batch in every
            ``1 / refresh`` steps, which takes less time than a few in each. The buffer fills faster: with each batch.
        sampler: Solver of the draws; of its levels only their number counts, because they go from each item's
            ``sigma_n`` down to a twentieth of it, or to the ``residual``. :class:`DPMSolverPP2M` with 16 when absent.
            Stochastic solvers, as published, must scatter right to a percent, because what is missing or too much adds
            up from round to round: :class:`SDEDPMSolverPP2M` with 24.
        draw_start: Share of the training after which draws are made. Before, expectations ``E[x_0 | x_n]`` stand in for
            them, which the other terms teach: draws would have to pass levels of which nothing is known yet, and noise
            that they keep goes away only slowly.
        residual: Share of ``sigma_n``, in (0, 1), that draws keep, and to which expectations in their place are raised.
            The levels above it learn from them by ambient score matching, those below from the expectations
            ``E[x_0 | x]`` at that level, which have lost what is finer, and with it errors that draws would carry on:
            they never pass there, unless items differ in ``sigma_n``. When absent, draws end at a twentieth, and their
            expectations there are the clean data of all levels.
        round_steps: Renew the buffer in rounds of so many steps: what is drawn in one comes into use with the next
            (2405.13712, 2502.05446). Draws come into use at once when null.
        place: Where the buffer is kept: on the ``device`` of the network, in main ``memory``, or on ``disk``, for more
            draws than fit there.
        levels: Distribution of the training levels, truncated to ``(sigma_min, sigma_n]`` of each draw; EDM's
            log-normal when absent. Its ``sigma_min`` must not be above that of samplers: what no level teaches, the
            network makes up.
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
        capacity: int | None = None,
        refresh: float = 0.125,
        sampler: Sampler | None = None,
        draw_start: float = 0.6,
        residual: float | None = None,
        round_steps: int | None = None,
        place: Place = "device",
        levels: LevelDistribution | None = None,
        stable: bool = False,
    ) -> None:
        super().__init__(weight, start, ramp)
        if share <= 0 or (capacity is not None and capacity < 1) or not 0 < refresh <= 1 or not 0 <= draw_start <= 1:
            raise UserError(
                "PosteriorReplay needs share > 0, capacity >= 1, refresh in (0, 1] and draw_start in [0, 1], not "
                f"share = {share}, capacity = {capacity}, refresh = {refresh}, draw_start = {draw_start}"
            )
        if residual is not None and not 0 < residual < 1:
            raise UserError(f"PosteriorReplay needs residual in (0, 1) or null, not {residual}: 0.25 is usual")
        if sampler is not None and sampler.steps < 2:
            raise UserError(
                f"PosteriorReplay needs a sampler with steps >= 2, a level to begin at and an end, not {sampler.steps}"
            )
        self.every = round(1 / refresh)
        if round_steps is not None and round_steps < self.every:
            raise UserError(
                f"PosteriorReplay with round_steps = {round_steps} makes no draw in some rounds: with refresh = "
                f"{refresh:g} give at least {self.every}, or null for no rounds"
            )
        self.share = share
        self.sampler = DPMSolverPP2M(16) if sampler is None else sampler
        self.draw_start = draw_start
        self.residual = residual
        self.round_steps = round_steps
        self.levels = LogNormal() if levels is None else levels
        self.stable = stable
        self.buffer = DrawBuffer(capacity, place)
        # Where there are rounds, this one's draws wait here for the next.
        self.upcoming = DrawBuffer(capacity, place)
        self.steps = 0

    @property
    def floor(self) -> float:
        """Items with less noise than this have nothing to replay."""
        return self.levels.sigma_min

    def guess(self, step: Step) -> tuple[Tensor, Tensor]:
        """Guesses of the clean data for all items of the batch, by the teacher: draws or expectations.

        Returns:
            Guesses ``(B, 1, *shape)``, or with ``residual`` the points at that level and the guesses made there,
            ``(B, 2, *shape)``; and the levels of the datum and of the noise in each of these, ``(B, 2)`` or ``(B, 3)``.
        """
        level = step.item_level.clamp(min=self.floor)
        # Noise that differs between pixels is first made equal; otherwise this adds nothing.
        x = perturb(step.x_n, step.sigma_n, level, step.noise)
        end = level * (_LAST if self.residual is None else self.residual)
        drawn = step.progress >= self.draw_start
        with torch.no_grad():
            if drawn:
                grid = edm_levels(self.sampler.steps, end, level).to(x)
                x = self.sampler.solve(step.teacher, x, grid, step.noise)
            else:
                x = step.teacher(x, level)
            none = torch.zeros_like(end)
            if self.residual is None:
                kept, noise = [step.teacher(x, end) if drawn else x], [none]
            else:
                x = x if drawn else perturb(x, 0.0, end, step.noise)
                kept, noise = [x, step.teacher(x, end)], [end, none]
        return torch.stack(kept, 1), torch.stack([step.item_level, *noise], 1)

    def _renew(self, step: Step) -> None:
        for buffer in (self.buffer, self.upcoming):
            if buffer.capacity is None:
                buffer.capacity = _BATCHES * len(step.x_n) * _processes()
        if self.round_steps and self.upcoming.written and self.steps % self.round_steps == 0:
            self.buffer.write(*self.upcoming.take())
        full = self.buffer.is_full
        if not full or self.steps % self.every == 0:
            fresh, levels = self.guess(step)
            if _processes() > 1 or step.least <= self.floor:  # some items may be clean, here or elsewhere
                fresh, levels = _gather(fresh), _gather(levels)
                noisy = levels[:, 0] > self.floor
                fresh, levels = fresh[noisy], levels[noisy]
            into = self.upcoming if self.round_steps and full else self.buffer
            into.write(fresh, levels)
        self.steps += 1

    def query(self, step: Step) -> Query | None:
        """Renews the buffer when it is time, then asks for replayed items at levels below their ``sigma_n``."""
        self._renew(step)
        if self.buffer.written == 0:
            return None
        count = max(1, round(self.share * len(step.x_n)))
        picks = max(count, _REFERENCE) if self.stable else count
        kept, levels = self.buffer.pick(picks, step.x_n, step.generator)
        upper, noise = levels[:count, 0], levels[:, 1:]
        sigma_t = self.levels.sample(torch.full_like(upper, self.floor), upper=upper, generator=step.generator)
        # Above the noise that it still holds a draw is noisy data; below, its expectation stands for clean data.
        held = noise[:count, 0]
        above = sigma_t > held
        items = torch.where(above.reshape(-1, *[1] * (step.x_n.ndim - 1)), kept[:count, 0], kept[:count, -1])
        sigma = torch.where(above, held, 0.0)
        reference = None
        if self.stable:
            # All that is kept: exchangeable are those with the same noise, of data with the same noise.
            same = (upper[:, None, None] == levels[:, :1]) & (sigma[:, None, None] == noise)
            reference = kept.flatten(0, 1), same.flatten(1)
        replayed = Step(items, sigma, step.teacher, step.sigma_data, step.generator)
        return ambient_query(replayed, sigma, sigma_t, reference)

    def get_extra_state(self) -> dict[str, Any]:
        """The buffer, and the number of steps, by which it is renewed."""
        return {"buffer": self.buffer.state(), "upcoming": self.upcoming.state(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores them. Draws from before ``residual`` was given or taken away are left out: the buffer fills anew."""
        columns = 2 if self.residual is None else 3
        for buffer, kept in ((self.buffer, state["buffer"]), (self.upcoming, state["upcoming"])):
            if kept["levels"] is None or kept["levels"].shape[1:] == (columns,):
                buffer.restore(kept)
        self.steps = int(state["steps"])
