"""Features of samples against those of a reference, by the names of the measures."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.metrics.feature_statistics import FeatureStatistics
from lightning_tweedie.metrics.frechet import frechet_distance
from lightning_tweedie.metrics.kernel import kernel_distance
from lightning_tweedie.metrics.precision_recall import density_coverage, precision_recall

__all__ = ["sample_quality"]


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
