"""A bounded store of posterior draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["DrawBuffer"]


class DrawBuffer:
    """Draws with the noise level of the datum behind each; the oldest are replaced first.

    Args:
        capacity: Number of draws kept.
        device: Where they are kept; that of the first draws when ``None``.
    """

    def __init__(self, capacity: int, device: torch.device | str | None = None) -> None:
        self.capacity = capacity
        self.device = device
        self.draws: Tensor | None = None
        self.levels: Tensor | None = None
        self.written = 0

    @property
    def filled(self) -> int:
        """Number of draws that are there."""
        return min(self.written, self.capacity)

    @property
    def is_full(self) -> bool:
        """Whether it has been filled once."""
        return self.written >= self.capacity

    def write(self, draws: Tensor, levels: Tensor) -> None:
        """Adds draws ``(K, *shape)`` with their levels ``(K,)``; of more than fit the first are taken."""
        draws, levels = draws[: self.capacity], levels[: self.capacity]
        device = draws.device if self.device is None else self.device
        if self.draws is None or self.levels is None:
            self.draws = draws.new_zeros(self.capacity, *draws.shape[1:], device=device)
            self.levels = levels.new_zeros(self.capacity, device=device)
        # One from a checkpoint may be elsewhere still.
        self.draws, self.levels = self.draws.to(device, draws.dtype), self.levels.to(device, levels.dtype)
        slots = (self.written + torch.arange(len(draws), device=device)) % self.capacity
        self.draws[slots], self.levels[slots] = draws.to(device), levels.to(device)
        self.written += len(draws)

    def pick(self, count: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws picked at random, ``(count, *shape)``, and their levels ``(count,)``, on the device of ``like``."""
        assert self.draws is not None and self.levels is not None
        which = torch.randint(self.filled, (count,), generator=generator, device=like.device).to(self.draws.device)
        return self.draws[which].to(like.device), self.levels[which].to(like.device)

    def take(self) -> tuple[Tensor, Tensor]:
        """All draws and their levels; the buffer is empty afterwards."""
        assert self.draws is not None and self.levels is not None
        filled, self.written = self.filled, 0
        return self.draws[:filled], self.levels[:filled]

    def state(self) -> dict[str, Any]:
        """All of it, in plain types and tensors."""
        return {"draws": self.draws, "levels": self.levels, "written": self.written}

    def restore(self, state: dict[str, Any]) -> None:
        """What :meth:`state` has answered. Copies: the buffer is written in place, and the state is the caller's."""
        self.draws, self.levels = (None if its is None else its.clone() for its in (state["draws"], state["levels"]))
        self.written = int(state["written"])
