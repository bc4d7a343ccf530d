"""The exact denoiser minimises every term; what does not belong there does not.

Each loss is quadratic in the denoiser's error, so its slope along a perturbation is an exact difference
of two losses with the same random numbers, one unbiased draw per item.
"""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checks import Exact, assert_law, assert_mean, awake, generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.kernels import normal_like, perturb, reverse_step
from lightning_tweedie.levels import LogNormal, LogUniform
from lightning_tweedie.networks import MLP
from lightning_tweedie.objectives import (
    AmbientScoreMatching,
    Consistency,
    Objective,
    PosteriorReplay,
    ScoreMatching,
    Sure,
)
from lightning_tweedie.objectives.draw_buffer import DrawBuffer
from lightning_tweedie.objectives.stable_target import stable_target
from lightning_tweedie.objectives.term import Step, Term
from lightning_tweedie.oracles import GaussianOracle, MixtureOracle
from lightning_tweedie.preconditioning import edm_weight
from lightning_tweedie.sampling import Ancestral, DPMSolverPP2M, SDEDPMSolverPP2M

MIXTURE = MixtureOracle(
    torch.tensor([[-0.7, 0.0], [0.7, 0.3]]).double(),
    torch.tensor([0.1, 0.3]).double(),
    torch.tensor([0.4, 0.6]).double(),
)
GAUSSIAN = GaussianOracle(torch.tensor([0.5, -0.5]).double(), torch.tensor([[0.5, 0.3], [0.3, 0.25]]).double())

NOISE = ["one level", "a level per item", "a level per pixel"]


def noisy_data(
    n: int, kind: str = "one level", oracle: MixtureOracle | GaussianOracle = MIXTURE
) -> tuple[Tensor, Tensor]:
    """Noisy data with their levels; where each item has its own, every third is clean."""
    x_0 = oracle.sample(n, generator(1))
    if kind == "one level":
        sigma_n = torch.full((n,), 0.4, dtype=torch.float64)
    elif kind == "a level per item":
        sigma_n = torch.tensor([0.0, 0.2, 0.5], dtype=torch.float64).repeat(n)[:n]
    else:
        sigma_n = (0.4 + 0.2 * torch.rand(n, 1, generator=generator(2)).double()) * torch.tensor([1.0, 0.2])
    return perturb(x_0, 0.0, sigma_n, normal_like(generator(3))), sigma_n


CORRELATED = Correlation(torch.tensor([0.3, 1.0, 0.3]))
"""Two pixels that are neighbours on both sides: a correlation of 0.6."""


def correlated_data(n: int, oracle: MixtureOracle | GaussianOracle = MIXTURE) -> tuple[Tensor, Tensor]:
    """Data with correlated noise, and its level."""
    x_0 = oracle.sample(n, generator(1))
    noise = CORRELATED.colour(torch.randn(n, 2, generator=generator(3)).double())
    return x_0 + 0.4 * noise, torch.full((n,), 0.4, dtype=torch.float64)


def losses(
    term: Term,
    denoise: object,
    x_n: Tensor,
    sigma_n: Tensor,
    teacher: object = MIXTURE,
    seed: int = 0,
    correlation: Correlation | None = None,
) -> Tensor:
    """One loss per item of a term in an objective."""
    term = copy.deepcopy(term)
    named = {"score_matching": "ambient"}.get(term.name, term.name)
    objective = Objective(extra=[term]) if isinstance(term, Sure) else Objective(**{named: term})
    found = objective(Exact(denoise), x_n, sigma_n, correlation=correlation, teacher=teacher, generator=generator(seed))
    return found.per_item[term.name][1]


PERTURBATIONS = {
    "shift": lambda x, scale: scale * torch.ones_like(x),
    "gain": lambda x, scale: scale * (x - 0.2) / (0.5 + x.abs()),
    "wave": lambda x, scale: scale * torch.sin(4 * x).flip(1),
}


def slope(
    term: Term,
    perturbation: str,
    x_n: Tensor,
    sigma_n: Tensor,
    seed: int = 0,
    correlation: Correlation | None = None,
) -> tuple[Tensor, Tensor]:
    """Slope and curvature of a term's loss, per item, when the exact denoiser is perturbed."""

    def perturbed(sign: float) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scale = sign * sigma / (1 + sigma**2).sqrt()
            error = {**PERTURBATIONS, "couple": lambda x, scale: scale * x.flip(1)}[perturbation]
            return MIXTURE(x, sigma) + error(x, scale.to(x)[:, None])

        return losses(term, denoise, x_n, sigma_n, seed=seed, correlation=correlation)

    plus, zero, minus = perturbed(1.0), perturbed(0.0), perturbed(-1.0)
    return (plus - minus) / 2, (plus + minus) / 2 - zero


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("settings", [{}, {"weighting": "x_n"}, {"weighting": "x_0", "buffer": 0.4}], ids=str)
def test_the_exact_clean_denoiser_minimises_the_ambient_loss(kind, perturbation, settings):
    first, second = slope(AmbientScoreMatching(**settings), perturbation, *noisy_data(20_000, kind))
    assert_mean(first, 0.0)
    assert (second >= 0).all() and second.mean() > 0


