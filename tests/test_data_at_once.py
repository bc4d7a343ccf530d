"""Reading many items at once: the very same as one by one, and in flat memory."""

import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lightning_tweedie import datamodules
from lightning_tweedie.data.augmentation import Augmentation
from lightning_tweedie.data.images import open_files
from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.datamodules import Images
from lightning_tweedie.errors import UserError
from lightning_tweedie.randomness import item_generator, item_generators, item_noise, items_noise

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3, 5, 7), dtype=np.uint8)


def test_one_generator_set_from_item_to_item_draws_what_one_of_its_own_would() -> None:
    indices = [5, 0, 2**62, 5]
    for draw, index in zip(item_generators(3, "noise", indices), indices, strict=True):
        draw.random(dtype=np.float32)  # an odd number of halves: what is left over must not reach the next item
        assert draw.random() != item_generator(3, "noise", index).random()
    alone = [item_generator(3, "noise", index).random(7) for index in indices]
    together = [draw.random(7) for draw in item_generators(3, "noise", indices)]
    np.testing.assert_array_equal(together, alone)
    rows = items_noise(3, "noise", indices, (3, 5))
    for row, index in zip(rows, indices, strict=True):
        assert torch.equal(row, item_noise(3, "noise", index, (3, 5)))
        key = item_generator(3, "noise", 0).bit_generator.state["state"]["key"]
        fresh = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
        assert np.array_equal(row, fresh.standard_normal((3, 5), dtype=np.float32))
    assert torch.equal(rows[0], rows[3]) and not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("name", ["hflip", "vflip", "rot90", "shift:3", "shift:40", "crop:4"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_batch_is_moved_as_its_items_are(name: str, lead: tuple[int, ...]) -> None:
    x = torch.randn(20, *lead, 6, 6 if name == "rot90" else 9, generator=torch.Generator().manual_seed(0))
    augmentation, indices, epochs = Augmentation([name], 0), list(range(30, 10, -1)), [4, 5] * 10
    (moved,) = augmentation([x], indices, epochs)
    size = int(name.partition(":")[2] or 0)
    for item, its, index, epoch in zip(x, moved, indices, epochs, strict=True):
        u = augmentation._draws(epoch, max(indices))[index, 0]
        by = (int(np.floor(v * (2 * size + 1))) - size for v in u)
        i, j = (int(v * (length - size + 1)) for v, length in zip(u, item.shape[-2:], strict=True))
        expected = {
            "hflip": item.flip(-1) if u[0] < 0.5 else item,
            "vflip": item.flip(-2) if u[0] < 0.5 else item,
            "rot90": item.rot90(int(u[0] * 4), (-2, -1)),
            "shift": item.roll(tuple(by), (-2, -1)),
            "crop": item[..., i : i + size, j : j + size],
        }
        assert torch.equal(its, expected[name.partition(":")[0]])
    assert not torch.equal(moved, augmentation([x], indices, [6] * 20)[0])


def write(path: Path, kind: str) -> Path:
    """The same images in many ways."""
    path.mkdir()
    if kind.startswith("h5"):
        with h5py.File(path / "a.h5", "w", userblock_size=512) as file:
            file.create_dataset("images", data=PIXELS, **({"chunks": (5, 3, 5, 7)} if kind == "h5 in chunks" else {}))
        return path
    made = {
        "channels first": PIXELS,
        "channels last": PIXELS.transpose(0, 2, 3, 1),
        "grey": PIXELS[:, 0],
        "16 bits": PIXELS * np.uint16(257),
        "foreign floats": (PIXELS / 200 - 0.7).astype(">f4"),
        "two files": PIXELS[:5],
    }[kind]
    np.save(path / "a.npy", made)
    if kind == "two files":
        np.save(path / "b.npy", PIXELS[5:])
    return path


@pytest.mark.parametrize(
    "kind", ["channels first", "channels last", "grey", "16 bits", "foreign floats", "two files", "h5", "h5 in chunks"]
)
def test_images_at_once_are_those_one_by_one(tmp_path: Path, kind: str) -> None:
    images = open_files(write(tmp_path / "set", kind))
    assert len(images) == 12
    order = [11, 3, 3, 0, 7, 4, 5]
    taken = images.take(order)
    assert taken is not None and torch.equal(taken, torch.stack([images[i] for i in order]))
    expected = PIXELS[order, :1] if kind == "grey" else PIXELS[order]
    values = (expected / 200 - 0.7).astype(np.float32) if kind == "foreign floats" else expected / 127.5 - 1
    np.testing.assert_allclose(taken, values, atol=1e-6)
    in_one_piece = isinstance(images.open(0)[0].array, np.memmap)
    assert in_one_piece == (kind != "h5 in chunks")


def test_what_must_be_read_one_by_one_is(tmp_path: Path) -> None:
    floats = (PIXELS / 127.5 - 1).astype(np.float32)
    floats[7, 1, 2, 3] = np.nan
    np.save(tmp_path / "a.npy", floats)
    images = open_files(tmp_path)
    assert images.take([1, 2]) is not None and images.take([2, 7]) is None
    data = NoisyDataset(images, torch.full((12,), 0.1))
    with pytest.raises(UserError, match=r"a\.npy\[7\] has 1 of 105 values that are not finite"):
        data.scan()
    np.save(tmp_path / "a.npy", PIXELS)
    for other, sentence in (
        (PIXELS[:, :, :4], r"item 12 \(b\.npy\[0\]\) has shape \(3, 4, 7\) but others"),
        (PIXELS * np.uint16(9), r"b\.npy\[0\] holds uint16 but others hold uint8"),
        (PIXELS[:, :1], r"b\.npy\[0\] has 1 channels but others have 3"),
    ):
        np.save(tmp_path / "b.npy", other)
        images = open_files(tmp_path)
        with pytest.raises(UserError, match=sentence):
            NoisyDataset(images, torch.full((len(images),), 0.1)).scan()


def private_bytes() -> int:
    """Memory of this process but for mapped files, whose pages the system takes back when it needs them."""
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))


