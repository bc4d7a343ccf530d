"""Files that are there either whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from lightning_tweedie.errors import UserError

__all__ = ["write_whole"]


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


def _rename(draft: Path, path: Path) -> None:
    """Gives a file its name, unless another one has it."""
    try:
        os.link(draft, path)  # unlike a renaming, this fails where there is a file
    except FileExistsError:
        raise
    except OSError:  # some file systems know no links
        path.touch(exist_ok=False)
        draft.replace(path)