def test_precision_weighs_each_level_by_the_noise_of_its_target():
    """Seen as one of ``x_0``, a target is the truth and noise of variance ``sigma_n^2 / (1 - r)``."""
    x_0, sigma_n = torch.full((200_000, 1), 0.3).double(), torch.full((200_000,), 0.4).double()
    x_n = perturb(x_0, 0.0, sigma_n, normal_like(generator(3)))
    step = Step(x_n, sigma_n, MIXTURE, torch.tensor(0.5), generator())

    def excess(weighting: str, error: float) -> tuple[Tensor, Tensor]:
        """What an error of the denoiser adds to the loss, and the noise share of each level."""
        term = AmbientScoreMatching(weighting=weighting, buffer=0.01, levels=LogUniform(0.01, 4.0))
        query = term.query(replace(step, generator=generator()))
        truth = x_0.expand_as(query.x)
        added = (query.loss(truth + error) - query.loss(truth)) / edm_weight(query.sigma, torch.tensor(0.5))
        return added, (0.4 / query.sigma.double()) ** 2

    added, r = excess("precision", 0.2)
    assert_mean(added - (1 - r) * 0.2**2, 0.0)
    # Equal precision: the linear part of what is added, which is the noise in the slope, varies as the weight itself.
    for low, high in ((0.1, 0.3), (0.6, 0.8)):
        band = (r > low) & (r < high)
        noise = (added - (1 - r) * 0.2**2)[band] / (2 * 0.2)
        assert_mean(noise**2 / (1 - r[band]), 0.4**2)
    for weighting, power in (("x_n", 2), ("x_0", 0)):
        added, r = excess(weighting, 0.2)
        assert_mean(added - (1 - r) ** power * 0.2**2, 0.0)


def test_levels_begin_above_the_buffer():
    x_n, sigma_n = noisy_data(500, "a level per item")
    query = AmbientScoreMatching(buffer=0.5).query(Step(x_n, sigma_n, MIXTURE, torch.tensor(0.5), generator()))
    assert (query.level >= 1.5 * sigma_n).all() and (query.level < 2 * sigma_n).any()


def test_the_naive_loss_has_its_minimum_elsewhere():
    """The control: taking noisy data as clean, the exact clean denoiser is not even stationary."""
    first, _ = slope(ScoreMatching(), "gain", *noisy_data(20_000))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(first, 0.0)


def test_on_clean_data_ambient_is_ordinary_score_matching():
    """The very same numbers."""
    x_0 = MIXTURE.sample(100, generator())
    clean = torch.zeros(100)
    assert torch.equal(
        losses(AmbientScoreMatching(), MIXTURE, x_0, clean), losses(ScoreMatching(), MIXTURE, x_0, clean)
    )


def test_a_stable_target_is_the_exact_mean_of_what_may_have_led_to_a_point():
    """That of a mixture of points, of which each may use some."""
    items, x_t = torch.randn(2, 12, 3, generator=generator()).double()
    variance = torch.linspace(0.01, 4.0, 12).double()
    some = torch.rand(12, 12, generator=generator()) < 0.5
    some |= torch.eye(12).bool()
    found = stable_target(x_t, variance, items, some)
    for own, point, v, its in zip(found, x_t, variance, some, strict=True):
        points = MixtureOracle(items[its], torch.zeros(int(its.sum())).double())
        torch.testing.assert_close(own, points(point[None], v.sqrt()[None])[0])


@pytest.mark.parametrize("kind", ["one level", "a level per item"])
@pytest.mark.parametrize("term", [AmbientScoreMatching, PosteriorReplay])
def test_stable_targets_have_the_same_expectation_and_less_noise(term, kind):
    """Slopes along a perturbation, of many batches: their mean is zero all the same, their variance a fraction."""
    variances = []
    for stable in (False, True):
        x_n, sigma_n = noisy_data(12_800, kind)
        slopes = []
        for seed, (part, levels) in enumerate(zip(x_n.split(64), sigma_n.split(64), strict=True)):
            loss = term(stable=True) if stable else term()
            if isinstance(loss, PosteriorReplay):
                loss.start, loss.share, loss.buffer.capacity, loss.buffer.written = 0.0, 1.0, 40, 40
            slopes.append(slope(loss, "gain", part, levels, seed)[0].mean())
        assert_mean(torch.stack(slopes), 0.0)
        variances.append(float(torch.stack(slopes).var()))
    assert variances[1] < 0.7 * variances[0]


