"""Files that are whole or absent, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq import OutputError, UsageError
from ich_seq.files import (
    PARTIAL,
    RESULTS,
    append_line,
    growing_file,
    locked_folder,
    make_folder,
    sha256_bytes,
    sha256_file,
    short_hash,
    spare_others,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]
KILLS = 20
LEAST = 1_000_000
"""Bytes of the smallest file that is written under fire: large enough for a kill to land in its midst."""

WRITER = """
import sys
from pathlib import Path
from ich_seq.files import write_bytes
target = Path(sys.argv[1])
for number in range(10**9):
    write_bytes(target, bytes([number % 251]) * (int(sys.argv[2]) + number % 251))
    if number == 0:
        print("first", flush=True)
"""

HOLDER = """
import sys, time
from pathlib import Path
from ich_seq.files import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

FULL_DISK = """
import resource, sys
from pathlib import Path
from ich_seq import OutputError, UsageError
from ich_seq.files import append_line, growing_file, write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
call, path = sys.argv[1], Path(sys.argv[2])
try:
    if call == "grow":
        with growing_file(path) as append:
            for _ in range(1000):
                append(b"x" * 100)
    write_bytes(path, b"x" * 100_000) if call == "write" else append_line(path, "x" * 100_000)
except OutputError as error:
    print(error)
"""


@pytest.fixture
def python():
    """Start `python -c CODE ARGS` in the repository; what still runs at the end of the test is killed."""
    started = []

    def start(code: str, *args: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@given(data=st.binary(max_size=5000), text=st.text())
@settings(deadline=None, max_examples=50)
def test_hashes_are_sha256(tmp_path_factory, data, text):
    """The hashes in our manifests are plain SHA-256, so that anyone can check them with another tool."""
    path = tmp_path_factory.getbasetemp() / "hashed"
    path.write_bytes(data)
    assert sha256_bytes(data) == sha256_file(path) == hashlib.sha256(data).hexdigest()
    assert short_hash(text) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_large_file_is_hashed_whole(tmp_path):
    """A file longer than any read buffer has the hash of all its bytes."""
    data = random.Random(0).randbytes(3_000_001)
    (tmp_path / "large").write_bytes(data)
    assert sha256_file(tmp_path / "large") == hashlib.sha256(data).hexdigest()


def test_a_name_that_is_no_unicode_has_a_short_hash():
    """File names of bytes that are no UTF-8, as the system hands them over, still make a name on disk."""
    name = b"slice-\xff.dcm".decode("utf-8", "surrogateescape")
    assert short_hash(name) == hashlib.sha256(b"slice-\xff.dcm").hexdigest()[:16]


@given(first=st.binary(max_size=3000), second=st.binary(max_size=3000))
@settings(deadline=None, max_examples=30)
def test_a_written_file_holds_exactly_the_last_bytes_and_nothing_stays_beside_it(tmp_path_factory, first, second):
    """Writing twice leaves the second content alone in the folder, however the lengths compare."""
    folder = tmp_path_factory.mktemp("write")
    for data in (first, second):
        write_bytes(folder / "a.bin", data)
        assert (folder / "a.bin").read_bytes() == data
    assert names(folder) == {"a.bin"}


# No control characters beyond what JSON escapes, no lone surrogates: those cannot be UTF-8.
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain, inner, max_size=4),
    max_leaves=12,
)


@given(value=st.dictionaries(plain, values, max_size=5), data=st.data())
@settings(deadline=None, max_examples=50)
def test_json_reads_back_and_its_bytes_do_not_depend_on_key_order(tmp_path_factory, value, data):
    """JSON reads back equal, and the same content in another order gives the same bytes (and hash)."""
    folder = tmp_path_factory.getbasetemp()
    reordered = {key: value[key] for key in data.draw(st.permutations(list(value)))}
    write_json(folder / "a.json", value)
    write_json(folder / "b.json", reordered)
    written = (folder / "a.json").read_bytes()
    assert written == (folder / "b.json").read_bytes()
    assert written.endswith(b"\n")
    assert json.loads(written) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_json_and_keeps_the_old_file(tmp_path, number):
    """NaN would make a file that other readers refuse; the file that was there stays as it was."""
    write_json(tmp_path / "a.json", {"auc": 0.5})
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"auc": number})
    assert (tmp_path / "a.json").read_bytes() == before
    assert names(tmp_path) == {"a.json"}


