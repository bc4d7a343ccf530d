"""Training steps of each objective against plain score matching on the same network, averaged over a training.

Terms start late, and posterior draws are made once in many steps: the ratio is that of whole trainings, from the steps
of each phase, weighed by its share of the training. Left out are the ``capacity / batch`` steps in which replay first
fills its buffer.

    python benchmarks/speed/objectives.py default

prints the bytes that training with an objective takes at its dearest, in a process of its own.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from pairs import Row, alternate, device, single

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.networks import UNet
from lightning_tweedie.objectives import Objective, PosteriorReplay

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "methods"))
from registry import make_objective  # noqa: E402

__all__ = ["rows"]

CONFIGS = HERE.parents[1] / "configs"
PLAIN = "naive"
SIGMA_N = 0.2


def make_denoiser(quick: bool) -> Denoiser:
    """The network of ``configs/model/unet_small.yaml``, or a tiny one."""
    config = yaml.safe_load((CONFIGS / "model" / "unet_small.yaml").read_text())
    settings = config["init_args"]["denoiser"]["init_args"]["backbone"]["init_args"]
    return Denoiser(UNet(**{**settings, **({"width": 8} if quick else {})}), sigma_data=0.5).to(device())


@dataclass(frozen=True)
class Phase:
    """A part of the training in which steps are alike.

    Args:
        progress: A point within it.
        share: Of the training.
        cycle: Steps after which all repeats.
    """

    progress: float
    share: float
    cycle: int


def phases(objective: Objective) -> list[Phase]:
    """Those of a training."""
    replay = objective.terms["replay"] if "replay" in objective.terms else None
    edges = {0.0, 1.0, *(float(term.start) for term in objective.terms.values())}  # type: ignore[arg-type]
    if replay is not None:
        edges.add(float(replay.draw_start))  # type: ignore[arg-type]
    ends = sorted(edges)
    every = 1 if replay is None else int(replay.every)  # type: ignore[arg-type]
    return [
        Phase((start + end) / 2, end - start, 1 if replay is None or start < replay.start else every)  # type: ignore
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]


class Training:
    """A network that trains with an objective; steps are those of a training but for data and averages."""

    def __init__(self, name: str, quick: bool) -> None:
        torch.manual_seed(0)
        self.denoiser = make_denoiser(quick)
        self.teacher = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.denoiser.parameters(), fused=True)
        self.objective = make_objective(name, {}).to(device())
        self.batch = 8 if quick else 64
        self.x_n = 0.5 * torch.randn(self.batch, 1, 28, 28, device=device())
        self.sigma_n = torch.full((self.batch,), SIGMA_N, device=device())
        for term in self.objective.terms.values():
            if isinstance(term, PosteriorReplay):
                # The first step with the term decides on the capacity; what the draws are is of no matter here.
                self.step(term.start + term.ramp / 2)
                assert term.buffer.draws is not None and term.buffer.levels is not None
                first = term.buffer.draws[: self.batch].clone(), term.buffer.levels[: self.batch].clone()
                while not term.buffer.is_full:
                    term.buffer.write(*first)

    def step(self, progress: float) -> None:
        """One step of training."""
        generator = torch.Generator(device()).manual_seed(0)
        losses = self.objective(
            self.denoiser, self.x_n, self.sigma_n, teacher=self.teacher, progress=progress, generator=generator
        )
        losses.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def of(self, phase: Phase) -> Callable[[], object]:
        """A cycle of steps."""

        def cycle() -> None:
            for _ in range(phase.cycle):
                self.step(phase.progress)

        return cycle


def _time(name: str, quick: bool) -> Row:
    plain, trained = Training(PLAIN, quick), Training(name, quick)
    parts = phases(trained.objective)
    ways = {PLAIN: plain.of(Phase(0.5, 1.0, 1))}
    ways |= {f"{name}, {100 * part.progress:.0f} %": trained.of(part) for part in parts}
    options = dict(pairs=1, seconds=0.0, warmup=0) if quick else dict(pairs=9, seconds=1.0, warmup=2)
    times = alternate(ways, **options)  # type: ignore[arg-type]
    base = times[PLAIN]
    steps = [times[way] / part.cycle for way, part in zip(list(ways)[1:], parts, strict=True)]
    ratio = sum(part.share * its / base for part, its in zip(parts, steps, strict=True))
    assert isinstance(ratio, np.ndarray)
    details = {
        "dearest_phase": round(max(float(np.median(its / base)) for its in steps), 3),
        "phases": "; ".join(
            f"{part.share:.0%} at {np.median(its / base):.2f}" for part, its in zip(parts, steps, strict=True)
        ),
        "seconds_against": float(f"{np.median(base):.4g}"),
        "pairs": len(base),
        "batch": trained.batch,
        "parameters": sum(parameter.numel() for parameter in trained.denoiser.parameters()),
    }
    what = "time of a step, over a training"
    return Row("objectives", name, "score matching", float(np.median(ratio)), ratio.min(), ratio.max(), what, details)


def peak_bytes(name: str, quick: bool) -> int:
    """Bytes at the most, beyond those taken before there was a network; call it in a fresh process."""
    gpu = torch.cuda.is_available()
    if gpu:
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # what importing took is no peak
        before = 1024 * _status("VmRSS")
    training = Training(name, quick)
    for part in phases(training.objective):
        for term in training.objective.terms.values():
            if isinstance(term, PosteriorReplay):
                term.steps = 0  # draws are made in the next step
        for _ in range(2):  # the optimiser's state comes with the first
            training.step(part.progress)
    return (torch.cuda.max_memory_allocated() if gpu else 1024 * _status("VmHWM")) - before


def _status(name: str) -> int:
    """What Linux tells of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _memory(names: list[str], quick: bool) -> list[Row]:
    def measure(name: str) -> int:
        command = [sys.executable, str(Path(__file__).resolve()), name, *(["--quick"] if quick else [])]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    found: dict[str, list[int]] = {name: [] for name in names}
    for _ in range(1 if quick else 3):
        for name in names:
            found[name].append(measure(name))
    base = np.array(found[PLAIN])
    rows = []
    for name, its in found.items():
        details = {"mebibytes": round(float(np.median(its)) / 2**20, 1)}
        if name == PLAIN:
            rows.append(single("objectives", "score matching", [i / 2**20 for i in its], "peak memory, MiB"))
            continue
        ratio = np.array(its) / base
        row = Row(
            "objectives", name, "score matching", float(np.median(ratio)), ratio.min(), ratio.max(), "peak memory"
        )
        row.details = details | {"pairs": len(its)}
        rows.append(row)
    return rows


def rows(quick: bool = False) -> list[Row]:
    """All objectives: time, then memory."""
    names = sorted(path.stem for path in (CONFIGS / "objective").glob("*.yaml") if path.stem != PLAIN)
    if quick:
        names = ["ambient", "default"]
    return [_time(name, quick) for name in names] + _memory([PLAIN, *(["default"] if quick else names)], quick)


if __name__ == "__main__":
    print(peak_bytes(sys.argv[1], "--quick" in sys.argv))
