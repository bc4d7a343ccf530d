"""Checkpoints that are there either whole or not at all, wherever temporary files are kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_tweedie.files import write_whole

__all__ = ["WholeCheckpoints"]


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces.

    Lightning's own writes to the folder of temporary files first. Where that is on another disk the file is copied into
    its place, and a disk that is full by then leaves half of it, in the place of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Args:
            checkpoint: What it is to hold.
            path: Where; remote ones are left to Lightning.
            storage_options: Only for remote ones.

        Raises:
            UserError: It cannot be written.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getbuffer())
