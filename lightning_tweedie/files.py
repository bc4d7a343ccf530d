"""Files and folders that are there either whole or not at all, and the content of NumPy's."""

from __future__ import annotations

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.errors import UserError

__all__ = ["new_folder", "npy_bytes", "write_whole"]


def npy_bytes(array: NDArray[Any]) -> bytes:
    """The content of a ``.npy`` file that holds the array; nothing that could run code is written."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def write_whole(path: Path, content: bytes | memoryview, *, replace: bool = True) -> None:
    """Writes a file that is there either whole or not at all, whatever interrupts the writing.

    Args:
        path: The file; its folder is made if need be.
        content: What it is to hold.
        replace: Whether a file of that name may be replaced.

    Raises:
        UserError: It cannot be written, or is there already and may not be replaced.
    """
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            if replace:
                draft.replace(path)
            else:
                _rename(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise UserError(f"{path} exists already and is not overwritten: move it or choose another name") from None
        raise UserError(f"{str(path)!r} cannot be written ({error}): make room, or choose another place") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that is there either with everything that is written into it or not at all.

    Args:
        path: The folder; it may be there if it is empty.

    Yields:
        Where to write: a draft beside it, which gets its name when the block ends well and is removed otherwise.

    Raises:
        UserError: There is something of that name already, or the folder cannot be written.
    """
    path = path.expanduser().absolute()
    taken = UserError(f"{str(path)!r} exists already and is not overwritten: move it or choose another name")
    draft = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise taken
        draft.mkdir(parents=True)
        try:
            yield draft
            draft.rename(path)  # in the place of nothing, or of an empty folder
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise taken from None
        raise UserError(f"{str(path)!r} cannot be written ({error}): make room, or choose another place") from None


def _rename(draft: Path, path: Path) -> None:
    """Gives a file its name, unless another one has it."""
    try:
        os.link(draft, path)  # unlike a renaming, this fails where there is a file
    except FileExistsError:
        raise
    except OSError:  # some file systems know no links
        path.touch(exist_ok=False)
        draft.replace(path)
