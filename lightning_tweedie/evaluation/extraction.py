"""Features of many images: dealt to processes, kept on disk, with a digest of what went in."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lightning_tweedie.data.download import cache_folder
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.samples import CHUNK
from lightning_tweedie.evaluation.store import ChunkStore
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics, Provenance
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.pictures import to_uint8

__all__ = ["Images", "Transform", "data_digest", "extract_features", "reference_statistics", "stacked_pixels"]

Images = Dataset[Tensor] | Tensor
"""Images ``(C, H, W)`` in [-1, 1], ``C`` 1 or 3, of any sizes; or a tensor of them."""

_READ = 32
"""Images that are in memory as floats at a time."""

Transform = Callable[[Tensor, int], Tensor]
"""Makes of an image and its number another image."""


def data_digest(
    images: Images,
    *,
    indices: Sequence[int] | None = None,
    processes: Processes | None = None,
    transform: Transform | None = None,
) -> str:
    """Names a set of images by what an extractor sees of them: their 8-bit colour pixels, in order.

    SHA-256 over the digests of its chunks. Grey images have the digest of the same images in colour. Arguments are
    those of :func:`extract_features`.
    """
    processes = Processes() if processes is None else processes
    indices = range(len(images)) if indices is None else indices  # type: ignore[arg-type]
    parts = {}
    with processes.together():
        for chunk in processes.deal(len(indices), CHUNK):
            pixels = _pixels(images, [indices[i] for i in chunk], transform)
            parts[chunk.start // CHUNK] = _rows(_digest(pixels))
    return _digest_of_all(processes, parts, len(indices))


def extract_features(
    images: Images,
    extractor: FeatureExtractor,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    transform: Transform | None = None,
    store: Path | None = None,
    progress: str | None = None,
) -> FeatureStatistics:
    """Passes images through an extractor.

    The features are bitwise the same on any number of processes. Every process must ask.

    Args:
        images: Images of any sizes; each is seen rounded to 8 bits.
        extractor: The network; it is moved to the device.
        indices: Numbers of the images to use, in this order; all when absent.
        batch_size: Images in one pass.
        device: Where the network runs.
        processes: Who shares the work; all processes there are when absent.
        transform: From an image and its number to the image that is looked at, for example with noise.
        store: Folder in which the features of finished chunks are kept, under names made of the extractor and the
            pixels: an interrupted call continues, and features of other images can never be taken for these.
        progress: What the progress bar says; none when absent.

    Returns:
        The features of all images in order, on every process.

    Raises:
        UserError: An item is no image, or the store cannot be written.
    """
    processes = Processes() if processes is None else processes
    indices = range(len(images)) if indices is None else indices  # type: ignore[arg-type]
    n, chunks, finished = len(indices), processes.deal(len(indices), CHUNK), ChunkStore(store)
    extractor.to(device)
    features: dict[int, Tensor] = {}
    digests: dict[int, Tensor] = {}
    hidden = progress is None or not processes.is_first
    bar = tqdm(desc=progress, total=sum(map(len, chunks)), unit="image", leave=False, disable=hidden)
    with processes.together(), bar:
        for chunk in chunks:
            pixels = _pixels(images, [indices[i] for i in chunk], transform)
            digest = _digest(pixels)
            name = f"{chunk.start:08d}-{_key(extractor, digest.hex())}"
            found = finished.read(name, (extractor.num_features,))
            if found is None or len(found) != len(chunk):
                found = _features(pixels, extractor, batch_size, device, bar)
                finished.write(name, found)
            else:
                bar.update(len(chunk))
            features[chunk.start], digests[chunk.start // CHUNK] = found, _rows(digest)
    provenance = Provenance(
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        resize=extractor.resize,
        data_digest=_digest_of_all(processes, digests, n),
    )
    return FeatureStatistics(processes.gather(features, n), provenance=provenance)


def reference_statistics(
    images: Images,
    extractor: FeatureExtractor,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    cache_dir: Path | None = None,
    progress: str | None = None,
) -> FeatureStatistics:
    """As :func:`extract_features`, but the result is kept on disk and found again by its content.

    A file of the cache is named by the pixels, their number, the extractor and its resize, so it fits or is not
    found; an interrupted call continues.

    Args:
        images: See :func:`extract_features`, as all others.
        extractor: The network.
        indices: Numbers of the images.
        batch_size: Images in one pass.
        device: Where the network runs.
        processes: Who shares the work.
        cache_dir: Where statistics are kept; ``~/.cache/lightning_tweedie/statistics`` when absent. Its files can be
            removed at any time.
        progress: What the progress bar says.

    Returns:
        The features of all images in order, on every process.
    """
    processes = Processes() if processes is None else processes
    n = len(images) if indices is None else len(indices)  # type: ignore[arg-type]
    digest = data_digest(images, indices=indices, processes=processes)
    folder = cache_folder("statistics") if cache_dir is None else cache_dir
    path = folder / f"{extractor.name}-{n}-{_key(extractor, f'{n}/{digest}')}.npz"
    kept = _kept(path, extractor, n, digest) if processes.is_first else None
    if processes.tell(kept is not None):
        rows = {} if kept is None or kept.features is None else {0: kept.features}
        provenance = processes.tell(None if kept is None else kept.provenance)
        features = processes.gather(rows, n)
        return FeatureStatistics(features, provenance=provenance) if kept is None else kept

    parts = path.with_suffix(".parts")
    statistics = extract_features(
        images,
        extractor,
        indices=indices,
        batch_size=batch_size,
        device=device,
        processes=processes,
        store=parts if processes.tell(processes.is_first and _can_be_made(parts)) else None,
        progress=progress,
    )
    if processes.is_first:
        try:
            statistics.save(path)
        except (OSError, UserError) as error:
            if not path.is_file():  # another run may have made it just now
                _warn(f"the statistics of the reference images are not kept for later calls: {error}")
        shutil.rmtree(parts, ignore_errors=True)
    return statistics


def stacked_pixels(images: Images, indices: Sequence[int], name: str) -> Tensor:
    """8-bit levels of images of one size, ``(n, C, H, W)``; few of them are ever in memory as floats.

    Args:
        images: See :func:`extract_features`.
        indices: Numbers of the images, at least one.
        name: What messages call them.

    Raises:
        UserError: They are not all of one size.
    """
    result = None
    for start in range(0, len(indices), _READ):
        part = _pixels(images, indices[start : start + _READ], None)
        if result is None:
            result = torch.empty(len(indices), *part[0].shape, dtype=torch.uint8)
        if any(image.shape != result.shape[1:] for image in part):
            raise UserError(
                f"memorisation compares pixels, and the images in {name!r} have several sizes: bring them to one size, "
                "or leave memorisation out"
            )
        result[start : start + len(part)] = torch.stack(part)
    assert result is not None
    return result


def _pixels(images: Images, indices: Sequence[int], transform: Transform | None) -> list[Tensor]:
    """The images ``(1 or 3, H, W)`` in 8 bits; one with a value that is not finite as floats that are no numbers."""
    several = getattr(images, "__getitems__", None)
    pixels: list[Tensor] = []
    for start in range(0, len(indices), _READ):
        block = indices[start : start + _READ]
        found = list(several(block)) if several else [images[i] for i in block]
        if transform is not None:
            found = [transform(image, index) for image, index in zip(found, block, strict=True)]
        for index, image in zip(block, found, strict=True):
            if image.ndim != 3 or image.shape[0] not in (1, 3):
                raise UserError(
                    f"features are those of images (1, H, W) or (3, H, W), and item {index} has shape "
                    f"{tuple(image.shape)}: leave out distances in feature space for such data"
                )
            if not image.is_floating_point():
                raise UserError(
                    f"item {index} is of type {str(image.dtype).removeprefix('torch.')}: give images as floats in "
                    "[-1, 1] (of 8-bit values v that is v / 127.5 - 1)"
                )
        one_size = len({image.shape for image in found}) == 1
        for part in [torch.stack(found)] if one_size else [image[None] for image in found]:
            finite = part.isfinite().flatten(1).all(1).tolist()
            # Eight bits now: the extractor sees no more, and they need a quarter of the memory.
            for image, good in zip(to_uint8(part), finite, strict=True):
                pixels.append(image if good else torch.full(image.shape, torch.nan))
    return pixels


def _digest(pixels: Sequence[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for image in pixels:
        digest.update(f"{image.dtype}/{tuple(image.shape[1:])}/".encode())
        digest.update(image.expand(3, -1, -1).contiguous().cpu().numpy().tobytes())
    return digest.digest()


def _features(
    pixels: Sequence[Tensor], extractor: FeatureExtractor, batch_size: int, device: torch.device | str, bar: tqdm[Any]
) -> Tensor:
    """Features of a chunk, ``(len(pixels), d)``; images of one size go through the network together."""
    alike = defaultdict(list)
    for i, image in enumerate(pixels):
        alike[tuple(image.shape)].append(i)
    features = torch.empty(len(pixels), extractor.num_features)
    for places in alike.values():
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            images = torch.stack([pixels[i].float() / 127.5 - 1 for i in batch])
            features[batch] = extractor(images.to(device)).cpu()
            bar.update(len(batch))
    return features


def _rows(digest: bytes) -> Tensor:
    """A digest as one row, which :meth:`Processes.gather` can carry."""
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)[None]


def _digest_of_all(processes: Processes, parts: dict[int, Tensor], n: int) -> str:
    """Digest of a set of images from those of its chunks."""
    rows = processes.gather(parts, -(-n // CHUNK))
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def _key(extractor: FeatureExtractor, content: str) -> str:
    """Names the features of a content."""
    facts = f"{extractor.name}/{extractor.digest}/{extractor.resize}/float32/{content}"
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def _kept(path: Path, extractor: FeatureExtractor, n: int, digest: str) -> FeatureStatistics | None:
    """Statistics of an earlier call."""
    if not path.is_file():
        return None
    try:
        statistics = FeatureStatistics.load(path)
        statistics.check(extractor, n, digest)
        return statistics
    except UserError as error:
        _warn(f"{error} (this file of the cache is made again)")
        path.unlink(missing_ok=True)
        return None


def _can_be_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _warn(f"the statistics of the reference images are not kept for later calls: {error}")
        return False
    return True


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)
