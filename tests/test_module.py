"""The training loop: bitwise resume, two processes as one, and failures that say what to do."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import generator
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.ema import EMA
from lightning_tweedie.errors import UserError
from lightning_tweedie.lr_schedule import WarmupCosine
from lightning_tweedie.module import CHECKPOINT_KEY, TweedieModule, by_band
from lightning_tweedie.networks import MLP, DiT, UNet
from lightning_tweedie.objectives import AmbientScoreMatching, Consistency, Objective, PosteriorReplay
from lightning_tweedie.randomness import step_generator
from lightning_tweedie.sampling import Ancestral, sample
from lightning_tweedie.serialization import from_config

ITEMS, BATCH = 48, 8


class Batches:
    """Batches in an order that is a function of the epoch, and that can be taken up in the middle."""

    def __init__(self, x_n: Tensor, sigma_n: Tensor) -> None:
        self.x_n, self.sigma_n = x_n, sigma_n
        self.epoch = self.seen = 0

    def __len__(self) -> int:
        return len(self.x_n) // BATCH

    def __iter__(self) -> Iterator[NoisyBatch]:
        order = torch.randperm(len(self.x_n), generator=generator(self.epoch)).split(BATCH)
        for rows in order[self.seen :]:
            self.seen += 1
            if self.seen == len(order):  # before the last batch is handed out: nobody asks for one more
                self.epoch, self.seen = self.epoch + 1, 0
            yield NoisyBatch(self.x_n[rows], self.sigma_n[rows], rows)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.seen = state["epoch"], state["seen"]


class Toy(LightningDataModule):
    """Noisy vectors (or images); under several processes each has its own part."""

    def __init__(self, sigma: float = 0.3, shape: tuple[int, ...] = (2,), clean: int = 0) -> None:
        super().__init__()
        self.shape, self.sigma_data, self.sigma_n = shape, 0.5, sigma
        self.x_0 = 0.5 * torch.randn(ITEMS, *shape, generator=generator())
        self.levels = torch.full((ITEMS,), sigma)
        self.levels[:clean] = 0.0
        noise = torch.randn(self.x_0.shape, generator=generator(1))
        self.x_n = self.x_0 + self.levels.reshape(-1, *[1] * len(shape)) * noise

    def train_dataloader(self) -> Batches:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        part = slice(rank * ITEMS // world, (rank + 1) * ITEMS // world)
        return Batches(self.x_n[part], self.levels[part])

    def val_dataloader(self) -> DataLoader:
        return DataLoader([NoisyBatch(self.x_n, self.levels, torch.arange(ITEMS), self.x_0)], batch_size=None)


def make_module(**changes: Any) -> TweedieModule:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "denoiser": Denoiser(MLP(2, width=16)),
        "objective": Objective(
            AmbientScoreMatching(),
            Consistency(start=0.1),
            PosteriorReplay(start=0.1, sampler=Ancestral(3)),
        ),
        "ema": EMA([5.0]),
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
    }
    return TweedieModule(**{**settings, **changes})


def make_trainer(tmp_path: Path, **changes: Any) -> Trainer:
    settings = dict(
        max_steps=20, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=False
    )
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0)
    return Trainer(default_root_dir=tmp_path, **{**settings, **quiet, **changes})


def assert_equal(a: Any, b: Any) -> None:
    """Nested states are equal, bit by bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


