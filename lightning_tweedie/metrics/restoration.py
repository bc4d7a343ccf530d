"""How close restored images are to the clean ones, and whether their uncertainty is what it claims to be."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tweedie.errors import UserError
from lightning_tweedie.pictures import to_uint8

__all__ = ["SSIM_WINDOW", "interval_coverage", "psnr", "ssim"]

SSIM_WINDOW = 11
"""Side of the window of :func:`ssim` in pixels: the smallest image that it can compare."""


def psnr(estimate: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``10 log10(2^2 / MSE)`` of each item, in decibels.

    The peak is 2, the width of [-1, 1]. Estimates that are images are clamped to that range first, as they are when
    they are shown or stored, so a number speaks of the picture beside it. This favours the noisy input most: without
    it, at noise level ``sigma_n``, that would have ``20 log10(2 / sigma_n)`` dB.

    Args:
        estimate: Restored items ``(B, *shape)``; images are ``(B, C, H, W)``.
        reference: The clean items ``(B, *shape)`` in [-1, 1].

    Returns:
        One value per item ``(B,)``, ``inf`` where the two are equal.
    """
    estimate = estimate.float().clamp(-1, 1) if estimate.ndim == 4 else estimate.float()
    error = (estimate - reference.float()).square().flatten(1).mean(1)
    return 10 * (4 / error).log10()


def ssim(estimate: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each image, at most 1, which equal images have.

    The index of Wang et al. (2004, doi:10.1109/TIP.2003.819861, equation 13) with their settings: a Gaussian window of
    11 x 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, the mean over all places where the window lies
    inside the image, and over the channels. Estimates are clamped to [-1, 1], as for :func:`psnr`.

    These are the numbers of the authors' program, and of scikit-image with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False``. The mean of torchmetrics (1.9) covers the border too, where it fills the window up
    with mirrored pixels; and given images in [-1, 1] as they are, it takes mid-grey for black.

    Args:
        estimate: Restored images ``(B, C, H, W)``.
        reference: The clean images ``(B, C, H, W)`` in [-1, 1].

    Returns:
        One value per image ``(B,)``, float32.

    Raises:
        UserError: The images are smaller than the window.
    """
    if min(estimate.shape[-2:]) < SSIM_WINDOW:
        raise UserError(
            f"SSIM compares windows of {SSIM_WINDOW} x {SSIM_WINDOW} pixels and the images have "
            f"{estimate.shape[-2]} x {estimate.shape[-1]}: leave it out for images as small as these"
        )
    # Its term for brightness is a ratio of means, which has a meaning only if black is 0: [0, 2], not [-1, 1]. Its
    # variances are differences of like numbers, hence float64.
    x, y = estimate.double().clamp(-1, 1) + 1, reference.double() + 1
    mean_x, mean_y = _window_means(x), _window_means(y)
    variances = _window_means(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _window_means(x * y) - mean_x * mean_y
    c_1, c_2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    brightness = (2 * mean_x * mean_y + c_1) / (mean_x**2 + mean_y**2 + c_1)
    structure = (2 * covariance + c_2) / (variances + c_2)
    return (brightness * structure).flatten(1).mean(1).float()


def _window_means(images: Tensor) -> Tensor:
    """Means of ``(B, C, H, W)`` in every window inside, ``(B, C, H - 10, W - 10)``."""
    distance = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = (-(distance**2) / (2 * 1.5**2)).exp()
    weights = weights / weights.sum()

    def band(length: int) -> Tensor:
        """A matrix whose rows hold the weights, each one place further on."""
        rows = images.new_zeros(length - SSIM_WINDOW + 1, length)
        for start, row in enumerate(rows):
            row[start : start + SSIM_WINDOW] = weights
        return rows

    # The window is a product, and a product of matrices is many times faster than a convolution in float64.
    return band(images.shape[-2]) @ images @ band(images.shape[-1]).mT


def interval_coverage(draws: Tensor, x_0: Tensor) -> dict[float, Tensor]:
    """How often intervals made of posterior draws hold the truth, pixel by pixel.

    If the draws come from the true posterior, then they and the clean value are ``K + 1`` draws of one law, and the
    rank of the clean value among them is uniform on ``0 ... K``. So the interval from the ``j``-th smallest to the
    ``j``-th largest draw holds it with probability exactly ``(K + 1 - 2 j) / (K + 1)``, for every ``j`` up to ``K / 2``
    and every law: 19 draws make exact intervals of 90, 80, ..., 10 %. Too low a share says that the draws are too
    much alike or in the wrong place, too high a share that they differ too much.

    Images are compared as they are stored, clamped and rounded to 8 bits: a thousandth above black is black. Equal
    values then are common, above all in black or white regions, and two things keep the statement exact:

    * a clean value that is tied with draws has each of the ranks in question with equal probability, and counts with
      the share of these that are inside (simply counting what lies on a bound as inside would give too much, in
      saturated regions nearly always 1);
    * pixels at which all draws and the clean image agree say nothing about uncertainty and are left out. (Which they
      are does not depend on which of the ``K + 1`` is the clean one.)

    Args:
        draws: Posterior draws ``(K, B, *shape)``, independent given the noisy items; images are ``(K, B, C, H, W)``.
        x_0: The clean items ``(B, *shape)``, images in [-1, 1].

    Returns:
        For each nominal level, from high to low, the share of each item's pixels inside, ``(B,)`` float32; NaN for an
        item that is not finite or has no pixel to say something. Empty for fewer than 2 draws.
    """
    finite = x_0.isfinite().flatten(1).all(1) & draws.isfinite().flatten(2).all(2).all(0)
    if x_0.ndim == 4:
        draws, x_0 = to_uint8(draws), to_uint8(x_0)
    count = len(draws)
    low = (draws < x_0).sum(0).flatten(1)
    ties = (draws == x_0).sum(0).flatten(1)
    telling = (ties < count) & finite[:, None]
    shares = {}
    for j in range(1, count // 2 + 1):
        # Of the ranks low ... low + ties, those within j ... count - j.
        inside = ((low + ties).clamp(max=count - j) - low.clamp(min=j) + 1).clamp(min=0) / (ties + 1)
        shares[(count + 1 - 2 * j) / (count + 1)] = (inside * telling).sum(1) / telling.sum(1)
    return shares