SMALL_JUMPS = [
    dict(jump=0.95),
    dict(jump=0.95, gradient="both"),
    dict(jump=0.95, origin="x_n"),
    dict(jump=0.95, origin="x_n", gradient="both"),
    dict(jump=0.7, substeps=10),
]


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("settings", SMALL_JUMPS, ids=str)
def test_consistency_of_the_exact_denoiser_is_zero(settings, kind):
    term = Consistency(start=0, share=1, **settings)
    x_n, sigma_n = noisy_data(20_000, kind)
    assert_mean(losses(term, MIXTURE, x_n, sigma_n), 0.0)
    if "gradient" not in settings:
        assert_mean(slope(term, "wave", x_n, sigma_n)[0], 0.0)


@pytest.mark.parametrize("kind", NOISE)
@pytest.mark.parametrize("origin", ["x_n", "x_t"])
def test_consistency_asks_where_the_data_are(origin, kind):
    """The points of a pair have the law of the data at their levels: whitened, they are standard normal."""
    x_n, sigma_n = noisy_data(10_000, kind, GAUSSIAN)
    term = Consistency(start=0, share=1, origin=origin, chain=40, substeps=10, gradient="both")
    query = term.query(Step(x_n, sigma_n, GAUSSIAN, torch.tensor(0.5), generator()))
    variance = GAUSSIAN.variances + query.sigma[:, None].double() ** 2
    white = (query.x - GAUSSIAN.mean) @ GAUSSIAN.axes / variance.sqrt()
    for points in white.chunk(3):  # x_s, x_s again, x_t
        assert_law(points, torch.zeros(2).double(), torch.eye(2).double())


@pytest.mark.parametrize("gradient", ["less_noisy", "both"])
def test_consistency_sees_an_error_below_the_noise_level(gradient):
    """Where the ambient term sees nothing: this denoiser is exact above ``sigma_n = 0.4`` and wrong below."""

    def wrong(x: Tensor, sigma: Tensor) -> Tensor:
        return MIXTURE(x, sigma) + 0.5 * PERTURBATIONS["wave"](x, (sigma * (sigma < 0.4)).to(x)[:, None])

    x_n, sigma_n = noisy_data(20_000)
    ambient = AmbientScoreMatching()
    assert torch.equal(losses(ambient, wrong, x_n, sigma_n), losses(ambient, MIXTURE, x_n, sigma_n))
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(losses(Consistency(start=0, share=1, gradient=gradient), wrong, x_n, sigma_n, teacher=wrong), 0.0)


def test_consistency_alone_does_not_know_the_data():
    """The exact denoiser of any other law is as consistent: it takes the ambient term to tell them apart."""
    x_n, sigma_n = noisy_data(20_000)
    assert_mean(losses(Consistency(start=0, share=1), GAUSSIAN, x_n, sigma_n, teacher=GAUSSIAN), 0.0)


def test_a_large_jump_is_no_longer_a_step_of_the_reverse_process():
    x_n, sigma_n = noisy_data(20_000)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(losses(Consistency(start=0, share=1, jump=0.2), MIXTURE, x_n, sigma_n), 0.0)
    assert_mean(losses(Consistency(start=0, share=1, jump=0.2, substeps=40), MIXTURE, x_n, sigma_n), 0.0)


def test_the_exact_denoiser_is_a_martingale_of_the_exact_reverse_process():
    """``D(x_t) = E[D(x_s) | x_t]``: the difference is orthogonal to every function of ``x_t``, for any jump."""
    noise = normal_like(generator())
    x_s = perturb(MIXTURE.sample(20_000, generator(1)), 0.0, 0.1, noise)
    x_t = perturb(x_s, 0.1, 1.0, noise)
    difference = MIXTURE(x_s, 0.1) - MIXTURE(x_t, 1.0)
    for probe in (torch.ones_like(x_t), x_t, x_t.sin(), x_t.flip(1) ** 2):
        assert_mean(difference * probe, 0.0)


def test_two_draws_are_unbiased_where_a_squared_mean_is_not():
    """A squared mean of ``K`` draws expects ``Var / K``; for a Gaussian ``Var D(x_s) = g^2 s^2 (1 - s^2 / t^2)``."""
    c, t, s, draws = 0.25, 0.5, 0.35, 4
    gain_s, gain_t = c / (c + s**2), c / (c + t**2)
    noise = normal_like(generator())
    x_t = torch.linspace(-2, 2, 20_000, dtype=torch.float64)[:, None]
    off = [gain_s * reverse_step(x_t, gain_t * x_t, t, s, noise) - gain_t * x_t for _ in range(draws)]
    assert_mean(off[0] * off[1], 0.0)
    assert_mean((sum(off) / draws) ** 2, gain_s**2 * s**2 * (1 - s**2 / t**2) / draws)


@pytest.mark.parametrize("draws", [2, 4])
def test_the_estimator_of_consistency_is_unbiased_unless_asked_otherwise(draws):
    """At the exact denoiser the mean over pairs expects zero; the squared mean expects a positive variance."""
    settings = dict(start=0, share=1, jump=0.95, draws=draws)
    x_n, sigma_n = noisy_data(10_000)
    assert_mean(losses(Consistency(**settings), MIXTURE, x_n, sigma_n), 0.0)
    biased = losses(Consistency(**settings, unbiased=False), MIXTURE, x_n, sigma_n)
    assert (biased >= 0).all() and biased.mean() > 20 * biased.std() / len(biased) ** 0.5


