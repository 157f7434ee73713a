"""The command `watch` as a process: what it prints, how signals end it, and that no kill -9 costs a result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from attacks.tiny_bundle import write_tiny_bundle
from attacks.zygote import Fault

from ich_seq.files import short_hash
from ich_seq.labels import LABELS
from ich_seq.worklist import folder_of

pytest_plugins = ["grounds"]

STUDIES = {"1.2.30": 2, "1.2.4": 1, "1.2.5": 3}
KEYS = {"study_uid", "fate", "reason", "again", "probabilities", "slices", "lost_slices", "folder"}
KILLED = 128 + signal.SIGKILL


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


class Brisk:
    """Starts commands that end without taking their modules apart, which costs more time than a small watch."""

    def __init__(self, zygote):
        self.zygote, self.wait = zygote, zygote.wait

    def run(self, arguments, **how):
        """Run a command to its end."""
        return self.zygote.run(arguments, brisk=True, **how)

    def start(self, arguments):
        """Begin a command."""
        return self.zygote.start(arguments, brisk=True)


@pytest.fixture(scope="module")
def commands(zygote):
    return Brisk(zygote)


@pytest.fixture(scope="module")
def add(write_slice):
    """Add slices of a study to a folder, from a number on."""

    def add(folder, uid, count, start=0):
        folder.mkdir(exist_ok=True)
        for i in range(start, start + count):
            write_slice(
                folder / f"{uid}-{i}.dcm",
                stored=np.random.default_rng([i, len(uid)]).integers(900, 1200, (16, 16)),
                PixelSpacing=[5, 5],
                ImagePositionPatient=[-40, -40, 5 * i],
                StudyInstanceUID=uid,
                SOPInstanceUID=f"{uid}.{i}",
                PatientID=uid,
            )

    return add


@pytest.fixture(scope="module")
def dicom(add, cut_frame, tmp_path_factory):
    """Four studies, one of which is of no use, and a file of none."""
    folder = tmp_path_factory.mktemp("dicom")
    for uid, count in {**STUDIES, "1.2.6": 1}.items():
        add(folder, uid, count)
    cut_frame(folder / "1.2.6-0.dcm")
    (folder / "bad.dcm").write_text("bad")
    return folder


@pytest.fixture(scope="module")
def line(bundle):
    """Return the command line that watches a folder."""

    def line(folder, out, *more):
        given = [str(folder), "--bundle", str(bundle), "--out", str(out), "--device", "cpu", "--workers", "0"]
        return ["watch", *given, "--quiet-time", "0", "--every", "0.05", "--quiet", *more]

    return line


def tree(folder):
    """Every file and folder below one, but for the lock and the journal, which has times."""
    found = [path for path in sorted(folder.rglob("*")) if path.name not in (".lock", "watch.jsonl")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in found}


def ended(out):
    """How often the journal says of each study and key that it ended."""
    rows = [json.loads(row) for row in (out / "watch.jsonl").read_text().splitlines() if row]
    return [(row["study"], row["key"]) for row in rows if row["event"] == "ended"]


def wait_until(reached, within_s=120.0):
    until = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_line_a_study_on_stdout_and_3_for_rejected_files(commands, line, dicom, tmp_path):
    """Readable, or JSON by the schema of the README; all else is on stderr."""
    plain = commands.run(line(dicom, tmp_path / "plain", "--once", "--no-report"))
    assert plain.code == 3
    lines = plain.stdout.splitlines()
    assert [row.split()[1] for row in lines] == ["1.2.30:", "1.2.4:", "1.2.5:", "1.2.6:"]
    assert lines[0].endswith(f": 2 slices -> {tmp_path / 'plain' / folder_of('1.2.30')}")
    assert lines[3] == "unusable 1.2.6: no usable slice (decode 1)"
    assert "3 studies, 0 failed; of 8 files 6 were used, 0 excluded and 2 rejected" in plain.stderr
    told = commands.run(line(dicom, tmp_path / "out", "--once", "--no-report", "--json"))
    news = [json.loads(row) for row in told.stdout.splitlines()]
    assert all(study.keys() == KEYS for study in news)
    assert [study["fate"] for study in news] == ["predicted"] * 3 + ["unusable"]
    assert [list(study["probabilities"] or {}) for study in news] == [list(LABELS)] * 3 + [[]]
    assert [f"{study['probabilities']['any']:.3f}" for study in news[:3]] == [row.split()[0] for row in lines[:3]]
    assert [(study["slices"], study["lost_slices"]) for study in news] == [(2, 0), (1, 0), (3, 0), (0, 0)]
    again = commands.run(line(dicom, tmp_path / "out", "--once", "--no-report", "--json"))
    assert (again.code, again.stdout) == (3, "")


def test_studies_are_done_as_they_arrive(commands, line, add, tmp_path):
    """Half a study first, a second study, the rest of the first: the newest result stands."""
    folder, out = tmp_path / "in", tmp_path / "out"
    add(folder, "1", 2)
    running = commands.start(line(folder, out, "--no-report"))
    try:
        wait_until(lambda: (out / "watch.jsonl").exists() and len(ended(out)) == 1)
        add(folder, "2", 1)
        wait_until(lambda: len(ended(out)) == 2)
        add(tmp_path / "more", "1", 1, start=2)
        shutil.copy(tmp_path / "more" / "1-2.dcm", folder / "late")
        wait_until(lambda: len(ended(out)) == 3 and (out / "studies.csv").read_text().count("\n") == 3)
        wait_until(lambda: (out / folder_of("1") / "slices.csv").read_text().count("\n") == 4)
    finally:
        os.kill(running.pid, signal.SIGTERM)
        commands.wait(running)
    assert commands.run(line(folder, out, "--no-report", "--once")).stdout == ""
    commands.run(line(folder, tmp_path / "afresh", "--no-report", "--once"))
    assert tree(out) == tree(tmp_path / "afresh")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_within_five_seconds_while_it_waits(commands, line, tmp_path, number):
    """With 128 and the signal's number, and without a traceback; half a second is for a machine with much to do."""
    (tmp_path / "in").mkdir()
    running = commands.start(line(tmp_path / "in", tmp_path / "out", "--every", "60"))
    wait_until((tmp_path / "out" / "run.json").exists)
    sent = time.monotonic()
    os.kill(running.pid, number)
    done = commands.wait(running)
    assert done.code == 128 + number
    assert running.began + done.seconds - sent < 5.5
    assert "Traceback" not in done.stderr


