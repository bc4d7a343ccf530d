"""A data set of images: grey discs in random places, each drawn when it is asked for."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.datamodules import NoisyDataModule


class DiscImages(Dataset[Tensor]):
    """Any map-style data set will do: a length, and items by number that are the same whenever they are read."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.pixels = np.mgrid[:size, :size]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        """One image ``(1, size, size)`` in [-1, 1]; in its place a file could be read."""
        size = self.pixels.shape[1]
        row, column, radius, grey = np.random.default_rng(index).uniform([0.3, 0.3, 0.1, 0], [0.7, 0.7, 0.3, 1])
        inside = np.hypot(self.pixels[0] - row * size, self.pixels[1] - column * size) < radius * size
        return torch.from_numpy(np.where(inside, grey, -1.0)[None]).float()


class Discs(NoisyDataModule):
    """The data module. Noise, hold-out, order and resuming come with the base class."""

    def __init__(self, items: int = 2000, size: int = 28, **kwargs) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.size = size

    def train_set(self) -> DiscImages:
        return DiscImages(self.items, self.size)