class SaveAt(Callback):
    """Keeps a checkpoint of one step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, accumulate):
    """Bit by bit, from the middle of an epoch: weights, averages, replay buffer, optimiser, learning rate."""
    path = tmp_path / "middle.ckpt"
    schedule = partial(WarmupCosine, warmup=3)
    whole, resumed = make_module(lr_scheduler=schedule), make_module(lr_scheduler=schedule)
    trainer = make_trainer(tmp_path, callbacks=[SaveAt(10, path)], accumulate_grad_batches=accumulate)
    trainer.fit(whole, Toy())
    again = make_trainer(tmp_path, accumulate_grad_batches=accumulate)
    again.fit(resumed, Toy(), ckpt_path=path)
    assert again.global_step == trainer.global_step == 20
    assert_equal(whole.state_dict(), resumed.state_dict())
    assert_equal(trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict())
    assert whole.objective.terms["replay"].buffer.written > 0
    assert whole.ema.steps == 20
    middle = torch.load(path, weights_only=True)
    assert middle["global_step"] == 10
    assert not torch.equal(
        middle["state_dict"]["denoiser.backbone.net.0.weight"], whole.denoiser.backbone.net[0].weight
    )


class Dropping(nn.Module):
    """A network with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(2, width=16)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.inner(self.dropout(x), c_noise)


def test_dropout_is_resumed_bit_by_bit_and_leaves_the_global_state_alone(tmp_path):
    path = tmp_path / "middle.ckpt"
    runs = [make_module(denoiser=Denoiser(Dropping())) for _ in range(2)]
    make_trainer(tmp_path, callbacks=[SaveAt(10, path)]).fit(runs[0], Toy())
    torch.manual_seed(123)  # a process that has drawn other numbers so far
    before = torch.get_rng_state()
    make_trainer(tmp_path).fit(runs[1], Toy(), ckpt_path=path)
    assert_equal(runs[0].state_dict(), runs[1].state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_terms_may_come_and_go_when_a_run_is_resumed(tmp_path):
    """Ambient first, replay from its checkpoint on, and back: each term starts empty or is dropped."""
    ambient = tmp_path / "ambient.ckpt"
    make_trainer(tmp_path, callbacks=[SaveAt(10, ambient)]).fit(make_module(objective=Objective()), Toy())
    more = make_module(objective=Objective(replay=PosteriorReplay(start=0.1, sampler=Ancestral(3))))
    replayed = make_trainer(tmp_path)
    replayed.fit(more, Toy(), ckpt_path=ambient)
    # Of the ten batches four fill its buffer, and then one in eight renews it.
    assert replayed.global_step == 20 and more.objective.terms["replay"].buffer.written == 5 * 8
    replayed.save_checkpoint(tmp_path / "replayed.ckpt")
    less = make_module(objective=Objective())
    make_trainer(tmp_path, max_steps=25).fit(less, Toy(), ckpt_path=tmp_path / "replayed.ckpt")
    assert less.ema.steps == 25


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ema": EMA([5.0, 50.0])}, r"another number of averages than the 1 in the checkpoint"),
        ({"denoiser": Denoiser(MLP(2, width=16), sigma_data=0.7)}, r"sigma_data = 0.7 differs from 0.5"),
    ],
)
def test_what_a_checkpoint_decides_cannot_be_changed_in_silence(tmp_path, changes, sentence):
    path = tmp_path / "middle.ckpt"
    make_trainer(tmp_path, callbacks=[SaveAt(10, path)]).fit(make_module(), Toy())
    with pytest.raises(UserError, match=sentence):
        make_trainer(tmp_path).fit(make_module(**changes), Toy(), ckpt_path=path)


@pytest.mark.gpu
def test_a_gpu_trains_and_samples_like_the_processor(tmp_path):
    module = make_module()
    make_trainer(tmp_path, accelerator="gpu", precision="bf16-mixed").fit(module, Toy())
    assert module.objective.terms["replay"].buffer.written > 0 and module.ema.steps == 20
    on_gpu = sample(module.eval_denoiser.cuda(), (64, 2), seed=1).cpu()
    on_cpu = sample(module.eval_denoiser.cpu(), (64, 2), seed=1)
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_the_weights_are_refused(tmp_path, monkeypatch, strategy):
    """Before they begin; here they would not even without that, for want of GPUs."""
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", strategy())
    module = make_module()
    module.trainer = trainer
    with pytest.raises(UserError, match=f"{strategy.__name__}, which splits .* use ddp"):
        module.setup("fit")


