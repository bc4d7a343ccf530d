"""Pictures of tensors: 8-bit images, grids of them, labelled panels, files.

Everything takes data in [-1, 1] (what lies outside, as noisy data do, is clamped for display) and
returns ``uint8`` arrays, which every viewer and logger shows alike.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.files import write_whole

__all__ = ["can_be_drawn", "grid", "panel", "save", "stretch", "to_uint8"]

Picture = npt.NDArray[np.uint8]
"""A colour picture, ``(height, width, 3)`` uint8."""

_WHITE = 255
_DPI = 100
_TITLE_SIZE = 11  # points
_TITLE_LINE = 20  # pixels that one line of a title takes at that size
_MARGIN = 12  # pixels


def to_uint8(images: Tensor) -> Tensor:
    """8-bit levels of images in [-1, 1]: clamped, then **rounded** to the nearest of 256 levels.

    Truncating instead (what a plain cast does) would darken every image by half a level. What is not a
    number becomes black.

    Args:
        images: Any shape, floating point.

    Returns:
        The same shape, ``uint8``: -1 is 0 and 1 is 255.
    """
    return ((images.float().nan_to_num(nan=-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def stretch(images: Tensor, like: Tensor) -> Tensor:
    """Images to be looked at: with more contrast, or brought to [-1, 1], where nothing else could be seen of them.

    Args:
        images: Any shape.
        like: What decides: if all but a hundredth of its values take less than a quarter of [-1, 1], or lie for the
            larger part beyond, then what they take becomes [-1, 1].

    Returns:
        The same shape; the images themselves if ``like`` can be seen.
    """
    ordered = like.float().flatten().sort().values
    low, high = (float(ordered[int(share * (len(ordered) - 1))]) for share in (0.005, 0.995))
    seen = min(high, 1.0) - max(low, -1.0)
    if high <= low or seen >= max(0.5, (high - low) / 2):
        return images
    return (images - low) * (2 / (high - low)) - 1


def can_be_drawn(shape: Sequence[int]) -> bool:
    """Whether :func:`panel` knows how to draw items of this shape: images and points in the plane."""
    return tuple(shape) == (2,) or (len(shape) == 3 and shape[0] in (1, 3))


def grid(images: Tensor, per_row: int, side: int = 56, separator: int = 2) -> Picture:
    """Images side by side on white, row by row.

    Small images are enlarged by a whole factor without interpolation, so that single pixels stay visible.

    Args:
        images: ``(N, C, H, W)`` in [-1, 1], ``C`` 1 (grey) or 3.
        per_row: Images in one row.
        side: The shorter side of an image in the picture is at least this many pixels.
        separator: White pixels between two images.

    Returns:
        The picture.
    """
    count, channels, height, width = images.shape
    factor = max(1, math.ceil(side / min(height, width)))
    pixels = to_uint8(images).cpu().expand(-1, 3 if channels == 1 else channels, -1, -1)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1)
    height, width = height * factor, width * factor
    rows = math.ceil(count / per_row)
    sheet = torch.full(
        (rows * (height + separator) - separator, per_row * (width + separator) - separator, 3),
        _WHITE,
        dtype=torch.uint8,
    )
    for i, image in enumerate(pixels):
        top, left = (i // per_row) * (height + separator), (i % per_row) * (width + separator)
        sheet[top : top + height, left : left + width] = image
    return sheet.numpy()


def panel(columns: Sequence[tuple[str, Tensor]], per_row: int = 1, side: int = 112) -> Picture:
    """A figure of labelled columns.

    Args:
        columns: Title and items of each column: images ``(N, 1 or 3, H, W)`` in [-1, 1], or points
            ``(N, 2)``, which are drawn as a scatter plot with the same axes in every column.
        per_row: Images in one row of a column.
        side: The shorter side of an image is at least this many pixels.

    Returns:
        The picture, titles included.

    Raises:
        UserError: For items that are neither images nor points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for title, items in columns:
        if not can_be_drawn(items.shape[1:]):
            raise UserError(
                f"{title!r} has items of shape {tuple(items.shape[1:])}: "
                "images (1, H, W) or (3, H, W) and points (2,) can be drawn"
            )
    points = columns[0][1].ndim == 2
    sheets = [np.full((360, 360, 3), _WHITE, np.uint8) if points else grid(x, per_row, side) for _, x in columns]
    titles = [_wrap(title, sheet.shape[1]) for (title, _), sheet in zip(columns, sheets, strict=True)]
    header = _TITLE_LINE * max(title.count("\n") + 1 for title in titles)
    width = sum(sheet.shape[1] + _MARGIN for sheet in sheets) + _MARGIN
    height = max(sheet.shape[0] for sheet in sheets) + header + 2 * _MARGIN

    # A Figure of its own: pyplot would keep global state and choose a display.
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    left = _MARGIN
    for title, sheet, (_, items) in zip(titles, sheets, columns, strict=True):
        rows, across = sheet.shape[:2]
        figure.text(
            (left + across / 2) / width, 1 - (_MARGIN + header / 2) / height, title, ha="center", va="center",
            fontsize=_TITLE_SIZE,
        )  # fmt: skip
        if points:
            box = (left / width, _MARGIN / height, across / width, rows / height)
            _scatter(figure.add_axes(box), items, limit=_limit([x for _, x in columns]))
        left += across + _MARGIN
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    if not points:  # pasted, not plotted: every pixel of a sheet is one pixel of the picture
        left = _MARGIN
        for sheet in sheets:
            top = _MARGIN + header
            picture[top : top + sheet.shape[0], left : left + sheet.shape[1]] = sheet
            left += sheet.shape[1] + _MARGIN
    return picture


def save(picture: Picture, path: str | Path) -> None:
    """Writes a picture to a new file; its folder is made if need be.

    Args:
        picture: ``(height, width, 3)`` uint8.
        path: Where to; the suffix says the format, PNG keeps every pixel.

    Raises:
        UserError: If the file exists, for a picture is never overwritten, or cannot be written.
    """
    from PIL import Image

    path = Path(path)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=path.suffix.removeprefix(".") or "png")
    write_whole(path, file.getbuffer(), replace=False)


def _wrap(title: str, width: int) -> str:
    """Breaks a title into lines that fit into ``width`` pixels."""
    import textwrap

    return "\n".join(line for part in title.split("\n") for line in textwrap.wrap(part, max(8, width // 8)))


def _limit(clouds: Sequence[Tensor]) -> float:
    """Half the width of a square around the origin that holds nearly all points."""
    distances = torch.cat([x.detach().float().cpu().abs().flatten() for x in clouds])
    distances = distances[distances.isfinite()]
    return 1.1 * float(torch.quantile(distances[:1_000_000], 0.999)) if len(distances) else 1.0


def _scatter(axes: Any, items: Tensor, limit: float) -> None:
    x, y = items.detach().float().cpu().unbind(1)
    axes.scatter(x, y, s=4, alpha=0.4, linewidths=0)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
    axes.set_aspect("equal")
