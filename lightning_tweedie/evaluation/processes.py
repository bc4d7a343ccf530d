"""Work that is dealt to several processes and put together again, the same whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["Processes"]

T = TypeVar("T")


class Processes:
    """The processes of ``torch.distributed`` if it has been initialised, else this one alone.

    Whole chunks are dealt, and a chunk is the same on any number of processes. So the batches inside a chunk are the
    same too, and with them the rounding in the networks: results agree bitwise, on devices of one kind and with as many
    threads in each process.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if alone else dist.get_rank()
        self.size = 1 if alone else dist.get_world_size()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def deal(self, n: int, chunk: int) -> list[range]:
        """This process' chunks of ``0 ... n - 1``: chunk ``k`` goes to process ``k mod size``.

        Args:
            n: Number of items.
            chunk: Items in a chunk; the last one may have fewer.

        Returns:
            The chunks, possibly none.

        Examples:
            >>> Processes().deal(5, 2)
            [range(0, 2), range(2, 4), range(4, 5)]
        """
        chunks = [range(start, min(start + chunk, n)) for start in range(0, n, chunk)]
        return chunks[self.rank :: self.size]

    def gather(self, parts: Mapping[int, Tensor], n: int) -> Tensor:
        """Puts together what all processes have. Every process must ask.

        Args:
            parts: Rows ``(k, *shape)`` under the number of their first row; empty if this process has none.
            n: Number of rows in all; each must be in exactly one part of one process.

        Returns:
            All rows in order, ``(n, *shape)`` on the CPU, bitwise as they were, on every process.
        """
        mine = {start: (len(rows), tuple(rows.shape[1:]), rows.dtype) for start, rows in sorted(parts.items())}
        everyones = self._exchange(mine)
        owners = sorted((start, rank) for rank, heads in enumerate(everyones) for start in heads)
        heads = [everyones[rank][start] for start, rank in owners]
        ends = [0, *(start + head[0] for (start, _), head in zip(owners, heads, strict=True))]
        kinds = {head[1:] for head in heads}
        if [start for start, _ in owners] != ends[:-1] or ends[-1] != n or len(kinds) != 1:
            raise RuntimeError(f"the parts of {self.size} processes do not make {n} rows of one kind: {everyones}")
        shape, dtype = kinds.pop()
        rows = torch.empty(n, *shape, dtype=dtype)
        # One part after the other: several times the result would not fit into memory.
        for (start, rank), end in zip(owners, ends[1:], strict=True):
            if rank == self.rank:
                rows[start:end] = parts[start].detach().cpu()
            if self.size > 1:
                part = rows[start:end].to(self._device)
                dist.broadcast(part, src=rank)
                rows[start:end] = part
        return rows

    def tell(self, value: T) -> T:
        """What the first process says; what the others say does not count. Every process must ask."""
        if self.size == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, device=self._device)
        return told[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work in which a mistake that one process finds ends them all; without this the others would wait for ever.

        Raises:
            UserError: The work of some process raised it: the sentence of the first that did.
        """
        problem = None
        try:
            yield
        except UserError as error:
            problem = str(error)
        for sentence in self._exchange(problem):
            if sentence is not None:
                raise UserError(sentence)

    def _exchange(self, value: T) -> list[T]:
        """What each process says, in the order of their numbers."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    @property
    def _device(self) -> torch.device:
        """Where tensors must be to travel: NCCL carries only those on a GPU."""
        if dist.get_backend() == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
