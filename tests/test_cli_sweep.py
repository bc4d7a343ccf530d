"""A sweep without a server: the agent's runs, interrupted and continued, and what is told about those that fail."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CONFIGS, RING, assert_same_state
from forked import Forked, forked
from PIL import Image

from lightning_tweedie.cli import main
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.sweeps import run as run_module
from lightning_tweedie.sweeps import runner
from lightning_tweedie.sweeps.run import Run
from lightning_tweedie.sweeps.sweep_file import agent_command, read_sweep

SWEEP = {
    "program": "lightning_tweedie",
    "command": ["lightning_tweedie", "fit", "--config", "tiny.yaml", "${args}"],
    "method": "grid",
    "metric": {"name": "val/psnr_one_step", "goal": "maximize"},
    "parameters": {
        "data.sigma": {"values": [0.1, 0.2, 0.4]},
        "model.objective": {"values": [str(CONFIGS / f"objective/{name}.yaml") for name in ("naive", "ambient")]},
        "trainer.max_steps": {"value": 20},
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sweep is started."""
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    (tmp_path / "tiny.yaml").write_text(RING)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_three_levels_and_two_objectives_the_machine_goes_down_half_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "Popen", Forked)
    place = folder / "runs/sweep_sweep"
    # Two of the runs as an agent would call them; the second is the one that will be interrupted.
    sweep = read_sweep(folder / "sweep.yaml")
    theirs = [Run(sweep, point, place) for point in sweep.points(None, 0)[2:4]]
    for run in theirs:
        command = agent_command(sweep, run.point, folder / "p.json")
        assert main([*command[1:], "--name", run.name]) == 0

    def power_cut(module: TweedieModule, *_: object) -> None:
        if module.global_step == 13 and len(list(place.glob("*/run.json"))) == 3 and not (folder / "cut").exists():
            (folder / "cut").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TweedieModule, "on_train_batch_start", power_cut)
    _, status = os.waitpid(forked(lambda: main(["sweep", "sweep.yaml"])), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in place.glob("*/run.json")}
    assert len(finished) == 3
    assert len(list(place.iterdir())) == 4 + 4  # one has begun; and the table of three in its four formats

    capsys.readouterr()
    assert main(["sweep", "sweep.yaml"]) == 0
    told = capsys.readouterr().out
    assert "6 runs, 3 of them finished" in told
    # What was finished was not run again; what was interrupted went on from its last checkpoint.
    for path, before in finished.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    attempts = {path.name: sorted(p.name for p in path.glob("fit_*")) for path in place.iterdir() if path.is_dir()}
    (interrupted,) = [name for name, its in attempts.items() if its == ["fit_0", "fit_1"]]
    assert sorted(map(len, attempts.values())) == [1, 1, 1, 1, 1, 2]
    assert "after 10 steps" in (place / interrupted / "log.txt").read_text()

    # The runs are those of an agent, bit by bit.
    content = json.loads((place / "results.json").read_text())
    assert interrupted == theirs[1].name
    for run in theirs:
        reference = folder / "runs" / run.name / "fit_0"
        ours = run.directory / attempts[run.name][-1]
        assert_same_state(reference / "checkpoints/last.ckpt", ours / "checkpoints/last.ckpt")
        with (reference / "metrics.csv").open() as file:
            values = [float(row[sweep.metric]) for row in csv.DictReader(file) if row[sweep.metric]]
        (row,) = [row for row in content["runs"] if row["name"] == run.name]
        assert (row["state"], row["value"], row["parameters"]) == ("finished", values[-1], run.point)

    # One table and one picture of them.
    points = content["curves"]["points"]
    assert [(p["curve"], p["x"]) for p in points] == [(c, x) for c in ("ambient", "naive") for x in (0.1, 0.2, 0.4)]
    assert max(content["runs"], key=lambda row: row["value"])["name"] == content["best"]
    with (place / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row[sweep.metric]) for row in rows] == [row["value"] for row in content["runs"]]
    table = (place / "results.md").read_text()
    assert table in told
    assert all(run in table for run in attempts)
    assert len(Image.open(place / "results.png").convert("RGB").getcolors(1 << 20)) > 10


