"""Pictures of validation: drawn when due, each into a file of its own, sent to W&B as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import generator
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_tweedie.callbacks import RestorationGrid, SampleGrid
from lightning_tweedie.callbacks.restoration_grid import restoration_panel
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import NoisyDataModule
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import MLP, UNet
from lightning_tweedie.sampling import Ancestral, Euler


class Items(NoisyDataModule):
    """Random items of some shape."""

    def __init__(self, item: tuple[int, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self.item = item

    def train_set(self) -> ItemSet:
        return ArrayDataset(torch.rand(40, *self.item, generator=generator()) * 2 - 1)


def fit(
    folder: Path,
    *callbacks: Callback,
    shape: tuple[int, ...] = (1, 8, 8),
    sigma: float | list[float] = 0.3,
    **data: Any,
) -> None:
    torch.manual_seed(0)
    network = MLP(2, width=8) if shape == (2,) else UNet(channels=1, width=8, multipliers=[1, 1], blocks=1)
    Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(TweedieModule(Denoiser(network)), datamodule=Items(shape, sigma=sigma, batch_size=16, holdout=6))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "pictures")) for path in (folder / "pictures").rglob("*.png"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2,)])
def test_pictures_are_drawn_after_validation_and_never_replaced(tmp_path: Path, shape: tuple[int, ...]) -> None:
    def callbacks() -> list[Callback]:
        return [SampleGrid(4, Euler(2)), RestorationGrid(3, 2, Ancestral(2), every_n_validations=2)]

    fit(tmp_path, *callbacks(), shape=shape)
    first = ["restoration/step_00000004.png", "samples/step_00000002.png", "samples/step_00000004.png"]
    assert files(tmp_path) == first
    before = {name: (tmp_path / "pictures" / name).read_bytes() for name in first}
    fit(tmp_path, *callbacks(), shape=shape)
    assert files(tmp_path) == sorted(first + [name.replace(".png", "-1.png") for name in first])
    for name, content in before.items():
        assert (tmp_path / "pictures" / name).read_bytes() == content
        # Samples and draws have seeds of their own: the same run draws the same picture.
        assert (tmp_path / "pictures" / name.replace(".png", "-1.png")).read_bytes() == content


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    fit(tmp_path / "bare")
    state = torch.get_rng_state()
    fit(tmp_path, SampleGrid(4, Euler(2)), RestorationGrid(3, 2, Ancestral(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_wandb_gets_the_very_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        WandbLogger, "log_image", lambda self, key, images, step=None, **_: sent.append((key, images[0]))
    )
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda *args, **kwargs: None)
    monkeypatch.setattr(WandbLogger, "log_hyperparams", lambda *args, **kwargs: None)
    torch.manual_seed(0)
    run = Trainer(
        callbacks=[SampleGrid(4, Euler(2))],
        max_epochs=1,
        accelerator="cpu",
        logger=WandbLogger(save_dir=tmp_path, offline=True),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.fit(TweedieModule(Denoiser(MLP(2, width=8))), datamodule=Items((2,), sigma=0.3, batch_size=16, holdout=6))
    run.logger.experiment.finish()  # type: ignore[union-attr]
    [(key, picture)] = sent
    assert key == "pictures/samples" and picture.dtype == np.uint8
    assert np.array_equal(np.asarray(Image.open(tmp_path / "pictures" / "samples" / "step_00000002.png")), picture)


def test_clean_items_are_not_restored(tmp_path: Path) -> None:
    fit(tmp_path, SampleGrid(4, Euler(2)), RestorationGrid(3, 2, Ancestral(2)), sigma=0.0)
    assert files(tmp_path) == ["samples/step_00000002.png", "samples/step_00000004.png"]


def test_what_cannot_be_drawn_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"SampleGrid draws images .* not items of shape \(1, 8\)"):
        fit(tmp_path, SampleGrid(4), shape=(1, 8))


def test_deviation_is_drawn_on_its_own_scale() -> None:
    # Draws that differ by 0.4 in one pixel and by 0.2 in another: white and half-way grey.
    draws = torch.zeros(2, 1, 3, 2, 2)
    draws[0, ..., 0, 0], draws[0, ..., 1, 1] = 0.4, 0.2
    picture = restoration_panel(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), draws)
    deviation = picture[-12 - 112 : -12, -12 - 112 : -12]
    quarters = deviation.reshape(2, 56, 2, 56, 3)
    assert (quarters.max((1, 3, 4)) == quarters.min((1, 3, 4))).all()
    assert quarters[:, 0, :, 0, 0].tolist() == [[255, 0], [0, 128]]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"every_n_validations": 2}, {"sampler": Euler(3)}, {"sampler": Ancestral(2)}]
)
@pytest.mark.parametrize("kind", [SampleGrid, RestorationGrid])
def test_two_of_a_kind(kind: type[SampleGrid | RestorationGrid], other: dict[str, Any]) -> None:
    one, two = kind(sampler=Euler(2)), kind(**{"sampler": Euler(2), **other})
    assert one.state_key == kind(sampler=Euler(2)).state_key != two.state_key
    Trainer(callbacks=[one, two], accelerator="cpu", logger=False, enable_checkpointing=False)
