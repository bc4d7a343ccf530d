"""Feature statistics: their numbers, what is written and read back, and what is refused."""

import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import generator
from torch import nn

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics, Provenance
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.frechet import frechet_distance

ORIGIN = Provenance("net", "d1", "bilinear 8", "images")
EXTRACTOR = FeatureExtractor(nn.Identity(), "net", "d1", 5, "bilinear 8")


def statistics(n: int = 40, provenance: Provenance | None = ORIGIN) -> FeatureStatistics:
    return FeatureStatistics(torch.randn(n, 5, generator=generator()), provenance=provenance)


# Numbers


def test_mean_and_covariance_keep_their_digits_far_from_zero() -> None:
    # Values of 1000 with a spread of 0.1: the difference of the sums of squares, in float32, would be all rounding.
    features = 1000 + 0.1 * torch.randn(9000, 3, generator=generator())
    got, expected = FeatureStatistics(features), features.double()
    np.testing.assert_allclose(got.mean, expected.mean(0), rtol=1e-13)
    np.testing.assert_allclose(got.cov, np.cov(expected.numpy(), rowvar=False), rtol=1e-9)
    careless = (features.mT @ features - len(features) * torch.outer(features.mean(0), features.mean(0))) / 8999
    assert (careless.diagonal() / got.cov.diagonal() - 1).abs().max() > 0.1


def test_rows_are_weighed_alike_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = statistics().cov
    monkeypatch.setattr("lightning_tweedie.metrics.feature_statistics._ROWS", 7)
    torch.testing.assert_close(statistics().cov, expected, rtol=1e-12, atol=1e-14)


# Files


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stats.npz"
    saved = statistics()
    saved.save(path)
    assert FeatureStatistics.is_statistics(path)
    read = FeatureStatistics.load(path)
    assert read.features is not None and saved.features is not None
    for a, b in ((read.features, saved.features), (read.mean, saved.mean), (read.cov, saved.cov)):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert (read.n, read.num_features, read.provenance) == (40, 5, ORIGIN)


def test_others_can_read_our_files(tmp_path: Path) -> None:
    saved = statistics()
    saved.save(tmp_path / "stats.npz")
    # As pytorch-fid does it.
    with np.load(tmp_path / "stats.npz") as file:
        mean, cov = file["mu"][:], file["sigma"][:]
    np.testing.assert_array_equal(mean, saved.mean)
    np.testing.assert_array_equal(cov, saved.cov)


def test_moments_alone_are_saved_too(tmp_path: Path) -> None:
    full = statistics()
    FeatureStatistics(mean=full.mean, cov=full.cov, n=7).save(tmp_path / "stats.npz")
    read = FeatureStatistics.load(tmp_path / "stats.npz")
    assert (read.features, read.n, read.provenance) == (None, 7, None)
    assert torch.equal(read.mean, full.mean) and torch.equal(read.cov, full.cov)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_others_serve_the_frechet_distance(tmp_path: Path, dtype: type) -> None:
    reference, generated = statistics(60), statistics(40)
    path = tmp_path / "cifar10-32x32.npz"
    moments = {"mu": reference.mean.numpy().astype(dtype), "sigma": reference.cov.numpy().astype(dtype)}
    np.savez(path, **moments, features=np.zeros((2, 5)), arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    read = FeatureStatistics.load(path)
    assert FeatureStatistics.is_statistics(path)
    assert (read.features, read.n, read.provenance) == (None, None, None)
    expected = frechet_distance(generated, reference).value
    assert frechet_distance(generated, read).value == pytest.approx(expected, rel=1e-5)
    read.check(EXTRACTOR, n=50_000, data_digest="any")  # nothing is known that could differ
    with pytest.raises(UserError, match=r"in .*cifar10-32x32.npz do not fit: number of features 5 instead of 2048"):
        read.check(FeatureExtractor(nn.Identity(), "inception", "", 2048))


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        statistics().save(path)
    assert path.read_text() == "precious"


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: Path, content: Any) -> None:
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(UserError, match="stats.npz' cannot be written .*No space left"):
        statistics().save(tmp_path / "stats.npz")
    assert not list(tmp_path.iterdir())


