"""A folder for what a command writes, and the device that it works on. Imports torch only when it is needed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    import torch

    from lightning_tweedie.pictures import Picture

__all__ = ["check_apart", "choose_device", "output_folder", "write_picture"]


def check_apart(out: str, images: str) -> None:
    """Refuses results among the images, where the next reading would take them for images.

    Args:
        out: Folder for a command's results.
        images: Folder of images, which is searched to any depth, or a file.

    Raises:
        UserError: The one lies in the other.
    """
    folder = Path(images).expanduser()
    if folder.is_dir() and Path(out).expanduser().resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"out = {out!r} lies in the folder of the input, which is searched to any depth: set --out to another one"
        )


def output_folder(out: str, overwrite: bool) -> Path:
    """Makes the folder for a command's results.

    Args:
        out: Where.
        overwrite: Whether files of an earlier call may be replaced.

    Raises:
        UserError: There are files in it already, or it cannot be made or written to.
    """
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"the folder {out!r} cannot be written to ({error}): set --out to another one") from None
    if not overwrite and any(folder.iterdir()):
        raise UserError(
            f"the folder {out!r} is not empty and nothing is overwritten unasked: set --out to another one, or give "
            "--overwrite true"
        )
    return folder


def write_picture(picture: Picture, path: Path) -> None:
    """Writes a picture into a folder from :func:`output_folder`, which has settled what may be replaced."""
    from lightning_tweedie.pictures import save

    path.unlink(missing_ok=True)
    save(picture, path)


def choose_device(device: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if device == "auto":
        accelerator = torch.accelerator.current_accelerator()
        # MPS has no float64, which the sampling grid needs.
        return torch.device("cuda" if accelerator is not None and accelerator.type == "cuda" else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"device = {device} cannot be used ({str(error).splitlines()[0]}): use auto, cpu or cuda"
        ) from None
