"""charts: one SVG element a chart, named, in the page's own colours, the same each time, and inert whatever it says."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from markupsafe import Markup

from ich_seq.charts import INK, bars, chart, histogram, lines
from ich_seq.pages import COLOURS

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
TAGS = {f"{SVG}{tag}" for tag in ("svg", "defs", "style", "g", "path", "use", "text", "clipPath", "rect")}
HOSTILE = "</title></text></svg><script>alert(1)</script><!-- \"' --> ]]> &amp; $x^2$ \\frac <metadata>"

TWO = {"here": ([0, 0.5, 1], [0, 0.7, 1]), "there": ([0, 0.5, 1], [0, 0.2, 1])}
KINDS = {
    "lines": lines(TWO, x="across", y="up"),
    "lines in a unit square": lines(TWO, x="across", y="up", unit_square=True),
    "bars": bars({"a": 1, "b": 3}, x="across"),
    "a histogram": histogram([0, 1, 2], [5, 9], x="across", y="up"),
}


@pytest.fixture(scope="module")
def drawn():
    """A chart of each kind, by its title."""
    return {title: chart(title, draw) for title, draw in KINDS.items()}


def texts(svg):
    return ["".join(element.itertext()) for element in svg.iter(f"{SVG}text")]


def linked(svg):
    """Return where the elements of an SVG point to, as #id if within it."""
    clips = {element.get("clip-path", "").removeprefix("url(").removesuffix(")") for element in svg.iter()}
    return (clips | {element.get(HREF, "") for element in svg.iter()}) - {""}


@pytest.mark.parametrize("title", KINDS)
def test_chart_is_one_named_element(drawn, title):
    """An svg and nothing about it, called by its title, which stands above it too."""
    assert isinstance(drawn[title], Markup)
    assert drawn[title].startswith("<svg ")
    svg = ET.fromstring(drawn[title])
    assert (svg.tag, svg.get("role"), svg.get("aria-label")) == (f"{SVG}svg", "img", title)
    assert title in texts(svg)


@pytest.mark.parametrize("title", KINDS)
def test_chart_takes_on_the_colour_around_it(drawn, title):
    """No ink of ours is left, no sheet of paper lies below, and all text is in the colour of the text around."""
    assert INK not in drawn[title]
    svg = ET.fromstring(drawn[title])
    styles = [element.get("style") for element in svg.iter(f"{SVG}text")]
    assert len(styles) > 3
    assert all("fill: currentColor" in style for style in styles)
    fills = {re.search(r"fill: ([^;]+)", element.get("style", "fill: none"))[1] for element in svg.iter(f"{SVG}path")
             if "fill" in element.get("style", "")}  # fmt: skip
    assert fills <= {"none", COLOURS[0]}


@pytest.mark.parametrize("title", KINDS)
def test_chart_asks_for_nothing(drawn, title):
    """No metadata, no address but its namespaces' names, and every link leads into the chart itself."""
    svg = ET.fromstring(drawn[title])
    assert {element.tag for element in svg.iter()} <= TAGS
    said = [text for element in svg.iter() for text in (*element.attrib.values(), element.text or "")]
    assert not [text for text in said if "//" in text or "@import" in text]
    assert linked(svg)
    assert linked(svg) <= {f"#{element.get('id')}" for element in svg.iter()}


def with_text(place, text):
    if place == "bar":
        return chart("t", bars({text: 1}, x="x"))
    curves = {text if place == "line" else "a": TWO["here"], "b": TWO["there"]}
    return chart(text if place == "title" else "t", lines(curves, x=text if place == "axis" else "x", y="y"))


@pytest.mark.parametrize("place", ["title", "line", "axis", "bar"])
@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # the name of a bar takes all the room
def test_hostile_text_stays_text(place):
    """Wherever it stands it reads as it was given, and makes no element or attribute that other text would not."""
    svg, plain = ET.fromstring(with_text(place, HOSTILE)), ET.fromstring(with_text(place, "plain"))
    assert HOSTILE in texts(svg)
    assert svg.get("aria-label") == (HOSTILE if place == "title" else "t")
    assert {element.tag for element in svg.iter()} <= TAGS
    assert {name for element in svg.iter() for name in element.attrib} == {
        name for element in plain.iter() for name in element.attrib
    }


def test_same_call_gives_the_same_bytes(drawn):
    """No date and no random id: a chart drawn again is the same."""
    assert {title: chart(title, draw) for title, draw in KINDS.items()} == drawn


def test_charts_can_share_a_page(drawn):
    """An id that something points to stands for the same in every chart that has it."""
    meant: dict[str, set[str]] = {}
    small = [chart(title, draw, size_inches=(3, 2)) for title, draw in KINDS.items()]
    for svg in map(ET.fromstring, [*drawn.values(), *small]):
        elements = {f"#{element.get('id')}": element for element in svg.iter()}
        for name in linked(svg):
            meant.setdefault(name, set()).add("".join(ET.tostring(elements[name], "unicode").split()))
    assert len(meant) > len(KINDS)
    assert not {name: contents for name, contents in meant.items() if len(contents) > 1}


def test_legend_names_several_lines_and_not_one(drawn):
    """What a line alone is, the title says."""
    assert {"here", "there"} <= set(texts(ET.fromstring(drawn["lines"])))
    assert "here" not in texts(ET.fromstring(chart("t", lines({"here": TWO["here"]}, x="x", y="y"))))


def test_lines_have_the_labels_colours_in_their_order():
    """The seventh starts again."""
    curves = {str(number): ([0, 1], [0, number]) for number in range(7)}
    strokes = re.findall(r"stroke: (#\w{6}); stroke-width: 1.6", chart("t", lines(curves, x="x", y="y")))
    assert strokes == 2 * [*COLOURS, COLOURS[0]]  # the lines, then the legend


def test_bars_read_downwards():
    """Lying bars stand in the order given, the first on top."""
    svg = ET.fromstring(chart("t", bars({"first": 1, "second": 2, "third": 3}, x="x")))
    down = {"".join(text.itertext()): float(text.get("y")) for text in svg.iter(f"{SVG}text")}
    assert down["first"] < down["second"] < down["third"]
