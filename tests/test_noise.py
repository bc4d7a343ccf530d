"""The law of the injected noise, and that it belongs to the item."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_tweedie.errors import UserError
from lightning_tweedie.noise.injection import inject
from lightning_tweedie.noise.sigma import item_sigmas, parse_sigma


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    """Noise of 2,000 items at several levels, divided by the level: standard normal, if all is right."""
    sigma = torch.linspace(0.1, 2.0, 2000)
    x_0 = torch.full((2000, 1, 8, 8), 0.25)
    x_n = inject(x_0, sigma, range(2000), seed=1)
    return ((x_n - x_0) / sigma[:, None, None, None]).double()


def test_noise_is_standard_normal(z: torch.Tensor) -> None:
    n = z.numel()
    # Moments of N(0, 1) are 0, 1, 0, 3; the variances of their estimates are 1, 2, 15, 96 over n.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - moment) < 4 * math.sqrt(variance / n)


def test_noise_is_white_within_an_item_and_between_items(z: torch.Tensor) -> None:
    flat = z.flatten(1)
    n = len(flat)
    covariance = flat.T @ flat / n
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max().item() < 5.5 / math.sqrt(n)  # the largest of 2,016 correlations
    # Mean of squared correlations: expected 1/n each.
    assert abs(n * off.square().sum().item() / (64 * 63) - 1) < 5 * math.sqrt(2 / (64 * 63 / 2))
    neighbours = (flat[1:] * flat[:-1]).mean().item()
    assert abs(neighbours) < 4 / math.sqrt(flat[1:].numel())


def test_noise_is_neither_clipped_nor_rounded() -> None:
    x_n = inject(torch.ones(200, 3, 8, 8), torch.full((200,), 0.5), range(200), seed=0)
    above = (x_n > 1).double().mean().item()
    assert abs(above - 0.5) < 4 * 0.5 / math.sqrt(x_n.numel())
    assert x_n.max() > 2.5
    assert len(x_n.unique()) > 0.99 * x_n.numel()


def test_noise_belongs_to_seed_stream_and_index_and_nothing_else() -> None:
    x_0 = torch.zeros(6, 2, 3)
    one = torch.ones(6)
    all_at_once = inject(x_0, one, range(6), seed=0)
    backwards = inject(x_0, one, [5, 4, 3, 2, 1, 0], seed=0)
    assert torch.equal(all_at_once, backwards.flip(0))
    assert torch.equal(all_at_once[2:3], inject(x_0[:1], one[:1], [2], seed=0))
    assert torch.equal(2 * all_at_once, inject(x_0, 2 * one, range(6), seed=0))
    others = [inject(x_0, one, range(6), seed=1), inject(x_0, one, range(6), seed=0, stream="test")]
    assert all((all_at_once - other).abs().min() > 0 for other in others)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    inject(torch.zeros(2, 5), torch.ones(2), [0, 1], seed=0)
    item_sigmas([0.1, 0.2], 10, seed=0, clean_fraction=0.5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_a_range_is_uniform_in_log_sigma() -> None:
    levels = item_sigmas([0.05, 0.8], 4000, seed=0).double()
    u = (levels / 0.05).log() / math.log(16)
    assert 0 <= u.min() < 0.01
    assert 0.99 < u.max() <= 1 + 1e-6
    ordered = u.sort().values
    gap = (ordered - (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).abs().max().item()
    assert gap < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov at 0.1 %
    # An item's level does not depend on how many there are.
    assert torch.equal(item_sigmas([0.05, 0.8], 10, seed=0), levels[:10].float())
    assert not torch.equal(item_sigmas([0.05, 0.8], 10, seed=1), levels[:10].float())


def test_clean_fraction() -> None:
    levels = item_sigmas(0.3, 5000, seed=2, clean_fraction=0.1)
    assert set(levels.tolist()) == {0.0, torch.tensor(0.3).item()}
    share = (levels == 0).double().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.09 / 5000)
    assert torch.equal(levels[:100], item_sigmas(0.3, 100, seed=2, clean_fraction=0.1))
    assert not item_sigmas(0.3, 50, seed=0, clean_fraction=1.0).any()


@pytest.mark.parametrize("ending", ["npy", "csv", "txt"])
def test_table(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"levels.{ending}"
    table = np.array([0.1, 0.0, 0.25])
    if ending == "npy":
        np.save(path, table)
    else:
        path.write_text("\n".join(map(str, table)))
    assert torch.equal(item_sigmas(str(path), 3, seed=0), torch.tensor([0.1, 0.0, 0.25]))
    with pytest.raises(UserError, match="holds 3 levels but the set has 4 items"):
        item_sigmas(str(path), 4, seed=0)


@pytest.mark.parametrize(
    ("sigma", "sentence"),
    [
        (-0.1, r"data\.sigma = -0\.1 is negative: give a standard deviation >= 0"),
        (25, r"data\.sigma = 25 is too large for data in \[-1, 1\].* 25 / 127\.5 = 0\.1961"),
        (float("nan"), "nan is not a number"),
        ([0.1, 25], r"25 / 127\.5"),
        ([0.3, 0.1], "is not a range with 0 < lo <= hi"),
        ([0, 0.1], "data.clean_fraction"),
        ([0.1, 0.2, 0.3], "has 3 numbers"),
        ("nowhere.npy", "neither a number, nor a range .* nor an existing file"),
    ],
)
def test_bad_sigma(sigma: float | list[float] | str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_sigma(sigma)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("0.1\n-0.2\n", r"item 1\) = -0\.2 is negative"),
        ("0.1\n30\n", r"item 1\) = 30 is too large .* 30 / 127\.5 = 0\.2353"),
        ("a\nb\n", "is not a table of numbers"),
        ("1 2\n3 4\n", "one level per item, in one column"),
    ],
)
def test_bad_table(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "levels.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        parse_sigma(str(path))


def test_bad_clean_fraction() -> None:
    with pytest.raises(UserError, match=r"data\.clean_fraction = 1\.5 is not a fraction"):
        item_sigmas(0.1, 3, seed=0, clean_fraction=1.5)
