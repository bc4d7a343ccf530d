"""A sweep file means here what it means to Weights & Biases: its agent and ours write the same command."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CONFIGS
from wandb import wandb_agent

from lightning_tweedie.errors import UserError
from lightning_tweedie.sweeps.sweep_file import agent_command, read_sweep

SWEEP: dict[str, Any] = {
    "program": "train.py",
    "method": "grid",
    "metric": {"name": "val/loss"},
    "command": ["lightning_tweedie", "fit", "--config", "a.yaml", "${args}"],
    "parameters": {"data.sigma": {"values": [0.1, 0.2]}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**SWEEP, **changes}.items() if v is not None}))
    return path


@pytest.fixture
def by_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the agent of Weights & Biases starts when its server sends it a run."""
    for variable in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, str(tmp_path))

    def command(file: Path, point: dict[str, Any]) -> list[str]:
        started: list[list[str]] = []

        class Process:
            def __init__(self, command: list[str], **_: Any) -> None:
                started.append(command)

        monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
        agent = wandb_agent.Agent(api=None, queue=None)
        content = yaml.safe_load(file.read_text())
        agent._sweep_command = content["command"]
        run = {"args": {name: {"value": value} for name, value in point.items()}, "run_id": "r"}
        agent._command_run({"program": content["program"], **run})
        return started[0]

    return command


POINT = {
    "data.sigma": 1e-05,
    "flag": True,
    "model": {"width": 8, "parts": [1, 2]},
    "name.with": "two words",
    "off": False,
    "steps": [0.1, 0.4],
    "trainer.gradient_clip_val": "null",
}


@pytest.mark.parametrize(
    "command",
    [
        ["lightning_tweedie", "fit", "--config", "a.yaml", "${args}"],
        ["${env}", "${interpreter}", "${program}", "fit", "${args}"],
        ["x", "fit", "${args_no_hyphens}", "${args_no_boolean_flags}", "${args_no_equals}"],
        ["x", "fit", "${args_append_hydra}", "--", "${args_override_hydra}", "${args_json}"],
        ["x", "fit", "--seed", 3, "--home=${envvar:SWEEP_HOME}/a", "${envvar:SWEEP_ABSENT}", "a${args}", "${args}"],
    ],
)
def test_the_command_is_the_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_the_agent: Any, command: list[Any]
) -> None:
    monkeypatch.setenv("SWEEP_HOME", "/somewhere")
    file = written(tmp_path, command=command)
    ours = agent_command(read_sweep(file), POINT, tmp_path / "parameters.json")
    assert ours == by_the_agent(file, POINT)
    assert len(ours) > len(command)


def test_the_file_of_parameters_is_the_agents(tmp_path: Path, by_the_agent: Any) -> None:
    file = written(tmp_path, command=["x", "fit", "${args_json_file}"])
    theirs = by_the_agent(file, POINT)
    assert json.loads(Path(theirs[2]).read_text()) == POINT
    assert agent_command(read_sweep(file), POINT, tmp_path / "p.json") == ["x", "fit", str(tmp_path / "p.json")]


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_that_come_along(path: Path, by_the_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    sweep = read_sweep(path)
    points = sweep.points(3, seed=0)
    for point in points:
        command = agent_command(sweep, point, Path("p.json"))
        assert command == by_the_agent(path, point)
        assert command[:2] == ["lightning_tweedie", "fit"]
        files = [part.partition("=")[2] or part for part in command if part.endswith(".yaml")]
        assert files
        assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "bayes"}, ["method = bayes", "server", "grid or random"]),
        ({"method": "griddy"}, ["method = 'griddy'", "grid or random"]),
        ({"metric": None}, ["metric = None", "val/psnr_one_step"]),
        ({"metric": {"name": "a", "goal": "up"}}, ["metric.goal = 'up'", "minimize or maximize"]),
        ({"parameters": {}}, ["parameters = {}"]),
        ({"parameters": {"runs": {"value": "x"}}}, ["parameters.runs", "remove it"]),
        ({"paramters": {}}, ["'paramters'", "did you mean parameters?"]),
        ({"command": None}, ["command = None", "fit"]),
        ({"command": ["lightning_tweedie", "fit"]}, ["${args}"]),
        ({"command": ["lightning_tweedie", "fit", "${arg}"]}, ["${arg}", "${args}"]),
        ({"run_cap": "many"}, ["run_cap = 'many'"]),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        read_sweep(written(tmp_path, **changes))
    assert "\n" not in str(told.value)
    for word in words:
        assert word in str(told.value)


def test_how_many(tmp_path: Path) -> None:
    assert len(read_sweep(written(tmp_path)).points(None, 0)) == 2
    assert len(read_sweep(written(tmp_path)).points(1, 0)) == 1
    assert len(read_sweep(written(tmp_path, run_cap=1)).points(None, 0)) == 1
    # What is there twice is run once.
    assert len(read_sweep(written(tmp_path, parameters={"a": {"values": [1, 2, 1]}})).points(None, 0)) == 2
    endless = read_sweep(written(tmp_path, method="random", parameters={"a": {"min": 0.0, "max": 1.0}}))
    assert len(endless.points(5, 0)) == 5
    assert len(read_sweep(written(tmp_path, method="random")).points(50, 0)) == 2
    with pytest.raises(UserError, match="--count"):
        endless.points(None, 0)
    with pytest.raises(UserError, match="count = 0"):
        endless.points(0, 0)
