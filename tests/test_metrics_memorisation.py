"""Nearest neighbours by brute force, planted copies, and what the criteria are blind to."""

import math

import pytest
import torch
from checks import Z, generator
from torch import Tensor

import lightning_tweedie.metrics.memorisation as memorisation_module
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.memorisation import Neighbours, memorisation, nearest_neighbours


def items(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def measured(pixels: Tensor, training: Tensor) -> dict[str, Estimate]:
    """With a few linear features of the pixels."""
    project = items(training[0].numel(), 16, seed=99)
    near = nearest_neighbours(pixels, training)
    return memorisation(pixels.flatten(1) @ project, training.flatten(1) @ project, near)


# Neighbours


@pytest.mark.parametrize("items_at_once", [0, 1, 7, 40, 4096])
def test_neighbours_by_brute_force(items_at_once: int) -> None:
    generated, training = items(1100, 12, 0).reshape(1100, 3, 2, 2), items(40, 12, 1).reshape(40, 3, 2, 2)
    index, distance = nearest_neighbours(generated, training, memory=items_at_once * 12 * 8)
    difference = generated[:, None].double() - training.double()
    expected, places = difference.flatten(2).square().sum(2).sqrt().sort(1)
    assert torch.equal(index, places[:, :2])
    torch.testing.assert_close(distance, expected[:, :2], rtol=1e-12, atol=0)


def test_a_copy_is_at_distance_zero_where_float32_would_stray() -> None:
    # Far from the origin scalar products cancel: in float32 a copy lies as far away as its neighbours.
    training = 1000 + 0.01 * items(200, 50, 0)
    index, distance = nearest_neighbours(training[[17, 120]], training)
    assert index[:, 0].tolist() == [17, 120] and distance[:, 0].tolist() == [0, 0]
    assert distance[:, 1].min() > 0.03
    careless = torch.cdist(training[[17, 120]], training, compute_mode="use_mm_for_euclid_dist")
    assert careless[0, 17] > 0.03 or careless[0].argmin() != 17 or (careless[0] < 0.01).sum() > 1


def test_memory_follows_no_number_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are compared a few at a time, however many there are."""
    seen, nearest = [], memorisation_module._nearest

    def spy(rows: Tensor, training: Tensor, chunk: int) -> Neighbours:
        seen.append(max(len(rows), chunk) * rows[0].numel() * 8)
        return nearest(rows, training, chunk)

    monkeypatch.setattr(memorisation_module, "_nearest", spy)
    generated, training = items(9, 500, 0), items(30, 500, 1)
    index, distance = nearest_neighbours(generated, training, memory=20_000)
    assert len(seen) == 2 and max(seen) <= 20_000
    seen.clear()
    whole = nearest_neighbours(generated, training)
    assert len(seen) == 1 and torch.equal(index, whole.index)
    torch.testing.assert_close(distance, whole.distance, rtol=1e-12, atol=0)


def test_items_that_are_there_twice_are_both_found() -> None:
    training = items(50, 6, 0)
    training[40] = training[3]
    index, distance = nearest_neighbours(training[3:4], training, memory=8 * 6 * 8)
    assert sorted(index[0].tolist()) == [3, 40] and distance[0].tolist() == [0, 0]


# Memorisation


def noise_on(training: Tensor, level: float, seed: int) -> Tensor:
    return training + level * torch.randn(training.shape, generator=generator(seed))


def test_planted_copies_are_found_and_fresh_draws_are_not() -> None:
    training, fresh = items(400, 48, 0), items(300, 48, 1)
    copies = noise_on(training[:100], 0.02, 2)
    mixed = measured(torch.cat([fresh, copies]), training)
    alone = measured(fresh, training)
    assert mixed["memorised_share"].value == 0.25
    assert mixed["similarity_above_0.95"].value >= 0.25
    assert alone["memorised_share"].value == 0
    assert alone["distance_ratio_pixel"].value > 0.9
    for name in ("distance_ratio_pixel", "distance_ratio_feature"):
        assert mixed[name].value < alone[name].value - Z * (alone[name].standard_error or math.nan)
    assert mixed["similarity_mean"].value > alone["similarity_mean"].value


def test_values_by_their_definitions() -> None:
    pixels, training = items(60, 10, 0), items(80, 10, 1)
    features, of_training = items(60, 4, 2), items(80, 4, 3)
    found = memorisation(features, of_training, nearest_neighbours(pixels, training))

    def ratios(a: Tensor, b: Tensor) -> Tensor:
        distance = (a[:, None].double() - b.double()).norm(dim=2).sort(1).values
        return distance[:, 0] / distance[:, 1]

    similarity = torch.cosine_similarity(features[:, None].double(), of_training.double(), dim=2).amax(1)
    expected = {
        "memorised_share": (ratios(pixels, training) < 1 / 3).double(),
        "distance_ratio_pixel": ratios(pixels, training),
        "distance_ratio_feature": ratios(features, of_training),
        "similarity_mean": similarity,
        "similarity_above_0.9": (similarity > 0.9).double(),
        "similarity_above_0.95": (similarity > 0.95).double(),
    }
    assert found.keys() == expected.keys()
    for name, draws in expected.items():
        assert found[name].value == pytest.approx(float(draws.mean()), rel=1e-9)
        assert found[name].standard_error == pytest.approx(float(draws.std()) / 60**0.5, rel=1e-9)
    assert 0 < found["similarity_above_0.95"].value < found["similarity_above_0.9"].value < 1


def test_standard_error_is_the_scatter_over_fresh_samples() -> None:
    training = items(100, 3, 0)
    runs = [measured(items(150, 3, 1 + seed), training) for seed in range(200)]
    for name in ("memorised_share", "distance_ratio_pixel", "similarity_mean"):
        scatter = torch.tensor([run[name].value for run in runs]).std()
        error = torch.tensor([run[name].standard_error for run in runs]).mean()
        assert error / scatter == pytest.approx(1, abs=0.25)


def test_near_duplicates_in_the_training_set_hide_copies_from_the_ratio() -> None:
    # What the module's text warns of: the second nearest is a twin of the nearest. Similarity still tells.
    training = items(200, 48, 0)
    twins = torch.cat([training, noise_on(training, 0.02, 1)])
    found = measured(noise_on(training[:100], 0.02, 2), twins)
    assert found["memorised_share"].value < 0.05
    assert found["similarity_above_0.95"].value == 1
    # An exact copy of an item that is there twice, exactly, is one.
    assert measured(training[:10], torch.cat([training, training]))["memorised_share"].value == 1


# Bad input


def test_bad_sets_are_refused() -> None:
    with pytest.raises(UserError, match="among 1 training items"):
        nearest_neighbours(items(5, 3, 0), items(1, 3, 1))
    with pytest.raises(UserError, match=r"shape \(3, 4, 4\) and training items of shape \(1, 4, 4\)"):
        nearest_neighbours(torch.zeros(5, 3, 4, 4), torch.zeros(9, 1, 4, 4))


def test_a_broken_image_breaks_the_values() -> None:
    pixels, training = items(20, 6, 0), items(30, 6, 1)
    pixels[4, 2] = torch.nan
    near = nearest_neighbours(pixels, training)
    for name, (value, error) in memorisation(items(20, 4, 2), items(30, 4, 3), near).items():
        assert math.isnan(value) and error is None, name
