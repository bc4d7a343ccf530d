"""From held-out items to rows of results."""

from __future__ import annotations

import time
from typing import Any

from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.evaluation.restoration import Restoration, restoration_quality, restore
from lightning_tweedie.evaluation.results import Row
from lightning_tweedie.evaluation.samples import solver_facts
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.sampling import Sampler

__all__ = ["measure_restorations"]


def measure_restorations(
    denoiser: Denoiser,
    items: NoisyBatch,
    sampler: Sampler,
    draws: int,
    work: Work,
    *,
    facts: dict[str, Any],
    progress: str = "restorations",
) -> tuple[list[Row], Restoration]:
    """Restores items and measures how close they come to the clean ones.

    Args:
        denoiser: A trained denoiser, in evaluation mode.
        items: Noisy items with the clean ones.
        sampler: Stochastic solver of the draws.
        draws: Posterior draws of each item.
        work: Who does it, and where.
        facts: Fields of the rows that say what the denoiser is.
        progress: What the progress bar says.

    Returns:
        A row for each value, and the restorations; on every process.

    Raises:
        UserError: There is nothing to restore, or nothing to compare with.
    """
    start = time.perf_counter()
    restoration = restore(
        denoiser,
        items.x_n,
        items.sigma_n,
        items.index.tolist(),
        items.x_0,
        correlation=items.correlation,
        draws=draws,
        sampler=sampler,
        seed=work.seed,
        batch_size=work.batch_size,
        processes=work.processes,
        store=None if work.store is None else work.store / "restorations",
        progress=work.told(progress),
    )
    rows: list[Row] = []
    with work.processes.together():
        if work.processes.is_first:
            results = restoration_quality(restoration)
            told = facts | work.facts() | solver_facts(sampler) | {"sigma_n": float(items.sigma_n.max())}
            told |= {"n": len(items.x_n), "seconds": round(time.perf_counter() - start, 3)}
            rows = [
                Row(metric=name, value=value, standard_error=error, **told) for name, (value, error) in results.items()
            ]
    return work.processes.tell(rows), restoration
