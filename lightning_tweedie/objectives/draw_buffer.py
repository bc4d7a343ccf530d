"""A bounded store of posterior draws."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["DrawBuffer", "Place"]

Place = Literal["device", "memory", "disk"]
"""Where draws are kept: beside the network; in main memory; or in a file, of which that holds as much as it can."""


class DrawBuffer:
    """Draws, each with some levels of noise: first that of the datum behind it. The oldest are replaced first.

    Args:
        capacity: Number of draws kept; if null, to be set before the first are written, or that of a checkpoint.
        place: Where. Files are in the system's folder for temporary ones (``TMPDIR``), and gone with the process.
    """

    def __init__(self, capacity: int | None, place: Place = "device") -> None:
        self.capacity = capacity
        self.place = place
        self.draws: Tensor | None = None
        self.levels: Tensor | None = None
        self.written = 0

    @property
    def filled(self) -> int:
        """Number of draws that are there."""
        return min(self.written, self.capacity or 0)

    @property
    def is_full(self) -> bool:
        """Whether it has been filled once."""
        return self.capacity is not None and self.written >= self.capacity

    def _empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.place != "disk":
            return torch.zeros(*shape, dtype=dtype, device=device)
        # The mapping keeps the file when its name is gone.
        with tempfile.NamedTemporaryFile(prefix="lightning_tweedie_draws_") as file:
            count = torch.Size(shape).numel()
            try:
                file.truncate(count * dtype.itemsize)
                if hasattr(os, "posix_fallocate"):  # a file with holes would find the disk full when it is too late
                    os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            except OSError as error:
                raise UserError(
                    f"replay: {self.capacity} draws need {count * dtype.itemsize / 2**20:,.0f} MiB of disk "
                    f"({error.strerror}): set TMPDIR to a folder with more room, or replay.capacity lower"
                ) from None
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(*shape)

    def write(self, draws: Tensor, levels: Tensor) -> None:
        """Adds draws ``(K, *shape)`` with their levels ``(K, ...)``; of more than fit the first are taken."""
        assert self.capacity is not None
        draws, levels = draws[: self.capacity], levels[: self.capacity]
        device = draws.device if self.place == "device" else torch.device("cpu")
        if self.draws is None or self.levels is None:
            self.draws = self._empty((self.capacity, *draws.shape[1:]), draws.dtype, device)
            self.levels = levels.new_zeros(self.capacity, *levels.shape[1:], device=device)
        # One from a checkpoint may be elsewhere still.
        self.draws, self.levels = self.draws.to(device, draws.dtype), self.levels.to(device, levels.dtype)
        slots = (self.written + torch.arange(len(draws), device=device)) % self.capacity
        self.draws[slots], self.levels[slots] = draws.to(device), levels.to(device)
        self.written += len(draws)

    def pick(self, count: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draws picked at random, ``(count, *shape)``, and their levels ``(count, ...)``, on the device of ``like``."""
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
        self.written = int(state["written"])
        self.levels = None if state["levels"] is None else state["levels"].clone()
        self.draws = None
        if state["draws"] is not None:
            theirs = state["draws"]
            self.capacity = len(theirs) if self.capacity is None else self.capacity
            self.draws = self._empty(theirs.shape, theirs.dtype, theirs.device)
            self.draws.copy_(theirs)
