"""Sample quality in the log: the right numbers, whoever computes them, and nothing else disturbed."""

import csv
import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checks import Exact, generator
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tweedie.callbacks.sample_quality as module_under_test
from lightning_tweedie.callbacks import SampleQuality
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.sampling import Euler, Heun

STD_DATA, STD_SAMPLES, SIGMA_N, SIDE = 0.3, 0.2, 0.4, 2
"""Training images are white with one deviation, the denoiser is exact for white images of another."""

EVERYTHING = ["fid", "kid", "prc", "proximal_fid", "proximal_kid", "memorisation"]


class Pixels(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1) / 127.5 - 1


class Data(LightningDataModule):
    shape: tuple[int, ...] = (1, SIDE, SIDE)
    sigma_n = SIGMA_N

    def __init__(self, images: int = 4000, levels: Tensor | float = SIGMA_N, told: Tensor | None = None) -> None:
        super().__init__()
        self.reads = 0
        self.images = STD_DATA * torch.randn(images, *self.shape, generator=generator(0))
        self.levels = torch.as_tensor(levels).expand(images, *self.shape)
        self.told = self.levels if told is None else told

    def reference_set(self) -> Any:
        return self

    def noisy_set(self) -> NoisyDataset:
        x_n = self.images + self.levels * torch.randn(self.images.shape, generator=generator(1))
        return NoisyDataset(ArrayDataset(x_n, self.told), None, inject=False)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.images[index]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=1)

    test_dataloader = train_dataloader = val_dataloader


class Module(LightningModule):
    """Samples of a deviation that may be another one in each epoch."""

    def __init__(self, stds: list[float] | None = None) -> None:
        super().__init__()
        self.stds = stds or [STD_SAMPLES]
        self.eval_denoiser = Exact(self.denoise, sigma_data=STD_SAMPLES)
        self.weight = nn.Parameter(torch.zeros(()))
        self.ema = SimpleNamespace(half_lives=[1000.0], steps=0)
        self.evaluated = 0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.evaluated += len(x)
        variance = self.stds[self.current_epoch % len(self.stds)] ** 2
        return x * (variance / (variance + sigma**2)).reshape(-1, 1, 1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.ema.steps += 1
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def pixel_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module_under_test, "resolve_extractor", lambda name: FeatureExtractor(Pixels(), name, "0", SIDE**2)
    )


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "accelerator": "cpu",
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            **settings,
        },
    )


def quality(folder: Path, *metrics: str, **settings: Any) -> SampleQuality:
    settings = {
        "extractor": "pixels",
        **{"num_images": 300, "batch_size": 64, "sampler": Heun(6), "cache_dir": str(folder / "cache")},
        **settings,
    }
    return SampleQuality(list(metrics) or None, **settings)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quality.jsonl").read_text().splitlines()]


def values(found: list[dict[str, Any]]) -> dict[str, tuple[float, float | None]]:
    """What must not depend on who computes it."""
    return {
        f"{row['metric']}/{row['sampling']}": (row["value"], row["standard_error"], row["generated_digest"])
        for row in found
    }


def validate(folder: Path, callback: SampleQuality, data: Any = None, **settings: Any) -> list[dict[str, Any]]:
    trainer(folder, callback, **settings).validate(Module(), datamodule=data or Data(), verbose=False)
    return rows(folder)


def clipped_std(std: float) -> float:
    """Standard deviation of ``N(0, std^2)`` after clipping to [-1, 1], as the extractor sees it."""
    a = 1 / std
    inside = math.erf(a / 2**0.5)
    density = math.exp(-(a**2) / 2) / (2 * math.pi) ** 0.5
    return (std**2 * (inside - 2 * a * density) + 1 - inside) ** 0.5


