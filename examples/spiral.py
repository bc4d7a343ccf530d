"""A data set of vectors: points on a spiral in the plane, all in one array."""

import numpy as np

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.datamodules import NoisyDataModule


class Spiral(NoisyDataModule):
    """Vectors ``(2,)``. Columns of a table would do as well, once they are of the order of 1."""

    def __init__(self, items: int = 20_000, turns: float = 1.5, **kwargs) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.turns = turns

    def train_set(self) -> ArrayDataset:
        along = np.sqrt(np.random.default_rng(0).uniform(size=self.items))
        angle = 2 * np.pi * self.turns * along
        return ArrayDataset(np.stack([along * np.cos(angle), along * np.sin(angle)], axis=1))
