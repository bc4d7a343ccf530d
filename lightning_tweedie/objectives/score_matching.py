"""Denoising score matching, which takes the data as clean."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tweedie.kernels import perturb
from lightning_tweedie.levels import LevelDistribution, LogNormal
from lightning_tweedie.objectives.stable_target import stable_target
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight
from lightning_tweedie.tweedie import expected_noisy, noise_share

__all__ = ["ScoreMatching", "ambient_query"]


def ambient_query(
    step: Step,
    sigma_n: Tensor,
    sigma_t: Tensor,
    reference: tuple[Tensor, Tensor] | None = None,
    power: float = 1.0,
) -> Query:
    """Score matching on data with noise of level ``sigma_n``, at levels ``sigma_t`` (2404.10177, eq. 7).

    The loss ``lambda(sigma_t) |(1 - r) D(x_t) + r x_t - x_n|^2 / (1 - r)^power``, averaged over the elements of an
    item, is ordinary denoising score matching where ``sigma_n = 0``.

    Args:
        step: The data.
        sigma_n: The noise that the first ``K`` of them are taken to hold, ``(K,)`` or ``(K, *shape)``.
        sigma_t: Levels to which those are raised, ``(K,)``.
        reference: Items ``(R, *shape)``, among them those of the step, and which of them could stand for each of the
            ``K``, ``(K, R)`` boolean: the mean of those that could have led to a point stands for the item that did
            (:func:`~lightning_tweedie.objectives.stable_target.stable_target`).
        power: Of ``1 - r``, by which the loss is divided: 0 weighs errors of the prediction of ``x_n``, 2 those of
            ``x_0``, 1 each of the latter by the variance of its target.
    """
    target = step.x_n[: len(sigma_t)]
    x_t = perturb(target, sigma_n, sigma_t, step.noise)
    r = noise_share(sigma_n, sigma_t, x_t)
    if reference is not None:
        target = stable_target(x_t, sigma_t**2 - sigma_n**2, *reference)

    def loss(x0: Tensor) -> Tensor:
        # The bound is for levels that rounding has made equal: there both are zero.
        error = (expected_noisy(x0, x_t, r) - target) ** 2 / (1 - r).clamp(min=1e-6) ** power
        return edm_weight(sigma_t, step.sigma_data) * error.flatten(1).mean(1)

    return Query(x_t, sigma_t, loss, sigma_t)


class ScoreMatching(Term):
    """Denoising score matching on the data as if they were clean (1905.07088; EDM's weighting).

    On clean data it is the ceiling of what learning from noisy data can reach; on noisy data it is the
    naive control, which learns to generate the noise as well.

    Args:
        levels: Distribution of the training levels; EDM's log-normal when absent.
        weight: Factor of the term.
        stable: Regress onto the mean of the batch's items that could have led to a point (2302.00670): less noise in
            the gradient where data have few dimensions.
    """

    name = "score_matching"

    def __init__(self, levels: LevelDistribution | None = None, weight: float = 1.0, stable: bool = False) -> None:
        super().__init__(weight)
        self.levels = LogNormal() if levels is None else levels
        self.stable = stable

    def query(self, step: Step) -> Query:
        """Items at one level above zero, whatever noise they hold."""
        all_zero = torch.zeros_like(step.item_level)
        zero = all_zero[: step.room]
        reference = (step.x_n, zero[:, None] == all_zero) if self.stable else None
        return ambient_query(step, zero, self.levels.sample(zero, generator=step.generator), reference)
