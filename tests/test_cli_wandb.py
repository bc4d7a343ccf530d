"""Weights & Biases without an account: a sweep's runs, with the arguments as its agent writes them."""

import base64
import csv
import hashlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from command_line import CONFIGS, DIGITS
from PIL import Image
from wandb.proto import wandb_internal_pb2

from lightning_tweedie import datamodules
from lightning_tweedie.cli import main
from lightning_tweedie.errors import UserError
from lightning_tweedie.sweeps import sweep_file

SWEEP = sweep_file.read_sweep(CONFIGS / "sweep/noise_levels.yaml")


def agent_command(parameters: dict[str, Any]) -> list[str]:
    """What the agent runs for these parameters."""
    return sweep_file.agent_command(SWEEP, parameters, Path("parameters.json"))


def records(path: Path) -> Iterator[bytes]:
    """The records of an offline run: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def read_offline_run(directory: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings and history of the offline run in a run's directory."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    settings: dict[str, Any] = {}
    history: dict[str, list[Any]] = {}
    for record in all_records(path):
        for update in (*record.run.config.update, *record.config.update):
            settings[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item:
            history.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return settings, history


def all_records(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records up to the one that ends the run: another process writes them, and may lag behind."""
    for _ in range(200):
        found = [wandb_internal_pb2.Record.FromString(data) for data in records(path)]
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"the run in {path} has no end")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no mode given: offline has to be found out."""
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no.netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_a_sweep_runs(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    monkeypatch.chdir(CONFIGS.parent)
    grid = SWEEP.points(None, seed=0)
    for number, point in enumerate((grid[0], grid[-2])):  # other noise, the same quick objective
        command = agent_command(point)
        assert command[:2] == ["lightning_tweedie", "fit"]
        assert f"--data.sigma={point['data.sigma']}" in command
        experiment = command.index("--config") + 1
        assert (CONFIGS.parent / command[experiment]).is_file()
        # The same command on a small configuration.
        command[experiment] = str(tmp_path / "tiny.yaml")
        assert main([*command[1:], "--runs", str(tmp_path / "runs"), "--trainer.log_every_n_steps=1"]) == 0
        directory = tmp_path / f"runs/digits/fit_{number}"
        settings, history = read_offline_run(directory)
        assert settings["data"]["init_args"]["sigma"] == point["data.sigma"]
        assert settings["data"]["init_args"]["seed"] == point["data.seed"]
        assert settings["model"]["init_args"]["denoiser"]["class_path"] == "lightning_tweedie.denoiser.Denoiser"
        assert len(history["train/loss"]) == 3
        # The same numbers as in the other log.
        with (directory / "metrics.csv").open() as file:
            losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
        assert history["train/loss"] == pytest.approx(losses, rel=1e-6)


SEEN = """
trainer:
  check_val_every_n_epoch: null
  val_check_interval: 2
  log_every_n_steps: 1
  max_steps: 4
  callbacks:
    - class_path: lightning_tweedie.callbacks.SampleGrid
      init_args: {num_samples: 2, sampler: {class_path: lightning_tweedie.sampling.Heun, init_args: {steps: 2}}}
    - class_path: lightning_tweedie.callbacks.RestorationGrid
      init_args:
        num_items: 2
        draws: 2
        sampler: &few {class_path: lightning_tweedie.sampling.Ancestral, init_args: {steps: 2}}
    - class_path: lightning_tweedie.callbacks.RestorationQuality
      init_args: {num_images: 2, draws: 2, sampler: *few}
    - class_path: lightning_tweedie.callbacks.Report
      init_args: {extractor: null, num_images: 2, num_restored: 2, draws: 2, posterior_sampler: *few}
model:
  init_args:
    objective:
      class_path: lightning_tweedie.objectives.Objective
      init_args:
        consistency: {class_path: lightning_tweedie.objectives.Consistency, init_args: {start: 0.0}}
