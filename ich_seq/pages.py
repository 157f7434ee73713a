"""Pages to look at: one HTML file each, that runs no script, asks for nothing and trusts no text.

Their templates lie in `templates/`; `base.html` holds what all share. Whatever a template is given is escaped, but for
`Markup`, which only `charts` and `pictures` make, of numbers and pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ich_seq import __version__
from ich_seq.labels import LABELS

TEMPLATES = Path(__file__).with_name("templates")
ILLEGIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Controls but for blanks, what turns the direction of writing, and halves of letters."""

DECIMALS = 3
NO_BREAK = "\u00a0"
NOTHING = "–"  # noqa: RUF001 - a dash where there is no number

COLOURS = ("#0072b2", "#b87700", "#00916a", "#b5609b", "#d55e00", "#7f7f7f")
"""Of the K labels, told apart by the colour-blind (after Okabe and Ito 2008, darker where white paper asks for it)."""

COLOUR_OF = dict(zip(LABELS, COLOURS, strict=True))


def render(template: str, **values: Any) -> bytes:
    """Return a page as UTF-8. Raises jinja2's UndefinedError if the template asks for what is not given."""
    return _templates().get_template(template).render(values).encode(errors="replace")  # file names may be no UTF-8


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_legible,
    )  # fmt: skip
    environment.filters |= {"estimate": estimate, "number": number, "count": count, "percent": percent}
    environment.globals |= {
        "labels": LABELS,
        "colours": dict(zip(LABELS, COLOURS, strict=True)),
        "version": __version__,
    }
    return environment


def _legible(value: Any) -> Any:
    """Return text with escapes for controls and what turns a line around; all else, our own markup too, as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return ILLEGIBLE.sub(lambda letter: letter[0].encode("unicode_escape").decode(), value)


def number(value: float | None, decimals: int = DECIMALS) -> str:
    """Return a number for people, a dash for None and NaN, never a negative zero."""
    return NOTHING if value is None or math.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}"


def count(value: float) -> str:
    """Return a whole number, its thousands apart."""
    return NOTHING if math.isnan(value) else f"{round(value):,}"


def percent(share: float | None) -> str:
    """Return a share in per cent, with one decimal."""
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def estimate(figure: Mapping[str, float] | None, decimals: int = DECIMALS) -> str:
    """Return a figure with its interval."""
    if figure is None:
        return NOTHING
    value, low, high = (number(figure[name], decimals) for name in ("value", "low", "high"))
    return f"{value} [{low},{NO_BREAK}{high}]"
