"""How the docs site is built: ``make docs``. Needs no network, and neither does its reader."""

import html

import ziafont
import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from lightning_tweedie import __version__

project = "lightning_tweedie"
author = "The lightning_tweedie authors"
copyright = "The lightning_tweedie authors"  # noqa: A001
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# The same text is a page of the site and readable on GitHub: formulas in dollars and in ```math fences.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

# Names are documented where they are defined, not again where a package hands them on.
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "lightning_tweedie"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]

# Formulas are drawn while the site is built: no script runs and nothing is fetched in the reader's browser.
html_math_renderer = "drawn"
ziafont.config.svg2 = False  # shared glyphs would clash between the formulas of a page
EM = 24.0


def draw(latex: str, *, inline: bool) -> str:
    """One formula as an SVG that scales with the text and sits on its baseline."""
    svg = ziamath.Latex(latex, size=EM, color="currentColor", inline=inline, margin=0).svg()
    head, drawing = svg.split(">", 1)
    box = head.partition('viewBox="')[2].partition('"')[0]
    _, top, width, height = (float(number) / EM for number in box.split())
    style = f"width: {width:.3f}em; height: {height:.3f}em; vertical-align: {-(top + height):.3f}em"
    return f'<svg role="img" aria-label="{html.escape(latex)}" viewBox="{box}" style="{style}">{drawing}'


def inline_formula(translator: HTML5Translator, node: nodes.math) -> None:
    """Within a line of text."""
    translator.body.append(f'<span class="formula">{draw(node.astext(), inline=True)}</span>')
    raise nodes.SkipNode


def displayed_formula(translator: HTML5Translator, node: nodes.math_block) -> None:
    """On lines of its own."""
    translator.body.append(f'<div class="formula">{draw(node.astext(), inline=False)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Tells Sphinx about our formulas."""
    app.add_html_math_renderer("drawn", (inline_formula, None), (displayed_formula, None))
