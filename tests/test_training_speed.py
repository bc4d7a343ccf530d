"""What makes a step fast and must change nothing: compiled networks, and a device that is never waited for."""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from checks import generator
from test_module import SaveAt, Toy, assert_equal, make_module, make_trainer
from torch import nn
from torch._dynamo.testing import CompileCounter

import lightning_tweedie.compiler
import lightning_tweedie.module
from lightning_tweedie.checkpoint import load_denoiser
from lightning_tweedie.commands.sample import sample
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError
from lightning_tweedie.levels import LogUniform
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import MLP, UNet
from lightning_tweedie.objectives import (
    AmbientScoreMatching,
    Consistency,
    Objective,
    PosteriorReplay,
    ScoreDistillation,
    Sure,
)
from lightning_tweedie.sampling import Ancestral
from lightning_tweedie.serialization import to_config


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """Counts graphs and runs them as they are; nothing is left of them afterwards."""
    counter = CompileCounter()
    whole = Denoiser.compile
    monkeypatch.setattr(Denoiser, "compile", lambda self, mode=None: whole(self, backend=counter))
    for user in (lightning_tweedie.module, lightning_tweedie.compiler):
        monkeypatch.setattr(user, "check_compiler", lambda device, setting: None)
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


def all_terms() -> Objective:
    """Terms that come in one after the other, each with points of its own."""
    return Objective(
        AmbientScoreMatching(),
        Consistency(start=0.2, share=0.5),
        PosteriorReplay(start=0.4, draw_start=0.6, sampler=Ancestral(3)),
        [Sure(start=0.3)],
    )


def test_a_compiled_run_is_compiled_three_times_and_is_the_same_run(tmp_path, compiler):
    """Training, averages without gradient, validation; whatever terms come in and however many items are left over.

    Both averages share their code, and what is resumed is what was saved, by whichever of the two.
    """
    path, settings = tmp_path / "middle.ckpt", {"ema": EMA([5.0, 50.0]), "denoiser": Denoiser(MLP(2, width=16))}
    data = Toy()
    plain, compiled = (
        make_module(**copy.deepcopy(settings), objective=all_terms(), compile=on) for on in (False, True)
    )
    for module in (plain, compiled):
        trainer = make_trainer(tmp_path, limit_val_batches=1.0, callbacks=[SaveAt(10, path)])
        trainer.fit(module, data)
        trainer.validate(module, data, verbose=False)
    assert compiled.denoiser.is_compiled and not plain.denoiser.is_compiled
    assert compiler.frame_count == 3
    assert_equal(plain.state_dict(), compiled.state_dict())
    resumed = make_module(**copy.deepcopy(settings), objective=all_terms(), compile=True)
    make_trainer(tmp_path).fit(resumed, data, ckpt_path=path)
    assert_equal(plain.state_dict(), resumed.state_dict())
    assert load_denoiser(path).denoiser.state_dict().keys() == plain.denoiser.state_dict().keys()


def test_size_level_and_copy_compile_nothing_anew(compiler):
    """A U-Net, of batches of 16 or more."""
    denoiser = Denoiser(UNet(1, 8, [1, 2], 1, [1], patch=2, dropout=0.1), 0.5)
    names, description = list(denoiser.state_dict()), to_config(denoiser)
    denoiser.compile()
    for size, sigma in [(24, 0.3), (16, 2.0), (33, torch.rand(33, generator=generator()) + 0.1), (24, 0.3)]:
        denoiser(torch.randn(size, 1, 12, 12, generator=generator()), sigma).mean().backward()
    assert compiler.frame_count == 1
    assert list(denoiser.state_dict()) == names and to_config(denoiser) == description
    assert not copy.deepcopy(denoiser).is_compiled
    # The control: without the mark the second size is compiled anew.
    torch._dynamo.reset()
    bare, before = copy.deepcopy(denoiser.backbone), compiler.frame_count
    bare.compile(backend=compiler)
    for size in (24, 16):
        bare(torch.zeros(size, 1, 12, 12), torch.zeros(size))
    assert compiler.frame_count == before + 2


