"""Restored items and what they are worth: closeness to the clean ones, calibration of the uncertainty."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.store import ChunkStore, conditions
from lightning_tweedie.kernels import raise_to_white
from lightning_tweedie.metrics.estimate import Estimate, mean_of
from lightning_tweedie.metrics.restoration import SSIM_WINDOW, interval_coverage, psnr, ssim
from lightning_tweedie.pictures import Picture
from lightning_tweedie.precision import full_precision
from lightning_tweedie.randomness import SampleNoise
from lightning_tweedie.sampling import Sampler, SDEDPMSolverPP2M, one_step, posterior_samples

__all__ = [
    "Restoration",
    "calibration_curve",
    "calibration_picture",
    "noisy_items",
    "restoration_quality",
    "restore",
]

_GOALS = (0.5, 0.8, 0.9)
"""Nominal levels to report; of those that the number of draws allows, the nearest are taken."""

_CHUNK = 16
"""Items that are dealt to a process at once: so few, because the draws of a single one are much work. Batches end where
a chunk does, and with them goes the rounding of floats; so this is a constant, not a setting."""

_ITEMS = 64  # compared at a time: copies of all draws at once would need much memory


@dataclass
class Restoration:
    """Noisy items and what has become of them, on the CPU.

    Args:
        x_n: Noisy items ``(B, *shape)``, images ``(B, C, H, W)``.
        one_step: Their estimates ``E[x_0 | x_n]``, ``(B, *shape)``.
        draws: Posterior draws ``(K, B, *shape)``.
        x_0: The clean items ``(B, *shape)`` in [-1, 1]; None where they are not known.
        sigma_n: Noise level of each item, ``(B,)`` or ``(B, *shape)``, on the scale of the data.
    """

    x_n: Tensor
    one_step: Tensor
    draws: Tensor
    x_0: Tensor | None
    sigma_n: Tensor


def noisy_items(batch: NoisyBatch, count: int | None = None) -> NoisyBatch | None:
    """The first items that can be restored.

    Args:
        batch: Items; there is nothing to restore in those with ``sigma_n = 0``.
        count: At most so many; all when None.

    Returns:
        They; None if there are none.
    """
    noisy = _has_noise(batch.sigma_n).nonzero()[:count, 0]
    if len(noisy) == 0:
        return None
    x_0 = None if batch.x_0 is None else batch.x_0[noisy]
    return NoisyBatch(batch.x_n[noisy], batch.sigma_n[noisy], batch.index[noisy], x_0, batch.correlation)


def _has_noise(sigma_n: Tensor) -> Tensor:
    """Which items hold noise, ``(B,)``, by their levels or maps of them."""
    return (sigma_n.reshape(len(sigma_n), -1) > 0).any(1)


def restore(
    denoiser: Denoiser,
    x_n: Tensor,
    sigma_n: Tensor,
    indices: Sequence[int],
    x_0: Tensor | None = None,
    *,
    correlation: Correlation | None = None,
    draws: int = 19,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 64,
    processes: Processes | None = None,
    store: Path | None = None,
    progress: str | None = None,
) -> Restoration:
    """Restores items in one step and by posterior draws.

    Noise that is not white is first raised to white noise that covers it, by numbers that belong to the item. All draws
    of an item start from there: they are draws of what it may have been, given the raised one.

    The result is bitwise the same on any number of processes, and the same up to the rounding of floats with any
    batch size. Every process must ask, and for the same items.

    Args:
        denoiser: A trained denoiser (use the EMA's), in evaluation mode.
        x_n: Noisy items ``(B, *shape)``.
        sigma_n: Their levels ``(B,)``, ``> 0``, or maps of them ``(B, *shape)``, on the scale of the data.
        indices: Numbers of the items, length ``B``: with the seed they decide the draws.
        x_0: The clean items, if they are known; they take no part and are handed on.
        correlation: That of their noise; none when None.
        draws: Posterior draws of each item, at least 1. 19 make intervals of exactly 50, 80 and 90 %.
        sampler: Stochastic solver of the draws; ``SDEDPMSolverPP2M`` with 18 levels when absent.
        seed: Seed of the draws.
        batch_size: Items restored at once, 16 at most.
        processes: Who shares the work; all processes there are when absent.
        store: Folder in which the draws of finished items are kept, 16 items in a file, under names made of all that
            they depend on: an interrupted call continues, and the draws of other items, networks or samplers can never
            be taken for these.
        progress: What the progress bar says; none when absent.

    Returns:
        All items, in order, on every process.

    Raises:
        UserError: There is no item, or one without noise; or the store cannot be written.
    """
    if draws < 1 or batch_size < 1:
        raise UserError(f"draws = {draws} and batch_size = {batch_size} must be at least 1")
    if len(sigma_n) == 0 or not bool(_has_noise(sigma_n).all()):
        raise UserError(
            "restoration needs noisy items, with sigma > 0, not clean ones: leave restorations out for such data"
        )
    sampler = SDEDPMSolverPP2M() if sampler is None else sampler
    processes = Processes() if processes is None else processes
    device = denoiser.sigma_data.device
    finished, chunks = ChunkStore(store), processes.deal(len(x_n), _CHUNK)
    shaped = {} if correlation is None else {"correlation": correlation.autocorrelation.tolist()}
    made_by = json.dumps(conditions(denoiser, x_n.shape[1:], sampler, seed, draws=draws, **shaped))
    names = {chunk.start: _name(made_by, x_n, sigma_n, indices, chunk) for chunk in chunks}
    shape = (1 + draws, *x_n.shape[1:])
    parts: dict[int, Tensor] = {}
    for chunk in chunks:
        found = finished.read(names[chunk.start], shape)
        if found is not None and len(found) == len(chunk):
            parts[chunk.start] = found
    missing = [chunk for chunk in chunks if chunk.start not in parts]
    hidden = progress is None or not processes.is_first
    total = sum(map(len, missing)) * (1 + draws * sampler.evaluations(sampler.steps))
    with (
        processes.together(),
        # Counts evaluations, not items: all items may well be in one batch, and the bar is to say how long it takes.
        tqdm(total=total, desc=progress, unit="evaluation", unit_scale=True, leave=False, disable=hidden) as bar,
        full_precision(device),
    ):

        def counted(x: Tensor, sigma: Tensor) -> Tensor:
            bar.update(len(x))
            return denoiser(x, sigma)

        network: Any = counted
        for chunk in missing:
            rows = []
            for start in range(chunk.start, chunk.stop, batch_size):
                here = slice(start, min(start + batch_size, chunk.stop))
                x, sigma = x_n[here].to(device), sigma_n[here].to(device)
                numbers = [int(i) for i in indices[here]]
                x, sigma = raise_to_white(x, sigma, correlation, SampleNoise(seed, numbers, device, "white"))
                drawn = posterior_samples(network, x, sigma, draws, sampler, seed=seed, indices=numbers)
                rows.append(torch.stack([one_step(network, x, sigma), *drawn], dim=1).float().cpu())
            parts[chunk.start] = torch.cat(rows)
            finished.write(names[chunk.start], parts[chunk.start])
    results = processes.gather(parts, len(x_n)).transpose(0, 1)
    return Restoration(
        x_n=x_n.detach().cpu(),
        one_step=results[0],
        draws=results[1:],
        x_0=None if x_0 is None else x_0.detach().cpu(),
        sigma_n=sigma_n.detach().cpu(),
    )


def _name(made_by: str, x_n: Tensor, sigma_n: Tensor, indices: Sequence[int], chunk: range) -> str:
    """Names the draws of a chunk by how they are made and by the items that they belong to."""
    here = slice(chunk.start, chunk.stop)
    digest = hashlib.sha256(f"{made_by}/{[int(i) for i in indices[here]]}".encode())
    for values in (x_n, sigma_n):
        digest.update(values[here].detach().float().cpu().contiguous().numpy().tobytes())
    return f"{chunk.start:08d}-{digest.hexdigest()[:32]}"


def restoration_quality(restoration: Restoration) -> dict[str, Estimate]:
    """How good restorations are, as means over the items.

    * ``psnr_noisy``, ``psnr_one_step``, ``psnr_draw``, ``psnr_mean``: PSNR in decibels of the noisy items, the
      one-step estimates, the first draw of each, and the mean of the draws;
    * ``ssim_noisy``, ...: their structural similarity, for images of 11 x 11 pixels and more;
    * ``interval_coverage_50``, ``_80``, ``_90``: how often intervals of these nominal levels, in percent, hold the
      clean value; right is the level itself. These three exist with 19, 39, ... draws; with others there are the
      nearest levels, by their own names.

    The one-step estimate is the best in squared error. A draw from the exact posterior has twice its squared error, so
    its PSNR is 3 dB lower, and the mean of ``K`` draws has ``1 + 1/K`` times it.

    Draws carry the error of their solver too. With the exact denoiser of a Gaussian, those of ``SDEDPMSolverPP2M`` with
    18 levels have 1.00 to 1.05 times the right variance, so that intervals of 90 % hold 90 to 91 %; those of
    ``Ancestral`` have 0.64 to 0.78 times it, and their intervals hold 81 to 86 % (benchmarks/draw_variance.py). Compare
    numbers at equal solvers.

    Args:
        restoration: With clean items.

    Raises:
        UserError: The clean items are not known.
    """
    x_0 = _clean(restoration)
    sets = {
        "noisy": restoration.x_n,
        "one_step": restoration.one_step,
        "draw": restoration.draws[0],
        "mean": restoration.draws.mean(0),
    }
    results = {f"psnr_{name}": mean_of(psnr(items, x_0)) for name, items in sets.items()}
    if x_0.ndim == 4 and min(x_0.shape[-2:]) >= SSIM_WINDOW:
        results |= {f"ssim_{name}": mean_of(_in_parts(ssim, items, x_0)) for name, items in sets.items()}
    curve = dict(calibration_curve(restoration))
    reported = {min(curve, key=lambda level: abs(level - goal)) for goal in _GOALS} if curve else set()
    return results | {f"interval_coverage_{100 * level:.3g}": curve[level] for level in sorted(reported)}


def calibration_curve(restoration: Restoration) -> list[tuple[float, Estimate]]:
    """Nominal level of each interval between posterior draws, ascending, and how often it holds the clean value.

    Args:
        restoration: With clean items.

    Returns:
        Both as shares in [0, 1]; ``lightning_tweedie.metrics.restoration.interval_coverage`` says what is counted.

    Raises:
        UserError: The clean items are not known.
    """
    places = torch.arange(len(_clean(restoration))).split(_ITEMS)
    shares: dict[float, list[Tensor]] = {}
    for rows in places:
        for level, share in interval_coverage(restoration.draws[:, rows], _clean(restoration)[rows]).items():
            shares.setdefault(level, []).append(share)
    joined = {level: torch.cat(parts) for level, parts in shares.items()}
    # An item that says nothing about uncertainty is no evidence against it.
    return [(level, mean_of(share[~share.isnan()])) for level, share in sorted(joined.items())]


def calibration_picture(curves: Mapping[str, Sequence[tuple[float, Estimate]]]) -> Picture:
    """Draws how often intervals hold the clean value against how often they should.

    Args:
        curves: What :func:`calibration_curve` answers, under the names of what was measured.

    Returns:
        The picture: the diagonal is right, the side above it too careful, the one below too sure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A Figure of its own: pyplot would keep global state and choose a display.
    figure = Figure(figsize=(5.6, 5.6 + 0.22 * len(curves)), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="0.6", linestyle="--", linewidth=1, label="exact posterior")
    for x, y, says in ((27, 85, "draws differ too much"), (73, 15, "draws are too much alike,\nor in the wrong place")):
        axes.text(x, y, says, color="0.45", ha="center", va="center", fontsize=9)
    for name, curve in curves.items():
        nominal = [100 * level for level, _ in curve]
        actual = [100 * share.value for _, share in curve]
        errors = [200 * (share.standard_error or 0.0) for _, share in curve]
        axes.errorbar(nominal, actual, yerr=errors, marker="o", markersize=4, linewidth=1.2, capsize=2, label=name)
    axes.set(
        xlim=(0, 100),
        ylim=(0, 100),
        xlabel="nominal level of the interval, %",
        ylabel="clean pixels that are inside, % (bars: 2 standard errors)",
        title="Calibration of posterior draws",
    )
    axes.set_aspect("equal")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _clean(restoration: Restoration) -> Tensor:
    if restoration.x_0 is None:
        raise UserError(
            "restorations are measured against clean items, and these data have none: use data with known clean items, "
            "or leave restoration out"
        )
    return restoration.x_0


def _in_parts(measure: Any, estimate: Tensor, reference: Tensor) -> Tensor:
    """A measure of single items, some items at a time."""
    pairs = zip(estimate.split(_ITEMS), reference.split(_ITEMS), strict=True)
    return torch.cat([measure(x, y) for x, y in pairs])
