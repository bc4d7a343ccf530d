"""The benchmarks of the data path and of start-up run, and count what they say they count."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_tweedie.checkpoint import read_checkpoint

SPEED = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SPEED))


def quick(section: str) -> list[dict]:
    """In a process of its own, as the benchmark runs it."""
    told = subprocess.run(
        [sys.executable, str(SPEED), "--section", section, "--quick"], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout.splitlines()[-1])


def test_the_data_path() -> None:
    rows = quick("data")
    compared = [row for row in rows if row["against"]]
    rates = {(row["name"], row["details"]["workers"]): row["ratio"] for row in rows if not row["against"]}
    assert len(rates) == 6 and len(compared) == 2
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    # A step takes what it takes: even so small a loader under so small a network is faster.
    assert all(row["ratio"] > 1 for row in compared if row["against"] == "its training step")


def test_the_rate_is_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import data as section
    import numpy as np

    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(section.time, "perf_counter", lambda: float(next(clock)))
    images = section.opened(
        lambda: section.InMemory(np.arange(640 * 16, dtype=np.uint8).reshape(640, 1, 4, 4), holdout=0)
    )
    # Of every stretch three looks at the clock are within the second, and two batches.
    row = section.rate("x", images, seconds=1.0, pairs=2)
    assert row.ratio == row.low == row.high == pytest.approx(64 / 1.5)


def test_start_up() -> None:
    rows = quick("startup")
    assert [row["name"] for row in rows] == ["--help", "sample --help"]
    assert all(0 < row["ratio"] for row in rows)


def test_the_first_step_is_one_step(tmp_path: Path) -> None:
    from startup import FIRST_STEP, seconds

    assert seconds([*FIRST_STEP, "--runs", str(tmp_path)], times=0) == []
    assert read_checkpoint(tmp_path / "demo/fit_0/checkpoints/last.ckpt")["global_step"] == 1
