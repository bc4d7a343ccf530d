"""CIFAR-10: 50,000 + 10,000 colour images, 32 x 32, from the official archive."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.data.download import cache_folder, check_digest, download
from lightning_tweedie.errors import UserError

__all__ = ["download_cifar10", "read_cifar10"]

NAME = "cifar-10-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/" + NAME
MD5 = "c58f30108f718f92721af3b95e74349a"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries, numbers, strings and NumPy arrays; anything else, code above all, is refused."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the base class has it so
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        # NumPy 2 moved it; the archive was written long before.
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _archive(root: str | None) -> Path:
    path = Path(root).expanduser() if root else cache_folder("cifar-10")
    return path if path.suffix == ".gz" else path / NAME


def download_cifar10(root: str | None = None) -> None:
    """Fetches the official archive into the folder ``root``, or into the user's cache, unless it is there.

    Raises:
        UserError: It cannot be had, or has another digest.
    """
    download(URL, _archive(root), MD5)


def read_cifar10(root: str | None = None, train: bool = True) -> NDArray[np.uint8]:
    """Reads the images of the training or the test set, straight from the archive.

    Args:
        root: The archive, or the folder that it is in; default: the folder of earlier downloads.
        train: Training set (50,000) or test set (10,000).

    Returns:
        ``(N, 3, 32, 32)``, unsigned 8-bit.

    Raises:
        UserError: The archive is missing, or is not the official one.
    """
    path = _archive(root)
    if not path.is_file():
        raise UserError(
            f"CIFAR-10 is not at {str(path)!r}: set data.root to the folder with {NAME}, or set data.download to true"
        )
    check_digest(path, MD5)
    batches: dict[str, NDArray[np.uint8]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                wanted = name.startswith("data_batch_" if train else "test_batch")
                if wanted and (file := archive.extractfile(member)) is not None:
                    batch = _ArrayUnpickler(io.BytesIO(file.read()), encoding="bytes").load()
                    batches[name] = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return np.concatenate([batches[name] for name in sorted(batches)])
    except (tarfile.TarError, zlib.error, EOFError, OSError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise UserError(f"the archive {str(path)!r} cannot be read ({error}): download it again") from None
