"""Opens pages in the system's Chromium and tells what a reader, or an attacker, would notice.

A test file that says `pytest_plugins = ["browser"]` has the fixture `browser`, a `Browser`, started once for all files.
It imports nothing from here: pytest must be the first to, and warns if it is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"
FLAGS = "--no-sandbox", "--disable-gpu", "--disable-background-networking"

MEASURE = """() => {
  const tag = (element) => element.cloneNode(false).outerHTML.slice(0, 120);
  const all = (css, unfit) => [...document.querySelectorAll(css)].filter(unfit).map(tag);
  const blank = (text) => !(text || "").trim();
  const scrolls = (element) => getComputedStyle(element).overflowX !== "visible";
  const contained = (element) => {
    const box = element.parentElement;
    return box && box !== document.body && (scrolls(box) || contained(box));
  };
  const beyond = (element) => {
    const { left, right } = element.getBoundingClientRect();
    const end = scrolls(element) ? right : Math.max(right, left + element.scrollWidth);
    return end > innerWidth + 0.5 && !contained(element);
  };
  return {
    overflow_px: document.documentElement.scrollWidth - innerWidth,
    overflowing: all("body *", (e) => beyond(e) && ![...e.children].some(beyond)).slice(0, 5),
    scripts: document.querySelectorAll("script").length,
    unnamed: [
      ...all("img:not([alt])", () => true),
      ...all("svg[role=img]", (e) => blank(e.getAttribute("aria-label"))),
      ...all("table", (e) => !e.caption || blank(e.caption.textContent)),
      ...all("a[href]", (e) => blank(e.textContent) && blank(e.getAttribute("aria-label"))
        && ![...e.querySelectorAll("img")].some((image) => !blank(image.alt))),
    ],
  };
}"""
"""Run by the debugger, which a page's policy does not bind: pages are measured under the policy they come with."""


@dataclass(frozen=True)
class Seen:
    """What came of opening a page."""

    console: tuple[str, ...]
    """Errors and warnings, what the content policy refused and exceptions among them."""

    requests: tuple[str, ...]
    """What else was asked for, refused or not; data URIs stand in the page and are left out."""

    dialogs: tuple[str, ...]
    """The messages of alerts and the like."""

    scripts: int
    """Script elements in the document, run or not."""

    overflow_px: int
    """How far the document reaches beyond the window, to the right."""

    overflowing: tuple[str, ...]
    """Tags of some elements that reach there, but for those in a box that scrolls, as `.wide` does."""

    unnamed: tuple[str, ...]
    """Tags of pictures, charts, tables and links that a screen reader could not name."""

    png: bytes
    """The whole page."""

    @property
    def faults(self) -> dict[str, Any]:
        """What is wrong, by name; empty for a sound page."""
        found = {name: getattr(self, name) for name in ("console", "requests", "dialogs", "scripts", "unnamed")}
        if self.overflow_px > 0:
            found["overflow"] = f"{self.overflow_px} px, by {', '.join(self.overflowing) or 'no element alone'}"
        return {name: value for name, value in found.items() if value}


class Browser:
    """Chromium, cut off from the network."""

    DESKTOP, PHONE, PAPER = 1280, 390, 718
    """Widths in CSS pixels; paper is A4 upright with margins of 1 cm."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    def look(self, path: Path, *, width: int = DESKTOP, dark: bool = False, print_: bool = False) -> Seen:
        """Open a file in a fresh, empty context, in a window of this width or, for print, on paper of it."""
        console: list[str] = []
        requests: list[str] = []
        dialogs: list[str] = []
        context = self._chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", offline=True
        )
        with context:
            page = context.new_page()
            page.on("console", lambda said: said.type in ("error", "warning") and console.append(said.text))
            page.on("pageerror", lambda error: console.append(str(error)))
            page.on("request", lambda request: requests.append(request.url))
            page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            page.emulate_media(media="print" if print_ else "screen")
            url = path.resolve().as_uri()
            page.goto(url)
            measured = page.evaluate(MEASURE)
            png = page.screenshot(full_page=True)
        others = tuple(asked for asked in requests if asked != url and not asked.startswith("data:"))
        measured |= {name: tuple(measured[name]) for name in ("overflowing", "unnamed")}
        return Seen(console=tuple(console), requests=others, dialogs=tuple(dialogs), png=png, **measured)

    def assert_sound(self, path: Path) -> None:
        """Assert that a page has no faults on a desktop and a phone, light and dark; says all there are."""
        looks = [(width, dark) for width in (self.DESKTOP, self.PHONE) for dark in (False, True)]
        found = {f"{width} px, {'dark' if dark else 'light'}": self.look(path, width=width, dark=dark).faults
                 for width, dark in looks}  # fmt: skip
        faults = [f"{look}: {name}: {fault}" for look, some in found.items() for name, fault in some.items()]
        assert not faults, "\n".join([f"{path.name} is not sound", *faults])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium, once, with a new profile of its own (`launch` makes one and removes it)."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        yield Browser(chromium)
        chromium.close()
