"""The page: what was found, as text, pictures and a table, in HTML and as one picture."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from lightning_tweedie.inspection.findings import Findings
from lightning_tweedie.inspection.survey import Survey, stacked
from lightning_tweedie.noise.assumptions import LAGS
from lightning_tweedie.pictures import grid, stretch

__all__ = ["as_html", "as_json", "as_png", "on_scale"]

_DPI = 110
_INK, _LIGHT, _ALERT = "#4477aa", "#bbccdd", "#cc6677"


def _number(value: Any) -> Any:  # noqa: ANN401
    """Plain, finite and short, as JSON wants it."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_number(item) for item in value]
    return value


def as_json(found: Survey, findings: Findings) -> dict[str, Any]:
    """Everything that was found, in plain types.

    Args:
        found: The images.
        findings: Their noise.

    Returns:
        ``sigma`` in ``sigma_unit``, ``sigma_standard_error``, ``sigma_8_bit`` (the same in steps of 8-bit images),
        ``data_range`` (values of 16-bit files that become [-1, 1], where they use fewer bits), ``warnings`` and so on;
        null for what could not be told.
    """
    own = findings.per_image.double().numpy()
    known = own[np.isfinite(own)]
    marks = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
    spread = {name: float(np.quantile(known, mark)) for name, mark in marks.items()} if len(known) else None
    tests = {
        "whiteness": findings.whiteness,
        "signal_dependence": findings.signal,
        "channel_correlation": findings.channels,
        "clipping": findings.clipping,
        "quantisation": findings.quantisation,
    }
    return _number(
        {
            "data": str(found.root),
            "sigma": findings.sigma,
            "sigma_unit": found.unit,
            "sigma_standard_error": findings.standard_error,
            "sigma_8_bit": findings.sigma * 127.5 if found.scaled else None,
            "sigma_if_white": findings.estimate.sigma,
            "sigma_spread_over_images": spread,
            "sigma_per_image": dict(zip(found.names, own.tolist(), strict=True)),
            "images": found.count,
            "unreadable": found.unreadable,
            "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in found.sizes.most_common()],
            "dtypes": dict(found.kinds.most_common()),
            "channels": found.channels,
            "range": [found.low, found.high],
            "data_range": found.range,
            "histogram": {"edges": found.edges.tolist(), "shares": found.histogram.tolist()},
            "share_of_patches_with_whole_noise": findings.estimate.whole,
            **{name: None if test is None else dataclasses.asdict(test) for name, test in tests.items()},
            "warnings": [dataclasses.asdict(warning) for warning in findings.warnings],
        }
    )


def on_scale(found: Survey) -> str:
    """In which units numbers are, in words."""
    return "on the scale of [-1, 1]" if found.scaled else "in the units of the files"


def _facts(found: Survey, findings: Findings) -> list[tuple[str, str]]:
    """What and how much, a line each."""
    sizes = ", ".join(f"{n} of {h} x {w}" for (h, w), n in found.sizes.most_common(4))
    more = len(found.sizes) - 4
    own = findings.per_image[findings.per_image.isfinite()].double()
    lines = [
        ("images", f"{found.count:,}" + (f", and {len(found.unreadable)} unreadable" if found.unreadable else "")),
        ("sizes", sizes + (f" and {more} other sizes" if more > 0 else "")),
        ("numbers", ", ".join(f"{kind} ({n:,})" for kind, n in found.kinds.most_common())),
        ("channels", {1: "1, all grey", 3: "3, colour"}.get(found.channels, str(found.channels))),
        ("values", f"{found.low:.3g} to {found.high:.3g}, {on_scale(found)}"),
        (
            "sigma",
            f"{findings.sigma:.4g} +- {findings.standard_error:.2g} {on_scale(found)}"
            + (f", {findings.sigma * 127.5:.3g} in steps of 8-bit images" if found.scaled else ""),
        ),
    ]
    if found.range is not None:
        top = found.range[1]
        told = f"{int(top).bit_length()} of 16 bits are in use: [0, {top:g}] becomes [-1, 1] (data.range)"
        lines.insert(3, ("range", f"{told}, and sigma is {findings.sigma * top / 2:.3g} in steps of the files"))
    if len(own):
        low, high = own.quantile(0.05), own.quantile(0.95)
        lines.append(("image by image", f"{low:.3g} to {high:.3g} for nine in ten; texture makes it too large"))
    return lines


