"""Real photos, from scikit-image, in parts of 64 x 64 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

NAMES = (
    "astronaut brick camera cell chelsea clock_motion coffee coins grass gravel hubble_deep_field ihc microaneurysms "
    "moon motorcycle_left motorcycle_right page retina rocket text"
).split()


def photos(count: int = 4) -> Tensor:
    """Up to ``count`` parts of each of twenty photos, grey, ``(N, 1, 64, 64)`` in [-1, 1]."""
    folder = Path(skimage.data.__file__).parent
    parts = []
    for name in NAMES:
        file = next(path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg"))
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1
        tiles = [
            pixels[i : i + 64, j : j + 64]
            for i in range(0, pixels.shape[0] - 63, 64)
            for j in range(0, pixels.shape[1] - 63, 64)
        ]
        order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(0)).tolist()
        parts += [tiles[k] for k in order[:count]]
    return torch.stack(parts)[:, None]
