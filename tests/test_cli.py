"""`fit`, `validate`, `test` and `predict` from the command line."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import DIGITS, RING, assert_same_state, checkpoint, run
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator, MPSAccelerator

from lightning_tweedie.cli import main
from lightning_tweedie.commands.parse_error import one_sentence
from lightning_tweedie.commands.training import TrainingCLI


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_run_has_its_own_directory(tmp_path: Path) -> None:
    assert run(tmp_path, "fit") == 0
    first = tmp_path / "runs/ring/fit_0"
    before = files(first)
    assert {"config.yaml", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} == set(before)
    assert checkpoint(first / "checkpoints/last.ckpt")["global_step"] == 30
    assert run(tmp_path, "fit", "--name", "ring") == 0
    assert files(first) == before
    assert_same_state(first / "checkpoints/last.ckpt", tmp_path / "runs/ring/fit_1/checkpoints/last.ckpt")


def test_the_resolved_configuration_repeats_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, "fit", "--data.sigma=0.3", "--model.denoiser.init_args.backbone.init_args.width", "24") == 0
    config = tmp_path / "runs/ring/fit_0/config.yaml"
    written = yaml.safe_load(config.read_text())
    assert written["data"]["init_args"]["sigma"] == 0.3
    assert written["model"]["init_args"]["denoiser"]["init_args"]["backbone"]["init_args"]["width"] == 24
    assert main(["fit", "--config", str(config)]) == 0
    assert_same_state(*(tmp_path / f"runs/ring/fit_{i}/checkpoints/last.ckpt" for i in (0, 1)))


def test_configurations_are_layered(tmp_path: Path) -> None:
    """Later files win over earlier ones, a file of a part is laid over it, and the command line wins over all."""
    (tmp_path / "over.yaml").write_text("trainer: {max_steps: 7}\nseed_everything: 3\nname: over\n")
    (tmp_path / "part.yaml").write_text("gradient_clip_val: 0.5\n")
    over = ("--config", str(tmp_path / "over.yaml"), "--trainer", str(tmp_path / "part.yaml"))
    assert run(tmp_path, "fit", *over, "--seed_everything=4") == 0
    written = yaml.safe_load((tmp_path / "runs/over/fit_0/config.yaml").read_text())
    assert written["trainer"]["max_steps"] == 7
    assert written["trainer"]["gradient_clip_val"] == 0.5
    assert written["trainer"]["log_every_n_steps"] == 5
    assert written["seed_everything"] == 4


def test_trained_networks_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "fit") == 0
    ckpt = ("--ckpt_path", str(tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"))
    assert run(tmp_path, "validate", *ckpt) == 0
    assert "val/loss" in (tmp_path / "runs/ring/validate_0/metrics.csv").read_text()
    assert run(tmp_path, "test", *ckpt) == 0
    assert "test/psnr_one_step" in (tmp_path / "runs/ring/test_0/metrics.csv").read_text()
    assert run(tmp_path, "predict", *ckpt) == 0
    estimates = np.load(tmp_path / "runs/ring/predict_0/predictions.npy")
    assert estimates.shape == (32, 2)
    assert np.isfinite(estimates).all()
    capsys.readouterr()
    assert run(tmp_path, "test") == 2
    assert "--ckpt_path" in capsys.readouterr().err


def test_own_classes_by_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data module and a module in a file beside the configuration."""
    (tmp_path / "galaxies.py").write_text(
        "import torch\n"
        "from lightning_tweedie.denoiser import Denoiser\n"
        "from lightning_tweedie.datamodules import NoisyDataModule\n"
        "from lightning_tweedie.module import TweedieModule\n"
        "class Galaxies(NoisyDataModule):\n"
        "    def __init__(self, scale: float, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "        self.scale = scale\n"
        "    def train_set(self):\n"
        "        x = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))\n"
        "        return torch.utils.data.TensorDataset(self.scale * x)\n"
        "class Narrow(TweedieModule):\n"
        "    def __init__(self, denoiser: Denoiser, factor: float = 1.0):\n"
        "        super().__init__(denoiser)\n"
        "        self.factor = factor\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command line adds this folder
    config = yaml.safe_load(RING)
    config["data"] = {
        "class_path": "galaxies.Galaxies",
        "init_args": {"scale": 0.5, "sigma": 0.2, "holdout": 16, "batch_size": 16},
    }
    denoiser = config["model"]["init_args"]["denoiser"]
    config["model"] = {"class_path": "galaxies.Narrow", "init_args": {"denoiser": denoiser, "factor": 2.0}}
    try:
        assert run(tmp_path, "fit", "--data.scale=0.6", config=yaml.safe_dump(config)) == 0
        ckpt = tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"
        assert run(tmp_path, "validate", "--ckpt_path", str(ckpt), config=yaml.safe_dump(config)) == 0
    finally:
        sys.modules.pop("galaxies", None)


@pytest.mark.parametrize("steps", [13, 20], ids=["within an epoch", "at the end of an epoch"])
def test_resuming_is_exact_and_overwrites_nothing(tmp_path: Path, steps: int) -> None:
    # The share of the training that is done decides which terms are on, so its length has to be the same.
    stop = tmp_path / "stop.yaml"
    stop.write_text(f"trainer:\n  callbacks:\n    - class_path: test_cli.StopAt\n      init_args: {{step: {steps}}}\n")
    assert run(tmp_path, "fit") == 0
    assert run(tmp_path, "fit", "--config", str(stop)) == 0
    first = tmp_path / "runs/ring/fit_1"
    before = files(first)
    last = first / "checkpoints/last.ckpt"
    assert checkpoint(last)["global_step"] == steps
    assert run(tmp_path, "fit", "--ckpt_path", str(last)) == 0
    assert files(first) == before
    assert_same_state(*(tmp_path / f"runs/ring/fit_{i}/checkpoints/last.ckpt" for i in (0, 2)))


def test_a_run_that_was_cut_off_in_its_last_validation_makes_up_for_it(tmp_path: Path) -> None:
    options = ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=10", "--trainer.max_steps=20"]
    assert run(tmp_path, "fit", *options) == 0
    # Saved before the validation of the same step.
    last = ["--ckpt_path", str(tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt")]
    assert run(tmp_path, "fit", *options, *last) == 0
    whole, made_up = (validations(tmp_path / f"runs/ring/fit_{number}") for number in range(2))
    assert len(whole) == 2
    assert made_up == whole[1:]
    # The control: a run that has steps to go is validated as always.
    assert run(tmp_path, "fit", *options[:2], "--trainer.max_steps=30", *last) == 0
    assert len(validations(tmp_path / "runs/ring/fit_2")) == 1


def validations(directory: Path) -> list[str]:
    with (directory / "metrics.csv").open() as file:
        return [row["val/psnr_one_step"] for row in csv.DictReader(file) if row.get("val/psnr_one_step")]


def test_the_configuration_wins_over_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = ("--model.optimizer=torch.optim.Adam", "--model.optimizer.init_args.lr")
    assert run(tmp_path, "fit", "--trainer.max_steps=5", *optimizer, "0.01") == 0
    capsys.readouterr()
    ckpt = ("--ckpt_path", str(tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"))
    assert run(tmp_path, "fit", *optimizer, "0.002", "--trainer.max_steps=10", *ckpt) == 0
    assert "model.optimizer.lr: 0.01 in the checkpoint, 0.002 now" in capsys.readouterr().out
    last = checkpoint(tmp_path / "runs/ring/fit_1/checkpoints/last.ckpt")
    assert last["global_step"] == 10
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 0.002
    assert last["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.002


def test_a_longer_run_stretches_the_schedule_of_the_learning_rate(tmp_path: Path) -> None:
    schedule = (
        "--model.lr_scheduler=lightning_tweedie.lr_schedule.WarmupCosine",
        "--model.lr_scheduler.init_args.warmup=0",
    )
    assert run(tmp_path, "fit", *schedule, "--trainer.max_steps=5") == 0
    last = "runs/ring/fit_{}/checkpoints/last.ckpt"
    stop = tmp_path / "stop.yaml"
    stop.write_text("trainer:\n  callbacks:\n    - class_path: test_cli.StopAt\n      init_args: {step: 7}\n")
    resume = "--ckpt_path", str(tmp_path / last.format(0)), "--config", str(stop)
    assert run(tmp_path, "fit", *schedule, "--trainer.max_steps=10", *resume) == 0
    groups = checkpoint(tmp_path / last.format(1))["optimizer_states"][0]["param_groups"]
    assert groups[0]["lr"] == pytest.approx(0.001 * 0.5 * (1 + math.cos(math.pi * 7 / 10)))


class StopAt(Callback):
    """Ends the training early, as if by itself."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        trainer.should_stop = trainer.global_step >= self.step


class Interrupt(Callback):
    """Has the process interrupted at a step, by a signal."""

    def __init__(self, step: int, signal: int) -> None:
        self.step = step
        self.signal = signal

    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)


@pytest.mark.parametrize(("number", "status", "name"), [(15, 143, "interrupted"), (2, 1, "exception")])
def test_an_interrupted_run_saves_its_state_and_fails(tmp_path: Path, number: int, status: int, name: str) -> None:
    (tmp_path / "stop.yaml").write_text(
        "trainer:\n  callbacks:\n    - class_path: test_cli.Interrupt\n"
        f"      init_args: {{step: 12, signal: {number}}}\n"
    )
    # A shell's background job, as these tests may be one, ignores the interrupt of the keyboard.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(tmp_path, "fit", "--config", str(tmp_path / "stop.yaml")) == status
    finally:
        signal.signal(signal.SIGINT, before)
    folder = tmp_path / "runs/ring/fit_0/checkpoints"
    saved = checkpoint(folder / f"{name}.ckpt")
    assert saved["global_step"] == (13 if number == 15 else 12)
    assert checkpoint(folder / "last.ckpt")["global_step"] == 10
    if number == 15:
        assert run(tmp_path, "fit") == 0
        assert run(tmp_path, "fit", "--ckpt_path", str(folder / "interrupted.ckpt")) == 0
        assert_same_state(*(tmp_path / f"runs/ring/fit_{i}/checkpoints/last.ckpt" for i in (1, 2)))


class InterruptCheck(Callback):
    """Has the process interrupted in the sanity check."""

    def on_validation_batch_start(self, trainer: Trainer, *args: object) -> None:
        if trainer.sanity_checking:
            os.kill(os.getpid(), 15)


@pytest.mark.parametrize("batches", [2, 1], ids=["before its end", "in its last batch"])
def test_a_run_interrupted_in_the_sanity_check_fails(tmp_path: Path, batches: int) -> None:
    (tmp_path / "stop.yaml").write_text("trainer:\n  callbacks:\n    - class_path: test_cli.InterruptCheck\n")
    options = "--config", str(tmp_path / "stop.yaml"), f"--trainer.num_sanity_val_steps={batches}"
    assert run(tmp_path, "fit", *options) == 143
    assert not (tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision(tmp_path: Path, precision: str) -> None:
    assert run(tmp_path, "fit", "--trainer.precision", precision, config=DIGITS) == 0
    weights = checkpoint(tmp_path / "runs/digits/fit_0/checkpoints/last.ckpt")["state_dict"]
    assert all(w.isfinite().all() and w.dtype == torch.float32 for k, w in weights.items() if "extra_state" not in k)


def test_help_is_quick_and_needs_no_torch() -> None:
    for command in ("sample", "denoise"):
        code = (
            f"import sys\nfrom lightning_tweedie.cli import main\ntry: main(['{command}', '--help'])\n"
            "except SystemExit as e: assert e.code == 0\nassert not {'torch', 'lightning'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "--ckpt_path" in done.stdout
    done = subprocess.run([sys.executable, "-m", "lightning_tweedie"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "denoise" in done.stdout


def test_fast_dev_run_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "fit", "--trainer.fast_dev_run=true") == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"]])
def test_nobody_reads_the_help(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "lightning_tweedie", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGPIPE


@pytest.mark.parametrize("dev", ["true", "false"])
def test_auto_is_not_apples_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dev: str) -> None:
    """It has no float64."""
    seen: list[object] = []
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", lambda self, _: seen.append(type(self.trainer.accelerator)))
    assert run(tmp_path, "fit", "--trainer.accelerator=auto", f"--trainer.fast_dev_run={dev}") == 0
    assert seen == [CPUAccelerator]


def test_sentences_of_the_parser() -> None:
    """The full key, whatever the depth, and what is wrong with it, from the branch that was meant."""
    message = (
        'Parser key "model":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
        "    - Problem with given class_path 'a.B':\n        Parser key \"denoiser\":\n"
        "          Problem with given class_path 'lightning_tweedie.networks.MLP':\n"
        "            Option 'widht' is not accepted\n"
        "    - Expected a <class 'NoneType'>\n  Given value: NestedArg(key='x', val='3')"
    )
    assert one_sentence(message).startswith(
        "model.denoiser.widht is not a setting of lightning_tweedie.networks.MLP: did you mean width?"
    )
    message = (
        'Parser key "trainer.max_epochs":\n  Does not validate against any of the Union subtypes\n  Errors:\n'
        "    - Expected a <class 'int'>\n    - Expected a <class 'NoneType'>\n  Given value: x"
    )
    assert one_sentence(message).startswith("trainer.max_epochs = x is not valid, expected int or null")


def test_one_bar_for_the_whole_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over all epochs, from the step at which the run goes on, to the end."""
    options = "--trainer.enable_progress_bar=true", "--trainer.num_sanity_val_steps=0"
    assert run(tmp_path, "fit", *options, "--trainer.max_steps=25") == 0
    shown = capsys.readouterr().out
    assert re.search(r"training: 100%\|.*\| 25/25 \[", shown)
    assert "Epoch" not in shown
    ckpt = ("--ckpt_path", str(tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"))
    assert run(tmp_path, "fit", *options, *ckpt) == 0
    shown = capsys.readouterr().out
    assert re.search(r"training: 100%\|.*\| 30/30 \[", shown)
    assert not re.search(r"\| [1-9]/30 \[", shown)
