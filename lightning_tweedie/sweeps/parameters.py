"""The parameters of a sweep: a grid of their values, or draws from their distributions.

The format is that of Weights & Biases (https://docs.wandb.ai/models/sweeps/sweep-config-keys). Parameters stand in the
order of their names and the last one varies fastest, as there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightning_tweedie.errors import UserError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Path", "Point", "drawn", "flat", "grid", "is_list"]

Point = dict[str, Any]
"""What one run gets: a value for each parameter; nested parameters are dictionaries."""

Path = tuple[str, ...]
"""Where a parameter stands; more than one name if it is nested."""

_LISTS = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}
_RANGES = {
    "int_uniform": ("min", "max"),
    **{
        prefix + name: (*fields, *(("q",) if prefix else ()))
        for prefix in ("", "q_")
        for name, fields in {
            "uniform": ("min", "max"),
            "log_uniform": ("min", "max"),
            "log_uniform_values": ("min", "max"),
            "normal": ("mu", "sigma"),
            "log_normal": ("mu", "sigma"),
        }.items()
    },
}
_FIELDS = _LISTS | _RANGES
"""The distributions, and what each is described by."""

_DEFAULTS = {"mu": 0.0, "sigma": 1.0, "q": 1.0}


def flat(parameters: Mapping[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The parameters of a sweep file without their nesting, in the order of their names.

    Args:
        parameters: What the file has under ``parameters``.
        prefix: Where that stands.

    Raises:
        UserError: Something is not described by keys and values.
    """
    for name, spec in sorted(parameters.items()):
        path = (*prefix, name)
        if not isinstance(spec, Mapping):
            raise UserError(f"{_key(path)} = {spec!r} is not a parameter: write {{value: {spec!r}}}")
        if set(spec) == {"parameters"} and isinstance(spec["parameters"], Mapping):
            yield from flat(spec["parameters"], path)
        else:
            yield path, spec


def is_list(spec: Mapping[str, Any]) -> bool:
    """Whether a parameter has a list of values, rather than a range or a single value."""
    return "values" in spec


def grid(parameters: Mapping[str, Any]) -> list[Point]:
    """All combinations of the parameters' values.

    Args:
        parameters: What the file has under ``parameters``: ``value``, ``values``, or whole numbers from
            ``min`` to ``max``.

    Raises:
        UserError: A parameter has a distribution that is no list of values.

    Examples:
        >>> grid({"b": {"values": [1, 2]}, "a": {"value": "x"}})
        [{'a': 'x', 'b': 1}, {'a': 'x', 'b': 2}]
    """
    paths, choices = [], []
    for path, spec in flat(parameters):
        kind = _kind(path, spec)
        if kind == "constant":
            values = [spec["value"]]
        elif kind == "categorical":
            values = spec["values"]
        elif kind == "int_uniform":
            values = list(range(spec["min"], spec["max"] + 1))
        else:
            raise UserError(f"{_key(path)} has the distribution {kind}, of which there is no grid: give values")
        paths.append(path)
        choices.append(values)
    return [_nest(zip(paths, values, strict=True)) for values in itertools.product(*choices)]


def drawn(parameters: Mapping[str, Any], seed: int, index: int) -> Point:
    """One draw from the parameters' distributions.

    Args:
        parameters: What the file has under ``parameters``.
        seed: The user's seed.
        index: Number of the draw: a point is a function of the two, whatever was drawn before.

    Raises:
        UserError: A distribution is unknown or described wrongly.
    """
    from lightning_tweedie.randomness import item_generator

    return _nest(
        (path, _draw(path, spec, item_generator(seed, f"sweep/{'/'.join(path)}", index)))
        for path, spec in flat(parameters)
    )


