"""Measures by name; noise for samples; the view of noisy data."""

import math

import pytest
import torch
from checks import assert_law, generator
from torch import Tensor, nn

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.metric_names import METRICS, keys
from lightning_tweedie.evaluation.noisy_images import NoisyView, renoise
from lightning_tweedie.evaluation.quality import sample_quality
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.frechet import frechet_distance
from lightning_tweedie.metrics.kernel import kernel_distance
from lightning_tweedie.metrics.memorisation import memorisation, nearest_neighbours
from lightning_tweedie.metrics.precision_recall import density_coverage, precision_recall


def statistics(seed: int, shift: float = 0.0) -> FeatureStatistics:
    return FeatureStatistics(shift + torch.randn(200, 6, generator=generator(seed)))


def test_every_name_is_its_measure() -> None:
    ours, theirs = statistics(0), statistics(1, shift=0.3)
    assert ours.features is not None and theirs.features is not None
    expected = {
        "fid": {"fid": frechet_distance(ours, theirs)},
        "kid": {"kid": kernel_distance(ours.features, theirs.features)},
        "prc": precision_recall(ours, theirs) | density_coverage(ours, theirs),
    }
    for metric, values in expected.items():
        assert sample_quality(ours, theirs, [metric]) == values
        assert tuple(values) == METRICS[metric]
    assert list(sample_quality(ours, theirs, ["prc", "fid"])) == [*METRICS["prc"], "fid"]
    near = nearest_neighbours(ours.features, theirs.features)
    assert tuple(memorisation(ours.features, theirs.features, near)) == METRICS["memorisation"]
    with pytest.raises(ValueError, match="proximal_fid"):
        sample_quality(ours, theirs, ["proximal_fid"])


def test_names_of_values_are_unique_and_say_the_extractor() -> None:
    in_pixels = {"memorised_share", "distance_ratio_pixel"}
    for name in ("inception", "other"):
        extractor = FeatureExtractor(nn.Identity(), name, "", 6)
        names = [name for metric in METRICS for name in keys(metric, extractor)]
        assert len(set(names)) == len(names) and in_pixels < set(names)
        assert all(its.endswith("_other") == (name == "other") for its in set(names) - in_pixels)


def test_single_features_cannot_be_had_of_their_mean_and_covariance() -> None:
    ours, theirs = statistics(0), statistics(1)
    foreign = FeatureStatistics(mean=theirs.mean, cov=theirs.cov)
    assert sample_quality(ours, foreign, ["fid"])["fid"].value == frechet_distance(ours, theirs).value
    for metric in ("kid", "prc"):
        for pair in ((ours, foreign), (foreign, ours)):
            with pytest.raises(UserError, match=f"metrics = {metric} compares single features"):
                sample_quality(*pair, [metric])


@pytest.mark.parametrize("maps", [False, True])
def test_noise_in_samples_has_its_law(maps: bool) -> None:
    n = 20_000
    images = torch.zeros(n, 1, 1, 2)
    sigma = torch.tensor([0.1, 0.6]).reshape(1, 1, 1, 2).expand(n, -1, -1, -1) if maps else torch.full((n,), 0.6)
    draws = renoise(images, sigma, seed=3, indices=range(n)).flatten(1)
    assert_law(draws, torch.zeros(2), torch.diag(torch.tensor([0.1 if maps else 0.6, 0.6]).square()))


def test_noise_belongs_to_the_number_of_a_sample() -> None:
    images = torch.rand(4, 3, 5, 5, generator=generator())
    sigma = torch.tensor([0.0, 0.1, 0.2, 0.3])
    together = renoise(images, sigma, seed=0, indices=[4, 5, 6, 7])
    alone = torch.cat([renoise(images[i : i + 1], sigma[i : i + 1], seed=0, indices=[4 + i]) for i in range(4)])
    assert torch.equal(together, alone) and torch.equal(together[0], images[0])
    assert not torch.equal(renoise(images, sigma, seed=1, indices=[4, 5, 6, 7])[1], together[1])
    assert not torch.equal(renoise(images, sigma, seed=0, indices=[4, 6, 5, 7])[1], together[1])
    # It is not that of the data, or of the samples' start: the same image and number get other noise there.
    noisy = NoisyDataset(ArrayDataset(images), sigma.clone(), seed=0)
    assert not torch.equal(noisy[1].x_n, renoise(images[1:2], sigma[1:2], seed=0, indices=[1])[0])


class Counted(ArrayDataset):
    """Knows how often it is read."""

    reads = 0

    def take(self, index: list[int]) -> Tensor:
        self.reads += len(index)
        return super().take(index)


def test_the_view_is_that_of_the_noisy_items() -> None:
    images: Tensor = torch.rand(9, 3, 5, 5, generator=generator())
    base = Counted(images)
    noisy = NoisyDataset(base, torch.linspace(0, 1, 9), seed=0, places=[8, 2, 5])
    view = NoisyView(noisy)
    assert len(view) == 3
    assert all(torch.equal(view[i], noisy[i].x_n) for i in range(3))
    assert torch.equal(torch.stack(view.__getitems__([2, 0])), noisy.__getitems__([2, 0]).x_n)
    assert math.isclose(float((view[0] - images[8]).std()), 1.0, rel_tol=5 / (2 * 75) ** 0.5)
    base.reads = 0
    assert [float(view.level(i)) for i in (2, 0)] == [5 / 8, 1.0]
    assert base.reads == 0, "a level is known without its image"


@pytest.mark.parametrize("shape", [(), (3, 5, 5)])
def test_levels_that_the_items_bring(shape: tuple[int, ...]) -> None:
    images, levels = (torch.rand(9, *its, generator=generator(i)) for i, its in enumerate(((3, 5, 5), shape)))
    view = NoisyView(NoisyDataset(ArrayDataset(images, levels), None, inject=False, places=[8, 2, 5]))
    assert all(torch.equal(view.level(i), levels[place]) for i, place in enumerate((8, 2, 5)))
