"""The kernel distance between two sets of images (1801.01401), called KID in the Inception network's features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.estimate import Estimate
from lightning_tweedie.randomness import item_generator

__all__ = ["kernel_distance"]

_ROWS = 1000  # features of either set that the standard error is estimated from


def kernel_distance(
    generated: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> Estimate:
    """Squared maximum mean discrepancy under the kernel ``(x y / d + 1)^3`` of 1801.01401, without bias.

    The value is torch-fidelity's, in float64: the mean over random subsets of both sets. Its subsets come from a
    generator of its own, so the number does not change from process to process. Unlike the Frechet distance it is
    right on average at any ``n``; for equal laws it is as often negative as positive.

    The standard error is not the standard deviation over subsets, which is often given in its stead: subsets overlap,
    so that depends on their size and vanishes when they are as large as the sets. It is that of the U-statistic of
    which the value is an approximation, from the first and second order of Hoeffding's decomposition, plus the part
    that the choice of subsets adds.

    Args:
        generated: Features ``(n, d)``.
        reference: Features ``(m, d)``.
        subsets: Number of subsets.
        subset_size: Features in each, lowered to the smaller set if need be.
        seed: Seed of the subsets; 2020 is torch-fidelity's own.

    Returns:
        The squared distance, not a number if a feature is not. The standard error is ``None`` for fewer than five
        items on either side.

    Raises:
        UserError: If either set has fewer than two features, or their lengths differ.
    """
    n, m = len(generated), len(reference)
    if min(n, m) < 2:
        raise UserError(f"a kernel distance needs two images or more on both sides, not {n} and {m}: give more images")
    if generated.shape[1] != reference.shape[1]:
        raise UserError(
            f"features of length {generated.shape[1]} and {reference.shape[1]} cannot be compared: use the same "
            "extractor for both"
        )
    if not (generated.isfinite().all() and reference.isfinite().all()):
        return Estimate(float("nan"), None)
    size = min(subset_size, n, m)
    result = kid_features_to_metric(
        generated.double(),
        reference.double(),
        kid_subsets=1 if size == n == m else subsets,  # else every subset would be the whole set
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    value, deviation = result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]
    if min(n, m) < 5:
        return Estimate(value, None)
    return Estimate(value, (_variance(generated, reference, seed) + deviation**2 / subsets) ** 0.5)


def _variance(generated: Tensor, reference: Tensor, seed: int) -> float:
    """Variance of the U-statistic ``mean k(x, x') + mean k(y, y') - 2 mean k(x, y)`` of all features."""
    n, m = len(generated), len(reference)
    x, y = (_some(features, seed, name) for features, name in ((generated, "generated"), (reference, "reference")))
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    mean_xx, mean_yy = _row_means(xx), _row_means(yy)
    second_xx, second_yy, second_xy = _second_order(xx, mean_xx), _second_order(yy, mean_yy), _second_order_of_two(xy)
    # A mean of the kernel over finitely many partners scatters by the second order too.
    noise_x = second_xx / len(x) + second_xy / len(y)
    noise_y = second_yy / len(y) + second_xy / len(x)
    first_x = (float((mean_xx - xy.mean(1)).var()) - noise_x) / n
    first_y = (float((mean_yy - xy.mean(0)).var()) - noise_y) / m
    second = 2 * second_xx / n**2 + 2 * second_yy / m**2 + 4 * second_xy / (n * m)
    return 4 * max(first_x, 0.0) + 4 * max(first_y, 0.0) + second


def _some(features: Tensor, seed: int, name: str) -> Tensor:
    order = item_generator(seed, f"kernel distance/{name}", 0).permutation(len(features))[:_ROWS]
    return features[torch.from_numpy(order)].double()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT / x.shape[1] + 1) ** 3


def _row_means(kernel: Tensor) -> Tensor:
    """Mean of each row of a square matrix without the diagonal."""
    return (kernel.sum(1) - kernel.diagonal()) / (len(kernel) - 1)


def _second_order(kernel: Tensor, means: Tensor) -> float:
    """Variance of what a sum over row and column does not explain, off the diagonal of a symmetric matrix."""
    n = len(kernel)
    # Least squares without a diagonal: the row means hold part of each other's effects.
    effects = (means - means.mean()) * (n - 1) / (n - 2)
    rest = kernel - means.mean() - effects[:, None] - effects
    return float((rest.square().sum() - rest.diagonal().square().sum()) / (n * (n - 3)))


def _second_order_of_two(kernel: Tensor) -> float:
    """The same for a matrix between two sets."""
    rest = kernel - kernel.mean(1, keepdim=True) - kernel.mean(0) + kernel.mean()
    return float(rest.square().sum() / ((kernel.shape[0] - 1) * (kernel.shape[1] - 1)))
