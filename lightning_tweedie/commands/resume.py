"""What a run takes from a checkpoint and what from its configuration, said out loud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["differences", "flatten"]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"a.b.c": value}``; ``init_args`` levels are left out of the names.

    Examples:
        >>> flatten({"ema": {"class_path": "EMA", "init_args": {"ramp_up": 0.1}}, "seed": 1})
        {'ema': 'EMA', 'ema.ramp_up': 0.1, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key == "class_path":
            flat[prefix.rstrip(".")] = value
        elif isinstance(value, Mapping):
            flat |= flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings in which a run differs from the one that made its checkpoint, one line each."""
    old, new = flatten(before, "model."), flatten(now, "model.")
    return [
        f"{key}: {old.get(key, 'absent')} in the checkpoint, {new.get(key, 'absent')} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith("model._")
    ]
