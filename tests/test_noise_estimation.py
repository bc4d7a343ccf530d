"""The level of unknown noise is found on real photos, and faults of the noise are found where there are some."""

import math
from collections.abc import Callable

import pytest
import torch
from checks import Z, generator
from photos import photos
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_tweedie.data.digits import read_digits
from lightning_tweedie.errors import UserError
from lightning_tweedie.inspection.findings import Findings, examine
from lightning_tweedie.inspection.survey import Survey
from lightning_tweedie.noise.assumptions import whiteness
from lightning_tweedie.noise.estimation import HIGH, estimate_noise, estimate_of_set, measurable
from lightning_tweedie.noise.patches import Patches, take_patches

SIGMA = 25 / 127.5


@pytest.fixture(scope="module")
def clean() -> Tensor:
    return photos()


def noise(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(like.shape, generator=generator(seed))


def patches_of(images: Tensor) -> Patches:
    return take_patches(images, len(images))


@pytest.mark.parametrize("level", [5, 10, 25, 50])
def test_the_level_of_noise_on_photos(clean: Tensor, level: float) -> None:
    sigma = level / 127.5
    patches = patches_of(clean + sigma * noise(clean))
    estimate = estimate_noise(patches)
    assert estimate.sigma == pytest.approx(sigma, rel=0.05)
    assert abs(estimate.sigma - sigma) < Z * estimate.standard_error
    # Without the choice of flat patches, what is in the photos is taken for noise.
    everything = math.sqrt(float(patches.energies[:, HIGH].mean(0).median()))
    assert level > 10 or everything > 1.05 * sigma


def test_values_cut_off_at_the_ends_are_left_out(clean: Tensor) -> None:
    stored = ((clean + SIGMA * noise(clean)) * 127.5).round().clamp(-127, 128) / 127.5
    patches = patches_of(stored)
    assert estimate_noise(patches).sigma == pytest.approx(SIGMA, rel=0.05)
    # Black is flat as nothing else is, and has half of its noise: whoever takes it is far off.
    assert len(measurable(patches)) < len(patches)
    black = patches[patches.means[:, 0] < -1 + SIGMA]
    assert math.sqrt(float(black.energies[:, HIGH].mean(0).median())) < 0.8 * SIGMA


def test_flat_images_and_small_ones() -> None:
    digits = torch.as_tensor(read_digits())[:200].float() / 127.5 - 1
    estimate = estimate_noise(patches_of(digits + SIGMA * noise(digits)))
    assert estimate.sigma == pytest.approx(SIGMA, rel=0.05)
    assert estimate.whole == 1
    # Digits are black and white: after clipping no noise is whole, and that is told.
    cut = estimate_noise(patches_of((digits + SIGMA * noise(digits)).clamp(-1, 1)))
    assert cut.whole == 0
    assert cut.sigma < 0.8 * SIGMA


def test_the_standard_error_is_the_spread() -> None:
    """Of sets of images that are nothing but a gradient and noise."""
    ramp = torch.linspace(-0.5, 0.5, 32).expand(12, 1, 32, 32)
    estimates = [estimate_noise(patches_of(ramp + 0.2 * noise(ramp, seed)), seed) for seed in range(40)]
    off = torch.tensor([(e.sigma - 0.2) / e.standard_error for e in estimates])
    # The standard deviation of 40 draws has a relative error of 11 %; the errors themselves scatter as well.
    assert 0.5 < off.square().mean().sqrt() < 1.7


def test_single_images(clean: Tensor) -> None:
    levels = torch.linspace(0.1, 0.4, len(clean))
    estimate = estimate_noise(patches_of(clean + levels[:, None, None, None] * noise(clean)))
    ratio = estimate.per_image / levels
    assert 0.95 < ratio.median() < 1.05
    assert (ratio < 1.2).float().mean() > 0.9


def test_the_estimate_is_a_function_of_images_and_seed(clean: Tensor) -> None:
    noisy = clean + SIGMA * noise(clean)
    before = torch.get_rng_state()
    one, two = estimate_of_set(noisy), estimate_of_set(noisy)
    assert (one.sigma, one.standard_error) == (two.sigma, two.standard_error)
    assert torch.equal(one.per_image, two.per_image)
    assert torch.equal(before, torch.get_rng_state())


def test_what_has_no_noise_to_estimate() -> None:
    with pytest.raises(UserError, match="at least 8 x 8 pixels.*\\(1, 7, 9\\)"):
        estimate_of_set(torch.zeros(3, 1, 7, 9))
    with pytest.raises(UserError, match="all flat"):
        estimate_of_set(torch.ones(3, 1, 16, 16))


def blurred(z: Tensor, width: float) -> Tensor:
    """Noise of unit variance after a Gaussian blur."""
    kernel = torch.exp(-torch.arange(-3, 4.0).square() / 2 / width**2)
    kernel = kernel[:, None] * kernel
    kernel /= kernel.square().sum().sqrt()
    return F.conv2d(z, kernel[None, None], padding=3)


def test_the_autocorrelation_of_a_blur(clean: Tensor) -> None:
    """Known exactly, and so is that of averaged neighbours; white noise has none, whatever the photo."""
    flat = 0.2 * torch.linspace(-1, 1, 64).expand(60, 1, 64, 64)
    z = noise(flat)
    found = whiteness(patches_of(flat + SIGMA * blurred(z, 1.0)))
    assert found.fault
    assert found.autocorrelation[0] == pytest.approx([math.exp(-0.25 * lag**2) for lag in (1, 2, 3)], abs=0.12)
    assert found.sigma == pytest.approx(SIGMA, rel=0.1)
    pairs = whiteness(patches_of(flat + SIGMA * (z + z.roll(1, 3)) / 2**0.5))
    assert pairs.autocorrelation[0] == pytest.approx([0.5, 0, 0], abs=0.06)
    assert pairs.autocorrelation[1] == pytest.approx([0, 0, 0], abs=0.06)
    white = whiteness(patches_of(clean + SIGMA * noise(clean)))
    assert not white.fault
    assert max(abs(rho) for line in white.autocorrelation for rho in line) < 0.05


def test_few_images_of_white_noise_are_not_called_correlated() -> None:
    for seed in range(20):
        found = whiteness(patches_of(torch.randn(4, 1, 40, 40, generator=torch.Generator().manual_seed(seed))))
        assert not found.fault
        # About what the 64 flattest patches, which overlap by half, can tell.
        assert 0.015 < found.standard_error[0] < 0.06


def rounded(images: Tensor) -> Tensor:
    return (images * 127.5).round() / 127.5


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "white": (lambda x: x + SIGMA * noise(x), []),
    "white, strong": (lambda x: x + 4 * SIGMA * noise(x), []),
    "white, weak": (lambda x: x + SIGMA / 5 * noise(x), []),
    "white, in 8 bits of a wider range": (lambda x: rounded(0.3 * x + SIGMA * noise(x)), []),
    "blurred a little": (lambda x: x + SIGMA * blurred(noise(x), 0.5), ["correlated"]),
    "blurred": (lambda x: x + SIGMA * blurred(noise(x), 1.0), ["correlated"]),
    "averaged along rows": (lambda x: x + SIGMA * (noise(x) + noise(x).roll(1, 3)) / 2**0.5, ["correlated"]),
    "enlarged": (lambda x: x + SIGMA * F.interpolate(noise(x[..., ::2, ::2]), scale_factor=2), ["correlated"]),
    "Poisson": (lambda x: x + SIGMA * ((x + 1.1) / 1.1).sqrt() * noise(x), ["signal_dependent"]),
    "stronger in the dark": (lambda x: x + SIGMA * (1.6 - x).sqrt() * noise(x), ["signal_dependent"]),
    "cut off": (lambda x: (x + SIGMA * noise(x)).clamp(-1, 1), ["clipped"]),
    "cut off below": (lambda x: (x + SIGMA * noise(x)).clamp(min=-1), ["clipped"]),
    "8 bits": (lambda x: rounded(x + SIGMA * noise(x)).clamp(-1, 1), ["clipped"]),
    "rounded": (lambda x: rounded(0.8 * x + 0.5 / 127.5 * noise(x)), ["quantised"]),
    "rounded coarsely": (lambda x: (8 * (0.7 * x + 0.05 * noise(x))).round() / 8, ["quantised"]),
}


def found_in(images: Tensor) -> Findings:
    found = Survey(root=None, count=len(images), channels=images.shape[1])  # type: ignore[arg-type]
    found.kinds["float32"], found.low, found.high = len(images), float(images.min()), float(images.max())
    found.patches = patches_of(images)
    return examine(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_warning_and_no_other(clean: Tensor, kind: str) -> None:
    make, expected = KINDS[kind]
    findings = found_in(make(clean))
    assert [warning.kind for warning in findings.warnings] == expected
    if expected in ([], ["correlated"], ["clipped"]):
        sigma = {"white, strong": 4 * SIGMA, "white, weak": SIGMA / 5}.get(kind, SIGMA)
        assert findings.sigma == pytest.approx(sigma, rel=0.15 if expected == ["correlated"] else 0.05)


@pytest.mark.parametrize("kind", ["white", "one noise for all channels"])
def test_noise_that_channels_share(clean: Tensor, kind: str) -> None:
    colour = clean.expand(-1, 3, -1, -1)
    z = noise(colour if kind == "white" else clean)
    findings = found_in(colour + SIGMA * z)
    assert [warning.kind for warning in findings.warnings] == ([] if kind == "white" else ["channels_correlated"])
