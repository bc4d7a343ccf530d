"""What a term of the objective is.

A term says at which points it wants the denoiser and turns the answers into a loss. The points of all
terms go through the network in one batch: whatever the objective, a step has one forward pass with a
gradient, which keeps it cheap and needs nothing special under distributed training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import DenoiserLike, Noise, normal_like

__all__ = ["Query", "Step", "Term"]


@dataclass
class Step:
    """What a term may use in one training step.

    Attributes:
        x_n: Data ``(B, *shape)``, in coordinates in which noise is independent: pixels, or, where it is correlated,
            those of :class:`~lightning_tweedie.correlation.Correlation`. Denoisers are asked and answer in the same.
        sigma_n: Their noise level ``(B,)`` or ``(B, *shape)``, on the scale of the data.
        teacher: Denoiser for draws without gradient: the EMA's where there is one.
        sigma_data: Standard deviation of the clean data.
        generator: Source of every random number of this step.
        progress: Share of the training that is done, in [0, 1].
        passes: How often the training has seen each item so far, on average, ``>= 0``; 0 where that is not known.
        room: Number of items, the first ones, for which the first term of an objective may ask the denoiser; all when
            ``None``.
        least: A number that no item's level is below. With it a GPU need not be asked which items are noisy.
    """

    x_n: Tensor
    sigma_n: Tensor
    teacher: DenoiserLike
    sigma_data: Tensor
    generator: torch.Generator | None = None
    progress: float = 1.0
    passes: float = 0.0
    room: int | None = None
    least: float = 0.0

    @property
    def noise(self) -> Noise:
        """Fresh standard normal noise."""
        return normal_like(self.generator)

    @property
    def item_level(self) -> Tensor:
        """One level per item, ``(B,)``: the largest where the noise differs between pixels."""
        return self.sigma_n if self.sigma_n.ndim == 1 else self.sigma_n.flatten(1).amax(1)

    def noisy(self, share: float, floor: float = 0.0) -> Tensor | slice:
        """The first items with a level above ``floor``, up to a share of the batch, as an index."""
        most = max(1, round(share * len(self.x_n)))
        # The number of rows that a mask picks is known only when the device has got there.
        return slice(most) if self.least > floor else (self.item_level > floor).nonzero()[:most, 0]


@dataclass
class Query:
    """Points at which a term needs the denoiser, with gradient, and its loss there.

    Attributes:
        x: Points ``(M, *shape)``.
        sigma: Their levels ``(M,)``.
        loss: Turns the answers ``(M, *shape)`` into one loss per item ``(K,)``.
        level: Level of each of those losses ``(K,)``, for the log.
    """

    x: Tensor
    sigma: Tensor
    loss: Callable[[Tensor], Tensor]
    level: Tensor


class Term(nn.Module):
    """A summand of the objective that can be switched on late in training.

    Args:
        weight: Factor of the term once it is fully on, ``> 0``.
        start: Share of the training after which the term sets in, in [0, 1).
        ramp: Share of the training over which its weight then grows from 0 to ``weight``.
    """

    name: str

    def __init__(self, weight: float = 1.0, start: float = 0.0, ramp: float = 0.0) -> None:
        super().__init__()
        if weight <= 0 or not 0 <= start < 1 or not 0 <= ramp <= 1:
            raise UserError(
                f"{type(self).__name__} needs weight > 0, start in [0, 1) and ramp in [0, 1], not "
                f"weight = {weight}, start = {start}, ramp = {ramp}"
            )
        self.weight = weight
        self.start = start
        self.ramp = ramp

    def weight_at(self, progress: float) -> float:
        """The factor at ``progress``, the share of the training that is done, in [0, 1]."""
        if progress < self.start:
            return 0.0
        return self.weight * min(1.0, (progress - self.start) / self.ramp) if self.ramp else self.weight

    def query(self, step: Step) -> Query | None:
        """What the term asks of the denoiser in this step; ``None`` when it has nothing to ask."""
        raise NotImplementedError