def test_distances_are_those_of_the_known_laws(tmp_path: Path) -> None:
    n, d = 2000, SIDE**2
    callback = quality(tmp_path, "fid", "proximal_fid", num_images=n, batch_size=500, sampler=Heun(20))
    found = validate(tmp_path, callback)
    assert [(row["metric"], row["sampling"]) for row in found] == [
        (metric, sampling) for sampling in ("full", "truncated") for metric in ("fd_pixels", "proximal_fd_pixels")
    ]
    # Full samples have the deviation of the model's data; E[x_0|x_n], where truncated ones end, has less.
    deviation = {"full": STD_SAMPLES, "truncated": STD_SAMPLES**2 / (STD_SAMPLES**2 + SIGMA_N**2) ** 0.5}
    for row in found:
        noise = SIGMA_N if row["metric"].startswith("proximal_") else 0.0
        ours, theirs = (clipped_std(math.hypot(std, noise)) for std in (deviation[row["sampling"]], STD_DATA))
        gap = theirs - ours
        # (gap^2) moves by 2 gap times the error of the two deviations, std / sqrt(2 n) each; d of them are added.
        error = 2 * gap * ((ours**2 + theirs**2) / (2 * n) * d) ** 0.5
        bias = (d + d * d) * (ours**2 + theirs**2) / n  # its order: means, and covariances off the diagonal
        assert abs(row["value"] - d * gap**2) < 5 * error + bias, row
        assert 0.5 * error < row["standard_error"] < 2 * error, row
    full, truncated = found[0], found[2]
    assert (full["n"], full["n_reference"], full["nfe"], full["steps"]) == (n, n, 39, 20)
    assert truncated["nfe"] < full["nfe"] and full["ema_half_life"] == 1000 and full["sigma_n"] == SIGMA_N
    assert full["subject"] == "val" and full["step"] == 0 and full["seconds"] > 0 and "torch" in full["versions"]


