"""How the report's figures look, and how they get into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUR_COLOUR, BEST_COLOUR, OTHER_COLOUR = "#0f5ea8", "#d0661b", "#7d8894"
"""Our model, the strongest baseline, all others."""
CLASS_COLOURS = ("#6b7683", "#0f5ea8", "#d0661b", "#3a8f5c", "#8757a8", "#b5892b")
DOTS: dict[str, Any] = {"s": 26, "alpha": 0.65, "lw": 0}
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4ae",
    "axes.labelcolor": "#2a333c",
    "xtick.color": "#5a6570",
    "ytick.color": "#2a333c",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "boldstream",
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure for the page: a data URI, a text for those who cannot see it, and its caption."""

    title: str
    uri: str
    alt: str
    caption: str


def drawn(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """What `draw` puts on a figure of that size (inches), as an SVG data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", pad_inches=0.04, metadata={"Date": None, "Creator": None}
        )
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def unit_of(target: Target) -> str:
    """The unit of errors, for an axis; empty for classes."""
    return f" (units of {target.column})" if target.kind == "regression" else ""
