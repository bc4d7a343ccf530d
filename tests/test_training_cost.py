"""The prediction of what a training costs: what it counts is what there is."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_tweedie.networks import DiT
from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective, PosteriorReplay
from lightning_tweedie.sampling import Euler

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "methods"))


def test_the_cost_of_an_objective_is_its_passes() -> None:
    from costs import relative_cost

    assert relative_cost(Objective(AmbientScoreMatching())) == 1.0
    # A draw of four passes without gradient for every item once in two steps, in half of the training. What is
    # replayed, the ambient term goes without.
    replay = {"start": 0.5, "ramp": 0.0, "draw_start": 0.0, "refresh": 0.5, "capacity": 128}
    draws = relative_cost(Objective(replay=PosteriorReplay(sampler=Euler(4), **replay)))
    expectations = relative_cost(Objective(replay=PosteriorReplay(**{**replay, "draw_start": 1.0})))
    assert draws == pytest.approx(1 + 4 / 3 / 2 / 2)
    assert expectations == pytest.approx(1 + 1 / 3 / 2 / 2)
    assert 1 < relative_cost(Objective(consistency=Consistency(start=0.0))) < 2


def test_activations_are_counted_once_and_weights_are_not() -> None:
    from training_cost import activation_bytes

    # Kept: the input of the first layer, the sum before and the activation behind the first step.
    network = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 4))
    assert activation_bytes(network, (8,), torch.device("cpu"), mixed=False) == 4 * (8 + 16 + 16)
    assert activation_bytes(network, (8,), torch.device("cpu"), mixed=True) < 4 * (8 + 16 + 16)


def test_operations_grow_as_the_network_says() -> None:
    """``24 n depth width^2 + 4 n^2 depth width``, three times, but for what is not in the blocks."""
    from training_cost import training_flops

    def blocks(side: int) -> int:
        deep, shallow = (DiT(3, patch=2, width=64, depth=depth, heads=4) for depth in (5, 3))
        return (training_flops(deep, (3, side, side)) - training_flops(shallow, (3, side, side))) // 2

    for side in (16, 32):
        patches, modulation = (side // 2) ** 2, 2 * 6 * 64**2
        assert blocks(side) == 3 * (24 * patches * 64**2 + 4 * patches**2 * 64 + modulation)


def test_time_and_memory_follow_the_formulas_of_the_page() -> None:
    from training_cost import SCALING, Assumed, Budget, days, memory_bytes, predictions

    budget = Budget("some", "none", 8, steps=86_400, batch=10)
    assert days(budget, 1.5, 0.02, 0.1, 1) == pytest.approx(10 * 1.5 * 0.02 + 0.1)
    assert days(budget, 1.5, 0.02, 0.1, 8) == pytest.approx(10 * 1.5 * 0.02 / 8 / SCALING + 0.1)
    # 22 bytes for a parameter with one average, 20 without copies in bfloat16.
    assert memory_bytes(1000, 1, 50, 4) == 22_200 and memory_bytes(1000, 1, 50, 4, mixed=False) == 20_200
    row = {"data": "some", "model": "none", "side": 8, "steps": 86_400, "batch": 10}
    row |= {"parameters": 10, "averages": 1, "flops_per_image": 30, "seconds_per_image": 0.02, "update_seconds": 0.1}
    (found,) = predictions(row, {"ambient": 2.0}, Assumed("x", peak=1000.0, share=0.3, bandwidth=400.0))
    assert found["days_here_1"] == pytest.approx(0.5)
    assert found["days_assumed_1"] == pytest.approx(10 * 2 * 0.1 + 1.0)


def test_the_page_is_made_of_the_figures() -> None:
    """The one in the docs is what the command writes of the figures beside it."""
    from training_cost import page

    path = BENCHMARKS.parent / "docs/benchmarks/training_cost.json"
    result = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == page(result, path.name)
