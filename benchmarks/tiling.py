"""Does a large image that is restored in tiles show seams, and how far is it from the untiled result?

A small U-Net without attention, which images of any size can go through whole, learns to denoise parts of 64 x 64
pixels of scikit-image's photos. Then an image of 2,000 x 3,000 pixels, those photos side by side, is restored whole and
in tiles, from noise of 25 on the scale of 0..255. A seam would be a jump: the table compares steps between neighbouring
pixels of the error across the edges of tiles with such steps elsewhere.

    python benchmarks/tiling.py --out docs/images/tiling.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.levels import LogUniform
from lightning_tweedie.networks import UNet
from lightning_tweedie.objectives import Objective, ScoreMatching
from lightning_tweedie.pictures import panel, save
from lightning_tweedie.tiling import TiledDenoiser

SIGMA = 25 / 127.5
PHOTOS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "motorcycle_left", "rocket", "camera", "moon")
SIDE, SIZE = 64, (2000, 3000)


def photo(name: str) -> Tensor:
    """A photo in grey, ``(H, W)`` in [-1, 1]."""
    file = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1


def mosaic(photos: list[Tensor]) -> Tensor:
    """Photos side by side and below each other, repeated where they end, ``(1, 1, *SIZE)``."""
    side = 500
    cells = [p.repeat(2, 2)[:side, :side] for p in photos]
    rows = [
        torch.cat([cells[(6 * i + j) % len(cells)] for j in range(SIZE[1] // side)], 1) for i in range(SIZE[0] // side)
    ]
    return torch.cat(rows)[None, None]


def train(photos: list[Tensor], steps: int) -> Denoiser:
    """A denoiser of parts of the photos."""
    torch.manual_seed(0)
    denoiser = Denoiser(UNet(1, width=32, multipliers=[1, 2], blocks=1, attention=[], patch=2), sigma_data=0.5)
    objective = Objective(ScoreMatching(levels=LogUniform(sigma_min=0.05, sigma_max=0.5)))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for step in tqdm(range(steps), desc="training"):
        parts = []
        for _ in range(16):
            image = photos[int(torch.randint(len(photos), (), generator=generator))]
            top, left = (int(torch.randint(size - SIDE + 1, (), generator=generator)) for size in image.shape)
            parts.append(image[top : top + SIDE, left : left + SIDE])
        x = torch.stack(parts)[:, None]
        loss = objective(denoiser, x, torch.zeros(len(x)), progress=step / steps, generator=generator).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return denoiser.eval()


@torch.no_grad()
def main() -> None:
    """Trains, restores, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, help="file for the picture")
    args = parser.parse_args()
    photos = [photo(name) for name in PHOTOS]
    with torch.enable_grad():
        denoiser = train(photos, args.steps)
    clean = mosaic(photos)
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    level = torch.full((1,), SIGMA)
    whole = denoiser(noisy, level)
    print("| overlap | PSNR whole | PSNR in tiles | difference, of the noise | steps at edges, of those elsewhere |")
    print("|---|---|---|---|---|")
    shown = [("noisy", noisy), ("whole", whole)]
    for overlap in (0.02, 0.25, 0.5):
        tiled = TiledDenoiser(denoiser, (SIDE, SIDE), overlap=overlap, batch_size=32)
        result = tiled(noisy, level)
        edges = torch.tensor(tiled.starts(SIZE[1], SIDE)[1:])
        jumps = (result - clean).diff(dim=-1).abs().mean((0, 1, 2))
        across = torch.cat([jumps[edges - 1], jumps[edges + SIDE - 1 - (edges + SIDE == SIZE[1]).long()]])
        ratio = float(across.mean() / jumps.mean())
        apart = float((result - whole).square().mean().sqrt()) / SIGMA
        print(
            f"| {overlap} | {psnr(whole, clean):.2f} | {psnr(result, clean):.2f} | {100 * apart:.1f} % | {ratio:.3f} |"
        )
        shown.append((f"tiles, overlap {overlap}", result))
    if args.out:
        middle = [(title, x[..., 400:656, 400:656]) for title, x in shown]
        save(panel(middle, side=256), args.out)


def psnr(x: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio of data in [-1, 1]."""
    return float(10 * torch.log10(4 / (x - clean).square().mean()))


if __name__ == "__main__":
    main()