@pytest.mark.parametrize("kind", ["one level", "a level per item", "maps"])
def test_noise_in_the_samples_is_that_of_the_data(tmp_path: Path, kind: str) -> None:
    """Samples of the law of the clean data, with noise, have the law of the noisy data, whatever its levels are."""
    n, d = 2000, SIDE**2
    levels = torch.full((n, 1, 1, 1), SIGMA_N)
    if kind != "one level":
        levels[: n // 2] = 0.1
    if kind == "maps":
        levels = levels.expand(n, 1, SIDE, SIDE).clone()
        levels[..., 0] = 0.5
    settings: dict[str, Any] = {"num_images": n, "batch_size": 500, "sampler": Heun(20), "truncated": False}

    def distance(name: str, told: Tensor) -> float:
        callback = quality(tmp_path, "proximal_fid", **settings)
        told = told.expand(n, 1, SIDE, SIDE) if kind == "maps" else told.reshape(n)
        run = trainer(tmp_path / name, callback)
        run.validate(Module([STD_DATA]), datamodule=Data(n, levels, told), verbose=False)
        return rows(tmp_path / name)[0]["value"]

    # At equal laws there is bias alone, of the order of what the covariances are off.
    bias = (d + d * d) * 0.5**2 / n
    assert distance("right", levels) < bias
    assert distance("wrong", levels + 0.2) > 5 * bias, "the control: noise of another level"
    if kind == "a level per item":
        mean = levels.square().mean().sqrt().expand(n)
        # The same covariance, but not the same images: the Frechet distance does not see it, others do.
        assert distance("mean", mean) < bias


def test_keys_say_which_network_it_was(tmp_path: Path) -> None:
    names = {"fid": "fd", "kid": "kd", "precision": "precision", "coverage": "coverage"}
    memorisation = {"memorised_share", "distance_ratio_pixel", "similarity_above_0.9_pixels"}
    run = trainer(tmp_path, quality(tmp_path, *EVERYTHING, num_images=50))
    run.test(Module(), datamodule=Data(60), verbose=False)
    ours = {f"{short}_pixels" for short in names.values()} | {"proximal_fd_pixels", "proximal_kd_pixels"} | memorisation
    expected = ours | {f"{name}_truncated" for name in ours} | {"fd_pixels_n"}
    assert expected <= run.callback_metrics.keys()
    assert run.callback_metrics["fd_pixels_n"] == 50
    found = rows(tmp_path)
    assert {row["subject"] for row in found} == {"test"}
    assert {row["n_reference"] for row in found if row["metric"] == "fd_pixels"} == {50}
    assert {row["n_reference"] for row in found if row["metric"] in memorisation} == {60}, "all training images"
    callback = quality(tmp_path, "fid", "proximal_fid", num_images=50, extractor="inception", truncated=False)
    run = trainer(tmp_path, callback)
    run.test(Module(), datamodule=Data(), verbose=False)
    assert run.callback_metrics.keys() == {"fid", "fid_n", "proximal_fid"}


def test_samples_are_made_once_for_all_measures(tmp_path: Path) -> None:
    data, module = Data(400), Module()
    trainer(tmp_path, quality(tmp_path, *EVERYTHING)).validate(module, datamodule=data, verbose=False)
    nfe = {row["sampling"]: row["nfe"] for row in rows(tmp_path)}
    assert module.evaluated == 300 * (nfe["full"] + nfe["truncated"])
    assert len(list((tmp_path / "cache").iterdir())) == 3, "clean, noisy and all training images"


def test_several_processes_compute_what_one_does(tmp_path: Path) -> None:
    one = validate(tmp_path / "one", quality(tmp_path / "one", *EVERYTHING), Data(400))
    # Two chunks of samples, of which the third process gets none; it finds all training images in the cache.
    for count in (2, 3):
        several = quality(tmp_path / "several", *EVERYTHING)
        found = validate(tmp_path / str(count), several, Data(400), strategy="ddp_fork", devices=count)
        assert values(found) == values(one)


def test_the_reference_is_seen_once(tmp_path: Path) -> None:
    data = Data()
    first = validate(tmp_path, quality(tmp_path), data)
    assert data.reads == 600  # once for their digest, once for their features
    data.reads = 0
    second = validate(tmp_path / "second", quality(tmp_path), data)
    assert data.reads == 300
    assert values(first) == values(second)
    other = Data()
    other.images = other.images / 10
    third = validate(tmp_path / "third", quality(tmp_path), other)
    assert third[0]["value"] > 2 * first[0]["value"], "other images, other features"


def test_other_data_have_other_references(tmp_path: Path) -> None:
    callback, other = quality(tmp_path), Data()
    other.images = other.images / 10
    run = trainer(tmp_path, callback)
    for data in (Data(), other):
        run.validate(Module(), datamodule=data, verbose=False)
    full = [row for row in rows(tmp_path) if row["sampling"] == "full"]
    assert full[0]["reference_digest"] != full[1]["reference_digest"] and full[0]["value"] != full[1]["value"]
    assert full[0]["generated_digest"] == full[1]["generated_digest"]


@pytest.mark.gpu
def test_a_gpu_computes_what_the_processor_does(tmp_path: Path) -> None:
    on_cpu = validate(tmp_path / "cpu", quality(tmp_path, *EVERYTHING), Data(400))
    on_gpu = validate(tmp_path / "gpu", quality(tmp_path, *EVERYTHING), Data(400), accelerator="gpu", devices=1)
    assert {row["device"] for row in on_gpu} == {torch.cuda.get_device_name()}
    # A rounding may take a pixel to the next of 256 levels.
    assert [row["value"] for row in on_gpu] == pytest.approx([row["value"] for row in on_cpu], rel=1e-2, abs=1e-3)


def test_precision_of_the_run_does_not_matter(tmp_path: Path) -> None:
    exact = validate(tmp_path / "32", quality(tmp_path, *EVERYTHING), Data(400))
    mixed = validate(tmp_path / "bf16", quality(tmp_path, *EVERYTHING), Data(400), precision="bf16-mixed")
    assert values(exact) == values(mixed)


def test_training_does_not_notice(tmp_path: Path) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    module, callback = Module(), quality(tmp_path, *EVERYTHING)
    seed()
    trainer(tmp_path, callback, max_epochs=2, num_sanity_val_steps=1).fit(module, datamodule=Data(400))
    fids = [row for row in rows(tmp_path) if row["metric"] == "fd_pixels"]
    assert len(fids) == 4, "two validations, full and truncated, and none in the sanity check"
    assert {row["step"] for row in fids} == {4, 8}
    after = states()
    seed()
    trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1).fit(Module(), datamodule=Data(400))
    assert states() == after
    assert not any("inception" in key or "network" in key for key in module.state_dict())
    assert callback.state_dict() == {"validations": 2}


def test_every_other_validation_also_after_a_resumption(tmp_path: Path) -> None:
    callback = quality(tmp_path, every_n_validations=2)
    callback.load_state_dict({"validations": 1})
    trainer(tmp_path, callback, max_epochs=3, num_sanity_val_steps=0).fit(Module(), datamodule=Data())
    assert [row["step"] for row in rows(tmp_path)] == [4, 4, 12, 12]


