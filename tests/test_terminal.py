"""Streams that are full, closed or read by nobody: the run ends as it would, and only a lost result is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ich_seq.labels import LABELS

SLICES = 40


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A label file, which a command soon has read."""
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = [f"ID_{i:06x}_{label},{int(i % 4 == 0)}" for i in range(SLICES) for label in LABELS]
    path.write_text("\n".join(["ID,Label", *rows]) + "\n")
    return path


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def explored(table: Path, out: Path, streams: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m ich_seq.cli explore "{table}" --out "{out}" {streams}'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=120, env=os.environ | env)
    return subprocess.CompletedProcess(command, ended.returncode, ended.stdout.decode("latin-1"), ended.stderr.decode())


@pytest.fixture(scope="module")
def undisturbed(table, tmp_path_factory):
    """What the command writes where all streams are open."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert explored(table, out, "").returncode == 0
    return files_below(out)


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["2>/dev/full", "<&- 2>&-", "<&- >&- 2>&-", "2> >(exit)"])
def test_no_stream_but_the_results_changes_a_run(table, undisturbed, tmp_path, streams):
    """A closed stream's number goes to no file of ours, where a library's words would land."""
    done = explored(table, tmp_path / "out", streams)
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "out") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("stdout", ["> /dev/full", "| true"])
def test_a_result_that_nobody_takes_is_told_and_all_files_are_there(table, undisturbed, tmp_path, stdout):
    """Code 5 as for any output that cannot be written, in one sentence."""
    done = explored(table, tmp_path / "out", f"{stdout}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: The result cannot be printed on stdout")
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    assert files_below(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_a_result_that_stdout_has_no_letters_for_is_printed_all_the_same(table, tmp_path):
    """An output folder may have any name, a terminal any encoding."""
    done = explored(table, tmp_path / "\u03b1\u2013", "; exit $?", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "\\u03b1" in done.stdout


def test_help_that_stdout_does_not_take_is_no_bug(tmp_path):
    """A sentence and code 5, as for a result."""
    command = f'"{sys.executable}" -m ich_seq.cli --help > /dev/full'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (5, "Error: stdout: No space left on device.\n")
