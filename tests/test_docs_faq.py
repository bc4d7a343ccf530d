"""The errors of docs/faq.md are those that people meet, to the letter."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import DIGITS, DIGITS_WITHOUT_DATA, trained_digits
from PIL import Image

from lightning_tweedie import files
from lightning_tweedie.cli import main
from lightning_tweedie.module import TweedieModule

PAGE = (Path(__file__).parent.parent / "docs/faq.md").read_text()
#: What is printed on the page, by the heading above it.
ERRORS = {
    title: " ".join(message.split())
    for title, message in re.findall(r"^### ([^\n]*)\n\n```text\n(.*?)```", PAGE, re.M | re.S)
}
FIT = (
    "fit --config tiny.yaml --data lightning_tweedie.datamodules.Images --data.root photos --data.channels 1 "
    "--data.sigma 0.2 --data.holdout 4 --data.batch_size 4 --trainer.max_steps 2"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_digits(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def here(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty photos and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(20):
        picture(number, (28, 28))
    Path("tiny.yaml").write_text(DIGITS_WITHOUT_DATA)
    shutil.copy(trained, "last.ckpt")
    return tmp_path


def picture(number: int, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(f"photos/{number:04}.png")


def floats() -> None:
    shutil.rmtree("photos")
    Path("photos").mkdir()
    for number in range(20):
        np.save(f"photos/{number:04}.npy", np.linspace(0, 4095, 784, dtype=np.float32).reshape(28, 28))


def foreign() -> None:
    content = torch.load("last.ckpt", weights_only=True)
    content["lightning_tweedie"]["denoiser"]["init_args"]["backbone"]["class_path"] = "my_networks.Net"
    torch.save(content, "last.ckpt")


def begun() -> None:
    assert main(FIT.split()) == 0
    shutil.copy("runs/digits/fit_0/checkpoints/last.ckpt", "last.ckpt")


def digits() -> None:
    Path("tiny.yaml").write_text(DIGITS)


def in_use() -> None:
    Path("clean").mkdir()
    Path("clean/notes.txt").write_text("mine")


HOW: dict[str, tuple[Callable[[], object], list[str]]] = {
    "Sigma is too large": (lambda: None, [*FIT.split(), "--data.sigma", "25"]),
    "Values on another scale": (floats, FIT.split()),
    "Images of different sizes": (lambda: picture(12, (28, 30)), FIT.split()),
    "Grey and colour": (lambda: picture(12, (28, 28, 3)), [*FIT.split(), "--data.inject", "false"]),
    "Few images": (lambda: None, [*FIT.split(), "--data.holdout", "500"]),
    "A table of levels that is too short": (
        lambda: Path("levels.csv").write_text("0.1\n" * 19),
        [*FIT.split(), "--data.sigma", "levels.csv"],
    ),
    "A network of somebody else": (foreign, "sample --ckpt_path last.ckpt --out samples".split()),
    "A checkpoint of another network": (
        lambda: None,
        [*FIT.split(), "--ckpt_path", "last.ckpt", "--model.denoiser.backbone.init_args.width", "16"],
    ),
    "Resumed with other noise": (begun, [*FIT.split(), "--data.sigma", "0.4", "--ckpt_path", "last.ckpt"]),
    "The output folder is not empty": (in_use, "sample --ckpt_path last.ckpt --out clean".split()),
    "The loss is not finite": (digits, "fit --config tiny.yaml --trainer.precision 16-true".split()),
    "The GPU is full": (digits, "fit --config tiny.yaml".split()),
    "The disk is full": (digits, "fit --config tiny.yaml".split()),
}
"""What is wrong, and the command that tells it."""


ELSEWHERE = {"operator torchvision::nms does not exist": "test_package.py: it depends on what is installed"}


def fails(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("title", ERRORS)
def test_errors(title: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if title in ELSEWHERE:
        assert title in ERRORS[title]
        return
    make, command = HOW[title]
    make()
    if title == "The GPU is full":  # here there may be none
        full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        monkeypatch.setattr(TweedieModule, "training_step", fails(full))
    if title == "The disk is full":
        full_disk = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(files.Path, "write_bytes", fails(full_disk))
    capsys.readouterr()
    assert main(command) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(re.escape(ERRORS[title]).replace(r"\.\.\.", ".*"), told), told


def test_no_error_is_left_out() -> None:
    assert set(ERRORS) == set(HOW) | set(ELSEWHERE)
    assert len(ERRORS) >= 10
    assert set(ERRORS) == set(re.findall(r"^### (.*)$", PAGE, re.M))
