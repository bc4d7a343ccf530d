"""Ambient denoising score matching: the clean denoiser above the data's noise level."""

from __future__ import annotations

from lightning_tweedie.levels import LevelDistribution, LogNormal
from lightning_tweedie.objectives.score_matching import ambient_query
from lightning_tweedie.objectives.term import Query, Step, Term

__all__ = ["AmbientScoreMatching"]


class AmbientScoreMatching(Term):
    """Learns ``E[x_0 | x_t]`` of the clean data from noisy data, exactly, for ``sigma_t > sigma_n``.

    Each item is raised to a level above its own ``sigma_n`` and the double Tweedie identity turns the
    prediction of ``x_n`` into one of ``x_0`` (2404.10177, theorem 3.1). Clean items (``sigma_n = 0``) are
    ordinary score matching over all levels, so clean, noisy and mixed data share this one path.

    Args:
        levels: Distribution of the training levels, truncated above each item's ``sigma_n``; EDM's
            log-normal when absent.
        weight: Factor of the term.
        stable: Regress onto the mean of the batch's items that could have led to a point (2302.00670): less noise in
            the gradient where data have few dimensions. Only items with the same ``sigma_n`` stand for each other, and
            none whose noise differs between pixels.
    """

    name = "ambient"

    def __init__(self, levels: LevelDistribution | None = None, weight: float = 1.0, stable: bool = False) -> None:
        super().__init__(weight)
        self.levels = LogNormal() if levels is None else levels
        self.stable = stable

    def query(self, step: Step) -> Query:
        """Every item at one level above its own."""
        sigma_t = self.levels.sample(step.item_level, generator=step.generator)
        reference = (step.x_n, step.sigma_n) if self.stable and step.sigma_n.ndim == 1 else None
        return ambient_query(step, step.sigma_n, sigma_t, reference)
