"""Weights & Biases, without an account if need be."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

__all__ = ["log_model", "wandb_logger"]


def wandb_logger(directory: Path, project: str) -> WandbLogger:
    """A logger that keeps its files in the run's directory.

    ``wandb sync <directory>/wandb/offline-run-*`` uploads an offline run later.

    Args:
        directory: The run's directory.
        project: Name of the project; in a sweep the agent's counts.
    """
    name = f"{directory.parent.name}/{directory.name}"
    return WandbLogger(name=name, save_dir=directory, project=project, offline=_is_offline())


def log_model(logger: WandbLogger, checkpoint: Path) -> None:
    """Gives an online run its model: an artifact of the name that Lightning looks for, with the file ``model.ckpt``.

    An offline run would only keep a copy of the checkpoint beside it.

    Args:
        logger: The run's logger.
        checkpoint: The checkpoint.
    """
    import wandb  # half a second, for most runs in vain

    run = logger.experiment
    if not run.offline and checkpoint.exists():
        artifact = wandb.Artifact(f"model-{run.id}", type="model")
        artifact.add_file(str(checkpoint), name="model.ckpt")
        run.log_artifact(artifact)


def _is_offline() -> bool:
    """What WANDB_MODE says; otherwise whether there is no API key."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode in ("offline", "dryrun")
    return not (os.environ.get("WANDB_API_KEY") or _key_in_netrc())


def _key_in_netrc() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
