"""The README and the pages say what the code does: help texts, reason codes, the map, and commands that run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import ich_seq
from ich_seq.cli import cli
from ich_seq.commands import read_shares
from ich_seq.config import load_config
from ich_seq.phantom import write_dataset
from ich_seq.reasons import EXCLUDED, Reason

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
HELP = re.findall(r"```text\n\$ ich-seq ([^\n]+?) --help\n(.*?)\n```", README, re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
STARTS = r"^(?:\w+=\S+ )*(?:unshare [^|]*? |docker run .*? |torchrun .*? -m )?(?:ich-seq|ich_seq\.cli) ([a-z].*)$"
"""What may stand before a command of ours, and the command."""


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands_of(page: Path) -> list[str]:
    """Return the commands of ours in a page's blocks, a line each, and those that stand in its sentences."""
    text = page.read_text()
    lines = [re.sub(r"\\\n\s*", "", block) for block in blocks("sh", text)]
    found = [match for block in lines for match in re.findall(STARTS, block, re.MULTILINE)]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return found + re.findall(r"`ich-seq ([a-z][\w-]* [^`]+)`", prose)


def parse(line: str) -> None:
    """Parse a command without running it: options exist, values can be meant. Raises what the command would."""
    command: click.Command | None = cli
    arguments = shlex.split(line, comments=True)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands.get(name)
    if command is None:
        raise click.UsageError(f"There is no command {name}.")
    given = command.make_context(name, arguments).params
    file = given.get("config_file")
    load_config(None if file is None else ROOT / "configs" / file.name, given.get("overrides", ()))
    read_shares(given.get("shares", ()))


def test_every_command_has_its_help_in_the_readme() -> None:
    """A command that the README does not show is one that nobody finds."""
    assert {name.split()[0] for name, _ in HELP} == set(cli.commands)


@pytest.mark.parametrize(("name", "text"), HELP, ids=[name for name, _ in HELP])
def test_the_help_in_the_readme_is_the_command_s_own(name: str, text: str) -> None:
    """Help that was pasted once drifts; this holds it to what is printed."""
    printed = CliRunner().invoke(cli, [*name.split(), "--help"], prog_name="ich-seq", terminal_width=100).output
    assert text.strip() == printed.strip()


def test_every_reason_code_stands_in_the_readme_with_its_fate() -> None:
    """Who finds a code in rejected.csv must find what it means."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (excluded|rejected) \| \S", README, re.MULTILINE))
    assert rows == {str(r): "excluded" if r in EXCLUDED else "rejected" for r in Reason}


def test_the_map_names_every_module() -> None:
    """A room that is not on the plan is one that a newcomer does not enter."""
    plan = README[README.index("## Map of the code") : README.index("## Development")]
    named = {name for row in re.findall(r"^\| (`.+?) \|", plan, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {p.stem for p in Path(ich_seq.__file__).parent.glob("*.py")} - {"__init__"}


def test_relative_links_lead_somewhere() -> None:
    """A dead link in the README is a promise broken."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_changelog_knows_the_version() -> None:
    """The version that is installed has a section of its own."""
    assert f"## {ich_seq.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_commands_and_the_calls_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user copies from the README works, word for word, on RSNA's file names; pictures are small, epochs one."""
    small = ["slices.size=64", "cnn.epochs=1"]
    monkeypatch.setattr("ich_seq.config.load_config", lambda file, sets: load_config(file, [*small, *sets]))
    for module in ("cnn_training", "extraction", "rnn_training"):
        monkeypatch.setattr(f"ich_seq.{module}.Config", lambda: load_config(overrides=small))
    for name in ("stage_2_train", "stage_2_test"):
        drawn = write_dataset(tmp_path / "drawn" / name, n_studies=10, seed=len(name), matrix=64)
        drawn.dicom.rename(tmp_path / name)
        drawn.labels.rename(tmp_path / f"{name}.csv")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ich-seq ")]
    assert len(commands) == 6
    for command in commands:
        result = CliRunner().invoke(cli, [*shlex.split(command)[1:], "--quiet"])
        assert result.exit_code == 0, (command, result.output)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    ("page", "line"), [(p.relative_to(ROOT).as_posix(), line) for p in PAGES for line in commands_of(p)]
)
def test_a_command_of_the_pages_can_be_given(page: str, line: str) -> None:
    """What a reader copies is understood: the command, its options, their values, the settings."""
    parse(line)


