"""Lightning's loop, with everything the command line puts into it, against a bare loop of the very same step."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from pairs import Row, block_seconds, device, ratios
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.callbacks import InterruptCheckpoint, LastCheckpoint, TrainingProgressBar
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import UNet
from lightning_tweedie.randomness import step_generator

STEP = 0.05  # seconds
CLIP = 1.0


class _Images(Dataset[Tensor]):
    """Smooth images of 28 x 28, made at the start."""

    def __init__(self, count: int) -> None:
        coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.images = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bilinear")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class Data(NoisyDataModule):
    """Those images with noise."""

    def train_set(self) -> _Images:
        """All of them."""
        return _Images(4096)


def module() -> TweedieModule:
    """The small network of the configurations, its averages and its optimiser."""
    torch.manual_seed(0)
    return TweedieModule(
        Denoiser(UNet(1, width=32, multipliers=[1, 3], blocks=1, attention=[1], patch=2)),
        ema=EMA([300.0]),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        lr_scheduler=partial(WarmupCosine, warmup=100),
    )


class Bare:
    """What a step does, and nothing else: each call is one step.

    Args:
        data: Where the batches come from; they are made before.
        batches: How many, visited in turns.
    """

    def __init__(self, data: NoisyDataModule, batches: int = 8) -> None:
        self.module = module().to(device())
        for denoiser in (self.module.denoiser, *self.module.ema.averages):
            denoiser.set_sigma_data(data.sigma_data)
        loader = iter(data.train_dataloader())
        self.batches: list[NoisyBatch] = [
            batch._replace(x_n=batch.x_n.to(device()), sigma_n=batch.sigma_n.to(device()))
            for batch in (next(loader) for _ in range(batches))
        ]
        self.optimizer: Any = self.module.optimizer(self.module.denoiser.parameters())
        self.scheduler = WarmupCosine(self.optimizer, warmup=100, total_steps=100_000)
        self.steps = 0

    def __call__(self) -> None:
        """One step."""
        batch = self.batches[self.steps % len(self.batches)]
        module = self.module
        losses = module.objective(
            module.denoiser,
            batch.x_n,
            batch.sigma_n,
            teacher=module.ema.teacher,
            generator=step_generator(0, rank=0, step=self.steps, device=device()),
        )
        self.optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(module.denoiser.parameters(), CLIP)
        self.optimizer.step()
        self.scheduler.step()
        module.ema.update(module.denoiser)
        self.steps += 1


class Turns(Callback):
    """Times blocks of Lightning's steps, and between them blocks of the bare ones, with Lightning waiting.

    Args:
        bare: A step.
        count: Steps of a block.
        pairs: Number of turns. The first block of either warms up and is not counted.
    """

    def __init__(self, bare: Callable[[], None], count: int, pairs: int) -> None:
        self.bare = bare
        self.count = count
        self.steps = count * (pairs + 1)
        self.seconds: dict[str, list[float]] = {"bare PyTorch loop": [], "Lightning loop": []}
        self._start = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The end of one block is the beginning of the next."""
        if trainer.global_step % self.count:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        lightning = (time.perf_counter() - self._start) / self.count
        bare = block_seconds(self.bare, self.count)
        if trainer.global_step > self.count:
            self.seconds["Lightning loop"].append(lightning)
            self.seconds["bare PyTorch loop"].append(bare)
        self._start = time.perf_counter()


def batch_size(seconds: float) -> int:
    """Items with which a step takes about so long, from the times of a small and a larger batch."""
    times = []
    for count in (sizes := (4, 32)):
        data = Data(sigma=0.3, batch_size=count)
        data.setup("fit")
        step = Bare(data)
        block_seconds(step, 5)
        times.append(block_seconds(step, 20))
    each = (times[1] - times[0]) / (sizes[1] - sizes[0])
    return max(1, min(512, round(sizes[0] + (seconds - times[0]) / each)))


def rows(quick: bool = False) -> list[Row]:
    """The loop, at a step of 50 ms."""
    warnings.filterwarnings("ignore", module="lightning")
    size = 4 if quick else batch_size(STEP)
    data = Data(sigma=0.3, batch_size=size)
    data.setup("fit")
    turns = Turns(Bare(data), count=2 if quick else 40, pairs=2 if quick else 10)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=device().type,
            devices=1,
            max_steps=turns.steps,
            gradient_clip_val=CLIP,
            logger=CSVLogger(folder, name="run"),
            # As from the command line; the turns come after all others but the saving.
            callbacks=[InterruptCheckpoint(), TrainingProgressBar(), turns, LastCheckpoint()],
            check_val_every_n_epoch=None,
            val_check_interval=turns.steps + 1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        trainer.fit(module(), Data(sigma=0.3, batch_size=size))
    times = {name: np.array(values) for name, values in turns.seconds.items()}
    overhead = times["Lightning loop"] - times["bare PyTorch loop"]
    details = {"overhead_ms": float(f"{1e3 * np.median(overhead):.3g}"), "batch": size, "steps": turns.count}
    return ratios("loop", times, "bare PyTorch loop", "time of a step", details={"Lightning loop": details})
