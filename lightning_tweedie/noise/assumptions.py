"""Is the noise what training takes it for: white, of one level, neither cut off nor rounded?

Each test measures how far the noise is from that, with a standard error where chance has a part, and finds a fault only
where the distance is both certain and large enough to matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lightning_tweedie.noise.estimation import HIGH, LOW, OVERLAP, bootstrap, flatness, quietest
from lightning_tweedie.noise.patches import SIDE, Patches, cosine_basis
from lightning_tweedie.randomness import item_generator

__all__ = [
    "LAGS",
    "ChannelCorrelation",
    "Clipping",
    "Quantisation",
    "SignalDependence",
    "Whiteness",
    "channel_correlation",
    "clipping",
    "quantisation",
    "signal_dependence",
    "whiteness",
]

LAGS = 3
"""Autocorrelation is told at lags 1 to this one."""

#: Standard errors from which on a departure is certain.
_CERTAIN = 4.0
#: Of white noise, by which the scatter of its own autocorrelation is known to a tenth.
_DRAWS = 50
#: What is less does no harm worth a word: autocorrelation at lag 1; correlation between channels; change of the
#: variance over the range of the data; share of the values at an end; share of the variance that is due to rounding.
_CORRELATED, _SHARED, _CHANGES, _CUT, _ROUNDED = 0.08, 0.1, 0.25, 0.005, 0.05
#: Noise is said to be correlated as far as its autocorrelation is more than this.
_REACHES = 0.1
#: Bins of brightness, and the fewest that make a curve. In white noise the ratio of the energies in low and high
#: frequencies is the same in all; where it is that much larger, the image has a part in it.
_BINS, _FEWEST_BINS, _TEXTURED = 8, 3, 1.5

_EVEN = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2 == 0
#: Two halves of all frequencies, each spread over the whole spectrum.
_HALVES = (_EVEN, ~_EVEN)
_CONSTANT = torch.zeros(SIDE, SIDE, dtype=torch.bool)
_CONSTANT[0, 0] = True


@dataclass(frozen=True)
class Whiteness:
    """Whether the noise is independent between pixels.

    Attributes:
        autocorrelation: At lags 1, 2, 3 along rows, and along columns.
        standard_error: Of those at lag 1, along rows and along columns.
        sigma: Standard deviation of the noise in a pixel, if it is correlated.
        reach: The largest lag at which the correlation is more than a tenth; 0 if the noise is white.
        fault: Whether it is correlated.
    """

    autocorrelation: tuple[tuple[float, ...], tuple[float, ...]]
    standard_error: tuple[float, float]
    sigma: float | None
    reach: int
    fault: bool


def whiteness(patches: Patches, seed: int = 0) -> Whiteness:
    """Tests whether the noise is white.

    The verdict comes from high frequencies alone: white noise has the same power in all of them, and what has passed
    through a blur, an interpolation or a compression has less in the highest. In low frequencies images are never
    quite absent. Of noise that is found to be correlated, the autocorrelation is that of all frequencies.

    Args:
        patches: Of all images, see :func:`lightning_tweedie.noise.estimation.measurable`.
        seed: Decides the resamples of the standard error.
    """
    order = flatness(patches)

    def lag_one(weights: Tensor | None) -> Tensor:
        chosen, shares = quietest(order, weights)
        power = (shares[:, None, None] * patches.energies[chosen].double()).sum(0)
        return _autocorrelation(_smooth(power))[:, 0]

    # Few images may be alike by accident.
    error = bootstrap(patches, lag_one, seed).clamp(min=_scatter(len(quietest(order)[0]), patches, seed))
    found = lag_one(None)
    fault = bool(((found.abs() > _CORRELATED) & (found.abs() > _CERTAIN * error)).any())
    if fault:
        power = _spectrum(patches)
        rho, sigma = _autocorrelation(power), math.sqrt(float(power.mean()))
        beyond = (rho.abs() > _REACHES).any(0).nonzero()
        reach = 1 + int(beyond.max()) if len(beyond) else 1
    else:
        chosen, _ = quietest(order)
        rho, sigma, reach = _autocorrelation(_smooth(patches.energies[chosen].double().mean(0))), None, 0
    rows, columns = (tuple(line) for line in rho.tolist())
    return Whiteness((rows, columns), (float(error[0]), float(error[1])), sigma, reach, fault)


def _scatter(count: int, patches: Patches, seed: int) -> float:
    """Standard error of the autocorrelation at lag 1 in so many patches of white noise."""
    freedom = max(1.0, OVERLAP * count * patches.coefficients.shape[1])
    draw = item_generator(seed, "noise/whiteness", 0)
    powers = torch.from_numpy(draw.chisquare(freedom, (_DRAWS, SIDE, SIDE)))
    return float(torch.stack([_autocorrelation(_smooth(power))[:, 0] for power in powers]).std())


def _smooth(power: Tensor) -> Tensor:
    """A Gaussian in both frequencies, fitted to the high ones of a power spectrum, on all of them."""
    squares = (torch.arange(SIDE, dtype=torch.float64) / SIDE).square()
    columns, rows = squares[:, None].expand(SIDE, SIDE), squares.expand(SIDE, SIDE)
    design = torch.stack([torch.ones_like(rows), rows, columns], dim=-1)
    tiny = torch.finfo(torch.float64).tiny
    return (design @ torch.linalg.lstsq(design[HIGH], power[HIGH].clamp(min=tiny).log()[:, None]).solution)[
        ..., 0
    ].exp()


def _spectrum(patches: Patches) -> Tensor:
    """Power of the noise in all frequencies, ``(8, 8)``: each half is measured where the other holds least energy."""
    power = torch.empty(SIDE, SIDE, dtype=torch.float64)
    for mine, other in (_HALVES, _HALVES[::-1]):
        chosen, _ = quietest(patches.energies[:, other & ~_CONSTANT].mean(1).argsort(stable=True))
        power[mine] = patches.energies[chosen][:, mine].double().mean(0)
    power[0, 0] = (power[0, 1] + power[1, 0]) / 2  # there the image itself is
    return power


def _autocorrelation(power: Tensor) -> Tensor:
    """At lags 1 to 3 along rows and along columns, ``(2, 3)``, of noise with this power in each frequency."""
    basis, lines = cosine_basis(), []
    for along in (power.mean(0), power.mean(1)):
        covariance = basis.T @ (along[:, None] * basis)
        at = torch.stack([covariance.diagonal(lag).mean() for lag in range(LAGS + 1)])
        lines.append(at[1:] / at[0])
    return torch.stack(lines)


@dataclass(frozen=True)
class SignalDependence:
    """Whether the variance of the noise depends on the brightness.

    Attributes:
        means: Brightness in the middle of each bin.
        variances: Of the noise there.
        intercept: Of the straight line through them.
        slope: Of that line, on the scale of the data: of Poisson noise the value of one count.
        standard_error: Of the slope.
        change: Growth of the variance along the line, from the first bin to the last, relative to its mean.
        fault: Whether it depends.
    """

    means: tuple[float, ...]
    variances: tuple[float, ...]
    intercept: float
    slope: float
    standard_error: float
    change: float
    fault: bool


def signal_dependence(patches: Patches, seed: int = 0) -> SignalDependence | None:
    """Tests whether the variance of the noise depends on the brightness.

    The patches are put into eight bins of equal numbers by their brightness. Bins without flat patches, which would
    show the variance of a texture, are left out: those whose low frequencies hold more, relative to the high ones.

    Args:
        patches: Of all images, see :func:`lightning_tweedie.noise.estimation.measurable`. Each channel counts.
        seed: Decides the resamples of the standard error.

    Returns:
        The answer; None if fewer than three bins have flat patches.
    """
    energy = patches.coefficients.square().flatten(0, 1)
    low, high = energy[:, LOW].mean(1), energy[:, HIGH].double()
    means = patches.means.flatten()
    channels = patches.coefficients.shape[1]
    # In each bin the flattest patches first.
    bins = [rows[low[rows].argsort(stable=True)] for rows in means.argsort(stable=True).tensor_split(_BINS)]

    def point(order: Tensor, weights: Tensor | None = None) -> Tensor:
        chosen, shares = quietest(order, weights)
        median = (shares[:, None] * high[chosen]).sum(0).median()
        return torch.stack([(shares * means[chosen]).sum(), median, (shares * low[chosen]).sum()])

    points = torch.stack([point(order) for order in bins if len(order)])
    texture = points[:, 2] / points[:, 1]
    flat = texture <= _TEXTURED * texture.min()
    x, y = points[flat, 0], points[flat, 1]
    if len(x) < _FEWEST_BINS:
        return None
    bins = [order for order, good in zip(bins, flat.tolist(), strict=False) if good]

    def line(weights: Tensor | None) -> Tensor:
        each = None if weights is None else weights.repeat_interleave(channels)
        there = [order for order in bins if each is None or bool(each[order].any())]
        at = torch.stack([point(order, each) for order in there])
        design = torch.stack([torch.ones_like(at[:, 0]), at[:, 0]], dim=1)
        return torch.linalg.lstsq(design, at[:, 1:2]).solution[:, 0]

    intercept, slope = line(None).tolist()
    error = float(bootstrap(patches, line, seed)[1])
    change = slope * float(x[-1] - x[0]) / float(y.mean())
    fault = abs(change) > _CHANGES and abs(slope) > _CERTAIN * error
    return SignalDependence(tuple(x.tolist()), tuple(y.tolist()), intercept, slope, error, change, fault)


@dataclass(frozen=True)
class ChannelCorrelation:
    """Whether the noise is independent between channels.

    Attributes:
        correlation: Between each two channels, the first with the second, with the third, and so on.
        standard_error: Of each.
        fault: Whether any two are correlated.
    """

    correlation: tuple[float, ...]
    standard_error: tuple[float, ...]
    fault: bool

    @property
    def told(self) -> str:
        """For a line of text: of many channels the largest."""
        if len(self.correlation) <= 3:
            return ", ".join(f"{value:.2f}" for value in self.correlation)
        return f"up to {max(self.correlation, key=abs):.2f}"


def channel_correlation(patches: Patches, seed: int = 0) -> ChannelCorrelation | None:
    """Tests whether the noise is independent between channels; None if there is only one.

    Args:
        patches: Of all images, see :func:`lightning_tweedie.noise.estimation.measurable`.
        seed: Decides the resamples of the standard error.
    """
    channels = patches.coefficients.shape[1]
    if channels == 1:
        return None
    order = flatness(patches)
    pairs = torch.tensor(list(combinations(range(channels), 2))).T

    def measure(weights: Tensor | None) -> Tensor:
        chosen, shares = quietest(order, weights)
        high = patches.coefficients[chosen][:, :, HIGH].double()
        covariance = torch.einsum("n,ncf,ndf->cd", shares, high, high)
        spread = covariance.diagonal().sqrt()
        return (covariance / (spread[:, None] * spread))[pairs[0], pairs[1]]

    found, error = measure(None), bootstrap(patches, measure, seed)
    fault = bool(((found.abs() > _SHARED) & (found.abs() > _CERTAIN * error)).any())
    return ChannelCorrelation(tuple(found.tolist()), tuple(error.tolist()), fault)


@dataclass(frozen=True)
class Clipping:
    """Whether values beyond the ends of the range were cut off.

    Attributes:
        low: The lowest value.
        high: The highest value.
        at_low: Share of the values that are cut off there.
        at_high: Share of those cut off at the other end.
        fault: Whether it is more than a few.
    """

    low: float
    high: float
    at_low: float
    at_high: float
    fault: bool


def clipping(patches: Patches) -> Clipping:
    """Tests whether values were cut off at the ends of the range.

    Args:
        patches: Of all images, those with cut off values too.
    """
    lower, upper = patches.clipped()
    ends = float(patches.values[0]), float(patches.values[-1])
    return Clipping(*ends, lower, upper, max(lower, upper) > _CUT)


@dataclass(frozen=True)
class Quantisation:
    """Whether values are rounded more coarsely than the noise bears.

    Attributes:
        step: Distance of neighbouring levels; None if the values are not on a grid.
        share: Share of the variance of the noise that comes from the rounding, ``step^2 / 12`` over it.
        fault: Whether it is more than a twentieth.
    """

    step: float | None
    share: float
    fault: bool


def quantisation(patches: Patches, sigma: float) -> Quantisation:
    """Tests whether the steps between levels are small beside the noise.

    Args:
        patches: Of all images.
        sigma: The level of the noise, rounding included.
    """
    step = patches.step()
    share = 0.0 if step is None else min(1.0, step**2 / 12 / max(sigma, 1e-12) ** 2)
    return Quantisation(step, share, share > _ROUNDED)
