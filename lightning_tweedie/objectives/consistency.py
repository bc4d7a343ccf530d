"""Consistency: the clean denoiser below the data's noise level."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import perturb, reverse_chain, reverse_step
from lightning_tweedie.levels import LevelDistribution, LogNormal, edm_levels
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight

__all__ = ["Consistency"]


class Consistency(Term):
    """Two-draw consistency: ``D(x_t) = E[D(x_s) | x_t]`` along the denoiser's own reverse process.

    The exact denoiser is a martingale there (2302.09057). From one ``x_t`` two independent ``x_s', x_s''`` are drawn
    and ``lambda <D(x_s') - D(x_t), D(x_s'') - D(x_t)>`` is minimised, or its mean over the pairs of more draws:
    unlike a squared mean of draws it is unbiased, and may be negative. With the ambient term fixing the levels above
    ``sigma_n``, it determines the denoiser below (2404.10177, theorem 3.2).

    Args:
        weight: Factor of the term once it is fully on.
        start: Share of the training after which it sets in: ambient score matching first.
        ramp: Share of the training over which the weight then grows.
        share: Share of the batch from which pairs are made, in (0, 1]. The ambient term gets ``draws`` items less for
            each, and one more where both sides learn.
        draws: Independent ``x_s`` for each ``x_t``, at least 2.
        unbiased: Otherwise the squared mean of ``D(x_s) - D(x_t)`` over the draws, which published code minimises:
            larger by the variance of that mean.
        jump: Ratio ``sigma_s / sigma_t`` of a pair, in (0, 1). Small jumps keep the reverse step exact.
        substeps: Reverse steps within the jump.
        gradient: ``"less_noisy"``: the teacher answers at ``x_t`` and the network learns at ``x_s``;
            ``"both"``: the network learns on both sides (the form of 2302.09057).
        origin: Where chains begin. ``"x_n"``: at the datum itself; ``"x_t"``: at the datum raised to
            ``sigma_n / jump``, where the ambient term anchors the denoiser.
        chain: Reverse steps from there to ``x_t``.
        levels: Distribution of ``sigma_s``, truncated to ``(sigma_min, sigma_n]``; EDM's log-normal when absent.
    """

    name = "consistency"

    def __init__(
        self,
        weight: float = 1.0,
        start: float = 0.5,
        ramp: float = 0.1,
        share: float = 0.25,
        draws: int = 2,
        unbiased: bool = True,
        jump: float = 0.7,
        substeps: int = 1,
        gradient: Literal["less_noisy", "both"] = "less_noisy",
        origin: Literal["x_n", "x_t"] = "x_t",
        chain: int = 4,
        levels: LevelDistribution | None = None,
    ) -> None:
        super().__init__(weight, start, ramp)
        if not 0 < share <= 1 or not 0 < jump < 1 or substeps < 1 or chain < 1 or draws < 2:
            raise UserError(
                "Consistency needs share in (0, 1], jump in (0, 1), substeps >= 1, chain >= 1 and draws >= 2, not "
                f"share = {share}, jump = {jump}, substeps = {substeps}, chain = {chain}, draws = {draws}"
            )
        self.share = share
        self.draws = draws
        self.unbiased = unbiased
        self.jump = jump
        self.substeps = substeps
        self.gradient = gradient
        self.origin = origin
        self.chain = chain
        self.levels = LogNormal() if levels is None else levels

    def query(self, step: Step) -> Query | None:
        """Pairs for the first items of the batch whose level leaves something below it to learn."""
        noisy = step.noisy(self.share, self.levels.sigma_min)
        x_n, sigma_n, level_n = step.x_n[noisy], step.sigma_n[noisy], step.item_level[noisy]
        if len(x_n) == 0:
            return None
        floor = torch.full_like(level_n, self.levels.sigma_min)
        sigma_s = self.levels.sample(floor, upper=level_n, generator=step.generator)
        sigma_t = sigma_s / self.jump

        first = (level_n if self.origin == "x_n" else level_n / self.jump).maximum(sigma_t)
        x = perturb(x_n, sigma_n, first, step.noise)
        x_t = reverse_chain(step.teacher, x, edm_levels(self.chain + 1, sigma_t, first), step.noise)

        def repeated(x: Tensor) -> Tensor:
            return x.repeat(self.draws, *[1] * (x.ndim - 1))

        # One estimate at x_t is the target and what all draws begin with.
        with torch.no_grad():
            target = step.teacher(x_t, sigma_t)
        sigma_pair = repeated(sigma_s)
        jump = edm_levels(self.substeps + 1, sigma_pair, repeated(sigma_t)).to(x_t.dtype)
        x_s = reverse_step(repeated(x_t), repeated(target), jump[0], jump[1], step.noise)
        x_s = reverse_chain(step.teacher, x_s, jump[1:], step.noise)
        scale = edm_weight(sigma_s, step.sigma_data)

        def loss(x0_s: Tensor, x0_t: Tensor) -> Tensor:
            difference = (x0_s - repeated(x0_t)).reshape(self.draws, *x_t.shape)
            squared_sum = difference.sum(0).square()
            if self.unbiased:  # the mean over pairs of two draws
                product = (squared_sum - difference.square().sum(0)) / (self.draws * (self.draws - 1))
            else:
                product = squared_sum / self.draws**2
            return scale * product.flatten(1).mean(1)

        if self.gradient == "both":
            points, levels = torch.cat([x_s, x_t]), torch.cat([sigma_pair, sigma_t])
            return Query(points, levels, lambda x0: loss(x0[: len(x_s)], x0[len(x_s) :]), sigma_s)
        return Query(x_s, sigma_pair, lambda x0: loss(x0, target), sigma_s)
