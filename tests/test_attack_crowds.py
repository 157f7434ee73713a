"""Crowds of processes on one folder, and that the attack finds what a package without its lock would do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from attacks.crowds import Aim, Ended, Played, draw_round, play, prepare, run
from attacks.zygote import Done, Zygote

pytest_plugins = ["grounds"]

LEFT_BEHIND = """\
import os
import filelock

class Marker:
    def __init__(self, path, timeout):
        self.path = path
    def __enter__(self):
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise filelock.Timeout(str(self.path)) from None
    def __exit__(self, *problem):
        os.unlink(self.path)

filelock.FileLock = Marker
"""
WON, GAVE_WAY = Done(0, "", "", 1.0, 0), Done(5, "", "Error: Another process is writing to {out}; wait.", 0.1, 0)


@pytest.mark.slow
def test_a_slice_of_the_crowds_finds_nothing(scene, zygote, tmp_path):
    """Of one input, and of two, one process wins and the others say why they do not."""
    outcome = run(tmp_path, scene=scene, zygote=zygote, scale=0.04, seed=6)
    assert outcome.failures == ()
    assert outcome.trials == 2
    assert outcome.figures["processes that won"] >= 2


@pytest.mark.slow
def test_a_lock_that_outlives_its_process_is_found(scene, tmp_path, monkeypatch):
    """With a lock that is a file which is there or not, a killed process keeps all others out."""
    weak = tmp_path / "weak"
    weak.mkdir()
    (weak / "sitecustomize.py").write_text(LEFT_BEHIND)
    monkeypatch.setenv("PYTHONPATH", str(weak), prepend=":")
    ground_folder = tmp_path / "ground"
    ground_folder.mkdir()
    with Zygote() as zygote:
        ground = prepare(ground_folder, scene, zygote)
        killed = replace(draw_round(4, 0), aims=(Aim("extract-features"),) * 2, killed_at=0.0)
        played = play(killed, ground)
    assert any("nobody won" in failure for failure in played.failures)


@pytest.fixture
def played(tmp_path):
    """Make a round of two processes on two inputs, with what they left and how the second one ended."""

    def make(found, second):
        aims = Aim("predict"), Aim("predict", other=True)
        told = replace(second, stderr=second.stderr.format(out=tmp_path))
        alone = {aims[0]: {"a": b"1", "b": b"1"}, aims[1]: {"a": b"2", "b": b"2"}}
        ended = Ended(aims[0], WON), Ended(aims[1], told)
        return Played(replace(draw_round(1, 0), aims=aims), tmp_path, ended, found, alone)

    return make


def test_what_a_winner_alone_would_have_left_is_right(played):
    """One loser who names the folder does not matter."""
    assert not played({"a": b"1", "b": b"1"}, GAVE_WAY).failures


@pytest.mark.parametrize(
    ("found", "second", "told"),
    [
        ({"a": b"1", "b": b"2"}, WON, "files of several"),
        ({"a": b"1", "b": b"12"}, GAVE_WAY, "no process alone"),
        ({"a": b"1"}, GAVE_WAY, "no winner's result whole"),
        ({"a": b"2", "b": b"2"}, GAVE_WAY, "no winner's result whole"),
        ({"a": b"1", "b": b"1"}, Done(5, "", "Error: no.", 0.1, 0), "ended with 5"),
        ({"a": b"1", "b": b"1"}, Done(1, "", "Traceback ... {out}", 0.1, 0), "ended with 1"),
        ({"a": b"1", "b": b"1"}, Done(2, "", "Error: {out} was begun with other settings", 0.1, 0), "ended with 2"),
    ],
    ids=["files of both", "half of each", "a file short", "the loser's", "no folder named", "a bug", "another's plan"],
)
def test_a_wrong_end_or_result_is_found(played, found, second, told):
    """Each is a failure that says which round it was."""
    failures = played(found, second).failures
    assert len(failures) == 1
    assert told in failures[0]
    assert failures[0].startswith("round 1 (")
