"""A tiny run from the command line, in this process, for tests."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import torch

from lightning_tweedie.cli import main

assert lightning
for _name in ("lightning.pytorch", "lightning.fabric"):
    # They keep the standard error of the test that imported Lightning, which is closed in all others.
    logging.getLogger(_name).handlers.clear()

CONFIGS = Path(__file__).parent.parent / "configs"

RING = """
name: ring
model:
  class_path: lightning_tweedie.module.TweedieModule
  init_args:
    denoiser:
      class_path: lightning_tweedie.denoiser.Denoiser
      init_args:
        backbone:
          class_path: lightning_tweedie.networks.MLP
          init_args: {dim: 2, width: 16, depth: 1, embedding: 8}
    objective:
      class_path: lightning_tweedie.objectives.Objective
      init_args:
        replay:
          class_path: lightning_tweedie.objectives.PosteriorReplay
          init_args:
            start: 0.3
            capacity: 64
            sampler: {class_path: lightning_tweedie.sampling.Ancestral, init_args: {steps: 3, sigma_min: 0.01}}
data:
  class_path: lightning_tweedie.datamodules.ToyMixture
  init_args: {sigma: 0.2, items: 360, holdout: 32, batch_size: 16}
trainer:
  accelerator: cpu
  max_steps: 30
  log_every_n_steps: 5
  enable_progress_bar: false
  enable_model_summary: false
last_checkpoint:
  every_n_train_steps: 5
"""
"""A ring, an MLP and 20 steps an epoch."""

DIGITS = """
name: digits
model:
  class_path: lightning_tweedie.module.TweedieModule
  init_args:
    denoiser:
      class_path: lightning_tweedie.denoiser.Denoiser
      init_args:
        backbone:
          class_path: lightning_tweedie.networks.UNet
          init_args: {channels: 1, width: 8, multipliers: [1], blocks: 1, attention: [], patch: 4}
data:
  class_path: lightning_tweedie.datamodules.Digits
  init_args: {sigma: 0.5, holdout: 16, batch_size: 8}
trainer:
  accelerator: cpu
  max_steps: 3
  limit_val_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
"""
"""Images, a U-Net and three steps."""


def run(folder: Path, command: str, *options: str, config: str = RING) -> int:
    """Runs a command with a tiny configuration in ``folder``; returns its exit status."""
    path = folder / "tiny.yaml"
    path.write_text(config)
    return main([command, "--config", str(path), "--runs", str(folder / "runs"), *options])


DIGITS_WITHOUT_DATA = DIGITS.partition("data:\n")[0] + "trainer:\n" + DIGITS.partition("trainer:\n")[2]


def trained_digits(folder: Path) -> Path:
    """The checkpoint of grey images of 28 x 28 that a training of one step has left in a folder."""
    assert run(folder, "fit", "--trainer.max_steps=1", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bitwise the same, through dictionaries and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_state(a: Path, b: Path) -> None:
    """Two checkpoints hold the same weights, averages, buffers, optimiser and learning rate, bit by bit."""
    one, two = checkpoint(a), checkpoint(b)
    for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "lightning_tweedie"):
        assert_same(one[key], two[key], key)
