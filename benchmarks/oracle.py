"""How near each objective comes to the exact denoiser on a ring of eight Gaussians.

The clean data (standard deviation 0.1 around eight points of the unit circle) are seen only through
noise of level 0.2. The exact denoiser of the clean data is known, so two numbers tell everything:

* excess risk by level, ``E|D - D*|^2 / E|x_0 - D*|^2``: 0 for the exact denoiser;
* the spread of full samples around their nearest centre: 0.100 for the clean data.

Every row trains the same network on the same points with the same number of steps, and the same batch.

    python benchmarks/oracle.py --out docs/results/ring.json
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.data.toy import ring_means
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.networks import MLP
from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective, PosteriorReplay, ScoreMatching
from lightning_tweedie.oracles import MixtureOracle
from lightning_tweedie.randomness import step_generator
from lightning_tweedie.sampling import sample

SIGMA_N = 0.2
SPREAD = 0.1
POINTS = 20_000
BATCH = 512
LEARNING_RATE = 4e-3
START = 0.25  # ambient score matching settles quickly here
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def ring() -> MixtureOracle:
    """The clean distribution, with its exact denoiser."""
    return MixtureOracle(ring_means(), torch.full((8,), SPREAD))


def consistency() -> Consistency:
    """Two-draw consistency with chains from the data themselves; weight 1 costs accuracy at the level of the noise."""
    return Consistency(weight=0.3, start=START, origin="x_n", chain=2)


def objectives() -> dict[str, tuple[float, Objective]]:
    """Noise level of the data and objective of each row."""
    return {
        "clean data (ceiling)": (0.0, Objective(AmbientScoreMatching())),
        "naive (noisy as if clean)": (SIGMA_N, Objective(ScoreMatching())),
        "ambient": (SIGMA_N, Objective(AmbientScoreMatching())),
        "ambient + consistency": (SIGMA_N, Objective(consistency=consistency())),
        "ambient + replay": (SIGMA_N, Objective(replay=PosteriorReplay(start=START))),
        "ambient + replay + consistency": (
            SIGMA_N,
            Objective(consistency=consistency(), replay=PosteriorReplay(start=START)),
        ),
    }


def train(name: str, sigma_n: float, objective: Objective, data: Tensor, steps: int, seed: int) -> EMA:
    """Trains one network; returns its average."""
    torch.manual_seed(seed)
    clean = ring()
    denoiser = Denoiser(
        MLP(dim=2, width=256, depth=3), sigma_data=float(clean.means.square().mean().add(SPREAD**2).sqrt())
    )
    ema = EMA([200])
    ema.attach(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = WarmupCosine(optimizer, warmup=200, total_steps=steps)
    levels = torch.full((BATCH,), sigma_n)
    for step in tqdm(range(steps), desc=name, mininterval=2):
        generator = step_generator(seed, rank=0, step=step)
        x_n = data[torch.randint(len(data), (BATCH,), generator=generator)]
        losses = objective(denoiser, x_n, levels, teacher=ema.denoiser, progress=step / steps, generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update(denoiser)
    return ema


@torch.no_grad()
def evaluate(ema: EMA, seed: int) -> dict[str, float]:
    """Excess risk at each level on fresh points, and the spread of full samples."""
    clean = ring()
    generator = torch.Generator().manual_seed(10_000 + seed)
    row = {}
    for sigma in LEVELS:
        x_0 = clean.sample(20_000, generator)
        x = x_0 + sigma * torch.randn(x_0.shape, generator=generator)
        exact = clean(x, sigma)
        excess = (ema.denoiser(x, sigma) - exact).square().sum() / (x_0 - exact).square().sum()
        row[f"excess_risk_{sigma:g}"] = round(float(excess), 5)
    samples = sample(ema.denoiser, (10_000, 2), seed=seed)
    nearest = clean.means[torch.cdist(samples, clean.means).argmin(1)]
    row["spread"] = round(float((samples - nearest).square().mean().sqrt()), 5)
    return row


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| objective | spread (truth 0.100) | " + " | ".join(f"excess risk at {s:g}" for s in LEVELS) + " |",
        "|---|---|" + "---|" * len(LEVELS),
    ]
    for row in rows:
        risks = " | ".join(f"{row[f'excess_risk_{s:g}']:.3f}" for s in LEVELS)
        lines.append(f"| {row['method']} | {row['spread']:.3f} | {risks} |")
    return "\n".join(lines)


def page(rows: list[dict], command: str) -> str:
    """A page of the docs about the rows."""
    first = rows[0]
    return f"""# A ring of eight Gaussians

Made by `{command}` on {first["device"]}.

Every row trains an MLP of 3 x 256 units on {first["n"]:,} points, {first["steps"]:,} steps of {first["batch"]},
seed {first["seed"]}; it is evaluated on 20,000 fresh points a level and 10,000 full samples. Noisy rows see the
data (standard deviation {SPREAD} around each centre) through noise of level {SIGMA_N} only. The spread is the root
mean square distance to the nearest centre, per coordinate: 0.100 for clean data.

{table(rows)}

Where nothing is trained, below {SIGMA_N} in the row *ambient*, the network extrapolates and may be arbitrarily wrong.
"""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6_000, help="optimiser steps of every row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of the rows to run; all when left out")
    parser.add_argument("--out", type=Path, help="file for the rows as JSON; a page goes beside it as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    rows = []
    for name, (sigma_n, objective) in objectives().items():
        if args.only and name not in args.only:
            continue
        generator = torch.Generator().manual_seed(args.seed)
        x_0 = ring().sample(POINTS, generator)
        data = x_0 + sigma_n * torch.randn(x_0.shape, generator=generator)
        ema = train(name, sigma_n, objective, data, args.steps, args.seed)
        rows.append(
            {
                "method": name,
                "sigma_n": sigma_n,
                "seed": args.seed,
                "n": POINTS,
                "steps": args.steps,
                "batch": BATCH,
                **evaluate(ema, args.seed),
                "device": f"{args.threads} {platform.machine()} core(s)",
                "command": f"python benchmarks/oracle.py --steps {args.steps} --seed {args.seed}",
            }
        )
    print(table(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page(rows, f"{rows[0]['command']} --out {args.out}"))


if __name__ == "__main__":
    main()
