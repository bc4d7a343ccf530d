"""An array of images as it lies in a file, and what every file format can do with one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.errors import UserError

__all__ = ["Format", "Stored", "need"]


@dataclass
class Stored:
    """What a file holds.

    Attributes:
        shape: Shape of its array.
        dtype: Type of its numbers.
        axes: A letter for each axis: ``Y`` and ``X`` rows and columns, ``C`` channels, ``N`` images; ``n`` images,
            unless the user says that they are channels; ``?`` not known.
        load: Gives the array, or what is sliced like one and reads only what is asked for.
        details: What else a file must be given to be like this one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str
    load: Callable[[], Any]
    details: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def array(self) -> Any:  # noqa: ANN401 - each library has a class of its own
        """The array, opened when it is first asked for."""
        return self.load()

    @staticmethod
    def whole(array: NDArray[Any], axes: str = "", **details: Any) -> Stored:
        """An array that is in memory; its axes are not known when absent, except of a single plane."""
        axes = axes or ("YX" if array.ndim == 2 else "?" * array.ndim)
        return Stored(array.shape, array.dtype, axes, lambda: array, details)


class Format(ABC):
    """A file format.

    Attributes:
        endings: What its files end in, in lower case, with the dot.
        several: Whether one file may hold several images.
    """

    endings: ClassVar[tuple[str, ...]]
    several: ClassVar[bool] = True

    @abstractmethod
    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """Opens a file.

        Args:
            source: The file's path, or its content.
            key: Which array of the file, where there may be several.

        Raises:
            UserError: What is in it cannot be used, or the package that reads it is missing.
            Exception: The file is damaged; each library has its own way to say so.
        """

    @abstractmethod
    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """The content of a file with this array, in the same axes and with the details of another one."""

    def holds(self, dtype: np.dtype[Any]) -> bool:
        """Whether numbers of this type can be stored without loss."""
        return dtype.kind in "iuf"


def need(package: str, extra: str, what: str) -> Any:  # noqa: ANN401
    """Imports a package that is installed on demand.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(
            f"{what} needs the package {package.partition('.')[0]}, which is missing: pip install "
            f"'lightning_tweedie[{extra}]'"
        ) from None