def test_a_folder_that_goes_is_waited_for_and_told_of_once(commands, line, add, tmp_path):
    """A share that hiccups ends no watch."""
    folder, out = tmp_path / "in", tmp_path / "out"
    add(folder, "1", 1)
    running = commands.start(line(folder, out, "--no-report"))
    try:
        wait_until(lambda: (out / "watch.jsonl").exists() and len(ended(out)) == 1)
        folder.rename(tmp_path / "away")
        time.sleep(0.5)
        (tmp_path / "away").rename(folder)
        add(folder, "2", 1)
        wait_until(lambda: len(ended(out)) == 2)
    finally:
        os.kill(running.pid, signal.SIGTERM)
        done = commands.wait(running)
    told = done.stderr.splitlines()
    assert [row for row in told if "Waiting for it." in row] == [
        f"{folder} cannot be read: No such file or directory. Waiting for it."
    ]
    assert told.count("It is there again.") == 1


def test_a_second_watch_of_a_worklist_gives_way(commands, line, add, tmp_path):
    """It ends with 5, and the first one goes on."""
    folder, out = tmp_path / "in", tmp_path / "out"
    add(folder, "1", 1)
    running = commands.start(line(folder, out, "--no-report"))
    try:
        wait_until(lambda: (out / "watch.jsonl").exists() and len(ended(out)) == 1)
        second = commands.run(line(folder, out, "--no-report", "--once"))
        assert (second.code, second.stdout) == (5, "")
        assert "Another process is writing" in second.stderr
    finally:
        os.kill(running.pid, signal.SIGTERM)
        assert commands.wait(running).code == 143


