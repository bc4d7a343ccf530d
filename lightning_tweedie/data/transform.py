"""albumentations before the noise: deterministic transforms only.

Noise is put into an item once. A random transform *before* it would show several versions of one clean image, each
with the same noise or a shifted one, from which the clean image could be pieced together: the model would not have
learnt from one noisy look at each image any more. So what is random comes after the noise
(:mod:`lightning_tweedie.data.augmentation`), and what comes before it must give the same result every time.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError

__all__ = ["build_transform"]

#: Transforms without interpolation: they leave noise white, so that data noisy by nature may go through them.
_EXACT = frozenset({"CenterCrop", "Crop", "NoOp"})
_DETERMINISTIC = _EXACT | {"LongestMaxSize", "Pad", "PadIfNeeded", "Resize", "SmallestMaxSize", "ToGray"}
_CONTAINERS = frozenset({"Compose", "Sequential"})


def _refuse(name: str, why: str) -> UserError:
    return UserError(
        f"data.transform: {name} {why}, so before the noise it would give several looks at one clean image, which is a "
        "leak: use a deterministic transform there (Resize, CenterCrop, ...) and put the random part after the noise "
        'with data.augment, for example ["crop:64", "hflip"]'
    )


def _check(transform: Any, inject: bool) -> None:  # noqa: ANN401 - albumentations is imported lazily
    name = type(transform).__name__
    if name in _CONTAINERS:
        if transform.p != 1:
            raise _refuse(f"{name}(p={transform.p:g})", "is random")
        for inner in transform.transforms:
            _check(inner, inject)
        return
    if name not in _DETERMINISTIC:
        raise _refuse(name, "is random, or not known to be deterministic")
    if name != "NoOp" and transform.p != 1:
        raise _refuse(f"{name}(p={transform.p:g})", "is random unless p is 1")
    # A position drawn at random, and a size drawn from a list.
    if "random" in (getattr(transform, "position", ""), getattr(transform, "pad_position", "")):
        raise _refuse(f'{name}(position="random")', "is random")
    if isinstance(size := getattr(transform, "max_size", None), Sequence) and len(size) > 1:
        raise _refuse(f"{name}(max_size={list(size)})", "draws its size at random")
    if not inject and name not in _EXACT:
        raise UserError(
            f"data.transform: {name} mixes neighbouring pixels, which correlates the noise of data that are noisy by "
            f"nature (data.inject is false): use only {', '.join(sorted(_EXACT))}"
        )


def _resolve(spec: Any) -> Any:  # noqa: ANN401
    if not isinstance(spec, Mapping):
        return spec
    path = spec.get("class_path")
    arguments = spec.get("init_args") or {}
    if not isinstance(path, str) or not isinstance(arguments, Mapping) or set(spec) - {"class_path", "init_args"}:
        raise UserError(
            f"data.transform: {dict(spec)} is not a transform: write "
            "{class_path: albumentations.Resize, init_args: {height: 32, width: 32}}"
        )
    module, _, name = path.rpartition(".")
    if module not in ("", "A", "albumentations"):
        raise UserError(f"data.transform: {path} is not from albumentations: write albumentations.{name}")
    found = getattr(_albumentations(), name, None)
    if not isinstance(found, type):
        raise UserError(f"data.transform: albumentations has no {name}: look the name up in its documentation")
    if name not in _DETERMINISTIC:  # Before it is built: its arguments do not matter then.
        raise _refuse(name, "is random, or not known to be deterministic")
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"data.transform: {name} does not take {dict(arguments)} ({why}): mend its init_args") from None


def _albumentations() -> Any:  # noqa: ANN401
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # Or it looks for updates on the web.
    try:
        return importlib.import_module("albumentations")
    except ImportError:
        raise UserError("data.transform needs the package albumentations: pip install albumentations") from None


class _Transform:
    """Images through albumentations and back.

    albumentations wants ``(H, W, C)`` and clips floats to [0, 1], so images are handed to it on that scale: exactly
    the [-1, 1] of clean images.
    """

    def __init__(self, transforms: list[Any], clean: bool) -> None:
        self.transforms = transforms
        self.clean = clean

    def __call__(self, image: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        pixels = (pixels + 1) / 2 if self.clean else pixels
        for transform in self.transforms:
            pixels = transform(image=pixels)["image"]
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        pixels = pixels * 2 - 1 if self.clean else pixels
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()


def build_transform(specs: Any, inject: bool = True) -> Callable[[Tensor], Tensor]:  # noqa: ANN401
    """Makes the part of the pipeline that comes before the noise.

    Args:
        specs: albumentations transforms, or mappings ``{class_path, init_args}`` that name them, or a list of these.
        inject: Whether noise comes after it. If not, the data are noisy by nature, and only crops are allowed.

    Returns:
        A function from one image ``(C, H, W)`` to another, both float32, clean ones in [-1, 1].

    Raises:
        UserError: A transform is random or unknown; albumentations is not installed.
    """
    specs = specs if isinstance(specs, (list, tuple)) else [specs]
    transforms = [_resolve(spec) for spec in specs]
    for transform in transforms:
        _check(transform, inject)
    return _Transform(transforms, inject)
