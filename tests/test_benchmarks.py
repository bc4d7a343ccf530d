"""The benchmark of methods: its yardsticks are right, and a finished cell is never run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

METHODS = Path(__file__).resolve().parent.parent / "benchmarks" / "methods"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(METHODS))


@pytest.mark.parametrize("name", ["ring", "moons", "spectrum", "blobs"])
def test_the_exact_denoiser_is_perfect_and_another_is_not(name: str) -> None:
    from oracle import evaluate
    from problems import PROBLEMS

    problem = PROBLEMS[name]()
    clean = problem.oracle.sample(10_000, torch.Generator().manual_seed(1))
    assert float(clean.std()) == pytest.approx(problem.sigma_data, rel=0.05)
    exact = evaluate(problem, problem.oracle, clean, 0)
    assert all(value == 0 for metric, value in exact.items() if metric.startswith("excess_risk"))
    assert exact.get("spread", 1.0) == pytest.approx(1.0, abs=0.02)
    noisy = clean + problem.sigma_n * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    other = evaluate(problem, lambda x, level: x, noisy, 0)
    assert other["excess_risk_0.2"] > 0.05
    assert other["sliced_wasserstein"] > 1.5 * exact["sliced_wasserstein"]


def test_every_method_has_its_objective() -> None:
    from registry import METHODS as METHODS_BY_NAME
    from registry import make_objective

    for method in METHODS_BY_NAME.values():
        assert make_objective(method.objective).terms
        assert method.first is None or make_objective(method.first).terms


def test_finished_cells_are_read_and_others_are_run(tmp_path: Path) -> None:
    options = ["--problems", "ring", "--methods", "clean", "sure", "--seeds", "1", "--steps", "20", "--batch", "32"]
    options += ["--cells", str(tmp_path / "cells"), "--out", str(tmp_path / "oracle.json")]
    call = [sys.executable, str(METHODS), *options]
    subprocess.run(call, check=True, capture_output=True)
    (cell,) = tmp_path.glob("cells/ring-sure-*.json")
    row = json.loads(cell.read_text())
    assert row["images_seen"] == 20 * 32 and row["method"] == "sure"
    cell.write_text(json.dumps(row | {"metrics": row["metrics"] | {"spread": 4321.0}}))
    subprocess.run(call, check=True, capture_output=True)
    assert [its["metrics"]["spread"] == 4321.0 for its in json.loads((tmp_path / "oracle.json").read_text())] == [
        False,
        True,
    ]
    assert "4321" in (tmp_path / "oracle.md").read_text() and (tmp_path / "oracle.png").stat().st_size > 1000
