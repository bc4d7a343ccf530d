"""Small sets of images, and a quick encoder of them, for tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_tweedie.randomness import item_noise


class Encoder(nn.Module):
    """Mean and deviation of the brightness in four parts of an image: few features, so that distances are regular."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1, keepdim=True)
        mean, square = (F.adaptive_avg_pool2d(x, 2).flatten(1) for x in (grey, grey.square()))
        return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], dim=1)


ENCODER = "image_sets.Encoder"


def image_sets() -> dict[str, Tensor]:
    """Two sets of 40 colour images on 8-bit levels, of nearly the same law."""
    made = {}
    for seed, (name, mean) in enumerate({"generated": 0.1, "reference": 0.0}.items()):
        noise = torch.stack([item_noise(seed, "test", i, (3, 12, 12)) for i in range(40)])
        broad = F.interpolate(noise[..., :3, :3], 12)  # what the encoder sees is not averaged away
        made[name] = ((broad * 0.3 + noise * 0.1 + mean).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    return made


def as_uint8(images: Tensor) -> np.ndarray:
    return (images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write_folder(images: Tensor, folder: Path) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(as_uint8(images)):
        Image.fromarray(pixels.squeeze()).save(folder / f"{number:03}.png")
    return folder
