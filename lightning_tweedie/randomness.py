"""Stateless randomness: every draw is a pure function of what it is for.

Nothing here reads or changes the global random state, so a data item looks the same in every epoch,
worker, rank and resumed run; a training step draws the same numbers whether or not the run was
interrupted before it; and a generated sample does not depend on the batch it was made in.

Three kinds of draws exist:

* **items**: keyed by ``(seed, stream, index)``, for noise that belongs to a datum;
* **steps**: keyed by ``(seed, rank, step, micro_batch)``, for noise of one training step;
* **samples**: keyed by ``(seed, index)``, consumed in order while one sample is generated.

Items and samples use the counter-based Philox generator on the CPU (the same numbers on every
device, no two keys share a stream); steps use a ``torch.Generator`` on the training device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "SampleNoise",
    "item_generator",
    "item_generators",
    "item_noise",
    "items_noise",
    "name_number",
    "step_generator",
]


def name_number(name: str) -> int:
    """A number ``>= 0`` that belongs to a name, so that what is drawn for it does not depend on what is beside it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def item_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """A generator that belongs to one item.

    Args:
        seed: The user's seed.
        stream: What the numbers are for, for example ``"noise"``; streams are independent.
        index: The item's place in its data set, ``>= 0``.

    Returns:
        A NumPy generator whose stream no other ``(seed, stream, index)`` shares.

    Examples:
        >>> a, b = (item_generator(0, "noise", 7).standard_normal() for _ in range(2))
        >>> a == b
        True
    """
    return next(item_generators(seed, stream, [index]))


def item_generators(seed: int, stream: str, indices: Iterable[int]) -> Iterator[np.random.Generator]:
    """The generator of each of several items, quicker than :func:`item_generator` for one after the other.

    It is one and the same object, set to the next item: draw from it before asking for the next.

    Args:
        seed: The user's seed.
        stream: What the numbers are for.
        indices: The items' places in their data set, ``>= 0``.
    """
    key = np.frombuffer(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest(), np.uint64)
    philox = np.random.Philox(key=key)
    generator, counter = np.random.Generator(philox), [0, 0, 0, 0]
    # Making a Philox takes a third as long as an image's noise, because it asks the system for entropy first.
    start: Any = {**philox.state, "state": {"key": key.tolist(), "counter": counter}}
    for index in indices:
        counter[3] = int(index)
        philox.state = start
        yield generator


def item_noise(seed: int, stream: str, index: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one item, float32 on the CPU, of the given ``shape``."""
    return items_noise(seed, stream, [index], shape)[0]


def items_noise(seed: int, stream: str, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """That of several items, ``(B, *shape)``: row ``i`` is ``item_noise(seed, stream, indices[i], shape)``."""
    noise = np.empty((len(indices), *shape), np.float32)
    for row, generator in enumerate(item_generators(seed, stream, indices)):
        generator.standard_normal(dtype=np.float32, out=noise[row, ...])
    return torch.from_numpy(noise)


def step_generator(
    seed: int, *, rank: int, step: int, micro_batch: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of one training step on one rank.

    Args:
        seed: The user's seed.
        rank: Number of the process, so that the noise differs between ranks.
        step: Number of optimiser steps taken so far.
        micro_batch: Number of the batch within the epoch; tells accumulated batches apart.
        device: Where the numbers are drawn.

    Returns:
        A freshly seeded generator on ``device``.
    """
    digest = hashlib.blake2b(f"{seed}/{rank}/{step}/{micro_batch}".encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


class SampleNoise:
    """Noise for a batch of generated samples, one generator per sample.

    Row ``i`` of every draw depends on ``(seed, indices[i])`` and on how many draws came before,
    never on the other rows: a sample is the same in a batch of 1 and in a batch of 1000.

    Args:
        seed: The user's seed.
        indices: Number of each sample, length ``B``.
        device: Where the draws are put (they are made on the CPU, so they agree between devices).
        stream: What the numbers are for; streams are independent.
    """

    def __init__(
        self, seed: int, indices: Sequence[int], device: torch.device | str = "cpu", stream: str = "sample"
    ) -> None:
        self.device = torch.device(device)
        self._generators = [item_generator(seed, stream, int(i)) for i in indices]

    def __call__(self, x: Tensor) -> Tensor:
        """Noise of the shape, dtype and device of ``x``, ``(B, *shape)``."""
        return self.normal(x.shape[1:]).to(x)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise ``(B, *shape)``, float32; ``shape`` is that of one sample."""
        rows = [g.standard_normal(tuple(shape), dtype=np.float32) for g in self._generators]
        return torch.from_numpy(np.stack(rows)).to(self.device)
