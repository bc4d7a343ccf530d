"""Measures of sample quality by the names that users give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tweedie.data.noisy import NoisyDataset
from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.features import FeatureExtractor
from lightning_tweedie.metrics.frechet import frechet_distance
from lightning_tweedie.metrics.kernel import kernel_distance
from lightning_tweedie.metrics.precision_recall import density_coverage, precision_recall
from lightning_tweedie.randomness import item_noise
from lightning_tweedie.tweedie import expand

__all__ = ["METRICS", "NoisyView", "key", "renoise", "sample_quality"]

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


def key(metric: str, name: str, extractor: FeatureExtractor) -> str:
    """What logs and tables call a value.

    Args:
        metric: One of :data:`METRICS`.
        name: One of its values.
        extractor: Network of the features.

    Examples:
        >>> inception = FeatureExtractor(torch.nn.Identity(), "inception", digest="", num_features=2048)
        >>> other = FeatureExtractor(torch.nn.Identity(), "other", digest="", num_features=8)
        >>> [key(metric, "fid", network) for metric in ("fid", "proximal_fid") for network in (inception, other)]
        ['fid', 'fd_other', 'proximal_fid', 'proximal_fd_other']
    """
    if metric == "memorisation":
        return name
    return f"{'proximal_' if metric.startswith('proximal_') else ''}{extractor.key(name)}"


def sample_quality(
    generated: FeatureStatistics, reference: FeatureStatistics, metrics: Sequence[str]
) -> dict[str, Estimate]:
    """Compares the features of samples with those of a reference.

    Args:
        generated: Features of the samples.
        reference: Features of the reference images, of the same extractor.
        metrics: Any of ``fid``, ``kid``, ``prc``.

    Returns:
        ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage``, as far as asked for. Their names with
        the extractor are ``FeatureExtractor.key(name)``.

    Raises:
        UserError: Measures other than ``fid`` are asked for of statistics without features, or there are too few
            images.
    """
    results: dict[str, Estimate] = {}
    for metric in metrics:
        if metric == "fid":
            results["fid"] = frechet_distance(generated, reference)
            continue
        if metric not in ("kid", "prc"):
            raise ValueError(f"{metric!r} is none of fid, kid, prc")
        if generated.features is None or reference.features is None:
            raise UserError(
                f"metrics = {metric} compares single features, and the stored statistics hold only their mean and "
                "covariance: give the images, or ask for fid alone"
            )
        if metric == "kid":
            results["kid"] = kernel_distance(generated.features, reference.features)
        else:
            results |= precision_recall(generated, reference)
            results |= density_coverage(generated, reference)
    return results


def renoise(images: Tensor, sigma_n: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
    """Puts noise into samples, so that they can be compared with noisy data: proximal measures need no clean image.

    The noise of a sample depends on the seed and its number alone.

    Args:
        images: Samples ``(B, *shape)``.
        sigma_n: Level of each, ``(B,)``, or ``(B, *shape)`` where it differs from pixel to pixel, ``>= 0``.
        seed: The user's seed.
        indices: Number of each sample, length ``B``.

    Returns:
        ``images + sigma_n z`` with ``z ~ N(0, I)``, ``(B, *shape)`` float32. It is not clipped.
    """
    z = torch.stack([item_noise(seed, "proximal", int(i), images.shape[1:]) for i in indices])
    return images + expand(sigma_n, images) * z.to(images)


class NoisyView(Dataset[Tensor]):
    """The noisy items alone, ``(*shape)``, without their levels and numbers.

    Args:
        noisy: What ``noisy_set()`` of a data module gives back.
    """

    def __init__(self, noisy: NoisyDataset) -> None:
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> Tensor:
        """One noisy item."""
        return self.noisy[index].x_n

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """Several at once, which is quicker for data in memory."""
        return list(self.noisy.__getitems__(indices).x_n.unbind())

    def levels(self, indices: Sequence[int]) -> Tensor:
        """Noise level of each of these items, ``(B,)`` or ``(B, *shape)``."""
        return self.noisy.__getitems__(indices).sigma_n
