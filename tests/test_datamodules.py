"""The data modules as Lightning and the command line use them."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_tweedie.datamodules as datamodules
from lightning_tweedie.data import fashion_mnist
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.data.images import ImageFolder
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import CIFAR10, Digits, FashionMNIST, Images, NoisyDataModule, ToyMixture
from lightning_tweedie.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "data").glob("*.yaml"))


class Squares(NoisyDataModule):
    """Twenty-five images of one grey each."""

    def train_set(self) -> ItemSet:
        return ArrayDataset(torch.linspace(-1, 1, 25)[:, None, None, None].expand(25, 1, 4, 4))


class WithTest(Squares):
    def test_set(self) -> ItemSet:
        return ArrayDataset(torch.zeros(25, 1, 4, 4))


def ready(module: NoisyDataModule, stage: str | None = None) -> NoisyDataModule:
    module.prepare_data()
    module.setup(stage)
    return module


def together(loader: Any) -> NoisyBatch:
    batches = list(loader)
    x_0 = None if batches[0].x_0 is None else torch.cat([b.x_0 for b in batches])
    return NoisyBatch(*(torch.cat(part) for part in list(zip(*batches, strict=True))[:3]), x_0)


def folder(path: Path, count: int = 30, size: int = 8) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i:04}.png")
    return path


# Training, validation and evaluation data.


def test_training_data_are_noisy_once_and_show_nothing_clean() -> None:
    data = ready(Squares(sigma=0.5, batch_size=5, holdout=5))
    first, second = (together(data.train_dataloader()) for _ in range(2))
    assert first.x_0 is None
    assert torch.equal(first.x_n, second.x_n)
    assert sorted(first.index.tolist()) != list(range(20))
    again = together(ready(Squares(sigma=0.5, batch_size=4, holdout=5)).train_dataloader())
    order = {int(i): x for i, x in zip(first.index, first.x_n, strict=True)}
    assert all(torch.equal(order[int(i)], x) for i, x in zip(again.index, again.x_n, strict=True))
    other = together(ready(Squares(sigma=0.5, batch_size=5, holdout=0, seed=1)).train_dataloader())
    assert not any(
        torch.equal(order[int(i)], x) for i, x in zip(other.index, other.x_n, strict=True) if int(i) in order
    )


def test_reading_large_data_anew_gives_what_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = together(ready(Squares(sigma=[0.1, 0.5], batch_size=5, holdout=5)).train_dataloader())
    monkeypatch.setattr(datamodules, "KEEP_BYTES", 0)
    anew = ready(Squares(sigma=[0.1, 0.5], batch_size=5, holdout=5))
    assert anew._train is not None
    assert anew._train._kept is None
    again = together(anew.train_dataloader())
    assert all(torch.equal(a, b) for a, b in zip(kept[:3], again[:3], strict=True))


def test_hold_out_depends_on_the_seed_alone_and_is_never_trained_on() -> None:
    held_out = set()
    for seed in range(3):
        data = ready(Squares(sigma=0.5, batch_size=4, holdout=6, seed=seed))
        val = together(data.val_dataloader())
        train = data._train
        assert train is not None
        assert set(val.index.tolist()).isdisjoint(train.places.tolist())
        assert len(val.index) + len(train) == 25
        assert val.x_0 is not None
        assert torch.equal(val.x_0[:, 0, 0, 0], torch.linspace(-1, 1, 25)[val.index])
        held_out.add(frozenset(val.index.tolist()))
        same = ready(Squares(sigma=0.1, batch_size=3, holdout=6, seed=seed))
        assert torch.equal(together(same.val_dataloader()).index, val.index)
    assert len(held_out) == 3


def test_no_hold_out() -> None:
    data = ready(Squares(sigma=0.5, batch_size=5, holdout=0))
    assert data.val_dataloader() == []
    assert len(together(data.train_dataloader()).index) == 25


def test_validation_data_are_noisy_even_if_some_training_data_are_clean() -> None:
    data = ready(Squares(sigma=0.5, batch_size=20, holdout=5, clean_fraction=0.5))
    train, val = together(data.train_dataloader()), together(data.val_dataloader())
    clean = train.sigma_n == 0
    assert 0 < clean.sum() < 20
    assert torch.equal(train.x_n[clean][:, 0, 0, 0], torch.linspace(-1, 1, 25)[train.index[clean]])
    assert (train.x_n[~clean] - train.x_n[~clean].mean((1, 2, 3), keepdim=True)).abs().amax((1, 2, 3)).min() > 0
    assert (val.sigma_n == 0.5).all()
    assert data.sigma_n == 0.5


def test_test_data_have_noise_of_their_own() -> None:
    data = ready(WithTest(sigma=0.5, batch_size=5, holdout=0))
    train, test = together(data.train_dataloader()), together(data.test_dataloader())
    by_index = train.x_n[train.index.argsort()] - torch.linspace(-1, 1, 25)[:, None, None, None]
    z = torch.stack([by_index.flatten(), test.x_n.flatten()]).double() / 0.5
    correlation = (z[0] * z[1]).mean().item()
    assert abs(correlation) < 4 / z.shape[1] ** 0.5
    assert torch.equal(together(data.predict_dataloader()).x_n, test.x_n)
    assert test.x_0 is not None
    assert not test.x_0.any()


def test_a_table_of_levels(tmp_path: Path) -> None:
    path = tmp_path / "levels.npy"
    np.save(path, np.linspace(0.1, 0.58, 25))
    data = ready(WithTest(sigma=str(path), batch_size=5, holdout=5))
    for part in (together(data.train_dataloader()), together(data.val_dataloader())):
        assert torch.allclose(part.sigma_n, 0.1 + 0.02 * part.index)
    # The table does not speak of the test items: they get levels drawn from it.
    levels = together(data.test_dataloader()).sigma_n
    assert len(levels.unique()) > 5
    assert set(levels.tolist()) <= set(np.linspace(0.1, 0.58, 25).astype(np.float32).tolist())
    np.save(path, np.ones(24))
    with pytest.raises(UserError, match=r"holds 24 levels but the set has 25 items"):
        ready(Squares(sigma=str(path), batch_size=5, holdout=5))


def test_noisy_by_nature() -> None:
    class Scope(NoisyDataModule):
        def train_set(self) -> ItemSet:
            generator = torch.Generator().manual_seed(0)
            x = 0.4 * torch.randn(300, 1, 8, 8, generator=generator)
            levels = torch.full((300,), 0.1)
            levels[7] = 0.3
            return ArrayDataset(x + levels[:, None, None, None] * torch.randn(x.shape, generator=generator), levels)

    pairs = ready(Scope(sigma=None, inject=False, batch_size=50, holdout=50))
    assert pairs.sigma_n == pytest.approx(0.3 if 7 in pairs._train.places else 0.1)  # type: ignore[union-attr]
    one = ready(Scope(sigma=0.1, inject=False, batch_size=50, holdout=50))
    assert one.sigma_n == 0.1
    for data in (pairs, one):
        # About 16,000 values, relative error of their standard deviation 1/sqrt(2 n).
        assert abs(data.sigma_data / 0.4 - 1) < 4 * (0.17 / 0.16) / (2 * 16_000) ** 0.5
        batch = next(iter(data.val_dataloader()))
        assert batch.x_0 is None
        assert data.reference_set() is None
        base = Scope.train_set(data)
        assert isinstance(base, ArrayDataset)
        assert torch.equal(batch.x_n, base.items[batch.index])
    with pytest.raises(UserError, match=r"data\.sigma = 0\.6 is larger than the whole spread"):
        ready(Scope(sigma=0.6, inject=False, holdout=50))


def test_sigma_data_is_estimated_from_the_noisy_data() -> None:
    data = ready(Digits(sigma=0.8))
    x_0 = torch.stack([data.reference_set()[i] for i in range(4500)]).double()  # type: ignore[index]
    total = x_0.var().item() + 0.64
    error = (2 * total**2 / x_0.numel()) ** 0.5
    assert abs(data.sigma_data**2 - x_0.var().item()) < 4 * error


def test_reference_set_is_clean_and_is_not_held_out() -> None:
    data = ready(Squares(sigma=0.5, batch_size=5, holdout=5))
    reference = data.reference_set()
    assert reference is not None
    found = torch.cat(list(DataLoader(reference, batch_size=6)))
    train = data._train
    assert train is not None
    assert torch.equal(found[:, 0, 0, 0], torch.linspace(-1, 1, 25)[train.places])


def test_noisy_set_is_the_training_data_in_order() -> None:
    data = ready(Squares(sigma=[0.1, 0.5], batch_size=20, holdout=5, clean_fraction=0.2, augment=["hflip"]))
    plain = ready(Squares(sigma=[0.1, 0.5], batch_size=20, holdout=5, clean_fraction=0.2))
    items = [data.noisy_set()[i] for i in range(20)]
    trained = together(plain.train_dataloader())
    order = {int(index): row for row, index in enumerate(trained.index)}
    for item in items:
        row = order[int(item.index)]
        assert torch.equal(item.x_n, trained.x_n[row])
        assert torch.equal(item.sigma_n, trained.sigma_n[row])
        assert item.x_0 is None


def test_evaluation_data_go_through_what_changes_the_shape() -> None:
    data = ready(Squares(sigma=0.5, batch_size=5, holdout=5, augment=["hflip", "crop:3"]))
    assert data.shape == (1, 3, 3)
    val = together(data.val_dataloader())
    assert val.x_n.shape[1:] == (1, 3, 3)
    assert val.x_0 is not None
    assert val.x_0.shape[1:] == (1, 3, 3)
    assert torch.equal(together(data.val_dataloader()).x_n, val.x_n)
    assert data.reference_set()[0].shape == (1, 3, 3)  # type: ignore[index]


def test_through_the_trainer() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.val_index: list[int] = []

        def training_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
            assert isinstance(batch, NoisyBatch)
            assert batch.x_0 is None
            return self.weight * batch.x_n.mean()

        def validation_step(self, batch: NoisyBatch, batch_idx: int) -> None:
            assert isinstance(batch, NoisyBatch)
            assert batch.x_0 is not None
            self.val_index += batch.index.tolist()

        def predict_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
            return batch.index

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    before = torch.get_rng_state()
    data = Squares(sigma=0.5, batch_size=4, holdout=6, num_workers=2)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Module()
    trainer.fit(module, data)
    assert trainer.global_step == 8
    held_out = data._val.places.tolist()  # type: ignore[union-attr]
    assert module.val_index == 2 * held_out
    predicted = trainer.predict(module, data)
    assert predicted is not None
    assert torch.cat(predicted).tolist() == held_out  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


# The ready modules.


def test_digits() -> None:
    data = ready(Digits(sigma=0.5))
    assert data.shape == (1, 28, 28)
    assert len(data._train) == 4500  # type: ignore[arg-type]


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist() -> None:
    data = ready(FashionMNIST(sigma=0.5), "validate")
    assert data.shape == (1, 28, 28)
    assert len(data._train) == 59_500  # type: ignore[arg-type]
    assert len(data._test) == 10_000  # type: ignore[arg-type]
    assert abs(data.sigma_data - 0.7060) < 0.005  # twice the published 0.3530


def test_downloads_happen_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str | None] = []
    for kind in (FashionMNIST, CIFAR10):
        monkeypatch.setattr(kind, "_fetch", asked.append)
        kind(sigma=0.1, root=str(tmp_path)).prepare_data()
        assert not asked
        kind(sigma=0.1, root=str(tmp_path), download=True).prepare_data()
        assert asked.pop() == str(tmp_path)
        with pytest.raises(UserError, match=r"set data\.download to true"):
            kind(sigma=0.1, root=str(tmp_path)).setup("fit")


def test_toy_mixture() -> None:
    data = ready(ToyMixture(sigma=0.2))
    assert data.shape == (2,)
    # Each coordinate of a ring of radius 1: variance 1/2 + 0.01; in 39,000 values.
    assert abs(data.sigma_data - 0.51**0.5) < 0.01


def test_images_in_a_folder_and_in_an_archive_are_the_same(tmp_path: Path) -> None:
    folder(tmp_path / "set" / "train" / "a")
    folder(tmp_path / "set" / "test", count=4)
    with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "set", arcname=".")
    settings: dict[str, Any] = {"sigma": 0.2, "batch_size": 5, "holdout": 5, "train_dir": "train", "test_dir": "test"}
    one = ready(Images(root=str(tmp_path / "set"), **settings))
    two = ready(Images(root=str(tmp_path / "set.tar.xz"), **settings))
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        a, b = (together(getattr(data, loader)()) for data in (one, two))
        assert torch.equal(a.x_n, b.x_n)
    assert len(together(two.test_dataloader()).index) == 4


def test_images_of_different_sizes(tmp_path: Path) -> None:
    folder(tmp_path)
    Image.fromarray(np.zeros((12, 9, 3), np.uint8)).save(tmp_path / "other.png")
    with pytest.raises(UserError, match=r"item 30 \(other\.png\) has shape \(3, 12, 9\) but others have \(3, 8, 8\)"):
        ready(Images(root=str(tmp_path), sigma=0.2, batch_size=5, holdout=5))
    resize: list[dict[str, Any]] = [
        {"class_path": "albumentations.SmallestMaxSize", "init_args": {"max_size": 6}},
        {"class_path": "albumentations.CenterCrop", "init_args": {"height": 6, "width": 6}},
    ]
    assert ready(Images(root=str(tmp_path), sigma=0.2, batch_size=5, holdout=5, transform=resize)).shape == (3, 6, 6)


# What users get wrong.


def test_one_corrupt_image_in_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, count=1000, size=4)
    bad = tmp_path / "0617.png"
    bad.write_bytes(bad.read_bytes()[:40])
    data = Images(root=str(tmp_path), sigma=0.2)
    with pytest.raises(UserError, match=r"0617\.png cannot be read .*: mend or remove the file$"):
        data.setup("fit")
    monkeypatch.setattr(datamodules, "KEEP_BYTES", 0)
    (tmp_path / "0900.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"0617\.png cannot be read .* \(1 more items are bad too\)$"):
        Images(root=str(tmp_path), sigma=0.2).setup("fit")


def test_corrupt_archive_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("x/bad.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(UserError, match=r"a\.tar:x/bad\.jpg cannot be read"):
        Images(root=str(tmp_path / "a.tar"), sigma=0.2, holdout=0, batch_size=1).setup("fit")


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root = .*nowhere' does not exist"):
        Images(root=str(tmp_path / "nowhere"), sigma=0.2).setup("fit")
    with pytest.raises(UserError, match="holds no images"):
        Images(root=str(tmp_path), sigma=0.2).setup("fit")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"data\.sigma is not set"),
        ({"sigma": -0.1}, r"data\.sigma = -0\.1 is negative"),
        ({"sigma": 25}, r"if it is on the 8-bit scale 0\.\.255, write 25 / 127\.5 = 0\.1961"),
        ({"sigma": [0.1, 0.2], "inject": False}, r"is a range to draw levels from, but data\.inject is false"),
        ({"sigma": 0.1, "clean_fraction": -0.1}, r"data\.clean_fraction = -0\.1 is not a fraction"),
        ({"sigma": 0.1, "clean_fraction": 0.1, "inject": False}, r"give a table of levels in data\.sigma"),
        ({"sigma": 0.1, "batch_size": 0}, r"data\.batch_size = 0 is too small"),
        ({"sigma": 0.1, "holdout": 25}, r"data\.holdout = 25 leaves nothing of 25 items"),
        ({"sigma": 0.1, "holdout": 5}, r"data\.batch_size = 64 is more than the 20 training items"),
        ({"sigma": 0.1, "augment": ["randomcrop"]}, "'randomcrop' is not allowed after the noise"),
        ({"sigma": 0.1, "transform": [{"class_path": "albumentations.RandomCrop"}]}, "RandomCrop is random.*a leak"),
    ],
)
def test_bad_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Squares(**settings).setup("fit")


def test_images_on_the_wrong_scale() -> None:
    class Bytes(NoisyDataModule):
        def train_set(self) -> ItemSet:
            return ArrayDataset(255 * torch.rand(30, 1, 4, 4))

    with pytest.raises(UserError, match=r"clean images must be in \[-1, 1\]: scale the data"):
        Bytes(sigma=0.1, holdout=5, batch_size=5).setup("fit")


def test_empty_train_set() -> None:
    class Empty(NoisyDataModule):
        def train_set(self) -> ItemSet:
            return ArrayDataset(torch.zeros(0, 1, 4, 4))

    with pytest.raises(UserError, match=r"train_set\(\) of Empty is empty"):
        Empty(sigma=0.1).setup("fit")


# The README's example, and the command line.


class Galaxies(NoisyDataModule):
    """Galaxy cut-outs.

    Args:
        root: Folder of images.
        kwargs: The settings of NoisyDataModule.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def train_set(self) -> ItemSet:
        return ImageFolder(self.root)


