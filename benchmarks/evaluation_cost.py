"""What an evaluation costs besides the sampling: 1,000 images with the Inception network, and the distance alone.

The images are random ones of 32 x 32 pixels: what is measured takes as long as with any others. The features of the
reference are computed first and found in a file afterwards, as in every evaluation but the first.

    python benchmarks/evaluation_cost.py --out docs/results/evaluation_cost.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lightning_tweedie.commands.evaluate import evaluate
from lightning_tweedie.commands.statistics import statistics
from lightning_tweedie.evaluation.results import device_name, versions
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.frechet import frechet_distance, gaussian_frechet_distance


def features(n: int, d: int, seed: int) -> FeatureStatistics:
    """Correlated ones, so that covariances have a spectrum."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) / d**0.5
    return FeatureStatistics(torch.randn(n, d, generator=generator) @ mix)


def distance_seconds(n: int, d: int) -> tuple[float, float]:
    """Seconds from features to the distance with its standard error, and of the distance alone."""
    generated, reference = features(n, d, 0), features(n, d, 1)
    start = time.perf_counter()
    frechet_distance(generated, reference)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    gaussian_frechet_distance(generated.mean, generated.cov, reference.mean, reference.cov)
    return whole, time.perf_counter() - start


def evaluation_seconds(n: int, extractor: str) -> float:
    """Seconds of `evaluate` for so many images, with the features of the reference at hand."""
    levels = np.random.default_rng(0).integers(0, 256, (2, n, 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        generated, reference, stored, out = (str(Path(folder, name)) for name in ("g.npz", "r.npz", "s.npz", "o.json"))
        np.savez(generated, arr_0=levels[0])
        np.savez(reference, arr_0=levels[1])
        statistics(images=reference, extractor=extractor, out=stored)
        start = time.perf_counter()
        evaluate(generated=generated, reference=stored, extractor=extractor, metrics="fid,kid,prc", out=out)
        return time.perf_counter() - start


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=1000, help="images that are evaluated")
    parser.add_argument("--extractor", default="inception")
    parser.add_argument("--features", type=int, default=2048, help="features in the distance")
    parser.add_argument("--items", type=int, default=10_000, help="items behind them")
    parser.add_argument("--out", type=Path, help="file for the seconds as JSON")
    args = parser.parse_args()
    whole, alone = distance_seconds(args.items, args.features)
    result = {
        "evaluate_seconds": round(evaluation_seconds(args.num, args.extractor), 1),
        "num": args.num,
        "extractor": args.extractor,
        "frechet_seconds": round(whole, 1),
        "distance_alone_seconds": round(alone, 1),
        "features": args.features,
        "items": args.items,
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cpu")),
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
