"""Noisy images, and their kind of noise put into samples: what measures need that do without clean images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator, item_noise
from lightning_tweedie.tweedie import expand

__all__ = ["NoisyImages", "NoisyView", "renoise"]


class NoisyView(Dataset[Tensor]):
    """The noisy items alone, ``(*shape)``, without their levels and numbers.

    Args:
        noisy: What ``noisy_set()`` of a data module gives back.
    """

    def __init__(self, noisy: NoisyDataset) -> None:
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> Tensor:
        """One noisy item."""
        return self.noisy[index].x_n

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Several at once, which is quicker for data in memory."""
        return list(self.noisy.__getitems__(indices).x_n.unbind())

    def level(self, index: int) -> Tensor:
        """Noise level of an item, ``()`` or ``(*shape)``."""
        levels = self.noisy.sigma_n
        if isinstance(levels, Tensor) and levels.ndim == 1:
            return levels[self.noisy.places[index]]
        return self.noisy[index].sigma_n  # a map moves with the pixels, and some items bring their level


@dataclass(frozen=True)
class NoisyImages:
    """Noisy images that samples are compared with.

    Args:
        images: The images.
        indices: Numbers of those that are used.
        level: Noise level of one of them by its number, ``()`` or with the shape of the image, on the scale of data in
            [-1, 1].
        sigma_n: The largest level.
        grey: Whether their noise is the same in all channels.
        correlation: That of their noise; none when None.
    """

    images: Dataset[Tensor]
    indices: Sequence[int]
    level: Callable[[int], Tensor]
    sigma_n: float
    grey: bool
    correlation: Correlation | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first image."""
        return tuple(self.images[self.indices[0]].shape)

    def like(self, image: Tensor) -> Tensor:
        """An image with as many channels as the noise of these has, so that noise put into it is like theirs.

        Raises:
            UserError: It is in colour, and these are grey.
        """
        if not self.grey:
            return image.expand(3, -1, -1)
        if not bool((image == image[:1]).all()):
            raise UserError(
                "proximal measures put the noise of grey images into samples, and these are in colour: give noisy "
                "images in colour, or leave these measures out"
            )
        return image[:1]

    def renoising(self, seed: int) -> Callable[[Tensor, int], Tensor]:
        """Puts noise into sample ``i``, at the level of some noisy image that belongs to ``i``."""
        # At random: the levels may be in some order, and there may be fewer samples than levels.
        order = item_generator(seed, "evaluate/levels", 0).permutation(len(self.indices))

        def transform(image: Tensor, index: int) -> Tensor:
            level = self.level(self.indices[order[index % len(order)]])
            return renoise(self.like(image)[None], level[None], seed, [index], self.correlation)[0]

        return transform


def renoise(
    images: Tensor, sigma_n: Tensor, seed: int, indices: Sequence[int], correlation: Correlation | None = None
) -> Tensor:
    """Puts noise into samples, so that they can be compared with noisy data: proximal measures need no clean image.

    The noise of a sample depends on the seed and its number alone.

    Args:
        images: Samples ``(B, *shape)``.
        sigma_n: Level of each, ``(B,)``, or ``(B, *shape)`` where it differs from pixel to pixel, ``>= 0``.
        seed: The user's seed.
        indices: Number of each sample, length ``B``.
        correlation: That of the noise; none when None.

    Returns:
        ``images + sigma_n z`` with ``z`` standard normal, ``(B, *shape)`` float32. It is not clipped.
    """
    z = torch.stack([item_noise(seed, "proximal", int(i), images.shape[1:]) for i in indices])
    z = z if correlation is None else correlation.colour(z)
    return images + expand(sigma_n, images) * z.to(images)
