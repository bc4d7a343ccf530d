"""The methods that are compared, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser

from lightning_tweedie.objectives import Objective

__all__ = ["METHODS", "Method", "make_objective"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "objective"


@dataclass(frozen=True)
class Method:
    """A way to learn from noisy data.

    Args:
        title: What tables call it.
        objective: File in ``configs/objective``, without its ending.
        data: ``noisy``; ``clean``, which no method for noisy data may see; ``denoised``: one-step estimates by a
            network that was trained before, for half of the steps, with the objective ``first``.
        clean_fraction: Share of the items that are clean.
        first: Objective of the network that denoises.
        sampling: How samples are made.
        plain_targets: Take the objective without stable targets.
    """

    title: str
    objective: str
    data: Literal["noisy", "clean", "denoised"] = "noisy"
    clean_fraction: float = 0.0
    first: str | None = None
    sampling: Literal["full", "truncated"] = "full"
    plain_targets: bool = False


METHODS = {
    "clean": Method("clean data (ceiling)", "naive", data="clean"),
    "naive": Method("noisy as if clean (floor)", "naive"),
    "ambient": Method("ambient", "ambient"),
    "ambient_truncated": Method("ambient, truncated", "ambient", sampling="truncated"),
    "consistency": Method("ambient + consistency", "consistency"),
    "consistency_squared": Method("ambient + consistency, squared mean", "consistency_squared"),
    "replay": Method("ambient + replay", "replay"),
    "rounds": Method("ambient + replay in rounds (EM)", "rounds"),
    "replay_consistency": Method("ambient + replay + consistency", "replay_consistency"),
    "denoised": Method("denoised by Noise2Score, then score matching", "naive", data="denoised", first="ambient"),
    "sure": Method("denoised by SURE, then score matching", "naive", data="denoised", first="sure"),
    "default": Method("default", "default"),
    "default_plain": Method("default, plain targets", "default", plain_targets=True),
    "ambient_1": Method("ambient, 1 % clean", "ambient", clean_fraction=0.01),
    "default_1": Method("default, 1 % clean", "default", clean_fraction=0.01),
    "ambient_10": Method("ambient, 10 % clean", "ambient", clean_fraction=0.1),
    "default_10": Method("default, 10 % clean", "default", clean_fraction=0.1),
}
"""By the names that the command line knows."""


def make_objective(name: str, plain_targets: bool = False) -> Objective:
    """An objective as ``configs/objective`` describes it, or without its stable targets."""
    parser = ArgumentParser()
    parser.add_argument("--objective", type=Objective)
    config = parser.parse_object({"objective": yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())})
    objective: Objective = parser.instantiate(config).objective
    for term in objective.terms.values():
        if plain_targets and hasattr(term, "stable"):
            term.stable = False
    return objective
