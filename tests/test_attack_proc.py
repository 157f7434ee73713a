"""tools/attacks/proc.py: what is told of a process is true, in one unit, and nothing is told of one that is gone."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks.proc import descendants, open_files, peak_mb, peak_with_largest_mb, stat, stats, status

NESTED = """
import subprocess, sys
held = bytearray(100_000_000)
subprocess.run([sys.executable, "-c", "print(flush=True); input()"])
"""


@pytest.fixture
def child():
    """A process that holds 100 MB and waits for one of its own, which waits for a line."""
    with subprocess.Popen([sys.executable, "-c", NESTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_those_below_a_process_are_found_and_what_they_hold(child):
    below = descendants(child)
    assert len(below) == 1
    assert set(descendants(os.getpid())) >= {child, *below}
    until = time.monotonic() + 60
    while any(one.may_run for one in stats(child)) and time.monotonic() < until:
        time.sleep(0.01)  # the line was written, but is not waited for yet
    assert [one.may_run for one in stats(child)] == [False, False]
    assert stat(child).resident_mb > 100
    assert peak_mb(child) == pytest.approx(stat(child).resident_mb, rel=0.3)
    assert peak_with_largest_mb() >= peak_mb(os.getpid()) + peak_mb(child)


def test_a_megabyte_is_a_million_bytes():
    """By one way as by the other."""
    before_mb = stat(os.getpid()).resident_mb
    with mmap.mmap(-1, 50_000_000) as held:  # pages of its own, where numpy would take what was freed before
        for _ in range(50):
            held.write(bytes([1]) * 1_000_000)
        assert stat(os.getpid()).resident_mb - before_mb == pytest.approx(len(held) / 1e6, rel=0.1)
    told_mb = int(status(os.getpid())["VmRSS"].split()[0]) * 1024 / 1e6
    assert stat(os.getpid()).resident_mb == pytest.approx(told_mb, abs=1)


def test_an_open_file_is_told(tmp_path):
    with (tmp_path / "a").open("w") as file:
        assert Path(file.name) in [path.readlink() for path in open_files(os.getpid()) if path.is_symlink()]


def test_of_a_process_that_is_gone_nothing_is_told():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert descendants(process.pid) == stats(process.pid) == open_files(process.pid) == []
    for tell in (stat, status, peak_mb):
        with pytest.raises(OSError, match=str(process.pid)):
            tell(process.pid)
