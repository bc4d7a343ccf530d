"""What is kept of a set of images for distances: their features, mean and covariance, and where they come from."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.files import write_whole
from lightning_tweedie.metrics.features import FeatureExtractor

__all__ = ["FeatureStatistics", "Provenance"]

_FORMAT = "lightning_tweedie feature statistics 1"
_ROWS = 4096  # features that are turned into float64, or compared with all others, at a time
_NEIGHBOURS = 10
# What reading a file that is damaged, or no npz file at all, can end in.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Provenance:
    """What features depend on besides the number of images.

    Two sets of features can be compared only if all but the data agree.

    Args:
        extractor: Name of the extractor, ``FeatureExtractor.name``.
        extractor_digest: SHA-256 of its weights, ``FeatureExtractor.digest``.
        resize: How images reach its input size, ``FeatureExtractor.resize``.
        data_digest: Digest of the images, in their order.
        dtype: Number type in which the features were computed.
    """

    extractor: str
    extractor_digest: str
    resize: str
    data_digest: str
    dtype: str = "float32"


class FeatureStatistics:
    """Features of a set of images with their mean and covariance, and where they come from.

    Args:
        features: ``(n, d)``; ``None`` if only ``mean`` and ``cov`` are known.
        mean: ``(d,)`` float64; computed from the features when first asked for, if not given.
        cov: ``(d, d)`` float64, unbiased; the same holds.
        n: Number of images; ``None`` if it is not known. That of the features, if they are given.
        provenance: Where the features come from; ``None`` if it is not known.

    Raises:
        UserError: If there are features of fewer than two images: one image has no covariance.

    Examples:
        >>> statistics = FeatureStatistics(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> statistics.n, statistics.mean.tolist(), statistics.cov.tolist()
        (2, [1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    def __init__(
        self,
        features: Tensor | None = None,
        *,
        mean: Tensor | None = None,
        cov: Tensor | None = None,
        n: int | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        if features is None and (mean is None or cov is None):
            raise ValueError("give features, or their mean and covariance")
        if features is not None:
            features = features.detach().to("cpu", torch.float32)
            n = len(features)
            if n < 2:
                raise UserError(f"statistics of features need two images or more, not {n}: give more images")
        self.features = features
        self.n = n
        self.provenance = provenance
        self._where = ""  # for messages
        # A cached property is an attribute that is not there yet.
        if mean is not None:
            self.mean = mean.to("cpu", torch.float64)
        if cov is not None:
            self.cov = cov.to("cpu", torch.float64)

    @property
    def num_features(self) -> int:
        """Length ``d`` of one feature vector."""
        return len(self.mean) if self.features is None else self.features.shape[1]

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the features, ``(d,)`` float64."""
        assert self.features is not None
        return self.features.mean(0, dtype=torch.float64)

    @cached_property
    def cov(self) -> Tensor:
        """Unbiased covariance of the features, ``(d, d)`` float64."""
        assert self.features is not None
        n, d = self.features.shape
        total = torch.zeros(d, d, dtype=torch.float64)
        for part in self.features.split(_ROWS):
            # Centred before it is squared: the difference of large sums would lose digits.
            centred = part.double() - self.mean
            total.addmm_(centred.mT, centred)
        return total / (n - 1)

    @cached_property
    def neighbour_distances(self) -> Tensor:
        """Distances of each feature to its nearest neighbours among the others, ascending, ``(n, min(10, n - 1))``."""
        assert self.features is not None
        count = min(_NEIGHBOURS, len(self.features) - 1)
        # Everyone is one's own neighbour at distance 0, or nearly so: hence one more, and never by index.
        parts = (torch.cdist(part, self.features) for part in self.features.split(_ROWS))
        return torch.cat([part.topk(count + 1, largest=False).values[:, 1:] for part in parts])

    def save(self, path: str | Path) -> None:
        """Writes all into a new npz file, which is there either whole or not at all.

        The mean and the covariance stand under the names ``mu`` and ``sigma``, where pytorch-fid looks for them.

        Args:
            path: Where to, with the suffix ``.npz``; the folder is made if need be.

        Raises:
            UserError: If the file exists, or cannot be written.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise UserError(f"{path} would hold feature statistics, an npz file: choose a name that ends in .npz")
        arrays: dict[str, Any] = {"format": _FORMAT, "mu": self.mean.numpy(), "sigma": self.cov.numpy()}
        if self.n is not None:
            arrays["n"] = self.n
        if self.features is not None:
            arrays["features"] = self.features.numpy()
        if self.provenance is not None:
            arrays |= asdict(self.provenance)
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_whole(path, content.getbuffer(), replace=False)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Reads a file of ours, or one with ``mu`` and ``sigma`` as pytorch-fid and EDM write it.

        A file of others says neither how many images it stands for nor how their features were made: it serves the
        Frechet distance alone, at the user's own risk. Nothing in a file is executed.

        Args:
            path: An npz file.

        Raises:
            UserError: If it is damaged or of another kind.
        """
        stored: dict[str, npt.NDArray[Any]] = {}
        try:
            with zipfile.ZipFile(path):  # told apart from the other things that np.load opens
                pass
            with np.load(path, allow_pickle=False) as file:
                names = sorted(file.files)
                # Files of others may hold many images as well.
                wanted = names if "format" in names else {"mu", "sigma"}.intersection(names)
                stored.update((name, file[name]) for name in wanted)
        except _UNREADABLE as error:
            raise UserError(f"{path} is damaged or no file of feature statistics ({error}): make it anew") from None
        mean, cov = stored.get("mu"), stored.get("sigma")
        if mean is None or cov is None:
            found = ", ".join(names) or "nothing"
            raise UserError(f"{path} holds {found} instead of mu and sigma: give a file of feature statistics")
        if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or mean.dtype.kind != "f" or cov.dtype.kind != "f":
            raise UserError(
                f"{path} is no file of feature statistics: mu must be (d,) and sigma (d, d), floating point, not "
                f"{mean.shape} {mean.dtype} and {cov.shape} {cov.dtype}"
            )
        if "format" in stored and str(stored["format"]) != _FORMAT:
            raise UserError(
                f"{path} has the format {str(stored['format'])!r}, this version reads {_FORMAT!r}: remake it"
            )
        features, n = stored.get("features"), stored.get("n")
        known = {name: str(stored[name]) for name in Provenance.__dataclass_fields__ if name in stored}
        statistics = cls(
            None if features is None else torch.from_numpy(features),
            mean=torch.from_numpy(mean),
            cov=torch.from_numpy(cov),
            n=None if n is None else int(n),
            provenance=Provenance(**known) if known else None,
        )
        statistics._where = f"in {path} "
        return statistics

    @staticmethod
    def is_statistics(path: str | Path) -> bool:
        """Whether this is a file for :meth:`load`; looks at the names in it only."""
        try:
            with zipfile.ZipFile(path) as file:
                return {"mu.npy", "sigma.npy"} <= set(file.namelist())
        except (OSError, zipfile.BadZipFile):
            return False

    def check(self, extractor: FeatureExtractor, n: int | None = None, data_digest: str | None = None) -> None:
        """Makes sure that these are features of that extractor, so that other features of it can be compared with them.

        What is not known, as in files of others, is not checked.

        Args:
            extractor: The extractor of the other features.
            n: Number of images that there must be, if it matters.
            data_digest: Digest of the images that they must be of, if it matters.

        Raises:
            UserError: If anything differs; it says what.
        """
        here: dict[str, Any] = {"number of features": self.num_features}
        there: dict[str, Any] = {"number of features": extractor.num_features}
        if n is not None and self.n is not None:
            here["number of images"], there["number of images"] = self.n, n
        if (origin := self.provenance) is not None:
            here |= {
                "extractor": origin.extractor,
                "digest of the extractor": origin.extractor_digest,
                "resize": origin.resize,
                "dtype": origin.dtype,
                "data": origin.data_digest,
            }
            there |= {
                "extractor": extractor.name,
                "digest of the extractor": extractor.digest,
                "resize": extractor.resize,
                "dtype": "float32",
                "data": origin.data_digest if data_digest is None else data_digest,
            }
        wrong = [f"{name} {here[name]!r} instead of {there[name]!r}" for name in here if here[name] != there[name]]
        if wrong:
            raise UserError(
                f"the feature statistics {self._where}do not fit: {'; '.join(wrong)}: make them anew, or delete them"
            )
