"""Where the results of `evaluate` go: a JSON file and its companions, of which none is overwritten unasked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_tweedie.errors import UserError
from lightning_tweedie.files import write_whole

if TYPE_CHECKING:
    from lightning_tweedie.evaluation.results import Row
    from lightning_tweedie.pictures import Picture

__all__ = ["ResultFiles"]


class ResultFiles:
    """``result.json`` with ``result.csv``, ``result.md``, ``result.png`` and further pictures beside it.

    Args:
        out: Path of the JSON file.
        overwrite: Whether the JSON file, and those that it says were written with it, may be replaced.

    Raises:
        UserError: The name has another ending, its folder cannot be made, or there are files already.
    """

    PICTURES = ("restoration", "calibration", "neighbours")

    def __init__(self, out: str, overwrite: bool) -> None:
        self.json = Path(out).expanduser()
        if self.json.suffix != ".json":
            raise UserError(f"out = {out!r} is to be a JSON file: give a path that ends in .json, such as result.json")
        try:
            self.json.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder of {out!r} cannot be made ({error}): set --out to another place") from None
        there = [path for path in self._all() if path.exists()]
        if there and not overwrite:
            raise UserError(
                f"{str(there[0])!r} exists already and nothing is overwritten unasked: set --out to another file, or "
                "give --overwrite true"
            )
        self._overwrite = overwrite
        self._earlier = self._written_earlier()
        for path in there:
            if path != self.json and path not in self._earlier:
                raise UserError(
                    f"{str(path)!r} is in the way, and {self.json.name} does not say that it was written with it: move "
                    "it, or set --out to another file"
                )

    @property
    def samples(self) -> Path:
        """The folder for samples and features, which later calls find there."""
        return self.json.with_name(f"{self.json.stem}_samples")

    def _beside(self, ending: str) -> Path:
        return self.json.with_name(self.json.stem + ending)

    def _all(self) -> list[Path]:
        return [self.json, *(self._beside(end) for end in (".csv", ".md", ".png")), *map(self._picture, self.PICTURES)]

    def _written_earlier(self) -> list[Path]:
        """What an earlier call has written beside its JSON file, by the testimony of that file."""
        try:
            names = json.loads(self.json.read_text(encoding="utf-8"))["files"]
            return [path for path in self._all() if path != self.json and path.name in names]
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is another one
            return []

    def _picture(self, name: str) -> Path:
        return self._beside(f"_{name}.png")

    def write(self, rows: Sequence[Row], pictures: dict[str, Picture]) -> None:
        """Writes everything and prints the table; to be called on one process.

        Args:
            rows: What was measured.
            pictures: Further pictures, by one of the names in :attr:`PICTURES`.
        """
        from lightning_tweedie.evaluation.results import markdown_table, plot, write_csv, write_json
        from lightning_tweedie.pictures import save

        table = markdown_table(rows)
        # Restorations have a plot of their own: their NFE are those of a draw, not of a sample.
        samples, restorations = ([row for row in rows if (row.extractor is None) == of] for of in (False, True))
        drawn = {self._picture(name): picture for name, picture in pictures.items()}
        for its, path in ((samples, self._beside(".png")), (restorations, self._picture("restoration"))):
            if len({(row.subject, row.sampling, row.sampler, row.steps) for row in its}) > 1:
                drawn[path] = plot(its)
        # All is known; now it is written, what was there before is replaced, and what is left of that is removed.
        write_csv(rows, csv := self._beside(".csv"), replace=csv in self._earlier)
        write_whole(text := self._beside(".md"), table.encode(), replace=text in self._earlier)
        for path, picture in drawn.items():
            if path in self._earlier:
                path.unlink(missing_ok=True)
            save(picture, path)
        written = [csv, text, *drawn]
        for path in self._earlier:
            if path not in written:
                path.unlink(missing_ok=True)
        names = [path.name for path in written]
        write_json(rows, self.json, files=names, replace=self._overwrite)  # the last: where it is, all is
        print(f"\n{table}\nWrote {', '.join([self.json.name, *names])} to {self.json.parent}")
