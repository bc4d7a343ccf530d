"""What the images say about their noise, and what should be done about it, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_tweedie.inspection.survey import CROP, Survey
from lightning_tweedie.noise.assumptions import (
    ChannelCorrelation,
    Clipping,
    Quantisation,
    SignalDependence,
    Whiteness,
    channel_correlation,
    clipping,
    quantisation,
    signal_dependence,
    whiteness,
)
from lightning_tweedie.noise.estimation import NoiseEstimate, estimate_noise, measurable

__all__ = ["Findings", "Concern", "examine"]

#: Where less than this share of the patches has its noise whole, its shape is not judged.
_FEW_WHOLE = 0.15


@dataclass(frozen=True)
class Concern:
    """Something that training would suffer from.

    Attributes:
        kind: ``unreadable``, ``scale``, ``sizes``, ``clipped``, ``quantised``, ``correlated``, ``signal_dependent`` or
            ``channels_correlated``.
        text: What is wrong, with figures.
        remedy: What to do.
    """

    kind: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Findings:
    """The noise of a set of images.

    Attributes:
        sigma: Standard deviation of the noise in a pixel, in the unit of the survey; where the variance differs,
            the root of its mean.
        estimate: The estimate for white noise, with its uncertainty.
        standard_error: Of ``sigma``.
        per_image: Sigma of each image, ``(I,)``.
        whiteness: None where it could not be tested, as the next two.
        signal: How the variance depends on the brightness.
        channels: None also where there is one channel.
        clipping: What was cut off at the ends of the range.
        quantisation: What was rounded.
        warnings: The most harmful first.
    """

    sigma: float
    estimate: NoiseEstimate
    standard_error: float
    per_image: Tensor
    whiteness: Whiteness | None
    signal: SignalDependence | None
    channels: ChannelCorrelation | None
    clipping: Clipping
    quantisation: Quantisation
    warnings: list[Concern]


def examine(found: Survey, seed: int = 0) -> Findings:
    """Estimates the noise and tests whether it is what training takes it for.

    A fault that hides others comes first: of rounded noise neither the spectrum nor the variance is told, nor of noise
    that is cut off nearly everywhere; of correlated noise no variance.

    Args:
        found: The images.
        seed: Decides the resamples of the standard errors.

    Raises:
        UserError: All images are constant.
    """
    estimate = estimate_noise(found.patches, seed)
    cut, rounded = clipping(found.patches), quantisation(found.patches, estimate.sigma)
    white = signal = channels = None
    if not rounded.fault and not (cut.fault and estimate.whole < _FEW_WHOLE):
        patches = measurable(found.patches)
        white = whiteness(patches, seed)
        channels = channel_correlation(patches, seed)
        signal = None if white.fault else signal_dependence(patches, seed)
    sigma, scale = estimate.sigma, 1.0
    if white is not None and white.sigma is not None:
        sigma, scale = white.sigma, white.sigma / max(sigma, 1e-12)
    elif signal is not None and signal.fault:
        sigma = (sum(signal.variances) / len(signal.variances)) ** 0.5
    findings = Findings(
        sigma,
        estimate,
        scale * estimate.standard_error,
        scale * estimate.per_image,
        *(white, signal, channels, cut, rounded),
        warnings=[],
    )
    findings.warnings.extend(_about_files(found))
    findings.warnings.extend(_about_noise(findings))
    return findings


def _about_files(found: Survey) -> list[Concern]:
    warnings = []
    if found.unreadable:
        first, count = next(iter(found.unreadable)), len(found.unreadable)
        more = f" and {count - 1} more, all listed below," if count > 1 else ""
        text = f"{first}{more} cannot be read, and training refuses a set with such files."
        warnings.append(Concern("unreadable", text, "Mend them or move them elsewhere."))
    if not found.scaled:
        text = f"The values run from {found.low:.4g} to {found.high:.4g}, which is not the scale of [-1, 1]."
        remedy = (
            "The suggested configuration takes sigma in their own units (data.sigma_units) and measures their range; "
            "data.range says it exactly: [0, 1], or what it is."
        )
        warnings.append(Concern("scale", text, remedy))
    small = sum(count for size, count in found.sizes.items() if min(size) < CROP)
    if 0 < small < found.count / 2:
        height, width = found.smallest
        text = (
            f"{small} of {found.count} images have fewer than {CROP} x {CROP} pixels, the least of them {height} or "
            f"{width} in one direction, and a network sees parts that fit into all."
        )
        warnings.append(Concern("sizes", text, "Move them elsewhere, or the network will be short-sighted."))
    return warnings


def _about_noise(findings: Findings) -> list[Concern]:
    warnings = []
    sigma, cut, rounded = findings.sigma, findings.clipping, findings.quantisation
    if cut.fault:
        ends = [f"{100 * s:.2g} % of the values at the {n} end" for n, s in _ends(cut) if s]
        text = f"The noise is cut off at the ends of the range: {' and '.join(ends)} ({cut.low:.3g}, {cut.high:.3g})."
        if not findings.estimate.whole:
            text += f" It is whole nowhere, so that sigma, {sigma:.3g}, is too small, perhaps by half."
        remedy = (
            "Keep what lies beyond the ends: store floats, and do not cut negative values off when a background is "
            "subtracted. Trained on these images, the model is biased near the ends, and nowhere else."
        )
        warnings.append(Concern("clipped", text, remedy))
    if rounded.fault:
        text = (
            f"The values are rounded to steps of {rounded.step:.3g}, which is coarse beside the noise, {sigma:.3g}: "
            f"{100 * rounded.share:.0f} % of its variance is rounding, which is not Gaussian and depends on the image. "
            "Whether the noise is white cannot be told."
        )
        remedy = "Store more bits (16, or floats), from before the rounding. There may be little noise to remove."
        warnings.append(Concern("quantised", text, remedy))
    white = findings.whiteness
    if white is not None and white.fault:
        rows, columns = (", ".join(f"{rho:.2f}" for rho in line) for line in white.autocorrelation)
        text = (
            f"The noise is correlated over {white.reach} pixel{'s' if white.reach > 1 else ''}: its autocorrelation at "
            f"lags 1, 2, 3 is {rows} along rows and {columns} along columns. Training takes it for white, and would "
            "keep its coarse part as if it were image."
        )
        remedy = (
            "Use the images as they were before the step that did this: resizing, rotation, demosaicing, compression. "
            f"Else measure its autocovariance where the images are blank, and train with data.correlation; or bin "
            f"{white.reach + 1} x {white.reach + 1} pixels into one."
        )
        warnings.append(Concern("correlated", text, remedy))
    signal = findings.signal
    if signal is not None and signal.fault:
        low, high = signal.variances[0] ** 0.5, signal.variances[-1] ** 0.5
        grows = "grows" if signal.slope > 0 else "falls"
        text = (
            f"The variance of the noise {grows} with the mean: sigma is {low:.3g} where images are dark "
            f"({signal.means[0]:.2f}) and {high:.3g} where they are bright ({signal.means[-1]:.2f}); the slope of the "
            f"variance is {signal.slope:.3g} +- {signal.standard_error:.1g}."
        )
        remedy = (
            "Make it even before training: of counts n take 2 sqrt(n + 3/8), in general the square root of the line's "
            "variance, integrated. Or give each pixel its level: in data.sigma the folder of maps, one for each image, "
            f"whose squares are {signal.intercept:.3g} + {signal.slope:.3g} x, where x is the image, smoothed."
        )
        warnings.append(Concern("signal_dependent", text, remedy))
    channels = findings.channels
    if channels is not None and channels.fault:
        text = f"The noise is correlated between channels ({channels.told}). Training takes it for independent."
        remedy = "Use the images as they were before colours were mixed, or one channel."
        warnings.append(Concern("channels_correlated", text, remedy))
    return warnings


def _ends(cut: Clipping) -> list[tuple[str, float]]:
    return [("lower", cut.at_low), ("upper", cut.at_high)]
