"""What may be wrong with data of one's own, and with the place for the results: one sentence each, with the remedy."""

import errno
import io
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from command_line import DIGITS_WITHOUT_DATA, trained_digits
from PIL import Image

from lightning_tweedie.cli import main
from lightning_tweedie.commands import output

SIDE = 28
FIT = (
    "fit --config tiny.yaml --data lightning_tweedie.datamodules.Images --data.root images --data.channels 1 "
    "--data.sigma 0.5 --data.holdout 4 --data.batch_size 4"
)
DENOISE = "denoise --ckpt_path last.ckpt --input images --out out"
SAMPLE = "sample --ckpt_path last.ckpt --out out --num 2 --steps 2"
EXPORT = "export --ckpt_path last.ckpt --out out --num 0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of grey images of 28 x 28."""
    return trained_digits(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with twelve good images in `images`, the checkpoint and a configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(12):
        save(f"images/{number:02}.png")
    (tmp_path / "tiny.yaml").write_text(DIGITS_WITHOUT_DATA)
    shutil.copy(trained, "last.ckpt")
    return tmp_path


def pixels(*shape: int, kind: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape or (SIDE, SIDE)).astype(kind)


def save(path: str, *shape: int) -> None:
    Image.fromarray(pixels(*shape)).save(path)


def alone(name: str, write: Callable[[str], object]) -> Callable[[], None]:
    """One file in the place of the good ones."""

    def make() -> None:
        shutil.rmtree("images")
        Path("images").mkdir()
        write(f"images/{name}")

    return make


def cut_short(path: str, write: Callable[[str], object]) -> Callable[[], None]:
    def make() -> None:
        write(path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])

    return make


def write_h5(**arrays: np.ndarray) -> Callable[[str], None]:
    def write(path: str) -> None:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array

    return write