def test_a_set_larger_than_what_may_be_kept_is_read_in_flat_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, shape = 16000, (3, 32, 32)
    pixels = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (count, *shape))
    pixels[:] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    del pixels
    noisy = 4 * count * 3 * 32 * 32

    def grown(keep: int) -> tuple[int, torch.Tensor]:
        monkeypatch.setattr(datamodules, "KEEP_BYTES", keep)
        data = Images(root=str(tmp_path), sigma=0.2, augment=["hflip"], holdout=100)
        before, most, last = private_bytes(), 0, torch.empty(0)
        data.setup("fit")
        for batch in data.train_dataloader():
            most, last = max(most, private_bytes() - before), batch.x_n
        return most, last

    limit = noisy // 2  # chunks of 256 images on several threads want some tens of MB, however many there are
    flat, last = grown(keep=noisy // 8)
    kept, same = grown(keep=noisy)
    assert flat < limit < noisy * 0.9 < kept
    assert torch.equal(last, same)


def test_a_list_of_a_million_images_takes_no_room(tmp_path: Path) -> None:
    count = 10**6
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (count, 1, 2, 3)).flush()
    tracemalloc.start()
    try:
        images = open_files(tmp_path)
        assert (len(images), images.names[-1], images.items[count - 1]) == (
            count,
            f"a.npy[{count - 1}]",
            (0, count - 1),
        )
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        # What a list of names alone would take, of a hundredth of them.
        before = tracemalloc.get_traced_memory()[0]
        some = [images.names[i] for i in range(count // 100)]
        assert (tracemalloc.get_traced_memory()[0] - before) * count / len(some) > 50 * (1 << 20)
    finally:
        tracemalloc.stop()
    with pytest.raises(IndexError):
        images.items[count]
    os.remove(tmp_path / "a.npy")