def test_sure_is_the_squared_error_of_the_clean_estimate():
    """Up to a constant that does not depend on the estimate: differences are those of the true risk."""
    n, sigma = 40_000, 0.4
    x_0 = MIXTURE.sample(n, generator(1))
    x_n = x_0 + sigma * torch.randn(n, 2, generator=generator(3)).double()
    levels, scale = torch.full((n,), sigma).double(), edm_weight(torch.tensor(sigma), torch.tensor(0.5))

    def linear(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.4 * x

    for denoise in (MIXTURE, linear):
        found = losses(Sure(share=1), denoise, x_n, levels)
        true = scale * (denoise(x_n, levels) - x_0).square().mean(1)
        assert_mean(found - true, 0.0)


@pytest.mark.parametrize("kind", ["a level per item", "a level per pixel"])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_exact_denoiser_minimises_sure(perturbation, kind):
    first, second = slope(Sure(share=1), perturbation, *noisy_data(40_000, kind))
    assert_mean(first, 0.0)
    assert second.mean() > 0


def test_sure_gives_way_as_far_as_ambient_targets_are_averaged():
    """By the number of items that a point may have come from: all of a cluster, one only in many dimensions."""

    def factor(x_n: Tensor) -> Tensor:
        step = Step(x_n, torch.full((64,), 0.1), lambda x, sigma: x, torch.tensor(0.5), generator())
        stable, plain = (Sure(share=1, stable=stable).query(step) for stable in (True, False))
        return stable.loss(torch.cat([x_n, x_n])) / plain.loss(torch.cat([x_n, x_n]))

    clusters = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).repeat(32, 1)
    torch.testing.assert_close(factor(clusters), torch.full((64,), 1 / 32))
    torch.testing.assert_close(factor(torch.randn(64, 300, generator=generator())), torch.ones(64))


def test_sure_counts_the_kth_look_at_an_item_by_one_kth():
    """Of the noisy items alone, of which a small share of the batch may be all that there are."""
    x_n, levels = torch.randn(64, 2, generator=generator()), torch.full((64,), 0.4)

    def factor(passes: float, noisy: int) -> float:
        found = []
        for seen in (passes, 0.0):
            some = levels * (torch.arange(64) < noisy)
            step = Step(x_n, some, MIXTURE, torch.tensor(0.5), generator(), passes=seen)
            query = Sure(share=0.25).query(step)
            found.append(query.loss(query.x).sum())
        return float(found[0] / found[1])

    assert factor(passes=3, noisy=64) == 1  # each has been seen by three in four
    assert factor(passes=40, noisy=64) == pytest.approx(1 / 10)
    assert factor(passes=40, noisy=32) == pytest.approx(1 / 20)
    assert factor(passes=40, noisy=8) == pytest.approx(1 / 40)


