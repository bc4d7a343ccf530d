"""What a preset consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry import METHODS

__all__ = ["PRESETS", "Cell", "Preset"]


@dataclass(frozen=True)
class Cell:
    """One entry of the benchmark.

    Args:
        problem: Name of the problem: with the noise level for images, as in ``fashion_mnist@0.5``, and with the noise
            model where it is not what methods assume, as in ``blobs+laplace``.
        method: Name of the method.
        seed: Of the data, the weights and the training.
        steps: Optimiser steps.
        batch: Items in each.
        num: Samples that are measured.
    """

    problem: str
    method: str
    seed: int
    steps: int
    batch: int
    num: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.problem}-{self.method}-seed{self.seed}-{self.steps}x{self.batch}-{self.num}"

    @classmethod
    def read(cls, name: str) -> Cell:
        """The cell of that name."""
        problem, method, seed, size, num = name.split("-")
        steps, batch = size.split("x")
        return cls(problem, method, int(seed.removeprefix("seed")), int(steps), int(batch), int(num))

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Cell:
        """The cell that made a row."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Preset:
    """A set of problems with the budget of each method on each.

    Args:
        title: Of its page.
        problems: Their names.
        methods: The methods that make sense there.
        steps: Optimiser steps.
        batch: Items in each.
        num: Samples that are measured.
        seeds: How many.
        metric: What the plots show.
        about: What the figures are, for the page.
    """

    title: str
    problems: tuple[str, ...]
    methods: tuple[str, ...]
    steps: int
    batch: int
    num: int
    seeds: int
    metric: str
    about: str


ORACLE = (
    "The network is an MLP of 3 x 256 units. Excess risk is $E|D - D^*|^2 / E|x_0 - D^*|^2$ by noise level, 0 for the "
    "exact denoiser $D^*$; restored is the root mean square error of one-step estimates of fresh noisy data, as a "
    "multiple of their noise; sliced Wasserstein is the distance of samples from as many fresh data along 128 "
    "directions, proximal sliced Wasserstein that of samples with noise added from held-out noisy data, for which no "
    "clean datum is needed; spread is the root mean square distance of samples from the nearest centre, as a multiple "
    "of the clean data's. Seconds are of the processor, and depend on the machine and the hour of a cell."
)
IMAGES = (
    "FD is the Fréchet distance of samples from 10,000 clean training images in the features of EfficientNet-Lite0 at "
    "96 x 96, proximal FD that of samples with noise added from the noisy training images, for which no clean image is "
    "needed; FID, where it is given (`--inception`), is the same as FD in the features of Inception; PSNR is of "
    "restored held-out images: by the one-step estimate, by one posterior draw and by the mean of three. Samples are "
    "made by SDE-DPM-Solver++(2M) with 20 levels. Seconds are those of the clock, on different machines, also where "
    "other cells ran beside one."
)
PRESETS = {
    "oracle": Preset(
        title="Methods where the answer is known",
        problems=("ring", "moons", "spectrum", "blobs"),
        methods=("clean", "naive", "ambient", "consistency", "replay", "denoised", "sure", "default"),
        steps=8000,
        batch=512,
        num=10_000,
        seeds=3,
        metric="sliced_wasserstein",
        about=ORACLE,
    ),
    "variants": Preset(
        title="Variants of the methods, and clean data among the noisy",
        problems=("ring",),
        # Non-local means is for images.
        methods=tuple(name for name in METHODS if name != "nonlocal_means"),
        steps=8000,
        batch=512,
        num=10_000,
        seeds=1,
        metric="sliced_wasserstein",
        about=ORACLE,
    ),
    "mismatch": Preset(
        title="When the noise is not what it is taken for",
        problems=(
            *("blobs", "blobs+under25", "blobs+under10", "blobs+over10", "blobs+over25"),
            *("blobs+laplace", "blobs+uniform", "blobs+clipped", "blobs+correlated"),
        ),
        methods=("ambient", "consistency", "replay", "default"),
        steps=2000,
        batch=512,
        num=10_000,
        seeds=1,
        metric="sliced_wasserstein",
        about=f"The noise has the same variance throughout (before clipping), and methods take it for white "
        f"Gaussian noise. {ORACLE}",
    ),
    "small": Preset(
        title="Methods on Fashion-MNIST",
        problems=("fashion_mnist@0.2", "fashion_mnist@0.5", "fashion_mnist@1"),
        # Distillation is tried where the answer is known.
        methods=tuple(name for name in METHODS if name != "distilled"),
        steps=1500,
        batch=32,
        num=2000,
        seeds=1,
        metric="fd_efficientnet-lite0-96",
        about=f"The network is a U-Net with 0.9 million weights at 14 x 14 after space-to-depth. {IMAGES}",
    ),
    "cifar10": Preset(
        title="Methods on CIFAR-10",
        problems=("cifar10@0.05", "cifar10@0.1", "cifar10@0.2", "cifar10@0.4"),
        methods=("clean", "ambient", "consistency", "replay", "default"),
        steps=20_000,
        batch=256,
        num=2000,
        seeds=1,
        metric="fd_efficientnet-lite0-96",
        about=f"The network is a U-Net with 35 million weights. {IMAGES}",
    ),
}
"""By the names that the command line knows."""
