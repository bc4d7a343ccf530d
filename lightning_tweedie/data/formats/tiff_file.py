"""TIFF, by tifffile: 8, 16 and 32 bits, floats, any number of channels and pages."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_tweedie.data.formats.stored import Format, Stored
from lightning_tweedie.errors import UserError

__all__ = ["TiffFile"]


class _Complaints(logging.Handler):
    """What tifffile says of this thread's file."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.thread = threading.get_ident()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.said.append(record.getMessage())


@contextmanager
def _whole() -> Iterator[None]:
    """Refuses a file that was cut off: tifffile would give the pages that are left, and log that there are no more."""
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    logger.addHandler(complaints)
    try:
        yield
    finally:
        logger.removeHandler(complaints)
    lost = [text for text in complaints.said if "page offset" in text]
    if lost:
        raise ValueError(lost[0])


class TiffFile(Format):
    """TIFF, with what it says of its axes.

    Samples of a pixel and the axis ``C`` of ImageJ, OME and tifffile are channels. Pages are images; those of which the
    file does not say whether they are slices, times or channels are channels if there are as many as the user says
    that images have.
    """

    endings = (".tif", ".tiff")

    def open(self, source: Path | bytes, key: str | None = None) -> Stored:
        """See :class:`Format`."""
        import tifffile

        with (
            _whole(),
            tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file,
        ):
            found = file.series
            if len(found) != 1:
                shapes = ", ".join(str(series.shape) for series in found[:3])
                raise UserError(f"the pages of a TIFF are of different kinds ({shapes}): store each in its own file")
            series = found[0]
            page = series.keyframe
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise UserError(
                    "a TIFF with a palette holds numbers of colours, not brightness: store it as grey or RGB"
                )
            details = {
                "axes": series.axes,
                "planar": int(page.planarconfig),
                "photometric": tifffile.PHOTOMETRIC(page.photometric).name,
                "compression": int(page.compression),
                "resolution": (page.resolution, int(page.resolutionunit)) if "XResolution" in page.tags else None,
            }
            shape, dtype, axes = series.shape, series.dtype, series.axes
        letters = {"Y": "Y", "X": "X", "S": "C", "C": "C", "I": "n", "Q": "n"}

        def load() -> Any:  # noqa: ANN401
            if isinstance(source, bytes):
                return tifffile.imread(io.BytesIO(source))
            with tifffile.TiffFile(source) as again:
                # Uncompressed pixels are not read until they are asked for; others are unpacked to a temporary file.
                several = series.size > page.size
                return again.series[0].asarray(out="memmap" if several else None)

        return Stored(tuple(shape), dtype, "".join(letters.get(axis, "N") for axis in axes), load, details)

    def write(self, array: NDArray[Any], like: Stored) -> bytes:
        """See :class:`Format`; compressed without loss if the other file was compressed."""
        import tifffile

        details = like.details
        axes = details.get("axes", like.axes)
        colour = axes.endswith("S") or (not details and axes == "YXC" and array.shape[-1] == 3)
        separate = "S" in axes and not axes.endswith("S")
        photometric = "rgb" if colour or separate else "minisblack"
        if "S" in axes and details.get("photometric") not in ("RGB", "YCBCR"):
            photometric = "minisblack"
        if details.get("photometric") == "MINISWHITE":
            photometric = "miniswhite"
        options: dict[str, Any] = {"photometric": photometric, "metadata": {"axes": axes.replace("YXC", "YXS")}}
        if "S" in axes or colour:
            options["planarconfig"] = "separate" if separate else "contig"
        if details.get("compression", 1) != 1:
            options |= {"compression": "zlib", "predictor": True}
        if details.get("resolution"):
            options["resolution"], options["resolutionunit"] = details["resolution"]
        file = io.BytesIO()
        tifffile.imwrite(file, array, **options)
        return file.getvalue()
