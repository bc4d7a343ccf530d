"""Files of images: what comes out is what was put in, in every format, and goes back as it came."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from astropy.io import fits
from PIL import Image

from lightning_tweedie.data.formats.layout import find_layout
from lightning_tweedie.data.formats.registry import find_format
from lightning_tweedie.data.images import ImageArchive, ImageFiles, ImageFolder, open_files
from lightning_tweedie.errors import UserError

STACK = np.random.default_rng(0).integers(0, 60000, (5, 7, 6)).astype(np.uint16)
"""Five grey images."""
BANDS = np.random.default_rng(1).normal(40, 900, (5, 7, 6)).astype(np.float32)
"""One image of five channels."""


def raw(images: ImageFiles) -> np.ndarray:
    return np.stack([images.raw(i) for i in range(len(images))])


def write_fits(path: Path, array: np.ndarray) -> None:
    fits.PrimaryHDU(array, fits.Header({"EXPTIME": 30.0})).writeto(path)


def write_hdf5(path: Path, array: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/images", data=array, compression="gzip").attrs["unit"] = "photons"
        file["labels"] = np.zeros(5)


WRITERS = {
    "a.tif": lambda path, array: tifffile.imwrite(path, array, photometric="minisblack"),
    "packed.tiff": lambda path, array: tifffile.imwrite(path, array, photometric="minisblack", compression="lzw"),
    "a.npy": np.save,
    "a.npz": lambda path, array: np.savez(path, pictures=array),
    "a.h5": write_hdf5,
    "a.fits": write_fits,
    "a.fits.gz": write_fits,
}


@pytest.mark.parametrize("name", WRITERS)
def test_stacks_and_channels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, STACK)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, name)
    for images in (ImageFolder(tmp_path / name), ImageArchive(tmp_path / "all.zip")):
        assert list(images.names) == [f"{name}[{i}]" for i in range(5)]
        np.testing.assert_array_equal(raw(images), STACK[:, None])
        assert images.dtype == np.uint16
        np.testing.assert_allclose(images[3], STACK[3][None] / 32767.5 - 1, atol=1e-6)
    path.unlink()
    WRITERS[name](path, BANDS)
    images = open_files(path, channels=5)
    assert list(images.names) == [name]
    np.testing.assert_array_equal(raw(images), BANDS[None])
    # Floats are as they are, noise and all.
    assert torch.equal(images[0], torch.from_numpy(BANDS))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("channels", [1, 5])
def test_what_is_written_is_like_what_was_read(name: str, channels: int, tmp_path: Path) -> None:
    array = STACK if channels == 1 else BANDS
    WRITERS[name](tmp_path / name, array)
    stored, layout = open_files(tmp_path / name, channels=channels).open(0)
    images = [layout.take(stored.array, i) + 1 for i in range(layout.count)]
    kind = find_format(name)
    assert kind is not None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(kind.write(layout.join(images), stored))
    again = open_files(tmp_path / "out" / name, channels=channels)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(raw(again).squeeze(), array + 1)
    new, same = again.open(0)
    assert (new.shape, new.axes, same) == (stored.shape, stored.axes, layout)
    if ".fits" in name:
        assert new.details["header"]["EXPTIME"] == 30
        assert (tmp_path / "out" / name).read_bytes()[:2] == (tmp_path / name).read_bytes()[:2]  # packed or not
    if name == "a.h5":
        assert new.details["attributes"] == {"unit": "photons"}


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        (STACK[0], {}, STACK[None, :1]),
        (STACK[0], {"photometric": "miniswhite"}, STACK[None, :1]),
        (STACK[:3].transpose(1, 2, 0), {"photometric": "rgb"}, STACK[None, :3]),
        (STACK[:3], {"photometric": "rgb", "planarconfig": "separate"}, STACK[None, :3]),
        (STACK, {"imagej": True, "metadata": {"axes": "CYX"}}, STACK[None]),
        (STACK, {"imagej": True, "metadata": {"axes": "TYX"}}, STACK[:, None]),
        (STACK, {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}}, STACK[None]),
        (np.stack([STACK, STACK + 1]), {"photometric": "minisblack", "metadata": {"axes": "TCYX"}},
         np.stack([STACK, STACK + 1])),
        (np.stack([STACK[:3], STACK[2:]]).transpose(0, 2, 3, 1), {"photometric": "rgb"},
         np.stack([STACK[:3], STACK[2:]])),
    ],
)  # fmt: skip
def test_what_a_tiff_says_of_its_axes(array: np.ndarray, options: dict, expected: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    images = ImageFolder(tmp_path)
    np.testing.assert_array_equal(raw(images), expected)
    stored, layout = images.open(0)
    kind = find_format("a.tif")
    assert kind is not None
    (tmp_path / "a.tif").write_bytes(kind.write(layout.join(list(expected)), stored))
    again = ImageFolder(tmp_path)
    np.testing.assert_array_equal(raw(again), expected)
    assert again.open(0)[0].details["photometric"] == stored.details["photometric"]


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_png_is_lossless(mode: str, tmp_path: Path) -> None:
    array = {"L": STACK[0] % 256, "RGB": STACK[:3].transpose(1, 2, 0) % 256, "I;16": STACK[0]}[mode]
    array = array.astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    stored, layout = ImageFolder(tmp_path).open(0)
    kind = find_format("a.png")
    assert kind is not None
    written = kind.write(layout.join([layout.take(stored.array, 0)]), stored)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), array)


def test_axes_that_nothing_is_known_of() -> None:
    for shape, channels, axes in [
        ((7, 6), None, "YX"),
        ((3, 7, 6), None, "CYX"),
        ((7, 6, 4), None, "YXC"),
        ((9, 7, 6), None, "NYX"),
        ((3, 7, 6), 1, "NYX"),
        ((2, 7, 6), 2, "CYX"),
        ((9, 2, 7, 6), 2, "NCYX"),
        ((9, 7, 6, 1), None, "NYXC"),
    ]:
        known = axes if len(shape) == 2 else "?" * len(shape)
        assert find_layout(shape, known, channels, "it").axes == axes
    for shape, channels in [
        ((7, 6, 7), 7), ((2, 5, 7, 6), None), ((2, 7, 6), 3), ((7,), None), ((0, 7, 6), None), ((2, 3, 4, 7, 6), None),
        ((), None),
    ]:  # fmt: skip
        with pytest.raises(UserError, match="it holds an array"):
            find_layout(shape, "?" * len(shape), channels, "it")


def test_one_array_of_several_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=STACK, y=BANDS)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = STACK, BANDS
    units = [fits.PrimaryHDU(), fits.ImageHDU(STACK[0], name="x"), fits.ImageHDU(BANDS[0], name="y")]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    for name in ("a.npz", "a.h5"):
        with pytest.raises(UserError, match=r"cannot be used: the file holds 2 arrays.*\(x, y\): say with `key`"):
            ImageFolder(tmp_path / name).raw(0)
        with pytest.raises(UserError, match="key = 'z' is not an array"):
            ImageFolder(tmp_path / name, key="z").raw(0)
    for name in ("a.npz", "a.h5", "a.fits"):
        np.testing.assert_array_equal(ImageFolder(tmp_path / name, key="y").raw(0)[0], BANDS[0])
    np.testing.assert_array_equal(ImageFolder(tmp_path / "a.fits").raw(0)[0], STACK[0])  # the first with an image
    np.testing.assert_array_equal(ImageFolder(tmp_path / "a.fits", key="2").raw(0)[0], BANDS[0])


def nan(path: Path) -> None:
    write_fits(path / "b.fits", np.full((4, 4), np.nan, np.float32))


def other_type(path: Path) -> None:
    np.save(path / "a.npy", STACK[0])
    np.save(path / "b.npy", STACK[0].astype(np.uint8))


def other_channels(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path / "a.png")
    Image.new("L", (4, 4)).save(path / "b.png")


def several_kinds(path: Path) -> None:
    with tifffile.TiffWriter(path / "b.tif") as file:
        file.write(STACK[0])
        file.write(STACK[0, :3])


def deep_colour(path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(path / "b.png"), STACK[:3].transpose(1, 2, 0))


def test_damaged_files_are_named_whatever_their_format(tmp_path: Path) -> None:
    for name, writer in WRITERS.items():
        folder = tmp_path / name
        folder.mkdir()
        writer(folder / name, STACK)
        content = (folder / name).read_bytes()
        for damage in (content[: len(content) // 3], b"", b"no image at all"):
            (folder / name).write_bytes(damage)
            with pytest.raises(UserError, match=rf"the image .*{name}.* cannot be (read|used)"):
                ImageFolder(folder).raw(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nan, r"b\.fits has 16 of 16 values that are not finite \(NaN or infinite\): fill them in"),
        (other_type, r"b\.npy holds uint8 but others hold uint16, which have another scale: keep one type"),
        (other_channels, r"b\.png has 1 channels but others have 3: keep one kind"),
        (several_kinds, r"the pages of a TIFF are of different kinds"),
        (deep_colour, r"a colour PNG of 16 bits cannot be read without loss: store it as TIFF"),
        (lambda path: np.save(path / "b.npy", STACK[0].astype(np.complex64)), "b.npy holds complex64"),
        (lambda path: np.save(path / "b.npy", STACK[0].astype(np.int32)), "say which with data.range"),
        (lambda path: np.save(path / "b.npy", np.array([{}])), r"b\.npy cannot be read"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_used(make, message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message) as told:
        images = ImageFolder(tmp_path)
        _ = [images[i] for i in range(len(images))]
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("package", "name"), [("h5py", "a.h5"), ("astropy.io.fits", "a.fits")])
def test_a_missing_package_is_named(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](tmp_path / name, STACK)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=r"needs the package (h5py|astropy), .* pip install 'lightning_tweedie\["):
        ImageFolder(tmp_path).raw(0)


def test_grey_and_colour_on_demand(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "a.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "b.png")
    grey = ImageFolder(tmp_path, channels=1)
    assert grey.raw(0).shape == (1, 4, 4) and int(grey.raw(0)[0, 0, 0]) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    np.testing.assert_array_equal(ImageFolder(tmp_path, channels=3).raw(1), np.full((3, 4, 4), 7, np.uint8))
    # Of noisy data the noise would change, so nobody does it unasked.
    with pytest.raises(UserError, match=r"b\.png has 1 channels, not 3"):
        ImageFolder(tmp_path, channels=3, convert=False).raw(1)


def test_a_grey_picture_stored_as_a_colour_one_is_grey(tmp_path: Path) -> None:
    grey = (STACK[0] % 256).astype(np.uint8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.png")
    images = ImageFolder(tmp_path, channels=1, convert=False)
    np.testing.assert_array_equal(images.raw(0)[0], grey)
    # And goes back as it came.
    stored, layout = images.open(0)
    np.testing.assert_array_equal(layout.join([images.raw(0)]), stored.array)
