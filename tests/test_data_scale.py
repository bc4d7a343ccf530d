"""The scale of data is affine, the same for all of them, without loss, and travels with the checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import DIGITS, run
from datasets import Dataset
from PIL import Image

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.data.images import ImageFolder
from lightning_tweedie.data.map_style import MapStyleImages
from lightning_tweedie.data.measured_range import measure_scale
from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.datamodules import Digits, HuggingFace, Images, MapStyle
from lightning_tweedie.errors import UserError


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        (DataScale(0, 255, "uint8"), np.arange(256)),
        (DataScale(0, 65535, "uint16"), np.arange(65536)),
        (DataScale(100, 4095, "uint16"), np.arange(65536)),
        (DataScale(-500, 900, "int16"), np.arange(-32768, 32768)),
        (DataScale(1e6, 1e6 + 300, "int32"), 1_000_000 + np.arange(5000)),
    ],
)
def test_integers_come_back_exactly(scale: DataScale, values: np.ndarray) -> None:
    values = values.astype(scale.dtype)
    x = scale.scaled(values)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(scale.restored(x), values)
    at_ends = scale.scaled(np.array([scale.low, scale.high]))
    assert at_ends.tolist() == [-1, 1]


def test_floats_come_back_within_single_precision_of_the_range() -> None:
    values = np.random.default_rng(0).normal(7e6, 20, 1000)  # an offset that single precision could not hold
    scale = DataScale(7e6 - 60, 7e6 + 60, "float64")
    back = scale.restored(scale.scaled(values))
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, values, atol=60 * 2**-22, rtol=0)
    # Nothing is clipped, neither on the way in nor on the way out.
    assert scale.scaled(values).abs().max() > 1


def test_integers_end_where_their_type_ends() -> None:
    x = torch.tensor([-1.2, 1.2, 0.001])
    np.testing.assert_array_equal(DataScale(0, 255, "uint8").restored(x), np.array([0, 255, 128], np.uint8))


def test_the_scale_of_another_type() -> None:
    assert DataScale(0, 255, "uint8").for_dtype("uint16") == DataScale(0, 65535, "uint16")
    assert DataScale(0, 255, "uint8").for_dtype("float32") == DataScale(-1, 1, "float32")
    assert DataScale(0, 255, "uint8").for_dtype("int32") is None
    assert DataScale(0, 4095, "uint16").for_dtype("float32") == DataScale(0, 4095, "float32")
    assert DataScale.from_dict(DataScale(0, 4095, "uint16").as_dict()) == DataScale(0, 4095, "uint16")


def floats(folder: Path, hot: float = 0.0) -> ImageFolder:
    for i in range(6):
        image = np.random.default_rng(i).normal(1000, 50, (1, 40, 40)).astype(np.float32)
        image[0, 3, 4] += hot * (i == 2)
        np.save(folder / f"{i}.npy", image)
    return ImageFolder(folder)


def test_a_measured_range_is_robust_and_nothing_is_far_out(tmp_path: Path) -> None:
    calm = measure_scale(floats(tmp_path), whole=False)
    # The quantiles of a normal law at one in a thousand; 9,600 values, whose extreme quantiles scatter by 4 %.
    assert calm.low == pytest.approx(1000 - 3.09 * 50, abs=4 * 0.04 * 155)
    assert calm.high == pytest.approx(1000 + 3.09 * 50, abs=4 * 0.04 * 155)
    hot = measure_scale(floats(tmp_path, 600), whole=False)
    assert hot.unit == pytest.approx(calm.unit, rel=0.02), "one hot pixel"
    wild = floats(tmp_path, 1e5)
    scale = measure_scale(wild, whole=False)
    wild.scale = scale
    assert max(float(wild[i].abs().max()) for i in range(6)) == pytest.approx(10, rel=1e-3)
    whole = measure_scale(wild, whole=True)
    wild.scale = whole
    assert max(float(wild[i].abs().max()) for i in range(6)) == pytest.approx(1, abs=1e-6)
    np.save(tmp_path / "flat.npy", np.zeros((1, 4, 4)))
    with pytest.raises(UserError, match="all values of .*flat.npy.* are 0: there is nothing to learn"):
        measure_scale(ImageFolder(tmp_path / "flat.npy"), whole=False)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"root": str(folder), "batch_size": 2, "holdout": 1, **more}


def test_sigma_in_the_units_of_the_data(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "levels.txt").write_text("25\n" * 6)
    for sigma in (25.0, [25.0, 25.0], str(tmp_path / "levels.txt")):
        data = Images(**settings(tmp_path, sigma=sigma, sigma_units="data"))
        data.setup("fit")
        assert data.sigma_n == pytest.approx(25 / 127.5, rel=1e-6)
        assert data.data_scale == DataScale(0, 255, "uint8")
        scaled = Images(**settings(tmp_path, sigma=25 / 127.5))
        scaled.setup("fit")
        for one, other in zip(data.noisy_set(), scaled.noisy_set(), strict=True):
            torch.testing.assert_close(one.x_n, other.x_n)
    digits = Digits(sigma=25.0, sigma_units="data")
    digits.setup("fit")
    assert digits.sigma_n == 25 / 127.5
    declared = Images(**settings(tmp_path, sigma=25.0, sigma_units="data", range=[-100, 400]))
    declared.setup("fit")
    assert declared.sigma_n == 25 / 250


def test_noisy_floats_are_measured(tmp_path: Path) -> None:
    floats(tmp_path)
    data = Images(**settings(tmp_path, sigma=20.0, sigma_units="data", inject=False))
    data.setup("fit")
    assert data.data_scale is not None
    assert data.sigma_n == pytest.approx(20 / data.data_scale.unit)
    # Var(x_n) - sigma^2, in the units of the data; 8,000 values.
    assert data.sigma_data * data.data_scale.unit == pytest.approx(
        (50**2 - 20**2) ** 0.5, rel=4 / (2 * 8000) ** 0.5 * 1.2
    )


def test_an_estimated_level_is_on_the_scale(tmp_path: Path) -> None:
    for i in range(6):
        ramp = np.linspace(500, 1500, 64)[:, None] + np.linspace(0, 100 * i, 64)
        noisy = ramp + 20 * np.random.default_rng(i).normal(size=(64, 64))
        np.save(tmp_path / f"{i}.npy", noisy.astype(np.float32))
    data = Images(**settings(tmp_path, sigma="auto", sigma_units="data", inject=False))
    data.setup("fit")
    assert data.data_scale is not None
    assert data.sigma_n * data.data_scale.unit == pytest.approx(20, rel=0.05)
    assert data.sigma == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sigma": 20.0, "inject": False}, "data.sigma = 20 is too large .* or set sigma_units to data"),
        ({"sigma": 0.2, "inject": False}, r"values from .* set data\.range to .* or data\.sigma_units to data"),
        ({"sigma": 2000.0, "sigma_units": "data", "inject": False}, "data.sigma = 2000 is too large: the range of"),
        ({"sigma": 20.0, "sigma_units": "data", "range": [5.0, 5.0]}, r"data\.range = \[5\.0, 5\.0\] is no range"),
        ({"sigma": 20.0, "sigma_units": "data", "range": [5.0]}, r"data\.range = \[5\.0\] is no range"),
        ({"sigma": 20.0, "sigma_units": "data", "range": [0.0, 1100.0]}, "clean images must be in"),
    ],
)
def test_scales_that_are_refused(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    floats(tmp_path)
    with pytest.raises(UserError, match=message):
        Images(**settings(tmp_path, **more)).setup("fit")


def test_the_checkpoint_keeps_the_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    floats(tmp_path / "images")
    config = DIGITS[: DIGITS.index("data:")] + DIGITS[DIGITS.index("trainer:") :]
    config += f"""
