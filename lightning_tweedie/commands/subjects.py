"""What `evaluate` measures: sets of images that are there already, and samples of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.checkpoint import TrainedDenoiser
from lightning_tweedie.errors import UserError
from lightning_tweedie.evaluation.sample_measurement import ImageSet
from lightning_tweedie.evaluation.samples import generate, solver_facts
from lightning_tweedie.evaluation.work import Work
from lightning_tweedie.sampling import Sampler

__all__ = ["Checkpoint", "GeneratedImages", "Samples", "Subject", "short_names"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is evaluated.

    Args:
        name: What tables call it.
        path: Where it is.
        trained: What it holds.
        average: Which of its weight averages.
    """

    name: str
    path: str
    trained: TrainedDenoiser
    average: int

    def facts(self) -> dict[str, Any]:
        """Its part in a row of the results."""
        return {
            "subject": self.name,
            "ema_half_life": self.trained.half_life,
            "checkpoint": self.path,
            "checkpoint_digest": self.trained.digest,
            "step": self.trained.step,
            "sigma_n": self.trained.sigma_n,
        }


@dataclass(frozen=True)
class GeneratedImages:
    """Images that are there already.

    Args:
        name: What tables call them.
        dataset: All of them.
        indices: Those that are used.
    """

    name: str
    dataset: Dataset[Tensor]
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def _first(self) -> list[Tensor]:
        """A few: reading all would take long."""
        return [self.dataset[i] for i in self.indices[:8]]

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes of the first ones."""
        return {tuple(image.shape) for image in self._first}

    @property
    def in_colour(self) -> bool:
        """Whether the first ones are; grey ones may have three channels."""
        return any(bool((image != image[:1]).any()) for image in self._first)

    @property
    def title(self) -> str:
        """The name."""
        return self.name

    def facts(self) -> dict[str, Any]:
        """Nothing is known of how they were made."""
        return {"subject": self.name}

    def images(self, work: Work, progress: str) -> ImageSet:
        """There is nothing to make."""
        return ImageSet(self.dataset, self.indices, self.name)


@dataclass(frozen=True)
class Samples:
    """Samples of a checkpoint, made in one way.

    Args:
        checkpoint: Whose.
        sampler: Solver and grid.
        truncated: Whether sampling stops at the noise level of the training data.
        count: How many.
    """

    checkpoint: Checkpoint
    sampler: Sampler
    truncated: bool
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """The shape of all samples."""
        return {self.checkpoint.trained.shape}

    @property
    def in_colour(self) -> bool:
        """Whether they have three channels, which are never quite the same in samples."""
        return self.checkpoint.trained.shape[0] == 3

    @property
    def name(self) -> str:
        """That of the checkpoint; how they were made stands in other columns."""
        return self.checkpoint.name

    @property
    def title(self) -> str:
        """Name and conditions in one line."""
        return f"{self.name}, {self.sampler.name} {self.sampler.steps}, {self._sampling}"

    @property
    def _sampling(self) -> str:
        return "truncated" if self.truncated else "full"

    @property
    def _stop(self) -> float | None:
        return self.checkpoint.trained.sigma_n if self.truncated else None

    def facts(self) -> dict[str, Any]:
        """Its part in a row of the results."""
        return self.checkpoint.facts() | {"sampling": self._sampling} | solver_facts(self.sampler, self._stop)

    def images(self, work: Work, progress: str) -> ImageSet:
        """Makes the samples, or finds them where an earlier call has kept them. Every process must ask."""
        trained = self.checkpoint.trained
        parts = (
            re.sub(r"[^\w.+-]+", "_", PurePath(self.checkpoint.path).stem),
            trained.digest[:8],
            f"average{self.checkpoint.average}",
            f"{self.sampler.name}{self.sampler.steps}",
            *([] if self.sampler.sigma_max == 80 else [f"from{self.sampler.sigma_max:g}"]),
            self._sampling,
            f"seed{work.seed}",
        )
        # On the device only as long as it is needed: there may be many.
        trained.denoiser.to(work.device)
        images = generate(
            trained.denoiser,
            trained.shape,
            self.count,
            self.sampler,
            seed=work.seed,
            truncate_at=self._stop,
            batch_size=work.batch_size,
            processes=work.processes,
            store=None if work.store is None else work.store / "-".join(parts),
            progress=work.told(progress),
        )
        trained.denoiser.to("cpu")
        return ImageSet(images, range(self.count), self.name)


Subject = GeneratedImages | Samples
"""A set of images that has its line in the table."""


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them all apart.

    Raises:
        UserError: Two are the same.

    Examples:
        >>> short_names(["runs/a/fit_0/last.ckpt", "runs/b/fit_0/last.ckpt", "samples/"])
        ['a/fit_0/last.ckpt', 'b/fit_0/last.ckpt', 'samples']
    """
    parts = [PurePath(path).parts for path in paths]
    for path, its in zip(paths, parts, strict=True):
        if parts.count(its) > 1:
            raise UserError(f"{path!r} is named twice: name it once")
    lengths = [1] * len(paths)
    while True:
        names = ["/".join(its[-length:]) for its, length in zip(parts, lengths, strict=True)]
        clashes = [names.count(name) > 1 for name in names]
        if not any(clashes):
            return names
        lengths = [length + clash for length, clash in zip(lengths, clashes, strict=True)]
