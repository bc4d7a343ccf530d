"""FID logging: the right number, whoever computes it, and nothing else disturbed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import Exact, generator
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tweedie.callbacks.fid as fid_module
from lightning_tweedie.callbacks import FID
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.sampling import Euler, Heun

STD_DATA, STD_SAMPLES, SIGMA_N, SIDE = 0.3, 0.2, 0.4, 2
"""Reference images are white with one deviation, the denoiser is exact for white images of another."""


class Pixels(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1) / 127.5 - 1


class Data(LightningDataModule):
    shape = (1, SIDE, SIDE)
    sigma_n = SIGMA_N

    def __init__(self, images: int = 4000) -> None:
        super().__init__()
        self.reads = 0
        self.images = STD_DATA * torch.randn(images, *self.shape, generator=generator(0))

    def reference_set(self) -> Any:
        return self

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.images[index]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=1)

    test_dataloader = train_dataloader = val_dataloader


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        variance = STD_SAMPLES**2
        self.eval_denoiser = Exact(
            lambda x, sigma: x * (variance / (variance + sigma**2)).reshape(-1, 1, 1, 1), sigma_data=STD_SAMPLES
        )
        self.weight = nn.Parameter(torch.zeros(()))
        self.ema = SimpleNamespace(half_lives=[1000.0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def pixel_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid_module, "resolve_extractor", lambda name: FeatureExtractor(Pixels(), name, "0", SIDE**2))


def trainer(folder: Path, callback: FID, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def fid(folder: Path, **settings: Any) -> FID:
    settings = {"num_images": 300, "batch_size": 64, "sampler": Heun(6), "cache_dir": str(folder / "cache"), **settings}
    return FID("pixels", **settings)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "fid.jsonl").read_text().splitlines()]


def validate(folder: Path, callback: FID, data: Data | None = None, **settings: Any) -> list[dict[str, Any]]:
    trainer(folder, callback, **settings).validate(Module(), datamodule=data or Data(), verbose=False)
    return rows(folder)


def test_value_is_that_of_the_known_laws(tmp_path: Path) -> None:
    n = 4000
    full, truncated = validate(tmp_path, fid(tmp_path, num_images=n, batch_size=500, sampler=Heun(40)))
    d = SIDE**2
    # Full samples have the deviation of the model's data; E[x_0|x_n], where truncated ones end, has less.
    shrunk = STD_SAMPLES**2 / (STD_SAMPLES**2 + SIGMA_N**2) ** 0.5
    for row, std in ((full, STD_SAMPLES), (truncated, shrunk)):
        gap = STD_DATA - std
        # (gap^2) moves by 2 gap times the error of the two deviations, std / sqrt(2 n) each; d of them are added.
        error = 2 * gap * ((STD_DATA**2 + std**2) / (2 * n) * d) ** 0.5
        bias = (d + d * d) * (STD_DATA**2 + std**2) / n  # its order: means, and covariances off the diagonal
        assert abs(row["value"] - d * gap**2) < 5 * error + bias
    assert (full["n"], full["n_reference"], full["nfe"], full["steps"]) == (n, n, 79, 40)
    assert full["truncated_at"] is None and truncated["truncated_at"] == SIGMA_N
    assert truncated["nfe"] < full["nfe"]


def test_key_says_which_network_it_was(tmp_path: Path) -> None:
    run = trainer(tmp_path, fid(tmp_path))
    run.test(Module(), datamodule=Data(), verbose=False)
    assert {"fd_pixels", "fd_pixels_truncated", "fd_pixels_n"} <= run.callback_metrics.keys()
    assert run.callback_metrics["fd_pixels_n"] == 300
    callback = FID("inception", num_images=50, truncated=False, cache_dir=str(tmp_path / "cache"))
    run = trainer(tmp_path, callback)
    run.test(Module(), datamodule=Data(), verbose=False)
    assert "fid" in run.callback_metrics and "fid_truncated" not in run.callback_metrics


@pytest.mark.parametrize("batch_size", [64, 300])  # 5 batches for two processes; one batch: the second gets none
def test_two_processes_compute_what_one_does(tmp_path: Path, batch_size: int) -> None:
    one = validate(tmp_path / "one", fid(tmp_path / "one", batch_size=batch_size))
    two = validate(tmp_path / "two", fid(tmp_path / "two", batch_size=batch_size), strategy="ddp_fork", devices=2)
    # Sums of the same float64 numbers in another order.
    assert [row["value"] for row in two] == pytest.approx([row["value"] for row in one], rel=1e-9)
    again = validate(tmp_path / "again", fid(tmp_path / "two", batch_size=batch_size), strategy="ddp_fork", devices=2)
    assert [row["value"] for row in again] == pytest.approx([row["value"] for row in one], rel=1e-9)
    assert len(list((tmp_path / "two" / "cache").iterdir())) == 1, "the second run should have found the statistics"


def test_reference_is_seen_once(tmp_path: Path) -> None:
    data = Data()
    first = validate(tmp_path, fid(tmp_path), data)
    assert data.reads == 600  # once for their digest, once for their features
    data.reads = 0
    second = validate(tmp_path / "second", fid(tmp_path), data)
    assert data.reads == 300
    assert [row["value"] for row in first] == [row["value"] for row in second]
    other = Data()
    other.images = other.images / 10
    third = validate(tmp_path / "third", fid(tmp_path), other)
    assert third[0]["value"] > 2 * first[0]["value"], "other images, other statistics"


def test_precision_of_the_run_does_not_matter(tmp_path: Path) -> None:
    exact = validate(tmp_path / "32", fid(tmp_path))
    mixed = validate(tmp_path / "bf16", fid(tmp_path), precision="bf16-mixed")
    assert [row["value"] for row in exact] == [row["value"] for row in mixed]


def test_training_does_not_notice(tmp_path: Path) -> None:
    module, callback = Module(), fid(tmp_path)
    run = trainer(tmp_path, callback, max_epochs=2, num_sanity_val_steps=1)
    torch.manual_seed(0)
    run.fit(module, datamodule=Data())
    assert len(rows(tmp_path)) == 4, "two validations, full and truncated, and none in the sanity check"
    assert {row["step"] for row in rows(tmp_path)} == {4, 8}
    state = torch.get_rng_state()
    torch.manual_seed(0)
    bare = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    bare.fit(Module(), datamodule=Data())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("inception" in key or "network" in key for key in module.state_dict())
    assert callback.state_dict() == {"validations": 2}


def test_every_other_validation_also_after_a_resumption(tmp_path: Path) -> None:
    callback = fid(tmp_path, every_n_validations=2)
    callback.load_state_dict({"validations": 1})
    trainer(tmp_path, callback, max_epochs=3, num_sanity_val_steps=0).fit(Module(), datamodule=Data())
    assert [row["step"] for row in rows(tmp_path)] == [4, 4, 12, 12]


@pytest.mark.parametrize("other", [{"num_images": 200}, {"seed": 1}, {"sampler": Heun(7)}, {"sampler": Euler(6)}])
def test_two_of_them(tmp_path: Path, other: dict[str, Any]) -> None:
    one, two = fid(tmp_path), fid(tmp_path, **other)
    assert one.state_key == fid(tmp_path).state_key != two.state_key
    both = Trainer(callbacks=[one, two], accelerator="cpu", logger=False, enable_checkpointing=False)
    # Lightning would log the mean of two values of one name.
    with pytest.raises(UserError, match="two FID callbacks log 'fd_pixels'"):
        both.validate(Module(), datamodule=Data())


def test_two_extractors(tmp_path: Path) -> None:
    one, two = fid(tmp_path), FID("others", num_images=300, sampler=Heun(6), cache_dir=str(tmp_path / "cache"))
    run = Trainer(default_root_dir=tmp_path, callbacks=[one, two], accelerator="cpu", logger=False, max_epochs=1)
    run.fit(Module(), datamodule=Data())
    assert {row["key"]: row["value"] for row in rows(tmp_path)}.keys() <= run.callback_metrics.keys()
    assert run.callback_metrics["fd_pixels"] == run.callback_metrics["fd_others"]
    (ckpt,) = tmp_path.rglob("*.ckpt")
    states = torch.load(ckpt, weights_only=True)["callbacks"]
    assert states[one.state_key] == states[two.state_key] == {"validations": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_set": lambda: None}, "have none"),
        ({"shape": (2,)}, r"not items of shape \(2,\)"),
    ],
)
def test_data_that_cannot_be_compared_are_refused_before_training(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    data = Data()
    for name, value in change.items():
        setattr(data, name, value)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, fid(tmp_path), max_epochs=1).fit(Module(), datamodule=data)


@pytest.mark.parametrize("setting", ["num_images", "batch_size", "every_n_validations"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"FID.{setting} = 0"):
        FID(**{setting: 0})  # type: ignore[arg-type]
