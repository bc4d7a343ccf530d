"""Checkpoints and exported models, read without Lightning and without executing anything they contain."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_tweedie.correlation import Correlation
from lightning_tweedie.denoiser import Denoiser
from lightning_tweedie.digests import file_digest
from lightning_tweedie.errors import UserError
from lightning_tweedie.model_folder import CONFIG, read_model_folder
from lightning_tweedie.serialization import check_fits, from_config

__all__ = ["CHECKPOINT_KEY", "TrainedDenoiser", "data_settings", "load_denoiser", "read_checkpoint"]

CHECKPOINT_KEY = "lightning_tweedie"
"""Where a checkpoint keeps what sampling and restoration need besides the weights."""

AVERAGES = "ema.averages."
"""What the names of the weight averages begin with in a checkpoint's ``state_dict``, before their number."""

LARGEST_DATUM = 1 << 28
"""Numbers in one datum at most, 1 GB of them: what says more was not written by this library."""


@dataclass
class TrainedDenoiser:
    """What a checkpoint, or an exported model, has to say about images.

    Attributes:
        denoiser: A weight average, in evaluation mode.
        shape: Shape of one datum.
        sigma_n: Level of white noise that covers that of the training data, on the scale of the data.
        half_life: Half-life of that average in optimiser steps; None if the checkpoint does not say.
        step: Optimiser steps of training; None if the checkpoint does not say.
        path: The checkpoint's file, or the exported folder.
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
        # The description of an exported model holds the digest of its weights.
        self._file = os.path.join(self.path, CONFIG) if os.path.isdir(self.path) else self.path
        self._stamp = _stamp(self._file)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the checkpoint's file or of an exported model's description, read when this is first asked for.

        Raises:
            UserError: The file is no longer the one that was loaded, as may happen to the last one of a training that
                goes on.
        """
        try:
            if _stamp(self._file) == self._stamp:
                return file_digest(self._file)
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
    if os.path.isdir(path):
        raise UserError(
            f"{path!r} is a folder, and not a checkpoint with the state of a training: give a file such as "
            "runs/.../last.ckpt; exported models are for `sample`, `denoise` and `evaluate`"
        )
    if not os.path.isfile(path):
        raise UserError(f"the checkpoint {path!r} does not exist: give the path of a file such as runs/.../last.ckpt")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"the checkpoint {path!r} cannot be read: it is none, or it is damaged or truncated; use another"
        )
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
    """Builds the denoiser that a checkpoint or an exported model describes, with its averaged weights.

    Neither can run code, or take more memory than its weights: what does not fit together is refused before anything
    is built.

    Args:
        path: A local file, or a folder that ``lightning_tweedie export`` wrote.
        allow: Packages besides this library from which network classes may be taken. Their code is run, and may build
            what it likes.
        device: Where the weights are put.
        average: Which weight average, in the order of ``EMA.half_lives``; an exported model has one.

    Raises:
        UserError: The checkpoint cannot be used or has no such average, or names a class of a package that is not
            allowed.
    """
    path = os.fspath(path)
    try:
        content, averages, step = _read(path)
        count = len(averages)
        if not 0 <= average < count:
            raise UserError(
                f"average = {average} does not exist: {path!r} holds {count} averages of the weights, counted from 0"
            )
        if not {"shape", "sigma_n"} <= set(content):
            raise UserError(
                f"the checkpoint {path!r} does not say what its data look like, because it was trained without a "
                "NoisyDataModule: train with one, or load its state_dict into a network of your own"
            )
        shape, sigma_n = _shape(content["shape"]), float(content["sigma_n"])
        if not 0 <= sigma_n < math.inf:
            raise ValueError(f"its sigma_n is {sigma_n}")
        if not allow:
            check_fits(content["denoiser"], averages[average], shape)
        denoiser = from_config(content["denoiser"], allow)
        denoiser.load_state_dict(averages[average])
        if not isinstance(denoiser, Denoiser) or not 0 < float(denoiser.sigma_data) < math.inf:
            raise ValueError("it describes no denoiser that knows its sigma_data")
        correlation = content.get("correlation")
        half_lives = content.get("half_lives")
        trained = TrainedDenoiser(
            denoiser,
            shape,
            sigma_n,
            None if half_lives is None else float(half_lives[average]),
            None if step is None else int(step),
            path,
            content.get("scale"),
            None if correlation is None else Correlation(torch.tensor(correlation, dtype=torch.float64)),
            bool(content.get("maps", False)),
        )
    except UserError as error:
        raise error if path in str(error) else UserError(f"the checkpoint {path!r}: {error}") from None
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise UserError(
            f"the checkpoint {path!r} does not fit together ({_first_line(error)}): it is damaged, or its network "
            "has changed since; use the version that made it"
        ) from None
    denoiser.to(device).eval().requires_grad_(False)
    return trained


def data_settings(path: str | os.PathLike[str], name: str) -> Any:  # noqa: ANN401
    """What a checkpoint or an exported model says of the data module of its training, if that was of this class.

    Args:
        path: As in :func:`load_denoiser`.
        name: Name of the data module's class.

    Returns:
        What its ``state_dict`` gave; None if nothing is said of such a class.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    if os.path.isdir(path):
        data = read_model_folder(path)[0].get("data")
        return data.get(name) if isinstance(data, dict) else None
    return read_checkpoint(path).get(name)  # where Lightning keeps it


def _read(path: str) -> tuple[Mapping[str, Any], list[dict[str, Tensor]], Any]:
    """The plain description, the weights of each average, and the step."""
    if os.path.isdir(path):
        config, weights = read_model_folder(path)
        return config, [weights], config.get("step")
    checkpoint = read_checkpoint(path)
    averages: dict[str, dict[str, Tensor]] = {}
    for name, value in checkpoint["state_dict"].items():
        if name.startswith(AVERAGES):
            number, _, rest = name.removeprefix(AVERAGES).partition(".")
            averages.setdefault(number, {})[rest] = value
    ordered = [averages[str(number)] for number in range(len(averages))]
    return checkpoint[CHECKPOINT_KEY], ordered, checkpoint.get("global_step")


def _shape(shape: Any) -> tuple[int, ...]:  # noqa: ANN401
    sides = tuple(shape)
    if not all(type(side) is int and side > 0 for side in sides) or not 0 < math.prod(sides) <= LARGEST_DATUM:
        raise ValueError(f"its data have the shape {shape!r}"[:80])
    return sides


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(":. ")


def _stamp(path: str) -> tuple[int, ...]:
    """What changes when a file is written anew."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