data:
  class_path: lightning_tweedie.datamodules.Images
  init_args:
    {{root: {tmp_path}/images, sigma: 20.0, sigma_units: data, inject: false, holdout: 1, batch_size: 2}}
"""
    assert run(tmp_path, "fit", config=config) == 0
    ckpt = tmp_path / "runs/digits/fit_0/checkpoints/last.ckpt"
    trained = load_denoiser(ckpt)
    assert trained.scale == measure_scale(ImageFolder(tmp_path / "images"), whole=False).as_dict() | {}
    assert trained.scale is not None
    assert trained.sigma_n == pytest.approx(20 / DataScale.from_dict(trained.scale).unit)
    # Other data, which would be measured otherwise, must not pass under the same network.
    floats(tmp_path / "images", hot=1e6)
    capsys.readouterr()
    assert run(tmp_path, "validate", "--ckpt_path", str(ckpt), config=config) == 2
    assert "set data.range to [" in capsys.readouterr().err


class Pictures(torch.utils.data.Dataset):
    """As torchvision has them: a Pillow image and a label."""

    def __init__(self, count: int = 8) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), 3


def test_any_map_style_data_set(tmp_path: Path) -> None:
    pictures = Pictures()
    expected = pictures.pixels.transpose(0, 3, 1, 2)
    data = MapStyle(dataset=pictures, sigma=25.0, sigma_units="data", holdout=2, batch_size=2)
    data.setup("fit")
    assert data.shape == (3, 8, 8) and data.sigma_n == 25 / 127.5
    clean = data.reference_set()
    assert clean is not None
    train = data.noisy_set().places
    np.testing.assert_allclose(torch.stack([clean[i] for i in range(6)]), expected[train] / 127.5 - 1, atol=1e-6)
    # The same as arrays under a name, channels first or last.
    for array in (pictures.pixels, expected):
        named = MapStyleImages([{"x": a, "y": 1} for a in array], column="x")
        np.testing.assert_array_equal(named.raw(5), expected[5])
    with pytest.raises(UserError, match=r"data\.column = 'image' is not in the data set, which has x, y"):
        MapStyleImages([{"x": 1, "y": 2}]).raw(0)
    with pytest.raises(UserError, match=r"item 0 of the data set is a str, not an image"):
        MapStyleImages(["a"]).raw(0)  # type: ignore[arg-type]


def test_hugging_face(tmp_path: Path) -> None:
    pictures = Pictures()
    held = Dataset.from_dict({"image": [pictures[i][0] for i in range(8)], "label": list(range(8))})
    held.save_to_disk(tmp_path / "set")
    folder = tmp_path / "folder/train"
    folder.mkdir(parents=True)
    for i in range(8):
        pictures[i][0].save(folder / f"{i}.png")
    for path in (tmp_path / "set", tmp_path / "folder"):
        data = HuggingFace(path=str(path), sigma=0.1, holdout=2, batch_size=2)
        data.setup("fit")
        np.testing.assert_allclose(data.train_set()[3], pictures.pixels[3].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    with pytest.raises(UserError, match=r"data\.split = 'tset' is not in"):
        HuggingFace(path=str(tmp_path / "folder"), split="tset", sigma=0.1).setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.path = .*empty' cannot be opened"):
        HuggingFace(path=str(tmp_path / "empty"), sigma=0.1).setup("fit")
