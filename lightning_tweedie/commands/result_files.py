"""Where the results of `evaluate` go: a JSON file and its companions, of which none is overwritten unasked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_tweedie.commands.output import write_picture
from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    from lightning_tweedie.evaluation.results import Row
    from lightning_tweedie.pictures import Picture

__all__ = ["ResultFiles"]


class ResultFiles:
    """``result.json`` with ``result.csv``, ``result.md``, ``result.png`` and further pictures beside it.

    Args:
        out: Path of the JSON file.
        overwrite: Whether files of an earlier call may be replaced.

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

    @property
    def samples(self) -> Path:
        """The folder for samples and features, which later calls find there."""
        return self.json.with_name(f"{self.json.stem}_samples")

    def _beside(self, ending: str) -> Path:
        return self.json.with_name(self.json.stem + ending)

    def _all(self) -> list[Path]:
        return [self.json, *(self._beside(end) for end in (".csv", ".md", ".png")), *map(self._picture, self.PICTURES)]

    def _picture(self, name: str) -> Path:
        return self._beside(f"_{name}.png")

    def write(self, rows: Sequence[Row], pictures: dict[str, Picture]) -> None:
        """Writes everything and prints the table; to be called on one process.

        Args:
            rows: What was measured.
            pictures: Further pictures, by one of the names in :attr:`PICTURES`.
        """
        from lightning_tweedie.evaluation.results import markdown_table, plot, write_csv, write_json

        table = markdown_table(rows)
        # Restorations have a plot of their own: their NFE are those of a draw, not of a sample.
        samples, restorations = ([row for row in rows if (row.extractor is None) == of] for of in (False, True))
        for path in self._all():  # what is left of an earlier call would seem to belong to this one
            path.unlink(missing_ok=True)
        write_csv(rows, self._beside(".csv"))
        self._beside(".md").write_text(table)
        for its, path in ((samples, self._beside(".png")), (restorations, self._picture("restoration"))):
            if len({(row.subject, row.sampling, row.sampler, row.steps) for row in its}) > 1:
                write_picture(plot(its), path)
        for name, picture in pictures.items():
            write_picture(picture, self._picture(name))
        write_json(rows, self.json)  # the last: where it is, all is
        written = [path.name for path in self._all() if path.exists()]
        print(f"\n{table}\nWrote {', '.join(written)} to {self.json.parent}")
