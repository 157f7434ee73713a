"""The pages of the site: what they include is what the repository says, and the site asks nobody for anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import site_pages
from run_guide import run_guide
from site_pages import INCLUDE, complete, made_files, relink, section

from ich_seq.cli import cli
from ich_seq.config import Config
from ich_seq.schemas import SCHEMAS

pytest_plugins = ["browser"]

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

TEXT = """\
# Top

First.

## One

Above.

```sh
# no heading
```

| a | b |
|---|---|
| 1 | 2 |

### Below

Deep.

## Two

Last.
"""


def test_a_section_ends_where_the_next_of_its_level_begins() -> None:
    """Subheadings belong to it, a comment in code is no heading, and another heading is refused."""
    assert section(TEXT, "One").startswith("Above.")
    assert section(TEXT, "One").endswith("### Below\n\nDeep.")
    assert section(TEXT, "One", part="alone").endswith("| 1 | 2 |")
    assert section(TEXT, "One", part="table") == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert section(TEXT, "Top", part="alone") == "First."
    assert section(TEXT, "Two") == "Last."
    with pytest.raises(ValueError, match="no heading 'Three'"):
        section(TEXT, "Three")


@pytest.mark.parametrize(
    ("link", "led_to"),
    [
        ("[a](docs/experiments.md#x)", "[a](../experiments.md#x)"),
        ("![a](docs/report.png)", "![a](../report.png)"),
        ("[a](SECURITY.md)", "[a](../security.md)"),
        ("[a](README.md#map-of-the-code)", "[a](../reference/code-map.md)"),
        ("[a](configs/cpu.toml)", "[a](../reference/recipes.md#cpu)"),
        ("[a.py](ich_seq/cli.py)", "`a.py`"),
        ("[a](https://example.org/docs)", "[a](https://example.org/docs)"),
        ("[a](#below)", "[a](#below)"),
        ("```python\nx[0](docs/nothing.md)\n```", "```python\nx[0](docs/nothing.md)\n```"),
    ],
)
def test_links_of_the_readme_lead_on_from_a_page(link: str, led_to: str) -> None:
    """To pages where there are some, to recipes, and nowhere where the site shows no file; code stays code."""
    assert relink(link, "howto/page.md", source="README.md") == led_to


def test_a_link_to_nothing_is_refused() -> None:
    """A dead link of an included file ends the build."""
    with pytest.raises(ValueError, match=r"README\.md links to nothing\.txt"):
        relink("[a](nothing.txt)", "index.md", source="README.md")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_finds_all_that_it_includes(page: str) -> None:
    """A heading of the README that is renamed has to be renamed here too; nothing is left to be put in."""
    written = (DOCS / page).read_text()
    assert len(INCLUDE.findall(written)) == written.count("<!-- include")  # none that is misspelt
    assert "<!-- include" not in complete(written, page)


def _anchors(text: str) -> set[str]:
    """Return the anchors that a Git host gives the headings of a file."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


INCLUDES = [(page, found) for page in PAGES for found in INCLUDE.finditer((DOCS / page).read_text())]


@pytest.mark.parametrize(("page", "found"), INCLUDES, ids=[f"{page}: {found['comment']}" for page, found in INCLUDES])
def test_what_is_included_is_linked_for_who_reads_the_page_as_a_file(page: str, found: re.Match[str]) -> None:
    """The link leads to the section, or to what the site's text is made of, and the site does not show it."""
    path, _, anchor = (found["link"] or "").partition("#")
    target = (DOCS / page).parent / path
    assert path
    assert target.exists()
    if found["what"] not in site_pages.MADE:
        assert target.resolve() == ROOT / found["what"]
    if found["title"]:
        assert _anchors(f"# {found['title']}") == {anchor}
        assert anchor in _anchors(target.read_text())
    assert complete(found[0], page) == complete(found["comment"], page)