def two_halves(data: Toy, ranks: tuple[int, int]) -> TweedieModule:
    """One gradient step of one process over both halves of the data, each with the noise of a given rank."""
    module = make_module(objective=Objective(AmbientScoreMatching(), Consistency(start=0)))
    module.denoiser.set_sigma_data(data.sigma_data)
    total = torch.zeros(())
    for half, rank in zip(range(2), ranks, strict=True):
        part = slice(half * ITEMS // 2, (half + 1) * ITEMS // 2)
        batch = next(iter(Batches(data.x_n[part], data.levels[part])))
        source = step_generator(0, rank=rank, step=0, micro_batch=0)
        teacher = module.denoiser.requires_grad_(True)
        total = (
            total + module.objective(module.denoiser, batch.x_n, batch.sigma_n, teacher=teacher, generator=source).total
        )
    (total / 2).backward()
    torch.optim.SGD(module.denoiser.parameters(), lr=1.0).step()
    return module


def test_two_processes_give_the_gradient_of_one_with_the_double_batch(tmp_path):
    data = Toy()
    module = make_module(
        objective=Objective(AmbientScoreMatching(), Consistency(start=0, ramp=0)),
        optimizer=partial(torch.optim.SGD, lr=1.0),
    )
    start = [p.clone() for p in module.denoiser.parameters()]
    make_trainer(tmp_path, max_steps=1, devices=2, strategy="ddp_fork").fit(module, data)
    moved = [p - s for p, s in zip(module.denoiser.parameters(), start, strict=True)]
    for ranks, same in [((0, 1), True), ((0, 0), False)]:
        expected = [p - s for p, s in zip(two_halves(data, ranks).denoiser.parameters(), start, strict=True)]
        close = all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(moved, expected, strict=True))
        assert close == same, "each rank has noise of its own"


