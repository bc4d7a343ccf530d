"""The methods that are compared, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_tweedie.objectives import Objective

__all__ = ["METHODS", "Method", "make_objective", "method_config", "objective_config", "same_method"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "objective"


@dataclass(frozen=True)
class Method:
    """A way to learn from noisy data.

    Args:
        title: What tables call it.
        objective: File in ``configs/objective``, without its ending.
        settings: What differs from that file, by names such as ``replay.share``; what is null is left out.
        data: ``noisy``; ``clean``, which no method for noisy data may see; ``denoised``: estimates of the clean data.
        clean_fraction: Share of the items that are clean.
        first: What denoises: the objective of a network that is trained before, for half of the steps, or
            ``nonlocal_means``, which is not trained.
        truncated: Measure truncated samples of the same network too.
        distilled: Train for half of the steps, distil into a generator for the others, and measure that one's samples.
    """

    title: str
    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Literal["noisy", "clean", "denoised"] = "noisy"
    clean_fraction: float = 0.0
    first: str | None = None
    truncated: bool = False
    distilled: bool = False


_CONSISTENCY = {
    "class_path": "lightning_tweedie.objectives.Consistency",
    "init_args": {"weight": 0.03, "start": 0.05, "share": 0.0625, "origin": "x_n", "chain": 2},
}
_STOCHASTIC = {"class_path": "lightning_tweedie.sampling.SDEDPMSolverPP2M", "init_args": {"steps": 24}}

METHODS = {
    "clean": Method("clean data (ceiling)", "naive", data="clean"),
    "naive": Method("noisy as if clean (floor)", "naive"),
    "ambient": Method("ambient", "ambient", truncated=True),
    "ambient_x_n": Method("ambient, x_n-space", "ambient", {"ambient.weighting": "x_n"}, truncated=True),
    "ambient_x_0": Method(
        "ambient, x_0-space", "ambient", {"ambient.weighting": "x_0", "ambient.buffer": 0.4}, truncated=True
    ),
    "consistency": Method("ambient + consistency", "consistency"),
    "consistency_both": Method(
        "ambient + consistency, gradient on both sides", "consistency", {"consistency.gradient": "both"}
    ),
    "consistency_x_t": Method(
        "ambient + consistency, chains from x_t", "consistency", {"consistency.origin": "x_t", "consistency.chain": 4}
    ),
    "consistency_squared": Method("ambient + consistency, squared mean", "consistency_squared"),
    "replay": Method("ambient + replay", "replay"),
    "rounds": Method("ambient + replay in rounds (EM)", "rounds"),
    "replay_consistency": Method("ambient + replay + consistency", "replay_consistency"),
    "nonlocal_means": Method(
        "denoised by non-local means, then score matching", "naive", data="denoised", first="nonlocal_means"
    ),
    "denoised": Method("denoised by Noise2Score, then score matching", "naive", data="denoised", first="ambient"),
    "sure": Method("denoised by SURE, then score matching", "naive", data="denoised", first="sure"),
    "default": Method("default", "default", truncated=True),
    "default_consistency": Method("default, and consistency", "default", {"consistency": _CONSISTENCY}),
    "default_draws": Method("default, by posterior draws", "default", {"replay.sampler": _STOCHASTIC}),
    "default_expectations": Method("default, expectations only", "default", {"replay.draw_start": 1.0}, truncated=True),
    "default_no_residual": Method(
        "default, draws to the end",
        "default",
        {"replay.residual": None, "replay.sampler": None},
        truncated=True,
    ),
    "default_no_sure": Method("default, without Stein's estimate", "default", {"extra": []}),
    "distilled": Method("ambient, stable, distilled", "ambient", {"ambient.stable": True}, distilled=True),
    "ambient_01": Method("ambient, 0.1 % clean", "ambient", clean_fraction=0.001),
    "default_01": Method("default, 0.1 % clean", "default", clean_fraction=0.001),
    "ambient_1": Method("ambient, 1 % clean", "ambient", clean_fraction=0.01),
    "default_1": Method("default, 1 % clean", "default", clean_fraction=0.01),
    "ambient_10": Method("ambient, 10 % clean", "ambient", clean_fraction=0.1),
    "default_10": Method("default, 10 % clean", "default", clean_fraction=0.1),
}
"""By the names that the command line knows."""


def objective_config(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An objective as ``configs/objective`` describes it, but for the settings."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for key, value in settings.items():
        term, _, setting = key.partition(".")
        if not setting:
            config["init_args"][term] = value
        elif value is None:
            config["init_args"][term]["init_args"].pop(setting)
        else:
            config["init_args"][term].setdefault("init_args", {})[setting] = value
    return config


@cache
def method_config(name: str) -> dict[str, Any]:
    """All that a method is, with every setting of its objectives."""
    method = METHODS[name]
    first: dict[str, Any] = {"first": method.first}
    if method.first not in (None, "nonlocal_means"):
        first = {"first": objective_config(method.first, {})}
    kind = {"data": method.data, "clean_fraction": method.clean_fraction, "distilled": method.distilled}
    return _complete({**kind, **first, "objective": objective_config(method.objective, method.settings)})


def same_method(config: Mapping[str, Any], name: str) -> bool:
    """Whether a row with this configuration is of the method as it is now; what it leaves out is as a class has it."""
    try:
        return _complete(config) == method_config(name)
    except ArgumentError:  # of settings that are gone
        return False


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """With every setting of the objectives in it."""

    def parsed(objective: dict[str, Any]) -> Any:  # noqa: ANN401 - as deep as it is
        # A copy, because lists are parsed in place.
        return _parser().parse_object({"objective": deepcopy(objective)}).as_dict()["objective"]

    return {key: parsed(value) if isinstance(value, dict) else value for key, value in config.items()}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    return parser


def make_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective of that configuration."""
    parser = _parser()
    objective: Objective = parser.instantiate(
        parser.parse_object({"objective": objective_config(name, settings)})
    ).objective
    return objective