def test_the_best_checkpoint_is_chosen_without_a_clean_image(tmp_path: Path) -> None:
    data = Data(1000, levels=0.15)
    data.sigma_n = 0.15
    data.reference_set = lambda: None  # type: ignore[method-assign]
    stds = [0.05, 0.1, STD_DATA, 0.2]  # of the samples after each epoch
    best = ModelCheckpoint(tmp_path / "ckpt", "{step}", monitor="proximal_fd_pixels", save_top_k=1)
    several: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2}
    callback = quality(tmp_path, "proximal_fid", num_images=1000, sampler=Heun(20))
    run = trainer(tmp_path, callback, best, max_epochs=4, num_sanity_val_steps=0, **several)
    run.fit(Module(stds), datamodule=data)
    found = [row for row in rows(tmp_path) if row["sampling"] == "full"]
    steps = [row["step"] for row in found]
    (path,) = (tmp_path / "ckpt").iterdir()
    assert path.name == f"step={steps[2]}.ckpt"
    # Against clean images, which these data are not said to have, the order is the same.
    clean = quality(tmp_path, "fid", num_images=1000, sampler=Heun(20))
    trainer(tmp_path / "clean", clean, max_epochs=4, num_sanity_val_steps=0).fit(Module(stds), datamodule=Data(1000))
    against_clean = [row["value"] for row in rows(tmp_path / "clean") if row["sampling"] == "full"]
    assert np.argsort(against_clean).tolist() == np.argsort([row["value"] for row in found]).tolist() == [2, 3, 1, 0]


@pytest.mark.parametrize("monitor", ["proximal_fd_pixels", "proximal_fd_pixels_truncated"])
@pytest.mark.parametrize("make", [ModelCheckpoint, EarlyStopping])
def test_old_values_choose_no_checkpoint(tmp_path: Path, make: Callable[..., Callback], monitor: str) -> None:
    data = Data(400)
    callback = quality(tmp_path, "proximal_fid", every_n_validations=2)
    with pytest.raises(UserError, match=f"goes by '{monitor}', which is measured after every 2 validations only"):
        trainer(tmp_path, callback, make(monitor=monitor), max_epochs=1, num_sanity_val_steps=0).fit(Module(), data)
    callback = quality(tmp_path, "fid", every_n_validations=2)
    trainer(tmp_path, callback, ModelCheckpoint(tmp_path, monitor="step"), max_epochs=1).fit(Module(), data)


@pytest.mark.parametrize("other", [{"num_images": 200}, {"seed": 1}, {"sampler": Heun(7)}, {"sampler": Euler(6)}])
def test_two_of_them(tmp_path: Path, other: dict[str, Any]) -> None:
    one, two = quality(tmp_path, "fid", "kid"), quality(tmp_path, "kid", **other)
    assert one.state_key == quality(tmp_path, "fid", "kid").state_key != two.state_key
    # Lightning would log the mean of two values of one name.
    with pytest.raises(UserError, match="two SampleQuality callbacks measure kid"):
        trainer(tmp_path, one, two).validate(Module(), datamodule=Data())


