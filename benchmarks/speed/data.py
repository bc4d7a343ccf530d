"""The data path alone: what the loader of ``fit`` hands out, and how much a training step takes of it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pairs import Row, alternate, device, ratios, single

from lightning_tweedie import datamodules
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import Images, NoisyDataModule
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.networks import UNet
from lightning_tweedie.objectives import AmbientScoreMatching, Objective

BATCH = 64
SHAPES = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32)}


class InMemory(NoisyDataModule):
    """Images in an array.

    Args:
        pixels: All of them, 8-bit, ``(N, C, H, W)``.
        settings: Those of a data module.
    """

    def __init__(self, pixels: NDArray[np.uint8], **settings: Any) -> None:  # noqa: ANN401
        super().__init__(sigma=0.2, batch_size=BATCH, **settings)
        self.pixels = pixels

    def train_set(self) -> ItemSet:
        """The images."""
        return ArrayDataset(self.pixels)


def endless(data: NoisyDataModule) -> Iterator[NoisyBatch]:
    """Batches of the loader that ``fit`` uses, one epoch after the other."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def opened(make: Callable[[], NoisyDataModule], keep: bool = True) -> NoisyDataModule:
    """A data module as it is before the first step; its noise is not kept in memory unless it may."""
    before = datamodules.KEEP_BYTES
    datamodules.KEEP_BYTES = before if keep else 0
    try:
        data = make()
        data.setup("fit")
    finally:
        datamodules.KEEP_BYTES = before
    return data


def rate(name: str, data: NoisyDataModule, seconds: float, pairs: int) -> Row:
    """Images/s over several stretches of time, and how many cores were busy, those of workers among them."""
    batches, found = endless(data), []
    next(batches)
    start, busy = time.perf_counter(), sum(os.times()[:4])
    for _ in range(pairs):
        begin, count = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            count += len(next(batches).x_n)
        found.append(count / (time.perf_counter() - begin))
    wall = time.perf_counter() - start
    del batches  # ends the workers, of whose time nothing is known before
    cores = (sum(os.times()[:4]) - busy) / wall
    return single("data", name, found, "images/s", workers=data.num_workers, cores=round(cores, 2))


def consumed(data: NoisyDataModule, seconds: float, pairs: int) -> Row:
    """How much faster batches are made than a small U-Net learns from them."""
    shape, batches = data.shape, endless(data)
    # The network of configs/model/unet_small.yaml.
    backbone = UNet(channels=shape[0], width=48, multipliers=[1, 2], blocks=1, attention=[1], patch=2)
    denoiser = Denoiser(backbone, sigma_data=data.sigma_data).to(device())
    objective, optimizer = Objective(AmbientScoreMatching()), torch.optim.Adam(denoiser.parameters())
    fixed = next(batches)
    x_n, sigma_n = fixed.x_n.to(device()), fixed.sigma_n.to(device())

    def step() -> None:
        optimizer.zero_grad()
        objective(denoiser, x_n, sigma_n).total.backward()
        optimizer.step()

    name = f"a batch of {'x'.join(map(str, (*shape[1:], shape[0])))} in memory, flips"
    times = alternate({name: lambda: next(batches), "its training step": step}, pairs, seconds, warmup=1)
    return ratios("data", times, "its training step", "batches/s", faster=True)[0]


def noise(seconds: float, pairs: int) -> list[Row]:
    """Our noise, which is an item's own, against noise that is new each time."""
    import albumentations

    pixels = np.random.default_rng(0).integers(0, 256, (4096, 3, 32, 32), dtype=np.uint8)
    batches = endless(opened(lambda: InMemory(pixels, holdout=0), keep=False))
    images = pixels.transpose(0, 2, 3, 1).astype(np.float32) / 255
    transform = albumentations.GaussNoise(std_range=(0.1, 0.1), p=1)
    ways: dict[str, Callable[[], object]] = {
        "noise of each item, made anew": lambda: next(batches),
        "GaussNoise of albumentations": lambda: [transform(image=image)["image"] for image in images[:BATCH]],
    }
    return ratios(
        "data", alternate(ways, pairs, seconds), "GaussNoise of albumentations", "images of 32x32x3/s", faster=True
    )


def rows(quick: bool) -> list[Row]:
    """In memory with and without augmentation, from disk with and without workers, against training, against a peer."""
    count, seconds, pairs = (600, 0.02, 2) if quick else (50_000, 1.0, 5)
    made = []
    for name, shape in list(SHAPES.items())[: 1 if quick else None]:
        pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        ways: dict[str, list[str]] = {
            "": [],
            ", flips": ["hflip"],
            ", shifts and flips": ["shift:4", "hflip"],
            ", crops and flips": [f"crop:{shape[-1] - 4}", "hflip"],
        }
        for how, augment in ways.items():
            data = opened(partial(InMemory, pixels, augment=augment))
            made.append(rate(f"{name} in memory{how}", data, seconds, pairs))
            if how == ", flips":
                made.append(consumed(data, seconds, pairs))
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "pixels.npy"), pixels)
            for workers in (0, 2):
                data = opened(
                    partial(Images, root=folder, sigma=0.2, batch_size=BATCH, num_workers=workers, augment=["hflip"]),
                    keep=False,
                )
                made.append(rate(f"{name} from a mapped file, noise made anew, flips", data, seconds, pairs))
    return [*made, *noise(seconds, pairs)]
