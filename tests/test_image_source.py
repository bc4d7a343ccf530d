"""Images from folders, archives and arrays are the same images, and what is on another scale is refused."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_tweedie.commands import sample as sample_command
from lightning_tweedie.data.image_source import open_images
from lightning_tweedie.errors import UserError
from lightning_tweedie.pictures import to_uint8

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
"""(N, H, W, C)"""
GREY = COLOUR[..., 0]


def pixels(path: Path) -> torch.Tensor:
    """All images of a source in 8 bits, ``(N, C, H, W)``."""
    images = open_images(path)
    return torch.stack([to_uint8(images[i]) for i in range(len(images))])  # type: ignore[arg-type]


def expected(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def folder_of(array: np.ndarray, path: Path) -> Path:
    path.mkdir()
    for i, image in enumerate(array):
        Image.fromarray(image).save(path / f"{i}.png")
    return path


def test_folders_and_archives_hold_the_same_images(tmp_path: Path) -> None:
    folder = folder_of(COLOUR, tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"inside/{path.name}")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(folder, "inside")
    for source in (folder, tmp_path / "a.zip", tmp_path / "a.tar.gz"):
        assert torch.equal(pixels(source), expected(COLOUR)), source
        images = open_images(source)
        assert images[0].dtype == torch.float32 and [Path(name).name for name in images.names] == [  # type: ignore[attr-defined]
            f"{i}.png" for i in range(5)
        ]
    grey = folder_of(GREY, tmp_path / "grey")
    # The same levels in every channel.
    assert torch.equal(pixels(grey), torch.from_numpy(GREY)[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("array", "result"),
    [
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (GREY, GREY[..., None]),
        (GREY[..., None], GREY[..., None]),
        (GREY[:, None], GREY[..., None]),
        (COLOUR / np.float64(127.5) - 1, COLOUR),
        ((COLOUR / 127.5 - 1).astype(">f4"), COLOUR),
        ((COLOUR.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float16), COLOUR),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz", "samples"])
def test_arrays(array: np.ndarray, result: np.ndarray, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    if kind == "npy":
        np.save(path, array)
    elif kind == "npz":
        np.savez(path, array, np.zeros(5))  # as ADM does: labels beside the images
    else:
        np.savez(path, samples=array, arr_0=np.zeros(5))
    found = pixels(path)
    # Half floats have 11 bits, more than 8.
    assert torch.equal(found, expected(result))
    images = open_images(path)
    assert torch.equal(images.__getitems__([3, 1])[1], images[1])  # type: ignore[attr-defined]
    assert images[0].dtype == torch.float32
    with pytest.raises(IndexError):
        images[5]


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).normal(0, 1.5, (4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=noisy)  # the only array, whatever its name
    images = open_images(tmp_path / "a.npz", noisy=True)
    assert torch.equal(torch.stack([images[i] for i in range(4)]), torch.from_numpy(noisy)), "nothing is clipped"
    # As clean images or samples they are on another scale.
    with pytest.raises(UserError, match="looks like an unknown scale"):
        open_images(tmp_path / "a.npz")


def test_the_scale_of_networks_for_photographs_is_refused(tmp_path: Path) -> None:
    """Normalised by mean and deviation, as classifiers want it: clamped to [-1, 1] it would be another image."""
    images = (np.random.default_rng(0).beta(2, 2, (40, 3, 16, 16)) - 0.45) / 0.225
    np.savez(tmp_path / "a.npz", images.astype(np.float32))
    (tmp_path / "folder").mkdir()
    for i, image in enumerate(images.astype(np.float32)):
        np.save(tmp_path / f"folder/{i:02d}.npy", image)
    for name in ("a.npz", "folder"):
        with pytest.raises(UserError, match="from -.* to 2.*, which looks like an unknown scale: bring them to"):
            open_images(tmp_path / name)
        assert len(open_images(tmp_path / name, noisy=True)) == 40  # type: ignore[arg-type]


def test_samplers_may_overshoot(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1.09, 1.09, (10, 3, 10, 10)).astype(np.float32)
    samples.flat[:25] = 1.6  # of 3,000
    np.savez(tmp_path / "a.npz", images=samples)
    assert float(open_images(tmp_path / "a.npz")[0].max()) == np.float32(1.6)
    # And a network that has just begun to learn does worse: its samples are bad, and on the right scale.
    np.savez(tmp_path / "b.npz", samples=3 * samples)
    assert float(open_images(tmp_path / "b.npz")[0].max()) == np.float32(4.8)


def test_what_is_nearly_on_zero_to_one_is_doubted(tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(-0.01, 1.01, (4, 3, 8, 8))  # a resize overshoots
    np.savez(tmp_path / "a.npz", images)
    with pytest.warns(UserWarning, match=r"looks like \[0, 1\], and is taken as it stands"):
        open_images(tmp_path / "a.npz")


def test_a_folder_of_floats_may_be_grey(tmp_path: Path) -> None:
    for name, shape in (("flat", (6, 4)), ("grey", (1, 6, 4)), ("colour", (3, 6, 4))):
        (tmp_path / name).mkdir()
        image = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
        np.save(tmp_path / name / "a.npy", image)
        assert torch.equal(open_images(tmp_path / name, noisy=True)[0], torch.from_numpy(image).reshape(-1, 6, 4))


def test_what_sample_leaves_is_read_once_and_exactly(tmp_path: Path) -> None:
    samples = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    np.savez(tmp_path / "samples.npz", samples=samples.numpy())
    sample_command._draw(samples, tmp_path)
    assert (tmp_path / "grid.png").exists() and (tmp_path / "0000.png").exists()
    images = open_images(tmp_path)
    assert len(images) == 3 and torch.equal(images[2], samples[2])  # type: ignore[arg-type]
    # The pictures show the same 8-bit levels.
    for name in ("samples.npz", "grid.png"):
        (tmp_path / name).unlink()
    assert torch.equal(pixels(tmp_path), to_uint8(samples).expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.random.default_rng(0).random((2, 3, 8, 8))}, r"floats from .* looks like \[0, 1\]"),
        ({"a": COLOUR.astype(np.float32)}, "looks like 8 bits"),
        ({"a": 1000 * np.random.default_rng(0).normal(size=(2, 3, 8, 8))}, "looks like an unknown scale"),
        ({"a": np.full((2, 3, 8, 8), -np.inf)}, "image 0 .* not finite"),
        ({"a": COLOUR.astype(np.int64)}, "an array of int64"),
        ({"a": COLOUR > 3}, "an array of bool"),
        ({"a": COLOUR.astype(np.complex64)}, "an array of complex64"),
        ({"a": np.zeros((5, 3, 8, 3), np.uint8)}, r"\(5, 3, 8, 3\) \(the channels may be either axis\)"),
        ({"a": np.zeros((5, 2, 8, 8), np.uint8)}, r"holds an array \(5, 2, 8, 8\)"),
        ({"a": np.zeros((6, 4, 3), np.uint8)}, r"holds an array \(6, 4, 3\)"),
        ({"a": np.zeros((0, 8, 8, 3), np.uint8)}, r"holds an array \(0, 8, 8, 3\)"),
        ({"a": np.float32(3)}, r"holds an array \(\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, r"holds 2 arrays \(mu, sigma\)"),
        ({}, "holds 0 arrays"),
        ({"a": np.array([{}], dtype=object)}, "cannot be read"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "a.npz")


def test_the_bad_one_of_many_is_named(tmp_path: Path) -> None:
    images = np.zeros((3000, 3, 2, 2), np.float32)
    images[2500, 1, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UserError, match="image 2500 "):
        open_images(tmp_path / "a.npy")


def test_channels_of_our_own_samples_are_known(tmp_path: Path) -> None:
    """Three pixels wide, so that the axes do not tell; ours are channels first."""
    samples = np.random.default_rng(0).normal(0, 0.5, (5, 1, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", samples=samples)
    assert torch.equal(open_images(tmp_path / "a.npz")[0], torch.from_numpy(samples[0]))


def test_what_is_not_there_or_damaged_costs_one_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", COLOUR)
    np.save(tmp_path / "a.npy", COLOUR)
    for name in ("a.npz", "a.npy"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "a.npz": "cannot be read",
        "a.npy": "cannot be read",
        "text.npz": "cannot be read",
        "empty.npy": "cannot be read",
        "text.zip": "cannot be read",
        "folder": "holds no images",
        "nowhere": "does not exist: give a folder",
        "nowhere.npz": "does not exist: give a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            open_images(tmp_path / name)
