"""Features of the right images in the right order, once; and samples to distances on any number of processes."""

import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import generator
from process_group import in_processes
from test_evaluation_samples import network
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import (
    data_digest,
    extract_features,
    reference_statistics,
    stacked_pixels,
)
from lightning_tweedie.evaluation.noisy_images import renoise
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.quality import sample_quality
from lightning_tweedie.evaluation.samples import CHUNK, generate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.pictures import to_uint8
from lightning_tweedie.sampling import Heun

N = 2 * CHUNK + 100
"""Three chunks of unequal length."""


class Features(nn.Module):
    """A convolution, so that rounding depends on the batch; counts what it sees."""

    def __init__(self, broken_after: float = float("inf")) -> None:
        super().__init__()
        self.seen = 0
        self.broken_after = broken_after
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        with torch.no_grad():
            for parameter in self.convolution.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator(7)))

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        if self.seen > self.broken_after:
            raise KeyboardInterrupt
        return self.convolution(pixels.float() / 127.5 - 1).relu().mean((2, 3))


def extractor(name: str = "features", digest: str = "0", **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(Features(**settings), name, digest, 8)


def seen(features: FeatureExtractor) -> int:
    return features.network.seen  # type: ignore[return-value]


def images(n: int = N, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(n, 1, 4, 4, generator=generator(seed))


class Items(Dataset[Tensor]):
    """A plain map-style set."""

    def __init__(self, items: Sequence[Tensor]) -> None:
        self.items = items
        self.reads = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.items[index]


def test_features_are_those_of_the_extractor_in_order() -> None:
    features = extractor()
    expected = features(images())
    for given in (images(), Items(list(images()))):
        found = extract_features(given, extractor(), batch_size=50)
        assert found.features is not None and found.n == N
        torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-6)
    chosen = [5, 3, 599, 3]
    some = extract_features(images(), extractor(), indices=chosen)
    torch.testing.assert_close(some.features, expected[chosen], rtol=1e-5, atol=1e-6)
    origin = found.provenance
    assert origin is not None
    assert (origin.extractor, origin.extractor_digest, origin.dtype) == ("features", "0", "float32")
    assert origin.resize == features.resize and origin.data_digest == data_digest(images())


def test_images_of_several_sizes() -> None:
    sizes = [(4, 4), (6, 4), (4, 4), (5, 5), (6, 4)] * 20
    several = [torch.randn(3 if i % 2 else 1, *size, generator=generator(i)) for i, size in enumerate(sizes)]
    found = extract_features(Items(several), extractor(), batch_size=3)
    expected = torch.cat([extractor()(image[None]) for image in several])
    torch.testing.assert_close(found.features, expected, rtol=1e-5, atol=1e-6)


def test_a_transform_knows_the_number_of_its_image() -> None:
    noise = torch.randn(N, 1, 4, 4, generator=generator(1))
    found = extract_features(images(), extractor(), indices=[7, 400], transform=lambda image, i: image + noise[i])
    expected = extract_features((images() + noise)[[7, 400]], extractor())
    assert torch.equal(found.features, expected.features)  # type: ignore[arg-type]
    assert found.provenance == expected.provenance


def test_what_is_not_a_number_stays_so() -> None:
    broken = images(6)
    broken[3, 0, 1, 1] = torch.nan
    features = extract_features(broken, extractor()).features
    assert features is not None and features.isnan().any(1).tolist() == [False] * 3 + [True] + [False] * 2
    black = broken.nan_to_num(-1.0)
    assert data_digest(broken) != data_digest(black)


@pytest.mark.parametrize("item", [torch.zeros(2, 4, 4), torch.zeros(4, 4), torch.zeros(3)])
def test_what_is_no_image_is_refused(item: Tensor) -> None:
    with pytest.raises(UserError, match="item 2 has shape"):
        extract_features(Items([*images(2), item]), extractor())


def test_what_is_on_another_scale_is_refused() -> None:
    with pytest.raises(UserError, match="item 0 is of type uint8: give images as floats"):
        extract_features(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), extractor())


def test_the_digest_is_that_of_the_pixels_as_they_are_seen() -> None:
    base = to_uint8(images()) / 127.5 - 1
    digest = data_digest(base)
    step = 1 / 127.5
    assert data_digest(base + 0.4 * step) == digest, "the same after rounding to 8 bits"
    assert data_digest(base.expand(-1, 3, -1, -1)) == digest, "grey as colour"
    changed = base.clone()
    changed[N - 1, 0, 0, 0] += step if changed[N - 1, 0, 0, 0] < 0 else -step
    others = [base[:-1], base.flip(0), changed, base.reshape(N, 1, 2, 8), torch.cat([base, base[-1:]])]
    assert len({digest, *(data_digest(other) for other in others)}) == 1 + len(others)
    assert data_digest(base, indices=range(N - 1)) == data_digest(base[:-1])


def test_an_interrupted_call_continues(tmp_path: Path) -> None:
    whole = extract_features(images(), extractor()).features
    with pytest.raises(KeyboardInterrupt):
        extract_features(images(), extractor(broken_after=CHUNK + 100), store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    features = extractor()
    found = extract_features(images(), features, store=tmp_path)
    assert torch.equal(found.features, whole) and seen(features) == N - CHUNK  # type: ignore[arg-type]
    # Nothing of this is taken for something else: other images, another network, another name of it.
    for other, data in ((extractor(), images(seed=1)), (extractor(digest="1"), images()), (extractor("x"), images())):
        extract_features(data, other, store=tmp_path)
        assert seen(other) == N
    damaged = next(tmp_path.glob("00000000-*.npy"))
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[: 50 if path == damaged else None])
    assert torch.equal(extract_features(images(), extractor(), store=tmp_path).features, whole)  # type: ignore[arg-type]