def test_the_replay_buffer_is_shared_between_processes(tmp_path):
    """Also when one of them has clean items, which are not replayed: both keep the draws of both."""
    data = Toy(clean=ITEMS // 4)
    module = make_module(objective=Objective(replay=PosteriorReplay(start=0, ramp=0, sampler=Ancestral(2))))
    make_trainer(tmp_path, max_steps=1, devices=2, strategy="ddp_fork").fit(module, data)
    noisy = sum(
        int((next(iter(Batches(data.x_n[part], data.levels[part]))).sigma_n > 0).sum())
        for part in (slice(0, ITEMS // 2), slice(ITEMS // 2, ITEMS))
    )
    replay = module.objective.terms["replay"]
    assert BATCH < noisy < 2 * BATCH and replay.buffer.written == noisy
    assert len(replay.buffer.draws[:noisy].unique(dim=0)) == noisy


def moved_by(start: list[Tensor], module: TweedieModule) -> list[Tensor]:
    return [p.detach() - s for p, s in zip(module.denoiser.parameters(), start, strict=True)]


@pytest.mark.parametrize("devices", [1, 2])
def test_accumulated_batches_give_the_average_of_their_gradients(tmp_path, devices):
    """Each batch with noise of its own; also where every process accumulates, with one exchange of gradients a step."""
    data, sgd = Toy(), partial(torch.optim.SGD, lr=1.0)
    settings = dict(objective=Objective(AmbientScoreMatching(), Consistency(start=0, ramp=0)), optimizer=sgd)
    module = make_module(**settings)
    start = [p.clone() for p in module.denoiser.parameters()]
    several = dict(devices=devices, strategy="ddp_fork") if devices > 1 else {}
    trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, **several)
    trainer.fit(module, data)
    moved = moved_by(start, module)

    def expected(micro_batches: tuple[int, int]) -> list[Tensor]:
        by_hand = make_module(**settings)
        by_hand.denoiser.set_sigma_data(data.sigma_data)
        for rank in range(devices):
            part = slice(rank * ITEMS // devices, (rank + 1) * ITEMS // devices)
            batches = iter(Batches(data.x_n[part], data.levels[part]))
            for micro_batch in micro_batches:
                batch, source = next(batches), step_generator(0, rank=rank, step=0, micro_batch=micro_batch)
                losses = by_hand.objective(by_hand.denoiser, batch.x_n, batch.sigma_n, generator=source)
                (losses.total / 2 / devices).backward()
        sgd(by_hand.denoiser.parameters()).step()
        return moved_by(start, by_hand)

    for micro_batches, same in [((0, 1), True), ((0, 0), False)]:
        pairs = zip(moved, expected(micro_batches), strict=True)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs) == same


class Progress(Callback):
    """What share of the training each batch is told is done, and how often it has seen each item."""

    def on_train_batch_start(self, trainer: Trainer, module: TweedieModule, *_: Any) -> None:
        self.seen = [*getattr(self, "seen", []), (module.progress, module.passes)]


def test_accumulated_batches_count_as_one_step(tmp_path):
    """For the averages, the learning rate and the terms that wait; draws are renewed for every so many batches."""
    epochs, accumulate = 2, 3
    steps = epochs * ITEMS // BATCH // accumulate
    progress, replay = Progress(), PosteriorReplay(start=0, ramp=0, capacity=BATCH, refresh=0.5, sampler=Ancestral(2))
    module = make_module(objective=Objective(replay=replay), lr_scheduler=partial(WarmupCosine, warmup=1))
    settings = dict(max_epochs=epochs, max_steps=-1, accumulate_grad_batches=accumulate, callbacks=[progress])
    trainer = make_trainer(tmp_path, **settings)
    trainer.fit(module, Toy())
    assert trainer.global_step == module.ema.steps == steps
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.total_steps == scheduler.last_epoch == steps
    done = [step / steps for step in range(steps) for _ in range(accumulate)]
    assert progress.seen == [(share, pytest.approx(share * epochs)) for share in done]
    # The first batch fills the buffer; of all that follow every other one renews it.
    assert replay.buffer.written == BATCH * epochs * ITEMS // BATCH // 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_takes_steps(tmp_path, precision):
    module, before = make_module(), make_module()
    make_trainer(tmp_path, max_steps=5, precision=precision).fit(module, Toy())
    for after, start in zip(module.denoiser.parameters(), before.denoiser.parameters(), strict=True):
        assert after.isfinite().all() and not torch.equal(after, start) and after.dtype == torch.float32


def test_the_learning_rate_ends_with_the_training(tmp_path):
    module = make_module(lr_scheduler=partial(WarmupCosine, warmup=4, final=0.1))
    trainer = make_trainer(tmp_path)
    trainer.fit(module, Toy())
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.total_steps == 20
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    assert [scheduler.factor(k) for k in (0, 4, 12, 20, 30)] == pytest.approx([0.2, 1.0, 0.55, 0.1, 0.1])


class Poison(Callback):
    """Spoils one weight after two steps."""

    def on_train_batch_end(self, trainer: Trainer, module: TweedieModule, *_: Any) -> None:
        if trainer.global_step == 2:
            module.denoiser.backbone.net[-1].bias.data.fill_(math.nan)


def test_a_loss_that_is_not_finite_stops_with_its_cause(tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        make_trainer(tmp_path, callbacks=[Poison()]).fit(make_module(), Toy())
    message = str(caught.value)
    for part in ("at step 2", "ambient is nan for 8 of 8 items at sigma 0.3", "mean", "std", "sigma_n 0.3 to 0.3"):
        assert part in message


def test_validation_is_repeatable_and_reports_psnr(tmp_path):
    """Without training the estimate is the best linear one: its PSNR is that of the gain ``c_skip``."""
    module, data = make_module(), Toy()
    module.denoiser.backbone.net[-1].weight.data.zero_()
    module.denoiser.backbone.net[-1].bias.data.zero_()
    module.ema.attach(module.denoiser)
    trainer = make_trainer(tmp_path, limit_val_batches=1.0)
    first, second = (trainer.validate(module, data, verbose=False)[0] for _ in range(2))
    assert first == second and first.keys() == {"val/loss", "val/psnr_noisy", "val/psnr_one_step"}
    gain = 0.25 / (0.25 + 0.09)
    for key, estimate in [("val/psnr_noisy", data.x_n), ("val/psnr_one_step", gain * data.x_n)]:
        expected = (10 * (4 / (estimate - data.x_0).square().mean(1)).log10()).mean().item()
        assert first[key] == pytest.approx(expected, rel=1e-4)


def test_bands_split_losses_by_level():
    level, loss = torch.tensor([0.01, 0.3, 0.4, 0.5, 0.6, 99.0]), torch.arange(6.0)
    bands = {name: value.item() for name, value in by_band(level, loss).items()}
    assert bands == {"sigma_0-0.02": 0.0, "sigma_0.2-0.5": 2.0, "sigma_0.5-1": 4.0, "sigma_5-inf": 5.0}


def test_a_checkpoint_alone_brings_the_denoiser_back(tmp_path):
    module, path = make_module(), tmp_path / "last.ckpt"
    trainer = make_trainer(tmp_path)
    trainer.fit(module, Toy())
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    kept = checkpoint[CHECKPOINT_KEY]
    assert kept["shape"] == [2] and kept["sigma_n"] == 0.3
    rebuilt = from_config(kept["denoiser"]).eval()
    prefix = "ema.averages.0."
    rebuilt.load_state_dict({k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)})
    x = torch.randn(4, 2, generator=generator())
    assert rebuilt.sigma_data == 0.5
    assert torch.equal(rebuilt(x, 0.3), module.eval_denoiser(x, 0.3))


class Forgetful(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.weight * x


@pytest.mark.parametrize(
    "module, data, message",
    [
        (dict(), dict(sigma=100.0), "divide a sigma of 8-bit data by 127.5"),
        (dict(denoiser=Denoiser(UNet(1, width=8))), dict(shape=(3, 8, 8)), "set its `channels` to 3"),
        (dict(denoiser=Denoiser(UNet(1, width=8, patch=4))), dict(shape=(1, 10, 10)), "patches of 4"),
        (dict(denoiser=Denoiser(MLP(3))), dict(), r"does not take data of shape \(2,\)"),
        (dict(denoiser=Denoiser(Forgetful(1.0))), dict(), "does not keep its argument `slope`"),
    ],
    ids=["sigma above sigma_max", "channels", "patch", "vector length", "a network that checkpoints cannot describe"],
)
def test_what_cannot_work_fails_before_training(tmp_path, module, data, message):
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path).fit(make_module(**module), Toy(**data))


def test_a_term_that_waits_for_a_share_of_an_endless_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="max_steps"):
        make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(make_module(), Toy())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    module, path = make_module(), tmp_path / "other.ckpt"
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, Toy())
    trainer.save_checkpoint(path)
    with pytest.raises(UserError, match="its width is 16, here it is 32"):
        make_trainer(tmp_path).fit(make_module(denoiser=Denoiser(MLP(2, width=32))), Toy(), ckpt_path=path)


def test_a_run_may_go_on_with_less_memory(tmp_path):
    """Gradient checkpointing is nothing of the network's: a resumed run may switch it on, and ends the same."""

    def module(checkpointing: bool, path: Path | None = None) -> TweedieModule:
        network = DiT(1, width=16, depth=1, heads=2, dropout=0.2, gradient_checkpointing=checkpointing)
        made = make_module(denoiser=Denoiser(network), objective=Objective())
        callbacks = [] if path else [SaveAt(2, tmp_path / "middle.ckpt")]
        make_trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(made, Toy(shape=(1, 4, 4)), ckpt_path=path)
        return made

    assert_equal(module(False).state_dict(), module(True, tmp_path / "middle.ckpt").state_dict())
