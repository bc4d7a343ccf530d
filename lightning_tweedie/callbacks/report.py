"""The end of a run at a glance: two pictures and one table."""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tweedie.callbacks.picture import first_items, send, unused
from lightning_tweedie.callbacks.restoration_grid import restoration_panel
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.extraction import extract_features
from lightning_tweedie.evaluation.restoration import Restoration, noisy_items, restoration_quality, restore
from lightning_tweedie.evaluation.samples import generate
from lightning_tweedie.files import write_whole
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor
from lightning_tweedie.metrics.frechet import frechet_distance
from lightning_tweedie.pictures import Picture, can_be_drawn, panel, save
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import DPMSolverPP2M, Sampler, SDEDPMSolverPP2M

__all__ = ["Report"]


class Report(Callback):
    """Says after training, or after a test, what was learnt.

    Into the run's directory go ``report/samples.png`` (noisy data, truncated and full samples, clean data),
    ``report/restoration.png`` (noisy input, one-step estimate, posterior mean and uncertainty, clean reference) and
    the table ``report/report.md``: PSNR and structural similarity of restorations, Frechet distances of samples. Its
    figures with their standard errors and conditions, and the calibration of the uncertainty (``interval_coverage``,
    see ``lightning_tweedie.evaluation.restoration.restoration_quality``), are in ``report/report.json``. The table is
    printed too. The run's loggers get the figures as ``report/...``, Weights & Biases also the pictures. Clean images
    serve as a yardstick here and nowhere else.

    Args:
        extractor: Network of the Frechet distances, see ``lightning_tweedie.metrics.features.resolve_extractor``;
            null leaves the distances out.
        num_images: Images in each set that is compared, ``n``, at least 2.
        num_restored: Held-out images that are restored.
        draws: Posterior draws of each.
        sampler: Solver and grid of the samples; ``DPMSolverPP2M`` with 20 levels when null.
        posterior_sampler: Stochastic solver of the draws; ``SDEDPMSolverPP2M`` with 18 levels when null.
        batch_size: Images in one pass.
        seed: Seed of samples and draws.
    """

    def __init__(
        self,
        extractor: str | None = "efficientnet-lite0",
        num_images: int = 500,
        num_restored: int = 64,
        draws: int = 8,
        sampler: Sampler | None = None,
        posterior_sampler: Sampler | None = None,
        batch_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_images", num_images, 2),
            ("num_restored", num_restored, 1),
            ("draws", draws, 2),
        ):
            if value < least:
                raise UserError(f"Report.{name} = {value} is too small: give at least {least}")
        self.extractor = extractor
        self.num_images = num_images
        self.num_restored = num_restored
        self.draws = draws
        self.sampler = DPMSolverPP2M(20) if sampler is None else sampler
        self.posterior_sampler = SDEDPMSolverPP2M() if posterior_sampler is None else posterior_sampler
        self.batch_size = batch_size
        self.seed = seed
        self._features: FeatureExtractor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would fail after hours of training."""
        if stage not in ("fit", "test"):
            return
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not can_be_drawn(data.shape) or (self.extractor is not None and len(data.shape) != 3):
            raise UserError(
                "Report draws images (1 or 3, H, W), or points (2,) with `extractor: null`, of a data module: change "
                "its settings or remove it from trainer.callbacks"
            )
        if not data.val_dataloader():
            raise UserError("Report restores held-out data and there are none: set data.holdout above 0")
        if self.extractor is not None and self._features is None:
            self._features = resolve_extractor(self.extractor)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on a training that ran to its end."""
        if not trainer.interrupted:
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports on a checkpoint."""
        self._report(trainer, pl_module)

    @torch.no_grad()
    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        # After a training Lightning has moved the weights to the CPU already.
        home, device = pl_module.device, trainer.strategy.root_device
        denoiser: Any = pl_module.eval_denoiser
        denoiser.to(device)
        try:
            contents = self._measure(trainer, denoiser, device)
        finally:
            denoiser.to(home)
        if not trainer.is_global_zero:
            return
        table, facts, pictures, logged = contents
        folder = unused(folder / "report")
        folder.mkdir(parents=True)
        for name, picture in pictures.items():
            save(picture, folder / f"{name}.png")
            send(trainer, f"report/{name}", picture)
        for logger in trainer.loggers:
            logger.log_metrics({f"report/{name}": value for name, value in logged.items()}, step=trainer.global_step)
            logger.save()
        ema: Any = pl_module.ema
        facts["ema_half_life"] = ema.half_lives[0]
        facts["step"] = ema.steps  # the trainer counts from 0 when it tests a checkpoint
        write_whole(folder / "report.md", table.encode())
        write_whole(folder / "report.json", (json.dumps(facts, indent=1) + "\n").encode())
        print(f"\n{table}\nPictures and figures: {folder}")

    def _measure(
        self, trainer: Trainer, denoiser: Denoiser, device: torch.device
    ) -> tuple[str, dict[str, Any], dict[str, Picture], dict[str, float]]:
        """The table, the figures with their conditions, the pictures, what is logged; all processes share the work."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        hidden = trainer.progress_bar_callback is None
        wanted = max(self.num_images, self.num_restored)
        held_out = first_items(list(islice(data.val_dataloader(), math.ceil(wanted / data.batch_size))), wanted)
        restoration = self._restore(denoiser, held_out, hidden)
        reference = self._reference(data)
        # One n for every set: distances at different n cannot be compared.
        n = min(self.num_images, len(held_out.x_n), self.num_images if reference is None else len(reference))
        stops = {"truncated samples": data.sigma_n} if data.sigma_n > 0 else {}
        samples = {
            name: generate(
                denoiser,
                data.shape,
                n,
                self.sampler,
                seed=self.seed,
                truncate_at=stop,
                batch_size=self.batch_size,
                progress=None if hidden else name,
            )
            for name, stop in {**stops, "full samples": None}.items()
        }
        distances = self._distances(held_out, samples, reference, n, device, hidden)

        shown = 36 if len(data.shape) == 3 else n
        columns = [(f"noisy data, sigma {float(held_out.sigma_n.max()):.3g}", held_out.x_n), *samples.items()]
        if reference is not None:
            columns.append(("clean data, never trained on", reference))
        pictures = {"samples": panel([(title, images[:shown]) for title, images in columns], per_row=6, side=48)}
        if restoration is not None:
            pictures["restoration"] = _picture(restoration)

        quality = {} if restoration is None or restoration.x_0 is None else restoration_quality(restoration)
        psnr, ssim, coverage = _figures(quality, self.draws)
        restored = {"n": 0 if restoration is None else len(restoration.x_n), "draws": self.draws}
        facts = {
            "sigma_n": float(data.sigma_n),
            "psnr": {**_values(psnr, 2), **restored},
            "ssim": {**_values(ssim, 3), **restored},
            # Under the nominal level in percent the share of clean pixels that such intervals hold.
            "interval_coverage": {**_values(coverage, 3), **restored},
            "frechet_distance": {**_values(distances, 2), "n": n, **self._facts()},
            "sampler": {**_solver(self.sampler), "seed": self.seed},
            "posterior_sampler": _solver(self.posterior_sampler),
            "device": str(device),
        }
        title = f"Frechet distance to clean data ({self.extractor}, n = {n})"
        tables = [_table("PSNR, dB", psnr, 2), _table("SSIM", ssim, 3), _table(title, distances, 2)]
        logged = {name: value for name, (value, _) in quality.items()}
        for name, (value, _) in distances.items():
            logged[f"frechet_distance_{re.sub('[ -]', '_', name)}"] = value
        return "\n".join(table for table in tables if table), facts, pictures, logged

    def _restore(self, denoiser: Denoiser, held_out: NoisyBatch, hidden: bool) -> Restoration | None:
        """Restores the first noisy items; None if there are none."""
        items = noisy_items(held_out, self.num_restored)
        if items is None:
            return None
        return restore(
            denoiser,
            items.x_n,
            items.sigma_n,
            items.index.tolist(),
            items.x_0,
            correlation=items.correlation,
            draws=self.draws,
            sampler=self.posterior_sampler,
            seed=self.seed,
            batch_size=self.batch_size,
            progress=None if hidden else "restorations",
        )

    def _reference(self, data: Any) -> Tensor | None:
        """As many clean training images, picked by the seed."""
        reference = data.reference_set()
        if reference is None:
            return None
        chosen = item_generator(self.seed, "report/reference", 0).permutation(len(reference))[: self.num_images]
        return torch.stack([reference[int(i)] for i in chosen])

    def _distances(
        self,
        held_out: NoisyBatch,
        samples: dict[str, Tensor],
        reference: Tensor | None,
        n: int,
        device: torch.device,
        hidden: bool,
    ) -> dict[str, Estimate]:
        """Distance of each set to the reference."""
        extractor = self._features
        if extractor is None or reference is None or held_out.x_0 is None:
            return {}

        def features(name: str, images: Tensor) -> FeatureStatistics:
            progress = None if hidden else f"features of {name}"
            return extract_features(images[:n], extractor, batch_size=self.batch_size, device=device, progress=progress)

        clean = features("the reference", reference)
        sets = {"noisy data": held_out.x_n, **samples, "held-out clean data": held_out.x_0}
        return {name: frechet_distance(features(name, images), clean) for name, images in sets.items()}

    def _facts(self) -> dict[str, Any]:
        return {} if self._features is None else {"extractor": self._features.name, "digest": self._features.digest}


