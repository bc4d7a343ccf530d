"""Who does the long work of an evaluation, where, and what is kept and told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_tweedie.evaluation.processes import Processes
from lightning_tweedie.evaluation.results import device_name, versions

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """The settings that sampling, features and restorations share.

    Args:
        processes: Who shares the work; all of them must call what gets this.
        device: Where networks run.
        seed: Of samples, draws, noise and choices.
        batch_size: Images in one pass.
        store: Folder in which finished chunks are kept, so that an interrupted call continues; nothing is kept when
            None.
        cache_dir: Folder for the features of reference images; that of the user when None.
        shown: Whether there are progress bars.
    """

    processes: Processes
    device: torch.device
    seed: int
    batch_size: int
    store: Path | None = None
    cache_dir: Path | None = None
    shown: bool = True

    def told(self, text: str) -> str | None:
        """What a progress bar says; None for none."""
        return text if self.shown else None

    def facts(self) -> dict[str, Any]:
        """Its part in a row of the results."""
        return {"seed": self.seed, "device": device_name(self.device), "versions": versions()}
