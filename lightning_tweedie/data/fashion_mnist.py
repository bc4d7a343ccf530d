"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28 x 28 (arXiv 1708.07747)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.download import cache_folder, download
from lightning_tweedie.errors import UserError

__all__ = ["DEBIAN", "download_fashion_mnist", "read_fashion_mnist", "read_idx"]

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
#: The official files and their MD5 digests. (Debian packs the same bytes anew, so its files have other digests.)
DIGESTS = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
}
#: Where Debian's and Ubuntu's package dataset-fashion-mnist puts them.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads an array of bytes in the IDX format, plain or gzipped.

    Raises:
        UserError: The file is damaged or is something else.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"the file {str(path)!r} cannot be read ({error}): remove it and get it again") from None
    start = 4 + 4 * rank
    if zeros or kind != 8 or len(content) - start != math.prod(shape):
        raise UserError(f"the file {str(path)!r} is not a whole IDX file of bytes: remove it and get it again")
    return np.frombuffer(bytearray(content), np.uint8, offset=start).reshape(shape)


def _download_folder(root: str | None) -> Path:
    return Path(root).expanduser() if root else cache_folder("fashion-mnist")


def download_fashion_mnist(root: str | None = None) -> None:
    """Fetches the official image files into ``root``, or a folder in the user's cache, unless they are there.

    Raises:
        UserError: They cannot be had, or have other digests.
    """
    for name, md5 in DIGESTS.items():
        download(URL + name, _download_folder(root) / name, md5)


def read_fashion_mnist(root: str | None = None, train: bool = True) -> NDArray[np.uint8]:
    """Reads the images of the training or the test set.

    Args:
        root: Folder with the files under their official names, gzipped or not; default: Debian's path, then the
            folder of earlier downloads.
        train: Training set (60,000) or test set (10,000).

    Returns:
        ``(N, 1, 28, 28)``, unsigned 8-bit.

    Raises:
        UserError: The files are nowhere, or damaged.
    """
    name = f"{'train' if train else 't10k'}-images-idx3-ubyte"
    # The last one is where torchvision keeps them.
    folders = [DEBIAN, _download_folder(None)]
    if root is not None:
        folders = [Path(root).expanduser(), Path(root).expanduser() / "FashionMNIST" / "raw"]
    for path in (folder / file for folder in folders for file in (name + ".gz", name)):
        if path.is_file():
            images = read_idx(path)
            if images.ndim != 3 or images.shape[1:] != (28, 28):
                raise UserError(
                    f"the file {str(path)!r} holds an array {images.shape}, not 28 x 28 images: get it again"
                )
            return images[:, None]
    raise UserError(
        f"Fashion-MNIST ({name}.gz) is not in {' or '.join(str(f) for f in folders)}: install Debian's package "
        "dataset-fashion-mnist, or set data.root to the folder with the files, or set data.download to true"
    )