_Figures = dict[str, Estimate]


def _figures(quality: _Figures, draws: int) -> tuple[_Figures, _Figures, _Figures]:
    """PSNR, SSIM and interval coverage, as far as there are any, by what tables call them."""
    names = {
        "noisy": "noisy input",
        "one_step": "one-step estimate",
        "draw": "one posterior draw",
        "mean": f"mean of {draws} posterior draws",
    }
    parts: dict[str, _Figures] = {"psnr": {}, "ssim": {}, "interval_coverage": {}}
    for name, estimate in quality.items():
        for measure, part in parts.items():
            if name.startswith(measure):
                rest = name.removeprefix(f"{measure}_")
                part[names.get(rest, rest)] = estimate
    return parts["psnr"], parts["ssim"], parts["interval_coverage"]


def _picture(restoration: Restoration) -> Picture:
    shown = slice(8 if restoration.x_n.ndim == 4 else None)
    x_0 = None if restoration.x_0 is None else restoration.x_0[shown]
    return restoration_panel(restoration.x_n[shown], restoration.one_step[shown], restoration.draws[:, shown], x_0)


def _solver(sampler: Sampler) -> dict[str, Any]:
    return {"name": sampler.name, "steps": sampler.steps, "nfe": sampler.evaluations(sampler.steps)}


def _values(estimates: _Figures, digits: int) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no word for what is not finite: that is null."""

    def plain(number: float | None, digits: int) -> float | None:
        return None if number is None or not math.isfinite(number) else round(number, digits)

    return {
        "values": {name: plain(value, digits) for name, (value, _) in estimates.items()},
        "standard_errors": {name: plain(error, digits + 1) for name, (_, error) in estimates.items()},
    }


def _table(title: str, estimates: _Figures, digits: int) -> str:
    if not estimates:
        return ""
    width = max(len(title), *map(len, estimates))
    rows = [f"| {name:<{width}} | {value:8.{digits}f} |" for name, (value, _) in estimates.items()]
    return "\n".join([f"| {title:<{width}} |          |", f"|{'-' * (width + 2)}|---------:|", *rows, ""])
