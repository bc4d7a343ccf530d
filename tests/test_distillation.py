"""Distillation: its gradient is that of a divergence, and no level below the noise is needed."""

from functools import cache, partial
from pathlib import Path

import pytest
import torch
from checks import Exact, assert_mean, generator
from test_module import SaveAt, Toy, assert_equal, make_module, make_trainer
from test_recovery import COV, EYE, MEAN, LinearDenoiser
from torch import Tensor, nn

from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.correlation import Correlation
from lightning_tweedie.distillation import DistillationModule
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import LogUniform
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.objectives import Losses, ScoreDistillation
from lightning_tweedie.oracles import GaussianOracle
from lightning_tweedie.preconditioning import edm_weight
from lightning_tweedie.randomness import step_generator
from lightning_tweedie.sampling import Euler, sample

SIGMA_N, SIGMA_INIT, RUNS = 0.5, 2.5, 8
OTHER_MEAN, OTHER_COV = torch.tensor([0.1, 0.2]).double(), torch.tensor([[0.3, -0.1], [-0.1, 0.6]]).double()


class LinearGenerator(nn.Module):
    """``x_g = m + R z``, of a law that is known: ``N(m, R R^T)``."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        self.mean, self.root = nn.Parameter(mean.clone()), nn.Parameter(torch.linalg.cholesky(cov))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.mean + x / sigma[:, None] @ self.root.T


def losses(objective: ScoreDistillation, made_by: nn.Module, seed: int, items: int = 512) -> Losses:
    x_n = torch.zeros(items, 2, dtype=torch.float64)
    return objective(made_by, x_n, torch.full((items,), SIGMA_N), generator=generator(seed))


def gradients(objective: ScoreDistillation, made_by: nn.Module, of: nn.Module) -> list[Tensor]:
    """For each parameter the gradients of independent steps, ``(100, *)``."""
    draws = [torch.autograd.grad(losses(objective, made_by, seed).total, list(of.parameters())) for seed in range(100)]
    return [torch.stack(its) for its in zip(*draws, strict=True)]


@pytest.mark.parametrize("sigma_t", [0.6, 2.0])
def test_the_gradient_is_that_of_the_divergence_of_the_noisy_laws(sigma_t):
    """``lambda sigma_t^2 / d`` times that of Kullback and Leibler's, where the fake is exact."""
    made_by = LinearGenerator(OTHER_MEAN, OTHER_COV)
    objective = ScoreDistillation(
        Exact(GaussianOracle(MEAN, COV)), SIGMA_INIT, LogUniform(sigma_t, sigma_t * (1 + 1e-6))
    )
    objective.fake = Exact(GaussianOracle(OTHER_MEAN, OTHER_COV))
    noisy, truth = (
        torch.distributions.MultivariateNormal(mean, cov + sigma_t**2 * EYE)
        for mean, cov in ((made_by.mean, made_by.root @ made_by.root.T), (MEAN, COV))
    )
    divergence = torch.distributions.kl_divergence(noisy, truth)
    factor = edm_weight(torch.tensor(sigma_t), 0.5) * sigma_t**2 / 2
    expected = torch.autograd.grad(factor * divergence, list(made_by.parameters()))
    for found, wanted in zip(gradients(objective, made_by, made_by), expected, strict=True):
        assert_mean(found, wanted)
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_mean(found, torch.zeros_like(wanted))


def test_samples_are_compared_above_all_of_correlated_noise():
    """Two neighbours with a correlation of 0.6 hold noise of 1.6 times the variance in their sum."""
    exact, x_n, sigma_n = Exact(GaussianOracle(MEAN, COV)), torch.zeros(500, 2).double(), torch.full((500,), SIGMA_N)
    objective, shape = ScoreDistillation(exact, levels=LogUniform(0.1, 4.0)), Correlation(torch.tensor([0.3, 1, 0.3]))
    for correlation, least in ((None, SIGMA_N), (shape, 1.6**0.5 * SIGMA_N)):
        levels, _ = objective(exact, x_n, sigma_n, correlation=correlation, generator=generator()).per_item["distance"]
        assert least < levels.min() < 1.05 * least


def test_the_gradient_vanishes_at_the_truth():
    """Item by item, if what samples look like is known exactly; on average, if it is learnt."""
    objective = ScoreDistillation(Exact(GaussianOracle(MEAN, COV)), SIGMA_INIT)
    made_by = LinearGenerator(MEAN, COV)
    assert all((its == 0).all() for its in gradients(objective, made_by, made_by))
    assert losses(objective, made_by, 0).terms["distance"] == 0


