"""Weights & Biases without an account: a sweep's runs, with the arguments as its agent writes them."""

import csv
import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from command_line import CONFIGS, DIGITS
from wandb.proto import wandb_internal_pb2
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lightning_tweedie import datamodules
from lightning_tweedie.cli import main
from lightning_tweedie.errors import UserError

SWEEP = yaml.safe_load((CONFIGS / "sweep/noise_levels.yaml").read_text())


def agent_command(parameters: dict[str, Any]) -> list[str]:
    """What the agent runs for these parameters: its own functions, and its loop over the parts of the command."""
    values = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    parts = []
    for part in create_sweep_command(SWEEP["command"]):
        parts += values[part[2:-1]] if part.startswith("${") else [part]
    return parts


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


def read_offline_run(directory: Path) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Settings and history of the offline run in a run's directory."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    settings: dict[str, Any] = {}
    history: dict[str, list[float]] = {}
    for record in all_records(path):
        for update in (*record.run.config.update, *record.config.update):
            settings[update.key or "/".join(update.nested_key)] = yaml.safe_load(update.value_json)
        for item in record.history.item:
            history.setdefault(item.key or "/".join(item.nested_key), []).append(yaml.safe_load(item.value_json))
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


def test_a_sweep_runs(tmp_path: Path, offline: None) -> None:
    (tmp_path / "tiny.yaml").write_text(DIGITS)
    values = {name: p["values"] for name, p in SWEEP["parameters"].items()}
    grid = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    for number, point in enumerate((grid[0], grid[-1])):
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
