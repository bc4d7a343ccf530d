"""Ambient denoising score matching: the clean denoiser above the data's noise level."""

from __future__ import annotations

from typing import Literal

from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import LevelDistribution, LogNormal
from lightning_tweedie.objectives.score_matching import ambient_query
from lightning_tweedie.objectives.term import Query, Step, Term

__all__ = ["AmbientScoreMatching"]


class AmbientScoreMatching(Term):
    """Learns ``E[x_0 | x_t]`` of the clean data from noisy data, exactly, for ``sigma_t > sigma_n``.

    Each item is raised to a level above its own ``sigma_n`` and the double Tweedie identity turns the
    prediction of ``x_n`` into one of ``x_0`` (2404.10177, theorem 3.1). Clean items (``sigma_n = 0``) are
    ordinary score matching over all levels, so clean, noisy and mixed data share this one path.

    The loss is ``lambda(sigma_t) |(1 - r) D(x_t) + r x_t - x_n|^2 / (1 - r)^p``. Just above ``sigma_n``, where ``r`` is
    nearly 1, a target says little of ``x_0``: seen as one of ``x_0`` its noise has the variance
    ``sigma_n^2 / (1 - r)``. The weighting says how far such levels count.

    Args:
        levels: Distribution of the training levels, truncated above each item's ``sigma_n``; EDM's
            log-normal when absent.
        weight: Factor of the term.
        weighting: ``"precision"`` (``p = 1``): as much as their targets are precise; ``"x_n"`` (``p = 0``): errors of
            the prediction of ``x_n`` (2404.10177), which hardly see these levels; ``"x_0"`` (``p = 2``): errors of the
            denoiser, which see them alone unless there is a ``buffer``.
        buffer: Levels begin at ``(1 + buffer) sigma_n``.
        stable: Regress onto the mean of the batch's items that could have led to a point (2302.00670): less noise in
            the gradient where data have few dimensions. Only items with the same ``sigma_n`` stand for each other, and
            none whose noise differs between pixels.

    Raises:
        UserError: The buffer is negative, or absent where the weighting needs one.
    """

    name = "ambient"

    def __init__(
        self,
        levels: LevelDistribution | None = None,
        weight: float = 1.0,
        weighting: Literal["precision", "x_n", "x_0"] = "precision",
        buffer: float = 0.0,
        stable: bool = False,
    ) -> None:
        super().__init__(weight)
        if buffer < 0 or (weighting == "x_0" and buffer == 0):
            raise UserError(
                f"AmbientScoreMatching needs buffer >= 0, and > 0 with weighting x_0, whose loss has no bound at "
                f"sigma_n, not buffer = {buffer:g} with weighting {weighting}: try 0.4"
            )
        self.levels = LogNormal() if levels is None else levels
        self.power = {"x_n": 0.0, "precision": 1.0, "x_0": 2.0}[weighting]
        self.buffer = buffer
        self.stable = stable

    def query(self, step: Step) -> Query:
        """Items at one level above their own."""
        sigma_n = step.sigma_n[: step.room]
        sigma_t = self.levels.sample((1 + self.buffer) * step.item_level[: step.room], generator=step.generator)
        # Only items with the same noise are exchangeable.
        reference = (step.x_n, sigma_n[:, None] == step.sigma_n) if self.stable and sigma_n.ndim == 1 else None
        return ambient_query(step, sigma_n, sigma_t, reference, self.power)
