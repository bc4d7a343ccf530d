"""Noise that is not white, from the files of a user to a restoration: tables, maps and correlation."""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import assert_law
from command_line import run
from PIL import Image

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import Images, NoisyDataModule, ToyMixture
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.noisy_images import NoisyImages, NoisyView
from lightning_tweedie.kernels import raise_to_white
from lightning_tweedie.randomness import SampleNoise, name_number
from lightning_tweedie.sampling import SDEDPMSolverPP2M, one_step, posterior_samples

SLANTED = np.array([[0.0, 0.2, 0.1], [0.3, 1.0, 0.3], [0.1, 0.2, 0.0]])
ROUND = np.array([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]])
COUNT, SIDE = 24, 8
#: A value in a file of 8 bits is off by so much at most, on the scale of [-1, 1].
HALF = 0.51 / 127.5

TINY = """
name: tiny
model:
  class_path: lightning_tweedie.module.TweedieModule
  init_args:
    denoiser:
      class_path: lightning_tweedie.denoiser.Denoiser
      init_args:
        backbone:
          class_path: lightning_tweedie.networks.UNet
          init_args: {channels: 1, width: 8, multipliers: [1], blocks: 1, attention: [], patch: 2}
data:
  class_path: lightning_tweedie.datamodules.Images
  init_args: {channels: 1, holdout: 4, batch_size: 4}
trainer:
  accelerator: cpu
  max_steps: 5
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - {class_path: lightning_tweedie.callbacks.RestorationGrid, init_args: {num_items: 2, draws: 2}}
    - {class_path: lightning_tweedie.callbacks.RestorationQuality, init_args: {num_images: 2, draws: 2}}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images in two folders: ``a/00.png``, ``b/01.png``, ..."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def maps(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map for each: from 0.1 on the left to 0.4 on the right, and all of it times the image's number / 20."""
    root = tmp_path_factory.mktemp("maps")
    for path in photos.rglob("*.png"):
        file = root / path.relative_to(photos).with_suffix(".npy")
        file.parent.mkdir(exist_ok=True)
        np.save(file, np.linspace(0.1, 0.4, SIDE) * np.ones((SIDE, 1)) * int(path.stem) / 20)
    return root


def ready(data: NoisyDataModule) -> NoisyDataModule:
    data.setup()
    return data


def opened(root: Path, **settings: Any) -> NoisyDataModule:
    return ready(Images(str(root), channels=1, holdout=4, batch_size=4, **settings))


def number(data: NoisyDataModule, index: int) -> int:
    return int(Path(data.train_set().names[index]).stem)  # type: ignore[attr-defined]


# Tables.


def write_table(path: Path, photos: Path, header: str = "camera, file ,sigma", skip: int = 0) -> str:
    rows = [f"x,{p.relative_to(photos).as_posix()},{0.01 * int(p.stem) + 0.1:.2f}" for p in photos.rglob("*.png")]
    path.write_text("\n".join([header, *sorted(rows, reverse=True)[skip:], "x,elsewhere.png,0.9"]), "utf-8-sig")
    return str(path)


