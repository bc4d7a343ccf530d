"""A mistake is told in one sentence, with exit status 2, before the training begins."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from command_line import DIGITS, RING, run
from PIL import Image

from lightning_tweedie.cli import main


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail, and gives its sentence."""

    def check(command: str, *options: str, config: str = RING) -> str:
        before = set(tmp_path.rglob("*.ckpt"))
        status = run(tmp_path, command, *options, config=config)
        return sentence(status, before)

    def sentence(status: int, before: set[Path]) -> str:
        error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
        told = [line for line in error if line.startswith("error: ")]
        assert status == 2
        assert len(told) == 1, error
        assert "Traceback" not in "\n".join(error)
        assert set(tmp_path.rglob("*.ckpt")) == before, "training had begun"
        assert not list(tmp_path.glob("runs/*/*/metrics.csv")) or before
        return told[0]

    return check


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.sigma=-0.1"], ["data.sigma = -0.1", "negative"]),
        (["--data.sigma=25"], ["data.sigma = 25", "25 / 127.5 = 0.1961"]),
        (
            ["--data.sigma=0.5", "--model.objective.init_args.ambient=AmbientScoreMatching",
             "--model.objective.init_args.ambient.init_args.levels=lightning_tweedie.levels.LogNormal",
             "--model.objective.init_args.ambient.init_args.levels.init_args.sigma_max=0.4"],
            ["data.sigma = 0.5", "sigma_max = 0.4"],
        ),
        (["--data.sigma=[0.5,0.1]"], ["data.sigma = [0.5, 0.1]"]),
        (["--data.sigma=half"], ["data.sigma = 'half'"]),
        (["--data.batch_size=1.5"], ["data.batch_size = 1.5", "int"]),
        (["--data.batch_size=500"], ["data.batch_size = 500"]),
        (["--data.holdout=360"], ["data.holdout = 360"]),
        (["--trainer.max_steps=many"], ["trainer.max_steps = many", "int"]),
        (["--trainer.max_step=3"], ["--trainer.max_step is not an option"]),
        (["--data.sigm=0.3"], ["data.sigm ", "did you mean sigma?"]),
        (["--data.augmentation=hflip"], ["data.augmentation ", "ToyMixture"]),
        (["--model.denoiser.backbone.widht=8"], ["model.denoiser.backbone.widht ", "did you mean width?"]),
        (["--model.denoiser.backbone.init_args.width=wide"], ["model.denoiser.backbone.width = wide", "int"]),
        (["--model.objective.init_args.replay.init_args.share=-1"], ["share = -1"]),
        (["--model.objective.init_args.replay.init_args.residual=2"], ["residual in (0, 1)", "not 2"]),
        (["--model.denoiser.backbone.init_args.dim=3"], ["(2,)", "settings"]),
        (["--data=lightning_tweedie.datamodules.Rong"], ["data", "Rong"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--trainer.accelerator=gpu", "--trainer.devices=64"], ["trainer"]),
        (["--name=../elsewhere"], ["../elsewhere"]),
        (["--last_checkpoint.every_n_train_steps=0"], ["last_checkpoint.every_n_train_steps = 0"]),
        (["more"], ["more"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value[0].startswith("-") else None,
)  # fmt: skip
def test_settings(refused: Callable[..., str], options: list[str], words: list[str]) -> None:
    told = refused("fit", *options)
    assert all(word in told for word in words), told


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for command, remedy in {
        "inspect": "data, out must be given: add --data and --out",
        "sample": "ckpt_path, out must be given: add --ckpt_path and --out",
        "fit": "data, model must be given: name a configuration with --config",
    }.items():
        assert main([command]) == 2
        assert capsys.readouterr().err.startswith(f"error: {remedy} (`lightning_tweedie {command} --help`")


def test_keys_in_a_file(refused: Callable[..., str]) -> None:
    for key in ("trainer", "model"):
        config = yaml.safe_load(RING)
        (config["model"]["init_args"] if key == "model" else config["trainer"])["bogus"] = 1
        assert "bogus" in refused("fit", config=yaml.safe_dump(config))
    assert "bogus" in refused("fit", config=RING + "bogus: 1\n")
    assert "tiny.yaml" in refused("fit", config=RING + "  broken: [\n")


def images(root: Path, count: int) -> None:
    root.mkdir()
    for i in range(count):
        Image.new("L", (8, 8), i % 256).save(root / f"{i:04}.png")


def folder_config(root: Path, **settings: object) -> str:
    config = yaml.safe_load(DIGITS)
    init_args = {"root": str(root), "channels": 1, "sigma": 0.5, "holdout": 16, "batch_size": 8, **settings}
    config["data"] = {"class_path": "lightning_tweedie.datamodules.Images", "init_args": init_args}
    return yaml.safe_dump(config)


def test_folders(refused: Callable[..., str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    told = refused("fit", config=folder_config(missing))
    assert str(missing) in told
    assert "does not exist" in told
    empty = tmp_path / "empty"
    empty.mkdir()
    told = refused("fit", config=folder_config(empty))
    assert "holds no images" in told
    assert f"data.root = {str(empty)!r}" in told
    assert "data.channels = 0" in refused("fit", config=folder_config(empty, channels=0))


def test_one_corrupt_image_in_a_thousand(refused: Callable[..., str], tmp_path: Path) -> None:
    images(tmp_path / "images", 1000)
    broken = tmp_path / "images/0617.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert "0617.png" in refused("fit", config=folder_config(tmp_path / "images"))


def test_a_random_crop_before_the_noise(refused: Callable[..., str], tmp_path: Path) -> None:
    images(tmp_path / "images", 40)
    crop = {"class_path": "albumentations.RandomCrop", "init_args": {"height": 4, "width": 4}}
    told = refused("fit", config=folder_config(tmp_path / "images", transform=[crop]))
    assert "RandomCrop" in told


class Evil:
    """What a hostile checkpoint contains: unpickling it runs code."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.witness,)  # type: ignore[return-value]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    assert run(tmp_path, "fit", "--trainer.max_steps=2") == 0
    return tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"


def test_checkpoints(
    refused: Callable[..., str], tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    bad = tmp_path / "bad.ckpt"
    wrong: dict[str, bytes] = {
        "truncated": trained.read_bytes()[:-2000],
        "half": trained.read_bytes()[: trained.stat().st_size // 2],
        "empty": b"",
        "something else": b"hello",
        "an old format": pickle.dumps({"state_dict": {}}),
    }
    for content in wrong.values():
        bad.write_bytes(content)
        for command in ("fit", "test"):
            assert str(bad) in refused(command, "--ckpt_path", str(bad))
        assert main(["sample", "--ckpt_path", str(bad), "--out", str(tmp_path / "out")]) == 2
        assert str(bad) in capsys.readouterr().err
    assert "does not exist" in refused("fit", "--ckpt_path", str(tmp_path / "missing.ckpt"))
    assert "last" in refused("fit", "--ckpt_path", "last")
    torch.save({"state_dict": {}}, bad)
    assert "was not made by this library" in refused("fit", "--ckpt_path", str(bad))


def test_a_checkpoint_of_another_network(refused: Callable[..., str], trained: Path) -> None:
    for command in ("fit", "validate", "predict"):
        told = refused(command, "--ckpt_path", str(trained), "--model.denoiser.backbone.init_args.width=24")
        assert "another network" in told
        assert "width" in told


def test_a_hostile_checkpoint_executes_nothing(
    refused: Callable[..., str], tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained, weights_only=True)
    witness = tmp_path / "witness"
    for key in ("hyper_parameters", "state_dict", "lightning_tweedie", "callbacks"):
        torch.save({**content, key: {**content[key], "evil": Evil(witness)}}, trained)
        for command in ("fit", "validate", "test", "predict"):
            assert "run code" in refused(command, "--ckpt_path", str(trained))
        for command in ("sample", "denoise"):
            options = ["--ckpt_path", str(trained), "--out", str(tmp_path / "out")]
            assert main([command, *options, *(["--input", str(tmp_path)] if command == "denoise" else [])]) == 2
            assert "run code" in capsys.readouterr().err
    assert not witness.exists()
    torch.load(trained, weights_only=False)
    assert witness.exists(), "the checkpoint was harmless, so the test says nothing"


def test_a_network_class_of_a_stranger_is_not_imported(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained, weights_only=True)
    content["lightning_tweedie"]["denoiser"]["init_args"]["backbone"]["class_path"] = "evil_package.Net"
    torch.save(content, trained)
    capsys.readouterr()
    assert main(["sample", "--ckpt_path", str(trained), "--out", str(tmp_path / "out")]) == 2
    assert "--allow evil_package" in capsys.readouterr().err


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "ring.yaml").write_text(RING)
    command = [sys.executable, "-m", "lightning_tweedie", "fit", "--config", "ring.yaml", "--data.sigma=25"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: data.sigma = 25")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This one comes in the midst of training: still one sentence, and the state is saved."""
    assert run(tmp_path, "fit", "--model.optimizer=torch.optim.SGD", "--model.optimizer.init_args.lr=1e30") == 2
    told = capsys.readouterr().err
    assert "error: the loss is not finite at step" in told
    assert "Traceback" not in told
