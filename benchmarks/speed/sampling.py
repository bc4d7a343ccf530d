"""Solvers: what they add to the network, and how good their samples are by the number of its evaluations.

The network is trained on clean Fashion-MNIST in the first call, with a fixed budget. Network, samples and features stay
in `runs/benchmarks/sampling`, and a call that was interrupted goes on where it was.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from pairs import Row, alternate, device, ratios
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.data.fashion_mnist import read_fashion_mnist
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.evaluation.extraction import extract_features, reference_statistics
from lightning_tweedie.evaluation.samples import generate
from lightning_tweedie.files import write_whole
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.metrics.frechet import frechet_distance
from lightning_tweedie.networks import UNet
from lightning_tweedie.sampling import DEIS, Ancestral, DPMSolverPP2M, Euler, Heun, Sampler, SDEDPMSolverPP2M, sample

__all__ = ["rows"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "runs" / "benchmarks" / "sampling"
PICTURE = ROOT / "docs" / "benchmarks" / "speed_sampling.png"
STEPS = 1200
"""Of training, at 32 images: about five minutes on two cores."""
EXTRACTOR = "efficientnet-lite0-96"
NAMES = {
    Heun: "Heun",
    DEIS: "DEIS",
    DPMSolverPP2M: "DPM-Solver++(2M)",
    Euler: "Euler",
    SDEDPMSolverPP2M: "SDE-DPM-Solver++(2M)",
    Ancestral: "ancestral",
}
CURVES: dict[type[Sampler], Sequence[int]] = {
    Heun: (18, 10, 6, 4),
    DEIS: (18, 12, 10, 8, 6),
    DPMSolverPP2M: (18, 12, 8),
    Euler: (18, 12),
    SDEDPMSolverPP2M: (18,),
    Ancestral: (18,),
}
"""Numbers of levels. The first of all is the yardstick: 18 levels, which are 35 evaluations, of Heun's method."""


@dataclass
class Setting:
    """What the section is measured with.

    Args:
        denoiser: The network, on the benchmark's device.
        item: Shape of a sample.
        images: Clean ones, uint8 ``(N, C, H, W)``.
        num: Samples of which the distance is taken, more than features for a standard error.
        near: Samples whose distance from the end of the flow is taken.
        reference: Clean images of which the distance is taken.
        fine: Levels of Heun's method that stand for the end of the flow.
        batch: Samples at a time when speed is measured.
        pairs: Turns.
        curves: Solvers with their numbers of levels.
        folder: Where samples and features are kept.
        picture: Where the picture goes.
    """

    denoiser: Denoiser
    item: tuple[int, ...]
    images: Tensor
    num: int
    near: int
    reference: int
    fine: int
    batch: int
    pairs: int
    curves: dict[type[Sampler], Sequence[int]]
    folder: Path
    picture: Path


def network() -> Path:
    """The checkpoint, trained if it is not there."""
    path = FOLDER / "network.ckpt"
    if not path.is_file():
        command = [sys.executable, "-m", "lightning_tweedie", "fit"]
        command += ["--config", str(ROOT / "benchmarks" / "methods" / "fashion_mnist.yaml"), "--data.sigma", "0"]
        command += ["--model.objective", str(ROOT / "configs" / "objective" / "naive.yaml")]
        command += ["--trainer.max_steps", str(STEPS), "--seed_everything", "0"]
        with tempfile.TemporaryDirectory() as runs:
            # What stands on this process' standard output are its rows.
            subprocess.run([*command, "--name", "network", "--runs", runs], check=True, stdout=sys.stderr)
            (last,) = Path(runs).glob("network/fit_*/checkpoints/last.ckpt")
            write_whole(path, last.read_bytes())
    return path


def cost(setting: Setting) -> list[Row]:
    """Images per second at 11 evaluations, against those of 11 bare evaluations; and 12 of DEIS against 35 of Heun."""
    denoiser, shape = setting.denoiser, (setting.batch, *setting.item)
    x = torch.randn(shape, device=denoiser.sigma_data.device)
    level = torch.ones(setting.batch, device=x.device)

    @torch.no_grad()
    def bare(count: int) -> None:
        for _ in range(count):
            denoiser(x, level)

    found = []
    solvers = {NAMES[kind]: kind(6 if kind is Heun else 11) for kind in setting.curves}
    ways = {"11 evaluations of the network": partial(bare, 11)}
    ways |= {f"{name}, 11 evaluations": partial(sample, denoiser, shape, solver) for name, solver in solvers.items()}
    times = alternate(ways, pairs=setting.pairs, warmup=1)
    found += ratios(
        "sampling", times, "11 evaluations of the network", "images/s", faster=True, details=_speeds(times, x)
    )
    best = {f"{NAMES[type(s)]}, {s.evaluations(s.steps)} evaluations": s for s in (Heun(18), DEIS(12))}
    times = alternate(
        {name: partial(sample, denoiser, shape, solver) for name, solver in best.items()}, setting.pairs, warmup=1
    )
    return found + ratios("sampling", times, next(iter(best)), "images/s", faster=True, details=_speeds(times, x))