def test_the_suffix_is_the_files_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"choose a name that ends in \.npz"):
        statistics().save(tmp_path / "stats.pt")


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("the file's code was run",)


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    statistics().save(good)
    content = good.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[content.index(b"features.npy") + 400] ^= 0xFF  # within the numbers: the zip's checksum tells
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "text.npz").write_text("mu and sigma")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "objects.npz", mu=np.array([Trap()], dtype=object), sigma=np.eye(1))
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "array.npy", np.zeros((4, 8)))
    np.savez(tmp_path / "empty.npz")
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "whole.npz", mu=np.zeros(3, int), sigma=np.eye(3))
    np.savez(tmp_path / "future.npz", **dict(np.load(good)) | {"format": "lightning_tweedie feature statistics 9"})
    for name, message in {
        "absent.npz": "damaged or no file of feature statistics",
        "cut.npz": "damaged or no file of feature statistics",
        "flipped.npz": "damaged or no file of feature statistics",
        "text.npz": "damaged or no file of feature statistics",
        "pickle.npz": "damaged or no file of feature statistics",
        "objects.npz": "damaged or no file of feature statistics",
        "images.npz": "holds arr_0 instead of mu and sigma",
        "array.npy": "damaged or no file of feature statistics",
        "empty.npz": "holds nothing instead of mu and sigma",
        "shapes.npz": r"mu must be \(d,\) and sigma \(d, d\)",
        "whole.npz": r"floating point, not \(3,\) int64",
        "future.npz": "format 'lightning_tweedie feature statistics 9'.*reads 'lightning_tweedie feature statistics 1'",
    }.items():
        with pytest.raises(UserError, match=message):
            FeatureStatistics.load(tmp_path / name)


def test_statistics_are_told_from_images_by_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    np.save(tmp_path / "array.npy", np.zeros((4, 8)))
    (tmp_path / "text.npz").write_text("mu and sigma")
    assert not any(FeatureStatistics.is_statistics(path) for path in tmp_path.iterdir())
    assert not FeatureStatistics.is_statistics(tmp_path)
    assert not FeatureStatistics.is_statistics(tmp_path / "absent.npz")


# Mismatches


def test_statistics_that_fit_pass() -> None:
    statistics().check(EXTRACTOR)
    statistics().check(EXTRACTOR, n=40, data_digest="images")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"extractor": "other"}, "extractor 'other' instead of 'net'"),
        ({"extractor_digest": "d2"}, "digest of the extractor 'd2' instead of 'd1'"),
        ({"resize": "bicubic 8"}, "resize 'bicubic 8' instead of 'bilinear 8'"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' instead of 'float32'"),
        ({"data_digest": "others"}, "data 'others' instead of 'images'"),
    ],
)
def test_a_mismatch_is_told_by_its_name(changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=f"do not fit: {message}: make them anew"):
        statistics(provenance=replace(ORIGIN, **changed)).check(EXTRACTOR, n=40, data_digest="images")


def test_a_wrong_number_of_images_is_told() -> None:
    with pytest.raises(UserError, match="do not fit: number of images 40 instead of 50: "):
        statistics().check(EXTRACTOR, n=50)


def test_several_mismatches_are_told_at_once() -> None:
    other = replace(ORIGIN, extractor="other", resize="none")
    with pytest.raises(UserError, match="extractor 'other' instead of 'net'; resize 'none' instead of 'bilinear 8'"):
        statistics(provenance=other).check(EXTRACTOR)


def test_every_part_of_the_provenance_is_checked() -> None:
    # A field that is added later must not be forgotten in `check`.
    for field in asdict(ORIGIN):
        with pytest.raises(UserError, match="instead of"):
            statistics(provenance=replace(ORIGIN, **{field: "changed"})).check(EXTRACTOR, data_digest="images")
