"""A model to give away: a folder with its weights as safetensors and its description as JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["CONFIG", "read_model_folder", "write_model_folder"]

CONFIG = "config.json"
"""The file that describes the model."""

WEIGHTS = "model.safetensors"
"""The file of its weights."""

DIGEST = "weights_sha256"
"""Where the description says which weights are meant."""

LARGEST_CONFIG = 1 << 20
"""Bytes that a description has at most; none of ours has more than a few thousand."""


def write_model_folder(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a model into a folder.

    Args:
        folder: It must be there.
        config: The description, in plain types.
        weights: What ``state_dict`` of the network gives.
    """
    from safetensors.torch import save

    content = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    (folder / WEIGHTS).write_bytes(content)
    described = {**config, DIGEST: hashlib.sha256(content).hexdigest()}
    (folder / CONFIG).write_text(json.dumps(described, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_model_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what :func:`write_model_folder` wrote. Neither file can hold code, and nothing is built here.

    Args:
        folder: A local folder.

    Returns:
        The description and the weights.

    Raises:
        UserError: A file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    described, weights = os.path.join(folder, CONFIG), os.path.join(folder, WEIGHTS)
    for path in (described, weights):
        if not os.path.isfile(path):
            raise UserError(
                f"the folder {os.fspath(folder)!r} is not an exported model, for it has no {os.path.basename(path)}: "
                "give one that `lightning_tweedie export` made, or a checkpoint"
            )
    try:
        with open(described, "rb") as file:
            text = file.read(LARGEST_CONFIG + 1)
        config = json.loads(text) if len(text) <= LARGEST_CONFIG else None
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or DIGEST not in config:
        raise UserError(f"{described!r} is not the JSON of an exported model: it is damaged; use another copy")
    try:
        content = Path(weights).read_bytes()  # what is checked is what is used, whatever becomes of the file
        if hashlib.sha256(content).hexdigest() != config[DIGEST]:
            raise UserError(f"{weights!r} is not the file that {CONFIG} speaks of: it is damaged; use another copy")
        return config, load(content)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights!r} cannot be read ({error}): it is damaged; use another copy") from None