def build(*args: str) -> NoisyDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(NoisyDataModule, "data")
    return parser.instantiate(parser.parse_args(list(args)))["data"]


def test_own_module_from_the_command_line(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "levels.txt").write_text("0.1\n" * 30)
    name = f"{__name__}.Galaxies"
    for sigma, value in (("0.3", 0.3), ("[0.1,0.3]", [0.1, 0.3]), (f"{tmp_path}/levels.txt", f"{tmp_path}/levels.txt")):
        data = build("--data", name, "--data.root", str(tmp_path), f"--data.sigma={sigma}", "--data.holdout=5")
        assert data.sigma == value
        data.batch_size = 5
        assert ready(data).shape == (3, 8, 8)


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_configs(path: Path) -> None:
    data = build("--data", str(path), "--data.sigma=0.25", "--data.seed=3")
    settings = yaml.safe_load(path.read_text())
    assert f"{type(data).__module__}.{type(data).__name__}" == settings["class_path"]
    assert data.sigma == 0.25
    assert data.batch_size == settings["init_args"].get("batch_size", 64)
    if path.stem in ("digits", "ring"):
        ready(data)


def test_all_configs_are_here() -> None:
    assert {path.stem for path in CONFIGS} == {"cifar10", "digits", "fashion_mnist", "folder", "ring"}
