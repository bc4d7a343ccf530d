"""Checkpoints, read without Lightning and without executing anything they contain."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.digests import file_digest
from lightning_tweedie.errors import UserError
from lightning_tweedie.serialization import from_config

__all__ = ["CHECKPOINT_KEY", "TrainedDenoiser", "load_denoiser", "read_checkpoint"]

CHECKPOINT_KEY = "lightning_tweedie"
"""Where a checkpoint keeps what sampling and restoration need besides the weights."""

AVERAGES = "ema.averages."
"""What the names of the weight averages begin with in a checkpoint's ``state_dict``, before their number."""


@dataclass
class TrainedDenoiser:
    """What a checkpoint has to say about images.

    Attributes:
        denoiser: A weight average, in evaluation mode.
        shape: Shape of one datum.
        sigma_n: Level of white noise that covers that of the training data, on the scale of the data.
        half_life: Half-life of that average in optimiser steps; None if the checkpoint does not say.
        step: Optimiser steps of training; None if the checkpoint does not say.
        path: The checkpoint's file.
        scale: How the training data came to [-1, 1], as :class:`lightning_tweedie.data.scale.DataScale` writes it;
            None if the checkpoint does not say.
        correlation: That of the training data's noise; None if there was none.
        maps: Whether the noise of the training data differed from pixel to pixel.
    """

    denoiser: Denoiser
    shape: tuple[int, ...]
    sigma_n: float
    half_life: float | None
    step: int | None
    path: str
    scale: dict[str, Any] | None = None
    correlation: Correlation | None = None
    maps: bool = False

    def __post_init__(self) -> None:
        self._stamp = _stamp(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's file, which is read when this is first asked for.

        Raises:
            UserError: The file is no longer the one that was loaded, as may happen to the last one of a training that
                goes on.
        """
        try:
            if _stamp(self.path) == self._stamp:
                return file_digest(self.path)
        except OSError:
            pass
        raise UserError(
            f"the checkpoint {self.path!r} has been removed or written anew since it was loaded: give a copy of it, or "
            "wait for the end of the training"
        )


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Opens a checkpoint of :class:`~lightning_tweedie.module.TweedieModule`.

    Only plain data and tensors are accepted, so a checkpoint from a stranger cannot run code. Tensors are mapped from
    the file, not read, until they are used.

    Args:
        path: A local file.

    Raises:
        UserError: The file is missing, truncated, or not such a checkpoint.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"the checkpoint {path!r} does not exist: give the path of a file such as runs/.../last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"the checkpoint {path!r} holds more than tensors and plain data, which could run code when it is read: "
            "use one that this library wrote"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"the checkpoint {path!r} cannot be read ({_first_line(error)}): it is damaged or truncated; use another"
        ) from None
    if not isinstance(checkpoint, dict) or not {CHECKPOINT_KEY, "state_dict"} <= checkpoint.keys():
        raise UserError(f"the checkpoint {path!r} was not made by this library's TweedieModule: give one that was")
    return checkpoint


def load_denoiser(
    path: str | os.PathLike[str], allow: Sequence[str] = (), device: torch.device | str = "cpu", average: int = 0
) -> TrainedDenoiser:
    """Builds the denoiser that a checkpoint describes, with its averaged weights.

    Args:
        path: A local file.
        allow: Packages besides this library from which network classes may be taken.
        device: Where the weights are put.
        average: Which weight average, in the order of ``EMA.half_lives``.

    Raises:
        UserError: The checkpoint cannot be used or has no such average, or names a class of a package that is not
            allowed.
    """
    checkpoint = read_checkpoint(path)
    content = checkpoint[CHECKPOINT_KEY]
    averaged = {k.removeprefix(AVERAGES): v for k, v in checkpoint["state_dict"].items() if k.startswith(AVERAGES)}
    count = len({name.partition(".")[0] for name in averaged})
    if not 0 <= average < count:
        raise UserError(
            f"average = {average} does not exist: {str(path)!r} holds {count} averages of the weights, counted from 0"
        )
    chosen = f"{average}."
    weights = {k.removeprefix(chosen): v for k, v in averaged.items() if k.startswith(chosen)}
    try:
        if not {"shape", "sigma_n"} <= set(content):
            raise UserError(
                f"the checkpoint {str(path)!r} does not say what its data look like, because it was trained without a "
                "NoisyDataModule: train with one, or load its state_dict into a network of your own"
            )
        denoiser = from_config(content["denoiser"], allow)
        denoiser.load_state_dict(weights)
        correlation = content.get("correlation")
        half_lives, step = content.get("half_lives"), checkpoint.get("global_step")
        trained = TrainedDenoiser(
            denoiser,  # type: ignore[arg-type]
            tuple(content["shape"]),
            float(content["sigma_n"]),
            None if half_lives is None else float(half_lives[average]),
            None if step is None else int(step),
            os.fspath(path),
            content.get("scale"),
            None if correlation is None else Correlation(torch.tensor(correlation, dtype=torch.float64)),
            bool(content.get("maps", False)),
        )
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint {str(path)!r} does not fit together ({_first_line(error)}): it is damaged, or its network "
            "has changed since; use the version that made it"
        ) from None
    denoiser.to(device).eval().requires_grad_(False)
    return trained


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":. ")


def _stamp(path: str) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
