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
from lightning_tweedie.metrics.restoration import ssim
from lightning_tweedie.module import TweedieModule
from lightning_tweedie.networks import UNet
from lightning_tweedie.oracles import GaussianOracle
from lightning_tweedie.sampling import Ancestral, Heun

SIGMA, SPREAD = 0.4, 0.2


class Gaussian(NoisyDataModule):
    """Images whose pixels are independent, so that the exact denoiser is a factor."""

    def __init__(self, side: int = 4, **settings: Any) -> None:
        super().__init__(**settings)
        self.side = side

    def train_set(self) -> ItemSet:
        images = SPREAD * torch.randn(600, 1, self.side, self.side, generator=generator())
        return ArrayDataset(images.clamp(-1, 1))


class Exact(Denoiser):
    """Has the weights of a network and gives the answers of the oracle."""

    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        size = x[0].numel()
        oracle = GaussianOracle(torch.zeros(size), SPREAD**2 * torch.eye(size))
        return oracle(x.flatten(1), sigma).reshape(x.shape)


class Pixels(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1) / 127.5 - 1


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Report:
    extractor = FeatureExtractor(Pixels(), "pixels", "none", 16)
    monkeypatch.setattr("lightning_tweedie.callbacks.report.resolve_extractor", lambda name: extractor)
    return Report("pixels", num_images=280, num_restored=100, sampler=Heun(12), posterior_sampler=Ancestral(200))


def network() -> UNet:
    return UNet(channels=1, width=8, multipliers=[1], blocks=1, attention=[])


def trainer(folder: Path, report: Report, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        callbacks=[report],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", **settings},
    )


def few(report: Report) -> None:
    """Makes it quick, where the figures do not matter."""
    report.num_images, report.num_restored = 50, 20
    report.posterior_sampler, report.sampler = Ancestral(3), Heun(3)


def evaluate(folder: Path, report: Report, **data: Any) -> None:
    data = Gaussian(sigma=SIGMA, holdout=280, **data)
    trainer(folder, report).test(TweedieModule(Exact(network())), datamodule=data, verbose=False)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report/report.json").read_text())


def test_figures_of_the_exact_denoiser(tmp_path: Path, report: Report) -> None:
    evaluate(tmp_path, report)
    found = facts(tmp_path)
    psnr, distance = found["psnr"]["values"], found["frechet_distance"]["values"]
    assert found["psnr"]["n"] == 100 and found["frechet_distance"]["n"] == 280

    # The posterior variance of a pixel is the least squared error; a draw has twice it, a mean of 8 9/8 of it.
    least = SPREAD**2 * SIGMA**2 / (SPREAD**2 + SIGMA**2)
    for name, factor in (("one-step estimate", 1), ("one posterior draw", 2), ("mean of 8 posterior draws", 9 / 8)):
        # 100 means over 16 squares: PSNR is a mean of logarithms, which lies 10/ln 10/16 below the logarithm of it.
        expected = 10 * torch.tensor(4 / (factor * least)).log10() + 10 / torch.tensor(10.0).log() / 16
        standard_error = 10 / 2.3026 * (2 / 16) ** 0.5 / 100**0.5
        assert abs(psnr[name] - expected) < 4 * standard_error, name
        assert found["psnr"]["standard_errors"][name] == pytest.approx(standard_error, rel=0.2)
    # 8 draws make intervals of 7/9 and 5/9, and these hold as much.
    coverage = found["interval_coverage"]
    for name, level in (("77.8", 7 / 9), ("55.6", 5 / 9)):
        assert abs(coverage["values"][name] - level) < 4 * coverage["standard_errors"][name]
    assert found["ssim"]["values"] == {}, "images of 4 x 4 are too small for it"

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
    few(report)
    evaluate(tmp_path, report)
    before = (tmp_path / "report/report.json").read_bytes()
    evaluate(tmp_path, report)
    assert (tmp_path / "report/report.json").read_bytes() == before
    assert (tmp_path / "report-1/report.json").read_bytes() == before
    for name in ("samples.png", "restoration.png", "report.md"):
        assert (tmp_path / "report-1" / name).exists()


def test_structural_similarity_is_reported_for_images_that_are_large_enough(tmp_path: Path) -> None:
    report = Report(extractor=None, num_images=20, num_restored=10, draws=2, sampler=Heun(2))
    data = Gaussian(side=12, sigma=SIGMA, holdout=20)
    trainer(tmp_path, report).test(TweedieModule(Exact(network())), datamodule=data, verbose=False)
    batch = next(iter(data.val_dataloader()))
    value = float(ssim(batch.x_n[:10], batch.x_0[:10]).mean())
    assert facts(tmp_path)["ssim"]["values"]["noisy input"] == pytest.approx(value, abs=6e-4)
    (row,) = [row for row in (tmp_path / "report/report.md").read_text().split("SSIM")[1].split("\n") if "noisy" in row]
    assert float(row.split("|")[2]) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_two_processes_report_what_one_does(tmp_path: Path, report: Report, stage: str) -> None:
    few(report)

    def run(name: str, **settings: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        data = Gaussian(sigma=SIGMA, holdout=60, batch_size=40)
        run = trainer(tmp_path / name, report, max_steps=0, **settings)
        getattr(run, stage)(TweedieModule(Denoiser(network())), datamodule=data)
        return facts(tmp_path / name)

    assert run("two", strategy="ddp_fork", devices=2) == run("one")


@pytest.mark.gpu
def test_a_gpu_that_has_trained_reports_too(tmp_path: Path, report: Report) -> None:
    # Lightning has moved the weights to the CPU by then, where a report would take hours.
    few(report)
    module, data = TweedieModule(Denoiser(network())), Gaussian(sigma=SIGMA, holdout=60, batch_size=40)
    trainer(tmp_path, report, max_steps=0, accelerator="gpu", devices=1).fit(module, datamodule=data)
    assert facts(tmp_path)["device"].startswith("cuda")
    assert {weight.device.type for weight in module.parameters()} == {"cpu"}


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


def test_the_step_is_that_of_the_weights(tmp_path: Path, report: Report) -> None:
    """The trainer counts from 0 when it tests a checkpoint."""
    few(report)
    module = TweedieModule(Exact(network()))
    module.ema.steps = 7
    trainer(tmp_path, report).test(module, datamodule=Gaussian(sigma=SIGMA, holdout=50), verbose=False)
    assert facts(tmp_path)["step"] == 7
