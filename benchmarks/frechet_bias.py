"""How much too large the Frechet distance of small sets is.

Two sets of n features of the same law, whose true distance is 0, in three spaces:

* Gaussian features of 64 and of 512 dimensions, whose variances fall like 1/k;
* features of Fashion-MNIST's training images under EfficientNet-Lite0 at 96 pixels, 1,280 dimensions: disjoint random
  sets from the same images, so that runs at large n are not quite independent.

The distance is given as a share of the total variance of the features, which makes the spaces comparable. Beside the
Gaussian curves stands the known bias for large n,

    2/n [tr C + sum_ij l_i l_j (1 + delta_ij) / (2 (l_i + l_j))],    l_i the eigenvalues of C.

    python benchmarks/frechet_bias.py --out docs/results/frechet_bias.json --picture docs/images/frechet_bias.png
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.fashion_mnist import read_fashion_mnist
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.metrics.frechet import frechet_distance

SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
DIMENSIONS = (64, 512)
EXTRACTOR = "efficientnet-lite0-96"
COLOURS = ("#4477aa", "#228833", "#cc6677")

Pair = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def known_bias(spectrum: Tensor) -> float:
    """``n`` times the bias for large ``n``, as a share of the total variance."""
    pairs = spectrum[:, None] * spectrum / (spectrum[:, None] + spectrum) / 2
    return float(2 * (spectrum.sum() + pairs.sum() + pairs.trace()) / spectrum.sum())


def curve(name: str, d: int, pair: Pair, sizes: list[int], total: float, runs: int, seed: int) -> list[dict[str, Any]]:
    """Mean and spread of the distance at each size."""
    rows = []
    for n in tqdm(sizes, desc=name):
        estimates = []
        for run in range(runs):
            x, y = pair(n, torch.Generator().manual_seed((seed * 1_000_000 + n) * 1000 + run))
            estimates.append(frechet_distance(FeatureStatistics(x), FeatureStatistics(y)))
        values = np.array([estimate.value for estimate in estimates]) / total
        errors = [estimate.standard_error for estimate in estimates if estimate.standard_error is not None]
        row = {"features": name, "d": d, "n": n, "runs": runs, "seed": seed}
        row |= {"mean": round(float(values.mean()), 7), "standard_deviation": round(float(values.std(ddof=1)), 7)}
        rows.append(row | {"mean_standard_error": round(float(np.mean(errors)) / total, 7) if errors else None})
    return rows


def gaussian(d: int, runs: int, seed: int) -> list[dict[str, Any]]:
    """The curve of Gaussian features."""
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -1.0
    spread = spectrum.sqrt().float()

    def pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = torch.randn(2, n, d, generator=generator) * spread
        return x, y

    rows = curve(f"Gaussian, d = {d}", d, pair, list(SIZES), float(spectrum.sum()), runs, seed)
    return [row | {"known_bias": round(known_bias(spectrum) / row["n"], 7)} for row in rows]


def images(count: int, runs: int, seed: int) -> list[dict[str, Any]]:
    """The curve of real images."""
    extractor = resolve_extractor(EXTRACTOR)
    data = ArrayDataset(read_fashion_mnist(None, train=True)).take(range(count))
    statistics = extract_features(data, extractor, progress="features")
    features = statistics.features
    assert features is not None

    def pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randperm(count, generator=generator)
        return features[chosen[:n]], features[chosen[n : 2 * n]]

    d, total = statistics.num_features, float(statistics.cov.trace())
    sizes = [n for n in SIZES if 2 * n <= count]
    rows = curve(f"Fashion-MNIST, {EXTRACTOR}, d = {d}", d, pair, sizes, total, runs, seed)
    return [row | {"extractor": EXTRACTOR, "digest": extractor.digest, "images": count} for row in rows]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Distance against n, with the spread from set to set."""
    figure = Figure(figsize=(6.4, 4.2), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["features"] for row in rows))
    for name, colour in zip(names, COLOURS, strict=False):
        own = [row for row in rows if row["features"] == name]
        n = [row["n"] for row in own]
        mean = np.array([row["mean"] for row in own])
        spread = np.array([row["standard_deviation"] for row in own])
        axes.fill_between(n, mean - 2 * spread, mean + 2 * spread, color=colour, alpha=0.2, linewidth=0)
        axes.plot(n, mean, "o-", color=colour, markersize=4, label=name)
        if "known_bias" in own[0]:
            axes.plot(n, [row["known_bias"] for row in own], "--", color=colour, linewidth=1)
    axes.plot([], [], "--", color="grey", linewidth=1, label="known bias for large n")
    axes.fill_between(
        [], [], color="grey", alpha=0.2, linewidth=0, label="two standard deviations of a single distance"
    )
    axes.set(xscale="log", yscale="log", xlabel="n, images in each of the two sets")
    axes.set(ylabel="distance / total variance of the features")
    axes.set_title("Frechet distance between two sets of the same law (truth: 0)", fontsize=11)
    axes.set_xticks(SIZES, [f"{n:,}" for n in SIZES], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="pairs of sets at each n")
    parser.add_argument("--images", type=int, default=10_000, help="real images to take features of; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    parser.add_argument("--picture", type=Path, help="file for the curves")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = [row for d in DIMENSIONS for row in gaussian(d, args.runs, args.seed)]
    if args.images:
        rows += images(args.images, args.runs, args.seed)
    command = f"python benchmarks/frechet_bias.py --runs {args.runs} --images {args.images} --seed {args.seed}"
    device = f"{args.threads} {platform.machine()} core(s)"
    for row in rows:
        print(f"{row['features']:45s} n = {row['n']:6d}  {row['mean']:.5f} +- {row['standard_deviation']:.5f}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps([row | {"device": device, "command": command} for row in rows], indent=1) + "\n")
    if args.picture:
        plot(rows, args.picture)


if __name__ == "__main__":
    main()