def _verdicts(findings: Findings) -> list[tuple[str, str, bool]]:
    """Each test with its answer, and whether it found a fault."""
    white, signal, channels = findings.whiteness, findings.signal, findings.channels
    cut, rounded = findings.clipping, findings.quantisation
    unknown = "cannot be told"
    rows = [("white", unknown, False), ("the same at all brightnesses", unknown, False)]
    if white is not None:
        lags = ", ".join(f"{rho:.2f}" for rho in white.autocorrelation[0])
        rows[0] = ("white", f"autocorrelation at lags 1, 2, 3: {lags}", white.fault)
    if signal is not None:
        rows[1] = (rows[1][0], f"variance changes by {100 * signal.change:.0f} % from dark to bright", signal.fault)
    if channels is not None:
        rows.append(("independent between channels", f"correlation {channels.told}", channels.fault))
    rows.append(("not cut off", f"{100 * cut.at_low:.2g} % and {100 * cut.at_high:.2g} % at the ends", cut.fault))
    step = (
        "no steps" if rounded.step is None else f"steps of {rounded.step:.3g}, {100 * rounded.share:.2g} % of variance"
    )
    rows.append(("not rounded", step, rounded.fault))
    return rows


def _plots(figure: Figure | SubFigure, found: Survey, findings: Findings) -> None:
    """Images, histogram, mean-variance curve, autocorrelation, sigma by image."""
    images, histogram, signal, correlation, own = figure.subplots(
        1, 5, gridspec_kw={"width_ratios": [1.15, 1, 1, 1, 1]}
    )
    shown = stacked(found.shown[:9])
    sheet = grid(stretch(shown, shown), per_row=3)
    images.imshow(sheet, interpolation="nearest" if sheet.shape[0] < 400 else None)
    images.set_title("some images", fontsize=9)
    images.set_axis_off()

    histogram.stairs(found.histogram, found.edges, fill=True, color=_INK)
    histogram.set_title("values", fontsize=9)
    histogram.set_yticks([])
    histogram.locator_params(axis="x", nbins=5)
    cut = findings.clipping
    for end, share in ((cut.low, cut.at_low), (cut.high, cut.at_high)):
        if share:
            histogram.axvline(end, color=_ALERT, linewidth=1, linestyle="--")

    _curve(signal, findings)

    white = findings.whiteness
    if white is None:
        _untold(correlation)
    else:
        lags = np.arange(1, LAGS + 1)
        rows, columns = white.autocorrelation
        correlation.bar(lags - 0.18, rows, 0.34, color=_INK, label="along rows")
        correlation.bar(lags + 0.18, columns, 0.34, color=_LIGHT, label="along columns")
        correlation.axhline(0, color="black", linewidth=0.6)
        correlation.set(
            ylim=(min(-0.2, *map(min, white.autocorrelation)) - 0.05, 1), xlim=(0.5, LAGS + 0.5), xticks=lags
        )
        correlation.set_xlabel("lag, pixels")
        correlation.legend(fontsize=7)
    correlation.set_title("autocorrelation of the noise", fontsize=9)

    known = findings.per_image[findings.per_image.isfinite()].numpy()
    if len(known):
        top = max(3 * findings.sigma, float(np.quantile(known, 0.9)))
        own.hist(np.minimum(known, top), bins=40, color=_INK)
    own.axvline(findings.sigma, color=_ALERT, linewidth=1.2)
    own.set(yticks=[], xlabel="sigma")
    own.locator_params(axis="x", nbins=5)
    own.set_title("sigma, image by image (line: the set's)", fontsize=9)
    for axes in (histogram, signal, correlation, own):
        axes.tick_params(labelsize=7)


def _untold(axes: Any) -> None:  # noqa: ANN401
    axes.text(0.5, 0.5, "cannot be told", ha="center", va="center", transform=axes.transAxes, fontsize=8)
    axes.set(xticks=[], yticks=[])


