"""A disk that is full costs one sentence and leaves no file that is there in half, whichever command fills it."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import DIGITS, RING, assert_same_state, checkpoint, run
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_tweedie.callbacks import LastCheckpoint
from lightning_tweedie.cli import main
from lightning_tweedie.commands import training


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can become larger than this; what would is cut off there, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return sentence


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder, "fit", "--trainer.max_steps=1", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("command", ["sample", "denoise", "export"])
def test_what_a_command_leaves_is_whole(
    command: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, "last.ckpt")
    Path("images").mkdir()
    for number in range(3):
        noisy = np.random.default_rng(number).normal(0, 0.5, (1, 28, 28)).astype(np.float32)
        np.save(f"images/{number}.npy", noisy[:, : 28 - 4 * number])
    given = {
        "sample": ["--num", "3", "--steps", "2"],
        "denoise": ["--input", "images", "--draws", "2", "--steps", "2"],
        "export": ["--num", "2"],
    }[command]
    call = [command, *given, "--ckpt_path", "last.ckpt"]
    assert main([*call, "--out", "whole"]) == 0
    whole = tree(tmp_path / "whole")
    sizes = sorted({len(content) for content in whole.values()})
    for number, size in enumerate({sizes[0] // 2, sizes[len(sizes) // 2] - 1, sizes[-1] - 1}):
        capsys.readouterr()
        out = Path(f"out{number}")
        with room_for(size):
            assert main([*call, "--out", str(out)]) == 2
        assert "make room" in told(capsys)
        left = tree(out) if out.exists() else {}
        assert len(left) < len(whole), "the limit was none, so the test says nothing"
        assert all(whole[name] == content for name, content in left.items())
        assert command != "export" or not out.exists()
        assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "a draft was left"
        if command != "sample":  # which asks for an empty folder
            assert main([*call, "--out", str(out)]) == 0
            assert tree(out).keys() == whole.keys()


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "Lightning's"])
def test_the_last_checkpoint_stays_whole(
    ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's own way destroys it where temporary files are on another disk than the runs."""
    save, before = LastCheckpoint._save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))

    def to_another_disk(*_: object) -> None:
        fill()
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full_at_15(self: LastCheckpoint, trainer: object) -> None:
        if trainer.global_step == 15:  # type: ignore[attr-defined]
            fill() if ours else monkeypatch.setattr(os, "rename", to_another_disk)
        save(self, trainer)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", full_at_15)
        if not ours:
            patch.setattr(training, "WholeCheckpoints", TorchCheckpointIO)
        capsys.readouterr()
        try:
            assert run(tmp_path, "fit", "--trainer.max_steps=20") == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            monkeypatch.undo()
    sentence = told(capsys)
    last = tmp_path / "runs/ring/fit_0/checkpoints/last.ckpt"
    if not ours:
        with pytest.raises((RuntimeError, OSError)):
            checkpoint(last)
        return
    assert "last.ckpt' cannot be written" in sentence and "make room" in sentence
    assert checkpoint(last)["global_step"] == 10
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert run(tmp_path, "fit", "--trainer.max_steps=20", "--ckpt_path", str(last)) == 0
    assert run(tmp_path, "fit", "--trainer.max_steps=20", "--name=whole") == 0
    resumed, whole = (tmp_path / "runs" / name / "checkpoints/last.ckpt" for name in ("ring/fit_1", "whole/fit_0"))
    assert_same_state(resumed, whole)


def test_a_run_that_has_no_room_at_all_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(RING)
    capsys.readouterr()
    with room_for(100):
        assert main(["fit", "--config", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "make room" in told(capsys)
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_gpu_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.25 GiB of which 9.06 "
            "GiB is free."
        )

    monkeypatch.setattr("lightning_tweedie.module.TweedieModule.training_step", full)
    assert run(tmp_path, "fit") == 2
    assert "the GPU has too little memory (CUDA out of memory): make the batch smaller" in told(capsys)
