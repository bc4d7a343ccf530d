"""Training on parts of images that are larger than the network, of one size or of many."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.lib.stride_tricks import sliding_window_view

import lightning_tweedie.datamodules as datamodules
from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.data.sampler import Draw, ResumableSampler
from lightning_tweedie.datamodules import Images
from lightning_tweedie.errors import UserError

SIZES = ((40, 30), (21, 64), (33, 33), (20, 20))


def folder(path: Path) -> Path:
    for i, size in enumerate(SIZES):
        tifffile.imwrite(
            path / f"{i}.tif", np.random.default_rng(i).normal(0, 0.3, size).clip(-1, 1).astype(np.float32)
        )
    return path


def data_module(path: Path, **settings: Any) -> Images:
    defaults = {"sigma": 0.5, "augment": ["crop:16"], "crops": 8, "holdout": 0, "batch_size": 8}
    data = Images(str(path), **(defaults | settings))
    data.setup("fit")
    return data


def is_part(part: np.ndarray, whole: np.ndarray) -> bool:
    windows = sliding_window_view(whole, part.shape)
    return bool((windows == part).all((2, 3)).any())


@pytest.mark.parametrize("keep", [True, False])
def test_crops_are_parts_of_one_noisy_image(keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not keep:
        monkeypatch.setattr(datamodules, "KEEP_BYTES", 0)
    data = data_module(folder(tmp_path))
    assert data.shape == (1, 16, 16)
    assert (data._train._kept is not None) == keep  # type: ignore[union-attr]
    # The noise was put in once, before the crop: every part is found in the one noisy image.
    base = data.train_set()
    whole = [NoisyDataset(base, torch.full((4,), 0.5), places=[i])[0].x_n[0].numpy() for i in range(4)]
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    places, parts = [], set()
    for batch in batches:
        for x, index in zip(batch.x_n, batch.index, strict=True):
            assert is_part(x[0].numpy(), whole[int(index)])
            places.append(int(index))
            parts.add(x.numpy().tobytes())
    # Eight of each image in an epoch, each of them another part but by chance (the smallest image has 25).
    assert Counter(places) == {i: 8 for i in range(4)}
    assert len(parts) > 28
    other = NoisyDataset(base, torch.full((4,), 0.5), places=[0], seed=1)[0].x_n[0].numpy()
    assert not is_part(batches[0].x_n[0, 0].numpy(), other), "other noise"


def test_evaluation_sees_parts_too(tmp_path: Path) -> None:
    data = data_module(folder(tmp_path), holdout=2)
    (val,) = list(data.val_dataloader())
    assert val.x_n.shape == (2, 1, 16, 16)
    assert val.x_0 is not None
    residual = (val.x_n - val.x_0).flatten() / 0.5
    assert abs(float(residual.std()) - 1) < 5 / (2 * 512) ** 0.5
    reference = data.reference_set()
    assert reference is not None and reference[0].shape == (1, 16, 16)
    assert len(data.noisy_set().__getitems__([0, 1]).x_n) == 2


def test_sigma_data_is_estimated_from_several_parts(tmp_path: Path) -> None:
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", np.random.default_rng(i).normal(0, 0.2, (90, 80)).astype(np.float32))
    data = data_module(tmp_path, inject=False, sigma=0.1)
    # 21,600 values, of which 85 crops of 256 from each image see nearly all.
    assert data.sigma_data == pytest.approx((0.2**2 - 0.1**2) ** 0.5, rel=5 * (4 / 3) * (2 * 21_600) ** -0.5 * 1.5)


def test_several_looks_are_resumed_where_they_were() -> None:
    items = range(10)
    whole = list(ResumableSampler(items, 4, seed=3, looks=3))
    assert len(whole) == 28 and set(whole) < {Draw(place, look) for place in items for look in range(3)}
    assert len(set(whole)) == 28
    second = ResumableSampler(items, 4, seed=3, looks=3)
    second.set_epoch(1)
    later = list(ResumableSampler(items, 4, seed=3, looks=3, position=lambda: 5))
    assert later == whole[20:] + list(second)[:20]
    assert {draw.epoch for draw in second} == {3, 4, 5}
    ranks = [list(ResumableSampler(items, 2, seed=3, looks=3, num_replicas=2, rank=rank)) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == sorted(whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": ["crop:24"]}, r"item 1 \(1\.tif\): data\.augment: crop:24 does not fit images of 21 x 64"),
        ({"augment": ["hflip"]}, "data.crops = 8 but nothing is cropped"),
        ({"augment": ["hflip"], "crops": 1}, r"item 1 \(1\.tif\) has shape .* cut parts of one size out of them"),
        ({"crops": 0}, "data.crops = 0 is too small"),
        ({"batch_size": 40}, r"batch_size = 40 is more than the 32 training items.*data\.crops"),
    ],
)
def test_what_cannot_be_cropped(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        data_module(folder(tmp_path), **settings)
