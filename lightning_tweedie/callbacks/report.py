"""The end of a run at a glance: two pictures and one table."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.callbacks.picture import first_items, unused
from lightning_tweedie.callbacks.restoration_grid import restoration_panel
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import FeatureExtractor, resolve_extractor
from lightning_tweedie.metrics.frechet import FrechetDistance
from lightning_tweedie.metrics.restoration import psnr
from lightning_tweedie.pictures import can_be_drawn, panel, save
from lightning_tweedie.randomness import item_generator
from lightning_tweedie.sampling import Ancestral, DPMSolverPP2M, Sampler, one_step, posterior_samples, sample

__all__ = ["Report"]


class Report(Callback):
    """Says after training, or after a test, what was learnt.

    Into the run's directory go ``report/samples.png`` (noisy data, truncated and full samples, clean data),
    ``report/restoration.png`` (noisy input, one-step estimate, posterior mean and uncertainty, clean reference) and
    the table ``report/report.md`` with its figures and their conditions in ``report/report.json``. The table is
    printed too. Clean images serve as a yardstick here and nowhere else.

    Args:
        extractor: Network of the Frechet distances, see ``lightning_tweedie.metrics.features.resolve_extractor``;
            null leaves the distances out.
        num_images: Images in each set that is compared, ``n``, at least 2.
        num_restored: Held-out images that are restored.
        draws: Posterior draws of each.
        sampler: Solver and grid of the samples; ``DPMSolverPP2M`` with 20 levels when null.
        posterior_sampler: Stochastic solver of the draws; ``Ancestral`` with 18 levels when null.
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
        self.posterior_sampler = Ancestral() if posterior_sampler is None else posterior_sampler
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
        if self.extractor is not None and self._features is None and trainer.is_global_zero:
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
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        denoiser: Any = pl_module.eval_denoiser
        folder = unused(folder / "report")
        folder.mkdir(parents=True)

        wanted = max(self.num_images, self.num_restored)
        held_out = first_items(list(islice(data.val_dataloader(), math.ceil(wanted / data.batch_size))), wanted)
        restoration = self._restore(denoiser, held_out, pl_module.device, folder)
        reference = self._reference(data)
        # One n for every set: distances at different n cannot be compared.
        n = min(self.num_images, len(held_out.x_n), self.num_images if reference is None else len(reference))
        samples = {"full samples": self._sample(denoiser, data.shape, None, n)}
        if data.sigma_n > 0:
            samples = {"truncated samples": self._sample(denoiser, data.shape, data.sigma_n, n), **samples}
        shown = 36 if len(data.shape) == 3 else n
        columns = [(f"noisy data, sigma {data.sigma_n:.3g}", held_out.x_n), *samples.items()]
        if reference is not None:
            columns.append(("clean data, never trained on", reference))
        picture = panel([(title, images[:shown]) for title, images in columns], per_row=6, side=48)
        save(picture, folder / "samples.png")

        distances = self._distances(held_out, samples, reference, n, pl_module.device)
        title = f"Frechet distance to clean data ({self.extractor}, n = {n})"
        table = "\n".join([*_table("PSNR, dB", restoration), "", *_table(title, distances)]).strip() + "\n"
        facts = {
            "step": trainer.global_step,
            "sigma_n": float(data.sigma_n),
            "psnr": {
                "values": restoration,
                "n": min(self.num_restored, int((held_out.sigma_n > 0).sum())),
                "draws": self.draws,
            },
            "frechet_distance": {"values": distances, "n": n, **self._facts()},
            "sampler": {**_solver(self.sampler), "seed": self.seed},
            "posterior_sampler": _solver(self.posterior_sampler),
            "ema_half_life": pl_module.ema.half_lives[0],  # type: ignore[union-attr, index]
            "device": str(pl_module.device),
        }
        (folder / "report.md").write_text(table)
        (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(f"\n{table}\nPictures and figures: {folder}")

    def _restore(self, denoiser: Any, held_out: NoisyBatch, device: torch.device, folder: Path) -> dict[str, float]:
        """Draws restored items; PSNR of each estimate where clean references exist."""
        noisy = (held_out.sigma_n > 0).nonzero()[: self.num_restored, 0]
        if held_out.sigma_n.ndim > 1 or len(noisy) == 0:
            return {}
        x_n, sigma_n, index = (x[noisy] for x in held_out[:3])
        estimates, draws = [], []
        parts = zip(*(t.split(self.batch_size) for t in (x_n.to(device), sigma_n.to(device), index)), strict=True)
        for x, sigma, numbers in tqdm(list(parts), desc="restorations", leave=False):
            estimates.append(one_step(denoiser, x, sigma).cpu())
            indices = numbers.tolist()
            draws.append(
                posterior_samples(
                    denoiser, x, sigma, self.draws, self.posterior_sampler, seed=self.seed, indices=indices
                ).cpu()
            )
        estimate, drawn = torch.cat(estimates), torch.cat(draws, dim=1)
        x_0 = None if held_out.x_0 is None else held_out.x_0[noisy]
        shown = slice(8 if x_n.ndim == 4 else None)
        picture = restoration_panel(x_n[shown], estimate[shown], drawn[:, shown], None if x_0 is None else x_0[shown])
        save(picture, folder / "restoration.png")
        if x_0 is None:
            return {}
        columns = {
            "noisy input": x_n,
            "one-step estimate": estimate,
            "one posterior draw": drawn[0],
            f"mean of {self.draws} posterior draws": drawn.mean(0),
        }
        return {name: round(float(psnr(images, x_0).mean()), 2) for name, images in columns.items()}

    def _sample(self, denoiser: Any, shape: tuple[int, ...], stop: float | None, n: int) -> Tensor:
        name = "full samples" if stop is None else "truncated samples"
        parts = []
        for indices in tqdm(torch.arange(n).split(self.batch_size), desc=name, leave=False):
            size = (len(indices), *shape)
            part = sample(denoiser, size, self.sampler, seed=self.seed, indices=indices.tolist(), truncate_at=stop)
            parts.append(part.cpu())
        return torch.cat(parts)

    def _reference(self, data: Any) -> Tensor | None:
        """As many clean training images, picked by the seed."""
        reference = data.reference_set()
        if reference is None:
            return None
        chosen = item_generator(self.seed, "report/reference", 0).permutation(len(reference))[: self.num_images]
        return torch.stack([reference[int(i)] for i in chosen])

    def _distances(
        self, held_out: NoisyBatch, samples: dict[str, Tensor], reference: Tensor | None, n: int, device: torch.device
    ) -> dict[str, float]:
        """Distance of each set to the reference."""
        if self._features is None or reference is None or held_out.x_0 is None:
            return {}
        sets = {"noisy data": held_out.x_n, **samples, "held-out clean data": held_out.x_0}
        distances = {}
        metric = FrechetDistance(self._features, sync_on_compute=False).to(device)
        with tqdm(total=n * (1 + len(sets)), desc="features", unit="image", leave=False) as bar:
            for name, images in {"reference": reference, **sets}.items():
                metric.reset()  # keeps the reference
                for part in images[:n].split(self.batch_size):
                    metric.update(part.to(device), real=name == "reference")
                    bar.update(len(part))
                if name != "reference":
                    distances[name] = round(float(metric.compute()), 2)
        return distances

    def _facts(self) -> dict[str, Any]:
        return {} if self._features is None else {"extractor": self._features.name, "digest": self._features.digest}


def _solver(sampler: Sampler) -> dict[str, Any]:
    return {"name": sampler.name, "steps": sampler.steps, "nfe": sampler.evaluations(sampler.steps)}


def _table(title: str, values: dict[str, float]) -> list[str]:
    if not values:
        return []
    width = max(len(title), *map(len, values))
    rows = [f"| {name:<{width}} | {value:8.2f} |" for name, value in values.items()]
    return [f"| {title:<{width}} |          |", f"|{'-' * (width + 2)}|---------:|", *rows]
