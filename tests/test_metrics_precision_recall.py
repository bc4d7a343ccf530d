"""Precision, recall, density, coverage: a second implementation, known expectations, and what each is blind to."""

import math

import pytest
import torch
from checks import assert_mean, generator
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics import precision_recall as module
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics


def features(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return scale * torch.randn(n, d, generator=generator(seed)) + shift


def precision_recall(generated: Tensor, reference: Tensor) -> dict[str, Estimate]:
    return module.precision_recall(FeatureStatistics(generated), FeatureStatistics(reference))


def density_coverage(generated: Tensor, reference: Tensor, neighbours: int = 5) -> dict[str, Estimate]:
    return module.density_coverage(FeatureStatistics(generated), FeatureStatistics(reference), neighbours)


def values(generated: Tensor, reference: Tensor) -> dict[str, float]:
    found = precision_recall(generated, reference) | density_coverage(generated, reference)
    return {name: estimate.value for name, estimate in found.items()}


# Values


@pytest.mark.parametrize(("n", "m", "d"), [(300, 500, 8), (1200, 700, 16), (40, 30, 200)])
@pytest.mark.parametrize("save_memory", [False, True])
def test_precision_and_recall_are_torch_fidelitys(n: int, m: int, d: int, save_memory: bool) -> None:
    generated, reference = features(n, d, 0, scale=1.1, shift=0.1), features(m, d, 1)
    theirs = prc_features_to_metric(generated, reference, save_cpu_ram=save_memory, verbose=False)
    ours = precision_recall(generated, reference)
    for name in ("precision", "recall"):
        assert 0 < ours[name].value < 1
        # Theirs is a float32.
        assert ours[name].value == pytest.approx(theirs[name], rel=1e-6)


@pytest.mark.parametrize("neighbours", [1, 5, 8])
def test_density_and_coverage_by_their_definitions(neighbours: int) -> None:
    generated, reference = features(1100, 6, 0, scale=0.9, shift=0.2), features(1050, 6, 1)
    to_reference = (reference[:, None].double() - reference.double()).square().sum(2).sqrt()
    to_generated = (reference[:, None].double() - generated.double()).square().sum(2).sqrt()
    radius = to_reference.sort(1).values[:, neighbours]
    inside = to_generated < radius[:, None]
    ours = density_coverage(generated, reference, neighbours)
    assert ours["density"].value == pytest.approx(inside.sum(0).double().mean().item() / neighbours, rel=1e-9)
    assert ours["coverage"].value == pytest.approx(inside.any(1).double().mean().item(), rel=1e-9)


def test_expectations_at_equal_laws() -> None:
    # A fresh item is as likely as any other to be among the k nearest: the expected density is 1, and the expected
    # coverage 1 - [(m - 1) ... (m - k)] / [(n + m - 1) ... (n + m - k)] (2002.09797, lemma 2), whatever the law.
    n, m, k = 30, 50, 5
    found = [density_coverage(features(n, 3, 2 * i), features(m, 3, 2 * i + 1), neighbours=k) for i in range(300)]
    missed = math.prod((m - i) / (n + m - i) for i in range(1, k + 1))
    assert_mean(torch.tensor([row["density"].value for row in found]), 1.0)
    assert_mean(torch.tensor([row["coverage"].value for row in found]), 1 - missed)


def test_identical_sets_and_sets_far_apart() -> None:
    x = features(300, 8, 0)
    same = values(x, x.clone())
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    # Each item lies in its own ball and in those of the items to which it is nearer than their k-th neighbour, k - 1 of
    # them on average.
    assert same["density"] == pytest.approx(1, abs=0.01)  # the k-th neighbour is on the surface, give or take rounding
    assert set(values(x, x + 100).values()) == {0}


def test_each_tells_what_it_should() -> None:
    # Two clusters, of which the samples know one; and samples half of which are far from the data.
    def both(seed: int) -> Tensor:
        return torch.cat([features(300, 4, seed), features(300, 4, seed + 1, shift=10.0)])

    reference = both(0)
    good = values(both(10), reference)
    dropped = values(features(600, 4, 20), reference)
    spoilt = values(torch.cat([both(30)[:450], features(150, 4, 40, shift=-20.0)]), reference)
    assert all(0.8 < value < 1.2 for value in good.values())
    assert dropped["precision"] > 0.9 and dropped["recall"] < 0.55 and dropped["coverage"] < 0.55
    assert spoilt["precision"] < 0.78 and spoilt["density"] < 0.85 and spoilt["coverage"] > 0.8


def test_an_outlier_deceives_recall_but_not_coverage() -> None:
    # Three generated items beyond the data, the rest on the other side: balls around the three reach to the rest and
    # hold all the data.
    reference = features(300, 4, 0)
    generated = torch.cat([features(297, 4, 1, shift=-10.0), features(3, 4, 2, shift=10.0)])
    found = values(generated, reference)
    assert found["recall"] > 0.9 and found["coverage"] < 0.1


# Standard errors


@pytest.mark.parametrize(("n", "m"), [(300, 300), (200, 800)])
def test_standard_errors_are_those_of_replications(n: int, m: int) -> None:
    rows = []
    for seed in range(40):
        generated, reference = features(n, 12, 2 * seed, scale=0.95, shift=0.15), features(m, 12, 2 * seed + 1)
        rows.append(precision_recall(generated, reference) | density_coverage(generated, reference))
    too_small = 0
    for name in rows[0]:
        scatter = torch.tensor([row[name].value for row in rows]).std()
        errors = torch.tensor([row[name].standard_error for row in rows])
        assert 0.5 < errors.mean() / scatter < 2, name
        share = torch.tensor([row[name].value for row in rows]).mean()
        if name != "density":
            of_independent_items = (share * (1 - share) / (m if name in ("recall", "coverage") else n)).sqrt()
            too_small += int(of_independent_items < scatter / 1.7)
    # The control: the error of a share of independent items is not right where the other set is the smaller one.
    assert too_small >= (1 if m > n else 0)


def test_no_standard_error_for_few_items() -> None:
    x, y = features(119, 3, 0), features(500, 3, 1)
    assert precision_recall(x, y)["recall"].standard_error is None
    assert precision_recall(features(120, 3, 0), y)["recall"].standard_error is not None


def test_the_order_of_items_does_not_matter() -> None:
    # Sorted features, as of a folder of classes: parts of them would be no samples of the whole.
    generated, reference = features(400, 2, 0), features(400, 2, 1)
    as_sorted = [x[x[:, 0].argsort()] for x in (generated, reference)]
    plain, by_class = density_coverage(generated, reference), density_coverage(*as_sorted)
    for name in plain:
        assert by_class[name].value == plain[name].value
        assert by_class[name].standard_error < 3 * plain[name].standard_error


# Bad input


def test_small_and_broken_sets() -> None:
    x, y = features(50, 3, 0), features(60, 3, 1)
    with pytest.raises(UserError, match="3 generated and 60 reference images are too few to look at 3 neighbours"):
        precision_recall(x[:3], y)
    with pytest.raises(UserError, match="50 generated and 5 reference images are too few to look at 5 neighbours"):
        density_coverage(x, y[:5])
    with pytest.raises(UserError, match="length 3 and 2"):
        precision_recall(x, y[:, :2])
    x[3, 1] = torch.nan
    for name, (value, error) in (precision_recall(x, y) | density_coverage(x, y)).items():
        assert math.isnan(value) and error is None, name
