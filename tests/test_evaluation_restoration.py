"""Restorations as numbers: those of exact posteriors, on any number of processes, however the work is cut."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import Exact, assert_mean, generator
from process_group import in_processes
from torch import Tensor

import lightning_tweedie.evaluation.restoration as restoration_module
from lightning_tweedie.correlation import Correlation
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.restoration import (
    Restoration,
    calibration_curve,
    calibration_picture,
    noisy_items,
    restoration_quality,
    restore,
)
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.restoration import ssim
from lightning_tweedie.sampling import Ancestral, Heun, SDEDPMSolverPP2M, one_step, posterior_samples

SPREAD, SIGMA, SHAPE = 0.2, 0.4, (1, 12, 12)
"""Independent pixels of this deviation, under noise of that level: the posterior is known."""


def exact(variance: float = SPREAD**2) -> Any:
    """The denoiser of white images of a variance."""
    return Exact(lambda x, sigma: x * (variance / (variance + sigma**2)).reshape(-1, 1, 1, 1), sigma_data=SPREAD)


def items(n: int) -> tuple[Tensor, Tensor]:
    """Noisy images and the clean ones."""
    x_0 = SPREAD * torch.randn(n, *SHAPE, generator=generator(1))
    return x_0 + SIGMA * torch.randn(x_0.shape, generator=generator(2)), x_0


def restored(n: int, denoiser: Any = None, **settings: Any) -> Restoration:
    x_n, x_0 = items(n)
    settings = {"sampler": Ancestral(60), **settings}
    return restore(denoiser or exact(), x_n, torch.full((n,), SIGMA), range(n), x_0, **settings)


def test_figures_of_the_exact_posterior() -> None:
    n, draws = 60, 19
    # So many levels that the solver's own error is below the statistical one.
    result = restored(n, draws=draws, sampler=Ancestral(150))
    quality = restoration_quality(result)
    assert set(quality) == {
        *(f"{measure}_{name}" for measure in ("psnr", "ssim") for name in ("noisy", "one_step", "draw", "mean")),
        *(f"interval_coverage_{level}" for level in (50, 80, 90)),
    }
    # The posterior variance is the least squared error; a draw has twice it, a mean of K draws 1 + 1/K of it.
    least = SPREAD**2 * SIGMA**2 / (SPREAD**2 + SIGMA**2)
    for name, factor in (("one_step", 1), ("draw", 2), ("mean", 1 + 1 / draws)):
        estimate = quality[f"psnr_{name}"]
        # 144 squares to a mean: PSNR is the mean of their logarithm, 10/ln 10/144 below the logarithm of the mean.
        expected = 10 * torch.tensor(4 / (factor * least)).log10() + 10 / torch.tensor(10.0).log() / 144
        scatter = 10 / 2.3026 * (2 / 144) ** 0.5 / n**0.5
        assert estimate.standard_error == pytest.approx(scatter, rel=0.2)
        assert abs(estimate.value - expected) < 4 * estimate.standard_error, name
    for level in (50, 80, 90):
        estimate = quality[f"interval_coverage_{level}"]
        assert abs(estimate.value - level / 100) < 4 * (estimate.standard_error or 0)
    assert result.x_0 is not None
    for name, images in (("draw", result.draws[0]), ("mean", result.draws.mean(0)), ("noisy", result.x_n)):
        assert quality[f"ssim_{name}"].value == pytest.approx(float(ssim(images, result.x_0).mean()))


@pytest.mark.parametrize("kind", ["a level per pixel", "correlated"])
def test_noise_that_is_not_white_is_raised_to_white_noise_first(kind: str) -> None:
    """Draws are as far from each other as from the truth; the figure of the noisy images is that of the given ones."""
    n, shape = 30, Correlation(torch.tensor([0.3, 1.0, 0.3]))
    x_0 = items(n)[1]
    z, sigma_n = torch.randn(x_0.shape, generator=generator(2)), torch.full((n,), SIGMA)
    if kind == "correlated":
        x_n, level, settings = x_0 + SIGMA * shape.colour(z), SIGMA * 1.6**0.5, {"correlation": shape}
    else:
        sigma_n = torch.linspace(0.05, SIGMA, 12).expand(x_0.shape)
        x_n, level, settings = x_0 + sigma_n * z, SIGMA, {}
    restoring = partial(restore, exact(), x_n, indices=range(n), x_0=x_0, sampler=SDEDPMSolverPP2M(30))
    result = restoring(sigma_n=sigma_n, **settings)
    least = SPREAD**2 * level**2 / (SPREAD**2 + level**2)
    assert_mean((result.one_step - x_0).square().flatten(1).mean(1) / least, 1.0)
    assert torch.equal(result.x_n, x_n)

    def off(result: Restoration) -> float:
        """Standard errors between the nominal and the found share of truths in intervals, in the noisiest pixels."""
        assert result.x_0 is not None
        x_n, estimate, draws, x_0 = (x[..., 9:] for x in (result.x_n, result.one_step, result.draws, result.x_0))
        quality = restoration_quality(Restoration(x_n, estimate, draws, x_0, result.sigma_n))
        value, error = quality["interval_coverage_80"]
        return (value - 0.8) / (error or 1)

    assert abs(off(result)) < 4
    again = restoring(sigma_n=sigma_n, batch_size=7, **settings)
    torch.testing.assert_close(again.draws, result.draws)  # what is added belongs to the item
    if kind == "a level per pixel":
        assert off(restoring(sigma_n=sigma_n.square().mean((1, 2, 3)).sqrt())) < -5


def test_the_error_of_a_coarse_grid_is_as_large_as_stated() -> None:
    # Draws of the exact denoiser on 18 levels are too much alike, on 72 nearly right.
    coarse, fine = (restoration_quality(restored(50, sampler=Ancestral(levels))) for levels in (18, 72))
    assert 0.83 < coarse["interval_coverage_90"].value < 0.87 and 0.42 < coarse["interval_coverage_50"].value < 0.46
    assert 0.88 < fine["interval_coverage_90"].value < 0.9


@pytest.mark.parametrize(("variance", "sign"), [(0.5 * SPREAD**2, -1), (2 * SPREAD**2, 1)])
def test_a_wrong_posterior_shows(variance: float, sign: int) -> None:
    quality = restoration_quality(restored(50, exact(variance)))
    for level in (50, 80, 90):
        value, error = quality[f"interval_coverage_{level}"]
        assert sign * (value - level / 100) > 5 * (error or 0)


def test_levels_are_the_nearest_that_there_are() -> None:
    def names(draws: int) -> list[str]:
        quality = restoration_quality(restored(4, draws=draws, sampler=Ancestral(3)))
        return [name.removeprefix("interval_coverage_") for name in quality if name.startswith("interval")]

    assert names(19) == ["50", "80", "90"] == names(39)
    assert names(8) == ["55.6", "77.8"]  # 77.8 is the nearest to 80 and to 90
    assert names(1) == []
    curve = calibration_curve(restored(4, draws=8, sampler=Ancestral(3)))
    assert [level for level, _ in curve] == pytest.approx([1 / 9, 3 / 9, 5 / 9, 7 / 9])


def test_many_items_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    some = restored(10, sampler=Ancestral(3))
    whole = restoration_quality(some)
    monkeypatch.setattr(restoration_module, "_ITEMS", 3)
    assert restoration_quality(some) == whole


def test_small_images_and_points_have_no_ssim() -> None:
    x = torch.randn(5, 2, generator=generator())
    for shape in ((2,), (1, 1, 2)):
        y = x.reshape(5, *shape)
        quality = restoration_quality(Restoration(y, y, torch.stack([y, y + 1, y - 1]), y, torch.ones(5)))
        assert "psnr_draw" in quality and not any(name.startswith("ssim") for name in quality)


def test_a_single_item_has_no_standard_error() -> None:
    quality = restoration_quality(restored(1, sampler=Ancestral(3)))
    assert all(estimate.standard_error is None for estimate in quality.values())


def test_restorations_are_those_of_the_samplers() -> None:
    x_n, x_0 = items(21)
    indices = [*range(40, 60), 3]
    sigma_n = torch.linspace(0.1, 0.6, 21)
    ours = restore(exact(), x_n, sigma_n, indices, x_0, draws=3, sampler=Ancestral(5), seed=7, batch_size=6)
    torch.testing.assert_close(ours.one_step, one_step(exact(), x_n, sigma_n))
    torch.testing.assert_close(
        ours.draws, posterior_samples(exact(), x_n, sigma_n, 3, Ancestral(5), seed=7, indices=indices)
    )
    assert ours.x_0 is not None
    for theirs, given in ((ours.x_n, x_n), (ours.x_0, x_0), (ours.sigma_n, sigma_n)):
        assert torch.equal(theirs, given)


def test_batches_and_the_global_state_have_no_part_in_it() -> None:
    state = torch.get_rng_state()
    one = restored(21, sampler=Ancestral(5), draws=2)
    other = restored(21, sampler=Ancestral(5), draws=2, batch_size=5)
    torch.testing.assert_close(one.draws, other.draws, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


def network() -> Any:
    """A denoiser in which the rounding of an item depends on its batch."""
    weight = torch.randn(144, 144, generator=generator()) / 12
    return Exact(lambda x, sigma: (x.flatten(1) @ weight).tanh().reshape(x.shape))


@pytest.mark.parametrize(("size", "n"), [(2, 40), (3, 40), (3, 20)])  # 3 chunks for two; uneven; one without any
def test_any_number_of_processes_makes_the_same(size: int, n: int) -> None:
    def work() -> tuple[Tensor, Tensor, int]:
        result = restored(n, network(), draws=2, sampler=Ancestral(4))
        return result.one_step, result.draws, sum(map(len, Processes().deal(n, 16)))

    estimate, draws, _ = work()
    results = in_processes(size, work)
    assert all(torch.equal(found[0], estimate) and torch.equal(found[1], draws) for found in results)
    shares = [found[2] for found in results]
    assert sum(shares) == n and len(set(shares)) > 1 and (0 in shares) == (n == 20)


class Counting:
    """The exact denoiser, which counts items and dies after so many."""

    def __init__(self, limit: int = 10**9) -> None:
        self.items, self.limit = 0, limit

    def __call__(self) -> Any:
        def answer(x: Tensor, sigma: Tensor) -> Tensor:
            self.items += len(x)
            if self.items > self.limit:
                raise KeyboardInterrupt
            return x * (SPREAD**2 / (SPREAD**2 + sigma**2)).reshape(-1, 1, 1, 1)

        return Exact(answer, sigma_data=SPREAD)


def test_an_interrupted_call_continues(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"draws": 2, "sampler": Ancestral(4), "store": tmp_path}
    each = 1 + 2 * Ancestral(4).evaluations(4)
    whole = restored(40, **{**settings, "store": None})
    broken = Counting(limit=20 * each)  # in the second of three chunks
    with pytest.raises(KeyboardInterrupt):
        restored(40, broken(), **settings)
    for made in (24, 0):
        rest = Counting()
        again = restored(40, rest(), **settings)
        assert torch.equal(again.draws, whole.draws) and torch.equal(again.one_step, whole.one_step)
        assert rest.items == made * each
    # More items: the two whole chunks are known. Fewer: as many.
    for n, made in ((48, 16), (32, 0)):
        rest = Counting()
        restored(n, rest(), **settings)
        assert rest.items == made * each
    next(tmp_path.glob("00000000-*.npy")).write_bytes(b"damaged")
    rest = Counting()
    assert torch.equal(restored(40, rest(), **settings).draws, whole.draws)
    assert rest.items == 16 * each


def test_draws_of_something_else_are_never_taken_for_these(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"draws": 2, "sampler": Ancestral(4), "store": tmp_path}
    restored(5, **settings)
    x_n, sigma_n = items(5)[0], torch.full((5,), SIGMA)
    for change in (
        {"draws": 3},
        {"seed": 1},
        {"sampler": Ancestral(5)},
        {"denoiser": network()},
        {"x_n": x_n + 0.01},
        {"sigma_n": sigma_n + 0.01},
        {"indices": range(1, 6)},
    ):
        call = {"denoiser": exact(), "x_n": x_n, "sigma_n": sigma_n, "indices": range(5), **settings, **change}
        assert torch.equal(restore(**call).draws, restore(**{**call, "store": None}).draws), change


class Bar:
    """Stands in for tqdm."""

    made: list["Bar"] = []

    def __init__(self, total: int, disable: bool, **_: Any) -> None:
        self.total, self.disable, self.done = total, disable, count()
        self.n = 0
        Bar.made.append(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def update(self, n: int) -> None:
        self.n += n


@pytest.mark.parametrize("sampler", [Ancestral(4), Heun(3)])
def test_the_bar_ends_where_it_said(monkeypatch: pytest.MonkeyPatch, sampler: Any) -> None:
    monkeypatch.setattr(restoration_module, "tqdm", Bar)
    restored(5, draws=3, sampler=sampler, progress="restorations")
    restored(5, draws=3, sampler=sampler)
    shown, hidden = Bar.made[-2:]
    assert shown.n == shown.total == 5 * (1 + 3 * sampler.evaluations(sampler.steps)) and not shown.disable
    assert hidden.disable


def test_noisy_items_are_those_with_noise() -> None:
    x = torch.arange(4.0)[:, None]
    batch = NoisyBatch(x, torch.tensor([0.0, 0.3, 0.0, 0.2]), torch.arange(4), -x)
    found = noisy_items(batch)
    assert found is not None and found.x_0 is not None
    assert found.index.tolist() == [1, 3] and found.x_n.tolist() == [[1], [3]] and found.x_0.tolist() == [[-1], [-3]]
    one = noisy_items(batch, 1)
    assert one is not None and one.index.tolist() == [1]
    assert noisy_items(batch._replace(sigma_n=torch.zeros(4))) is None
    maps = noisy_items(batch._replace(sigma_n=torch.tensor([[0.0], [0.2], [0.0], [0.3]])))
    assert maps is not None and maps.index.tolist() == [1, 3]
    bare = noisy_items(batch._replace(x_0=None))
    assert bare is not None and bare.x_0 is None


@pytest.mark.parametrize("sigma_n", [torch.tensor([0.3, 0.0]), torch.zeros(2, *SHAPE), torch.zeros(0)])
def test_what_cannot_be_restored_is_refused(sigma_n: Tensor) -> None:
    x_n = items(2)[0]
    with pytest.raises(UserError, match="with sigma > 0"):
        restore(exact(), x_n, sigma_n, range(2))
    with pytest.raises(UserError, match="draws = 0"):
        restore(exact(), x_n, torch.ones(2), range(2), draws=0)
    bare = restore(exact(), x_n, torch.ones(2), range(2), draws=2, sampler=Ancestral(2))
    with pytest.raises(UserError, match="these data have none"):
        restoration_quality(bare)


def rows_of(picture: Any, colour: Sequence[int]) -> Iterator[int]:
    rows = (abs(picture.astype(int) - colour).sum(2) < 20).nonzero()[0]
    return iter(rows.tolist())


def test_the_picture_shows_who_is_too_sure() -> None:
    def curve(factor: float) -> list[tuple[float, Estimate]]:
        return [(level / 10, Estimate(factor * level / 10, 0.01)) for level in range(1, 10)]

    picture = calibration_picture({"careful": curve(1.1), "sure": curve(0.6)})
    careful, sure = (list(rows_of(picture, colour)) for colour in ([31, 119, 180], [255, 127, 14]))
    # Without the legend below; a smaller row is higher.
    careful, sure = ([row for row in rows if row < 520] for rows in (careful, sure))
    assert min(careful) < min(sure) and sum(careful) / len(careful) < sum(sure) / len(sure) - 50
