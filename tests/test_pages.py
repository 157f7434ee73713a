"""pages: text stays text, figures read well, and a browser finds nothing to run, to fetch or to stumble over."""

from __future__ import annotations

from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import ChoiceLoader, DictLoader, UndefinedError
from markupsafe import Markup

from ich_seq import pages
from ich_seq.charts import bars, chart, lines
from ich_seq.pictures import data_uri

pytest_plugins = ["browser"]

TINY = """{% extends "base.html" %}
{% block title %}{{ text }}{% endblock %}
{% block main %}
<p title="{{ text }}">{{ text }}</p>
{{ body }}
{% endblock %}
"""
PORT = "http://127.0.0.1:9"  # browsers refuse this port
PLANTED = f"""</title></style><script>alert(1)</script><img src="{PORT}/x.png" onerror="alert(2)">
<svg><script>alert(3)</script></svg>" onmouseover="alert(4)" x="javascript:alert(5)<a href="javascript:alert(6)">"""


@pytest.fixture(scope="module")
def tiny():
    """Render a page that has the text in its title, its heading, an attribute and a paragraph, and a body besides."""
    both = ChoiceLoader([DictLoader({"tiny.html": TINY}), pages._templates().loader])
    environment = pages._templates().overlay(loader=both)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "_templates", lambda: environment)
        yield lambda text="tiny", body="": pages.render("tiny.html", text=text, body=body)


@pytest.fixture
def write(tmp_path):
    """Write a page; returns its path."""

    def write(html):
        path = tmp_path / "page.html"
        path.write_bytes(html if isinstance(html, bytes) else html.encode())
        return path

    return write


def without_policy(page):
    """Return a page less its content policy."""
    start = page.index(b'<meta http-equiv="Content-Security-Policy"')
    return page[:start] + page[page.index(b">", start) + 1 :]


class Reader(HTMLParser):
    """Tells the tags of a page with their attributes' names, its title attributes, and the text by element."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.titles, self.text, self._in = [], [], {}, ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        self.tags.append((tag, [name for name, _ in attrs]))
        self.titles += [value for name, value in attrs if name == "title"]
        self._in = tag

    def handle_endtag(self, tag):
        """Leave it."""
        self._in = ""

    def handle_data(self, data):
        """Note text."""
        self.text[self._in] = self.text.get(self._in, "") + data


def test_missing_value_is_an_error(tiny):
    """A template that asks for what it is not given makes no page with a hole in it."""
    with pytest.raises(UndefinedError, match="body"):
        pages.render("tiny.html", text="tiny")


HOSTILE = ["<", ">", "&", "'", '"', "&lt;", "&#60;", "<script>", "</script>", "</title>", "<!--", "-->", "{{ 1 }}", "="]


@settings(deadline=None)
@given(
    st.text().map(lambda text: pages.ILLEGIBLE.sub("", text))
    | st.lists(st.sampled_from(HOSTILE), min_size=1).map("".join)
)
def test_any_text_comes_back_as_text(tiny, text):
    """In title, heading, attribute and paragraph; the page has the tags and attributes that it has without."""
    read, plain = Reader(tiny(text)), Reader(tiny())
    assert read.tags == plain.tags
    assert read.titles == [text]
    assert read.text["title"] == f"{text} · ich-seq"
    assert read.text.get("h1", "") == text
    assert read.text["p"] == plain.text["p"].replace("tiny", text)


def test_controls_and_turned_text_come_as_escapes(tiny):
    """What would move a cursor or turn a line around is seen as what it is; blanks stay."""
    read = Reader(tiny("a\x1b\x9b\u202e\u2028\udcff\n\u00a0b"))
    assert read.text["h1"] == "a\\x1b\\x9b\\u202e\\u2028\\udcff\n\u00a0b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (0.9996, "1.000"), (-2, "-2.000"), (-0.0001, "0.000"), (None, "–"), (float("nan"), "–")],  # noqa: RUF001
)
def test_number(value, expected):
    """Three decimals; a dash for what is not there."""
    assert pages.number(value) == expected


def test_number_of_decimals_is_free():
    """No decimals for whole things."""
    assert pages.number(41.7, 0) == "42"


@pytest.mark.parametrize(("value", "expected"), [(0, "0"), (999, "999"), (1234567, "1,234,567"), (5.0, "5")])
def test_count(value, expected):
    """Thousands apart, no decimals."""
    assert pages.count(value) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.12345, "12.3 %"), (None, "–"), (float("nan"), "–")],  # noqa: RUF001
)
def test_percent(share, expected):
    """One decimal; a dash for what is not there."""
    assert pages.percent(share) == expected


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75, "resamples": 9}, "0.500 [0.250, 0.750]"),
        ({"value": 0.5, "low": float("nan"), "high": None}, "0.500 [–, –]"),  # noqa: RUF001
        (None, "–"),  # noqa: RUF001
    ],
)
def test_estimate(figure, expected):
    """A value with its interval; dashes for what is not there."""
    assert pages.estimate(figure).replace("\xa0", " ") == expected


def test_templates_have_the_formats_and_the_labels(tiny):
    """A template formats with our functions and knows each label's colour."""
    source = (
        "{{ 0.5|number }} {{ 0.5|percent }} {{ 5000|count }} {{ none|estimate }} {{ labels[0] }} {{ colours['any'] }}"
    )
    text = pages._templates().from_string(source).render()
    assert text == f"0.500 50.0 % 5,000 – {pages.LABELS[0]} {pages.COLOUR_OF['any']}"  # noqa: RUF001


