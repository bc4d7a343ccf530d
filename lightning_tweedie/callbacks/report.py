"""The end of a run at a glance: two pictures and one table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_tweedie.callbacks.picture import first_items, unused
from lightning_tweedie.data.batch import NoisyBatch
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.features import resolve_extractor
from lightning_tweedie.metrics.frechet import FrechetDistance
from lightning_tweedie.metrics.restoration import psnr
from lightning_tweedie.pictures import panel, save
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
        self._metric: FrechetDistance | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for the extractor, so that what is missing is missed before training."""
        if self.extractor is not None and self._metric is None and trainer.is_global_zero:
            self._metric = FrechetDistance(resolve_extractor(self.extractor), sync_on_compute=False)

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
        restored, restoration = self._restore(denoiser, held_out, pl_module.device)
        save(panel(restored, per_row=1, side=84), folder / "restoration.png")

        samples = {"full samples": self._sample(denoiser, data.shape, None)}
        if data.sigma_n > 0:
            samples = {"truncated samples": self._sample(denoiser, data.shape, data.sigma_n), **samples}
        columns = [(f"training data: noise of sigma {data.sigma_n:.3g}", held_out.x_n[:36])]
        columns += [(name, images[:36]) for name, images in samples.items()]
        reference = self._reference(data)
        if reference is not None:
            columns.append(("clean data, never trained on", reference[:36]))
        save(panel(columns, per_row=6, side=48), folder / "samples.png")

        distances = self._distances(held_out, samples, reference)
        table = "\n".join([*_table("PSNR, dB", restoration), "", *_table(self._title(), distances)]).strip() + "\n"
        facts = {
            "step": trainer.global_step,
            "sigma_n": float(data.sigma_n),
            "psnr": {"values": restoration, "n": min(self.num_restored, len(held_out.x_n)), "draws": self.draws},
            "frechet_distance": {"values": distances, **self._facts(reference)},
            "sampler": {"name": self.sampler.name, "steps": self.sampler.steps, "seed": self.seed},
            "posterior_sampler": {"name": self.posterior_sampler.name, "steps": self.posterior_sampler.steps},
            "ema_half_life": pl_module.ema.half_lives[0],  # type: ignore[union-attr, index]
            "device": str(pl_module.device),
        }
        (folder / "report.md").write_text(table)
        (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(f"\n{table}\nPictures and figures: {folder}")

    def _restore(
        self, denoiser: Any, held_out: NoisyBatch, device: torch.device
    ) -> tuple[list[tuple[str, Tensor]], dict[str, float]]:
        """Columns of the picture, and PSNR of each estimate where clean references exist."""
        n = self.num_restored
        x_n, sigma_n = held_out.x_n[:n], held_out.sigma_n[:n]
        estimate = torch.cat([one_step(denoiser, x, s).cpu() for x, s in self._batches(x_n, sigma_n, device=device)])
        draws = torch.cat(
            [
                posterior_samples(
                    denoiser,
                    x,
                    s,
                    self.draws,
                    self.posterior_sampler,
                    seed=self.seed,
                    indices=range(start, start + len(x)),
                ).cpu()
                for start, (x, s) in zip(
                    range(0, n, self.batch_size),
                    self._batches(x_n, sigma_n, device=device, name="posterior"),
                    strict=False,
                )
            ],
            dim=1,
        )
        mean, spread = draws.mean(0), draws.std(0)
        show = 8
        columns = [
            ("noisy input", x_n),
            ("one-step estimate", estimate),
            ("one posterior draw", draws[0]),
            (f"mean of {self.draws} draws", mean),
        ]
        restoration = {}
        if held_out.x_0 is not None:
            x_0 = held_out.x_0[:n]
            names = ("noisy input", "one-step estimate", "one posterior draw", f"mean of {self.draws} posterior draws")
            for name, (_, images) in zip(names, columns, strict=True):
                restoration[name] = round(float(psnr(images, x_0).mean()), 2)
        if x_n.ndim == 4:
            # Black where the draws agree, white where they differ by half the range.
            columns.append(("std of draws", 4 * spread - 1))
        if held_out.x_0 is not None:
            columns.append(("clean reference", held_out.x_0[:n]))
        return [(title, images[:show] if images.ndim == 4 else images) for title, images in columns], restoration

    def _sample(self, denoiser: Any, shape: tuple[int, ...], stop: float | None) -> Tensor:
        name = "samples" if stop is None else "truncated samples"
        batches = [
            range(i, min(i + self.batch_size, self.num_images)) for i in range(0, self.num_images, self.batch_size)
        ]
        return torch.cat(
            [
                sample(denoiser, (len(b), *shape), self.sampler, seed=self.seed, indices=b, truncate_at=stop).cpu()
                for b in tqdm(batches, desc=name, leave=False)
            ]
        )

    def _reference(self, data: Any) -> Tensor | None:
        """As many clean training images, picked by the seed."""
        reference = data.reference_set()
        if reference is None:
            return None
        chosen = item_generator(self.seed, "report/reference", 0).permutation(len(reference))[: self.num_images]
        return torch.stack([reference[int(i)] for i in chosen])

    def _distances(
        self, held_out: NoisyBatch, samples: dict[str, Tensor], reference: Tensor | None
    ) -> dict[str, float]:
        """Distance of each set to the reference."""
        if self._metric is None or reference is None or held_out.x_0 is None:
            return {}
        sets = {"noisy data": held_out.x_n, **samples, "held-out clean data": held_out.x_0}
        update: Callable[[Tensor, bool], None] = self._metric.update
        total = len(reference) + sum(len(images[: self.num_images]) for images in sets.values())
        distances = {}
        with tqdm(total=total, desc="features", unit="image", leave=False) as bar:

            def see(images: Tensor, real: bool) -> None:
                for part in images.split(self.batch_size):
                    update(part, real)
                    bar.update(len(part))

            see(reference, True)
            for name, images in sets.items():
                self._metric.reset()
                see(images[: self.num_images], False)
                distances[name] = round(float(self._metric.compute()), 2)
        return distances

    def _batches(self, *tensors: Tensor, device: torch.device, name: str | None = None) -> Iterator[tuple[Tensor, ...]]:
        parts = list(zip(*(t.split(self.batch_size) for t in tensors), strict=True))
        for part in tqdm(parts, desc=name, leave=False, disable=name is None):
            yield tuple(t.to(device) for t in part)

    def _title(self) -> str:
        return f"Frechet distance to clean data ({self.extractor}, n = {self.num_images})"

    def _facts(self, reference: Tensor | None) -> dict[str, Any]:
        if self._metric is None or reference is None:
            return {}
        network = self._metric.extractor
        return {
            "n": self.num_images,
            "n_reference": len(reference),
            "extractor": network.name,
            "digest": network.digest,
        }


def _table(title: str, values: dict[str, float]) -> list[str]:
    if not values:
        return []
    width = max(len(title), *map(len, values))
    rows = [f"| {name:<{width}} | {value:8.2f} |" for name, value in values.items()]
    return [f"| {title:<{width}} |          |", f"|{'-' * (width + 2)}|---------:|", *rows]
