"""Training steps of our U-Net, eager and compiled, against those of its peers at equal parameters."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pairs import Row, alternate, device, ratios, single
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lightning_tweedie.networks import UNet  # before diffusers, which imports torchvision

from diffusers import UNet2DModel  # isort: skip

try:
    from denoising_diffusion_pytorch import Unet as PeerUNet
except ImportError:
    PeerUNet = None

__all__ = ["rows"]

DIFFUSERS, DIFFUSERS_DEFAULT, LUCID = "diffusers, heads like ours", "diffusers", "denoising-diffusion-pytorch"


@dataclass(frozen=True)
class Problem:
    """Images, and the U-Net for them.

    Args:
        channels: Of an image.
        size: Its side.
        width: Channels of the first level.
        multipliers: Width of each level relative to the first.
        blocks: Residual blocks per level.
        attention: Levels with self-attention.
        batch: Images in a step.
    """

    channels: int
    size: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: int
    batch: int

    @property
    def name(self) -> str:
        """Shape of an image."""
        return f"{self.size}x{self.size}x{self.channels}"


CPU = [
    Problem(1, 28, 32, (1, 2, 2), 1, 1, 32),
    Problem(3, 32, 48, (1, 2, 2), 2, 1, 16),
    Problem(3, 64, 32, (1, 2, 2, 4), 1, 2, 8),
]
GPU = [
    Problem(1, 28, 64, (1, 2, 2), 2, 1, 512),
    Problem(3, 32, 128, (1, 2, 2), 3, 1, 256),
    Problem(3, 64, 128, (1, 2, 2, 4), 2, 2, 64),
]
QUICK = [Problem(1, 8, 32, (1, 2), 1, 1, 2)]


def parameters(network: nn.Module) -> int:
    """How many it has."""
    return sum(parameter.numel() for parameter in network.parameters())


def ours(problem: Problem, patch: int = 1) -> UNet:
    """Ours; folding is left out unless asked for, because peers have none."""
    shape = (problem.channels, problem.width, problem.multipliers, problem.blocks)
    return UNet(*shape, attention=[problem.attention], patch=patch)


def diffusers(problem: Problem, head: int) -> nn.Module:
    """That of diffusers with the same channels, levels, blocks, modulation and attention.

    Args:
        problem: What for.
        head: Channels of each head.
    """
    levels = range(len(problem.multipliers))
    kind = ["Attn" if level == problem.attention else "" for level in levels]
    return UNet2DModel(
        sample_size=problem.size,
        in_channels=problem.channels,
        out_channels=problem.channels,
        layers_per_block=problem.blocks,
        block_out_channels=tuple(problem.width * factor for factor in problem.multipliers),
        down_block_types=tuple(f"{kind[level]}DownBlock2D" for level in levels),
        up_block_types=tuple(f"{kind[level]}UpBlock2D" for level in reversed(levels)),
        attention_head_dim=head,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )


def lucid(problem: Problem, budget: int) -> nn.Module:
    """That of denoising-diffusion-pytorch whose width and first width bring it nearest to a number of parameters.

    It has two blocks and linear attention at every level, which its constructor cannot leave out.
    """

    def build(width: int, first: int) -> nn.Module:
        attended = tuple(level == problem.attention for level in range(len(problem.multipliers)))
        return PeerUNet(
            width, init_dim=first, channels=problem.channels, dim_mults=problem.multipliers, full_attn=attended
        )

    def off(widths: tuple[int, int]) -> int:
        with torch.device("meta"):
            return abs(parameters(build(*widths)) - budget)

    width = min(range(8, 2 * problem.width, 4), key=lambda width: off((width, width)))
    near = [(width + more, width + more + first) for more in (-2, 0, 2) for first in range(-6, 8, 2)]
    return build(*min(near, key=off))


def step_of(network: nn.Module, problem: Problem, bf16: bool = False) -> Callable[[], object]:
    """One training step: forward, mean squared error, backward, Adam."""
    x = torch.randn(problem.batch, problem.channels, problem.size, problem.size, device=device())
    target, level = torch.randn_like(x), torch.rand(problem.batch, device=device())
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16) if bf16 else nullcontext():
            answer = network(x, level)
        answer = answer if isinstance(answer, Tensor) else answer.sample
        F.mse_loss(answer.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextmanager
def without_caches() -> Iterator[None]:
    """Compiles as for the first time."""
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def compiled(
    network: nn.Module, problem: Problem, quick: bool, bf16: bool = False
) -> tuple[Callable[[], object], float]:
    """The step of a compiled copy, and seconds of its first call, in which it is compiled."""
    network = copy.deepcopy(network)
    network.compile(backend="eager" if quick else "inductor")
    step = step_of(network, problem, bf16)
    with without_caches():
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return step, time.perf_counter() - start


def gemm(size: int, dtype: torch.dtype) -> Callable[[], object]:
    """A product of two square matrices."""
    a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    return lambda: a @ b


def rows(quick: bool = False) -> list[Row]:
    """Measures every problem."""
    torch.manual_seed(0)
    if PeerUNet is None:
        print(f"{LUCID} is not installed and left out: `pip install lightning_tweedie[bench]`")
    gpu = torch.cuda.is_available()
    found = []
    for problem in QUICK if quick else GPU if gpu else CPU:
        found += _compare(problem, quick, gpu, first=problem in (QUICK[0], GPU[0], CPU[0]))
    return found


def _compare(problem: Problem, quick: bool, gpu: bool, first: bool) -> list[Row]:
    network = ours(problem).to(device())
    level_channels = problem.width * problem.multipliers[problem.attention]
    head = level_channels // network.encoder[problem.attention][0].attention.heads  # type: ignore[index, union-attr]
    peers = {DIFFUSERS: diffusers(problem, head), DIFFUSERS_DEFAULT: diffusers(problem, 8)}
    if PeerUNet is not None:
        peers[LUCID] = lucid(problem, parameters(network))
    peers = {name: peer.to(device()) for name, peer in peers.items()}

    eager = step_of(network, problem)
    step, seconds = compiled(network, problem, quick)
    ways = {"ours": eager, "ours, compiled": step}
    first_call = {"ours, compiled": seconds}
    if gpu or quick:
        step, seconds = compiled(network, problem, quick, bf16=True)
        ways["ours, compiled, bf16"], first_call["ours, compiled, bf16"] = step, seconds
    if first:
        # What a peer gains by the same means, and what folding gives beyond equal terms.
        step, _ = compiled(peers[DIFFUSERS], problem, quick)
        ways["diffusers, heads like ours, compiled"] = step
        ways["ours, patches of 2"] = step_of(ours(problem, patch=2).to(device()), problem)
    peak_size = 64 if quick else 8192 if gpu else 1024
    peaks = {torch.float32: "peak"} | ({torch.bfloat16: "peak, bf16"} if gpu or quick else {})
    others: dict[str, Callable[[], object]] = {name: step_of(peer, problem) for name, peer in peers.items()}
    others |= {name: gemm(peak_size, dtype) for dtype, name in peaks.items()}
    options: dict[str, Any] = dict(pairs=2, seconds=0.0, warmup=1) if quick else dict(pairs=7, seconds=1.0)
    times = alternate({**ways, **others}, **options)

    def label(name: str) -> str:
        return f"{name}, {problem.name}"

    rows = []
    for peer, its in peers.items():
        both = {name: times[name] for name in (*ways, peer)}
        detail = {
            "batch": problem.batch,
            "parameters": parameters(network),
            "parameters_against": parameters(its),
            "images_per_second_against": float(f"{problem.batch / float(times[peer].mean()):.4g}"),
        }
        against = ratios("networks", both, peer, "images/s", faster=True, details=dict.fromkeys(ways, detail))
        rows += [row for row in against if not (row.name.startswith("diffusers") and peer != DIFFUSERS)]
    for row in rows:
        row.name, row.against = label(row.name), label(row.against)

    with FlopCounterMode(display=False) as counter:
        eager()
    flops = counter.get_total_flops()
    for name in ways:
        if name.startswith("ours, patches") or name.startswith("diffusers"):
            continue
        peak = "peak, bf16" if "bf16" in name else "peak"
        per_second = 2 * peak_size**3 / times[peak]
        share = flops / times[name] / per_second
        more = {"gflop_per_image": round(flops / problem.batch / 1e9, 3), "peak_gflops": round(per_second.max() / 1e9)}
        rows.append(single("networks", label(name), list(share), f"share of the matrix {peak}", **more))
    for name, seconds in first_call.items():
        what = "seconds of the first call"
        rows.append(single("networks", label(name), [seconds], what, parameters=parameters(network)))
    return rows
