"""The order of the training data, resumable at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator

__all__ = ["Draw", "ResumableSampler"]


class Draw(NamedTuple):
    """An item to be read in training.

    Attributes:
        place: Its place in the data set.
        epoch: The number of the time that it is seen, on which its augmentation depends.
    """

    place: int
    epoch: int


class ResumableSampler(DistributedSampler[Draw]):
    """Shuffled training data as one endless sequence of batches, a pure function of the seed.

    Each epoch is a new permutation of all items, cut into batches of ``batch_size * num_replicas`` items; the few that
    are left over are left out in that epoch. Every rank takes its share of each batch. Where an iteration starts is
    not remembered but asked for: ``position()`` is the number of batches that have been trained on, which every
    checkpoint knows. So a run that was interrupted anywhere goes on with the very items that come next.

    It is a ``DistributedSampler`` so that Lightning leaves it alone. Without ``position`` it behaves like one:
    ``set_epoch`` before each epoch.

    Args:
        dataset: The items; only its length is used.
        batch_size: Items of a batch on one rank.
        seed: The user's seed.
        num_replicas: Number of ranks.
        rank: Which of them this is.
        position: Gives the number of batches that are done.
        looks: How often each item is seen in an epoch, each time augmented otherwise.

    Raises:
        UserError: A batch needs more items than there are.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        position: Callable[[], int] | None = None,
        looks: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.position = position
        self.looks = looks
        self.items = len(dataset)
        self.batches = self.items * looks // (batch_size * num_replicas)
        if not self.batches:
            ranks = f" x {num_replicas} processes" if num_replicas > 1 else ""
            raise UserError(
                f"data.batch_size = {batch_size}{ranks} is more than the {self.items * looks} training items: "
                "use smaller batches or more data, or of large images several parts (data.crops)"
            )

    def __len__(self) -> int:
        """Items of one epoch on this rank."""
        return self.batches * self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of all items in one epoch, ``(N * looks,)``; a number's remainder by N is the item."""
        return item_generator(self.seed, "order", epoch).permutation(self.items * self.looks)

    def __iter__(self) -> Iterator[Draw]:
        """As many batches as an epoch has, from the position on, across the end of the epoch if need be."""
        start = self.epoch * self.batches if self.position is None else self.position()
        order, size = np.empty(0, int), self.batch_size * self.num_replicas
        for number in range(start, start + self.batches):
            epoch, batch = divmod(number, self.batches)
            if number == start or batch == 0:
                order = self.order(epoch)
            looks, places = np.divmod(
                order[batch * size : (batch + 1) * size][self.rank :: self.num_replicas], self.items
            )
            yield from map(Draw, places.tolist(), (epoch * self.looks + looks).tolist())
