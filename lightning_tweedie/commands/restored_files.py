"""What `denoise` writes: for each file of images others like it, of which none is ever replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tweedie.errors import UserError
from lightning_tweedie.files import write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lightning_tweedie.data.images import ImageFiles
    from lightning_tweedie.data.scale import DataScale

__all__ = ["RestoredFiles"]

_UNFINISHED = "unfinished"


class RestoredFiles:
    """A folder with a tree like that of the input for each kind of result.

    The kinds are ``one_step``, and with draws ``mean``, ``std`` and ``draws/0``, ``draws/1``, ... Files have the name,
    the format, the type and the units of the input; only deviations, which are floats, go to TIFF where the format
    knows no floats. A file appears when all its images are done; until then they are kept in ``unfinished/``.

    Args:
        out: The folder.
        images: The input.
        scale: How its values become [-1, 1].
        draws: Number of draws.
        conditions: All that the results depend on, in plain types.

    Raises:
        UserError: There are files of something else, or of other conditions, or it cannot be written.
    """

    def __init__(self, out: str, images: ImageFiles, scale: DataScale, draws: int, conditions: dict[str, Any]) -> None:
        from lightning_tweedie.evaluation.store import ChunkStore

        self.folder = Path(out).expanduser()
        self.images = images
        self.scale = scale
        # The last one is written last: where it is, all are.
        self.kinds = [*(f"draws/{k}" for k in range(draws)), *(("std", "mean") if draws else ()), "one_step"]
        try:
            there = self.folder.is_dir() and any(self.folder.iterdir())
        except OSError as error:
            raise UserError(f"the folder {out!r} cannot be read ({error}): set --out to another one") from None
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"out = {out!r} is a file: set --out to a folder")
        if there and not (self.folder / "conditions.json").is_file():
            raise UserError(
                f"the folder {out!r} is not empty, and what is in it is not of this command, which overwrites nothing: "
                "set --out to another one"
            )
        ChunkStore(self.folder).claim(conditions)
        self._parts = ChunkStore(self.folder / _UNFINISHED)
        self._of_file: list[list[int]] = [[] for _ in images.files]
        for index, (number, _) in enumerate(images.items):
            self._of_file[number].append(index)
        self._missing = [
            set() if self._is_written(number) else {i for i in indices if self._part(i) is None}
            for number, indices in enumerate(self._of_file)
        ]
        for number, missing in enumerate(self._missing):
            if not missing and not self._is_written(number):
                self._gather(number)  # an earlier call was interrupted just before it did

    @property
    def pending(self) -> list[int]:
        """Numbers of the images that are left to do, in order."""
        return sorted(index for missing in self._missing for index in missing)

    def add(self, index: int, results: dict[str, Tensor]) -> None:
        """Keeps what was made of an image.

        Args:
            index: Its number.
            results: For each kind a result ``(C, H, W)``, float32, on the scale of [-1, 1].
        """
        import torch

        rows = torch.stack([results[kind] for kind in self.kinds])
        number = self.images.items[index][0]
        self._missing[number].discard(index)
        if len(self._of_file[number]) == 1:
            return self._write(number, [rows])
        self._parts.write(self._name(index), rows)
        if not self._missing[number]:
            self._gather(number)

    def read(self, kind: str, index: int) -> Tensor:
        """A result that was written, ``(C, H, W)`` on the scale of [-1, 1]."""
        import torch

        from lightning_tweedie.data.images import ImageFolder

        number, inside = self.images.items[index]
        written = ImageFolder(self._path(kind, number), self.images.channels, self.images.key, convert=False)
        if kind == "std":
            return torch.from_numpy(written.raw(inside) / self.scale.unit).float()
        return replace(self.scale, dtype=written.dtype.name).scaled(written.raw(inside))

    def _name(self, index: int) -> str:
        number, inside = self.images.items[index]
        return f"{self.images.files[number]}.{inside}"

    def _part(self, index: int) -> Tensor | None:
        rows = self._parts.read(self._name(index))
        return rows if rows is not None and len(rows) == len(self.kinds) else None

    def _path(self, kind: str, number: int) -> Path:
        name = self.images.files[number]
        return self.folder / kind / (name if kind != "std" or self._holds_floats(name) else f"{name}.tif")

    @staticmethod
    def _holds_floats(name: str) -> bool:
        import numpy as np

        from lightning_tweedie.data.formats.registry import find_format

        kind = find_format(name)
        return kind is not None and kind.holds(np.dtype(np.float32))

    def _is_written(self, number: int) -> bool:
        return self._path(self.kinds[-1], number).exists()

    def _gather(self, number: int) -> None:
        """Writes a file of several images, all of which are there."""
        parts = [self._part(index) for index in self._of_file[number]]
        self._write(number, [part for part in parts if part is not None])
        for index in self._of_file[number]:
            (self.folder / _UNFINISHED / f"{self._name(index)}.npy").unlink(missing_ok=True)

    def _write(self, number: int, items: list[Tensor]) -> None:
        """All kinds of results of one file.

        Args:
            number: The file's number.
            items: For each of its images the results, ``(kinds, C, H, W)``.
        """
        from lightning_tweedie.data.formats.registry import find_format
        from lightning_tweedie.data.formats.stored import Stored

        stored, layout = self.images.open(number)
        # Floats of several precisions may be in one folder.
        kept = self.scale.dtype if stored.dtype.kind != "f" else stored.dtype.name
        scale = replace(self.scale, dtype=kept)
        for row, kind in enumerate(self.kinds):
            path = self._path(kind, number)
            if path.exists():
                continue  # an earlier call was interrupted between two kinds
            images: list[NDArray[Any]]
            if kind == "std":
                images = [self.scale.in_units(item[row].numpy()) for item in items]
            else:
                images = [scale.restored(item[row]) for item in items]
            array = layout.join(images)
            like = stored if path.name == Path(self.images.files[number]).name else Stored.whole(array, layout.axes)
            into = find_format(path.name)
            assert into is not None
            write_whole(path, into.write(array, like), replace=False)

    def clear(self) -> None:
        """Removes the folder of unfinished images, in which there are none any more."""
        root = self.folder / _UNFINISHED
        for folder in sorted(root.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        if root.is_dir():
            root.rmdir()
