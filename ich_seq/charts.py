"""Charts for pages, by matplotlib, as SVG that stands in the page itself and takes on its colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ich_seq.pages import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Drawn with; no colour of ours, so that it can be told and exchanged for the page's."""

SIZE_INCHES = 4.4, 3.2
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ich-seq",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), INK)


def chart(title: str, draw: Callable[[Axes], None], *, size_inches: tuple[float, float] = SIZE_INCHES) -> Markup:
    """Return an SVG of what `draw` puts on the axes; `title` is what it is called, aloud and above it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, fontsize=10)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(drawn.getvalue(), title)


def _inline(document: str, title: str) -> Markup:
    """Return the svg element of an SVG document, named for screen readers, in the colour of the text around it."""
    svg = document[document.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    unit_square: bool = False,
) -> Callable[[Axes], None]:
    """Return what draws a line a name, in the colours of the labels in their order."""

    def draw(axes: Axes) -> None:
        for colour, (name, (across, up)) in zip(_colours(len(curves)), curves.items(), strict=True):
            axes.plot(across, up, color=colour, label=name, linewidth=1.6)
        if unit_square:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set(xlabel=x, ylabel=y)
        if len(curves) > 1:
            axes.legend(fontsize=8)

    return draw


def bars(
    values: Mapping[str, float], *, x: str, y: str = "", logarithmic: bool = False, upright: bool = False
) -> Callable[[Axes], None]:
    """Return what draws a bar a name: lying, one below the other, or upright for numbers in a row."""

    def draw(axes: Axes) -> None:
        names, heights = list(values), list(values.values())
        if upright:
            axes.bar(names, heights, color=COLOURS[0])
            axes.grid(visible=False, axis="x")
        else:
            axes.barh(names, heights, color=COLOURS[0])
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
        if logarithmic:
            (axes.set_yscale if upright else axes.set_xscale)("log")
        axes.set(xlabel=x, ylabel=y)

    return draw


def histogram(edges: Sequence[float], counts: Sequence[float], *, x: str, y: str) -> Callable[[Axes], None]:
    """Return what draws counts between edges, one more of these."""

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        axes.set(xlabel=x, ylabel=y)

    return draw


def _colours(number: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(number)]
