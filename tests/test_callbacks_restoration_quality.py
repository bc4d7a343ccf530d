"""Restorations logged in the course of training: the right numbers, whoever computes them, and nothing disturbed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import Exact, generator
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_tweedie.callbacks.restoration_quality import RestorationQuality
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.restoration import restoration_quality, restore
from lightning_tweedie.metrics.restoration import psnr
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import UNet
from lightning_tweedie.sampling import Ancestral, one_step

SIGMA, SPREAD, SIDE = 0.4, 0.2, 12


class Gaussian(NoisyDataModule):
    """Images whose pixels are independent, so that the exact denoiser is a factor."""

    def __init__(self, tested: int = 0, **settings: Any) -> None:
        super().__init__(**{"sigma": SIGMA, "holdout": 40, "batch_size": 16, **settings})
        self.tested = tested

    def images(self, count: int, seed: int) -> ItemSet:
        return ArrayDataset((SPREAD * torch.randn(count, 1, SIDE, SIDE, generator=generator(seed))).clamp(-1, 1))

    def train_set(self) -> ItemSet:
        return self.images(88, 0)

    def test_set(self) -> ItemSet | None:
        return self.images(self.tested, 1) if self.tested else None


class ExactNetwork(Denoiser):
    """Has the weights of a network and gives the answers of the oracle, but for the rounding of a batch."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return exact(x, torch.as_tensor(sigma).expand(len(x)))


exact: Any = Exact(lambda x, sigma: x * (SPREAD**2 / (SPREAD**2 + sigma**2)).reshape(-1, 1, 1, 1), SPREAD)


def module() -> TweedieModule:
    torch.manual_seed(0)
    return TweedieModule(ExactNetwork(UNet(channels=1, width=8, multipliers=[1], blocks=1, attention=[])))


def learner() -> TweedieModule:
    torch.manual_seed(0)
    return TweedieModule(Denoiser(UNet(channels=1, width=8, multipliers=[1], blocks=1, attention=[])))


def quality(**settings: Any) -> RestorationQuality:
    return RestorationQuality(**{"num_images": 20, "draws": 3, "sampler": Ancestral(3), **settings})


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 1}
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **settings},
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quality.jsonl").read_text().splitlines()]


def values(folder: Path) -> dict[str, tuple[float, float]]:
    return {row["metric"]: (row["value"], row["standard_error"]) for row in rows(folder)}


def test_values_are_those_of_the_held_out_items(tmp_path: Path) -> None:
    run, data = trainer(tmp_path, quality(draws=19, seed=5)), Gaussian()
    run.validate(module(), datamodule=data, verbose=False)
    batches = list(data.val_dataloader())
    x_n, sigma_n, index, x_0 = (torch.cat(parts) for parts in list(zip(*batches, strict=True))[:4])
    first = slice(20)
    result = restore(
        exact, x_n[first], sigma_n[first], index[first].tolist(), x_0[first], draws=19, sampler=Ancestral(3), seed=5
    )
    expected = restoration_quality(result)
    assert values(tmp_path).keys() == expected.keys()
    for name, (value, error) in values(tmp_path).items():
        assert (value, error) == pytest.approx(tuple(expected[name]), rel=1e-5)
    logged = run.callback_metrics
    for name, estimate in expected.items():
        if name not in ("psnr_noisy", "psnr_one_step"):
            assert logged[f"val/{name}"] == pytest.approx(estimate.value, rel=1e-5)
    # Of these the log has the means over all held-out items, which the module makes.
    assert logged["val/psnr_one_step"] == pytest.approx(
        float(psnr(one_step(exact, x_n, sigma_n), x_0).mean()), rel=1e-5
    )
    assert logged["val/psnr_one_step"] != pytest.approx(expected["psnr_one_step"].value, rel=1e-5)
    assert logged["val/restoration_n"] == 20


def test_rows_say_what_the_values_depend_on(tmp_path: Path) -> None:
    trainer(tmp_path, quality()).validate(module(), datamodule=Gaussian(), verbose=False)
    for row in rows(tmp_path):
        facts = {"subject": "val", "n": 20, "sampler": "ancestral", "steps": 3, "nfe": 3, "seed": 0, "step": 0}
        assert facts.items() <= row.items()
        assert row["sigma_n"] == pytest.approx(SIGMA) and row["ema_half_life"] == 1000 and row["device"] == "cpu"


