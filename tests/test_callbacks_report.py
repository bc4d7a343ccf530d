"""The report at the end of a run: its figures are those of the sets it shows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checks import generator
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lightning_tweedie.callbacks import Report
from lightning_tweedie.data.array import ArrayDataset
from lightning_tweedie.data.noisy import ItemSet
from lightning_tweedie.datamodules import NoisyDataModule, ToyMixture
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.frechet import gaussian_frechet_distance
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import UNet
from lightning_tweedie.oracles import GaussianOracle
from lightning_tweedie.sampling import Ancestral, Heun

SIGMA, SPREAD = 0.4, 0.2


class Gaussian(NoisyDataModule):
    """Images whose pixels are independent, so that the exact denoiser is a factor."""

    def train_set(self) -> ItemSet:
        return ArrayDataset((SPREAD * torch.randn(600, 1, 4, 4, generator=generator())).clamp(-1, 1))


class Exact(Denoiser):
    """Has the weights of a network and gives the answers of the oracle."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        oracle = GaussianOracle(torch.zeros(16), SPREAD**2 * torch.eye(16))
        return oracle(x.flatten(1), sigma).reshape(x.shape)


class Pixels(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1) / 127.5 - 1


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    extractor = FeatureExtractor(Pixels(), "pixels", "none", 16)
    monkeypatch.setattr("lightning_tweedie.callbacks.report.resolve_extractor", lambda name: extractor)
    return Report("pixels", num_images=280, num_restored=200, sampler=Heun(12), posterior_sampler=Ancestral(200))


def evaluate(folder: Path, report: Report, **data: Any) -> None:
    module = TweedieModule(Exact(UNet(channels=1, width=8, multipliers=[1], blocks=1, attention=[])))
    Trainer(
        default_root_dir=folder, callbacks=[report], accelerator="cpu", logger=False, enable_progress_bar=False
    ).test(module, datamodule=Gaussian(sigma=SIGMA, holdout=280, **data), verbose=False)


def test_figures_of_the_exact_denoiser(tmp_path: Path, report: Report) -> None:
    evaluate(tmp_path, report)
    facts = json.loads((tmp_path / "report/report.json").read_text())
    psnr, distance = facts["psnr"]["values"], facts["frechet_distance"]["values"]
    assert facts["psnr"]["n"] == 200 and facts["frechet_distance"]["n"] == 280

    # The posterior variance of a pixel is the least squared error; a draw has twice it, a mean of 8 9/8 of it.
    least = SPREAD**2 * SIGMA**2 / (SPREAD**2 + SIGMA**2)
    for name, factor in (("one-step estimate", 1), ("one posterior draw", 2), ("mean of 8 posterior draws", 9 / 8)):
        # 200 means over 16 squares: PSNR is a mean of logarithms, which lies 10/ln 10/16 below the logarithm of it.
        expected = 10 * torch.tensor(4 / (factor * least)).log10() + 10 / torch.tensor(10.0).log() / 16
        standard_error = 10 / 2.3026 * (2 / 16) ** 0.5 / 200**0.5
        assert abs(psnr[name] - expected) < 4 * standard_error, name

    # Independent pixels: the closed form at these covariances, up to the bias of 280 images (the held-out row).
    def closed(variance: float) -> float:
        zero, one = torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
        return float(gaussian_frechet_distance(zero, variance * one, zero, SPREAD**2 * one))

    bias = distance["held-out clean data"]
    truncated = SPREAD**4 / (SPREAD**2 + SIGMA**2)
    assert bias < 0.05
    assert abs(distance["full samples"] - closed(SPREAD**2)) < 0.05
    assert abs(distance["truncated samples"] - closed(truncated)) < 0.05
    assert distance["noisy data"] > 5 * distance["full samples"]


def test_a_second_report_leaves_the_first_alone(tmp_path: Path, report: Report) -> None:
    evaluate(tmp_path, report)
    before = (tmp_path / "report/report.json").read_bytes()
    evaluate(tmp_path, report)
    assert (tmp_path / "report/report.json").read_bytes() == before
    assert (tmp_path / "report-1/report.json").read_bytes() == before
    for name in ("samples.png", "restoration.png", "report.md"):
        assert (tmp_path / "report-1" / name).exists()


def test_what_cannot_be_reported_is_refused_before_training() -> None:
    def setup(report: Report, data: NoisyDataModule) -> None:
        data.setup("fit")
        report.setup(SimpleNamespace(datamodule=data, is_global_zero=True), None, "fit")  # type: ignore[arg-type]

    with pytest.raises(UserError, match="extractor: null"):
        setup(Report(), ToyMixture(sigma=0.2))
    setup(Report(extractor=None), ToyMixture(sigma=0.2))
    with pytest.raises(UserError, match="data.holdout above 0"):
        setup(Report(extractor=None), Gaussian(sigma=SIGMA, holdout=0))
    with pytest.raises(UserError, match="draws = 1"):
        Report(draws=1)
