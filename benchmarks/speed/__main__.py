"""What everything costs, each thing timed in turns with what it is compared to.

    python benchmarks/speed --out docs/benchmarks/speed.json

Each section runs in a process of its own, on an otherwise idle machine. The rows of sections that are not run stay as
they are in the file, so that one can be measured again. A page with the tables is written beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from page import page
from tqdm import tqdm

from lightning_tweedie.evaluation.results import versions
from lightning_tweedie.files import write_whole

HERE = Path(__file__).resolve().parent
SECTIONS = {
    "objectives": "training steps of each objective",
    "consistency": "the consistency term as published",
    "networks": "our U-Net against its peers",
    "loop": "the training loop",
    "data": "the data path",
    "sampling": "solvers",
    "frechet": "the Fréchet distance",
    "startup": "start-up of the commands",
    "processes": "two processes",
}
"""Files beside this one, each with a function ``rows() -> list[Row]``."""


def measure(section: str, quick: bool) -> list[dict[str, Any]]:
    """The rows of a section, measured in this process."""
    sys.path.insert(0, str(HERE))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    conditions = {
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit.stdout.strip(),
        "command": f"python benchmarks/speed --sections {section}",
    }
    rows = importlib.import_module(section).rows(quick=quick)
    return [{**row.as_dict(), **conditions} for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS), help="all when absent")
    parser.add_argument("--quick", action="store_true", help="few calls of small things, to see whether it runs")
    parser.add_argument("--section", choices=SECTIONS, help="measure this one alone, in this process; print its rows")
    parser.add_argument("--out", type=Path, help="file for all rows as JSON; the page goes beside it")
    args = parser.parse_args(argv)
    if args.section:
        print(json.dumps(measure(args.section, args.quick)))
        return
    rows: dict[str, list[dict[str, Any]]] = {}
    if args.out and args.out.is_file():
        for row in json.loads(args.out.read_text()):
            rows.setdefault(row["section"], []).append(row)
    failed = []
    for section in tqdm(args.sections, desc="sections"):
        command = [sys.executable, str(HERE), "--section", section, *(["--quick"] if args.quick else [])]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if told.returncode:
            failed.append(section)
            continue
        rows[section] = json.loads(told.stdout.splitlines()[-1])
        ordered = [row for name in SECTIONS for row in rows.get(name, [])]
        if args.out:
            write_whole(args.out, (json.dumps(ordered, indent=1) + "\n").encode())
            command = shlex.join(["python", "benchmarks/speed", *(sys.argv[1:] if argv is None else argv)])
            write_whole(args.out.with_suffix(".md"), page(ordered, SECTIONS, args.out.name, command).encode())
    print(page([row for name in SECTIONS for row in rows.get(name, [])], SECTIONS, "the file", ""))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