@pytest.mark.parametrize("stable", [False, True])
def test_the_fake_learns_the_law_of_the_samples(stable):
    """Its gradient is zero within its standard error at their exact denoiser and not at the data's."""
    made_by, at = LinearGenerator(OTHER_MEAN, OTHER_COV), {}
    for name, mean, cov in (("samples", OTHER_MEAN, OTHER_COV), ("data", MEAN, COV)):
        objective = ScoreDistillation(Exact(GaussianOracle(MEAN, COV)), SIGMA_INIT, stable=stable)
        fake = LinearDenoiser()
        fake.mean.data, fake.root.data = mean.clone(), torch.linalg.cholesky(cov)
        objective.fake = Exact(fake)
        at[name] = gradients(objective, made_by, fake)
    for here, there in zip(at["samples"], at["data"], strict=True):
        assert_mean(here, torch.zeros_like(here[0]))
        with pytest.raises(AssertionError, match="standard errors off"):
            assert_mean(there, torch.zeros_like(there[0]))


def knows_only_above_the_noise(x: Tensor, sigma: Tensor) -> Tensor:
    """The exact denoiser above ``SIGMA_N``, and nothing at all below."""
    answer = GaussianOracle(MEAN, COV)(x, sigma)
    return torch.where(sigma[:, None] > SIGMA_N, answer, torch.full_like(answer, torch.nan))


def undistilled() -> LinearDenoiser:
    """A denoiser of clean data, as it would be learnt."""
    denoiser = LinearDenoiser()
    denoiser.mean.data, denoiser.root.data = MEAN.clone(), torch.linalg.cholesky(COV)
    return denoiser


def law_of_samples(denoiser: LinearDenoiser) -> Tensor:
    """Mean and covariance of one-step samples, ``(3, 2)``, exactly."""
    with torch.no_grad():
        zero, steps = denoiser(torch.zeros(1, 2).double(), torch.tensor([SIGMA_INIT])), SIGMA_INIT * EYE
        slope = denoiser(steps, torch.full((2,), SIGMA_INIT)) - zero
    return torch.cat([zero, slope.T @ slope])


@cache
def distilled() -> Tensor:
    """Laws of the samples of independently distilled generators, ``(RUNS, 3, 2)``."""
    laws = []
    for run in range(RUNS):
        objective = ScoreDistillation(Exact(knows_only_above_the_noise), SIGMA_INIT, stable=True)
        made_by, fake = undistilled(), undistilled()
        objective.fake = Exact(fake)
        optimizer = torch.optim.Adam([*made_by.parameters(), *fake.parameters()], lr=0.03, betas=(0.0, 0.99))
        schedule = WarmupCosine(optimizer, warmup=10, total_steps=400)
        for step in range(400):
            optimizer.zero_grad()
            losses(objective, Exact(made_by), 1000 * run + step, items=256).total.backward()
            optimizer.step()
            schedule.step()
        laws.append(law_of_samples(made_by))
    return torch.stack(laws)


TRUTH = torch.cat([MEAN[None], COV])


def test_one_step_makes_clean_data_although_no_level_below_the_noise_is_known():
    assert_mean(distilled(), TRUTH)
    assert ((distilled()[:, 1:] - COV).abs() < 0.1 * COV.diag().max()).all()


def test_one_step_of_the_exact_denoiser_itself_does_not():
    """The control: its samples are its estimates, which vary far less than data."""
    assert (law_of_samples(undistilled())[1:].diagonal() < 0.1 * COV.diagonal()).all()


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    trainer = make_trainer(tmp_path, max_steps=5)
    trainer.fit(make_module(), Toy())
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    return str(tmp_path / "teacher.ckpt")


def make_distillation(teacher: str, **changes: object) -> DistillationModule:
    settings = {"ema": EMA([5.0]), "optimizer": partial(torch.optim.Adam, lr=1e-2, betas=(0.0, 0.99))}
    return DistillationModule(teacher, **{**settings, **changes})


