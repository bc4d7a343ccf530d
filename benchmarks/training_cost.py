"""What a training costs, predicted: CIFAR-10, CelebA-64 and ImageNet-64 at the published budgets.

Measured on the device at hand: seconds of a training step, its memory, and what an objective asks of the network.
Everything else follows from them by the model that the page writes down.

    python benchmarks/training_cost.py --out docs/benchmarks/training_cost.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.evaluation.results import versions
from lightning_tweedie.files import write_whole
from lightning_tweedie.objectives import AmbientScoreMatching, Objective
from lightning_tweedie.serialization import from_config

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs"
sys.path += [str(HERE / "methods"), str(HERE / "speed")]
from costs import method_cost  # noqa: E402
from pairs import block_seconds, device, machine  # noqa: E402


@dataclass(frozen=True)
class Budget:
    """A training whose length is published.

    Args:
        data: The images.
        model: File in ``configs/model``, without its ending.
        side: Of the images, in pixels.
        steps: Optimiser steps.
        batch: Images of a step, on all devices together.
    """

    data: str
    model: str
    side: int
    steps: int
    batch: int


BUDGETS = [
    Budget("CIFAR-10", "unet_cifar10", 32, 200_000, 512),
    Budget("CelebA-64", "unet_64", 64, 200_000, 512),
    Budget("ImageNet-64", "dit_64", 64, 610_352, 4096),
]
"""The first two as in published trainings on noisy images; the last sees 2,500 million images, as EDM (2206.00364)."""

OBJECTIVES = {
    "ambient": "ambient",
    "consistency": "ambient + consistency",
    "replay": "ambient + replay",
    "default": "default",
}
"""Files in ``configs/objective``, and what the table calls them."""


@dataclass(frozen=True)
class Assumed:
    """A device that was not at hand. None of this is measured here.

    Args:
        name: What tables call it.
        peak: Operations per second in matrix products of bfloat16.
        share: Of the peak, that training reaches.
        bandwidth: Bytes per second between its memory and itself.
    """

    name: str = "H200"
    peak: float = 790e12
    share: float = 0.3
    bandwidth: float = 4.3e12


SCALING = 0.95
"""Assumed: images per second on several devices, relative to as many single ones."""


def denoiser_of(budget: Budget) -> Denoiser:
    """The untrained network of its configuration."""
    config = yaml.safe_load((CONFIGS / f"model/{budget.model}.yaml").read_text())
    return Denoiser(from_config(config["init_args"]["denoiser"]["init_args"]["backbone"]), 0.5)


def averages_of(budget: Budget) -> list[float]:
    """The half-lives of its weight averages."""
    config = yaml.safe_load((CONFIGS / f"model/{budget.model}.yaml").read_text())
    return list(config["init_args"]["ema"]["init_args"]["half_lives"])


def training_flops(backbone: nn.Module, shape: Sequence[int]) -> int:
    """Operations of one pass there and back for one image, two for each multiplication and addition."""
    with torch.device("meta"):
        x, level = torch.empty(1, *shape), torch.empty(1)
    # The other kernels of the attention are not counted everywhere.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.to("meta")(x, level).sum().backward()
    return counter.get_total_flops()


def kept_bytes(network: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that are kept for the way back, once for each piece of memory."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def activation_bytes(
    network: Callable[[Tensor], Tensor], shape: Sequence[int], place: torch.device, mixed: bool
) -> int:
    """What one image more adds to that; weights and their copies in bfloat16 cancel."""
    with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
        one, two = (kept_bytes(network, torch.zeros(count, *shape, device=place)) for count in (1, 2))
    return two - one


def matrix_flops() -> float:
    """Operations per second of a matrix product, in the precision of the training."""
    gpu = device().type == "cuda"
    side = 8192 if gpu else 1536
    a = torch.randn(side, side, device=device(), dtype=torch.bfloat16 if gpu else torch.float32)
    block_seconds(lambda: a @ a, 1)
    return max(2 * side**3 / block_seconds(lambda: a @ a, 20 if gpu else 3) for _ in range(3))


def peak_memory() -> int:
    """Bytes that this process has had at most, on its device."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(budget: Budget, batch: int) -> dict[str, Any]:
    """One network on the device at hand; in a process of its own, whose memory is looked at."""
    shape, place = (3, budget.side, budget.side), device()
    mixed = place.type == "cuda"
    denoiser = denoiser_of(budget).to(place)
    parameters = sum(p.numel() for p in denoiser.parameters())
    ema = EMA(averages_of(budget))
    ema.attach(denoiser)
    optimizer = torch.optim.Adam(denoiser.parameters())
    objective = Objective(AmbientScoreMatching())
    x_n = torch.randn(batch, *shape, device=place)
    level = torch.full((batch,), 0.2, device=place)
    # Weights and averages are there already.
    before = 0 if mixed else peak_memory() - parameters * 4 * (1 + len(ema.half_lives))

    def passes() -> None:
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
            loss = objective(denoiser, x_n, level).total
        optimizer.zero_grad()
        loss.backward()

    def update() -> None:
        optimizer.step()
        ema.update(denoiser)

    passes()
    update()
    count = 10 if mixed else 1
    seconds = sorted((block_seconds(passes, count), block_seconds(update, count)) for _ in range(3))[1]
    memory = peak_memory() - before
    activations = {
        f"activation_bytes_{name}": activation_bytes(lambda x: denoiser(x, 1.0), shape, place, name == "bf16")
        for name in ("fp32", "bf16")
    }
    denoiser.backbone.gradient_checkpointing = True  # type: ignore[assignment] # U-Net and DiT both have it
    activations["activation_bytes_checkpointed"] = activation_bytes(
        lambda x: denoiser(x, 1.0), shape, place, mixed=True
    )
    denoiser.backbone.gradient_checkpointing = False  # type: ignore[assignment] # operations are counted without
    used = activations[f"activation_bytes_{'bf16' if mixed else 'fp32'}"]
    return {
        **asdict(budget),
        "parameters": parameters,
        "averages": len(ema.half_lives),
        "flops_per_image": training_flops(denoiser.backbone, shape),
        "measured_batch": batch,
        "seconds_per_image": seconds[0] / batch,
        "update_seconds": seconds[1],
        **activations,
        "memory_measured": memory,
        "memory_predicted": memory_bytes(parameters, len(ema.half_lives), used, batch, mixed),
    }