def test_sure_is_not_learnt_by_heart():
    """Many looks at few items in many dimensions; without their number the denoiser is worse than before."""
    dim, items, batch, steps = 32, 400, 128, 500
    clean = torch.randn(5400, dim, generator=generator()) @ torch.diag(torch.arange(1, dim + 1) ** -0.75)
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator(1))
    level = torch.full((batch,), 0.3)

    def error(counted: bool) -> float:
        torch.manual_seed(0)
        denoiser = Denoiser(MLP(dim, width=128), sigma_data=float(clean.std()))
        objective = Objective(ambient=AmbientScoreMatching(), extra=[Sure(share=0.25)])
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
        for step in range(steps):
            which = torch.randint(items, (batch,), generator=generator(step))
            passes = step * batch / items if counted else 0.0
            loss = objective(denoiser, noisy[which], level, passes=passes, generator=generator(step)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = denoiser(noisy[items:], torch.full((5000,), 0.3))
        return float((found - clean[items:]).square().mean())

    assert error(counted=True) < 0.5 * error(counted=False)


def test_terms_have_names_of_their_own():
    with pytest.raises(UserError, match="two terms named sure"):
        Objective(extra=[Sure(), Sure()])


def filled_before(sigma_n: Tensor, **settings: object) -> PosteriorReplay:
    """Replay with room for the noisy items of one batch, as if the buffer had been full already."""
    term = PosteriorReplay(start=0, capacity=int((sigma_n.reshape(len(sigma_n), -1) > 0).any(1).sum()), **settings)
    term.buffer.written = term.buffer.capacity
    return term


@pytest.mark.parametrize("solver", [DPMSolverPP2M, SDEDPMSolverPP2M])
@pytest.mark.parametrize("kind", NOISE)
def test_replayed_data_have_the_clean_law(kind, solver):
    """Noisy data, drawn from their posteriors or carried along the flow, are draws of the clean distribution."""
    x_n, sigma_n = noisy_data(6000, kind, GAUSSIAN)
    term = filled_before(sigma_n, sampler=solver(40))
    term.query(Step(x_n, sigma_n, GAUSSIAN, torch.tensor(0.5), generator()))
    assert_law(term.buffer.draws[:, 0], GAUSSIAN.mean, GAUSSIAN.axes @ torch.diag(GAUSSIAN.variances) @ GAUSSIAN.axes.T)


@pytest.mark.parametrize(("solver", "power"), [(DPMSolverPP2M, 1), (SDEDPMSolverPP2M, 2)])
def test_a_round_along_the_flow_mends_more_than_one_with_posterior_draws(solver, power):
    """An error of the model's variance shrinks by 1 - k, or by 1 - k^2, with k = s^2 / (s^2 + sigma_n^2)."""
    s, sigma, count = 0.1, 0.2, 40_000
    k = s**2 / (s**2 + sigma**2)
    x_n = (s**2 + sigma**2) ** 0.5 * torch.randn(count, 1, dtype=torch.float64, generator=generator())
    # The law of the data to the last digit, so that one round's error is that of the draws alone.
    x_n = (x_n - x_n.mean()) / x_n.std() * (s**2 + sigma**2) ** 0.5
    level = torch.full((count,), sigma, dtype=torch.float64)

    def after(variance: float) -> float:
        model = GaussianOracle(torch.zeros(1, dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64))
        term = PosteriorReplay(sampler=solver(200), draw_start=0)
        step = Step(x_n, level, model, torch.tensor(0.1), generator(1))
        return float(term.guess(step)[0].var())

    def factor(error: float) -> float:
        """With the same random numbers on both sides, which the difference does not see."""
        return (after(s**2 * (1 + error)) - after(s**2 * (1 - error))) / (2 * error * s**2)

    assert factor(0.02) == pytest.approx(1 - k**power, abs=0.01)


def test_draws_may_keep_a_share_of_their_noise():
    """Carried down to ``residual sigma_n``, noisy data have the clean law and noise of that level, and white."""
    x_n, sigma_n = noisy_data(6000, "a level per item", GAUSSIAN)
    term = filled_before(sigma_n, sampler=DPMSolverPP2M(40), residual=0.3)
    term.query(Step(x_n, sigma_n, GAUSSIAN, torch.tensor(0.5), generator()))
    clean = GAUSSIAN.axes @ torch.diag(GAUSSIAN.variances) @ GAUSSIAN.axes.T
    for level in (0.2, 0.5):
        of_level = term.buffer.levels[:, 0] == level
        assert of_level.sum() == 2000
        draws, held = term.buffer.draws[of_level], term.buffer.levels[of_level, 1]
        torch.testing.assert_close(held, torch.full_like(held, 0.3 * level))
        assert_law(draws[:, 0], GAUSSIAN.mean, clean + (0.3 * level) ** 2 * torch.eye(2))
        torch.testing.assert_close(draws[:, 1], GAUSSIAN(draws[:, 0], held))


def test_expectations_in_the_place_of_draws_are_raised_to_the_noise_that_these_keep():
    x_n, sigma_n = noisy_data(6000, oracle=GAUSSIAN)
    step = Step(x_n, sigma_n, GAUSSIAN, torch.tensor(0.5), generator(), progress=0.5)
    guess, levels = PosteriorReplay(residual=0.25, draw_start=0.6).guess(step)
    torch.testing.assert_close(levels, torch.tensor([0.4, 0.1, 0.0], dtype=torch.float64).expand(6000, 3))
    assert_law((guess[:, 0] - GAUSSIAN(x_n, sigma_n)) / 0.1, torch.zeros(2).double(), torch.eye(2).double())
    torch.testing.assert_close(guess[:, 1], GAUSSIAN(guess[:, 0], levels[:, 1]))


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_exact_denoiser_is_a_fixed_point_above_the_noise_that_draws_keep(perturbation):
    """And not below, where expectations are learnt, which vary less."""
    x_n, sigma_n = noisy_data(6000)

    def first(levels: LogNormal) -> Tensor:
        term = filled_before(sigma_n, share=1, residual=0.5, sampler=SDEDPMSolverPP2M(40), levels=levels)
        return slope(term, perturbation, x_n, sigma_n)[0]

    assert_mean(first(LogNormal(sigma_min=0.2)), 0.0)
    if perturbation == "gain":
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_mean(first(LogNormal(sigma_min=0.1, sigma_max=0.2)), 0.0)


def test_averaged_targets_do_not_mix_draws_that_keep_noise_with_their_expectations():
    """All points are 5, all expectations -5, and an average of both would be between."""
    term = PosteriorReplay(start=0, capacity=8, share=8, residual=0.5, stable=True)
    term.buffer.write(torch.tensor([5.0, -5.0]).repeat(8, 1)[..., None], torch.tensor([0.4, 0.2, 0.0]).repeat(8, 1))
    term.steps = 1  # and nothing is due
    step = Step(torch.zeros(8, 1), torch.full((8,), 0.4), MIXTURE, torch.tensor(0.5), generator())
    query = term.query(step)
    assert query is not None
    r = torch.where(query.sigma > 0.2, (0.2 / query.sigma) ** 2, 0.0)[:, None]
    assert 0 < (r > 0).sum() < len(r)
    target = torch.where(r > 0, 5.0, -5.0)
    torch.testing.assert_close(query.loss((target - r * query.x) / (1 - r)), torch.zeros(len(r)), atol=1e-6, rtol=0)


def test_what_draws_keep_of_a_variance_that_is_not_there_goes_away_in_one_round():
    """Data without variance, a model of variance ``v``: ``v (1 - k)`` along the flow, times ``v / (v + tau^2)``."""
    sigma, v = 0.5, 0.03**2
    x_n, level = sigma * torch.randn(4000, 1, generator=generator()).double(), torch.full((4000,), sigma).double()
    model = GaussianOracle(torch.zeros(1).double(), torch.tensor([[v]]).double())
    step = Step(x_n, level, model, torch.tensor(0.5), generator())

    def left(**settings: float) -> float:
        guess, _ = PosteriorReplay(draw_start=0, sampler=DPMSolverPP2M(400), **settings).guess(step)
        return float(guess[:, -1].square().mean() / x_n.square().mean()) * sigma**2 / v

    k = v / (v + sigma**2)
    for settings, tau in (({}, sigma / 20), ({"residual": 0.2}, 0.2 * sigma)):
        assert left(**settings) == pytest.approx((1 - k) * v / (v + tau**2), rel=0.02)


def test_expectations_stand_in_for_draws_until_these_begin():
    """Those of every item in every step while the buffer fills, then in some steps."""
    x_n, sigma_n = noisy_data(40, oracle=GAUSSIAN)
    expectation = GAUSSIAN(x_n, sigma_n)

    def kept(term: PosteriorReplay, progress: float) -> Tensor:
        term.query(Step(x_n, sigma_n, GAUSSIAN, torch.tensor(0.5), generator(), progress))
        return term.buffer.draws[:, 0].clone()

    term = PosteriorReplay(start=0, capacity=60, refresh=0.5, draw_start=0.5)
    assert torch.equal(kept(term, 0.4)[:40], expectation)
    filled = kept(term, 0.45)
    assert torch.equal(filled[40:], expectation[:20]) and term.buffer.written == 80
    assert not torch.allclose(kept(term, 0.5)[20:], expectation, atol=1e-3) and term.buffer.written == 120
    kept(term, 0.6)
    assert term.buffer.written == 120


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_the_exact_denoiser_is_a_fixed_point_of_replay(perturbation):
    """With the exact denoiser as teacher it is the minimum of the next step's loss."""
    x_n, sigma_n = noisy_data(6000)
    first, second = slope(filled_before(sigma_n, sampler=SDEDPMSolverPP2M(40), share=1), perturbation, x_n, sigma_n)
    assert_mean(first, 0.0)
    assert (second >= 0).all()


@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("name", ["ambient", "consistency", "replay", "sure"])
def test_under_correlated_noise_the_exact_denoiser_minimises_every_term(name, perturbation):
    x_n, sigma_n = correlated_data(20_000 if name != "replay" else 6000)
    term = {
        "ambient": AmbientScoreMatching,
        "consistency": lambda: Consistency(start=0, share=1, jump=0.95),
        "replay": lambda: filled_before(sigma_n, sampler=SDEDPMSolverPP2M(40), share=1),
        "sure": lambda: Sure(share=1),
    }[name]()
    first, second = slope(term, perturbation, x_n, sigma_n, correlation=CORRELATED)
    assert_mean(first, 0.0)
    assert second.mean() > 0


@pytest.mark.parametrize("term", [AmbientScoreMatching(), Sure(share=1)], ids=lambda term: term.name)
def test_told_that_correlated_noise_is_white_the_minimum_is_elsewhere(term):
    """The control: with the same variance, the exact clean denoiser is not even stationary."""
    assert_mean(slope(term, "couple", *correlated_data(20_000), correlation=CORRELATED)[0], 0.0)
    with pytest.raises(AssertionError, match="standard errors off"):
        assert_mean(slope(term, "couple", *correlated_data(20_000))[0], 0.0)


def test_data_with_correlated_noise_are_replayed_with_the_clean_law():
    x_n, sigma_n = correlated_data(6000, GAUSSIAN)
    term = filled_before(sigma_n, sampler=DPMSolverPP2M(40))
    Objective(replay=term)(
        Exact(GAUSSIAN), x_n, sigma_n, correlation=CORRELATED, teacher=GAUSSIAN, generator=generator()
    )
    draws = CORRELATED.hartley(term.buffer.draws[:, 0])
    assert_law(draws, GAUSSIAN.mean, GAUSSIAN.axes @ torch.diag(GAUSSIAN.variances) @ GAUSSIAN.axes.T)


def test_replay_trains_each_draw_below_its_own_level():
    x_n, sigma_n = noisy_data(300, "a level per item")
    term = PosteriorReplay(start=0, share=3)
    levels = term.query(Step(x_n, sigma_n, MIXTURE, torch.tensor(0.5), generator())).level
    assert term.buffer.written == 200 and set(term.buffer.levels[:200, 0].tolist()) == {0.2, 0.5}
    assert (levels >= 0.00199).all() and (levels <= 0.5).all() and (levels > 0.2).any()


@pytest.mark.parametrize("place", ["device", "memory", "disk"])
def test_replay_replaces_the_oldest_draws_first_and_keeps_its_state(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def batch(k: int) -> Step:
        x_n, sigma_n = torch.full((4, 1), float(k)), torch.full((4,), 0.0101)
        return Step(x_n, sigma_n, lambda x, sigma: x, torch.tensor(0.5), generator(k))

    term = PosteriorReplay(start=0, capacity=6, refresh=0.5, place=place)
    seen = []
    for k in range(4):
        term.query(batch(k))
        seen.append(term.buffer.draws.round().flatten().tolist())
    # The identity as a denoiser moves hardly anything. Whole batches until the buffer is full, and then in every second
    # step: four zeros, four ones of which two over the oldest zeros, four twos over the oldest, nothing.
    assert seen[1:] == [[1, 1, 0, 0, 1, 1], [1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2]]
    restored = PosteriorReplay(start=0, capacity=6, refresh=0.5, place=place)
    restored.load_state_dict(copy.deepcopy(term.state_dict()))
    for k in (4, 5):
        a, b = term.query(batch(k)), restored.query(batch(k))
        assert torch.equal(a.x, b.x) and torch.equal(a.sigma, b.sigma)
    assert torch.equal(term.buffer.draws, restored.buffer.draws)
    assert term.buffer.written == restored.buffer.written == 16
    other = PosteriorReplay(start=0, capacity=6, refresh=0.5, place=place, residual=0.25)
    other.load_state_dict(copy.deepcopy(term.state_dict()))
    assert other.buffer.written == 0 and other.steps == term.steps
    small = PosteriorReplay(start=0, capacity=3, place=place)
    small.query(batch(0))
    assert small.buffer.draws.shape == (3, 1, 1) and small.buffer.written == 3
    assert not list(tmp_path.iterdir())  # nothing is left behind, even if the process is killed


def test_no_draw_is_older_than_four_batches_take_to_replace_them():
    def batch(k: int, count: int = 4) -> Step:
        x_n, sigma_n = torch.full((count, 1), float(k)), torch.full((count,), 0.0101)
        return Step(x_n, sigma_n, lambda x, sigma: x, torch.tensor(0.5), generator(k))

    term = PosteriorReplay(start=0, refresh=0.5)
    for k in range(12):
        term.query(batch(k))
    assert term.buffer.draws.round().flatten().tolist() == [float(k) for k in (4, 6, 8, 10) for _ in range(4)]
    # Resumed with another batch, the buffer stays as it is.
    restored = PosteriorReplay(start=0, refresh=0.5)
    restored.load_state_dict(copy.deepcopy(term.state_dict()))
    for each in (term, restored):
        each.query(batch(12, 2))
    assert torch.equal(term.buffer.draws, restored.buffer.draws) and len(restored.buffer.draws) == 16


def test_a_buffer_on_disk_is_in_a_file_that_must_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    buffer = DrawBuffer(1000, "disk")
    buffer.write(torch.ones(2, 50), torch.ones(2))
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(tmp_path) in mapped.read_text()
    with pytest.raises(UserError, match="of disk .* set TMPDIR to a folder with more room"):
        DrawBuffer(10**15, "disk").write(torch.ones(2, 50), torch.ones(2))


def test_rounds_put_new_draws_into_use_all_at_once():
    def query(term: PosteriorReplay, k: int) -> None:
        x_n, sigma_n = torch.full((4, 1), float(k)), torch.full((4,), 0.0101)
        term.query(Step(x_n, sigma_n, lambda x, sigma: x, torch.tensor(0.5), generator(k)))

    def numbers(term: PosteriorReplay) -> list[float]:
        return term.buffer.draws.round().flatten().tolist()

    term = PosteriorReplay(start=0, capacity=4, refresh=0.5, round_steps=3)
    seen = []
    for k in range(4):
        query(term, k)
        seen.append(numbers(term))
    # Full after the first batch. Draws of the second step of the round wait until its third.
    assert seen == [[0] * 4, [0] * 4, [0] * 4, [2] * 4]
    restored = PosteriorReplay(start=0, capacity=4, refresh=0.5, round_steps=3)
    restored.load_state_dict(copy.deepcopy(term.state_dict()))
    for each in (term, restored):
        for k in range(4, 7):
            assert numbers(each) == [2] * 4
            query(each, k)
        # Those of the second round; step 6 makes some for the third.
        assert numbers(each) == [4] * 4
    with pytest.raises(UserError, match="at least 8"):
        PosteriorReplay(refresh=0.125, round_steps=7)
    with pytest.raises(UserError, match="steps >= 2"):
        PosteriorReplay(sampler=Ancestral(1))


def everything() -> Objective:
    return Objective(
        AmbientScoreMatching(),
        Consistency(start=0, ramp=0),
        PosteriorReplay(start=0, ramp=0, sampler=Ancestral(3)),
    )


def test_a_step_has_one_forward_pass_with_gradient():
    denoiser, calls = Denoiser(awake(MLP(2, width=16)), sigma_data=0.5), []
    denoiser.backbone.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x_n, sigma_n = noisy_data(32)
    losses = everything()(denoiser, x_n.float(), sigma_n.float(), generator=generator())
    losses.total.backward()
    assert calls.count(True) == 1
    assert losses.total.item() == pytest.approx(sum(losses.terms.values()).item(), rel=1e-5)
    assert all(p.grad is not None and p.grad.any() for p in denoiser.parameters())


def test_terms_share_the_batch():
    """As many points with gradient as the batch has items; the ambient term keeps a quarter."""
    x_n, sigma_n = noisy_data(64)

    def points(**terms: Term) -> tuple[int, dict[str, int]]:
        seen = []

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(len(x))
            return MIXTURE(x, sigma)

        found = Objective(**terms)(Exact(denoise), x_n, sigma_n, teacher=MIXTURE, generator=generator()).per_item
        return seen[0], {name: len(loss) for name, (_, loss) in found.items()}

    replay = PosteriorReplay(start=0, share=0.25)
    assert points(replay=replay) == (64, {"replay": 16, "ambient": 48})
    both = dict(replay=replay, consistency=Consistency(start=0, share=0.125))
    assert points(**both) == (64, {"consistency": 8, "replay": 16, "ambient": 32})
    sides = Consistency(start=0, share=0.125, gradient="both")
    assert points(consistency=sides) == (64, {"consistency": 8, "ambient": 40})
    assert points(extra=[Sure(share=0.25)]) == (64, {"sure": 16, "ambient": 32})
    assert points(consistency=Consistency(start=0, share=0.5)) == (80, {"consistency": 32, "ambient": 16})


def test_clean_items_take_part_in_the_ambient_term_alone():
    denoiser = Denoiser(MLP(2, width=16), sigma_data=0.5)
    x_n, sigma_n = (t.float() for t in noisy_data(30, "a level per item"))
    mixed = everything()(denoiser, x_n, sigma_n, generator=generator())
    assert {name: len(loss) for name, (_, loss) in mixed.per_item.items()} == {
        "ambient": 8,
        "consistency": 8,
        "replay": 15,
    }
    assert all(loss.isfinite().all() for _, loss in mixed.per_item.values())
    clean = everything()(denoiser, x_n, torch.zeros(30), generator=generator())
    assert list(clean.terms) == ["ambient"]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 4), (1, 2, 3, 4)], ids=["vector", "signal", "image", "volume"])