def test_labels_have_colours_of_their_own():
    """Six labels, six colours."""
    assert len(set(pages.COLOUR_OF.values())) == len(pages.LABELS) == 6


def test_policy_comes_before_what_it_binds():
    """Nothing but inline styles and data pictures, said before the first style, link or picture."""
    page = pages.render("base.html").decode()
    policy = page.index('http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src')
    assert policy < min(page.index(tag) for tag in ("<style", "<link"))
    assert "script-src" not in page


def test_page_names_no_other_place():
    """No address of another host, in markup or style."""
    page = pages.render("base.html").decode()
    assert not [part for part in ("//", "@import", "url(") if part in page.replace("<!DOCTYPE", "")]


def test_planted_text_is_inert_in_a_browser(browser, tiny, write):
    """Script, picture and link in the text come to nothing by the escaping alone, with and without the policy."""
    page = tiny(PLANTED)
    browser.assert_sound(write(page))
    assert not browser.look(write(without_policy(page))).faults


def test_policy_alone_stops_what_is_not_escaped(browser, tiny, write):
    """Were a script or a picture let through, none would run or come, and the console would say so."""
    seen = browser.look(write(tiny(body=Markup(PLANTED))))
    assert not seen.dialogs
    assert seen.scripts == 2
    assert sum("Content Security Policy" in said for said in seen.console) >= 3


def test_neither_escaped_nor_bound_it_would_run(browser, tiny, write):
    """The control: less both, the same text opens dialogs and asks for a picture."""
    seen = browser.look(write(without_policy(tiny(body=Markup(PLANTED)))))
    assert set(seen.dialogs) == {"1", "2", "3"}
    assert set(seen.requests) == {f"{PORT}/x.png"}


def test_full_page_is_sound(browser, tiny, write):
    """Charts, a picture, a wide table that scrolls and words too long for a phone: nothing to stumble over."""
    curves = lines({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, x="x", y="y")
    charts = [chart("Curves", curves), chart("Bars", bars({"a": 1, "b": 2}, x="x"))]
    source, long = data_uri(np.full((512, 512), 128, np.uint8)), "1.2." * 60
    cells = "".join(f"<td>column {number}</td>" for number in range(40))
    body = (
        f'<div class="charts">{"".join(f"<figure>{drawn}</figure>" for drawn in charts)}</div>'
        f'<div class="pictures"><figure><img src="{source}" alt="slice"><figcaption>{long}</figcaption></figure></div>'
        f'<div class="wide" tabindex="0"><table><caption>Wide</caption><tr>{cells}</tr></table></div>'
        f'<h3>{long}</h3><dl class="facts"><dt>UID</dt><dd>{long}</dd></dl><pre>{"long " * 60}</pre>'
    )
    browser.assert_sound(write(tiny(body=Markup(body))))


def test_page_follows_the_readers_light_or_dark(browser, tiny, write):
    """White paper by day, near black by night, white in print whatever the reader's choice."""
    page = write(tiny())

    def paper(**how):
        return cv2.imdecode(np.frombuffer(browser.look(page, **how).png, np.uint8), cv2.IMREAD_COLOR)[-1, -1].tolist()

    assert paper() == [255, 255, 255]
    assert paper(dark=True) == [0x17, 0x11, 0x0D]
    assert paper(width=browser.PAPER, dark=True, print_=True) == [255, 255, 255]


FAULTS = {
    "an error said": ("<script>console.error('no')</script>", {"console", "scripts"}),
    "a warning said": ("<script>console.warn('no')</script>", {"console", "scripts"}),
    "an exception": ("<script>throw Error('no')</script>", {"console", "scripts"}),
    "an alert": ("<script>alert('no')</script>", {"dialogs", "scripts"}),
    "an idle script": ("<script type='text/plain'>no</script>", {"scripts"}),
    "a request": (f"<img src='{PORT}/x.png' alt='x'>", {"console", "requests"}),
    "overflow": ("<p style='width: 2000px'>wide</p>", {"overflow"}),
    "a picture without name": ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", {"unnamed"}),
    "a chart without name": ("<svg role='img' width='9' height='9'></svg>", {"unnamed"}),
    "a table without name": ("<table><tr><td>1</td></tr></table>", {"unnamed"}),
    "a link without name": ("<a href='#x'> </a>", {"unnamed"}),
    "none": ("<p>sound</p><a href='#x'><img alt='x' src='data:image/gif;base64,R0lGODlhAQABAAAAACw='></a>", set()),
}


@pytest.mark.slow
@pytest.mark.parametrize(("body", "expected"), FAULTS.values(), ids=FAULTS)
def test_browser_tells_a_fault(browser, write, body, expected):
    """Each kind is found by its name, and no other is."""
    assert set(browser.look(write(f"<!DOCTYPE html><html><title>x</title><body>{body}")).faults) == expected


def test_unsound_page_fails_the_assertion(browser, write):
    """What is wrong only on a dark phone is found, and the element named."""
    html = """<!DOCTYPE html><html><title>x</title>
    <style>@media (max-width: 400px) and (prefers-color-scheme: dark) { .broad { width: 500px } }</style>
    <p class="broad">x</p>"""
    with pytest.raises(AssertionError, match=r"390 px, dark: overflow: \d+ px, by <p class=.broad.") as failure:
        browser.assert_sound(write(html))
    assert "light" not in str(failure.value)
