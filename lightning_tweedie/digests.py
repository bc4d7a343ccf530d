"""SHA-256 of files and of networks, which tell whether two are the same."""

from __future__ import annotations

import hashlib
import os

import torch
from torch import nn

__all__ = ["file_digest", "state_digest"]


def file_digest(path: str | os.PathLike[str], algorithm: str = "sha256") -> str:
    """Digest of the bytes of a file, in hexadecimal digits.

    Args:
        path: The file.
        algorithm: ``sha256``, or ``md5`` where others published that one: it tells damage, not malice.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_digest(module: nn.Module) -> str:
    """SHA-256 of the name, type, shape and bytes of all parameters and buffers, in hexadecimal digits.

    Examples:
        >>> one, other = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> state_digest(one) == state_digest(other)
        False
        >>> _ = other.load_state_dict(one.state_dict())
        >>> state_digest(one) == state_digest(other)
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}/{tuple(value.shape)}/{value.dtype}/".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
