"""Denoising score matching, which takes the data as clean."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tweedie.kernels import perturb
from lightning_tweedie.levels import LevelDistribution, LogNormal
from lightning_tweedie.objectives.term import Query, Step, Term
from lightning_tweedie.preconditioning import edm_weight
from lightning_tweedie.tweedie import expected_noisy, noise_share

__all__ = ["ScoreMatching", "ambient_query"]


def ambient_query(step: Step, sigma_n: Tensor, sigma_t: Tensor) -> Query:
    """Score matching on data with noise of level ``sigma_n``, at levels ``sigma_t`` (2404.10177, eq. 7).

    The loss ``lambda(sigma_t) |(1 - r) D(x_t) + r x_t - x_n|^2``, averaged over the elements of an item, is
    ordinary denoising score matching where ``sigma_n = 0``.
    """
    x_t = perturb(step.x_n, sigma_n, sigma_t, step.noise)
    r = noise_share(sigma_n, sigma_t, x_t)

    def loss(x0: Tensor) -> Tensor:
        error = (expected_noisy(x0, x_t, r) - step.x_n) ** 2
        return edm_weight(sigma_t, step.sigma_data) * error.flatten(1).mean(1)

    return Query(x_t, sigma_t, loss, sigma_t)


class ScoreMatching(Term):
    """Denoising score matching on the data as if they were clean (1905.07088; EDM's weighting).

    On clean data it is the ceiling of what learning from noisy data can reach; on noisy data it is the
    naive control, which learns to generate the noise as well.

    Args:
        levels: Distribution of the training levels; EDM's log-normal when absent.
        weight: Factor of the term.
    """

    name = "score_matching"

    def __init__(self, levels: LevelDistribution | None = None, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.levels = LogNormal() if levels is None else levels

    def query(self, step: Step) -> Query:
        """Every item at one level above zero, whatever noise it holds."""
        zero = torch.zeros_like(step.item_level)
        return ambient_query(step, zero, self.levels.sample(zero, generator=step.generator))