def test_a_table_with_a_header_goes_by_the_names_of_the_files(photos: Path, tmp_path: Path) -> None:
    """In any order, with columns and files that do not matter, and with the mark that spreadsheets put first."""
    data = opened(photos, sigma=write_table(tmp_path / "noise.csv", photos))
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        for index, sigma in zip(batch.index.tolist(), batch.sigma_n.tolist(), strict=True):
            assert sigma == pytest.approx(0.1 + 0.01 * number(data, index))
    assert data.sigma_n < 0.34


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,sigma\na/00.png,0.1\n", r"has no level for 23 of 24 files, among them a/02\.png: add them"),
        ("file,level\na/00.png,0.1\n", r"has the columns file, level: call that of the levels sigma"),
        ("file,sigma\na/00.png,0.1\n./a/00.png,0.2\n", r"has 2 levels for a/00\.png: write one for each file"),
        ("file,sigma\na/00.png,\n", r"item 0\) = nan is not a number"),
        ("file,sigma\na/00.png,low\n", r"is not a table of numbers"),
        ("sigma\n0.1\n0.2\n", r"holds 2 levels but the set has 24 items"),
    ],
)
def test_bad_tables(photos: Path, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "noise.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        opened(photos, sigma=str(path))


def test_items_without_names_have_no_table_of_names(photos: Path, maps: Path, tmp_path: Path) -> None:
    for sigma in (write_table(tmp_path / "noise.csv", photos), str(maps)):
        with pytest.raises(UserError, match="goes by the names of files, and the items of this data set have none"):
            ready(ToyMixture(sigma=sigma, items=40, holdout=4, batch_size=4))


# Functions.

FUNCTION = """
def level(name):
    return 0.1 + 0.01 * int(name.partition("/")[2].removesuffix(".png"))

def half(name):
    return level(name) / 2

def of_number(index):
    return [0.1, 0.2][index % 2]

def negative(name):
    return -0.1

none = 3
"""


@pytest.fixture
def exposure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of the user's own."""
    (tmp_path / "exposure.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("exposure")
    del sys.modules["exposure"]


def test_a_function_gives_the_level_by_the_name_of_the_file(photos: Path, exposure: Any) -> None:
    """In code as it is, in a configuration by its name; the table of the same levels gives the same noise."""
    table = exposure.__file__.replace(".py", ".csv")
    items = [next(iter(opened(photos, sigma=s).train_dataloader())) for s in (exposure.level, "exposure.level")]
    items.append(next(iter(opened(photos, sigma=write_table(Path(table), photos)).train_dataloader())))
    for other in items[1:]:
        assert torch.equal(items[0].x_n, other.x_n) and torch.equal(items[0].sigma_n, other.sigma_n)
    assert len(set(items[0].sigma_n.tolist())) == 4
    # In units of the data, and of items without names by their number.
    data = opened(photos, sigma=lambda name: 127.5 * exposure.level(name), sigma_units="data")
    assert torch.allclose(next(iter(data.train_dataloader())).sigma_n, items[0].sigma_n)
    ring = ready(ToyMixture(sigma="exposure.of_number", items=40, holdout=4, batch_size=4))
    for batch in (*ring.train_dataloader(), *ring.val_dataloader()):
        assert torch.allclose(batch.sigma_n, 0.1 + 0.1 * (batch.index % 2))


@pytest.mark.parametrize(
    ("sigma", "sentence"),
    [
        ("nowhere.level", r"'nowhere.level' is neither an existing file nor a function \(No module named 'nowhere'\)"),
        ("exposure.rong", r"'exposure.rong' is neither an existing file nor a function \(module 'exposure' has no"),
        ("exposure.none", r"'exposure.none' is no function"),
        ("exposure.negative", r"data.sigma of a/00.png = -0.1 is negative"),
        ("exposure.of_number", r"gives no level for 'a/00.png' \(TypeError: .*\): let it give a number for each item"),
    ],
)
def test_bad_functions(photos: Path, exposure: Any, sigma: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(photos, sigma=sigma)


# Maps.


@pytest.mark.parametrize("archive", [False, True])
def test_each_image_has_its_map(photos: Path, maps: Path, tmp_path: Path, archive: bool) -> None:
    root = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos)) if archive else photos
    data = opened(root, sigma=str(maps), augment=["hflip"])
    assert data.sigma_n == pytest.approx(max(0.4 * number(data, i) / 20 for i in data._train.places.tolist()))  # type: ignore[union-attr]
    flipped = set()
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert batch.sigma_n.shape == (4, 1, SIDE, SIDE)
        for index, levels in zip(batch.index.tolist(), batch.sigma_n, strict=True):
            row = torch.linspace(0.1, 0.4, SIDE) * number(data, index) / 20
            assert torch.allclose(levels, row) or torch.allclose(levels, row.flip(0))
            flipped.add(bool(levels[0, 0, 0] > levels[0, 0, -1]))
        if batch.x_0 is not None:
            # Where the level is zero (image 0) nothing is added; elsewhere as much as the map says.
            z = (batch.x_n - batch.x_0)[batch.sigma_n > 0] / batch.sigma_n[batch.sigma_n > 0]
            assert abs(float(z.square().mean()) - 1) < 5 * (2 / len(z)) ** 0.5
    assert flipped == {False, True}


def test_maps_of_data_noisy_by_nature_are_cut_like_their_images(photos: Path, maps: Path) -> None:
    crop = [{"class_path": "albumentations.Crop", "init_args": {"x_min": 2, "y_min": 0, "x_max": 6, "y_max": 4}}]
    data = opened(photos, sigma=str(maps), inject=False, transform=crop)
    batch = next(iter(data.train_dataloader()))
    expected = torch.stack([torch.linspace(0.1, 0.4, SIDE)[2:6] * number(data, i) / 20 for i in batch.index.tolist()])
    assert torch.allclose(batch.sigma_n, expected[:, None, None].expand(-1, -1, 4, -1))


def test_bad_maps(photos: Path, maps: Path, tmp_path: Path) -> None:
    def refused(sentence: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            opened(photos, sigma=str(tmp_path / "maps"), **settings)

    shutil.copytree(maps, tmp_path / "maps")
    file = tmp_path / "maps/b/07.npy"
    refused("does not go with maps of the level", clean_fraction=0.5)
    np.save(tmp_path / "correlation.npy", ROUND)
    refused("is a folder of maps and data.correlation is set", correlation=str(tmp_path / "correlation.npy"))
    np.save(file, np.ones((4, 8)))
    refused(r"the map .*b/07\.npy of data\.sigma has shape \(4, 8\), and its image has \(1, 8, 8\)")
    np.save(file, np.full((8, 8), 25.0))
    refused(r"b/07\.npy of data\.sigma has values from 25 to 25: give standard deviations")
    np.save(file, np.full((8, 8), np.nan))
    refused(r"b/07\.npy of data\.sigma has values from nan")
    file.write_bytes(b"no array")
    refused(r"b/07\.npy of data\.sigma cannot be read")
    file.unlink()
    refused(r"has no map for 1 of 24 images, among them .*b/07\.npy")


# Correlation.


class Frames(NoisyDataModule):
    """Frames of one grey each."""

    def train_set(self) -> ItemSet:
        return ArrayDataset(torch.linspace(-1, 1, 3000)[:, None, None, None].expand(3000, 1, 6, 6))


@pytest.fixture
def correlation(tmp_path: Path) -> str:
    np.save(tmp_path / "slanted.npy", SLANTED)
    np.save(tmp_path / "round.npy", ROUND)
    return str(tmp_path / "slanted.npy")


def test_noise_of_a_correlation_is_injected_and_told(correlation: str) -> None:
    data = ready(Frames(sigma=0.4, correlation=correlation, batch_size=1000, holdout=0))
    assert data.sigma_data == pytest.approx(3**-0.5, rel=0.02)
    batch = data.noisy_set().__getitems__(range(3000))
    noise = batch.x_n[:, 0] - data.noisy_set().clean(range(3000))[:, 0]
    assert batch.correlation is not None and torch.equal(batch.sigma_n, torch.full((3000,), 0.4))
    assert data.sigma_n == pytest.approx(0.4 * batch.correlation.largest((1, 6, 6)))
    here, right, below, slant = (noise[:, 2, 2] * noise[:, i, j] for i, j in ((2, 2), (2, 3), (3, 2), (1, 3)))
    for found, expected in ((here, 1.0), (right, 0.3), (below, 0.2), (slant, 0.1)):
        assert abs(float(found.mean()) - 0.16 * expected) < 5 * float(found.std()) / 3000**0.5
    # What is compared with noisy data gets the same kind of noise.
    view = NoisyView(data.noisy_set())
    noisy = NoisyImages(view, range(3000), view.level, data.sigma_n, True, view.noisy.correlation)
    renoise = noisy.renoising(seed=3)
    again = torch.stack([renoise(torch.full((1, 6, 6), 0.25), i)[0, 2, 2:4] for i in range(3000)]).double()
    assert_law(again, torch.full((2,), 0.25).double(), 0.16 * torch.tensor([[1, 0.3], [0.3, 1]]).double())


def test_augmentations_that_change_the_correlation_are_refused(correlation: str) -> None:
    for name in ("hflip", "vflip", "rot90"):
        with pytest.raises(UserError, match=f"{name} changes the correlation of the noise"):
            Frames(sigma=0.4, correlation=correlation, augment=["shift:1", "crop:4", name])
    same = correlation.replace("slanted", "round")
    Frames(sigma=0.4, correlation=same, augment=["hflip", "vflip", "rot90", "shift:1", "crop:4"])
    lines = correlation.replace("slanted", "lines")
    np.save(lines, [0.3, 1.0, 0.3])
    Frames(sigma=0.4, correlation=lines, augment=["hflip", "vflip"])
    with pytest.raises(UserError, match="rot90 changes"):
        Frames(sigma=0.4, correlation=lines, augment=["rot90"])


def test_a_correlation_must_fit_the_items(correlation: str) -> None:
    with pytest.raises(UserError, match="auto measures white noise, and data.correlation is set"):
        Frames(sigma="auto", inject=False, correlation=correlation)
    with pytest.raises(UserError, match=r"has the shape \(3, 3\), more than items of shape \(1, 2, 2\) have room for"):
        ready(Frames(sigma=0.4, correlation=correlation, augment=["crop:2"], holdout=0))
    with pytest.raises(UserError, match=r"2 axes does not fit items of shape \(2,\)"):
        ready(ToyMixture(sigma=0.2, correlation=correlation, items=40, holdout=4, batch_size=4))


# From the command line.


def test_a_function_from_training_to_restoration(photos: Path, exposure: Any, tmp_path: Path, capsys: Any) -> None:
    settings = (f"--data.root={photos}", "--data.sigma=exposure.level", "--trainer.callbacks=[]")
    assert run(tmp_path, "fit", *settings, config=TINY) == 0
    assert "sigma: exposure.level\n" in (tmp_path / "runs/tiny/fit_0/config.yaml").read_text()
    # Going on from there it is the same function, whichever way it is told; another one is another noise.
    saved = opened(photos, sigma="exposure.level").state_dict()
    opened(photos, sigma=exposure.level).load_state_dict(saved)
    with pytest.raises(UserError, match=r"data\.sigma = exposure\.half differs from exposure\.level"):
        opened(photos, sigma=exposure.half).load_state_dict(saved)
    by_name = restored(levels(tmp_path), photos, tmp_path / "by_name", "--sigma", "exposure.level")
    by_level = restored(levels(tmp_path), photos, tmp_path / "by_level", "--sigma", "0.17")
    np.testing.assert_array_equal(by_name["one_step"], by_level["one_step"])


def levels(folder: Path) -> str:
    return str(folder / "runs/tiny/fit_0/checkpoints/last.ckpt")


def restored(ckpt: str, photos: Path, out: Path, *options: str) -> dict[str, np.ndarray]:
    assert main(["denoise", "--ckpt_path", ckpt, "--input", str(photos), "--out", str(out), *options]) == 0
    return {
        kind: np.asarray(Image.open(out / kind / "b/07.png")) / 127.5 - 1
        for kind in ("one_step", "draws/0", "draws/1")
        if (out / kind).is_dir()
    }


def as_written(image: torch.Tensor) -> np.ndarray:
    """What is left of an image in a file of 8 bits."""
    return image.clamp(-1, 1)[0, 0].numpy()


def test_maps_from_training_to_restoration(photos, maps, tmp_path, capsys) -> None:
    settings = (f"--data.root={photos}", f"--data.sigma={maps}")
    assert run(tmp_path, "fit", *settings, config=TINY) == 0
    assert list((tmp_path / "runs/tiny/fit_0/pictures/restoration").glob("*.png"))
    ckpt = levels(tmp_path)
    trained = load_denoiser(ckpt)
    assert trained.maps and trained.correlation is None
    assert main(["denoise", "--ckpt_path", ckpt, "--input", str(photos), "--out", str(tmp_path / "no")]) == 2
    assert "differed from pixel to pixel, so that no one level can stand for it" in capsys.readouterr().err
    found = restored(ckpt, photos, tmp_path / "out", "--sigma", str(maps))
    image = torch.from_numpy(np.asarray(Image.open(photos / "b/07.png")) / 127.5 - 1).float()[None, None]
    sigma = torch.from_numpy(np.load(maps / "b/07.npy")).float()[None, None]
    place = name_number("b/07.png")
    x, level = raise_to_white(image, sigma, None, SampleNoise(0, [place], "cpu", "white"))
    assert level.item() == pytest.approx(0.14)
    np.testing.assert_allclose(found["one_step"], as_written(one_step(trained.denoiser, x, level)), atol=HALF)
    one_level = restored(ckpt, photos, tmp_path / "one", "--sigma", "0.14")
    assert np.abs(one_level["one_step"] - found["one_step"]).max() > 2 * HALF


def test_correlation_from_training_to_restoration(photos, correlation, tmp_path) -> None:
    settings = (f"--data.root={photos}", "--data.sigma=0.2", f"--data.correlation={correlation}")
    assert run(tmp_path, "fit", *settings, config=TINY) == 0
    ckpt = levels(tmp_path)
    trained, told = load_denoiser(ckpt), Correlation(SLANTED)
    assert torch.equal(trained.correlation.autocorrelation, told.autocorrelation)
    assert trained.sigma_n == pytest.approx(0.2 * told.largest((1, SIDE, SIDE)))
    found = restored(ckpt, photos, tmp_path / "out", "--draws", "2", "--steps", "3")
    image = torch.from_numpy(np.asarray(Image.open(photos / "b/07.png")) / 127.5 - 1).float()[None, None]
    place = name_number("b/07.png")
    noise = SampleNoise(0, [place], "cpu", "white")
    x, level = raise_to_white(image, torch.tensor([0.2]), told, noise)
    assert level.item() == pytest.approx(trained.sigma_n)
    np.testing.assert_allclose(found["one_step"], as_written(one_step(trained.denoiser, x, level)), atol=HALF)
    draws = posterior_samples(trained.denoiser, x, level, 2, SDEDPMSolverPP2M(3), indices=[place])
    for number, draw in enumerate(draws):
        np.testing.assert_allclose(found[f"draws/{number}"], as_written(draw), atol=HALF)
    assert np.abs(found["draws/0"] - found["draws/1"]).max() > 10 * HALF
    # Another correlation would be another noise on the same images.
    other = (*settings[:2], f"--data.correlation={correlation.replace('slanted', 'round')}", "--trainer.max_steps=8")
    assert run(tmp_path, "fit", *other, f"--ckpt_path={ckpt}", config=TINY) == 2
