"""Points of a sweep: the whole grid once, draws of the law that the file names, and mistakes in one sentence."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lightning_tweedie.errors import UserError
from lightning_tweedie.sweeps.parameters import drawn, grid


def test_a_grid_has_every_combination_once_in_the_order_of_the_names() -> None:
    nested = {"parameters": {"lr": {"values": [0.1, 0.2]}, "beta": {"value": None}}}
    points = grid({"seed": {"min": 0, "max": 1}, "a.b": {"values": ["x", "y"]}, "c": nested})
    assert points == [
        {"a.b": name, "c": {"beta": None, "lr": lr}, "seed": seed}
        for name in ("x", "y")
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    ]


LAWS: list[tuple[dict[str, Any], Any]] = [
    ({"min": 0.5, "max": 2.0}, stats.uniform(0.5, 1.5)),
    ({"distribution": "uniform", "min": 1, "max": 3}, stats.uniform(1, 2)),
    ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}, stats.loguniform(1e-4, 1.0)),
    ({"distribution": "log_uniform", "min": -2, "max": 1}, stats.loguniform(math.exp(-2), math.exp(1))),
    ({"distribution": "normal", "mu": 3, "sigma": 0.5}, stats.norm(3, 0.5)),
    ({"distribution": "normal"}, stats.norm(0, 1)),
    ({"distribution": "log_normal", "mu": -1, "sigma": 0.7}, stats.lognorm(s=0.7, scale=math.exp(-1))),
]


@pytest.mark.parametrize(("spec", "law"), LAWS)
def test_draws_have_the_law_that_the_file_names(spec: dict[str, Any], law: Any) -> None:
    values = [drawn({"x": spec}, 0, index)["x"] for index in range(500)]
    assert stats.kstest(values, law.cdf).pvalue > 0.01
    # The control: a law whose quantiles lie a tenth of the probability higher is told apart.
    assert stats.kstest(values, lambda x: np.clip(law.cdf(x) - 0.1, 0, 1)).pvalue < 1e-3


@pytest.mark.parametrize(("q", "kind"), [(0.25, float), (2, int)])
@pytest.mark.parametrize("name", ["q_uniform", "q_log_uniform_values", "q_normal", "q_log_normal"])
def test_rounded_draws_are_multiples_close_to_the_others(name: str, q: float, kind: type) -> None:
    spec = {"min": 1, "max": 9} if "uniform" in name else {"mu": 1, "sigma": 1}
    for index in range(20):
        rounded = drawn({"x": {"distribution": name, **spec, "q": q}}, 3, index)["x"]
        exact = drawn({"x": {"distribution": name.removeprefix("q_"), **spec}}, 3, index)["x"]
        assert type(rounded) is kind
        assert rounded / q == round(rounded / q)
        assert abs(rounded - exact) <= q / 2


def test_lists_are_drawn_with_their_probabilities() -> None:
    parameters = {"x": {"values": ["a", "b"], "probabilities": [0.8, 0.2]}, "n": {"min": 2, "max": 4}}
    points = [drawn(parameters, 0, index) for index in range(600)]
    share = sum(point["x"] == "a" for point in points) / 600
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 600)
    counts = [sum(point["n"] == n for point in points) for n in (2, 3, 4)]
    assert sum(counts) == 600
    assert stats.chisquare(counts).pvalue > 0.01


def test_a_draw_depends_on_the_seed_and_its_number_alone() -> None:
    parameters = {"x": {"min": 0.0, "max": 1.0}, "y": {"min": 0.0, "max": 1.0}}
    first = [drawn(parameters, 0, index) for index in range(3)]
    assert drawn(parameters, 0, 2) == first[2]
    # Another parameter does not change it; another seed does.
    assert drawn({**parameters, "a": {"values": [1, 2]}}, 0, 1).items() > first[1].items()
    assert drawn(parameters, 1, 2) != first[2]
    assert len({value for point in first for value in point.values()}) == 6


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([1, 2], ["x = [1, 2]", "{value: [1, 2]}"]),
        ({}, ["nothing"]),
        ({"value": 1, "values": [1]}, ["value, values"]),
        ({"values": 3}, ["x.values = 3", "[3]"]),
        ({"values": []}, ["x.values = []"]),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, ["[0.5, 0.6]", "sum to 1"]),
        ({"min": 1, "max": "1e3"}, ["x.max = '1e3'", "YAML"]),
        ({"min": 2, "max": 1}, ["x.min = 2", "max = 1"]),
        ({"min": 1}, ["min"]),
        ({"distribution": "beta"}, ["'beta'", "uniform", "wandb sweep"]),
        ({"distribution": "uniform", "min": 0}, ["uniform", "min and max"]),
        ({"distribution": "int_uniform", "min": 0.5, "max": 3}, ["x.min = 0.5", "whole"]),
        ({"distribution": "log_uniform_values", "min": 0, "max": 3}, ["x.min = 0", "logarithm"]),
        ({"distribution": "normal", "sigma": -1}, ["sigma"]),
        ({"distribution": "q_normal", "q": 0}, ["q"]),
    ],
)
def test_mistakes(spec: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        drawn({"x": spec}, 0, 0)
    assert "\n" not in str(told.value)
    for word in ["parameters.x", *words]:
        assert word in str(told.value)


def test_there_is_no_grid_of_a_range() -> None:
    with pytest.raises(UserError, match=r"parameters\.a\.x has the distribution uniform.*give values"):
        grid({"a": {"parameters": {"x": {"min": 0.0, "max": 1.0}}}})
