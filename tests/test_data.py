"""Noisy items: the same wherever they are read, augmented without a leak, refused where they are wrong."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.augmentation import Augmentation
from lightning_tweedie.data.clean import CleanView
from lightning_tweedie.data.noisy import NoisyDataset, collate
from lightning_tweedie.data.sampler import Draw, ResumableSampler
from lightning_tweedie.data.statistics import estimate_sigma_data
from lightning_tweedie.data.transform import build_transform
from lightning_tweedie.errors import UserError


def images(count: int = 40, size: int = 6) -> torch.Tensor:
    return torch.rand(count, 2, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def noisy(count: int = 40, augment: Sequence[str] = (), **settings: object) -> NoisyDataset:
    base = ArrayDataset(images(count))
    return NoisyDataset(base, torch.full((count,), 0.3), augmentation=Augmentation(augment, 0), **settings)  # type: ignore[arg-type]


class Plain:
    """A map-style set of whatever it is given."""

    def __init__(self, items: Sequence[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


# Reading.


def test_one_by_one_in_batches_with_workers_and_kept_in_memory_agree() -> None:
    data = noisy()
    one_by_one = torch.stack([data[i].x_n for i in range(40)])
    kept = noisy()
    kept.keep()
    lists = NoisyDataset(Plain(list(images())), torch.full((40,), 0.3))
    for other in (data, kept, lists):
        for workers in (0, 2):
            loader = DataLoader(other, batch_size=7, num_workers=workers, collate_fn=collate)
            batches = list(loader)
            assert torch.equal(torch.cat([b.x_n for b in batches]), one_by_one)
            assert torch.equal(torch.cat([b.index for b in batches]), torch.arange(40))
            assert all(b.x_0 is None for b in batches)
    assert torch.equal(collate([data[3], data[1]]).x_n, one_by_one[[3, 1]])


def test_reading_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    transform = build_transform([{"class_path": "Resize", "init_args": {"height": 5, "width": 5}}])
    data = noisy(augment=["hflip", "rot90", "shift:1", "crop:4"], transform=transform)
    for _ in ResumableSampler(data, 4):
        pass
    data.__getitems__([Draw(1, 3), Draw(2, 3)])
    data.keep()
    estimate_sigma_data(data)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_the_residual_has_the_law_of_the_noise() -> None:
    data = noisy(2000, with_clean=True)
    batch = data.__getitems__(range(2000))
    assert batch.x_0 is not None
    z = ((batch.x_n - batch.x_0) / 0.3).double()
    n = z.numel()
    assert abs(z.mean().item()) < 4 / math.sqrt(n)
    assert abs(z.square().mean().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z[..., 1:] * z[..., :-1]).mean().item()) < 4 / math.sqrt(n * 5 / 6)
    # Independent of the image: the noise knows nothing of what it covers.
    assert abs((z * batch.x_0).mean().item()) < 4 * math.sqrt(1 / 3 / n)


def test_places_keep_their_noise() -> None:
    part = noisy(places=[5, 17, 2])
    whole = noisy()
    batch = part.__getitems__([0, 1, 2])
    assert batch.index.tolist() == [5, 17, 2]
    assert torch.equal(batch.x_n, whole.__getitems__([5, 17, 2]).x_n)


def test_labels_are_not_levels() -> None:
    pairs = Plain([(image, label) for label, image in enumerate(images(4))])
    batch = NoisyDataset(pairs, torch.full((4,), 0.3)).__getitems__([0, 1, 2, 3])
    assert torch.equal(batch.sigma_n, torch.full((4,), 0.3))
    assert torch.equal(batch.x_n, noisy(4).__getitems__([0, 1, 2, 3]).x_n)
    with pytest.raises(UserError, match=r"item 0 of the data is not a pair \(x_n, sigma_n\) with a float sigma_n"):
        NoisyDataset(pairs, None, inject=False).__getitems__([0])


def test_data_noisy_by_nature_are_left_as_they_are() -> None:
    x = 3 * torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0.1, 0.2, 0.0, 0.4])
    levels_map = level[:, None, None, None].expand(4, 1, 3, 3)
    for base in (Plain(list(zip(x, level.tolist(), strict=True))), ArrayDataset(x, level)):
        batch = NoisyDataset(base, None, inject=False, with_clean=True).__getitems__([0, 1, 2, 3])
        assert torch.equal(batch.x_n, x)
        assert torch.equal(batch.sigma_n, level)
        assert batch.x_0 is None
    batch = NoisyDataset(ArrayDataset(x, levels_map), None, inject=False).__getitems__([2, 3])
    assert torch.equal(batch.sigma_n, levels_map[2:])
    assert NoisyDataset(ArrayDataset(x, level), None, inject=False).scan() == level.max()


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (torch.zeros(1, 2, 2, dtype=torch.uint8), r"item 1 of the data is of type uint8: .* v / 127\.5 - 1"),
        (np.zeros((1, 2, 2), np.int64), "is of type int64"),
        ("a path", "is of type str"),
        (torch.full((1, 2, 2), 255.0), r"item 1 has values from 255 to 255, but clean images must be in \[-1, 1\]"),
        (torch.full((1, 2, 2), float("nan")), "has values from nan to nan"),
        (torch.zeros(1, 3, 2), r"item 1 has shape \(1, 3, 2\) but others have \(1, 2, 2\): .* data\.transform"),
    ],
)
def test_bad_items_are_found_before_training(item: object, sentence: str) -> None:
    items: list[object] = [torch.zeros(1, 2, 2)] * 600
    items[1] = item
    data = NoisyDataset(Plain(items), torch.full((600,), 0.1))
    for read in (data.scan, data.keep):
        with pytest.raises(UserError, match=sentence) as caught:
            read()
        assert "more items" not in str(caught.value)
    items[599] = item
    with pytest.raises(UserError, match=r"item 1 .*\(1 more items are bad too\)"):
        data.scan()


def test_unbounded_vectors_and_noisy_images_may_leave_the_unit_range() -> None:
    NoisyDataset(Plain([torch.tensor([1.4, -1.2])]), torch.tensor([0.1])).scan()
    NoisyDataset(Plain([torch.full((1, 2, 2), 4.0)]), torch.tensor([2.0]), inject=False).scan()
    with pytest.raises(UserError, match="on the scale of"):
        NoisyDataset(Plain([torch.full((1, 2, 2), 255.0)]), torch.tensor([2.0]), inject=False).scan()


@pytest.mark.parametrize("level", [-0.1, 25.0, float("nan")])
def test_bad_levels_of_pairs(level: float) -> None:
    with pytest.raises(UserError, match=r"item 0 has sigma_n = .*: give a standard deviation >= 0"):
        NoisyDataset(Plain([(torch.zeros(3), level)]), None, inject=False).scan()


def test_clean_view_is_for_evaluation() -> None:
    data = noisy(places=[3, 1])
    view = CleanView(data)
    assert torch.equal(torch.stack([view[0], view[1]]), images()[[3, 1]])
    assert torch.equal(next(iter(DataLoader(view, batch_size=2))), images()[[3, 1]])


# The spread of the clean data.


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.5])
def test_sigma_data_is_that_of_the_clean_data(sigma: float) -> None:
    n, values = 4000, 16
    x_0 = 0.2 + 0.5 * torch.randn(n, values, generator=torch.Generator().manual_seed(1))
    levels = torch.full((n,), sigma)
    levels[::3] = 0.1
    found = estimate_sigma_data(NoisyDataset(ArrayDataset(x_0), levels))
    total = 0.25 + levels.double().square()
    # Var of the estimate of the variance: 2 v^2 per value, v the variance of that value.
    error = math.sqrt(2 * total.square().mean().item() / (n * values))
    assert abs(found**2 - 0.25) < 4 * error


def test_noise_larger_than_the_spread() -> None:
    x = torch.tensor([-0.2, 0.2]).repeat(250, 2)
    data = NoisyDataset(ArrayDataset(x), torch.full((500,), 0.5), inject=False)
    with pytest.raises(UserError, match=r"data\.sigma = 0\.5 is larger than the whole spread of the noisy data, 0\.2:"):
        estimate_sigma_data(data)


# Augmentation after the noise.


def test_augmentation_shows_one_noisy_image_only() -> None:
    """However often it is seen, an item is a flip or turn of the same noisy image: nothing averages out."""
    data = noisy(augment=["hflip", "vflip", "rot90"])
    x_n = noisy()[7].x_n
    allowed = [turned for k in range(4) for y in (x_n, x_n.flip(-1)) for turned in [y.rot90(k, (-2, -1))]]
    seen = [data.__getitems__([Draw(7, epoch)]).x_n[0] for epoch in range(200)]
    which = [next(k for k, a in enumerate(allowed) if torch.equal(a, s)) for s in seen]
    counts = np.bincount(which, minlength=8)
    assert ((counts - 25) ** 2 / 25).sum() < 24.3  # all eight equally likely: chi-squared, 7 degrees of freedom


def test_average_over_epochs_does_not_reveal_the_image() -> None:
    """Undoing the flips, the mean of 100 epochs is as noisy as one look. With fresh noise it would be clean."""
    data = noisy(augment=["hflip"], with_clean=True)
    looks = [data.__getitems__([Draw(i, epoch) for i in range(40)]) for epoch in range(100)]
    residual = torch.stack([(b.x_n - b.x_0) for b in looks])  # type: ignore[operator]
    flipped = torch.stack([torch.stack([r, r.flip(-1)]) for r in residual])
    reference = (noisy().__getitems__(range(40)).x_n - images()).expand(100, -1, -1, -1, -1)
    undone = torch.where(
        (flipped[:, 0] - reference).abs().flatten(2).amax(-1)[..., None, None, None] < 1e-5,
        flipped[:, 0],
        flipped[:, 1],
    )
    power = undone.mean(0).double().square().mean().item()
    assert abs(power / 0.09 - 1) < 4 * math.sqrt(2 / (40 * 72))


@pytest.mark.parametrize("names", [["hflip"], ["vflip"], ["rot90"], ["shift:2"], ["crop:4"], ["shift:3", "crop:5"]])
def test_augmentation_keeps_white_noise_white(names: list[str]) -> None:
    z = torch.randn(4000, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    (moved,) = Augmentation(names, 0)([z], range(4000), [2] * 4000)
    flat = moved.flatten(1).double()
    covariance = flat.T @ flat / len(flat)
    error = (covariance - torch.eye(flat.shape[1], dtype=torch.float64)).abs().max().item()
    assert error < 5.5 * math.sqrt(2 / len(flat))


def test_augmentation_moves_maps_and_clean_images_alike() -> None:
    x = images(8)
    level = (x + 2) / 10
    data = NoisyDataset(
        ArrayDataset(x, level), None, inject=False, augmentation=Augmentation(["rot90", "shift:2", "crop:3"], 0)
    )
    batch = data.__getitems__([Draw(i, 5) for i in range(8)])
    assert torch.allclose((batch.x_n + 2) / 10, batch.sigma_n)
    clean = noisy(augment=["rot90", "shift:2"], with_clean=True).__getitems__([Draw(i, 5) for i in range(40)])
    plain = noisy().__getitems__(range(40))
    assert clean.x_0 is not None
    assert not torch.equal(clean.x_0, images())
    moved = (clean.x_n - clean.x_0).flatten(1).sort().values
    assert torch.allclose(moved, (plain.x_n - images()).flatten(1).sort().values, atol=1e-6)


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    x = images(40)
    names = ["hflip", "vflip", "rot90", "shift:2"]
    one = Augmentation(names, 0)
    together = one([x], range(40), [1] * 40)[0]
    for epoch in (2, 3):
        assert not torch.equal(one([x], range(40), [epoch] * 40)[0], together)
    fresh = Augmentation(names, 0)
    for i in (39, 0, 17):
        assert torch.equal(fresh([x[i : i + 1]], [i], [1])[0][0], together[i])
    mixed = one([x[:2]], [0, 1], [1, 9])[0]
    assert torch.equal(mixed[0], together[0])
    assert not torch.equal(Augmentation(names, 1)([x], range(40), [1] * 40)[0], together)


def test_crops_are_uniform_over_all_places() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3).expand(4500, -1, -1, -1)
    (corner,) = Augmentation(["crop:2"], 0)([x], range(4500), [0] * 4500)
    counts = np.unique(corner[:, 0, 0, 0].numpy(), return_counts=True)
    assert counts[0].tolist() == [0, 1, 3, 4]
    assert ((counts[1] - 1125) ** 2 / 1125).sum() < 16.3


@pytest.mark.parametrize(
    ("names", "shape", "sentence"),
    [
        (["rotate"], (1, 4, 4), "'rotate' is not allowed after the noise, where only hflip"),
        (["crop"], (1, 4, 4), "'crop' is not allowed"),
        (["hflip:3"], (1, 4, 4), "'hflip:3' is not allowed"),
        (["crop:5"], (1, 4, 6), "crop:5 does not fit images of 4 x 6"),
        (["rot90"], (1, 4, 6), "rot90 needs square images, but they are 4 x 6"),
        (["hflip"], (2,), "hflip needs images"),
    ],
)
def test_bad_augmentation(names: list[str], shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Augmentation(names, 0).check(shape)


# Transforms before the noise.


def test_transform_is_exact_on_the_scale_of_the_data() -> None:
    x = images(1, size=8)[0]
    crop = build_transform([{"class_path": "albumentations.CenterCrop", "init_args": {"height": 4, "width": 4}}])
    assert torch.allclose(crop(x), x[:, 2:6, 2:6], atol=1e-6)
    half = build_transform({"class_path": "A.Resize", "init_args": {"height": 4, "width": 4, "interpolation": 3}})
    assert torch.allclose(half(x), torch.nn.functional.avg_pool2d(x, 2), atol=1e-5)  # 3: area
    grey = build_transform([{"class_path": "ToGray", "init_args": {"p": 1, "num_output_channels": 1}}])
    colour = torch.stack([x[0], x[1], x[0]])
    assert torch.allclose(grey(colour)[0], 0.413 * x[0] + 0.587 * x[1], atol=1e-3)


def test_crop_of_noisy_data_does_not_clip() -> None:
    x = 5 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    crop = build_transform([{"class_path": "CenterCrop", "init_args": {"height": 4, "width": 4}}], inject=False)
    assert torch.equal(crop(x), x[:, 2:6, 2:6])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"class_path": "albumentations.RandomCrop", "init_args": {"height": 4, "width": 4}}, "RandomCrop is random"),
        ({"class_path": "HorizontalFlip"}, "HorizontalFlip is random"),
        ({"class_path": "GaussNoise"}, "GaussNoise is random"),
        ({"class_path": "Resize", "init_args": {"height": 4, "width": 4, "p": 0.5}}, r"Resize\(p=0.5\) is random"),
        ({"class_path": "ToGray"}, r"ToGray\(p=0.5\) is random"),
        ({"class_path": "PadIfNeeded", "init_args": {"position": "random"}}, r'PadIfNeeded\(position="random"\)'),
        ({"class_path": "SmallestMaxSize", "init_args": {"max_size": [4, 8]}}, "draws its size at random"),
    ],
)
def test_random_transforms_before_the_noise_are_refused(spec: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason + ".*several looks at one clean image, which is a leak.*data.augment"):
        build_transform([spec])


def test_random_transforms_inside_others_are_refused() -> None:
    import albumentations as A

    build_transform(A.Compose([A.Resize(4, 4), A.CenterCrop(2, 2)]))
    for inner in ([A.Resize(4, 4), A.RandomCrop(2, 2)], [A.Sequential([A.HorizontalFlip(p=0.5)], p=1)]):
        with pytest.raises(UserError, match="leak"):
            build_transform(A.Compose(inner))
    with pytest.raises(UserError, match="leak"):
        build_transform(A.OneOf([A.Resize(4, 4), A.Resize(5, 5)], p=1))


@pytest.mark.parametrize(
    ("spec", "inject", "sentence"),
    [
        ({"class_path": "albumentations.Rezise"}, True, "albumentations has no Rezise"),
        ({"class_path": "os.system"}, True, "os.system is not from albumentations"),
        ({"height": 4}, True, "is not a transform: write"),
        ({"class_path": "Resize", "init_args": {"height": 4}}, True, "Resize does not take"),
        ({"class_path": "Resize", "init_args": {"height": 4, "width": 4}}, False, "correlates the noise"),
    ],
)
def test_bad_transforms(spec: dict[str, object], inject: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_transform([spec], inject=inject)