def test_a_test_says_which_checkpoint_it_was(tmp_path: Path) -> None:
    run = trainer(tmp_path / "fit", ModelCheckpoint(tmp_path), max_steps=5, enable_checkpointing=True)
    run.fit(learner(), datamodule=Gaussian())
    (path,) = tmp_path.glob("*.ckpt")
    test = trainer(tmp_path / "test", quality())
    test.test(learner(), datamodule=Gaussian(tested=20), ckpt_path=str(path), verbose=False)
    facts = {"subject": "test", "step": 5, "checkpoint": str(path)}
    facts["checkpoint_digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(facts.items() <= row.items() for row in rows(tmp_path / "test"))


def test_tests_use_the_test_set(tmp_path: Path) -> None:
    run, data = trainer(tmp_path, quality(num_images=100)), Gaussian(tested=30)
    run.test(module(), datamodule=data, verbose=False)
    assert run.callback_metrics["test/restoration_n"] == 30, "fewer, if there are not so many"
    assert "test/interval_coverage_50" in run.callback_metrics and {row["n"] for row in rows(tmp_path)} == {30}
    x_n, _, _, x_0 = (torch.cat(parts) for parts in list(zip(*data.test_dataloader(), strict=True))[:4])
    assert values(tmp_path)["psnr_noisy"][0] == pytest.approx(float(psnr(x_n, x_0).mean()), rel=1e-6)


@pytest.mark.parametrize("num_images", [20, 16])  # 2 chunks for two processes; one: the second gets none
def test_two_processes_compute_what_one_does(tmp_path: Path, num_images: int) -> None:
    def measure(name: str, **settings: Any) -> dict[str, tuple[float, float]]:
        run = trainer(tmp_path / name, quality(num_images=num_images), **settings)
        run.validate(learner(), datamodule=Gaussian(), verbose=False)
        return values(tmp_path / name)

    assert measure("two", strategy="ddp_fork", devices=2) == measure("one")


def test_precision_of_the_run_does_not_matter(tmp_path: Path) -> None:
    for precision in ("32", "bf16-mixed"):
        run = trainer(tmp_path / precision, quality(), precision=precision)
        run.validate(learner(), datamodule=Gaussian(), verbose=False)
    assert values(tmp_path / "32") == values(tmp_path / "bf16-mixed")


def test_training_does_not_notice(tmp_path: Path) -> None:
    def weights(folder: Path, *callbacks: Callback) -> tuple[dict[str, Tensor], Tensor]:
        run, model = trainer(folder, *callbacks, max_epochs=2), learner()
        run.fit(model, datamodule=Gaussian())
        return dict(model.named_parameters()), torch.get_rng_state()

    callback = quality(batch_size=4)
    with_it, state = weights(tmp_path / "with", callback)
    without, bare_state = weights(tmp_path / "without")
    assert torch.equal(state, bare_state)
    assert all(torch.equal(weight, without[name]) for name, weight in with_it.items())
    assert sorted({row["step"] for row in rows(tmp_path / "with")}) == [3, 6], "and none in the sanity check"
    assert callback.state_dict() == {"validations": 2}


def test_every_other_validation_also_after_a_resumption(tmp_path: Path) -> None:
    callback = quality(every_n_validations=2)
    callback.load_state_dict({"validations": 1})
    trainer(tmp_path, callback, max_epochs=3).fit(learner(), datamodule=Gaussian())
    assert sorted({row["step"] for row in rows(tmp_path)}) == [3, 9]


def test_checkpoints_can_be_chosen_by_it(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/psnr_mean", mode="max")
    trainer(tmp_path, quality(), best, max_epochs=2, enable_checkpointing=True).fit(learner(), datamodule=Gaussian())
    measured = [row["value"] for row in rows(tmp_path) if row["metric"] == "psnr_mean"]
    assert len(measured) == 2 and best.best_model_score == pytest.approx(max(measured), rel=1e-6)


def test_checkpoints_are_not_chosen_by_values_of_other_weights(tmp_path: Path) -> None:
    for monitor in ("val/psnr_draw", "val/interval_coverage_50"):
        best = ModelCheckpoint(tmp_path, monitor=monitor)
        with pytest.raises(UserError, match=f"ModelCheckpoint goes by '{monitor}'"):
            trainer(tmp_path, quality(every_n_validations=2), best, enable_checkpointing=True).fit(
                learner(), datamodule=Gaussian()
            )


def test_a_trial_run_leaves_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, quality(), fast_dev_run=True).fit(learner(), datamodule=Gaussian())
    assert not list(tmp_path.iterdir())


class Natural(Gaussian):
    """Data that are noisy by nature."""

    def __init__(self) -> None:
        super().__init__(inject=False, sigma=0.1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: Gaussian(holdout=0), "set data.holdout above 0"),
        (Natural, "noisy by nature"),
        (lambda: Gaussian(sigma=0.0), "these data are clean"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, quality(), max_epochs=1).fit(learner(), datamodule=data())


def test_two_of_them_are_refused(tmp_path: Path) -> None:
    one, two = quality(), quality(seed=1)
    assert one.state_key == quality().state_key != two.state_key
    with pytest.raises(UserError, match="two RestorationQuality callbacks"):
        trainer(tmp_path, one, two).validate(learner(), datamodule=Gaussian(), verbose=False)


@pytest.mark.parametrize("setting", ["num_images", "draws", "batch_size", "every_n_validations"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"RestorationQuality.{setting} = 0"):
        RestorationQuality(**{setting: 0})