def test_the_pages_show_every_command() -> None:
    """The commands are found, also behind what stands before them and over several lines."""
    names = {line.split()[0] for page in PAGES for line in commands_of(page)}
    assert names == set(cli.commands)
    container = commands_of(ROOT / "docs/howto/container.md")
    assert [line.split()[0] for line in container] == ["predict", "train-cnn"]


@pytest.mark.parametrize(
    "line",
    [
        "predikt x --bundle b --out o",
        "predict x --bundel b --out o",
        "predict x --bundle b",
        "train-rnn x y --labels l --out o",
        "predict x --bundle b --out o --engine tensorflow",
        "train-cnn x --labels l --out o --set cnn.epoch=3",
        "train-cnn x --labels l --out o --config no-such-recipe.toml",
        "evaluate --predictions p --labels l --out o --prevalence any",
    ],
)
def test_a_command_that_is_none_is_found_out(line: str) -> None:
    """The control: misspelt commands, options, settings and recipes, and what is missing or too much."""
    with pytest.raises((click.UsageError, ich_seq.UsageError)):
        parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_blocks_of_the_pages_are_what_they_say(page: Path) -> None:
    """Shell is shell, Python is Python."""
    text = page.read_text()
    for block in blocks("sh", text):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (block, done.stderr)
    for block in blocks("python", text):
        compile(block, page.name, "exec")


def test_the_page_of_files_has_every_command_that_writes() -> None:
    """And the library of weights, which lies elsewhere."""
    page = (ROOT / "docs/reference/files.md").read_text()
    writing = {name for name, command in cli.commands.items() if any("--out" in p.opts for p in command.params)}
    assert set(re.findall(r"^## ([\w-]+)$", page, re.MULTILINE)) == writing - {"demo"} | {"weights"}


def test_every_reason_has_a_remedy() -> None:
    """Troubleshooting says of each reason code what to do."""
    text = (ROOT / "docs/howto/troubleshooting.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| \S", text, re.MULTILINE) == [str(reason) for reason in Reason]


def test_figures_of_the_science_are_those_that_were_measured() -> None:
    """Tables and intervals of the page are taken from the experiments and the README, and move when these do."""
    science, experiments = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("science", "experiments"))
    rows = re.findall(r"^\| \w.*$", science, re.MULTILINE)
    intervals = re.findall(r"[-+]?\d?\.\d+ \[.+?\]", " ".join(science.split()))
    assert len(rows) == 4
    assert len(intervals) >= 10
    assert [row for row in rows if row not in experiments] == []
    measured = " ".join((experiments + README).split())
    assert [interval for interval in intervals if interval not in measured] == []


def test_messages_that_troubleshooting_quotes_are_ours() -> None:
    """Who looks for what the terminal said finds it: what is quoted stands in the code, but for its gaps."""
    text = (ROOT / "docs/howto/troubleshooting.md").read_text()
    quoted = [
        part.strip() for row in re.findall(r"^\|(.*?)\|", text, re.MULTILINE) for part in re.findall('"(.+?)"', row)
    ]
    code = "".join(path.read_text() for path in Path(ich_seq.__file__).parent.glob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # sentences that go on in the next line
    parts = [part.strip() for said in quoted for part in said.split("...") if part.strip()]
    assert len(parts) >= 8
    assert [part for part in parts if part not in code] == []


def test_agents_know_every_exit_code() -> None:
    """What a program has to tell apart stands in AGENTS.md as in the README."""
    codes = [re.findall(r"^\| ([\d, ]+) \|", page.read_text(), re.MULTILINE) for page in PAGES[:2]]
    assert codes[0] == codes[1]
    assert "3" in codes[0]


def test_the_citation_is_of_this_version() -> None:
    """Who cites the package cites what there is."""
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {ich_seq.__version__}\n" in cited
    assert "\nlicense: Apache-2.0\n" in cited


def test_the_image_holds_what_it_copies_and_runs_without_rights() -> None:
    """The Dockerfile cannot be built where it is tested; what can be read off it is."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    steps = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    last = [i for i, (step, _) in enumerate(steps) if step == "FROM"][-1]
    copied = [of.split() for step, of in steps if step == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
    assert set(sources) == let_in
    assert [of for step, of in steps if step == "FROM"] == ["python:3.11-slim AS build", "python:3.11-slim"]
    assert [of for step, of in steps[last:] if step == "USER"] == ["10001:10001"]
    assert ("ENTRYPOINT", '["ich-seq"]') in steps
    assert "ADD" not in dict(steps)
    assert "://" not in text
