"""Pages of the site that are made of what the repository has anyway: the README's sections, settings, schemas, recipes.

A page says `<!-- include README.md: Labels -->` for a section by its heading, with `, alone` for what stands above its
first subheading and with `, table` for its first table alone; `<!-- include SECURITY.md -->` for a file; and
`<!-- include settings -->`, `recipes`, `schemas`, `reasons` or `guide` for what the functions of these names make.
Right before the comment stands a link to the section or file, for who reads the page as it is; the site drops it.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ich_seq.config import Config
from ich_seq.reasons import EXCLUDED, Reason
from ich_seq.schemas import SCHEMAS, json_schema

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
GUIDE, GUIDE_RUN = ROOT / DOCS / "guide.py", ROOT / "build" / "guide" / "guide.ipynb"
INCLUDE = re.compile(
    r"^(\[[^\]\n]+\]\((?P<link>[^)\s]+)\)\s)?"  # not behind the comment: what stands behind one is no Markdown
    r"(?P<comment><!-- include (?P<what>[^:\n]+?)(: (?P<title>[^\n]+?)(, (?P<part>alone|table))?)? -->)$",
    re.MULTILINE,
)
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
NOT_OURS = re.compile(r"[a-z]+:|#|/")
"""Links that lead to other places, or within the page."""

PAGES = {
    "README.md": "index.md",
    "README.md#map-of-the-code": "reference/code-map.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "AGENTS.md": "agents.md",
}
"""Which page of the site shows a file of the repository, or a section that has a page of its own."""


def complete(markdown: str, page: str) -> str:
    """Return a page with what it includes; `page` is its path below docs/. Raises ValueError for what is not there."""
    own = relink(INCLUDE.sub(r"\g<comment>", markdown), page, source=f"{DOCS}/{page}")
    return INCLUDE.sub(lambda found: _included(found, page), own)


def _included(found: re.Match[str], page: str) -> str:
    what, title = found["what"], found["title"]
    if what in MADE:
        return MADE[what]()
    text = (ROOT / what).read_text()
    return relink(section(text, title, part=found["part"]) if title else _body(text), page, source=what)


def _body(text: str) -> str:
    """Return a file without its heading: the page has its own."""
    return re.sub(r"\A# .*\n", "", text)


def section(text: str, title: str, *, part: str | None = None) -> str:
    """Return what stands below a heading, without it: all, what comes before subheadings ("alone"), or a "table".

    Raises ValueError if it is absent.
    """
    taken: list[str] = []
    level, code = 0, False
    for line in text.splitlines():
        code ^= line.startswith("```")
        heading = None if code else re.match(r"(#+) (.*)", line)
        if level and heading and (part or len(heading[1]) <= level):
            break
        if level:
            taken.append(line)
        elif heading and heading[2] == title:
            level = len(heading[1])
    if not level:
        raise ValueError(f"there is no heading {title!r}")
    if part == "table":
        rows = "\n".join(taken)
        taken = rows[rows.index("\n|") :].strip().split("\n\n")[:1]
    return "\n".join(taken).strip()


def relink(text: str, page: str, *, source: str) -> str:
    """Return text of a file of the repository with links that lead from a page of the site, code left as it is."""
    parts = FENCE.split(text)
    parts[::2] = [LINK.sub(lambda link: _relinked(link, page, source), part) for part in parts[::2]]
    return "".join(parts)


def _relinked(link: re.Match[str], page: str, source: str) -> str:
    path, hash_, anchor = link["target"].partition("#")
    if NOT_OURS.match(link["target"]):
        return link[0]
    inside = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if f"{inside}#{anchor}" in PAGES:
        target, hash_, anchor = PAGES[f"{inside}#{anchor}"], "", ""
    elif inside.startswith(f"{DOCS}/"):
        target = inside.removeprefix(f"{DOCS}/")
    elif inside in PAGES:
        target = PAGES[inside]
    elif inside.startswith("configs/"):
        target, hash_, anchor = "reference/recipes.md", "#", Path(inside).stem
    elif (ROOT / inside).exists():
        return link["text"] if "`" in link["text"] else f"`{link['text']}`"  # a file that the site does not show
    else:
        raise ValueError(f"{source} links to {link['target']}, which is not there")
    return f"{link['mark']}[{link['text']}]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{hash_}{anchor})"


def settings() -> str:
    """Return a table for each section of the settings: key, default, what it may be, what it means."""
    explained = re.split(r"^\[(\w+)\]", (ROOT / "configs/baseline.toml").read_text(), flags=re.MULTILINE)
    texts = dict(zip(explained[1::2], explained[2::2], strict=True))
    return "\n\n".join(_section(name, field, texts[name]) for name, field in Config.model_fields.items())


def _section(name: str, field: Any, explained: str) -> str:
    schema, values = field.annotation.model_json_schema(), field.default.model_dump(mode="json")
    said = dict(re.findall(r"^(\w+) = .*?\S\s+# (.*)$", explained, re.MULTILINE))
    rows = [
        f"| `{name}.{key}` | `{json.dumps(values[key])}` | {_allowed(kind, schema)} | {_cell(said.get(key, ''))} |"
        for key, kind in schema["properties"].items()
    ]
    head = [f"## {name}", "", schema["description"], "", "| key | default | may be | |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _cell(text: str) -> str:
    """Return text that stays in its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


