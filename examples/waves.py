"""A data set of one-dimensional signals: decaying oscillations that begin at random times."""

import numpy as np

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.datamodules import NoisyDataModule


class Waves(NoisyDataModule):
    """Signals ``(1, length)``: channels first, then time. The network has to take that shape: see conv1d.py."""

    def __init__(self, items: int = 5000, length: int = 64, **kwargs) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.length = length

    def train_set(self) -> ArrayDataset:
        draw = np.random.default_rng(0).uniform
        begin, period, decay = draw([[0], [6], [10]], [[self.length / 2], [16], [30]], size=(3, self.items))
        since = np.arange(self.length) - begin[:, None]
        signals = np.exp(-since / decay[:, None]) * np.sin(2 * np.pi * since / period[:, None])
        return ArrayDataset(np.where(since > 0, signals, 0.0)[:, None])
