"""Rows of results: nothing is lost on the way into files, tables and plots."""

import csv
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.results import (
    Row,
    append_to_run,
    markdown_table,
    plot,
    versions,
    write_csv,
    write_json,
)

FULL = Row(
    subject="last.ckpt",
    metric="fid",
    value=12.345678901234567,
    standard_error=0.1,
    n=10000,
    n_reference=50000,
    extractor="inception",
    extractor_digest="7ff4",
    resize="bilinear TF1 299",
    sampling="full",
    sampler="heun",
    steps=18,
    nfe=35,
    seed=0,
    ema_half_life=1000.0,
    checkpoint="runs/last.ckpt",
    checkpoint_digest="abcd",
    step=2000,
    sigma_n=0.2,
    reference_digest="ef",
    generated_digest="01",
    device="cpu",
    seconds=12.5,
    versions=versions(),
)


def test_json_and_csv_hold_every_field(tmp_path: Path) -> None:
    assert None not in asdict(FULL).values(), "a field is missing in this test"
    rows = [FULL, Row("last.ckpt", "kid", 1e-30)]
    write_json(rows, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["rows"] == [{**asdict(row), "note": None} for row in rows], "to the last digit"
    assert (content["fid"], content["kid"]) == (FULL.value, 1e-30)
    write_csv(rows, tmp_path / "deep/er/a.csv")
    with (tmp_path / "deep/er/a.csv").open() as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [*(field.name for field in fields(Row)), "note"]
    for row, line in zip(rows, read, strict=True):
        for name, value in asdict(row).items():
            assert line[name] == ("" if value is None else str(value))
            assert not isinstance(value, float) or float(line[name]) == value


def test_what_is_not_finite_is_null_and_says_so(tmp_path: Path) -> None:
    rows = [Row("a", "fid", math.nan), Row("a", "psnr", math.inf, standard_error=math.nan)]
    write_json(rows, tmp_path / "a.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content["fid"] is None and content["rows"][0]["value"] is None
    assert content["rows"][0]["note"] == "value is nan"
    assert content["rows"][1]["note"] == "value is inf; standard_error is nan"
    append_to_run(rows, tmp_path)
    line = json.loads((tmp_path / "quality.jsonl").read_text().splitlines()[0], parse_constant=refuse)
    assert line["note"] == "value is nan"
    assert "| nan" in markdown_table(rows) and "| inf" in markdown_table(rows)
    write_csv(rows, tmp_path / "a.csv")
    assert "value is nan" in (tmp_path / "a.csv").read_text()


def test_values_stand_at_the_top_only_where_their_names_say_it_all(tmp_path: Path) -> None:
    for i, rows in enumerate(
        (
            [Row("a", "fid", 1.0), Row("b", "fid", 2.0)],
            [Row("a", "fid", 1.0, sampling="full"), Row("a", "fid", 2.0, sampling="truncated")],
        )
    ):
        write_json(rows, tmp_path / f"{i}.json")
        assert list(json.loads((tmp_path / f"{i}.json").read_text())) == ["rows"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for write in (write_json, write_csv):
        path = tmp_path / write.__name__
        path.write_text("precious")
        with pytest.raises(UserError, match="exists already and is not overwritten"):
            write([FULL], path)
        assert path.read_text() == "precious"
        with pytest.raises(UserError, match="cannot be written"):
            write([FULL], path / "below a file")


def test_the_table_of_a_run_grows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    append_to_run([FULL], folder)
    append_to_run([FULL, FULL], folder)
    lines = (folder / "quality.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [FULL.plain()] * 3
    write_csv([FULL] * 3, tmp_path / "at once.csv")
    assert (folder / "quality.csv").read_text() == (tmp_path / "at once.csv").read_text()


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]


def test_every_value_has_its_place_in_the_table() -> None:
    rows = []
    for checkpoint in ("a", "b"):
        for sampling, nfe in (("full", 35), ("truncated", 21)):
            for metric in ("fid", "recall"):
                value = float(len(rows))
                rows.append(Row(checkpoint, metric, value, sampling=sampling, sampler="heun", steps=18, nfe=nfe, n=500))
        rows.append(Row(checkpoint, "psnr_mean", 30.0 + len(rows), 0.123, sampler="ancestral", nfe=18, n=64, seed=0))
    table = markdown_table(rows)
    samples, restorations = table.split("\n\n|")
    found = cells(samples)
    assert found[0] == ["", "sampling", "sampler", "levels", "nfe", "fid", "recall"]
    assert found[2:] == [
        ["a", "full", "heun", "18", "35", "0", "1"],
        ["a", "truncated", "heun", "18", "21", "2", "3"],
        ["b", "full", "heun", "18", "35", "5", "6"],
        ["b", "truncated", "heun", "18", "21", "7", "8"],
    ]
    assert samples.endswith("fid, recall: n = 500")
    assert cells(restorations)[2:] == [
        ["a", "ancestral", "18", "34.00 ± 0.12"],
        ["b", "ancestral", "18", "39.00 ± 0.12"],
    ]
    assert restorations.endswith("psnr_mean: n = 64, seed 0\n")


def test_a_single_subject_is_read_downwards() -> None:
    rows = [
        Row("x.npz", metric, 0.5, n=n, n_reference=7, extractor="e") for metric, n in (("a", 5), ("b", 6), ("c", 5))
    ]
    table = markdown_table(rows)
    assert cells(table) == [["", "x.npz"], ["---", "-------"], ["a", "0.5"], ["b", "0.5"], ["c", "0.5"]]
    assert "a, c: n = 5, 7 reference images, extractor e\nb: n = 6, " in table


def test_many_values_of_few_subjects_are_read_downwards() -> None:
    rows = [Row(subject, f"m{i}", float(i), sampling="full") for i in range(9) for subject in "ab"]
    found = cells(markdown_table(rows))
    assert found[0] == ["", "a, sampling full", "b, sampling full"]
    assert found[2:] == [[f"m{i}", str(i), str(i)] for i in range(9)]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (12.3456, 0.0312, "12.346 ± 0.031"),
        (12.3456, 1.23, "12.3 ± 1.2"),
        (12.3456, 45.6, "12 ± 46"),
        (0.00012345, 0.0000067, "0.0001234 ± 0.0000067"),
        (0.98765432, None, "0.9877"),
        (1.0, 0.0, "1"),
        (math.nan, 0.1, "nan"),
        (3.0, math.nan, "3"),
    ],
)
def test_digits_are_those_that_the_error_makes_sense_of(value: float, error: float | None, shown: str) -> None:
    assert cells(markdown_table([Row("a", "fid", value, error)]))[2] == ["fid", shown]


def drawn(rows: list[Row]) -> list[tuple[str | None, list[list[tuple[float, float]]]]]:
    """What each panel's horizontal axis says, and the points of its curves, as matplotlib holds them."""
    from unittest.mock import patch

    from matplotlib.figure import Figure

    figures = []
    init = Figure.__init__

    def keep(self: Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)
        init(self, *args, **kwargs)  # type: ignore[arg-type]

    with patch.object(Figure, "__init__", keep):
        picture = plot(rows)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3, "an empty picture"
    return [
        (axes.get_xlabel(), [list(zip(*c.lines[0].get_data(), strict=True)) for c in axes.containers])  # type: ignore[attr-defined]
        for axes in figures[0].axes
    ]


def test_values_at_several_nfe_are_drawn_against_it() -> None:
    rows = [
        Row("a", "fid", 10 / steps, 0.1, sampling=s, sampler="heun", steps=steps, nfe=2 * steps - 1, step=5)
        for s in ("full", "truncated")
        for steps in (18, 6)
    ]
    ((label, curves),) = drawn([*rows, Row("a", "fid", math.nan, sampling="full", sampler="heun", steps=9, nfe=17)])
    assert label == "NFE"
    assert curves == [[(11, 10 / 6), (35, 10 / 18)]] * 2, "one curve each, in order, without what is no number"


def test_values_of_several_checkpoints_are_drawn_against_the_step() -> None:
    rows = [
        Row(f"{step}.ckpt", "fid", 100 / step, checkpoint=f"runs/{run}/{step}.ckpt", step=step, nfe=35, sampler="heun")
        for run in "ab"
        for step in (10, 20)
    ]
    ((label, curves),) = drawn(rows)
    assert label == "training step" and curves == [[(10, 10), (20, 5)]] * 2


def test_other_values_have_a_line_each() -> None:
    rows = [Row(name, metric, value) for metric in ("fid", "kid") for name, value in (("a", 1.0), ("b", 2.0))]
    assert drawn(rows) == [("", [[(1.0, 0)], [(2.0, 1)]])] * 2
    assert drawn([FULL]) == [("", [[(FULL.value, 0)]])]
    assert drawn([Row("a", "fid", math.nan)]) == [("", [[]])]