def test_a_test_says_which_checkpoint_it_was(tmp_path: Path) -> None:
    with_steps = Module()
    with_steps.register_buffer("counted", torch.tensor(7))

    def load(checkpoint: dict[str, Any]) -> None:
        with_steps.ema.steps = int(checkpoint["state_dict"]["counted"])

    with_steps.on_load_checkpoint = load  # type: ignore[method-assign]
    run = trainer(tmp_path, quality(tmp_path), ModelCheckpoint(tmp_path / "ckpt"), max_epochs=1)
    run.fit(with_steps, datamodule=Data())
    (path,) = (tmp_path / "ckpt").iterdir()
    facts = ("checkpoint", "checkpoint_digest", "step")
    assert {tuple(row[name] for name in facts) for row in rows(tmp_path)} == {(None, None, 4)}
    trainer(tmp_path / "test", quality(tmp_path)).test(with_steps, Data(), ckpt_path=str(path), verbose=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert {tuple(row[name] for name in facts) for row in rows(tmp_path / "test")} == {(str(path), digest, 7)}
    with (tmp_path / "test/quality.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows(tmp_path / "test")]
    assert {row["checkpoint_digest"] for row in table} == {digest}


def test_two_extractors(tmp_path: Path) -> None:
    one, two, three = (
        quality(tmp_path),
        quality(tmp_path, extractor="others"),
        quality(tmp_path, "kid", num_images=200),
    )
    run = Trainer(default_root_dir=tmp_path, callbacks=[one, two, three], accelerator="cpu", logger=False, max_epochs=1)
    run.fit(Module(), datamodule=Data())
    assert {"fd_pixels", "fd_others", "kd_pixels"} <= run.callback_metrics.keys()
    assert run.callback_metrics["fd_pixels"] == run.callback_metrics["fd_others"]
    (ckpt,) = tmp_path.rglob("*.ckpt")
    states = torch.load(ckpt, weights_only=True)["callbacks"]
    assert [states[c.state_key] for c in (one, two, three)] == 3 * [{"validations": 1}]


def test_what_was_learnt_by_heart_is_found(tmp_path: Path) -> None:
    data = Data(400)

    def by_heart(x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x] when x_0 is one of the training images."""
        images = data.images.flatten(1).to(x)
        distance = (x.flatten(1)[:, None] - images).square().sum(2)
        return ((-distance / (2 * sigma**2)[:, None]).softmax(1) @ images).reshape(x.shape)

    for name, denoise, least, most in (("copies", by_heart, 0.99, 1.0), ("fresh", Module([STD_DATA]).denoise, 0, 0.2)):
        module = Module([STD_DATA])
        module.eval_denoiser = Exact(lambda x, sigma, denoise=denoise: denoise(x, sigma), sigma_data=STD_DATA)
        callback = quality(tmp_path, "memorisation", truncated=False, sampler=Heun(18))
        trainer(tmp_path / name, callback).validate(module, datamodule=data, verbose=False)
        found = {row["metric"]: row["value"] for row in rows(tmp_path / name)}
        assert least <= found["memorised_share"] <= most, name
        assert (found["distance_ratio_pixel"] < 0.1) == (name == "copies")


def test_a_trial_run_is_short_and_leaves_nothing(tmp_path: Path) -> None:
    module = Module()
    run = trainer(tmp_path, quality(tmp_path, *EVERYTHING), fast_dev_run=True)
    run.validate(module, datamodule=Data(400), verbose=False)
    assert "coverage_pixels" in run.callback_metrics and module.evaluated < 200
    assert not list(tmp_path.glob("quality.*"))


@pytest.mark.parametrize(
    ("change", "metrics", "message"),
    [
        ({"reference_set": lambda: None}, ["fid"], "fid compares with clean reference images .* proximal_fid"),
        ({"reference_set": lambda: None}, ["proximal_fid", "memorisation"], "memorisation compares with clean"),
        ({"images": torch.zeros(5, 1, 2, 2)}, ["fid", "prc"], "the 5 that there are do not suffice for fid, prc"),
        ({"shape": (2,)}, ["fid"], r"not items of shape \(2,\)"),
        ({"shape": (2,)}, ["proximal_kid"], r"not items of shape \(2,\)"),
    ],
)
def test_data_that_cannot_be_compared_are_refused_before_training(
    tmp_path: Path, change: dict[str, Any], metrics: list[str], message: str
) -> None:
    data = Data()
    for name, value in change.items():
        setattr(data, name, value)
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, quality(tmp_path, *metrics), max_epochs=1).fit(Module(), datamodule=data)


def test_a_module_without_a_data_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these data have none"):
        trainer(tmp_path, quality(tmp_path, "proximal_fid")).validate(
            Module(), DataLoader(TensorDataset(torch.zeros(2, 1)))
        )


@pytest.mark.parametrize("setting", ["num_images", "batch_size", "every_n_validations"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"SampleQuality.{setting} = 0"):
        SampleQuality(**{setting: 0})  # type: ignore[arg-type]


def test_unknown_and_impossible_measures_are_refused() -> None:
    with pytest.raises(UserError, match="metrics names 'FID': give any of fid, kid, prc"):
        SampleQuality(["FID"])
    with pytest.raises(UserError, match="metrics is empty"):
        SampleQuality([])
    with pytest.raises(UserError, match="num_images = 5 is too small: give at least 6"):
        SampleQuality(["prc"], num_images=5)