def _speeds(times: dict[str, np.ndarray], x: Tensor) -> dict[str, dict[str, float]]:
    return {name: {"images_per_second": float(f"{len(x) / np.median(its):.4g}")} for name, its in times.items()}


def measured(setting: Setting) -> Iterator[tuple[type[Sampler], int, Estimate, float]]:
    """For each solver and number of evaluations: the Fréchet distance, and the distance from the end of the flow.

    The latter is the root mean square over pixels, and the median over samples; not a number for stochastic solvers,
    which do not follow the flow.
    """
    extractor, where = resolve_extractor(EXTRACTOR), device()
    chosen = np.random.default_rng(0).permutation(len(setting.images))[: setting.reference]
    clean = reference_statistics(
        setting.images[chosen].float() / 127.5 - 1,
        extractor,
        device=where,
        cache_dir=setting.folder,
        progress="reference",
    )
    make = partial(generate, setting.denoiser, setting.item, batch_size=250)
    end = make(setting.near, Heun(setting.fine), store=setting.folder / "end", progress="end of the flow")
    cells = [(kind, steps) for kind, its in setting.curves.items() for steps in its]
    for kind, steps in tqdm(cells, desc="quality"):
        solver, folder = kind(steps), setting.folder / f"{kind.__name__}-{steps}"
        samples = make(setting.num, solver, store=folder, progress=f"{NAMES[kind]}, {steps} levels")
        features = extract_features(samples, extractor, device=where, store=folder / "features", progress="features")
        off = (samples[: setting.near] - end).square().flatten(1).mean(1).sqrt().median()
        follows = kind not in (Ancestral, SDEDPMSolverPP2M)
        yield (
            kind,
            solver.evaluations(steps),
            frechet_distance(features, clean),
            float(off) if follows else float("nan"),
        )


def quality(setting: Setting) -> list[Row]:
    """Distances as multiples of that of Heun's method with 35 evaluations, one standard error either way."""
    found, yardstick = [], None
    cells = list(measured(setting))
    for kind, count, (distance, error), off in cells:
        yardstick = distance if yardstick is None else yardstick
        details = {"fd": float(f"{distance:.4g}")}
        details |= {} if error is None else {"standard_error": float(f"{error:.2g}")}
        details |= {} if off != off else {"rms_from_end_of_flow": float(f"{off:.3g}")}
        low, high = ((distance + sign * (error or 0.0)) / yardstick for sign in (-1, 1))
        name, against = f"{NAMES[kind]}, {count} evaluations", f"Heun, {cells[0][1]} evaluations"
        what = f"Fréchet distance of {setting.num:,} samples"
        found.append(Row("sampling", name, against, distance / yardstick, low, high, what, details))
    draw(cells, setting.picture)
    return found


def draw(cells: list[tuple[type[Sampler], int, Estimate, float]], path: Path) -> None:
    """Both measures by the number of evaluations."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for number, (kind, name) in enumerate(NAMES.items()):
        its = sorted((count, *estimate, off) for own, count, estimate, off in cells if own is kind)
        if not its:
            continue
        counts, distances, errors, offs = zip(*its, strict=True)
        style = {"color": f"C{number}", "marker": "os^Dvx"[number], "ms": 5, "label": name}
        left.errorbar(counts, distances, [error or 0.0 for error in errors], capsize=2, **style)
        if not np.isnan(offs).any():
            right.plot(counts, offs, **style)
    first = cells[0]
    left.axhline(first[2].value, color="0.6", lw=1, ls="--", zorder=0)
    right.axhline(first[3], color="0.6", lw=1, ls="--", zorder=0)
    left.set(yscale="log", ylabel=f"Fréchet distance, {EXTRACTOR}")
    right.set(yscale="log", ylabel="distance from the end of the flow, RMS per pixel")
    ticks: list[int] = []
    for count in sorted({count for _, count, _, _ in cells}):
        if not ticks or count > 1.1 * ticks[-1]:  # or the numbers overlap
            ticks.append(count)
    for axis in (left, right):
        axis.set(xscale="log", xlabel="evaluations of the network")
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xticks([], minor=True)
    left.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def rows(quick: bool) -> list[Row]:
    """See :mod:`benchmarks.speed`."""
    if quick:
        torch.manual_seed(0)
        tiny = Denoiser(UNet(1, width=8, multipliers=[1], blocks=1, attention=[]), sigma_data=0.5).to(device()).eval()
        images = torch.randint(0, 256, (16, 1, 16, 16), dtype=torch.uint8)
        curves: dict[type[Sampler], Sequence[int]] = {Heun: (3,), DEIS: (3,), Ancestral: (2,)}
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder)
            setting = Setting(tiny, (1, 16, 16), images, 12, 4, 16, 6, 2, 1, curves, into, into / "picture.png")
            return cost(setting) + quality(setting)
    images = torch.from_numpy(read_fashion_mnist())
    trained = load_denoiser(network(), device=device())
    setting = Setting(trained.denoiser, trained.shape, images, 2000, 100, 10_000, 100, 64, 5, CURVES, FOLDER, PICTURE)
    return cost(setting) + quality(setting)