def text(path: str, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def table(levels: int | list[str]) -> Callable[[], object]:
    lines = ["0.5"] * levels if isinstance(levels, int) else levels
    return text("levels.txt", "\n".join(lines))


def by_name(missing: str) -> Callable[[], object]:
    names = [f"{number:02}.png" for number in range(12)]
    return text("levels.csv", "\n".join(["file,sigma", *(f"{name},0.5" for name in names if name != missing)]))


def maps(*odd: int) -> Callable[[], None]:
    def make() -> None:
        Path("maps").mkdir()
        for number in range(12):
            np.save(f"maps/{number:02}.npy", np.full(odd if number == 7 else (SIDE, SIDE), 0.5))

    return make


def archive(damage: bool) -> Callable[[], None]:
    def make() -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as into:
            for path in sorted(Path("images").iterdir()):
                into.write(path, path.name)
        content = file.getvalue()
        Path("images.zip").write_bytes(content[: len(content) // 2] if damage else content)

    return make


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("witness"),)  # type: ignore[return-value]


def hostile() -> None:
    content = torch.load("last.ckpt", weights_only=True)
    torch.save({**content, "evil": Evil()}, "last.ckpt")


def taken(name: str) -> Callable[[], object]:
    def make() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("mine")

    return make


def nothing() -> None:
    pass


def refuse(**_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


TABLE: dict[str, tuple[Callable[[], object], str, str]] = {
    # kind of mistake: how it comes about, the command, what is told
    "no such folder": (
        nothing,
        f"{FIT} --data.root nowhere",
        "data.root = 'nowhere' does not exist: give a folder of images or an archive of them",
    ),
    "an empty folder": (
        lambda: [path.unlink() for path in Path("images").iterdir()],
        FIT,
        "the folder 'images' holds no images: put files that end in .png, .* there, or give another folder",
    ),
    "a file that is no image": (
        text("images/05.png", "hello"),
        FIT,
        r"the image images/05.png cannot be read \(cannot identify image file 'images/05.png'\): mend or "
        "remove the file",
    ),
    "a PNG that breaks off": (
        cut_short("images/05.png", save),
        FIT,
        r"the image images/05.png cannot be read \(image file is truncated\): mend or remove the file",
    ),
    "a TIFF that breaks off": (
        cut_short("images/05.tif", lambda path: tifffile.imwrite(path, pixels())),
        FIT,
        r"the image images/05.tif cannot be read \(failed to read 784 bytes, got \d+\): mend or remove the "
        "file",
    ),
    "an archive that breaks off": (
        archive(damage=True),
        f"{FIT} --data.root images.zip",
        r"the archive 'images.zip' cannot be read \(it is no tar or zip file, or breaks off\): give a whole "
        "one",
    ),
    "grey and colour, one kind wanted": (
        lambda: save("images/05.png", SIDE, SIDE, 3),
        f"{FIT} --data.inject false",
        "the image images/05.png has 3 channels, not 1: give other images, or settings and a network for 3 channels",
    ),
    "grey and colour, nothing said": (
        lambda: save("images/05.png", SIDE, SIDE, 3),
        f"{FIT} --data.channels null",
        "the image images/05.png has 3 channels but others have 1: keep one kind, or, for grey and colour "
        "pictures, set data.channels to 1 or 3",
    ),
    "several sizes and no crop": (
        lambda: save("images/05.png", SIDE, 30),
        FIT,
        r"item 5 \(05.png\) has shape \(1, 28, 30\) but others have \(1, 28, 28\): bring all images to one "
        "size with data.transform, .* or cut parts of one size out of them with data.augment, for example "
        "crop:64",
    ),
    "smaller than the crop": (
        lambda: save("images/05.png", 20, SIDE),
        f"{FIT} --data.augment [crop:24]",
        r"item 5 \(05.png\): data.augment: crop:24 does not fit images of 20 x 28: choose a smaller crop",
    ),
    "8 and 16 bits": (
        lambda: tifffile.imwrite("images/05.tif", pixels(kind="uint16")),
        FIT,
        "the image images/05.tif holds uint16 but others hold uint8, which have another scale: keep one type",
    ),
    "a FITS of NaNs": (
        alone("a.fits", lambda path: fits.writeto(path, np.full((20, SIDE, SIDE), np.nan))),
        FIT,
        r"the image images/a.fits\[0\] has 784 of 784 values that are not finite \(NaN or infinite\): fill "
        "them in, or leave the image out",
    ),
    "an NPY of objects": (
        alone("a.npy", lambda path: np.save(path, np.array([Evil()]))),
        FIT,
        "the image images/a.npy cannot be (read|used).*",
    ),
    "an HDF5 with two arrays": (
        alone("a.h5", write_h5(x=pixels(20, 4, 4), y=pixels(20, 4, 4))),
        FIT,
        "the image images/a.h5 cannot be used: .* say with `key` which",
    ),
    "an HDF5 without the array": (
        alone("a.h5", write_h5(x=pixels(20, 4, 4))),
        f"{FIT} --data.key z",
        "the image images/a.h5 cannot be used: key = 'z' .*",
    ),
    "int32, of unknown range": (
        alone("a.npy", lambda path: np.save(path, pixels(20, SIDE, SIDE, kind="int32"))),
        FIT,
        r"the image images/a.npy\[0\] holds int32, of which only a part of the range is used: say which with "
        "data.range, .*",
    ),
    "floats from 0 to 255": (
        alone("a.npy", lambda path: np.save(path, pixels(20, SIDE, SIDE, kind="float32"))),
        FIT,
        r"item 0 \(a.npy\[0\]\) has values from 0 to 255, but clean images must be in \[-1, 1\]: set "
        "data.range to the range of the data in their own units, or data.sigma_units to data",
    ),
    "fewer images than are held out": (
        nothing,
        f"{FIT} --data.holdout 500",
        "data.holdout = 500 leaves nothing of 12 items for training: keep out fewer",
    ),
    "a batch larger than the set": (
        nothing,
        f"{FIT} --data.batch_size 64",
        "data.batch_size = 64 is more than the 8 training items: use smaller batches or more data, .*",
    ),
    "sigma in 8-bit units": (
        nothing,
        f"{FIT} --data.sigma 25",
        r"data.sigma = 25 is too large for data in \[-1, 1\]: if it is on the 8-bit scale 0..255, write 25 / "
        "127.5 = 0.1961, or set sigma_units to data",
    ),
    "sigma negative": (
        nothing,
        f"{FIT} --data.sigma=-0.5",
        "data.sigma = -0.5 is negative: give a standard deviation >= 0",
    ),
    "sigma NaN": (
        nothing,
        f"{FIT} --data.sigma .nan",
        "data.sigma = nan is not a number: give a standard deviation >= 0",
    ),
    "no such table of sigma": (
        nothing,
        f"{FIT} --data.sigma levels.csv",
        r"data.sigma = 'levels.csv' is neither a number, nor a range \[lo, hi\], nor an existing file: give "
        "the path of a .npy, .csv or .txt table .*",
    ),
    "a table shorter than the set": (
        table(11),
        f"{FIT} --data.sigma levels.txt",
        "data.sigma = 'levels.txt' holds 11 levels but the set has 12 items: write one level per item, in "
        "the order of the items",
    ),
    "a table with a negative level": (
        table(["0.5"] * 11 + ["-1"]),
        f"{FIT} --data.sigma levels.txt",
        r"data.sigma \(levels.txt, item 11\) = -1 is negative: give a standard deviation >= 0",
    ),
    "a table that lacks a file": (
        by_name("07.png"),
        f"{FIT} --data.sigma levels.csv",
        "data.sigma = 'levels.csv' has no level for 1 of 12 files, among them 07.png: add them, .*",
    ),
    "a map of another shape": (
        maps(SIDE, 20),
        f"{FIT} --data.sigma maps",
        r"the map maps/07.npy of data.sigma has shape \(28, 20\), and its image has \(1, 28, 28\): give a "
        "number for each pixel, .*",
    ),
    "a map that is not there": (
        lambda: (maps(SIDE, SIDE)(), Path("maps/07.npy").unlink()),
        f"{FIT} --data.sigma maps",
        "data.sigma = 'maps' has no map for 1 of 12 images, among them maps/07.npy: put .npy files there "
        "that are called like the images",
    ),
    "no checkpoint": (
        nothing,
        f"{DENOISE} --ckpt_path nowhere.ckpt",
        "the checkpoint 'nowhere.ckpt' does not exist: give the path of a file such as runs/.../last.ckpt",
    ),
    "something else than a checkpoint": (
        text("last.ckpt", "hello"),
        DENOISE,
        "the checkpoint 'last.ckpt' cannot be read: it is none, or it is damaged or truncated; use another",
    ),
    "a checkpoint that runs code": (
        hostile,
        DENOISE,
        "the checkpoint 'last.ckpt' holds more than tensors and plain data, which could run code when it is "
        "read: use one that this library wrote",
    ),
    "a grey model for colour images": (
        alone("a.png", lambda path: save(path, SIDE, SIDE, 3)),
        DENOISE,
        "the image images/a.png has 3 channels, not 1: give other images, or settings and a network for 3 channels",
    ),
    "an output folder in use": (
        taken("out/thesis.tex"),
        DENOISE,
        "the folder 'out' is not empty, and what is in it is not of this command, which overwrites nothing: "
        "set --out to another one",
    ),
    "an output folder in use, sample": (
        taken("out/thesis.tex"),
        SAMPLE,
        "the folder 'out' is not empty and nothing is overwritten unasked: set --out to another one, or give "
        "--overwrite true",
    ),
    "an output folder in use, export": (
        taken("out/thesis.tex"),
        EXPORT,
        "'.*/out' exists already and is not overwritten: move it or choose another name",
    ),
    "an output folder that is a file": (
        taken("out"),
        SAMPLE,
        r"the folder 'out' cannot be written to \(.*File exists.*\): set --out to another one",
    ),
    "results among the images": (
        nothing,
        f"{DENOISE} --out images/out",
        "out = 'images/out' lies in the folder of the input, which is searched to any depth: set --out to another one",
    ),
    "a report among the images": (
        nothing,
        "inspect images --out images/report",
        "out = 'images/report' lies in the folder of the input, which is searched to any depth: set --out to "
        "another one",
    ),
    "a place that cannot be written to": (
        nothing,
        f"{SAMPLE} --out /proc/out",
        r"the folder '/proc/out' cannot be written to \(.*\): set --out to another one",
    ),
    "a read-only disk": (
        nothing,
        SAMPLE,
        r"the folder 'out' cannot be written to \(.*Read-only file system.*\): set --out to another one",
    ),
    "runs that cannot be written": (
        nothing,
        f"{FIT} --runs /proc/runs",
        r"the run's directory cannot be made in '/proc/runs/digits' \(.*\): set --runs to another folder",
    ),
}
"""A full disk has test_full_disk.py, what else may be wrong with a checkpoint test_hostile_models.py."""


@pytest.mark.parametrize("kind", TABLE)
def test_a_mistake_costs_one_sentence(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, command, sentence = TABLE[kind]
    make()
    if kind == "a read-only disk":  # the tests may mount none, and root may write everywhere else
        monkeypatch.setattr(output, "TemporaryFile", refuse)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(command.split()) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (told,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(f"error: (data.root = '[^']*': )?{sentence}", told), told
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before, "something was written"


def test_an_archive_is_restored_like_its_folder(place: Path) -> None:
    archive(damage=False)()
    assert main([*DENOISE.split()]) == 0
    assert main([*DENOISE.split(), "--input", "images.zip", "--out", "unpacked"]) == 0
    assert len(list(Path("out/one_step").iterdir())) == 12
    for path in Path("out/one_step").iterdir():
        assert path.read_bytes() == (place / "unpacked/one_step" / path.name).read_bytes()
