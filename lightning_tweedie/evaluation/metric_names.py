"""Measures of samples by the names that users give them. Imports no torch: the command line looks here first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_tweedie.metrics.features import FeatureExtractor

__all__ = ["METRICS", "PROXIMAL", "key", "keys", "least"]

METRICS = {
    "fid": ("fid",),
    "kid": ("kid",),
    "prc": ("precision", "recall", "density", "coverage"),
    "proximal_fid": ("fid",),
    "proximal_kid": ("kid",),
    "memorisation": (
        "memorised_share",
        "distance_ratio_pixel",
        "distance_ratio_feature",
        "similarity_mean",
        "similarity_above_0.9",
        "similarity_above_0.95",
    ),
}
"""Measures that a user may name, and the values that each has."""

PROXIMAL = ("proximal_fid", "proximal_kid")
"""Those that compare with noisy images; the others compare with clean ones."""

_OF_PIXELS = ("memorised_share", "distance_ratio_pixel")


def least(metrics: Iterable[str]) -> int:
    """Images that they need on either side: the densities of ``prc`` look at five neighbours, others need two."""
    return 6 if "prc" in metrics else 2


def key(metric: str, name: str, extractor: FeatureExtractor) -> str:
    """What logs and tables call a value.

    Args:
        metric: One of :data:`METRICS`.
        name: One of its values.
        extractor: Network of the features. What is measured in pixels alone does not name it.

    Examples:
        >>> from torch import nn
        >>> from lightning_tweedie.metrics.features import FeatureExtractor
        >>> inception = FeatureExtractor(nn.Identity(), "inception", digest="", num_features=2048)
        >>> other = FeatureExtractor(nn.Identity(), "other", digest="", num_features=8)
        >>> [key(metric, "fid", network) for metric in ("fid", "proximal_fid") for network in (inception, other)]
        ['fid', 'fd_other', 'proximal_fid', 'proximal_fd_other']
        >>> [key("memorisation", name, other) for name in ("memorised_share", "similarity_mean")]
        ['memorised_share', 'similarity_mean_other']
    """
    if name in _OF_PIXELS:
        return name
    return f"{'proximal_' if metric in PROXIMAL else ''}{extractor.key(name)}"


def keys(metric: str, extractor: FeatureExtractor) -> list[str]:
    """What logs and tables call the values of a measure."""
    return [key(metric, name, extractor) for name in METRICS[metric]]
