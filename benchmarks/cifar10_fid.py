"""FID of real images: what a perfect model would get, and what noise does to it.

Makes the sets that are compared, as 8-bit images: 10,000 training images of CIFAR-10, the 10,000 test images, and the
test images with Gaussian noise of sigma 0.1, 0.2 and 0.5 (on the scale of data in [-1, 1], clamped to it). Then
`lightning_tweedie evaluate` measures them; an interrupted call goes on where it was.

    python benchmarks/cifar10_fid.py --archive cifar10-jpeg.tar.xz --out docs/results/cifar10_fid.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.commands.evaluate import evaluate
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.cifar10 import read_cifar10
from lightning_tweedie.data.images import ImageArchive
from lightning_tweedie.noise.injection import inject
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.randomness import item_generator

SIGMAS = (0.1, 0.2, 0.5)


def read(archive: str | None, train: bool) -> Tensor:
    """Images ``(N, 3, 32, 32)`` in [-1, 1], from the official archive or from one with folders of images."""
    if archive is None or archive.endswith("cifar-10-python.tar.gz"):
        images = ArrayDataset(read_cifar10(archive, train))
        return images.take(range(len(images)))
    folder = ImageArchive(archive, "train" if train else "test")
    return torch.stack([folder[i] for i in tqdm(range(len(folder)), desc="reading", leave=False)])


def store(images: Tensor, path: Path) -> None:
    """Writes 8-bit images ``(N, H, W, 3)``, the form in which the field exchanges samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, arr_0=to_uint8(images).permute(0, 2, 3, 1).numpy())


def main() -> None:
    """Makes the sets and measures them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", help="an archive with train/ and test/, or the official one; default: a download")
    parser.add_argument("--num", type=int, default=10_000, help="images in each set")
    parser.add_argument("--sets", type=Path, default=Path("runs/cifar10_fid"), help="folder for the sets")
    parser.add_argument("--metrics", default="fid,kid,prc")
    parser.add_argument("--extractor", default="inception")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/cifar10_fid/result.json")
    args = parser.parse_args()

    paths = {name: args.sets / f"{name}.npz" for name in ("train", "test", *(f"test_sigma_{s}" for s in SIGMAS))}
    if not all(path.is_file() for path in paths.values()):
        train, test = read(args.archive, True), read(args.archive, False)[: args.num]
        chosen = item_generator(args.seed, "cifar10_fid", 0).permutation(len(train))[: args.num]
        store(train[torch.from_numpy(chosen)], paths["train"])
        store(test, paths["test"])
        for sigma in SIGMAS:
            noisy = inject(test, torch.full((len(test),), sigma), range(len(test)), args.seed, "cifar10_fid")
            store(noisy, paths[f"test_sigma_{sigma}"])
    evaluate(
        out=args.out,
        generated=",".join(str(path) for name, path in paths.items() if name != "train"),
        reference=str(paths["train"]),
        metrics=args.metrics,
        extractor=args.extractor,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