def _draw(path: Path, spec: Mapping[str, Any], generator: np.random.Generator) -> Any:
    kind = _kind(path, spec)
    if kind == "constant":
        return spec["value"]
    if kind.startswith("categorical"):
        return spec["values"][generator.choice(len(spec["values"]), p=spec.get("probabilities"))]
    a, b, *q = (spec.get(field, _DEFAULTS.get(field)) for field in _RANGES[kind])
    if kind == "int_uniform":
        return int(generator.integers(a, b, endpoint=True))
    laws = {
        "uniform": lambda: generator.uniform(a, b),
        "log_uniform": lambda: math.exp(generator.uniform(a, b)),
        "log_uniform_values": lambda: math.exp(generator.uniform(math.log(a), math.log(b))),
        "normal": lambda: generator.normal(a, b),
        "log_normal": lambda: generator.lognormal(a, b),
    }
    value = float(laws[kind.removeprefix("q_")]())
    if not q:
        return value
    rounded = round(value / q[0]) * q[0]
    return rounded if isinstance(q[0], int) else float(rounded)


def _kind(path: Path, spec: Mapping[str, Any]) -> str:
    """The distribution of a parameter, told or evident from its fields.

    Raises:
        UserError: There is none such, or what describes it is missing, superfluous or impossible.
    """
    key, given = _key(path), dict(spec)
    kind = given.pop("distribution", None)
    if kind is None:
        bounds = (given.get("min"), given.get("max"))
        whole = all(isinstance(bound, int) for bound in bounds)
        names = {
            frozenset(("value",)): "constant",
            frozenset(("values",)): "categorical",
            frozenset(("values", "probabilities")): "categorical_w_probabilities",
            frozenset(("min", "max")): "int_uniform" if whole else "uniform",
        }
        kind = names.get(frozenset(given))
        if kind is None:
            raise UserError(
                f"{key} has {', '.join(given) or 'nothing'}, which says no values: give value, values, min and max, or "
                "a distribution with what describes it"
            )
    if kind not in _FIELDS:
        raise UserError(
            f"{key}.distribution = {kind!r} is not drawn from here: choose one of {', '.join(_FIELDS)}, or leave the "
            "sweep to the server (`wandb sweep`)"
        )
    fields = _FIELDS[kind]
    missing = [field for field in fields if field not in given and field not in _DEFAULTS]
    if missing or set(given) - set(fields):
        raise UserError(f"{key} is {kind}, which is described by {' and '.join(fields)}: it has {', '.join(given)}")
    if kind in _RANGES:
        _check_range(key, kind, {field: given.get(field, _DEFAULTS.get(field)) for field in fields})
    elif kind != "constant":
        _check_list(key, given)
    return str(kind)


def _check_range(key: str, kind: str, numbers: Mapping[str, Any]) -> None:
    for field, number in numbers.items():
        usable = isinstance(number, int if kind == "int_uniform" else int | float) and not isinstance(number, bool)
        if not usable or not math.isfinite(number):
            wanted = "a whole number" if kind == "int_uniform" else "a number"
            hint = " (YAML wants a point in 1.0e-4)" if isinstance(number, str) else ""
            raise UserError(f"{key}.{field} = {number!r} is not {wanted}: correct it{hint}")
    if "min" in numbers and numbers["min"] >= numbers["max"]:
        raise UserError(
            f"{key}.min = {numbers['min']} is not below max = {numbers['max']}: exchange them, or give value"
        )
    if kind.endswith("log_uniform_values") and numbers["min"] <= 0:
        raise UserError(f"{key}.min = {numbers['min']} has no logarithm: give a number above 0")
    if numbers.get("sigma", 0) < 0 or numbers.get("q", 1) <= 0:
        raise UserError(f"{key} has sigma or q that is not positive: correct it")


def _check_list(key: str, given: Mapping[str, Any]) -> None:
    values, probabilities = given["values"], given.get("probabilities")
    if not isinstance(values, list) or not values:
        raise UserError(f"{key}.values = {values!r} is not a list: write [{'' if values == [] else values}]")
    if probabilities is None:
        return
    numbers = isinstance(probabilities, list) and all(isinstance(p, int | float) and p >= 0 for p in probabilities)
    if not numbers or len(probabilities) != len(values) or not math.isclose(sum(probabilities), 1, rel_tol=1e-8):
        raise UserError(
            f"{key}.probabilities = {probabilities!r} are not one for each value that sum to 1: correct them"
        )


def _nest(items: Any) -> Point:
    point: Point = {}
    for path, value in items:
        inner = point
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return point


def _key(path: Path) -> str:
    return ".".join(["parameters", *path])
