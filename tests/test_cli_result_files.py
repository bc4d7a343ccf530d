"""The files of `evaluate`: those of an earlier call are replaced when asked for, and those of others never."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_tweedie.commands.result_files import ResultFiles
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.results import Row

ONE = [Row("a", "fid", 1.0, extractor="inception")]
TWO = [*ONE, Row("b", "fid", 2.0, extractor="inception")]
PICTURE = np.zeros((4, 4, 3), np.uint8)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_later_call_replaces_what_an_earlier_one_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    ResultFiles(str(out), False).write(TWO, {"neighbours": PICTURE})
    first = {"result.json", "result.csv", "result.md", "result.png", "result_neighbours.png"}
    assert names(tmp_path) == first
    assert set(json.loads(out.read_text())["files"]) == first - {"result.json"}
    with pytest.raises(UserError, match="exists already and nothing is overwritten unasked"):
        ResultFiles(str(out), False)
    ResultFiles(str(out), True).write(ONE, {})
    # What is left of the first would seem to belong to the second.
    assert names(tmp_path) == {"result.json", "result.csv", "result.md"}
    assert json.loads(out.read_text())["fid"] == 1.0
    assert "Wrote result.json, result.csv, result.md to" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["result.md", "result.png", "result_neighbours.png", "result.csv"])
@pytest.mark.parametrize("json_of_another", [None, "{}", '{"files": 3}', "[]", "no JSON"])
def test_files_of_others_stay(name: str, json_of_another: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    if json_of_another is not None:
        (tmp_path / "result.json").write_text(json_of_another)
    with pytest.raises(UserError, match=f"{name}' is in the way, and result.json does not say"):
        ResultFiles(str(tmp_path / "result.json"), True)
    assert (tmp_path / name).read_text() == "mine"


def test_what_appears_during_the_work_of_an_earlier_call_is_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    ResultFiles(str(out), False).write(ONE, {})
    (tmp_path / "result.png").write_text("mine")  # which the call before had not written
    with pytest.raises(UserError, match="result.png' is in the way"):
        ResultFiles(str(out), True)


def test_a_plot_that_fails_leaves_the_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "result.json"
    ResultFiles(str(out), False).write(TWO, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(rows: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lightning_tweedie.evaluation.results.plot", broken)
    with pytest.raises(MemoryError):
        ResultFiles(str(out), True).write(TWO[::-1], {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["result.json", "result.csv", "result.md", "result.png"])
def test_what_somebody_writes_meanwhile_stays(name: str, tmp_path: Path) -> None:
    files = ResultFiles(str(tmp_path / "result.json"), False)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        files.write(TWO, {})
    assert (tmp_path / name).read_text() == "mine"


def test_a_name_must_end_in_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is to be a JSON file"):
        ResultFiles(str(tmp_path / "result.csv"), False)
