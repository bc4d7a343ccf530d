"""A sweep as Weights & Biases describes it in a YAML file, and the command of each of its runs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_tweedie.errors import UserError
from lightning_tweedie.sweeps.parameters import Point, drawn, flat, grid

__all__ = ["Sweep", "agent_command", "read_sweep"]

KEYS = (
    *("program", "entity", "project", "description", "name", "method", "metric", "parameters", "early_terminate"),
    *("command", "run_cap"),
)
"""What a sweep file may hold."""

MACRO = re.compile(r"\$\{(\w*)\}")
ARGUMENTS = (
    *("args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json", "args_json_file"),
    *("args_append_hydra", "args_override_hydra"),
)
"""Macros that stand for the parameters, of which a command needs one; there are three more."""

OURS = ("runs", "name", "ckpt_path")
"""Options of a run that a local sweep sets itself."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was found to be usable here.

    Args:
        name: Its name; that of the file if it has none.
        method: ``grid`` or ``random``.
        metric: Name of the value that runs are compared by.
        maximize: Whether more of it is better.
        parameters: As in the file.
        program: As in the file, for the macro ``${program}``.
        command: The parts of the command, macros included.
        run_cap: How many runs at most; no limit when None.
        early_terminate: Whether the server would end runs early, which nobody does here.
    """

    name: str
    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Any]
    program: str
    command: tuple[str, ...]
    run_cap: int | None
    early_terminate: bool

    def points(self, count: int | None, seed: int) -> list[Point]:
        """The parameters of all runs, each once.

        Args:
            count: How many; ``run_cap``, or of a grid all, when None.
            seed: Of the draws of a random sweep.

        Raises:
            UserError: A parameter is described wrongly, or a random sweep does not say how many.
        """
        limit = self.run_cap if count is None else count
        if limit is not None and limit < 1:
            raise UserError(f"{'run_cap' if count is None else 'count'} = {limit} is too small: give at least 1")
        if self.method == "random" and limit is None:
            raise UserError("method = random never ends: say how many runs with --count, or with run_cap in the file")
        draws = range(limit or 0)
        points = grid(self.parameters) if self.method == "grid" else [drawn(self.parameters, seed, i) for i in draws]
        return list({json.dumps(point, sort_keys=True, default=str): point for point in points}.values())[:limit]


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Args:
        path: The YAML file.

    Raises:
        UserError: It cannot be read, or the sweep cannot be run here.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the sweep file {str(path)!r} cannot be read ({error}): check its path") from None
    except yaml.YAMLError as error:
        raise UserError(f"the sweep file {str(path)!r} is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"the sweep file {str(path)!r} holds no keys: it needs method, metric, command and parameters")
    for key in content:
        if key not in KEYS:
            guess = difflib.get_close_matches(str(key), KEYS, 1)
            raise UserError(f"{key!r} is not a key of a sweep: {f'did you mean {guess[0]}?' if guess else 'remove it'}")
    method = content.get("method")
    if method == "bayes":
        raise UserError(
            "method = bayes needs the server of Weights & Biases: start it with `wandb sweep`, or set method to grid "
            "or random"
        )
    if method not in ("grid", "random"):
        raise UserError(f"method = {method!r} is not one: set it to grid or random")
    metric = content.get("metric")
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        raise UserError(
            f"metric = {metric!r} does not say what runs are compared by: give its name, such as val/psnr_one_step"
        )
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"metric.goal = {goal!r} is not one: set it to minimize or maximize")
    parameters = content.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise UserError(f"parameters = {parameters!r} is not what to vary: give each by its option, with values")
    for path_in_file, _ in flat(parameters):
        if path_in_file[0] in OURS:
            raise UserError(f"parameters.{path_in_file[0]} is set by the sweep for each run: remove it")
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool)):
        raise UserError(f"run_cap = {cap!r} is not a number of runs: give a whole number")
    return Sweep(
        name=str(content.get("name") or path.stem),
        method=method,
        metric=metric["name"],
        maximize=goal == "maximize",
        parameters=parameters,
        program=str(content.get("program", "")),
        command=_checked_command(content.get("command")),
        run_cap=cap,
        early_terminate="early_terminate" in content,
    )


def _checked_command(command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or "fit" not in command:
        raise UserError(
            f"command = {command!r} does not train: give the list [lightning_tweedie, fit, --config, <file>, ${{args}}]"
        )
    parts = tuple(str(part) for part in command)
    macros = [match[1] for part in parts for match in MACRO.finditer(part)]
    # Elsewhere an unknown one would vanish without a word, and all runs would be the same.
    for macro in macros:
        if macro not in (*ARGUMENTS, "env", "interpreter", "program"):
            known = ", ".join(f"${{{name}}}" for name in ("env", "interpreter", "program", *ARGUMENTS))
            raise UserError(f"${{{macro}}} in command is not a macro: choose one of {known}")
    if not any(f"${{{name}}}" in parts for name in ARGUMENTS):
        raise UserError("command takes none of the parameters: add ${args} as a part of its own")
    return parts


def agent_command(sweep: Sweep, point: Point, json_file: Path) -> list[str]:
    """The command of a run as an agent of Weights & Biases writes it, formatted by its own functions.

    Args:
        sweep: The sweep.
        point: The run's parameters.
        json_file: Where ``${args_json_file}`` is written.
    """
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    values = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    values |= {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep.program],
        "args_json_file": [str(json_file)],
    }
    command: list[str] = []
    for part in create_sweep_command(list(sweep.command)):
        # Only a part that is nothing but a macro is one.
        command += values.get(part[2:-1], []) if part.startswith("${") and part.endswith("}") else [part]
    return command
