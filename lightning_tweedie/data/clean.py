"""Clean items, for evaluation only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.data.noisy import NoisyDataset

__all__ = ["CleanView"]


class CleanView(Dataset[Tensor]):
    """What the items of a noisy set were before the noise: single tensors ``(*shape)`` in [-1, 1].

    Args:
        noisy: A set into which noise is injected.
    """

    def __init__(self, noisy: NoisyDataset) -> None:
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> Tensor:
        """One clean item."""
        return self.noisy.clean([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Several at once, which is quicker for data in memory."""
        return list(self.noisy.clean(indices).unbind())