def test_every_term_takes_data_of_any_rank(shape):
    x = torch.randn(8, *shape, generator=generator())
    denoiser = Exact(lambda x, sigma: x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2))
    for sigma_n in (torch.full((8,), 0.3), torch.rand(8, *shape, generator=generator())):
        assert len(everything()(denoiser, x, sigma_n, generator=generator()).terms) == 3


@given(start=st.floats(0, 0.99), ramp=st.floats(0, 1), weight=st.floats(0.01, 10), progress=st.floats(0, 1))
def test_weight_schedule(start, ramp, weight, progress):
    term = Consistency(weight, start, ramp)
    at = term.weight_at(progress)
    if progress < start:
        assert at == 0
    elif progress >= start + ramp + 1e-9:
        assert at == weight
    else:
        assert at == pytest.approx(weight * min(1, (progress - start) / ramp if ramp else 1))


def test_terms_that_are_off_cost_nothing():
    objective = Objective(replay=PosteriorReplay(start=0.5), consistency=Consistency(start=0.7))
    x_n, sigma_n = noisy_data(8)

    def at(progress: float) -> set[str]:
        return set(objective(Exact(MIXTURE), x_n, sigma_n, progress=progress, generator=generator()).terms)

    assert at(0.4) == {"ambient"} and objective.terms["replay"].buffer.written == 0
    assert at(0.6) == {"ambient", "replay"}
    assert at(1.0) == {"ambient", "consistency", "replay"}


def test_bad_settings_are_refused():
    for wrong in (dict(jump=1.0), dict(share=0.0), dict(substeps=0), dict(weight=-1.0), dict(start=1.0)):
        with pytest.raises(UserError, match="needs"):
            Consistency(**wrong)
    with pytest.raises(UserError, match="refresh"):
        PosteriorReplay(refresh=0.0)
    x_n, sigma_n = noisy_data(4)
    with pytest.raises(UserError, match="sigma_data"):
        Objective()(Denoiser(MLP(2)), x_n, sigma_n)
    with pytest.raises(UserError, match="below the levels' sigma_max"):
        Objective(AmbientScoreMatching(LogUniform(0.01, 0.3)))(Exact(MIXTURE), x_n, sigma_n)