def test_a_killed_writer_never_leaves_a_torn_file(tmp_path, python):
    """Whenever the process is killed, the target holds one write whole; the half-written rest is swept later."""
    target = tmp_path / "target.bin"
    wait = random.Random(0)
    torn_beside = 0
    for _ in range(KILLS):
        process = python(WRITER, target, LEAST)
        assert process.stdout.readline() == "first\n"
        time.sleep(wait.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        data = target.read_bytes()
        assert data == data[:1] * len(data)
        assert len(data) == LEAST + data[0]
        torn_beside += names(tmp_path) != {target.name}
    assert torn_beside, "no kill hit a write: the test proves nothing"
    with locked_folder(tmp_path):
        assert not list(tmp_path.glob(f"*{PARTIAL}"))
        assert target.exists()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, python):
    """Two runs never write to one folder, and a run that died does not block the next."""
    out = tmp_path / "out"
    holder = python(HOLDER, out)
    assert holder.stdout.readline() == "held\n"
    before = time.monotonic()
    with pytest.raises(OutputError, match=str(out)), locked_folder(out):
        pytest.fail("a folder in use was taken")
    assert time.monotonic() - before < 1  # refused at once, not after waiting
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked_folder(out):
        write_bytes(out / "a", b"1")


def test_a_folder_that_is_soon_free_is_waited_for(tmp_path):
    """Who waits gets it when the holder lets go; if that takes too long, the sentence says what to do."""
    holder = FileLock(tmp_path / ".lock", thread_local=False)
    holder.acquire()
    threading.Timer(0.3, holder.release).start()
    with locked_folder(tmp_path, wait_s=30):
        assert not holder.is_locked
    with holder, pytest.raises(OutputError, match=r"writing to .* for 0\.2 s; run the same command again later"):
        locked_folder(tmp_path, wait_s=0.2).__enter__()


def test_a_refused_process_sweeps_nothing(tmp_path, python):
    """The half-written file of the process that holds the folder is not taken from under its hands."""
    holder = python(HOLDER, tmp_path)
    assert holder.stdout.readline() == "held\n"
    (tmp_path / f"a{PARTIAL}").write_bytes(b"half")
    with pytest.raises(OutputError), locked_folder(tmp_path):
        pass
    assert (tmp_path / f"a{PARTIAL}").read_bytes() == b"half"


def test_leftovers_are_swept_and_results_kept(tmp_path):
    """Opening a folder removes what a crash left half-written, and only that."""
    for name in (f"a.safetensors{PARTIAL}", f"run.json{PARTIAL}", "a.safetensors", "partial.csv"):
        (tmp_path / name).write_bytes(b"1")
    with locked_folder(tmp_path):
        assert {n for n in names(tmp_path) if n != ".lock"} == {"a.safetensors", "partial.csv"}


