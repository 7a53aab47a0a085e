"""How the page's figures look, and how they get into it: SVG whose colours follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# stand-ins that become the page's CSS variables; blue and orange differ for every kind of colour vision
INK, SOFT, LINE, USUAL, FAR = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", USUAL: "--usual", FAR: "--far"}
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 1.0,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "grid.color": LINE,
    "svg.fonttype": "none",
    "savefig.transparent": True,
}
_HEAD = re.compile(r"^.*?<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_EXTRAS = re.compile(r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>|<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A figure with its caption, or only the sentence that says why there is none."""

    title: str
    svg: str
    """Empty: no figure."""
    caption: str


def drawn(draw: Callable[[Figure], None], name: str, alt: str, width: float = 3.6, height: float = 2.05) -> str:
    """What `draw` puts on a figure of that size (inches), as an `<svg>` element.

    Parameters
    ----------
    name
        Different for each figure of a page: its ids are made from it.
    alt
        A text for those who cannot see it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = _EXTRAS.sub("", buffer.getvalue())
    text = _HEAD.sub(rf'<svg viewBox="\1" role="img" aria-label="{_literal(escape(alt))}">', text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(
        r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|PathCollection)_\d+"', "", text
    ).strip()


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")