def test_a_machine_without_a_compiler_says_so_before_training(tmp_path, monkeypatch):
    def broken(function: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("No working C++ compiler found\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"^model.compile = true.*No working C\+\+ compiler found\): install"):
        make_trainer(tmp_path).fit(make_module(compile=True), Toy())


class OneSize(nn.Module):
    """Asks the device for a number."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return x * float(c_noise.max())


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(AmbientScoreMatching(buffer=0.2, stable=True)),
        Objective(consistency=Consistency(start=0)),
        Objective(extra=[Sure(stable=True)]),
        Objective(replay=PosteriorReplay(start=0, draw_start=0, sampler=Ancestral(2))),
        ScoreDistillation(Denoiser(MLP(2, width=8), 0.5), levels=LogUniform(0.002, 5.0)),
    ],
    ids=["ambient", "stable", "consistency", "sure", "replay", "distillation"],
)
def test_no_step_asks_the_device_for_a_number(objective):
    """A tensor on the device ``meta`` has no values: whoever wants to know one, or how many there are, fails.

    The controls are a network that asks, and items of which nothing is known.
    """
    objective = copy.deepcopy(objective).to("meta")
    x_n, sigma_n = torch.zeros(8, 2, device="meta"), torch.zeros(8, device="meta")
    denoiser = Denoiser(MLP(2, width=8), 0.5)
    ema = EMA([5.0, 50.0])
    ema.attach(denoiser)
    denoiser, ema = denoiser.to("meta"), ema.to("meta")
    for _ in range(2):
        losses = objective(denoiser, x_n, sigma_n, teacher=ema.teacher, least=0.3)
        losses.total.backward()
        torch.optim.Adam(denoiser.parameters(), foreach=True).step()
        ema.update(denoiser)
    asking = Denoiser(OneSize(), 0.5).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        objective(asking, x_n, sigma_n, teacher=asking, least=0.3)
    if {"consistency", "sure", "replay"} & {*objective.terms}:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            objective(denoiser, x_n, sigma_n, teacher=ema.teacher)


def test_a_level_that_does_not_exist_is_told_where_the_device_was_not_asked(tmp_path):
    """As on a GPU: the level is NaN, and the loss with it; nothing is trained."""
    module = make_module(objective=Objective(AmbientScoreMatching(Silent(), buffer=400.0)))
    start = copy.deepcopy(module.denoiser.state_dict())
    with pytest.raises(FloatingPointError, match="ambient has no level to train 8 items at, below sigma_max"):
        make_trainer(tmp_path).fit(module, Toy())
    weights = {name: value for name, value in module.denoiser.state_dict().items() if name != "sigma_data"}
    assert_equal(weights, {name: start[name] for name in weights})


class Silent(LogUniform):
    """Levels that are drawn as on a device that is not asked."""

    def sample(self, lower: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.where(lower < self.sigma_max, lower, torch.nan)


@pytest.mark.parametrize("sigma, size", [(0.3, 8), ([0.2, 0.4], 8)])
def test_which_items_are_noisy_is_the_same_known_or_asked(sigma, size):
    """With the least level known, and without: bitwise the same losses."""
    low = sigma if isinstance(sigma, float) else sigma[0]
    sigma_n = torch.linspace(low, sigma if isinstance(sigma, float) else sigma[1], size)
    x_n = torch.randn(size, 2, generator=generator())
    denoiser = Denoiser(MLP(2, width=8), 0.5)
    found = [all_terms()(denoiser, x_n, sigma_n, generator=generator(), least=least).per_item for least in (0.0, low)]
    assert_equal(*[{name: loss for name, (_, loss) in its.items()} for its in found])


def test_samples_of_a_compiled_network(tmp_path, compiler):
    """The same, of full batches and of the last, which is smaller."""
    make_trainer(tmp_path, callbacks=[SaveAt(3, tmp_path / "a.ckpt")]).fit(make_module(), Toy())
    found = []
    for compile in (False, True):
        folder = tmp_path / f"compiled {compile}"
        sample(str(tmp_path / "a.ckpt"), str(folder), num=50, steps=5, batch_size=20, compile=compile)
        found.append(np.load(folder / "samples.npz")["samples"])
        assert compiler.frame_count == compile
    np.testing.assert_array_equal(*found)


@pytest.mark.gpu
def test_samples_from_a_graph_of_the_gpu(tmp_path):
    """Evaluations that are replayed write to the same memory each time: no sample may be overwritten by a later one."""
    make_trainer(tmp_path, callbacks=[SaveAt(3, tmp_path / "a.ckpt")]).fit(make_module(), Toy())
    found = []
    for compile in (False, True):
        folder = tmp_path / f"compiled {compile}"
        sample(str(tmp_path / "a.ckpt"), str(folder), num=50, steps=5, batch_size=20, device="cuda", compile=compile)
        found.append(np.load(folder / "samples.npz")["samples"])
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_gpu_is_never_waited_for(tmp_path):
    """A compiled run with all terms, fused optimiser and clipping, of which each forced wait is an error."""
    module: TweedieModule = make_module(
        objective=all_terms(), compile=True, optimizer=partial(torch.optim.Adam, lr=1e-2, fused=True)
    ).cuda()
    data = Toy()
    module.denoiser.set_sigma_data(0.5)
    assert module.denoiser.has_sigma_data
    x_n, sigma_n, source = data.x_n.cuda(), data.levels.cuda(), torch.Generator("cuda").manual_seed(0)
    optimizer = module.optimizer(module.denoiser.parameters())
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            losses = module.objective(
                module.denoiser, x_n, sigma_n, teacher=module.ema.teacher, generator=source, least=0.3
            )
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(module.denoiser.parameters(), 1.0)
            optimizer.step()
            module.ema.update(module.denoiser)
        finally:
            torch.cuda.set_sync_debug_mode("default")
