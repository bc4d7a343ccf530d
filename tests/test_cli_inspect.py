"""`inspect`: the report says what is there, and its configuration trains as it is printed."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import yaml
from command_line import CONFIGS, checkpoint
from photos import photos
from PIL import Image

from lightning_tweedie.cli import main
from lightning_tweedie.datamodules import Images
from lightning_tweedie.inspection.suggestion import suggest
from lightning_tweedie.inspection.survey import Survey, stacked, survey
from lightning_tweedie.pictures import stretch, to_uint8

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


def test_photos_of_several_sizes_are_trained_on_and_restored(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    clean = {}
    for number, size in enumerate([(96, 120), (131, 80), (70, 70)]):
        waves = 0.6 * np.sin(np.arange(size[0])[:, None] / 9) * np.cos(np.arange(size[1]) / 7)
        clean[f"{number}.tif"] = waves.astype(np.float32)
    (tmp_path / "noisy").mkdir()
    noisy = {name: x + SIGMA * draw.standard_normal(x.shape, dtype=np.float32) for name, x in clean.items()}
    for name, image in noisy.items():
        tifffile.imwrite(tmp_path / "noisy" / name, image)
    assert main(["inspect", str(tmp_path / "noisy"), "--out", str(tmp_path / "report")]) == 0
    config = yaml.safe_load((tmp_path / "report/config.yaml").read_text())
    settings = config["data"]["init_args"]
    assert report(tmp_path / "report")["sigma"] == pytest.approx(SIGMA, rel=0.05)
    assert settings["augment"][0] == "crop:64" and "transform" not in settings
    # As printed, but for the number of steps and the pictures.
    quick = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.callbacks", "[]"]
    options = ["--config", str(tmp_path / "report/config.yaml"), "--runs", str(tmp_path / "runs"), *quick]
    assert main(["fit", *options, "--trainer.accelerator", "cpu"]) == 0
    last = str(tmp_path / "runs/inspected/fit_0/checkpoints/last.ckpt")
    folders = ["--input", str(tmp_path / "noisy"), "--out", str(tmp_path / "restored")]
    assert main(["denoise", "--ckpt_path", last, *folders]) == 0
    for name, image in clean.items():
        restored = tifffile.imread(tmp_path / "restored/one_step" / name)
        assert restored.shape == image.shape and restored.dtype == np.float32
        # Even an untrained network shrinks what has more variance than the clean data.
        assert np.square(restored - image).mean() < 0.95 * np.square(noisy[name] - image).mean()


def test_batches_do_not_depend_on_the_number_of_large_images() -> None:
    for count in (2, 20, 5000):
        found = Survey(Path("images"), count=count)
        found.sizes[(500, 300)] = count
        settings = suggest(found, 0.2, False)["data"]["init_args"]
        train = (count - settings["holdout"]) * settings["crops"]
        assert settings["batch_size"] == 16
        # A hundred batches an epoch, where images are so many without crops.
        assert train // 16 >= 100 and (settings["crops"] == 1 or train < 16 * 100 + count)


def trains(out: Path, *options: str) -> Path:
    """The checkpoint of two steps with the configuration in a report."""
    quick = (
        "--trainer.accelerator cpu --trainer.max_steps 2 --trainer.val_check_interval 2 --data.batch_size 2 "
        "--trainer.enable_progress_bar false --trainer.num_sanity_val_steps 0 "
        "--model.denoiser.init_args.backbone.init_args.width 8"
    ).split()
    assert main(["fit", "--config", str(out / "config.yaml"), "--runs", str(out / "runs"), *quick, *options]) == 0
    return out / "runs/inspected/fit_0/checkpoints/last.ckpt"


def test_a_single_image(tmp_path: Path) -> None:
    """From its crops there is something to learn, if none is kept out."""
    draw = np.random.default_rng(0)
    image = np.linspace(-0.8, 0.8, 90)[:, None] + SIGMA * draw.standard_normal((90, 130))
    np.save(tmp_path / "a.npy", image.astype(np.float32))
    assert main(["inspect", str(tmp_path / "a.npy"), "--out", str(tmp_path / "report")]) == 0
    assert report(tmp_path / "report")["sigma"] == pytest.approx(SIGMA, rel=0.05)
    trains(tmp_path / "report")


def test_many_channels_and_integers_of_unknown_range(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "bands").mkdir()
    (tmp_path / "counts").mkdir()
    for number in range(8):
        noise = draw.standard_normal((5, 40, 40))
        noise[1] = 0.6 * noise[0] + 0.8 * noise[1]
        bands = np.linspace(-0.5, 0.5, 40) + 0.1 * noise
        np.save(tmp_path / f"bands/{number}.npy", bands.astype(np.float32))
        np.save(tmp_path / f"counts/{number}.npy", (1e6 + 2e5 * bands[0]).round().astype(np.int32))
    # Of five planes nobody can tell whether they are images or channels.
    for name, options in (("bands", ["--channels", "5"]), ("counts", []), ("bands", [])):
        out = tmp_path / f"{name}{len(options)}"
        assert main(["inspect", str(tmp_path / name), "--out", str(out), *options]) == 0
    bands, counts, planes = (report(tmp_path / name) for name in ("bands2", "counts0", "bands0"))
    assert (bands["channels"], bands["images"]) == (5, 8) and (planes["channels"], planes["images"]) == (1, 40)
    assert bands["sigma"] == pytest.approx(0.1, rel=0.05) and len(bands["channel_correlation"]["correlation"]) == 10
    (warning,) = bands["warnings"]
    assert warning["kind"] == "channels_correlated" and re.search(r"\(up to 0\.[56]\d\)", warning["text"])
    assert counts["sigma_unit"] == "data" and counts["sigma"] == pytest.approx(2e4, rel=0.05)
    assert checkpoint(trains(tmp_path / "bands2"))["lightning_tweedie"]["shape"] == [5, 40, 40]
    scale = checkpoint(trains(tmp_path / "counts0", "--trainer.callbacks", "[]"))["lightning_tweedie"]["scale"]
    assert scale["dtype"] == "int32" and scale["low"] < 9e5 and scale["high"] > 1.1e6


def test_a_histogram_of_steps_is_no_comb(tmp_path: Path) -> None:
    """Every bin has as many levels, so that levels that are equally frequent look so."""
    for levels in (3, 100, 181, 256):
        pixels = np.random.default_rng(0).permutation(np.arange(levels * 200) % levels).reshape(20, -1)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
        edges = survey(tmp_path / "a.png").edges
        inside = np.histogram(np.arange(levels) / 127.5 - 1, edges)[0]
        assert len(inside) <= 128 and inside.sum() == levels
        assert set(inside[:-1]) <= {inside[0]} and inside[-1] <= inside[0]


def test_images_in_units_of_their_own_are_seen(tmp_path: Path) -> None:
    """Whatever their units, the page shows the same."""
    x = np.linspace(-0.5, 0.5, 48)[:, None] + 0.1 * np.random.default_rng(0).standard_normal((3, 48, 48))
    sheets = []
    for name, factor, offset in (("scaled", 1, 0), ("counts", 1000, 5000), ("faint", 0.02, 0)):
        np.save(tmp_path / f"{name}.npy", (factor * x + offset).astype(np.float32))
        shown = stacked(survey(tmp_path / f"{name}.npy").shown)
        sheets.append((shown, stretch(shown, shown)))
    (scaled, same), (counts, brought), (faint, more) = sheets
    assert same is scaled
    torch.testing.assert_close(brought, more, atol=1e-3, rtol=0)
    assert torch.corrcoef(torch.stack([scaled.flatten(), more.flatten()]))[0, 1] > 0.99999
    # The control: without that, one is white and the other grey.
    assert to_uint8(counts).min() == 255 and to_uint8(faint).float().std() < 1 and to_uint8(more).float().std() > 50


def test_bits_that_are_in_use(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ramp = np.linspace(500, 3500, 64)[:, None]
    for name, factor in (("camera", 1), ("whole", 16)):
        (tmp_path / name).mkdir()
        for number in range(4):
            counts = factor * (ramp + 40 * draw.standard_normal((64, 64)))
            tifffile.imwrite(tmp_path / name / f"{number}.tif", counts.round().astype(np.uint16))
        assert main(["inspect", str(tmp_path / name), "--out", str(tmp_path / f"{name}_report")]) == 0
    twelve, sixteen = (report(tmp_path / f"{name}_report") for name in ("camera", "whole"))
    assert (twelve["data_range"], sixteen["data_range"]) == ([0, 4095], None)
    assert twelve["sigma"] * 4095 / 2 == pytest.approx(40, rel=0.05)
    assert sixteen["sigma"] * 65535 / 2 == pytest.approx(640, rel=0.05)
    settings = yaml.safe_load((tmp_path / "camera_report/config.yaml").read_text())["data"]["init_args"]
    data = Images(**settings)
    data.setup("fit")
    assert data.data_scale is not None and data.data_scale.high == 4095
    assert float(data.noisy_set()[0].x_n.max()) > 0.5


def test_files_that_hold_many_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = np.linspace(-0.7, 0.7, 48)[:, None] + 0.2 * draw.standard_normal((6, 48, 48))
    stack = images.astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    np.savez(tmp_path / "b.npz", noisy=stack, other=np.zeros(3))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["noisy"] = stack
    for name, key in (("a.tif", []), ("b.npz", ["--key", "noisy"]), ("c.h5", [])):
        out = tmp_path / f"{name}_report"
        assert main(["inspect", str(tmp_path / name), "--out", str(out), *key]) == 0
        found = report(out)
        assert (found["images"], found["warnings"]) == (6, [])
        assert found["sigma"] == pytest.approx(0.2, rel=0.05)
        data = Images(**yaml.safe_load((out / "config.yaml").read_text())["data"]["init_args"])
        data.setup("fit")
        assert data.shape == (1, 48, 48)


def test_floats_in_units_of_their_own(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    counts = np.linspace(900, 1500, 64)[:, None] + 30 * draw.standard_normal((5, 64, 64))
    np.save(tmp_path / "counts.npy", counts.astype(np.float32))
    assert main(["inspect", str(tmp_path / "counts.npy"), "--out", str(tmp_path / "report")]) == 0
    found = report(tmp_path / "report")
    assert found["sigma_unit"] == "data" and found["sigma"] == pytest.approx(30, rel=0.05)
    assert found["sigma_8_bit"] is None
    assert [warning["kind"] for warning in found["warnings"]] == ["scale"]
    data = Images(**yaml.safe_load((tmp_path / "report/config.yaml").read_text())["data"]["init_args"])
    data.setup("fit")
    assert data.data_scale is not None
    assert data.sigma_n * data.data_scale.unit == pytest.approx(found["sigma"], rel=1e-3)
    assert float(data.noisy_set()[0].x_n.abs().max()) < 2


def test_a_few_small_images_among_large_ones_are_told(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number, side in enumerate([80, 80, 80, 24]):
        image = np.linspace(-1, 1, side) + 0.2 * draw.standard_normal((side, side))
        np.save(tmp_path / "images" / f"{number}.npy", image.astype(np.float32))
    assert main(["inspect", str(tmp_path / "images"), "--out", str(tmp_path / "report")]) == 0
    (warning,) = report(tmp_path / "report")["warnings"]
    assert warning["kind"] == "sizes" and "1 of 4 images" in warning["text"]


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
