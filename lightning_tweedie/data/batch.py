"""What a data loader hands to the training step."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_tweedie.correlation import Correlation


class NoisyBatch(NamedTuple):
    """A batch of noisy items, each with the level of the noise that it already holds.

    Attributes:
        x_n: The data as they are, ``(B, *shape)`` float32; clean data live in [-1, 1].
        sigma_n: Standard deviation of the noise in ``x_n``, on the same scale, ``>= 0``:
            ``(B,)``, or ``(B, *shape)`` where it differs from pixel to pixel.
        index: Number of each item in its data set, ``(B,)`` int64.
        x_0: The clean items, ``(B, *shape)``, where they exist and only for evaluation; training
            batches always have ``None`` here.
        correlation: That of the noise, the same in all items; ``None`` if it is independent between pixels.
        least: A number that no level is below, in main memory: with it a GPU need not be asked, and waited for, which
            items are noisy. Zero is always right.
    """

    x_n: Tensor
    sigma_n: Tensor
    index: Tensor  # type: ignore[assignment]  # hides the tuple's own method, which nobody calls
    x_0: Tensor | None = None
    correlation: Correlation | None = None
    least: float = 0.0
