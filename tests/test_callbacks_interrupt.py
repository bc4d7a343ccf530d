"""A run that is told to stop stops cleanly, says so with its status, and goes on as if nothing had happened."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.multiprocessing import ProcessExitedException

from lightning_tweedie.callbacks import InterruptCheckpoint
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import MLP


class Points(NoisyDataModule):
    def train_set(self) -> ItemSet:
        return ArrayDataset(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))


class At(Callback):
    """Does something after a step, on one rank."""

    def __init__(self, step: int, rank: int, action: Any) -> None:
        self.step, self.rank, self.action = step, rank, action

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            self.action()


class Result(Callback):
    """Writes down where a run has arrived; what a forked process knows ends with it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {key: value for key, value in pl_module.state_dict().items() if isinstance(value, Tensor)}
        if trainer.is_global_zero:
            torch.save({"step": trainer.global_step, "state": state}, self.path)


def told_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fails() -> None:
    raise RuntimeError("the power is gone")


def fit(folder: Path, *callbacks: Callback, ckpt: Path | None = None, **settings: Any) -> dict[str, Any] | None:
    """Trains for 30 steps, validating every 16; the final state, if the run gets there."""
    torch.manual_seed(0)
    result = folder / "result.pt"
    result.unlink(missing_ok=True)
    settings = {"max_steps": 30, "check_val_every_n_epoch": 2, **settings}
    Trainer(
        default_root_dir=folder,
        callbacks=[*callbacks, Result(result), InterruptCheckpoint(str(folder))],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    ).fit(
        TweedieModule(Denoiser(MLP(2, width=8)), ema=EMA([5.0])),
        datamodule=Points(sigma=0.2, batch_size=10, holdout=20),
        ckpt_path=ckpt,
    )
    return load(result) if result.exists() else None


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same_end(a: dict[str, Any] | None, b: dict[str, Any] | None) -> None:
    assert a and b and a["step"] == b["step"] == 30
    for key, value in a["state"].items():
        assert torch.equal(value, b["state"][key]), f"{key} differs"


# Within an epoch of 8 batches, its last before validation, its last; a step of three batches, told at its first.
@pytest.mark.parametrize(("step", "accumulate"), [(12, 1), (15, 1), (23, 1), (13, 3)])
def test_sigterm_saves_exits_with_143_and_the_run_goes_on_bitwise(tmp_path: Path, step: int, accumulate: int) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    several = {"accumulate_grad_batches": accumulate}
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, At(step, 0, told_to_stop), **several)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    # The step under way was finished.
    assert load(tmp_path / "interrupted.ckpt")["global_step"] == step + 1
    assert_same_end(fit(tmp_path, ckpt=tmp_path / "interrupted.ckpt", **several), fit(tmp_path, **several))


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    # With Lightning's own handling the processes sometimes wait for each other for ever.
    two: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2}
    with pytest.raises(ProcessExitedException) as stopped:
        fit(tmp_path, At(5, 1, told_to_stop), **two)
    assert stopped.value.exit_code == 143
    assert 5 < load(tmp_path / "interrupted.ckpt")["global_step"] < 30
    assert_same_end(fit(tmp_path, ckpt=tmp_path / "interrupted.ckpt", **two), fit(tmp_path, **two))


class InLastValidation(Callback):
    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 24:
            told_to_stop()


def test_a_signal_in_the_last_validation_is_heeded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, InLastValidation(), max_steps=24, val_check_interval=24, check_val_every_n_epoch=None)
    assert stopped.value.code == 143
    assert load(tmp_path / "interrupted.ckpt")["global_step"] == 24


class Handler(Callback):
    seen: Any = None

    def on_fit_end(self, *_: Any) -> None:
        self.seen = signal.getsignal(signal.SIGTERM)


def test_after_the_training_the_signal_kills_as_ever(tmp_path: Path) -> None:
    """Reports of a training take minutes."""
    handler = Handler()
    assert fit(tmp_path, handler)
    assert handler.seen == signal.SIG_DFL


def test_an_error_saves_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(tmp_path, At(7, 0, fails))
    assert load(tmp_path / "exception.ckpt")["global_step"] == 7
    assert not (tmp_path / "interrupted.ckpt").exists()


def test_a_run_that_ends_by_itself_leaves_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