@pytest.mark.slow
def test_references_hold_all_there_is() -> None:
    """Every setting with its meaning, every schema with its file, every recipe."""
    settings = site_pages.settings()
    for name, section_ in Config.model_fields.items():
        for key in section_.default.model_dump():
            assert re.search(rf"^\| `{name}\.{key}` \| `.+` \| .+ \| .*\|$", settings, re.MULTILINE), (name, key)
    for row in (
        "| `slices.size` | `256` | integer from 32 to 1024 | S, side of the network's square input, pixels |",
        "| `slices.neighbours` | `[0]` | array of 1 to 16, each integer from -64 to 64 | channels from other",
        "| `cnn.folds` | `5` | integer from 2 to 1000 | by patient; one network a fold, which learns from the others |",
        "| `train.folds` | `5` | integer from 3 to 1000 | by patient; each network stops early on one and learns",
    ):
        assert row in settings
    assert all(f"## {name}\n" in site_pages.schemas() for name in SCHEMAS)
    assert {f"reference/{name}.schema.json" for name in SCHEMAS} <= set(made_files())
    assert all(f"## {path.stem}\n" in site_pages.recipes() for path in (ROOT / "configs").glob("*.toml"))


@pytest.mark.slow
def test_a_notebook_is_run_and_shown_with_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell prints and draws stands below it; a cell that fails ends the run; an older run is not shown."""
    guide, run = tmp_path / "guide.py", tmp_path / "run"
    drawn = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('a line')"
    guide.write_text(f"# %% [markdown]\n# # A guide\n\n# %%\n{drawn}\n")
    monkeypatch.setattr(site_pages, "GUIDE", guide)
    monkeypatch.setattr(site_pages, "GUIDE_RUN", run / "guide.ipynb")
    assert "a line\n```" not in site_pages.guide()
    nbformat.validate(json.loads(run_guide(guide, run).read_text()))
    shown = site_pages.guide()
    assert shown.startswith("# A guide\n\n```python\nimport matplotlib")
    assert "```text\na line\n```" in shown
    (picture,) = re.findall(r"!\[.+?\]\((.+?)\)", shown)
    assert bytes(made_files()[picture])[1:4] == b"PNG"
    guide.write_text("# %%\nprint('other')\n")
    assert "a line" not in site_pages.guide()
    guide.write_text("# %%\n1 / 0\n")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_guide(guide, run)


class Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names, links to or loads."""
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        self.loads += [given[name] or "" for name in ("src", "href", "srcset", "data") if tag != "a" and name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built so that any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    """Also those that are made, of commands and of docstrings."""
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(link)
            if re.match("[a-z]+:", target):
                continue
            led_to = (path.parent / unquote(target)).resolve() if target else path
            known = pages[led_to].anchors if led_to in pages else set()
            if not led_to.is_file() or (anchor and unquote(anchor) not in known and led_to in pages):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []


@pytest.mark.slow
def test_nothing_of_the_site_is_loaded_from_elsewhere(site: Path) -> None:
    """No page, style or script of it names another host to load from; links for people to follow may."""
    outside = re.compile(r"\s*(https?:)?//")
    asked = [f"{p.name}: {x}" for p in site.rglob("*.html") for x in Page(p).loads if outside.match(x)]
    styles = [p.name for p in site.rglob("*.css") if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", p.read_text())]
    assert (asked, styles) == ([], [])


@pytest.mark.slow
def test_the_commands_calls_and_schemas_are_on_their_pages(site: Path) -> None:
    """References are made of the program: a command, call or schema that is new is there by itself."""
    page = site / "reference" / "commands.html"
    commands = Page(page).anchors
    assert "--resamples INTEGER RANGE" in page.read_text()
    assert set(cli.commands) <= {anchor.removeprefix("ich-seq-") for anchor in commands}
    calls = Page(site / "reference" / "python.html").anchors
    assert {"ich_seq.predict", "ich_seq.evaluate", "ich_seq.UsageError"} <= calls
    for name in SCHEMAS:
        assert json.loads((site / "reference" / f"{name}.schema.json").read_text())["$id"].endswith(f":{name}")


@pytest.mark.slow
def test_the_site_works_as_files_without_a_network(site: Path, browser) -> None:
    """Pages open and the search finds, from file: alone and with no error; nothing else is asked for."""
    context = browser._chromium.new_context(offline=True)
    with context:
        page = context.new_page()
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index.html", "guide.html", "reference/commands.html", "howto/report.html"):
            page.goto((site / name).as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("subdural")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        found = page.locator(".md-search-result__item a").first.get_attribute("href")
    assert errors == []
    assert found
    assert (site / Path(found.removeprefix(site.as_uri()).lstrip("/")).as_posix().partition("?")[0]).is_file()
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