def memory_bytes(parameters: int, averages: int, activations: int, batch: int, mixed: bool = True) -> int:
    """Memory of a training, on each device.

    Args:
        parameters: Of the network: weights, gradients and averages of 4 bytes, 8 for Adam, 2 for copies in bfloat16.
        averages: Number of weight averages.
        activations: Bytes for each image.
        batch: Images on this device.
        mixed: The network runs in bfloat16.
    """
    return parameters * (4 + 4 + 8 + 4 * averages + (2 if mixed else 0)) + activations * batch


def days(budget: Budget, cost: float, seconds_per_image: float, update_seconds: float, devices: int) -> float:
    """Length of a training.

    Args:
        budget: Steps and batch.
        cost: Of the objective, relative to plain score matching.
        seconds_per_image: Of one device, there and back.
        update_seconds: Of the optimiser and the averages, once in a step.
        devices: That share the batch.
    """
    efficiency = SCALING if devices > 1 else 1.0
    return budget.steps * (budget.batch * cost * seconds_per_image / devices / efficiency + update_seconds) / 86_400


def predictions(row: dict[str, Any], costs: dict[str, float], assumed: Assumed) -> list[dict[str, Any]]:
    """Days for each objective: on the device at hand and on the one that is assumed."""
    budget = Budget(**{name: row[name] for name in ("data", "model", "side", "steps", "batch")})
    # Adam reads weights, gradients and two moments and writes three of them; an average reads two and writes one.
    update = row["parameters"] * (28 + 12 * row["averages"]) / assumed.bandwidth
    rates = {
        "here": (row["seconds_per_image"], row["update_seconds"]),
        "assumed": (row["flops_per_image"] / (assumed.share * assumed.peak), update),
    }
    return [
        {
            "data": budget.data,
            "objective": name,
            "cost": cost,
            **{f"days_{where}_{n}": days(budget, cost, *rate, n) for where, rate in rates.items() for n in (1, 8)},
        }
        for name, cost in costs.items()
    ]


def length(value: float) -> str:
    """Days, in a unit that can be read."""
    hours = 24 * value
    if value > 1000:
        return f"{value / 365.25:,.0f} years"
    if hours < 48:
        return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"
    return f"{value:,.1f} d" if value < 10 else f"{value:,.0f} d"