BOUNDS = {
    "minimum": "from {:g}",
    "exclusiveMinimum": "above {:g}",
    "maximum": "to {:g}",
    "exclusiveMaximum": "below {:g}",
    "minItems": "of {}",
    "maxItems": "to {}",
}


def _allowed(kind: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return in words what a value may be."""
    if "$ref" in kind:
        return _allowed(schema["$defs"][kind["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in kind:
        return " or ".join(_allowed(each, schema) for each in kind["anyOf"])
    if "enum" in kind:
        return ", ".join(f"`{json.dumps(value)}`" for value in kind["enum"])
    if "prefixItems" in kind:
        return f"[{', '.join(_allowed(each, schema) for each in kind['prefixItems'])}]"
    bounded = " ".join([kind["type"], *(text.format(kind[bound]) for bound, text in BOUNDS.items() if bound in kind)])
    return f"{bounded}, each {_allowed(kind['items'], schema)}" if "items" in kind else bounded


def recipes() -> str:
    """Return the settings files of the repository."""
    files = sorted((ROOT / "configs").glob("*.toml"))
    return "\n\n".join(f"## {path.stem}\n\n```toml\n{path.read_text().strip()}\n```" for path in files)


def reasons() -> str:
    """Return the reason codes that a program may meet, by fate."""
    fates = {"rejected": [r for r in Reason if r not in EXCLUDED], "excluded": [r for r in Reason if r in EXCLUDED]}
    return "\n".join(f"- {fate}: {', '.join(f'`{code}`' for code in codes)}" for fate, codes in fates.items())


def schemas() -> str:
    """Return each JSON Schema: what it is of, its keys, and itself."""
    return "\n\n".join(_schema(name, json_schema(name)) for name in SCHEMAS)


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema["required"]
    rows = [
        f"| `{key}` | {_type(kind)} | {'' if key in required else 'may be absent. '}{_meaning(kind, schema)} |"
        for key, kind in schema["properties"].items()
    ]
    raw = [f"    {line}" for line in ["```json", *json.dumps(schema, indent=2).splitlines(), "```"]]
    head = [f"## {name}", "", schema["description"], "", "| key | type | |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f'??? note "The whole schema, {schema_file(name)}"', "", *raw])


def schema_file(name: str) -> str:
    """Return the name of a schema's file."""
    return f"{name}.schema.json"


def _type(kind: dict[str, Any]) -> str:
    """Return in words of what type a value is."""
    if "anyOf" in kind:
        return " or ".join(_type(each) for each in kind["anyOf"])
    if "$ref" in kind:
        return str(kind["$ref"].rpartition("/")[2])
    if kind["type"] == "array":
        return f"array of {_type(kind['items'])}" if "items" in kind else "array"
    inner = kind.get("additionalProperties")
    return f"object of {_type(inner)}" if isinstance(inner, dict) else kind["type"]


def _meaning(kind: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return what a key means: its own description, or that of the object it leads to."""
    if "const" in kind:
        return f"`{json.dumps(kind['const'])}`"
    of = schema["$defs"].get(kind["$ref"].rpartition("/")[2], {}) if "$ref" in kind else {}
    return _cell(kind.get("description") or of.get("description", ""))


def guide() -> str:
    """Return the notebook, with its outputs if it was run as it is now."""
    cells = _notebook()
    return "\n\n".join(_shown(*each, number) for number, each in enumerate(zip(cells, _outputs(cells), strict=True)))


def _notebook() -> list[Any]:
    import jupytext

    return list(jupytext.read(GUIDE).cells)


def _outputs(cells: list[Any]) -> list[list[dict[str, Any]]]:
    """Return what each cell put out when the notebook was run, nothing if it was then another."""
    run = json.loads(GUIDE_RUN.read_text())["cells"] if GUIDE_RUN.exists() else []
    if ["".join(cell["source"]) for cell in run] != [cell.source for cell in cells]:
        return [[] for _ in cells]
    return [cell.get("outputs", []) for cell in run]


def _shown(cell: Any, outputs: list[dict[str, Any]], number: int) -> str:
    """Return a cell and below it what it printed and drew."""
    if cell.cell_type == "markdown":
        return str(cell.source)
    said = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout")
    texts = [f"```text\n{said.rstrip()}\n```"] if said.strip() else []
    pictures = [f"![What the cell above draws]({name})" for name in _pictures(outputs, number)]
    return "\n\n".join([f"```python\n{cell.source}\n```", *texts, *pictures])


def _pictures(outputs: list[dict[str, Any]], number: int) -> dict[str, bytes]:
    """Return what a cell drew, by the names of its files."""
    found = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return {f"guide-{number}-{k}.png": base64.b64decode("".join(png)) for k, png in enumerate(found)}


def made_files() -> dict[str, str | bytes]:
    """Return the files of the site that are made, by their path in it."""
    files: dict[str, str | bytes] = {
        f"reference/{schema_file(name)}": json.dumps(json_schema(name), indent=2) + "\n" for name in SCHEMAS
    }
    outputs = _outputs(_notebook())
    if any(outputs):
        files["guide.ipynb"] = GUIDE_RUN.read_text()
    return files | {name: png for number, made in enumerate(outputs) for name, png in _pictures(made, number).items()}


MADE: dict[str, Callable[[], str]] = {
    "settings": settings,
    "recipes": recipes,
    "schemas": schemas,
    "reasons": reasons,
    "guide": guide,
}