"""
"""Everything that is shown in the course of a training and at its end."""


def test_an_offline_run_holds_what_the_run_knows(tmp_path: Path, offline: None) -> None:
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    (tmp_path / "seen.yaml").write_text(SEEN)
    configs = [f"--config={tmp_path / name}.yaml" for name in ("tiny", "seen")]
    assert main(["fit", *configs, "--wandb=true", "--runs", str(tmp_path / "runs")]) == 0
    directory = tmp_path / "runs/digits/fit_0"
    settings, history = read_offline_run(directory)

    # The whole configuration, defaults included.
    settings.pop("_wandb", None)
    assert settings == yaml.safe_load((directory / "config.yaml").read_text())

    # Every number of the other log: losses by term and by level, metrics, the report.
    logged: dict[str, list[float]] = {}
    with (directory / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("epoch", "step"):
                    logged.setdefault(name, []).append(float(value))
    for name in (
        *("train/loss", "train/ambient", "train/consistency", "val/loss", "val/psnr_one_step", "val/psnr_mean"),
        *("val/interval_coverage_33.3", "report/psnr_one_step", "report/ssim_mean"),
    ):
        assert name in logged, sorted(logged)
    levels = {name.rpartition("/")[0] for name in logged if "sigma_" in name}
    assert levels == {"train/ambient", "train/consistency"}
    for name, values in logged.items():
        assert history[name] == pytest.approx(values, rel=1e-6), name
    report = json.loads((directory / "report/report.json").read_text())
    assert logged["report/psnr_one_step"] == pytest.approx([report["psnr"]["values"]["one-step estimate"]], abs=0.01)

    # The pictures, pixel by pixel.
    for key, paths in {
        "pictures/samples": sorted(directory.glob("pictures/samples/*.png")),
        "pictures/restoration": sorted(directory.glob("pictures/restoration/*.png")),
        "report/samples": [directory / "report/samples.png"],
        "report/restoration": [directory / "report/restoration.png"],
    }.items():
        names = history[f"{key}/filenames"]
        assert len(names) == len(paths) == (1 if key.startswith("report") else 2)
        for (name,), path in zip(names, paths, strict=True):
            (sent,) = directory.glob(f"wandb/offline-run-*/files/{name}")
            ours = np.asarray(Image.open(path))
            assert np.array_equal(np.asarray(Image.open(sent).convert("RGB")), ours)
    # The control: as floats in [0, 1] they would be black.
    assert np.asarray(wandb.Image(ours / 255).image).max() <= 1 < ours.max()


def test_the_model_goes_with_an_online_run(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    options = ["--config", str(tmp_path / "tiny.yaml"), "--wandb", "true", "--runs", str(tmp_path / "runs")]
    assert main(["fit", *options]) == 0
    # As if it were online; the run is written to the disk all the same.
    monkeypatch.setattr(wandb.Run, "offline", False)
    assert main(["fit", *options]) == 0
    without, artifact = (artifacts(tmp_path / f"runs/digits/fit_{number}") for number in range(2))
    assert without == []
    ((name, kind, files),) = artifact
    checkpoint = tmp_path / "runs/digits/fit_1/checkpoints/last.ckpt"
    assert name.startswith("model-")
    assert kind == "model"
    digest = base64.b64encode(hashlib.md5(checkpoint.read_bytes()).digest()).decode()
    assert files == {"model.ckpt": digest}


def artifacts(directory: Path) -> list[tuple[str, str, dict[str, str]]]:
    """Name, type and files with their digests of what an offline run is to upload."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    found = [record.artifact for record in all_records(path) if record.WhichOneof("record_type") == "artifact"]
    return [(a.name, a.type, {entry.path: entry.digest for entry in a.manifest.contents}) for a in found]


def test_a_run_that_never_began_is_not_logged(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(root: str | None) -> None:
        raise UserError("the server is down: try again later")

    monkeypatch.setattr(datamodules.FashionMNIST, "_fetch", staticmethod(fail))
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("a run was made"))
    config = yaml.safe_load(DIGITS)
    config["data"] = {
        "class_path": "lightning_tweedie.datamodules.FashionMNIST",
        "init_args": {"sigma": 0.5, "download": True},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "tiny.yaml"), "--wandb", "true", "--runs", str(tmp_path / "r")]) == 2
    assert "the server is down" in capsys.readouterr().err


def test_values_as_the_agent_writes_them(tmp_path: Path) -> None:
    """Booleans, "null", lists and small numbers."""
    point = {
        "data.sigma": [0.1, 0.4],
        "data.init_args.num_workers": 0,
        "trainer.gradient_clip_val": "null",
        "wandb": False,
        "model.optimizer": "torch.optim.Adam",
        "model.optimizer.init_args.lr": 1e-05,
    }
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    arguments = [a for a in agent_command(point) if a.startswith("--") and a != "--config"]
    assert main(["fit", "--config", str(tmp_path / "tiny.yaml"), *arguments, "--runs", str(tmp_path / "runs")]) == 0
    written = yaml.safe_load((tmp_path / "runs/digits/fit_0/config.yaml").read_text())
    assert written["data"]["init_args"]["sigma"] == [0.1, 0.4]
    assert written["trainer"]["gradient_clip_val"] is None
    assert written["wandb"] is False
    assert written["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-05
