"""How well the level of white noise is estimated from noisy images alone, by method, level and data.

These methods are compared:

* ``ours``: lightning_tweedie.noise.estimation, all images pooled;
* ``ours, median``: its estimates from single images;
* ``wavelets``: scikit-image's estimate_sigma, median absolute deviation of Daubechies wavelets, median over images;
* ``chen``: eigenvalues of the covariance of patches, Chen, Zhu and Heng 2015, image by image, median over images;
* ``chen, pooled``: the same of the patches of all images;
* ``eigenvalue``: the smallest eigenvalue of that covariance.

Clean images are cut into 64 x 64 pixels and noise is added, on the scale of 8-bit levels; stored as floats, or rounded
and cut off at 0 and 255. The table shows (estimate - truth) / truth, the mean over the seeds.

    python benchmarks/noise_level.py --out docs/results/noise_level.json
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from skimage.restoration import estimate_sigma
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.data.fashion_mnist import read_fashion_mnist
from lightning_tweedie.noise.estimation import estimate_noise
from lightning_tweedie.noise.patches import take_patches

PHOTOS = (
    "astronaut brick camera cell chelsea clock_motion coffee coins grass gravel hubble_deep_field ihc microaneurysms "
    "moon motorcycle_left motorcycle_right page retina rocket text"
).split()
"""The photos that come with scikit-image."""
TEXTURES = ("grass", "gravel", "brick")
SIDE = 64
LEVELS = (5.0, 10.0, 25.0, 50.0)


def read(path: Path) -> Tensor:
    """A photo, ``(C, H, W)``, 0 to 255."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("L" if image.mode in ("L", "P", "1") else "RGB"))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1).float()


def tiles(image: Tensor, count: int) -> list[Tensor]:
    """Up to ``count`` parts of an image that do not overlap, chosen at random, always the same."""
    rows, columns = (range(0, size - SIDE + 1, SIDE) for size in image.shape[1:])
    places = [(i, j) for i in rows for j in columns]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()[:count]
    return [image[:, i : i + SIDE, j : j + SIDE] for i, j in (places[k] for k in order)]


def photos(names: tuple[str, ...] | list[str] = PHOTOS, count: int = 16) -> list[Tensor]:
    """Parts of the photos of scikit-image."""
    folder = Path(skimage.data.__file__).parent
    files = [next(path for path in folder.glob(f"{name}.*") if path.suffix in (".png", ".jpg")) for name in names]
    return [tile for file in files for tile in tiles(read(file), count)]


def fourier(count: int = 100) -> list[Tensor]:
    """Textures without any flat part: the amplitude falls with the frequency, phases are random."""
    frequency = torch.fft.fftfreq(SIDE)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    radius[0, 0] = 1.0
    noise = torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    images = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    return list(images / images.std() * 50 + 128)


def waves(count: int = 100) -> list[Tensor]:
    """Images that are one wave of any length each."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    draws = torch.rand(count, 3, generator=torch.Generator().manual_seed(2)).tolist()
    return [(128 + 80 * torch.sin(2 * math.pi * (0.45 * a * x + 0.45 * b * y + c)))[None] for a, b, c in draws]


def small(array: Any, count: int = 500) -> list[Tensor]:
    """The first images of a published set."""
    return list(torch.as_tensor(np.asarray(array)[:count]).float())


def data_sets(folder: str | None) -> dict[str, Callable[[], list[Tensor]]]:
    """The clean images by name."""
    sets: dict[str, Callable[[], list[Tensor]]] = {
        "20 photos": photos,
        "grass, gravel, brick": lambda: photos(TEXTURES, 64),
        "Fashion-MNIST": lambda: small(read_fashion_mnist(None, train=True)),
        "MNIST": lambda: small(read_digits()),
        "1/f textures": fourier,
        "waves": waves,
    }
    if folder:
        files = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".png"))
        sets[f"{len(files)} photos of {Path(folder).name}"] = lambda: [t for f in files for t in tiles(read(f), 30)]
    return sets


def covariance_spectrum(images: list[Tensor], side: int = 6, stride: int = 2) -> Tensor:
    """Eigenvalues, descending, of the covariance of all patches; channels count as images."""
    windows = [x.unfold(1, side, stride).unfold(2, side, stride).reshape(-1, side**2) for x in images]
    return torch.linalg.eigvalsh(torch.cov(torch.cat(windows).double().T)).flip(0)


def chen(images: list[Tensor], stride: int = 2) -> float:
    """The largest tail of the eigenvalues whose mean is its median."""
    values = covariance_spectrum(images, stride=stride)
    tails = (values[i:] for i in range(len(values)))
    tail = next(tail for tail in tails if len(tail) == 1 or tail.mean() <= tail.quantile(0.5))
    return math.sqrt(float(tail.mean()))


def estimates(images: list[Tensor]) -> dict[str, float]:
    """Sigma by every method."""
    one = [image if len({i.shape[0] for i in images}) == 1 else image[:1] for image in images]
    ours = estimate_noise(take_patches(one, len(one)))
    wavelets = [estimate_sigma(image.numpy(), channel_axis=0, average_sigmas=True) for image in images]
    return {
        "ours": ours.sigma,
        "standard_error": ours.standard_error,
        "ours, median": float(ours.per_image.nanmedian()),
        "wavelets": float(np.median(wavelets)),
        "chen": float(np.median([chen([image], stride=1) for image in images])),
        "chen, pooled": chen(images),
        "eigenvalue": math.sqrt(float(covariance_spectrum(images)[-1])),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="noises")
    parser.add_argument("--folder", help="further photos")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    cases = [(sigma, "floats") for sigma in LEVELS] + [(25.0, "8 bits")]
    rows: list[dict[str, Any]] = []
    for name, make in data_sets(args.folder).items():
        clean = make()
        for sigma, stored in tqdm(cases, desc=name):
            found: list[dict[str, float]] = []
            for seed in range(args.seeds):
                generator = torch.Generator().manual_seed(seed)
                noisy = [x + sigma * torch.randn(x.shape, generator=generator) for x in clean]
                found.append(estimates([x.round().clamp(0, 255) for x in noisy] if stored == "8 bits" else noisy))
            row: dict[str, Any] = {"data": name, "n": len(clean), "sigma": sigma, "stored": stored}
            for method in found[0]:
                values = np.array([each[method] for each in found]) / sigma
                if method == "standard_error":
                    row["ours, standard error"] = round(float(values.mean()), 4)
                else:
                    row[method] = round(float(values.mean()) - 1, 4) if np.isfinite(values).all() else None
            spread = np.std([each["ours"] for each in found], ddof=1) / sigma if args.seeds > 1 else None
            rows.append(row | {"ours, standard deviation": None if spread is None else round(float(spread), 4)})
    methods = ["ours", "ours, median", "wavelets", "chen", "chen, pooled", "eigenvalue"]
    print("| data | n | sigma | stored as | " + " | ".join(methods) + " |")
    print("|" + "---|" * (4 + len(methods)))
    for row in rows:
        bias = " | ".join("" if row[method] is None else f"{100 * row[method]:+.1f} %" for method in methods)
        print(f"| {row['data']} | {row['n']} | {row['sigma']:g} | {row['stored']} | {bias} |")
    command = f"python benchmarks/noise_level.py --seeds {args.seeds}" + (
        f" --folder {Path(args.folder).name}" if args.folder else ""
    )
    device = f"{args.threads} {platform.machine()} core(s)"
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"seeds": args.seeds, "device": device, "command": command}
        args.out.write_text(json.dumps([row | facts for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
