"""`data.sigma: auto`: the level of noisy images is estimated, recorded, and the same on resuming and on all ranks."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import DIGITS, assert_same_state, checkpoint, run

from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import NoisyDataModule, ToyMixture
from lightning_tweedie.errors import UserError

SIGMA = 0.2


class Slopes(NoisyDataModule):
    """Smooth noisy images; only the training set's level is estimated, not that of what is held out."""

    side = 16
    clip = float("inf")

    def train_set(self) -> ItemSet:
        generator = torch.Generator().manual_seed(0)
        ramp = torch.linspace(-1, 1, self.side).expand(60, 1, self.side, self.side)
        noisy = ramp * torch.rand(60, 1, 1, 1, generator=generator)
        return ArrayDataset(
            (noisy + SIGMA * torch.randn(noisy.shape, generator=generator)).clamp(-self.clip, self.clip)
        )


def module(kind: type[Slopes] = Slopes, **settings: object) -> Slopes:
    made = kind(sigma="auto", inject=False, holdout=8, batch_size=4, **settings)  # type: ignore[arg-type]
    made.setup("fit")
    return made


def test_the_level_is_that_of_the_images() -> None:
    data = module()
    assert data.sigma == pytest.approx(SIGMA, rel=0.05)
    assert data.sigma_n == data.sigma
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch.sigma_n, torch.full((4,), data.sigma))
    assert data.sigma_data == pytest.approx(float(np.sqrt(np.mean(np.linspace(-1, 1, 16) ** 2) / 3)), rel=0.2)
    # A function of the data and the seed.
    assert module().sigma == data.sigma
    assert data.state_dict()["noise"]["sigma"] == data.sigma


class Vectors(ToyMixture):
    """Points in the plane."""


class Tiny(Slopes):
    side = 7


class Cut(Slopes):
    clip = 0.05


def test_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="data.sigma = auto.*data.inject is true"):
        Slopes(sigma="auto")
    with pytest.raises(UserError, match=r"data.sigma = auto: .*8 x 8.*\(2,\)"):
        Vectors(sigma="auto", inject=False).setup("fit")
    with pytest.raises(UserError, match=r"data.sigma = auto: .*8 x 8.*\(1, 7, 7\)"):
        module(Tiny)
    with pytest.raises(UserError, match="data.sigma = auto: the noise is cut off"):
        module(Cut)


CONFIG = yaml.safe_load(DIGITS)
CONFIG["data"] = {
    "class_path": "test_sigma_auto.Slopes",
    "init_args": {"sigma": "auto", "inject": False, "holdout": 8, "batch_size": 8},
}
CONFIG["trainer"] |= {"max_steps": 4}
CONFIG["last_checkpoint"] = {"every_n_train_steps": 2}
AUTO = yaml.safe_dump(CONFIG)


def test_a_run_records_the_level_and_resumes_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        assert run(tmp_path, "fit", config=AUTO) == 0
    assert run(tmp_path, "fit", "--trainer.max_steps=2", config=AUTO) == 0
    half = tmp_path / "runs/digits/fit_1/checkpoints/last.ckpt"
    assert run(tmp_path, "fit", "--ckpt_path", str(half), config=AUTO) == 0
    whole = tmp_path / "runs/digits/fit_0/checkpoints/last.ckpt"
    assert_same_state(whole, tmp_path / "runs/digits/fit_2/checkpoints/last.ckpt")
    content = checkpoint(whole)
    level = content["lightning_tweedie"]["sigma_n"]
    assert level == pytest.approx(SIGMA, rel=0.05)
    assert content["Slopes"]["noise"]["sigma"] == level
    # Said once, and written beside the metrics.
    assert re.search(rf"data.sigma = auto.* {level:.4g} \+- ", caplog.text)
    assert yaml.safe_load((tmp_path / "runs/digits/fit_0/hparams.yaml").read_text())["estimated_sigma"] == level


def test_all_ranks_have_the_same_level(tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    assert run(tmp_path, "fit", *two, config=AUTO) == 0
    assert run(tmp_path, "fit", config=AUTO) == 0
    levels = [
        checkpoint(tmp_path / f"runs/digits/fit_{number}/checkpoints/last.ckpt")["lightning_tweedie"]["sigma_n"]
        for number in range(2)
    ]
    assert levels[0] == levels[1]