def test_a_resumed_distillation_ends_where_the_uninterrupted_one_does(tmp_path, teacher):
    """Bit by bit, and with the teacher that it began with, though the file holds another by then."""
    path, schedule = tmp_path / "middle.ckpt", partial(WarmupCosine, warmup=3)
    whole = make_distillation(teacher, lr_scheduler=schedule)
    start = [p.clone() for p in (*whole.denoiser.parameters(), *whole.objective.fake.parameters())]
    trainer = make_trainer(tmp_path, callbacks=[SaveAt(10, path)])
    trainer.fit(whole, Toy())
    moved = (*whole.denoiser.parameters(), *whole.objective.fake.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(moved, start, strict=True))
    assert_equal(whole.objective.teacher.state_dict(), load_denoiser(teacher).denoiser.state_dict())
    content = torch.load(teacher, weights_only=True)
    for value in content["state_dict"].values():
        if isinstance(value, Tensor) and value.ndim:
            value += 0.1
    torch.save(content, teacher)
    resumed, again = make_distillation(teacher, lr_scheduler=schedule), make_trainer(tmp_path)
    again.fit(resumed, Toy(), ckpt_path=path)
    assert_equal(whole.state_dict(), resumed.state_dict())
    assert_equal(trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict())


def test_its_checkpoint_is_that_of_a_denoiser(tmp_path, teacher):
    module, trainer = make_distillation(teacher), make_trainer(tmp_path)
    trainer.fit(module, Toy())
    trainer.save_checkpoint(tmp_path / "distilled.ckpt")
    trained = load_denoiser(tmp_path / "distilled.ckpt")
    x = torch.randn(4, 2, generator=generator())
    assert torch.equal(trained.denoiser(x, 2.5), module.eval_denoiser(x, 2.5))
    assert sample(trained.denoiser, (4, 2), Euler(steps=1, sigma_max=2.5)).isfinite().all()


def test_two_processes_take_the_step_of_one_with_both_batches(tmp_path, teacher):
    data, module = Toy(), make_distillation(teacher, optimizer=partial(torch.optim.SGD, lr=1e-2))
    alone = make_distillation(teacher)
    make_trainer(tmp_path, max_steps=1, devices=2, strategy="ddp_fork").fit(module, data)
    total = torch.zeros(())
    for rank in range(2):
        source = step_generator(0, rank=rank, step=0, micro_batch=0)
        total = total + alone.objective(alone.denoiser, data.x_n[:8], data.levels[:8], generator=source).total / 2
    total.backward()
    ours, theirs = (
        [*its.denoiser.named_parameters(), *its.objective.fake.named_parameters()] for its in (module, alone)
    )
    for (name, after), (_, before) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(after, before - 1e-2 * before.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_validation_measures_the_distance_from_the_teacher(tmp_path, teacher):
    """Zero before the first step, when the fake is the teacher; the same whenever it is asked."""
    module, data = make_distillation(teacher), Toy()
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    assert trainer.validate(module, data, verbose=False) == [{"val/loss": 0.0}]
    trainer.fit(module, data)
    first, second = (trainer.validate(module, data, verbose=False)[0] for _ in range(2))
    assert first == second and first["val/loss"] > 0


@pytest.mark.parametrize(
    ("settings", "data", "sentence"),
    [
        ({"teacher": "nowhere.ckpt"}, {}, r"the checkpoint 'nowhere.ckpt' does not exist"),
        ({"sigma_init": 0.0}, {}, r"sigma_init = 0 must be a positive number"),
        ({"levels": LogUniform(0.01, 0.2)}, {}, r"data.sigma = 0.3 is not below sigma_max = 0.2"),
        ({}, {"sigma": 0.1}, r"data.sigma = 0.1 is below 0.3, the noise from which the teacher"),
        ({}, {"shape": (3,)}, r"does not take data of shape \(3,\)"),
    ],
    ids=["no teacher", "sigma_init", "no level above the noise", "less noise than the teacher's", "shape"],
)
def test_what_cannot_work_fails_before_training(tmp_path, teacher, settings, data, sentence):
    with pytest.raises(UserError, match=sentence):
        make_trainer(tmp_path).fit(make_distillation(**{"teacher": teacher, **settings}), Toy(**data))


def test_a_denoisers_checkpoint_is_no_distillation_and_a_generator_restores_nothing(tmp_path, teacher):
    with pytest.raises(UserError, match="name a denoiser's as model.teacher"):
        make_trainer(tmp_path).fit(make_distillation(teacher), Toy(), ckpt_path=teacher)
    with pytest.raises(UserError, match="makes samples and restores nothing"):
        make_trainer(tmp_path).predict(make_distillation(teacher), Toy().val_dataloader())