def test_the_reference_is_passed_through_the_network_once(tmp_path: Path) -> None:
    features, data = extractor(), Items(list(images()))
    first = reference_statistics(data, features, cache_dir=tmp_path)
    assert (seen(features), data.reads) == (N, 2 * N), "once for the digest, once for the features"
    (path,) = tmp_path.iterdir()
    features = extractor()
    again = reference_statistics(data, features, cache_dir=tmp_path)
    assert seen(features) == 0 and data.reads == 3 * N
    for a, b in ((first.features, again.features), (first.mean, again.mean), (first.cov, again.cov)):
        assert torch.equal(a, b)  # type: ignore[arg-type]
    assert first.provenance == again.provenance
    FeatureStatistics.load(path).check(features, N, data_digest(data))
    for other, indices in ((extractor(digest="1"), None), (extractor(), range(N - 1)), (extractor(), range(N)[::-1])):
        reference_statistics(data, other, indices=indices, cache_dir=tmp_path)
        assert seen(other) == (N if indices is None else len(indices)), "something else was taken for this"


def test_an_interrupted_reference_continues(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        reference_statistics(images(), extractor(broken_after=CHUNK), cache_dir=tmp_path)
    features = extractor()
    reference_statistics(images(), features, cache_dir=tmp_path)
    assert seen(features) == N - CHUNK
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"], "the parts are removed"


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path) -> None:
    first = reference_statistics(images(), extractor(), cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.warns(UserWarning, match="is made again"):
        again = reference_statistics(images(), extractor(), cache_dir=tmp_path)
    assert torch.equal(first.features, again.features)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reference_statistics(images(), extractor(), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="are not kept for later calls"):
        found = reference_statistics(images(), extractor(), cache_dir=tmp_path / "file")
    assert found.n == N


# Several processes.

N_REFERENCE = CHUNK + 10
"""Two chunks: of three processes one has no reference image."""


def from_samples_to_numbers(folder: Path, n: int) -> dict[str, Any]:
    """All there is between a network and a table, as a command does it."""
    processes = Processes()
    samples = generate(network(), (1, 4, 4), n, Heun(3), batch_size=64, store=folder / "samples")
    noisy = renoise(samples, torch.full((n,), 0.2), seed=0, indices=range(n))
    generated = extract_features(samples, extractor(), batch_size=64)
    renoised = extract_features(noisy, extractor(), batch_size=64, store=folder / "features")
    reference = reference_statistics(images(N_REFERENCE), extractor(), batch_size=64, cache_dir=folder / "cache")
    metrics = sample_quality(generated, reference, ["fid", "kid", "prc"])
    proximal = sample_quality(renoised, reference, ["fid", "kid"])
    return {
        "samples": samples,
        "features": generated.features,
        "mean": generated.mean,
        "cov": generated.cov,
        "renoised": renoised.features,
        "reference": reference.features,
        "digests": [s.provenance and s.provenance.data_digest for s in (generated, renoised, reference)],
        "values": {name: tuple(value) for name, value in metrics.items()},
        "proximal": {name: tuple(value) for name, value in proximal.items()},
        "rank": processes.rank,
    }


def assert_same(a: Any, b: Any, where: str) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize(
    ("n", "counts"),
    [
        (N, [1, 2, 3]),
        (300, [3]),  # two chunks for three processes: the third has no sample
    ],
)
def test_numbers_are_identical_on_one_two_and_three_processes(tmp_path: Path, n: int, counts: list[int]) -> None:
    alone = from_samples_to_numbers(tmp_path / "alone", n)
    assert np.isfinite(list(alone["values"].values())).all() and len(alone["values"]) == 6
    for count in counts:
        results = in_processes(count, from_samples_to_numbers, tmp_path / str(count), n)
        assert [result.pop("rank") for result in results] == list(range(count))
        for result in results:
            for name, value in result.items():
                assert_same(alone[name], value, f"{name} on {count} processes")
    # What three processes have begun, this one continues.
    for name, value in from_samples_to_numbers(tmp_path / "3", n).items():
        assert_same(alone[name], value, f"{name}, continued")


def one_damaged_item(n: int) -> str:
    items = [*images(n - 1), torch.zeros(2)]
    try:
        extract_features(Items(items), extractor())
    except UserError as error:
        return str(error)
    return "well"


def test_a_damaged_item_ends_all_processes() -> None:
    said = in_processes(2, one_damaged_item, 2 * CHUNK)
    assert said[0] == said[1] and f"item {2 * CHUNK - 1} has shape (2,)" in said[0]


def test_pixels_of_many_images_without_many_floats() -> None:
    class Watched(Dataset[Tensor]):
        alive = most = 0

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Tensor:
            image = torch.full((3, 8, 8), index / 50 - 1)
            Watched.alive += 1
            Watched.most = max(Watched.most, Watched.alive)
            weakref.finalize(image, Watched.forget)
            return image

        @classmethod
        def forget(cls) -> None:
            cls.alive -= 1

    chosen = list(range(0, 100, 2)) + [3] * 50
    pixels = stacked_pixels(Watched(), chosen, "a")
    assert torch.equal(pixels, torch.stack([to_uint8(Watched()[i]) for i in chosen]))
    assert Watched.most <= 64, "two blocks of floats at most"
    with pytest.raises(UserError, match="the images in 'a' have several sizes"):
        stacked_pixels([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], [0, 1], "a")  # type: ignore[arg-type]