def _curve(axes: Any, findings: Findings) -> None:  # noqa: ANN401
    signal = findings.signal
    axes.set_title("variance of the noise by brightness", fontsize=9)
    if signal is None:
        return _untold(axes)
    x = np.array([signal.means[0], signal.means[-1]])
    axes.plot(signal.means, signal.variances, "o", color=_INK, markersize=4)
    axes.plot(x, signal.intercept + signal.slope * x, color=_ALERT if signal.fault else _INK, linewidth=1)
    axes.set(ylim=(0, 1.3 * max(signal.variances)), xlabel="mean of a patch")
    return None


def as_png(found: Survey, findings: Findings, summary: bool = True) -> bytes:
    """The page as one picture.

    Args:
        found: The images.
        findings: Their noise.
        summary: Whether the text is in it, above the plots.
    """
    text = _summary(found, findings) if summary else []
    head = 0.2 * len(text) + 0.2 if text else 0.0
    figure = Figure(figsize=(15, 3.1 + head), dpi=_DPI, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    body: Figure | SubFigure = figure
    if text:
        top, body = figure.subfigures(2, 1, height_ratios=[head, 3.1])  # type: ignore[misc]
        for number, (line, bold) in enumerate(text):
            y = 1 - (number + 0.8) * 0.2 / head
            colour = _ALERT if bold and number and findings.warnings else "black"
            top.text(0.012, y, line, fontsize=9.5, va="center", weight="bold" if bold else "normal", color=colour)
    _plots(body, found, findings)
    file = io.BytesIO()
    canvas.print_png(file)
    return file.getvalue()


def _summary(found: Survey, findings: Findings) -> list[tuple[str, bool]]:
    lines = [(f"{found.root.name}", True)]
    lines += [(f"{name}: {value}", False) for name, value in _facts(found, findings)]
    for warning in findings.warnings:
        lines += [(line, True) for line in textwrap.wrap(f"! {warning.text}", 175)]
        lines += [(line, False) for line in textwrap.wrap(warning.remedy, 190)]
    return lines if findings.warnings else [*lines, ("No fault found: the noise is what training takes it for.", True)]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }} td, th {{ padding: .2em 1.2em .2em 0; text-align: left }}
tr {{ border-top: 1px solid #ddd; vertical-align: top }} img {{ max-width: 100% }}
pre {{ background: #f5f5f5; padding: 1em }}
.warning {{ border-left: 4px solid #cc6677; padding: .1em 1em; margin: 1em 0; background: #fdf3f4 }}
.fault {{ color: #aa3344; font-weight: bold }}
</style></head><body><h1>{title}</h1>
{warnings}
<h2>What there is</h2><table>{facts}</table>
<p><img alt="Images, values, variance by brightness, autocorrelation, sigma by image"
src="data:image/png;base64,{plots}"></p>
<h2>Is the noise what training takes it for?</h2><table>{verdicts}</table>
{unreadable}
<h2>A configuration to begin with</h2><pre>{command}</pre><pre>{config}</pre>
</body></html>
"""


def as_html(found: Survey, findings: Findings, config: str, command: str) -> str:
    """The page, in one file.

    Args:
        found: The images.
        findings: Their noise.
        config: The suggested configuration as YAML.
        command: What trains it.
    """
    escape = html.escape
    warnings = "\n".join(
        f'<div class="warning"><p><b>{escape(w.text)}</b><br>{escape(w.remedy)}</p></div>' for w in findings.warnings
    )
    facts = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in _facts(found, findings))
    verdicts = "".join(
        f"<tr><th>{escape(name)}</th><td class={'fault' if fault else 'fine'}>{escape(value)}</td></tr>"
        for name, value, fault in _verdicts(findings)
    )
    lines = "".join(f"<tr><th>{escape(n)}</th><td>{escape(why)}</td></tr>" for n, why in found.unreadable.items())
    return _PAGE.format(
        title=escape(f"Noise in {found.root.name}"),
        warnings=warnings or "<p>No fault found: the noise is what training takes it for.</p>",
        facts=facts,
        plots=base64.b64encode(as_png(found, findings, summary=False)).decode(),
        verdicts=verdicts,
        unreadable=f"<h2>Unreadable files</h2><table>{lines}</table>" if lines else "",
        command=escape(command),
        config=escape(config),
    )
