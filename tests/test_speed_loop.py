"""The benchmark of speed: the loop and the processes are measured at all, each against what it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

SPEED = Path(__file__).resolve().parent.parent / "benchmarks" / "speed"


def test_the_loop_and_the_processes_are_timed(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    command = [sys.executable, str(SPEED), "--sections", "loop", "processes", "--quick", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SPEED.parent.parent)}
    told = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert told.returncode == 0, told.stderr
    loop, *processes = json.loads(out.read_text())
    assert loop["against"] == "bare PyTorch loop" and loop["details"]["pairs"] == 2
    assert 0 < loop["low"] <= loop["ratio"] <= loop["high"]
    assert [(row["name"], row["against"]) for row in processes] == [
        ("2 processes, 1 thread each", "1 process, 1 thread"),
        ("1 process, 2 threads", "1 process, 1 thread"),
        ("2 processes, 1 thread each", "1 process, 2 threads"),
    ]
    two, threads, direct = (row["ratio"] for row in processes)
    assert abs(direct * threads / two - 1) < 1e-2  # one pair: the ratios are of the same three runs
