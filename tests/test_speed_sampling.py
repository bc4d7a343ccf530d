"""The sections of the benchmark of speed on solvers and on the Fréchet distance run, and compare equal things."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SPEED = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"


@pytest.fixture
def section(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(SPEED))
    # Other folders have files of these names too.
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("section", ["frechet"], indirect=True)
def test_all_ways_to_the_frechet_distance_find_the_same(section: ModuleType) -> None:
    rows = section.rows(quick=True)
    assert {row.against for row in rows} == {"ours"} and len(rows) == 2 * (len(section.WAYS) - 1)
    # Singular covariances, of 40 images in 64 dimensions, cost the others digits.
    assert all(row.details["off_ours"] < (1e-3 if " 40 images" in row.name else 1e-5) for row in rows)
    assert all(row.ratio > 0 for row in rows)


@pytest.mark.parametrize("section", ["sampling"], indirect=True)
def test_solvers_are_compared_at_equal_evaluations_and_from_equal_noise(section: ModuleType) -> None:
    rows = {row.name: row for row in section.rows(quick=True)}
    for name in ("Heun", "DEIS", "ancestral"):
        assert rows[f"{name}, 11 evaluations"].against == "11 evaluations of the network"
    yardstick, deis = rows["Heun, 5 evaluations"], rows["DEIS, 3 evaluations"]
    assert yardstick.ratio == 1 and deis.details["fd"] / yardstick.details["fd"] == pytest.approx(deis.ratio, rel=1e-3)
    assert "rms_from_end_of_flow" in deis.details
    assert "rms_from_end_of_flow" not in rows["ancestral, 2 evaluations"].details