TRAINER = """
import os, signal, sys, time
from pathlib import Path

given = dict(zip(sys.argv, sys.argv[1:])) | dict(a.split("=", 1) for a in sys.argv if "=" in a)
parent = Path(given["--runs"], given["--name"])
alone = open(parent / "alone", "x")
number = len(list(parent.glob("fit_*")))
own = parent / f"fit_{number}"
(own / "checkpoints").mkdir(parents=True)
print("GPUs", os.environ.get("CUDA_VISIBLE_DEVICES"), "group", os.environ["WANDB_RUN_GROUP"])
step = int(Path(given["--ckpt_path"]).read_text()) if "--ckpt_path" in given else 0
def save(*_):
    if os.path.exists("stubborn"):
        return os.kill(os.getppid(), signal.SIGINT)
    (own / "checkpoints/interrupted.ckpt").write_text(str(step))
    os.unlink(parent / "alone")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
sigma = float(given["--data.sigma"])
with open("begun", "a") as begun:
    begun.write(f"{sigma}\\n")
while step < 10:
    step += 1
    if sigma == 0.2 and os.path.exists("fail"):
        os.unlink(parent / "alone")
        sys.exit("error: the disk is full")
    if sigma == 0.3 and step == 4 and number == 0 and os.path.exists("interrupt"):
        while open("begun").read().count("\\n") < 2:
            time.sleep(0.01)
        os.kill(os.getppid(), getattr(signal, open("interrupt").read()))
        time.sleep(0.2 if open("interrupt").read() == "SIGKILL" else 60)
    if sigma == 0.4 and number == 0 and os.path.exists("interrupt"):
        time.sleep(60)
(own / "metrics.csv").write_text(f"epoch,step,val/loss\\n0,{step},\\n0,{step},{1 + sigma}\\n")
os.unlink(parent / "alone")
"""
"""Trains nothing, but can be interrupted, goes on, fails, and is never there twice."""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program that an agent would start with ${program}."""
    # Where tests run in the background of a shell, this signal is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(runner, "PAUSE", 0.01)
    (tmp_path / "trainer.py").write_text(TRAINER)
    write(tmp_path, [0.1, 0.2])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    signal.signal(signal.SIGINT, before)


def write(folder: Path, values: list[float], **changes: Any) -> None:
    content = {
        "program": "trainer.py",
        "command": ["${env}", "${interpreter}", "${program}", "fit", "${args}"],
        "name": "levels",
        "method": "grid",
        "metric": {"name": "val/loss"},
        "parameters": {"data.sigma": {"values": values}},
        **changes,
    }
    (folder / "s.yaml").write_text(yaml.safe_dump(content))


def runs(folder: Path) -> dict[float, dict[str, Any]]:
    """The record of each run by its level."""
    records = [json.loads(path.read_text()) for path in folder.glob("out/*/run.json")]
    return {record["parameters"]["data.sigma"]: record for record in records}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_has_the_runs_save_their_state(trainer: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write(trainer, [0.3, 0.4, 0.1])
    (trainer / "interrupt").write_text(name)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", "s.yaml", "--out", "out", "--parallel", "2"])
    assert stopped.value.code == 128 + getattr(signal, name)
    assert signal.getsignal(signal.SIGINT) is before
    assert "The same command goes on" in capsys.readouterr().err
    assert {sigma: run["state"] for sigma, run in runs(trainer).items()} == {0.3: "interrupted", 0.4: "interrupted"}
    assert main(["sweep", "s.yaml", "--out", "out"]) == 0
    assert {sigma: run["attempts"] for sigma, run in runs(trainer).items()} == {0.3: 2, 0.4: 2, 0.1: 1}
    assert all(run["state"] == "finished" for run in runs(trainer).values())
    checkpoint = Path(runs(trainer)[0.3]["command"][-1])
    assert checkpoint.name == "interrupted.ckpt"
    assert checkpoint.read_text() == "4"
    assert "--ckpt_path" not in runs(trainer)[0.1]["command"]


def test_a_second_signal_ends_them_at_once(trainer: Path) -> None:
    write(trainer, [0.3, 0.4])
    (trainer / "interrupt").write_text("SIGINT")
    (trainer / "stubborn").touch()  # asked to save its state, it does not, and the user asks again
    with pytest.raises(SystemExit):
        main(["sweep", "s.yaml", "--out", "out", "--parallel", "2"])
    assert {(run["state"], run["exit_status"]) for run in runs(trainer).values()} == {("interrupted", -signal.SIGKILL)}


def test_a_run_that_outlives_its_sweep_is_waited_for(trainer: Path) -> None:
    write(trainer, [0.1, 0.3])
    (trainer / "interrupt").write_text("SIGKILL")
    _, status = os.waitpid(forked(lambda: main(["sweep", "s.yaml", "--out", "out"])), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    # It is still at work: a second one in its place would find that it is not alone, and fail.
    assert list(trainer.glob("out/*/alone"))
    assert main(["sweep", "s.yaml", "--out", "out"]) == 0
    assert {sigma: run["attempts"] for sigma, run in runs(trainer).items()} == {0.1: 1, 0.3: 1}


def test_one_that_fails_is_named_and_tried_again(trainer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(trainer, [0.1, 0.2, 0.5])
    (trainer / "fail").touch()
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "s.yaml", "--out", "out"])
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    (log,) = trainer.glob("out/sigma-0.2_*/log.txt")
    assert line == f"error: {log.parent.name} failed: the disk is full (its log is {log.relative_to(trainer)})"
    assert {sigma: run["state"] for sigma, run in runs(trainer).items()} == {
        **{0.1: "finished", 0.2: "failed", 0.5: "finished"}
    }
    table = (trainer / "out/results.md").read_text()
    (line,) = [line for line in table.splitlines() if "failed" in line]
    assert [cell.strip() for cell in line.split("|")] == ["", "0.2", "", "failed", log.parent.name, ""]
    (trainer / "fail").unlink()
    assert main(["sweep", "s.yaml", "--out", "out"]) == 0
    assert {sigma: run["attempts"] for sigma, run in runs(trainer).items()} == {0.1: 1, 0.2: 2, 0.5: 1}
    assert "the disk is full" in log.read_text()  # of the first attempt


def test_runs_at_a_time_and_their_gpus(trainer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    write(trainer, [0.1, 0.2, 0.5, 0.6])
    assert main(["sweep", "s.yaml", "--out", "out", "--parallel", "2"]) == 0
    logs = [path.read_text() for path in trainer.glob("out/*/log.txt")]
    assert {line for log in logs for line in log.splitlines() if line.startswith("GPUs")} == {
        "GPUs 4,6 group levels",
        "GPUs 5 group levels",
    }


def test_a_random_sweep_grows(trainer: Path) -> None:
    parameters = {"data.sigma": {"distribution": "log_uniform_values", "min": 0.05, "max": 1.0}}
    write(trainer, [], method="random", parameters=parameters)
    assert main(["sweep", "s.yaml", "--out", "out", "--count", "2"]) == 0
    first = set(runs(trainer))
    assert main(["sweep", "s.yaml", "--out", "out", "--count", "4"]) == 0
    assert len(runs(trainer)) == 4
    assert first < set(runs(trainer))
    assert all(run["attempts"] == 1 for run in runs(trainer).values())
    # Changed otherwise, it is another sweep, and what was there stays.
    write(trainer, [], method="random", parameters=parameters | {"other": {"value": 1}})
    assert main(["sweep", "s.yaml", "--out", "out", "--count", "1"]) == 0
    assert len(list(trainer.glob("out/*/run.json"))) == 5


def test_a_metric_that_nobody_logged(trainer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(trainer, [0.1], metric={"name": "val/lost"}, early_terminate={"type": "hyperband"})
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "s.yaml", "--out", "out"])
    assert ended.value.code == 1
    out, error = capsys.readouterr()
    assert "early_terminate" in out
    assert "val/lost" in error
    assert "logged val/loss" in error


def test_the_metric_over_seeds(trainer: Path) -> None:
    """Mean and standard error over the seeds of each level, by hand."""
    from lightning_tweedie.sweeps.results import averages

    seeds = {"values": [1, 2, 3]}
    parameters = {"data.sigma": {"values": [0.1, 0.5]}, "data.seed": seeds, "model.lr": {"values": [0.1, 0.2]}}
    write(trainer, [], parameters=parameters)
    sweep = read_sweep(trainer / "s.yaml")
    made = [Run(sweep, point, trainer / "out") for point in sweep.points(None, 0)]
    for run in made:
        seed, sigma, lr = (run.values[name] for name in ("data.seed", "data.sigma", "model.lr"))
        (run.directory / "fit_0").mkdir(parents=True)
        (run.directory / "fit_0/metrics.csv").write_text(f"step,val/loss\n1,99\n2,{10 * sigma + seed * lr}\n3,\n")
        (run.directory / "run.json").write_text('{"state": "finished"}')
    axis, points = averages(made)
    assert axis == "data.sigma"
    assert [(p.curve, p.x) for p in points] == [("lr 0.1", 0.1), ("lr 0.1", 0.5), ("lr 0.2", 0.1), ("lr 0.2", 0.5)]
    # Seeds 1, 2, 3 times the rate: their mean is twice it, and their standard deviation it.
    assert [p.mean for p in points] == pytest.approx([1.2, 5.2, 1.4, 5.4])
    assert [p.standard_error for p in points] == pytest.approx([0.1 / 3**0.5] * 2 + [0.2 / 3**0.5] * 2)
    # A run that has not ended does not count, whatever it has logged.
    (made[0].directory / "run.json").write_text('{"state": "interrupted"}')
    assert [len(p.values) for p in averages(made)[1]] == [2, 3, 3, 3]


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (["absent.yaml"], {}, ["'absent.yaml'", "cannot be read"]),
        (["s.yaml", "--parallel=0"], {}, ["parallel = 0"]),
        (["s.yaml"], {"method": "bayes"}, ["method = bayes", "server"]),
        (["s.yaml"], {"method": "random"}, ["--count"]),
        (["s.yaml"], {"command": ["no_such_program", "fit", "${args}"]}, ["'no_such_program'"]),
        (["s.yaml"], {"parameters": {"a": 3}}, ["parameters.a = 3", "{value: 3}"]),
        (["s.yaml", "--out=s.yaml"], {}, ["'s.yaml'", "--out"]),
        ([], {}, ["file"]),
    ],
)
def test_mistakes_cost_one_sentence(
    trainer: Path, capsys: pytest.CaptureFixture[str], options: list[str], changes: dict[str, Any], words: list[str]
) -> None:
    write(trainer, [0.1], **changes)
    assert main(["sweep", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not list(trainer.glob("**/log.txt"))


def test_help_is_quick() -> None:
    code = (
        "import sys\nfrom lightning_tweedie.cli import main\ntry: main(['sweep', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\nassert not {'torch', 'lightning', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--parallel" in done.stdout