def page(result: dict[str, Any], source: str) -> str:
    """The tables and the model behind them, in Markdown."""
    assumed, here, peak = Assumed(**result["assumed"]), result["device"], result["matrix_flops"]
    gpu = result["precision"] == "bf16-mixed"
    text = [
        "# What a training costs, predicted",
        "",
        f"`{result['command']}` on {here}, {result['versions']}, commit {result['commit']}. All figures are in "
        f"[{source}]({source}).",
        "",
        "## Measured",
        "",
        f"A training step of plain score matching in {result['precision']}: passes there and back through the network, "
        "then Adam and the weight averages. Operations are counted, not timed: two for a multiplication and an "
        "addition. The matrix product is one of large square matrices on the same device.",
        "",
        "| | network | million parameters | GFLOP / image | s / image | GFLOP/s | of a matrix product's | update, s | "
        "memory of the step measured / predicted, GB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["networks"]:
        achieved = row["flops_per_image"] / row["seconds_per_image"]
        text.append(
            f"| {row['data']} | `{row['model']}` | {row['parameters'] / 1e6:.1f} | "
            f"{row['flops_per_image'] / 1e9:.0f} | {row['seconds_per_image']:.3g} | {achieved / 1e9:,.0f} | "
            f"{achieved / peak:.0%} | {row['update_seconds']:.2g} | {row['memory_measured'] / 1e9:.2f} / "
            f"{row['memory_predicted'] / 1e9:.2f} |"
        )
    text += [
        "",
        "What an objective asks of the network, on average over a training, in passes; one there and back counts "
        "three, and plain score matching is 1. Arithmetic beside the network is not in it.",
        "",
        "| objective | cost |",
        "|---|---:|",
        *(f"| {OBJECTIVES[name]} | {cost:.2f} |" for name, cost in result["costs"].items()),
        "",
        "## Time",
        "",
        "```math",
        r"\text{time} = \text{steps} \cdot \left( \frac{\text{batch} \cdot \text{cost} \cdot \text{seconds per image}}"
        r"{\text{devices} \cdot \text{scaling}} + \text{update} \right), \qquad \text{seconds per image} = "
        r"\frac{\text{FLOP per image}}{\text{FLOP/s reached}}",
        "```",
        "",
        f"On {here} the seconds are those measured. **The {assumed.name} is an assumption**: {assumed.share:.0%} of "
        f"{assumed.peak / 1e12:.0f} TFLOP/s in bfloat16, and an update at {assumed.bandwidth / 1e12:.1f} TB/s; no such "
        f"device was measured. Another share changes the time in proportion. Scaling is assumed to be {SCALING} with "
        "several devices, 1 with one. Validation, pictures and the data path are not in it.",
        "",
        f"| | images | objective | {here} | 8 of them | {assumed.name}, assumed | 8 of them |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in result["predictions"]:
        its = next(network for network in result["networks"] if network["data"] == row["data"])
        text.append(
            f"| {row['data']} | {its['steps'] * its['batch'] / 1e6:,.0f} M | {OBJECTIVES[row['objective']]} | "
            + " | ".join(length(row[f"days_{where}_{n}"]) for where in ("here", "assumed") for n in (1, 8))
            + " |"
        )
    text += [
        "",
        "## Memory",
        "",
        "```math",
        r"\text{memory} = \text{parameters} \cdot (4 + 4 + 8 + 4 \cdot \text{averages} + 2) + "
        r"\text{activations per image} \cdot \text{images per device}",
        "```",
        "",
        "in bytes: weights, gradients, Adam's moments, averages, and copies of the weights in bfloat16. Activations "
        "are what is kept for the backward pass, counted tensor by tensor on the device at hand with the network in "
        "bfloat16; space that single operations need for themselves comes on top. The objective is not in it: a step "
        "has gradients for one batch of points, whatever the objective. Gradient checkpointing costs a pass more for "
        "each image, a third of the time.",
        "",
        "| | parameters × bytes, GB | activations, MB / image | batch | one device, GB | each of 8, GB | "
        "with gradient checkpointing, one / each of 8, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["networks"]:
        fixed = memory_bytes(row["parameters"], row["averages"], 0, 0)
        little = row["activation_bytes_checkpointed"]

        def total(activations: int, devices: int, row: dict[str, Any] = row, fixed: int = fixed) -> str:
            return f"{(fixed + activations * row['batch'] // devices) / 1e9:,.0f}"

        text.append(
            f"| {row['data']} | {fixed / 1e9:.1f} | {row['activation_bytes_bf16'] / 1e6:.1f} | {row['batch']} | "
            f"{total(row['activation_bytes_bf16'], 1)} | {total(row['activation_bytes_bf16'], 8)} | "
            f"{total(little, 1)} / {total(little, 8)} |"
        )
    limits = "" if gpu else " No GPU was at hand: the times of one are as good as the assumption."
    text += [
        "",
        "Where a batch does not fit, `trainer.accumulate_grad_batches` divides it, at no cost in time." + limits,
    ]
    return "\n".join([*text, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, predicts and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, help="images of the step that is timed; 4 on a CPU and 64 on a GPU")
    parser.add_argument("--only", choices=[budget.data for budget in BUDGETS], help="measure this, and print it")
    parser.add_argument("--out", type=Path, help="file for all figures as JSON; the page goes beside it")
    args = parser.parse_args(argv)
    gpu = device().type == "cuda"
    batch = args.batch or (64 if gpu else 4)
    if args.only:
        print(json.dumps(measure(next(b for b in BUDGETS if b.data == args.only), batch)))
        return
    command = [sys.executable, __file__, "--batch", str(batch), "--only"]
    networks = [
        json.loads(subprocess.run([*command, b.data], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for b in BUDGETS
    ]
    costs = {name: method_cost(name) for name in OBJECTIVES}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    result = {
        "device": machine(),
        "precision": "bf16-mixed" if gpu else "32-true",
        "versions": versions(),
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "benchmarks/training_cost.py", *(sys.argv[1:] if argv is None else argv)]),
        "assumed": asdict(Assumed()),
        "scaling": SCALING,
        "matrix_flops": matrix_flops(),
        "costs": costs,
        "networks": networks,
        "predictions": [row for network in networks for row in predictions(network, costs, Assumed())],
    }
    source = args.out.name if args.out else "training_cost.json"
    if args.out:
        write_whole(args.out, (json.dumps(result, indent=1) + "\n").encode())
        write_whole(args.out.with_suffix(".md"), page(result, source).encode())
    print(page(result, source))


if __name__ == "__main__":
    main()
