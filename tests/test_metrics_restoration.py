"""Closeness and uncertainty of restored images: known values, independent computations, exact laws."""

import math

import numpy as np
import pytest
import torch
from checks import Z, assert_mean, generator
from scipy.signal import convolve2d
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_tweedie.errors import UserError
from lightning_tweedie.metrics.restoration import interval_coverage, psnr, ssim
from lightning_tweedie.oracles import GaussianOracle
from lightning_tweedie.sampling import Ancestral, posterior_samples


def test_psnr_of_known_errors() -> None:
    x_0 = torch.zeros(2, 1, 4, 4)
    x = x_0 + torch.tensor([0.2, 0.02]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(psnr(x, x_0), torch.tensor([20.0, 40.0]))


def test_psnr_of_images_is_that_of_the_picture() -> None:
    black = -torch.ones(1, 1, 4, 4)
    assert psnr(black - 3, black).item() == torch.inf
    assert psnr(torch.full((1, 2), -4.0), -torch.ones(1, 2)).item() < 0


# Structural similarity


def soft_images(count: int, channels: int, side: int) -> Tensor:
    """Images in [-1, 1] whose pixels resemble their neighbours."""
    coarse = torch.rand(count, channels, side // 3 + 1, side // 3 + 1, generator=generator())
    return interpolate(coarse, size=side, mode="bilinear") * 2 - 1


def wang(estimate: Tensor, reference: Tensor) -> list[float]:
    """The formula as its authors wrote it down, on 8-bit values, with plain convolutions in float64."""
    d = np.arange(11) - 5
    window = np.exp(-(d[:, None] ** 2 + d[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c_1, c_2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def channel(x: np.ndarray, y: np.ndarray) -> float:
        m_x, m_y, xx, yy, xy = (convolve2d(z, window, mode="valid") for z in (x, y, x * x, y * y, x * y))
        above = (2 * m_x * m_y + c_1) * (2 * (xy - m_x * m_y) + c_2)
        return float((above / ((m_x**2 + m_y**2 + c_1) * (xx - m_x**2 + yy - m_y**2 + c_2))).mean())

    images = [((z.double().clamp(-1, 1) + 1) * 127.5).numpy() for z in (estimate, reference)]
    return [
        float(np.mean([channel(*planes) for planes in zip(*pair, strict=True)])) for pair in zip(*images, strict=True)
    ]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 11, 24)])
def test_ssim_is_that_of_its_authors(channels: int, height: int, width: int) -> None:
    x = soft_images(3, channels, 32)[..., :height, :width]
    y = x + torch.tensor([0.1, 0.4, 2.0]).reshape(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator(1))
    value = ssim(y, x)
    torch.testing.assert_close(value, torch.tensor(wang(y, x)), rtol=1e-6, atol=0)
    assert value[0] > value[1] > value[2]
    assert (ssim(x, x) == 1).all()


def test_ssim_of_flat_images_compares_brightness_alone() -> None:
    # Both variances are 0, so the second factor is 1 and the first is a function of the two values above black.
    a, b = 0.5, -0.25
    x, y = (torch.full((1, 1, 16, 16), v) for v in (a, b))
    a, b, c = a + 1, b + 1, 0.02**2
    assert ssim(x, y).item() == pytest.approx((2 * a * b + c) / (a**2 + b**2 + c), rel=1e-6)


def test_where_torchmetrics_differs() -> None:
    x = soft_images(4, 3, 28)
    y = (x + 0.3 * torch.randn(x.shape, generator=generator(1))).clamp(-1, 1)
    settings = {"data_range": 2.0, "reduction": "none", "return_full_image": True}
    theirs, places = structural_similarity_index_measure(y + 1, x + 1, **settings)
    # Within the border it is the same; its mean includes 5 pixels of mirrored surroundings.
    torch.testing.assert_close(places[..., 5:-5, 5:-5].flatten(1).mean(1), ssim(y, x), rtol=1e-4, atol=0)
    assert ((theirs - ssim(y, x)).abs() > 1e-3).any()
    # Given [-1, 1] as it is, the same images seem far less alike.
    unshifted = structural_similarity_index_measure(y, x, data_range=2.0, reduction="none")
    assert (ssim(y, x) - unshifted > 0.05).all()


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    ssim(torch.zeros(1, 1, 11, 11), torch.zeros(1, 1, 11, 11))
    with pytest.raises(UserError, match="11 x 11 pixels and the images have 10 x 32"):
        ssim(torch.zeros(1, 1, 10, 32), torch.zeros(1, 1, 10, 32))


# Coverage of intervals

LEVELS_19 = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def assert_nominal(draws: Tensor, x_0: Tensor) -> None:
    """Every interval holds the truth as often as it says, within the error of the mean over items."""
    for level, share in interval_coverage(draws, x_0).items():
        assert_mean(share.nan_to_num(level), level)


def test_levels_are_those_between_order_statistics() -> None:
    x = torch.randn(20, 5, 3, generator=generator())
    for count, levels in ((19, LEVELS_19), (8, [7 / 9, 5 / 9, 3 / 9, 1 / 9]), (3, [1 / 2]), (2, [1 / 3]), (1, [])):
        assert list(interval_coverage(x[1 : count + 1], x[0])) == pytest.approx(levels)


def test_by_hand() -> None:
    # Five draws 1 ... 5: two intervals, [1, 5] with 4 of the 6 ranks and [2, 4] with 2 of them.
    draws = torch.arange(1.0, 6).reshape(5, 1, 1).expand(5, 1, 6)
    x_0 = torch.tensor([[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]])
    assert {k: v.item() for k, v in interval_coverage(draws, x_0).items()} == pytest.approx(
        {4 / 6: 4 / 6, 2 / 6: 2 / 6}
    )
    # On a bound, the rank is on either side of it with equal probability.
    for value, outer, inner in ((1.0, 1 / 2, 0), (2.0, 1, 1 / 2), (3.0, 1, 1), (5.0, 1 / 2, 0), (6.0, 0, 0)):
        shares = interval_coverage(draws[..., :1], torch.tensor([[value]]))
        assert [share.item() for share in shares.values()] == [outer, inner]


def posterior_of_gaussian(sigma: float = 0.5, items: int = 1500) -> tuple[Tensor, Tensor]:
    """Exact draws ``(19, B, 6)`` from the posterior under a correlated Gaussian, with their clean items."""
    root = torch.randn(6, 6, generator=generator(), dtype=torch.float64) * 0.3
    cov, eye = root @ root.mT, torch.eye(6, dtype=torch.float64)
    x_0 = torch.randn(items, 6, generator=generator(1), dtype=torch.float64) @ torch.linalg.cholesky(cov).mT
    x_n = x_0 + sigma * torch.randn(items, 6, generator=generator(2), dtype=torch.float64)
    gain = cov @ torch.linalg.inv(cov + sigma**2 * eye)
    spread = torch.linalg.cholesky(cov - gain @ cov)
    noise = torch.randn(19, items, 6, generator=generator(3), dtype=torch.float64)
    return x_n @ gain.mT + noise @ spread.mT, x_0


def test_exact_posterior_has_nominal_coverage_and_others_have_not() -> None:
    draws, x_0 = posterior_of_gaussian()
    assert_nominal(draws, x_0)
    mean = draws.mean(0)
    for wrong in (mean + 0.8 * (draws - mean), draws + 0.5 * draws.std(0)):  # too narrow; in the wrong place
        share = interval_coverage(wrong, x_0)
        for level in (0.9, 0.5):
            assert share[level].mean() + Z * share[level].std() / len(x_0) ** 0.5 < level
        with pytest.raises(AssertionError):
            assert_nominal(wrong, x_0)
    wide = interval_coverage(mean + 1.3 * (draws - mean), x_0)
    for level in (0.9, 0.5):
        assert wide[level].mean() - Z * wide[level].std() / len(x_0) ** 0.5 > level


def test_the_sampler_draws_from_the_posterior_of_a_gaussian() -> None:
    # The whole chain of a restoration: the reverse process with the exact denoiser.
    cov = torch.diag(torch.tensor([0.25, 0.04, 0.01]))
    oracle = GaussianOracle(torch.zeros(3), cov)
    x_0 = oracle.sample(600, generator())
    x_n = x_0 + 0.3 * torch.randn(x_0.shape, generator=generator(1))
    assert_nominal(posterior_samples(oracle, x_n, 0.3, 19, Ancestral(60)), x_0)  # type: ignore[arg-type]


def saturated(draws: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor]:
    """The same as images of which many pixels are black or white."""
    return tuple(4 * z.reshape(*z.shape[:-1], 1, 2, 3) for z in (draws, x_0))  # type: ignore[return-value]


def test_saturated_images_keep_nominal_coverage() -> None:
    draws, x_0 = saturated(*posterior_of_gaussian())
    black_or_white = ((x_0 <= -1) | (x_0 >= 1)).double().mean()
    assert black_or_white > 0.3
    assert_nominal(draws, x_0)
    # Control: to count as inside what lies on a bound would give more than the nominal share.
    d, x = draws.clamp(-1, 1).sort(0).values, x_0.clamp(-1, 1)
    closed = ((x >= d[4]) & (x <= d[-5])).double().flatten(1).mean(1)
    assert closed.mean() - Z * closed.std() / len(x) ** 0.5 > 0.5


def test_pixels_on_which_all_agree_do_not_dilute() -> None:
    draws, x_0 = (0.1 * z for z in saturated(*posterior_of_gaussian()))
    before = interval_coverage(draws, x_0)
    black = -torch.ones(19, len(x_0), 1, 20, 3)
    after = interval_coverage(torch.cat([draws, black], dim=3), torch.cat([x_0, black[0]], dim=2))
    for level, share in before.items():
        torch.testing.assert_close(after[level], share, rtol=1e-6, atol=0)
    # What is invisible, far below one of 256 levels, is no disagreement.
    flicker = 1e-3 * torch.rand(black.shape, generator=generator())
    almost = interval_coverage(torch.cat([draws, black + flicker], dim=3), torch.cat([x_0, black[0]], dim=2))
    assert all(torch.equal(almost[level], share) for level, share in after.items())


def test_what_says_nothing_is_not_a_number() -> None:
    draws, x_0 = torch.randn(5, 3, 4, generator=generator()), torch.randn(3, 4, generator=generator(1))
    draws[2, 0, 1], draws[:, 1], x_0[1] = math.nan, 0.5, 0.5
    for share in interval_coverage(draws, x_0).values():
        assert share.isnan().tolist() == [True, True, False]
