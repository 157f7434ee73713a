"""Where text from outside comes out again, and what would be wrong with it there, each fault as a short sentence.

Pages may hold what our templates and charts hold, and nothing that runs or asks for anything. A text cell of a CSV is
no formula and holds one line. JSON parses. Control characters are nowhere, and nothing for people to read is turned
around.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from attacks.payloads import FORGED, PRODUCT
from attacks.zygote import Done
from ich_seq.pages import TEMPLATES

EXPECTED_ENDS = {0, 2, 3, 4, 5}
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""All but the line feed; C1, which some terminals obey, are of them."""

PAGE_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""The controls that HTML does not take for blanks."""

TURNS = re.compile(r"[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What turns the direction of writing, or ends a line, so that it reads as another."""

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
FORMULA_STARTS = "=+-@\t\r"
NAME = re.compile(r"[0-9A-Za-z._-]{1,255}")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

SHAPES = ("circle", "clippath", "defs", "ellipse", "g", "line", "path", "polygon", "polyline", "rect", "svg", "text",
          "tspan", "use")  # fmt: skip
TAGS = {
    "a", "body", "caption", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "footer", "h1", "h2", "h3",
    "head", "header", "html", "img", "li", "link", "main", "meta", "nav", "ol", "p", "pre", "section", "span", "strong",
    "style", "summary", "table", "tbody", "td", "th", "thead", "title", "tr", "ul",
    *SHAPES,
}  # fmt: skip
PLAIN = {
    "alt", "aria-current", "aria-label", "aria-labelledby", "charset", "class", "colspan", "cx", "cy", "d", "fill",
    "font-size", "height", "id", "lang", "name", "opacity", "open", "points", "r", "role", "scope", "stroke",
    "stroke-dasharray", "stroke-linejoin", "stroke-width", "tabindex", "text-anchor", "transform", "version", "viewbox",
    "width", "x", "x1", "x2", "xmlns", "xmlns:xlink", "y", "y1", "y2",
}  # fmt: skip
"""Attributes in which no value does anything."""

INNER = r"#[\w.-]*"
VALUES = {
    "href": re.compile(rf"{INNER}|(\.\./|report/)?[0-9A-Za-z_-]+\.html|data:,"),
    "xlink:href": re.compile(INNER),
    "clip-path": re.compile(rf"url\({INNER}\)"),
    "src": re.compile(r"data:image/(png|jpeg);base64,[0-9A-Za-z+/=]+"),
    "style": re.compile(r"(?!.*url)[a-z0-9 #:;.,%()'-]*", re.IGNORECASE),
    "http-equiv": re.compile("Content-Security-Policy"),
    "content": re.compile(f"{re.escape(POLICY)}|no-referrer|width=device-width, initial-scale=1"),
    "rel": re.compile("icon"),
}


class _Page(HTMLParser):
    """Notes what a page should not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.policies = 0
        self._style: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS:
            self.faults.append(f"a tag <{tag}>")
        self.policies += (("http-equiv", "Content-Security-Policy") in attrs) and (("content", POLICY) in attrs)
        for name, value in attrs:
            rule = VALUES.get(name)
            if name not in PLAIN and (rule is None or not rule.fullmatch(value or "")):
                self.faults.append(f"{name}={value!r:.60} in <{tag}>")
        if tag == "style":
            self._style = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "style" and self._style is not None:
            ours = (TEMPLATES / "style.css").read_text(encoding="utf-8")
            if "".join(self._style).strip() != ours.strip():
                self.faults.append("a style that is not ours")
            self._style = None

    def handle_data(self, data: str) -> None:
        if self._style is not None:
            self._style.append(data)

    def handle_comment(self, data: str) -> None:
        if "<" in data:
            self.faults.append(f"markup in a comment {data!r:.60}")


def page_faults(data: bytes) -> Iterator[str]:
    """Yield what is wrong with a page."""
    text, faults = _decoded(data)
    yield from faults
    page = _Page()
    page.feed(text)
    page.close()
    yield from dict.fromkeys(page.faults)
    if page.policies != 1:
        yield f"{page.policies} content policies of ours"
    yield from _letters(text, PAGE_CONTROLS)
    yield from _letters(text, TURNS)


def table_faults(data: bytes) -> Iterator[str]:
    """Yield what is wrong with a CSV."""
    text, faults = _decoded(data)
    yield from faults
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        yield f"no CSV: {error}"
        return
    if len(widths := {len(row) for row in rows}) != 1:
        yield f"rows of {sorted(widths)} cells"
    cells = [cell for row in rows for cell in row]
    starts = [c for c in cells if c.startswith(tuple(FORMULA_STARTS)) and not NUMBER.fullmatch(c)]
    yield from (f"a formula {cell!r:.60}" for cell in starts[:1])
    yield from (f"several lines in a cell {cell!r:.60}" for cell in [c for c in cells if "\n" in c][:1])
    yield from _letters("".join(cells), CONTROLS)
    yield from _letters("".join(cells), TURNS)


def json_faults(data: bytes) -> Iterator[str]:
    """Yield what is wrong with JSON, or with lines of it."""
    text, faults = _decoded(data)
    yield from faults
    yield from _letters(text, CONTROLS)
    try:
        json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        yield f"no JSON: {error!s:.80}"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is none of JSON's numbers")


def lines_faults(data: bytes) -> Iterator[str]:
    """Yield what is wrong with a journal, a value a line."""
    for line in data.removesuffix(b"\n").split(b"\n") if data else []:
        yield from json_faults(line)


SINKS = {".html": page_faults, ".csv": table_faults, ".json": json_faults, ".jsonl": lines_faults}


def terminal_faults(text: str) -> Iterator[str]:
    """Yield what is wrong with what a command prints."""
    yield from _letters(text, CONTROLS)
    yield from _letters(text, TURNS)
    if "\ufffd" in text:
        yield "bytes that are no UTF-8"
    yield from (f"a forged line {line!r:.60}" for line in text.split("\n") if line.startswith(FORGED))
    yield from _computed(text)


def folder_faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with what a command wrote, each fault with the file's name."""
    for path in sorted(folder.rglob("*")):
        name = ascii(path.relative_to(folder).as_posix())
        if not NAME.fullmatch(path.name):
            yield f"a file called {name}"
        check = SINKS.get(path.suffix)
        if check is not None and path.is_file():
            yield from (f"{name}: {fault}" for fault in dict.fromkeys(check(path.read_bytes())))


def end_faults(done: Done) -> Iterator[str]:
    """Yield what is wrong with how a command ended and with what it printed."""
    if done.code not in EXPECTED_ENDS:
        last = done.stderr.rstrip("\n").rpartition("\n")[2]
        yield f"it ended with {done.code} ({last!r:.120})"
    for name in ("stdout", "stderr"):
        yield from (f"{name}: {fault}" for fault in dict.fromkeys(terminal_faults(getattr(done, name))))


def _decoded(data: bytes) -> tuple[str, list[str]]:
    """Return bytes as text, and what is wrong with it in any file."""
    try:
        text, faults = data.decode(), []
    except UnicodeDecodeError:
        text, faults = data.decode(errors="replace"), ["it is no UTF-8"]
    return text, [*faults, *_computed(text)]


def _computed(text: str) -> Iterator[str]:
    if re.search(rf"(?<![\d.]){PRODUCT}(?!\d)", text):
        yield "a template was computed"


def _letters(text: str, unwanted: re.Pattern[str]) -> Iterator[str]:
    found = sorted(set(unwanted.findall(text)))
    if found:
        yield "letters " + ", ".join(f"U+{ord(letter):04X}" for letter in found[:8])
