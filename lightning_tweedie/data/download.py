"""Files of known content from the web."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from pathlib import Path

from lightning_tweedie.digests import file_digest
from lightning_tweedie.errors import UserError

__all__ = ["cache_folder", "check_digest", "download"]


def cache_folder(name: str) -> Path:
    """Where files are kept for later runs: ``~/.cache/lightning_tweedie/<name>``, or below ``$XDG_CACHE_HOME``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_tweedie" / name


def check_digest(path: Path, md5: str) -> None:
    """Makes sure that a file is the one it claims to be.

    Raises:
        UserError: Its MD5 digest is another one.
    """
    if (found := file_digest(path, "md5")) != md5:
        raise UserError(f"the file {str(path)!r} has MD5 {found} instead of {md5}: remove it and download it again")


def download(url: str, path: Path, md5: str) -> None:
    """Fetches a file, unless it is there already, and checks its digest.

    The file appears under its name only when it is whole and right.

    Args:
        url: Where it comes from.
        path: Where it goes.
        md5: The digest it must have.

    Raises:
        UserError: The server cannot be reached, or sends something else.
    """
    if path.is_file():
        return check_digest(path, md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".part-")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=30) as answer:
            while block := answer.read(1 << 20):
                file.write(block)
        if (found := file_digest(part, "md5")) != md5:
            raise UserError(f"{url} sent a file with MD5 {found} instead of {md5}: try again later")
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{url} cannot be downloaded ({error}): fetch it elsewhere, put it at {str(path)!r} and try again"
        ) from None
    finally:
        Path(part).unlink(missing_ok=True)