@pytest.fixture(scope="module")
def unbroken(commands, line, dicom, tmp_path_factory):
    """What a watch makes that nobody disturbs, how long it takes, and how many writes there are."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    done = commands.run(line(dicom, out, "--once"), count=True)
    assert done.code == 3
    return tree(out), done


def check_killed(commands, arguments, out, unbroken, kills):
    """Kill a watch at each of some points, one after another; then let it end, and compare."""
    for kill in kills:
        if isinstance(kill, int):
            done = commands.run(arguments, fault=Fault("kill", kill))
        else:
            running = commands.start(arguments)
            time.sleep(kill)
            os.kill(running.pid, signal.SIGKILL)
            done = commands.wait(running)
        assert done.code in (KILLED, 3)
        for folder in (out / "studies").glob("[0-9a-f]*"):  # whole or absent at any moment
            assert (folder / "study.json").exists(), kills
    done = commands.run(arguments)
    assert done.code == 3, (kills, done.stderr)
    assert tree(out) == unbroken[0], kills
    assert {study for study, _ in ended(out)} == {*STUDIES, "1.2.6"}
    assert commands.run(arguments).stdout == "", kills


@pytest.mark.slow
def test_a_kill_at_some_moments_ends_as_an_unbroken_watch(commands, line, dicom, tmp_path, unbroken):
    """A few of the moments that the slow test below has all of."""
    events = unbroken[1].events
    for number, share in enumerate((0.25, 0.8)):
        out = tmp_path / str(number)
        check_killed(commands, line(dicom, out, "--once"), out, unbroken, [1 + int(share * events)])


@pytest.mark.slow
def test_a_kill_at_any_moment_ends_as_an_unbroken_watch(commands, line, dicom, tmp_path, unbroken):
    """In the midst of each write, before each fsync, rename and removal; and at random times, up to three in a row."""
    rng, done = np.random.default_rng(0), unbroken[1]
    plans = [[at] for at in range(1, done.events + 1, 16)]
    plans += [[float(rng.uniform(0, done.seconds)) for _ in range(1 + i % 3)] for i in range(3)]
    plans += [[int(rng.integers(1, done.events)) for _ in range(2)] for _ in range(3)]
    for kills in plans:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        check_killed(commands, line(dicom, out, "--once"), out, unbroken, kills)


@pytest.mark.slow
def test_a_kill_while_a_study_is_replaced_loses_neither_result(commands, line, add, tmp_path):
    """At any moment there is the older result or the newer one, once they are taken up, and at the end the newer."""
    folder, older, out = tmp_path / "in", tmp_path / "older", tmp_path / "out"
    for uid, count in STUDIES.items():
        add(folder, uid, count)
    commands.run(line(folder, older, "--once"))
    add(folder, "1.2.5", 2, start=3)
    shutil.copytree(older, out)
    count = commands.run(line(folder, out, "--once"), count=True)
    newer = tree(out)
    for at in range(1, count.events + 1):
        shutil.rmtree(out)
        shutil.copytree(older, out)
        commands.run(line(folder, out, "--once"), fault=Fault("kill", at))
        assert commands.run(line(folder, out, "--once")).code == 0
        assert tree(out) == newer, at


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [("ENOSPC", 0.3), ("EIO", 0.9)])
def test_a_disk_that_fails_ends_with_5_and_can_be_taken_up(commands, line, dicom, tmp_path, unbroken, kind, share):
    """No result is taken for whole that is not."""
    out = tmp_path / "out"
    done = commands.run(line(dicom, out, "--once"), fault=Fault(kind, 1 + int(share * unbroken[1].events)))
    assert (done.code, "Traceback" in done.stderr) == (5, False)
    assert commands.run(line(dicom, out, "--once")).code == 3
    assert tree(out) == unbroken[0]


@pytest.mark.slow
def test_the_order_in_which_files_came_is_not_seen_in_a_study(commands, line, dicom, tmp_path, unbroken):
    """Dropped one by one while it is watched, done as often as that takes, each study ends as it would at once."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    running = commands.start(line(folder, out, "--quiet-time", "0.3"))
    try:
        for name in np.random.default_rng(0).permutation(sorted(path.name for path in dicom.iterdir())):
            shutil.copy2(dicom / name, folder / name)
            time.sleep(0.02)
        uids = {short_hash(uid) for uid in [*STUDIES, "1.2.6"]}
        wait_until(lambda: {p.name for p in (out / "studies").glob("[0-9a-f]*")} == uids)
        wait_until(lambda: not [p for p in uids if len((out / "studies" / p / "study.json").read_bytes()) < 10])
    finally:
        os.kill(running.pid, signal.SIGTERM)
        commands.wait(running)
    assert commands.run(line(folder, out, "--once")).code == 3
    found = tree(out)
    for name in ("slices.csv", "rejected.csv"):
        assert found[name] == unbroken[0][name]
