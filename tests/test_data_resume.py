"""A run that was interrupted anywhere sees the same items, with the same noise, as one that was not."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.data.sampler import Draw, ResumableSampler
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.errors import UserError

ITEMS, BATCH = 23, 4  # 22 for training: 5 batches an epoch, 2 items left over
AUGMENT = ["hflip", "shift:1", "crop:4"]


class Data(NoisyDataModule):
    def train_set(self) -> ItemSet:
        generator = torch.Generator().manual_seed(0)
        return ArrayDataset(torch.rand(ITEMS, 1, 6, 6, generator=generator) * 2 - 1)


class Recorder(LightningModule):
    """Writes down what it was given."""

    def __init__(self, folder: Path, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder = folder
        self.fail_at = fail_at
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("the power is gone")
        self.seen.append({"step": self.global_step, "index": batch.index.tolist(), "x_n": batch.x_n.flatten().tolist()})
        return self.weight * batch.x_n.mean()

    def validation_step(self, batch: NoisyBatch, batch_idx: int) -> None: ...

    def on_fit_end(self) -> None:
        (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint in one hook of Lightning's, at one step."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        def save(trainer: Trainer, *_: object) -> None:
            if trainer.global_step == step and not trainer.sanity_checking and not path.exists():
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


def fit(
    folder: Path,
    *,
    callbacks: list[Callback] | None = None,
    ckpt: Path | None = None,
    fail_at: int | None = None,
    workers: int = 0,
    **settings: Any,
) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    if "max_steps" not in settings:
        settings["max_epochs"] = 3
    data = Data(sigma=0.3, batch_size=BATCH, num_workers=workers, holdout=1, augment=AUGMENT)
    module = Recorder(folder, fail_at)
    trainer = Trainer(
        accelerator="cpu",
        devices=settings.pop("devices", 1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks or []),
        callbacks=callbacks or [],
        **settings,
    )
    trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module.seen


@pytest.fixture(autouse=True)
def _no_false_alarm() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        warnings.filterwarnings("error", message=".*your dataloader is not resumable.*")
        yield


EVERY_STEP = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}", "save_on_train_epoch_end": False}


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 15, "max_epochs": None}], ids=["epochs", "steps"])
@pytest.mark.parametrize("val", [0, 1.0], ids=["no-val", "val"])
def test_resumed_at_every_step(tmp_path: Path, limit: dict[str, Any], val: float) -> None:
    settings = {**limit, "limit_val_batches": val}
    saver = ModelCheckpoint(dirpath=tmp_path, **EVERY_STEP)
    whole = fit(tmp_path, callbacks=[saver], **settings)
    assert [s["step"] for s in whole] == list(range(15))
    # Every epoch is a shuffled draw without repetition, and each is another one.
    epochs = [[i for s in whole[e * 5 : e * 5 + 5] for i in s["index"]] for e in range(3)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != sorted(epochs[0])
    assert epochs[0] != epochs[1] != epochs[2]
    for step in range(1, 15):
        resumed = fit(tmp_path, ckpt=tmp_path / f"step={step}.ckpt", **settings)
        assert resumed == whole[step:], f"resumed at step {step}"


@pytest.mark.parametrize(
    ("hook", "val"), [("on_train_epoch_end", 0), ("on_train_epoch_end", 1.0), ("on_validation_end", 1.0)]
)
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 15, "max_epochs": None}], ids=["epochs", "steps"])
@pytest.mark.parametrize("step", [5, 10])
def test_resumed_at_the_end_of_an_epoch(
    tmp_path: Path, hook: str, limit: dict[str, Any], step: int, val: float
) -> None:
    path = tmp_path / "end.ckpt"
    settings = {**limit, "limit_val_batches": val}
    whole = fit(tmp_path, callbacks=[SaveAt(hook, step, path)], **settings)
    assert fit(tmp_path, ckpt=path, **settings) == whole[step:]


@pytest.mark.parametrize("step", [3, 7])
def test_resumed_twice_after_a_failure_within_a_step(tmp_path: Path, step: int) -> None:
    class SaveOnFailure(Callback):
        def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
            trainer.save_checkpoint(tmp_path / f"failed-{trainer.global_step}.ckpt")

    settings = {"max_steps": 15, "max_epochs": None}
    whole = fit(tmp_path, **settings)
    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path, callbacks=[SaveOnFailure()], fail_at=step, **settings)
    later = SaveAt("on_train_batch_end", step + 2, tmp_path / "later.ckpt")
    assert fit(tmp_path, ckpt=tmp_path / f"failed-{step}.ckpt", callbacks=[later], **settings) == whole[step:]
    assert fit(tmp_path, ckpt=tmp_path / "later.ckpt", **settings) == whole[step + 2 :]


def test_resumed_with_fewer_batches_per_epoch(tmp_path: Path) -> None:
    settings = {"limit_train_batches": 3, "max_steps": 12, "max_epochs": None}
    saver = ModelCheckpoint(dirpath=tmp_path, **EVERY_STEP)
    whole = fit(tmp_path, callbacks=[saver], **settings)
    # The first five batches are one pass over the data all the same.
    assert len({i for s in whole[:5] for i in s["index"]}) == 20
    for step in (2, 3, 4, 8):
        assert fit(tmp_path, ckpt=tmp_path / f"step={step}.ckpt", **settings) == whole[step:]


def test_resumed_with_workers(tmp_path: Path) -> None:
    whole = fit(tmp_path)
    saver = ModelCheckpoint(dirpath=tmp_path, **EVERY_STEP)
    assert fit(tmp_path, callbacks=[saver], workers=2) == whole
    for step in (4, 5, 7):
        assert fit(tmp_path, ckpt=tmp_path / f"step={step}.ckpt", workers=2) == whole[step:]


def test_resumed_with_two_processes(tmp_path: Path) -> None:
    def ranks(name: str, **more: Any) -> list[list[dict[str, Any]]]:
        fit(tmp_path / name, devices=2, strategy="ddp_fork", **more)
        return [json.loads((tmp_path / name / f"rank{rank}.json").read_text()) for rank in (0, 1)]

    saver = ModelCheckpoint(dirpath=tmp_path, **EVERY_STEP)
    whole = ranks("whole", callbacks=[saver])
    assert len(whole[0]) == len(whole[1]) == 6  # 22 // (2 * 4) = 2 batches an epoch
    for epoch in range(3):
        seen = [i for rank in whole for s in rank[2 * epoch : 2 * epoch + 2] for i in s["index"]]
        assert len(set(seen)) == 16
    # On either rank an item is what it is without Lightning.
    data = Data(sigma=0.3, batch_size=BATCH, holdout=1, augment=AUGMENT)
    data.setup("fit")
    train = data._train
    assert train is not None
    for rank in whole:
        for number, step in enumerate(rank):
            draws = [Draw(train.places.tolist().index(i), number // 2) for i in step["index"]]
            assert train.__getitems__(draws).x_n.flatten().tolist() == step["x_n"]
    for step in (1, 2, 3):
        resumed = ranks(f"resumed{step}", ckpt=tmp_path / f"step={step}.ckpt")
        assert resumed == [rank[step:] for rank in whole]


def test_two_processes_together_see_the_batches_of_one_with_twice_the_batch() -> None:
    one = list(ResumableSampler(range(50), 8, seed=3))
    two = [list(ResumableSampler(range(50), 4, seed=3, num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert len(one) == 48
    for b in range(6):
        halves = two[0][4 * b : 4 * b + 4] + two[1][4 * b : 4 * b + 4]
        assert sorted(halves) == sorted(one[8 * b : 8 * b + 8])


def test_sampler_without_lightning_follows_set_epoch() -> None:
    sampler = ResumableSampler(range(10), 3, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    stream = ResumableSampler(range(10), 3, seed=1, position=lambda: 2)
    assert list(stream) == first[6:] + second[:6]
    assert {draw.epoch for draw in second} == {1}


def test_another_seed_is_another_order() -> None:
    orders = {tuple(ResumableSampler(range(30), 3, seed=seed)) for seed in range(5)}
    assert len(orders) == 5


def test_batch_larger_than_the_data() -> None:
    with pytest.raises(UserError, match=r"data.batch_size = 16 x 2 processes is more than the 30 training items"):
        ResumableSampler(range(30), 16, num_replicas=2)


@pytest.mark.parametrize("change", [{"seed": 1}, {"sigma": 0.4}, {"clean_fraction": 0.1}, {"holdout": 2}])
def test_a_resumed_run_cannot_change_the_noise(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "last.ckpt"
    fit(tmp_path, callbacks=[SaveAt("on_train_batch_end", 3, path)])
    data = Data(**{"sigma": 0.3, "batch_size": BATCH, "holdout": 1, **change})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=f"data.{next(iter(change))} = .* differs from .* in the checkpoint"):
        trainer.fit(Recorder(tmp_path), data, ckpt_path=path, weights_only=True)
