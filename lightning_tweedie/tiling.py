"""Images larger than those that a network was trained on: the denoiser looks at overlapping tiles of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_tweedie.errors import UserError

__all__ = ["TiledDenoiser"]


class TiledDenoiser(nn.Module):
    """A denoiser of images of any size, made of one for tiles.

    Every answer is the weighted mean of those of the tiles that cover a pixel. Weights are zero in the outer quarter of
    the overlap, where a tile's answer suffers from not seeing beyond its edge, and rise smoothly from there; so
    neighbours take over from each other without a seam. Because it is the *denoiser* that is tiled, a solver runs on
    the whole image with one noise for all of it, and posterior draws of neighbouring tiles agree with each other.

    An image that is smaller than a tile is continued by its mirror image.

    Args:
        denoiser: ``E[x_0 | x]`` for tiles.
        tile: Height and width of a tile, as in training.
        overlap: Share of a tile that it has in common with the next one at least, in (0, 1).
        batch_size: Tiles looked at at once.

    Raises:
        UserError: The overlap is none.
    """

    def __init__(self, denoiser: nn.Module, tile: Sequence[int], overlap: float = 0.5, batch_size: int = 16) -> None:
        super().__init__()
        if not 0 < overlap < 1:
            raise UserError(f"overlap = {overlap:g} must be between 0 and 1: the share that two tiles have in common")
        self.denoiser = denoiser
        self.tile = (int(tile[0]), int(tile[1]))
        self.overlap = overlap
        self.batch_size = batch_size

    @property
    def sigma_data(self) -> Tensor:
        """That of the denoiser."""
        return self.denoiser.sigma_data  # type: ignore[return-value]

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The expected clean images.

        Args:
            x: Noisy images ``(B, C, H, W)``.
            sigma: Their level, a number or ``(B,)``, ``> 0``.

        Returns:
            ``(B, C, H, W)``.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        if tuple(x.shape[-2:]) == self.tile:
            return self.denoiser(x, sigma)
        height, width = x.shape[-2:]
        rows, columns = (_mirrored(size, tile, x.device) for size, tile in zip((height, width), self.tile, strict=True))
        x = x[..., rows[:, None], columns]
        starts = [self.starts(size, tile) for size, tile in zip(x.shape[-2:], self.tile, strict=True)]
        places = [(n, top, left) for n in range(len(x)) for top in starts[0] for left in starts[1]]
        total, weight = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
        for number in range(0, len(places), self.batch_size):
            some = places[number : number + self.batch_size]
            tiles = torch.stack([self._cut(x[n], top, left) for n, top, left in some])
            answers = self.denoiser(tiles, sigma[[n for n, _, _ in some]])
            for answer, (n, top, left) in zip(answers, some, strict=True):
                window = self._window(0, top, x.shape[-2], x)[:, None] * self._window(1, left, x.shape[-1], x)
                self._cut(total[n], top, left).add_(answer * window)
                if n == 0:
                    self._cut(weight, top, left).add_(window)
        return (total / weight)[..., :height, :width]

    def count(self, shape: Sequence[int]) -> int:
        """How many tiles are looked at for one image ``(C, H, W)``."""
        return math.prod(
            len(self.starts(max(size, tile), tile)) for size, tile in zip(shape[-2:], self.tile, strict=True)
        )

    def _cut(self, image: Tensor, top: int, left: int) -> Tensor:
        return image[..., top : top + self.tile[0], left : left + self.tile[1]]

    def starts(self, size: int, tile: int) -> list[int]:
        """Where tiles begin along one axis: as few as overlap enough, evenly spread."""
        steps = math.ceil((size - tile) / max(1, math.floor(tile * (1 - self.overlap))))
        return [round(i * (size - tile) / steps) for i in range(steps + 1)] if steps else [0]

    def _window(self, axis: int, start: int, size: int, like: Tensor) -> Tensor:
        """Weights along one axis of a tile, ``(tile,)``, in (0, 1]; at the edge of the image a tile is alone."""
        tile = self.tile[axis]
        ramp = max(1, math.floor(tile * self.overlap))
        # From the edge inwards: nothing for a quarter of the overlap, then a cosine up to its end.
        at = (torch.arange(tile, device=like.device, dtype=like.dtype) + 0.5) / ramp
        rise = torch.sin(((at - 0.25) / 0.75).clamp(0, 1) * (math.pi / 2)).square() + 1e-6
        window = torch.ones(tile, device=like.device, dtype=like.dtype)
        window = window if start == 0 else window * rise
        return window if start + tile == size else window * rise.flip(0)


def _mirrored(size: int, tile: int, device: torch.device) -> Tensor:
    """Row numbers that continue ``size`` rows by their mirror image to at least ``tile``."""
    at = torch.arange(max(size, tile), device=device) % (2 * size)
    return torch.where(at < size, at, 2 * size - 1 - at)
