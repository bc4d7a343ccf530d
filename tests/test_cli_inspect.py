"""`inspect`: the report says what is there, and its configuration trains as it is printed."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import CONFIGS, checkpoint
from photos import photos
from PIL import Image

from lightning_tweedie.cli import main
from lightning_tweedie.inspection.suggestion import suggest
from lightning_tweedie.inspection.survey import Survey

SIGMA = 25 / 127.5
QUICK = """
model:
  init_args:
    denoiser: {init_args: {backbone: {init_args: {width: 8}}}}
data: {init_args: {batch_size: 4}}
trainer: {accelerator: cpu, max_steps: 2, val_check_interval: 2, limit_val_batches: 1, num_sanity_val_steps: 0,
          callbacks: [], enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy photos, of which nobody remembers the level."""
    folder = tmp_path_factory.mktemp("inspect") / "noisy"
    clean = photos(3)
    images = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    for number, image in enumerate(images):
        path = folder / f"{number % 3}/{number:03}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image.numpy())
    return folder


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_the_report(noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    shutil.copytree(noisy, data)
    (data / "1/broken.png").write_bytes(b"\x89PNG\r\n")
    (data / "notes.txt").write_text("no image")
    out = tmp_path / "report"
    assert main(["inspect", str(data), "--out", str(out)]) == 0
    assert "cannot be read" in capsys.readouterr().out
    found = report(out)
    count = len(list(noisy.rglob("*.npy")))
    assert found["sigma_unit"] == "[-1, 1]"
    assert found["sigma"] == pytest.approx(SIGMA, rel=0.05)
    assert found["sigma_8_bit"] == pytest.approx(25, rel=0.05)
    assert abs(found["sigma"] - SIGMA) < 5 * found["sigma_standard_error"]
    assert found["images"] == count == len(found["sigma_per_image"])
    assert list(found["unreadable"]) == ["1/broken.png"]
    assert found["sizes"] == [{"height": 64, "width": 64, "images": count}]
    assert (found["dtypes"], found["channels"]) == ({"float32": count}, 1)
    assert sum(found["histogram"]["shares"]) == pytest.approx(1)
    assert [warning["kind"] for warning in found["warnings"]] == ["unreadable"]
    # One page that needs no other file.
    page = (out / "report.html").read_text()
    assert "1/broken.png" in page and "data:image/png;base64," in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    with Image.open(out / "report.png") as picture:
        assert picture.format == "PNG" and np.asarray(picture).std() > 10
    # Nothing is overwritten unasked.
    assert main(["inspect", str(data), "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["inspect", "--data", str(data), "--out", str(out), "--overwrite"]) == 0
    assert report(out) == found


def test_the_suggested_configuration_trains(noisy: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(noisy), "--out", str(tmp_path / "report")]) == 0
    (tmp_path / "quick.yaml").write_text(QUICK)
    options = ["--config", str(tmp_path / "report/config.yaml"), "--config", str(tmp_path / "quick.yaml")]
    assert main(["fit", *options, "--runs", str(tmp_path / "runs")]) == 0
    last = checkpoint(tmp_path / "runs/inspected/fit_0/checkpoints/last.ckpt")
    assert last["global_step"] == 2
    assert last["lightning_tweedie"]["sigma_n"] == float(f"{report(tmp_path / 'report')['sigma']:.4g}")
    assert last["lightning_tweedie"]["shape"] == [1, 64, 64]


def test_larger_images_of_different_sizes_in_an_archive(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for number in range(6):
            ramp = np.linspace(60, 190, 120)[:, None]
            pixels = (ramp + 10 * draw.standard_normal((90 + number, 120, 3))).round().astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "image.png")
            archive.add(tmp_path / "image.png", f"{number}.png")
    assert main(["inspect", str(tmp_path / "images.tar"), "--out", str(tmp_path / "report")]) == 0
    found = report(tmp_path / "report")
    assert found["sigma_8_bit"] == pytest.approx(10, rel=0.05)
    assert found["dtypes"] == {"8-bit colour": 6} and found["warnings"] == []
    (tmp_path / "quick.yaml").write_text(QUICK)
    options = ["--config", str(tmp_path / "report/config.yaml"), "--config", str(tmp_path / "quick.yaml")]
    assert main(["fit", *options, "--runs", str(tmp_path / "runs")]) == 0
    last = checkpoint(tmp_path / "runs/inspected/fit_0/checkpoints/last.ckpt")
    assert last["lightning_tweedie"]["shape"] == [3, 64, 64]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    "size", [(8, 8), (9, 13), (28, 28), (32, 32), (47, 64), (64, 64), (65, 65), (70, 20), (500, 300)]
)
def test_the_network_fits_images_of_any_size(size: tuple[int, int], gpu: bool) -> None:
    from lightning_tweedie.networks import UNet

    found = Survey(Path("images"), count=40)
    found.sizes[size] = 40
    config = suggest(found, 0.2, gpu)
    settings = config["model"]["init_args"]["denoiser"]["init_args"]["backbone"]["init_args"]
    network = UNet(**{**settings, "width": 8, "blocks": 1})
    augment = config["data"]["init_args"].get("augment")
    seen = size if augment is None else (int(augment[0].removeprefix("crop:")),) * 2
    assert max(seen) <= 64
    x = torch.zeros(1, 1, *seen)
    assert network(x, torch.zeros(1)).shape == x.shape


def test_the_objective_is_the_default_one() -> None:
    found = Survey(Path("images"), count=40)
    found.sizes[(32, 32)] = 40
    default = yaml.safe_load((CONFIGS / "objective/default.yaml").read_text())
    assert suggest(found, 0.2, False)["model"]["init_args"]["objective"] == default


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(data: Path) -> str:
        assert main(["inspect", str(data), "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "does not exist" in told(tmp_path / "nowhere")
    (tmp_path / "bad").mkdir()
    assert "holds no images" in told(tmp_path / "bad")
    (tmp_path / "bad/a.png").write_bytes(b"nothing")
    assert "none of the 1 images can be read" in told(tmp_path / "bad")
    np.save(tmp_path / "bad/a.npy", np.full((3, 16, 16), np.nan, np.float32))
    assert "none of the 2 images can be read" in told(tmp_path / "bad")
    np.save(tmp_path / "bad/a.npy", np.zeros((3, 6, 6), np.float32))
    assert "fewer than 8 x 8 pixels" in told(tmp_path / "bad")
    np.save(tmp_path / "bad/a.npy", np.zeros((3, 16, 16), np.float32))
    assert "all flat" in told(tmp_path / "bad")
