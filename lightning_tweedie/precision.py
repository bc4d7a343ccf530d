"""Numbers in full float32, whatever the caller has chosen for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

__all__ = ["full_precision"]


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """Work in float32 alone: without autocast, and without the shortcuts of matrix products and convolutions.

    On GPUs from Ampere on, cuDNN rounds the factors in its convolutions to TF32, with 10 bits of mantissa instead of
    23, unless it is told not to; matrix products do so where ``torch.set_float32_matmul_precision`` allows it, and on
    processors they take bfloat16 then. What had been set is set again afterwards.

    Args:
        device: Where the work is done.
    """
    places = _places()
    before = [place.fp32_precision for place in places]
    restore = _old_switches_off()
    for place in places:
        if place.fp32_precision not in ("none", "ieee"):
            place.fp32_precision = "ieee"
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for switch, value in restore:
            switch(value)
        for place, value in zip(places, before, strict=True):
            if place.fp32_precision != value:
                place.fp32_precision = "none"  # what a wider setting decides, if that says the same
            if place.fp32_precision != value:
                place.fp32_precision = value


def _places() -> list[Any]:
    """The switches that PyTorch has from 2.9 on."""
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    return [
        torch.backends.cuda.matmul,
        *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn")),
        *(getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv", "rnn")),
    ]


def _old_switches_off() -> list[tuple[Callable[[Any], None], Any]]:
    """Turns off what has been switched on in the older way; answers how to restore it.

    PyTorch refuses to work where its old and its new switches contradict each other. Reading the old ones raises where
    the new ones have been used: there they must be left alone, and elsewhere they must be turned first.
    """
    restore: list[tuple[Callable[[Any], None], Any]] = []
    with suppress(RuntimeError):
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            restore.append((torch.set_float32_matmul_precision, precision))
            torch.set_float32_matmul_precision("highest")
    with suppress(RuntimeError):
        if torch.backends.cudnn.allow_tf32:
            restore.append((_allow_tf32, True))
            _allow_tf32(False)
    return restore


def _allow_tf32(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value
