"""`denoise`: files like those of the input, in their type, size and units, whatever happens in between."""

import errno
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from command_line import DIGITS, run
from PIL import Image

from lightning_tweedie import files
from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.cli import main
from lightning_tweedie.commands import denoise as command
from lightning_tweedie.data.scale import DataScale
from lightning_tweedie.randomness import name_number
from lightning_tweedie.sampling import SDEDPMSolverPP2M, one_step, posterior_samples
from lightning_tweedie.tiling import TiledDenoiser

SIZE = 28


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run(folder, "fit", config=DIGITS) == 0
    return folder / "runs/digits/fit_0/checkpoints/last.ckpt"


def rescaled(ckpt: Path, to: Path, scale: DataScale | None, channels: int = 1) -> Path:
    """The same network, trained, it says, on data of another scale."""
    content = torch.load(ckpt, weights_only=True)
    content["lightning_tweedie"].pop("scale")
    if scale is not None:
        content["lightning_tweedie"]["scale"] = scale.as_dict()
    torch.save(content, to)
    return to


def denoise(ckpt: Path, source: Path, out: Path, *options: str) -> int:
    given = ["--ckpt_path", str(ckpt), "--input", str(source), "--out", str(out), "--steps", "3"]
    return main(["denoise", *given, *options])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Noisy images whose values fill the range of their type."""
    x = np.random.default_rng(seed).normal(0, 0.5, shape).clip(-1, 1)
    return (x * 127.5 + 127.5).astype(np.uint8) if kind == "uint8" else (x * 32767.5 + 32767.5).astype(np.uint16)


def expected(ckpt: Path, array: np.ndarray, scale: DataScale) -> np.ndarray:
    """The one-step estimate of a grey image ``(H, W)`` in its own units."""
    denoiser = TiledDenoiser(load_denoiser(ckpt).denoiser, (SIZE, SIZE))
    x = scale.scaled(array[None])[None]
    return scale.restored(one_step(denoiser, x, 0.5)[0])[0]  # type: ignore[arg-type]


def test_sixteen_bit_tiff_in_and_out(ckpt: Path, tmp_path: Path) -> None:
    array = values("uint16", (SIZE, SIZE))
    (tmp_path / "in/below").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "in/below/a.tif", array, resolution=(300, 300), compression="zlib")
    assert denoise(ckpt, tmp_path / "in", tmp_path / "out", "--draws", "5") == 0
    x = DataScale(0, 65535, "uint16").scaled(array[None])[None]
    number = name_number("below/a.tif")
    draws = posterior_samples(
        load_denoiser(ckpt).denoiser, x, 0.5, 5, SDEDPMSolverPP2M(steps=3), seed=0, indices=[number]
    )[:, 0, 0].double()  # fmt: skip
    back = (draws.numpy() + 1) * 32767.5
    for kind, result in {"mean": back.mean(0), **{f"draws/{k}": back[k] for k in range(5)}}.items():
        with tifffile.TiffFile(tmp_path / "out" / kind / "below/a.tif") as file:
            made, page = file.asarray(), file.pages.first
            assert made.dtype == np.uint16 and made.shape == array.shape
            assert page.resolution == (300, 300) and page.compression != 1
        # Rounded to the nearest level; sums in another order may move one across the border.
        np.testing.assert_allclose(made, np.rint(result).clip(0, 65535), atol=8)
    std = tifffile.imread(tmp_path / "out/std/below/a.tif")
    assert std.dtype == np.float32
    np.testing.assert_allclose(std, back.std(0, ddof=1), rtol=1e-3, atol=8)
    one = tifffile.imread(tmp_path / "out/one_step/below/a.tif")
    np.testing.assert_allclose(one, expected(ckpt, array, DataScale(0, 65535, "uint16")), atol=2)
    assert 0.2 < one.std() / array.std() < 5, "the same range"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "one_step", "mean", "std", "draws", "conditions.json", "overview.png",
    }  # fmt: skip
    # Five columns of 28 x 28, enlarged; the first is what came in.
    assert Image.open(tmp_path / "out/overview.png").size[0] > 5 * SIZE


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.npz", "a.h5", "a.fits"])
def test_every_format_comes_back_as_it_was(name: str, ckpt: Path, tmp_path: Path) -> None:
    ckpt = rescaled(ckpt, tmp_path / "c.ckpt", DataScale(1000, 3000, "float32") if name != "a.png" else None)
    images = np.random.default_rng(0).normal(2000, 500, (3, SIZE, SIZE)).astype(np.float32)
    scale = DataScale(1000, 3000, "float32")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / name
    if name == "a.png":
        images, scale = values("uint8", (1, SIZE, SIZE)), DataScale(0, 255, "uint8")
        Image.fromarray(images[0]).save(path)
    elif name == "a.tif":
        tifffile.imwrite(path, images, photometric="minisblack")
    elif name == "a.npy":
        images = images.astype(np.float64)
        np.save(path, images[:, None])
    elif name == "a.npz":
        np.savez(path, photons=images[:, None])
    elif name == "a.h5":
        with h5py.File(path, "w") as file:
            file["cube"] = images[:, None]
    else:
        fits.PrimaryHDU(images, fits.Header({"EXPTIME": 30.0})).writeto(path)
    assert denoise(ckpt, tmp_path / "in", tmp_path / "out", "--batch_size", "2") == 0
    made = tmp_path / "out/one_step" / name
    if name == "a.fits":
        assert fits.getheader(made)["EXPTIME"] == 30
        result: Any = fits.getdata(made)
    elif name == "a.h5":
        result = h5py.File(made)["cube"][:]
    elif name == "a.npz":
        result = np.load(made)["photons"]
    else:
        result = {"png": lambda p: np.asarray(Image.open(p)), "tif": tifffile.imread, "npy": np.load}[name[2:]](made)
    assert result.dtype.newbyteorder("=") == images.dtype
    one = np.stack([expected(ckpt, image, scale) for image in images])
    np.testing.assert_allclose(result.reshape(one.shape), one, atol=1 if name == "a.png" else 0.02)
    assert not (tmp_path / "out/unfinished").exists()


def test_sigma_in_the_units_of_the_images(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(values("uint8", (SIZE, SIZE))).save(tmp_path / "in/a.png")
    options = {"1": ["--sigma", "25.5", "--sigma_units", "data"], "2": ["--sigma", "0.2"], "3": []}
    for out, some in options.items():
        assert denoise(ckpt, tmp_path / "in", tmp_path / out, *some) == 0
    one, two, three = ((tmp_path / out / "one_step/a.png").read_bytes() for out in options)
    assert one == two != three


def test_large_and_small_images_of_any_size(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    arrays = {
        "a.tif": values("uint16", (75, 50)),
        "b.tif": values("uint16", (11, 40)),
        "c.tif": values("uint16", (28, 28)),
    }
    for name, array in arrays.items():
        tifffile.imwrite(tmp_path / "in" / name, array)
    assert denoise(ckpt, tmp_path / "in", tmp_path / "out", "--draws", "2") == 0
    for name, array in arrays.items():
        one = tifffile.imread(tmp_path / "out/one_step" / name)
        np.testing.assert_allclose(one, expected(ckpt, array, DataScale(0, 65535, "uint16")), atol=2)
        for kind in ("mean", "std", "draws/0", "draws/1"):
            assert tifffile.imread(tmp_path / "out" / kind / name).shape == array.shape


def test_a_draw_depends_on_its_name_not_on_its_neighbours(ckpt: Path, tmp_path: Path) -> None:
    for folder, names in (("few", ["b"]), ("many", ["a", "b", "c"])):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(values("uint8", (SIZE, SIZE), ord(name))).save(tmp_path / folder / f"{name}.png")
        assert denoise(ckpt, tmp_path / folder, tmp_path / f"{folder}_out", "--draws", "1") == 0
    few, many = (np.asarray(Image.open(tmp_path / f"{f}_out/draws/0/b.png")).astype(int) for f in ("few", "many"))
    assert abs(few - many).max() <= 1


def stack_and_pictures(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        tifffile.imwrite(folder / f"{i}.tif", values("uint16", (SIZE, SIZE), i))
    tifffile.imwrite(folder / "stack.tif", values("uint16", (4, SIZE, SIZE), 9), photometric="minisblack")
    return folder


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", range(1, 7))
def test_it_goes_on_where_it_was_interrupted(
    after: int, ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stack_and_pictures(tmp_path / "in")
    options = ("--draws", "2", "--batch_size", "1")
    assert denoise(ckpt, source, tmp_path / "whole", *options) == 0
    add, count = command.RestoredFiles.add, 0

    def stop(self: Any, index: int, results: dict[str, torch.Tensor]) -> None:
        nonlocal count
        if count == after:
            raise Interrupted
        count += 1
        add(self, index, results)

    monkeypatch.setattr(command.RestoredFiles, "add", stop)
    with pytest.raises(Interrupted):
        denoise(ckpt, source, tmp_path / "out", *options)
    monkeypatch.undo()
    before = tree(tmp_path / "out")
    assert len([name for name in before if name.startswith("one_step")]) == min(after, 3)
    done: list[int] = []
    monkeypatch.setattr(command.RestoredFiles, "add", lambda s, i, r: (done.append(i), add(s, i, r)) and None)
    assert denoise(ckpt, source, tmp_path / "out", *options) == 0
    assert done == list(range(after, 7)), "nothing is done twice"
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    # And once more: there is nothing to do, and nothing is touched.
    assert denoise(ckpt, source, tmp_path / "out", *options) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_full_disk(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    source = stack_and_pictures(tmp_path / "in")
    written = 0

    def full(self: Path, content: bytes) -> int:
        nonlocal written
        written += 1
        if written > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content) if self.open("wb").write(content) else 0

    monkeypatch.setattr(files.Path, "write_bytes", full)
    assert denoise(ckpt, source, tmp_path / "out") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ") and "No space left on device): make room" in told
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob(".*")), "no halves"
    assert denoise(ckpt, source, tmp_path / "out") == 0
    assert denoise(ckpt, source, tmp_path / "whole") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_another_setting_in_the_same_folder(ckpt: Path, tmp_path: Path, capsys: Any) -> None:
    source = stack_and_pictures(tmp_path / "in")
    assert denoise(ckpt, source, tmp_path / "out", "--draws", "1") == 0
    before = tree(tmp_path / "out")
    for options, words in {
        ("--draws", "2"): "draws = 1, not 2",
        ("--draws", "1", "--sigma", "0.2"): "sigma = 0.5, not 0.2",
        ("--draws", "1", "--seed", "1"): "seed = 0, not 1",
        ("--draws", "1", "--range", "[0,4095]"): "range = [0.0, 65535.0], not [0.0, 4095.0]",
    }.items():
        capsys.readouterr()
        assert denoise(ckpt, source, tmp_path / "out", *options) == 2
        assert words in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def good(folder: Path) -> None:
    Image.fromarray(values("uint8", (SIZE, SIZE))).save(folder / "in/a.png")


def unreadable(folder: Path) -> None:
    good(folder)
    (folder / "in/b.png").write_bytes((folder / "in/a.png").read_bytes()[:60])


def nans(folder: Path) -> None:
    fits.PrimaryHDU(np.full((SIZE, SIZE), np.nan, np.float32)).writeto(folder / "in/a.fits")


def colour(folder: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), (10, 20, 30)).save(folder / "in/a.png")


def two_types(folder: Path) -> None:
    good(folder)
    tifffile.imwrite(folder / "in/b.tif", values("uint16", (SIZE, SIZE)))


def not_empty(folder: Path) -> None:
    good(folder)
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").write_text("mine")


def a_file(folder: Path) -> None:
    good(folder)
    (folder / "out").write_text("mine")


def zero_to_one(folder: Path) -> None:
    np.save(folder / "in/a.npy", np.random.default_rng(0).random((SIZE, SIZE)))


def electrons(folder: Path) -> None:
    np.save(folder / "in/a.npy", 1e5 * np.random.default_rng(0).normal(size=(SIZE, SIZE)))


def counts(folder: Path) -> None:
    np.save(folder / "in/a.npy", np.arange(SIZE**2, dtype=np.int32).reshape(SIZE, SIZE))


def two_arrays(folder: Path) -> None:
    np.savez(folder / "in/a.npz", x=np.zeros((4, 4)), y=np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (good, ["--sigma", "25"], "sigma = 25 is too large"),
        (good, ["--sigma", "5000", "--sigma_units", "data"], "sigma = 5000 is too large: the range of the data"),
        (good, ["--sigma", "-1"], "sigma = -1 is negative"),
        (good, ["--sigma", "0"], "sigma = 0 leaves nothing to restore"),
        (good, ["--draws", "-1"], "draws = -1"),
        (good, ["--input", "nowhere"], "'nowhere' does not exist: give the folder with the images"),
        (good, ["--device", "tpu9"], "device = tpu9"),
        (good, ["--range", "[3,3]"], "range = [3.0, 3.0] is no range"),
        (good, ["--sigma_units", "adu"], "sigma_units"),
        (good, ["--overwrite", "true"], "--overwrite is not an option"),
        (good, ["--bogus", "1"], "--bogus"),
        (lambda folder: None, [], "holds no images"),
        (unreadable, [], "b.png cannot be read"),
        (nans, [], "a.fits has 784 of 784 values that are not finite"),
        (colour, [], "a.png has 3 channels, not 1"),
        (two_types, [], "b.tif holds uint16 but others hold uint8"),
        (zero_to_one, [], "say with --range which values"),
        (electrons, [], "say with --range which values"),
        (counts, [], "holds int32"),
        (two_arrays, [], "say with `key` which one"),
        (two_arrays, ["--key", "z"], "key = 'z' is not an array of the file, which has x, y"),
        (not_empty, [], "is not empty, and what is in it is not of this command"),
        (a_file, [], "is a file: set --out to a folder"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_denoise_refuses(make: Any, options: list[str], words: str, ckpt: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    make(tmp_path)
    before = tree(tmp_path)
    assert denoise(ckpt, tmp_path / "in", tmp_path / "out", *options) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and words in told[0], told
    assert "data." not in told[0], "a setting of another command"
    assert tree(tmp_path) == before


def test_the_output_may_not_lie_in_the_input(ckpt: Path, tmp_path: Path, capsys: Any) -> None:
    source = stack_and_pictures(tmp_path / "in")
    for out in (source, source / "clean"):
        assert denoise(ckpt, source, out) == 2
        assert "lies in the folder of the input" in capsys.readouterr().err
    assert not (source / "clean").exists()


def test_a_missing_package(ckpt: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    nans(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "astropy.io.fits", None)
    assert denoise(ckpt, tmp_path / "in", tmp_path / "out") == 2
    assert "pip install 'lightning_tweedie[fits]'" in capsys.readouterr().err


def test_a_checkpoint_without_a_scale(ckpt: Path, tmp_path: Path) -> None:
    """As all were once: integers by their type, floats as they are."""
    old = rescaled(ckpt, tmp_path / "old.ckpt", None)
    (tmp_path / "in").mkdir()
    x = np.random.default_rng(0).normal(0, 1.5, (SIZE, SIZE)).astype(np.float32)
    np.save(tmp_path / "in/a.npy", x)
    assert denoise(old, tmp_path / "in", tmp_path / "out") == 0
    made = np.load(tmp_path / "out/one_step/a.npy")
    np.testing.assert_allclose(made, one_step(load_denoiser(old).denoiser, torch.from_numpy(x)[None, None], 0.5)[0, 0],
                               atol=1e-5)  # fmt: skip
