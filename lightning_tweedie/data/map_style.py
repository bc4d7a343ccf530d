"""Images from any map-style data set: those of torchvision, of Hugging Face, one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_tweedie.data.formats.layout import find_layout
from lightning_tweedie.data.formats.stored import need
from lightning_tweedie.data.scaled_images import ScaledImages
from lightning_tweedie.errors import UserError

__all__ = ["MapStyleImages", "load_hugging_face"]


class _MapStyle(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...  # noqa: ANN401


class MapStyleImages(ScaledImages):
    """The images of a data set that has a length and gives its items by number.

    An item is a Pillow image, or an array or tensor ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``; or a tuple that starts
    with one, such as ``(image, label)``; or a mapping that has one under a name.

    Args:
        items: The data set.
        column: The name, where items are mappings; None: ``image``, or the only one that there is.
        channels: Channels of every image; None: as many as the first one has.
        convert: See :class:`ScaledImages`.
    """

    def __init__(
        self, items: _MapStyle, column: str | None = None, channels: int | None = None, convert: bool = True
    ) -> None:
        super().__init__(channels, convert)
        self.items = items
        self.column = column

    def __len__(self) -> int:
        return len(self.items)

    def describe(self, index: int) -> str:
        """The number of an item."""
        return f"item {index} of the data set"

    def find(self, index: int) -> NDArray[Any]:
        """See :class:`ScaledImages`."""
        item = self.items[index]
        if isinstance(item, Mapping):
            column = self.column or ("image" if "image" in item or len(item) != 1 else next(iter(item)))
            if column not in item:
                raise UserError(f"data.column = {column!r} is not in the data set, which has {', '.join(item)}")
            item = item[column]
        item = item[0] if isinstance(item, tuple) else item
        axes = ""
        if isinstance(item, Image.Image):
            deep = item.mode.startswith("I;16")
            item = np.asarray(item if item.mode in ("L", "F", "RGB") or deep else item.convert("RGB"))
            axes = "YX" if item.ndim == 2 else "YXC"
        array = item.numpy() if isinstance(item, Tensor) else np.asarray(item)
        if array.dtype == object or array.ndim not in (2, 3):
            raise UserError(f"{self.describe(index)} is a {type(item).__name__}, not an image: name its data.column")
        layout = find_layout(
            array.shape, axes or ("YX" if array.ndim == 2 else "???"), self.channels, self.describe(index)
        )
        if layout.count != 1:
            raise UserError(f"{self.describe(index)} has shape {array.shape}: set data.channels to its channels")
        return layout.take(array, 0)


def load_hugging_face(path: str, split: str) -> _MapStyle:
    """Opens a data set of Hugging Face.

    Args:
        path: A folder that ``save_to_disk`` wrote, or what ``datasets.load_dataset`` takes, such as a name on the hub.
        split: Which part, such as ``train``.

    Raises:
        UserError: It is not there, has no such part, or the package is missing.
    """
    datasets = need("datasets", "huggingface", "a data set of Hugging Face")
    place = Path(path).expanduser()
    try:
        if (place / "dataset_info.json").is_file() or (place / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(place))
        else:
            found = datasets.load_dataset(str(place) if place.exists() else path)
    except Exception as error:  # it may come from files, from the web, or from a parser
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data.path = {path!r} cannot be opened ({reason}): give a folder or a name on the hub"
        ) from None
    if isinstance(found, Mapping):
        if split not in found:
            raise UserError(f"data.split = {split!r} is not in {path!r}, which has {', '.join(found)}")
        found = found[split]
    return found