def test_a_folder_is_free_again_after_an_error_inside(tmp_path):
    """An error inside the block is passed on as it is and lets go of the folder."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked_folder(tmp_path):
            raise ZeroDivisionError


def test_an_input_that_may_not_be_read_is_not_blamed_on_the_output(tmp_path):
    """A PermissionError raised by work inside the block is not turned into "cannot write to the output"."""
    with pytest.raises(PermissionError, match=r"slice\.dcm"), locked_folder(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "/input/slice.dcm")


# Below a regular file nothing can be created, not even by root, whom a read-only folder does not stop.
@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: write_bytes(path, b"1"), id="write_bytes"),
        pytest.param(lambda path: write_json(path, {}), id="write_json"),
        pytest.param(lambda path: append_line(path, "1"), id="append_line"),
        pytest.param(make_folder, id="make_folder"),
        pytest.param(lambda path: locked_folder(path).__enter__(), id="locked_folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path, write):
    """An output that cannot be created is an OutputError that names it and says what to do."""
    (tmp_path / "file").write_bytes(b"1")
    path = tmp_path / "file" / "out"
    with pytest.raises(OutputError) as refusal:
        write(path)
    assert str(path) in str(refusal.value)
    assert "choose another --out" in str(refusal.value).lower()
    assert names(tmp_path) == {"file"}


def test_a_name_too_long_for_the_disk_is_an_output_error(tmp_path):
    """A name that the disk refuses is an OutputError too, whether it is the name itself or its temporary form."""
    with pytest.raises(OutputError, match="too long"):
        write_bytes(tmp_path / ("x" * 250), b"1")


def test_a_lock_that_cannot_be_opened_is_an_output_error(tmp_path):
    """Where the lock file itself cannot be opened, for whatever reason, the folder cannot be used and is named."""
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match=str(tmp_path)), locked_folder(tmp_path):
        pass


def test_a_file_in_the_place_of_the_target_folder_stays(tmp_path):
    """Where a folder already has the target's name, the write is refused and nothing is left beside it."""
    (tmp_path / "target").mkdir()
    with pytest.raises(OutputError, match="target"):
        write_bytes(tmp_path / "target", b"1")
    assert names(tmp_path) == {"target"}


def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path, python):
    """When the bytes do not fit, the old file stays whole, nothing half-written stays, and the message says so."""
    target = tmp_path / "target.bin"
    write_bytes(target, b"old")
    message, _ = python(FULL_DISK, "write", target).communicate(timeout=30)
    assert f"Cannot write {target}" in message
    assert "Free space" in message
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == {"target.bin"}


def test_a_full_disk_is_told_when_a_journal_grows(tmp_path, python):
    """A journal line that does not fit is an OutputError; the lines before it stay."""
    journal = tmp_path / "journal"
    append_line(journal, "first")
    message, _ = python(FULL_DISK, "append", journal).communicate(timeout=30)
    assert f"Cannot write {journal}" in message
    assert journal.read_text().startswith("first\n")


def test_a_full_disk_ends_a_growing_file_as_any_other(tmp_path, python):
    """In the midst of many small pieces, whose last ones closing would try to write again."""
    message, _ = python(FULL_DISK, "grow", tmp_path / "table.csv").communicate(timeout=30)
    assert f"Cannot write {tmp_path / 'table.csv'}" in message
    assert names(tmp_path) == set()


@pytest.mark.parametrize("mark", RESULTS)
def test_a_folder_of_another_commands_result_is_spared(tmp_path, mark):
    """It may have taken days; a command's own older result it may replace."""
    (tmp_path / mark).write_text("{}")
    spare_others(tmp_path, mark)
    with pytest.raises(UsageError, match="would destroy"):
        spare_others(tmp_path)


def test_journal_lines_come_back_in_order(tmp_path):
    """Appended lines are all there, in order, one a line, in UTF-8."""
    lines = ["eins", "zwei ä", "", "drei"]
    for line in lines:
        append_line(tmp_path / "journal", line)
    assert (tmp_path / "journal").read_text(encoding="utf-8") == "eins\nzwei ä\n\ndrei\n"


@pytest.mark.parametrize("private", [True, False])
def test_what_is_private_is_at_no_time_anybody_elses_to_read(tmp_path, private):
    """Whatever the process lets others do by default, also while it is written and where it replaces another file."""
    path, mask = tmp_path / "named.dcm", os.umask(0)
    try:
        path.write_bytes(b"older")
        with growing_file(path, private=private) as append:
            append(b"x")
            (partial,) = tmp_path.glob(f"*{PARTIAL}")
            modes = {stat.S_IMODE(partial.stat().st_mode)}
        modes.add(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(mask)
    assert modes == {0o600 if private else 0o666}
