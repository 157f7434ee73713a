"""The README says what the code does: help texts, reason codes, the map, and commands that run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import ich_seq
from ich_seq.cli import cli
from ich_seq.phantom import write_dataset
from ich_seq.reasons import EXCLUDED, Reason

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
HELP = re.findall(r"```text\n\$ ich-seq ([^\n]+?) --help\n(.*?)\n```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


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
    """What a user copies from the README works, word for word, on RSNA's file names."""
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
