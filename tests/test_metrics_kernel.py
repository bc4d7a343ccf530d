"""The kernel distance: closed forms, other implementations, its standard error, its own random numbers."""

import math

import pytest
import torch
from checks import Z, assert_mean, generator
from torch import Tensor, nn
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.kernel import kernel_distance

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")


def features(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return scale * torch.randn(n, d, generator=generator(seed)) + shift


class Given(nn.Module):
    """Features that are given in place of images."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# Known values


def test_closed_form_of_two_gaussians() -> None:
    # In one dimension (x y + 1)^3 = 1 + 3 x y + 3 x^2 y^2 + x^3 y^3, so the squared distance is a sum over the squared
    # differences of the first three moments. It is estimated without bias, in however small subsets.
    mean, scale = 0.5, 1.2
    moments = torch.tensor([mean, mean**2 + scale**2 - 1, mean**3 + 3 * mean * scale**2])
    expected = float((torch.tensor([3.0, 3.0, 1.0]) * moments.square()).sum())
    values = [
        kernel_distance(
            features(80, 1, 2 * seed, scale, mean), features(120, 1, 2 * seed + 1), subsets=3, subset_size=30
        ).value
        for seed in range(300)
    ]
    assert_mean(torch.tensor(values), expected)


def test_no_bias_at_equal_laws() -> None:
    draws = [(features(30, 4, 2 * seed), features(30, 4, 2 * seed + 1)) for seed in range(300)]
    assert_mean(torch.tensor([kernel_distance(*pair).value for pair in draws]), 0.0)
    # The control: means over all pairs, items paired with themselves among them, are biased by far.
    kernel = [[(a.double() @ b.double().mT / 4 + 1) ** 3 for a in pair for b in pair] for pair in draws]
    biased = torch.stack([xx.mean() - xy.mean() - yx.mean() + yy.mean() for xx, xy, yx, yy in kernel])
    assert biased.mean() > 10 * biased.std() / len(biased) ** 0.5


# Other implementations


def test_agrees_with_torch_fidelity_on_the_same_subsets() -> None:
    generated, reference = features(150, 32, 0, shift=0.2), features(240, 32, 1)
    theirs = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=20, kid_subset_size=100, rng_seed=7, verbose=False
    )
    ours = kernel_distance(generated, reference, subsets=20, subset_size=100, seed=7)
    assert ours.value == theirs[KEY_METRIC_KID_MEAN]
    assert ours.value != kernel_distance(generated, reference, subsets=20, subset_size=100, seed=8).value


def test_one_subset_stands_for_all_when_each_is_the_whole_set() -> None:
    generated, reference = features(80, 32, 0, shift=0.2), features(80, 32, 1)
    theirs = kid_features_to_metric(
        generated.double(), reference.double(), kid_subsets=20, kid_subset_size=80, verbose=False
    )
    assert kernel_distance(generated, reference).value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)


def torchmetrics_value(generated: Tensor, reference: Tensor, seed: int, subset_size: int) -> float:
    metric = KernelInceptionDistance(feature=Given(), subsets=5, subset_size=subset_size)
    metric.update(reference, real=True)
    metric.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def test_agrees_with_torchmetrics() -> None:
    generated, reference = features(80, 32, 0, shift=0.2), features(80, 32, 1)
    expected = torchmetrics_value(generated, reference, seed=0, subset_size=80)
    assert kernel_distance(generated, reference).value == pytest.approx(expected, rel=1e-4)


def test_random_numbers_are_our_own_where_torchmetrics_uses_the_global_ones() -> None:
    # Two processes of one run are in different random states: their values must not differ.
    generated, reference = features(80, 32, 0), features(90, 32, 1)
    ours, theirs = [], []
    with torch.random.fork_rng(devices=[]):
        for process in range(2):
            torch.manual_seed(process)
            state = torch.get_rng_state()
            ours.append(kernel_distance(generated, reference, subset_size=40))
            assert torch.equal(torch.get_rng_state(), state)
            theirs.append(torchmetrics_value(generated, reference, seed=process, subset_size=40))
    assert ours[0] == ours[1]
    assert theirs[0] != theirs[1]


# Standard error


@pytest.mark.parametrize(
    ("n", "m", "size", "shift"),
    [
        (80, 80, 30, 0.3),
        (80, 80, 80, 0.3),  # subsets are the sets themselves, and do not scatter at all
        (40, 240, 40, 0.3),  # they are one of the sets
        (240, 40, 20, 0.3),
        (80, 80, 30, 0.0),  # equal laws: only the second order is left
        (60, 200, 60, 0.0),
    ],
)
def test_standard_error_is_the_scatter_of_replications(n: int, m: int, size: int, shift: float) -> None:
    estimates = [
        kernel_distance(
            features(n, 8, 2 * seed, 1 + shift / 3, shift), features(m, 8, 2 * seed + 1), subsets=10, subset_size=size
        )
        for seed in range(200)
    ]
    values, errors = (torch.tensor(column) for column in zip(*estimates, strict=True))
    # The deviation of 200 draws is itself uncertain by 5 percent or, of the skew ones at equal laws, 10; at equal laws
    # estimates of the first order that come out negative are cut off, which makes the error larger by up to a third.
    low, high = (0.75, 1.25) if shift else (0.7, 1.6)
    assert low < errors.mean() / values.std() < high


def test_the_deviation_over_subsets_is_no_standard_error() -> None:
    # The control: what is often given as the error depends on the size of the subsets, which the true one hardly does.
    generated, reference = features(400, 8, 0, shift=0.3), features(400, 8, 1)
    ours = [kernel_distance(generated, reference, subset_size=size).standard_error for size in (20, 400)]
    theirs = [
        kid_features_to_metric(generated.double(), reference.double(), kid_subset_size=size, verbose=False)[
            "kernel_inception_distance_std"
        ]
        for size in (20, 400)
    ]
    assert ours[0] is not None and ours[1] is not None and ours[0] / ours[1] == pytest.approx(1, abs=0.25)
    assert theirs[0] > 3 * ours[0] and theirs[1] < ours[1] / 100


def test_a_distance_is_told_from_none() -> None:
    # 500 images each, laws a little apart: found with confidence, and not where there is nothing.
    apart = kernel_distance(features(500, 64, 0, shift=0.15), features(500, 64, 1))
    equal = kernel_distance(features(500, 64, 2), features(500, 64, 3))
    assert apart.standard_error is not None and apart.value > Z * apart.standard_error
    assert equal.standard_error is not None and abs(equal.value) < Z * equal.standard_error


# Bad input


def test_small_and_broken_sets() -> None:
    x, y = features(4, 3, 0), features(30, 3, 1)
    assert kernel_distance(x, y).standard_error is None
    with pytest.raises(UserError, match="two images or more on both sides, not 1 and 30"):
        kernel_distance(x[:1], y)
    with pytest.raises(UserError, match="length 3 and 2"):
        kernel_distance(x, y[:, :2])
    y[3, 1] = torch.inf
    value, error = kernel_distance(features(30, 3, 0), y)
    assert math.isnan(value) and error is None
