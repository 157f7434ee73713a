"""Charts for pages, by matplotlib, as SVG that stands in the page itself and takes on its colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from ich_seq.pages import COLOUR_OF, COLOURS

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
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ours = {name: value for name, value in rcParamsDefault.items() if name != "backend"} | STYLE  # whatever users set
    with rc_context(ours), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib's font lacks; the reader's browser draws them
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
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # the style would be the whole page's
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1))


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    unit_square: bool = False,
) -> Callable[[Axes], None]:
    """Return what draws a line a name, a label in its own colour."""

    def draw(axes: Axes) -> None:
        for number, (name, (across, up)) in enumerate(curves.items()):
            colour = COLOUR_OF.get(name, COLOURS[number % len(COLOURS)])
            axes.plot(across, up, color=colour, label=name, linewidth=1.6)
        if unit_square:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set(xlabel=x, ylabel=y)
        if len(curves) > 1:
            axes.legend(fontsize=8)

    return draw


def whiskers(
    points: Sequence[tuple[float, Mapping[str, float]]], *, x: str, y: str, colour: str = COLOURS[0]
) -> Callable[[Axes], None]:
    """Return what draws shares and their intervals (`value`, `low`, `high`) over shares, beside the diagonal."""

    def draw(axes: Axes) -> None:
        across = [at for at, _ in points]
        values, low, high = ([estimate[name] for _, estimate in points] for name in ("value", "low", "high"))
        below = [max(v - bound, 0) for v, bound in zip(values, low, strict=True)]
        above = [max(bound - v, 0) for v, bound in zip(values, high, strict=True)]
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        axes.errorbar(across, values, yerr=[below, above], color=colour, marker="o", markersize=4, capsize=2)
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return draw


def strip(
    positions_mm: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    truth: NDArray[np.uint8] | None,
    colour: str,
) -> Callable[[Axes], None]:
    """Return what draws the probabilities of N slices along the head, and marks below those that are positive."""

    def draw(axes: Axes) -> None:
        axes.plot(positions_mm, probabilities, color=colour, marker=".", linewidth=1.2)
        if truth is not None and truth.any():
            there = positions_mm[truth > 0]
            axes.plot(there, [-0.06] * len(there), color=INK, marker="s", markersize=4, linestyle="none")
        axes.set(xlabel="mm, feet to head", ylim=(-0.12, 1.05))

    return draw


def bars(values: Mapping[str, float], *, x: str) -> Callable[[Axes], None]:
    """Return what draws a bar a name, one below the other."""

    def draw(axes: Axes) -> None:
        axes.barh(list(values), list(values.values()), color=COLOURS[0])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlabel=x)

    return draw


def histogram(edges: Sequence[float], counts: Sequence[float], *, x: str, y: str) -> Callable[[Axes], None]:
    """Return what draws counts between edges, one more of these."""

    def draw(axes: Axes) -> None:
        axes.stairs(counts, edges, fill=True, color=COLOURS[0])
        axes.set(xlabel=x, ylabel=y)

    return draw
