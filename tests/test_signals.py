"""Signals end a command for certain: where an exception is raised, swallowed or turned into another."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

BLOCKS = {
    "computing": "while True: pass",
    "waiting": "import time; time.sleep(60)",
    "swallowed once": """
import time
class Swallows:
    def __del__(self):
        print("here", flush=True)
        time.sleep(60)
Swallows()
time.sleep(60)""",
    "swallowed for ever": """
import time
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass""",
}


ANSWERING = """
import signal
from ich_seq.signals import ENDING, ended_by_signals
for number in ENDING:
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
"""
"""Signals do in a new process what they do at a terminal, though the tests run under `nohup`, say."""


def started(block: str) -> subprocess.Popen[str]:
    """A process in the midst of a block that signals end."""
    said = f"""{ANSWERING}
with ended_by_signals():
    print("ready", flush=True)
    exec({block!r})
"""
    command = [sys.executable, "-c", said]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return process


def stderr_at_its_end(process: subprocess.Popen[str]) -> str:
    """What a process said of its end; one that does not end fails the test, and is not left behind."""
    try:
        return process.communicate(timeout=30)[1]
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_signal_ends_a_block_with_its_code_and_without_a_traceback(block, number):
    """Within five seconds, whatever becomes of the exception, and 128 and the signal's number as a shell has it."""
    process = started(BLOCKS[block])
    began = time.monotonic()
    process.send_signal(number)
    err = stderr_at_its_end(process)
    assert process.returncode == 128 + number
    assert time.monotonic() - began < 5.5
    assert err == ""


def test_the_handlers_are_those_from_before_once_the_block_has_ended():
    """What a program does with signals is its own again."""
    said = """
import signal
from ich_seq.signals import ENDING, ended_by_signals
before = [signal.getsignal(number) for number in ENDING]
with ended_by_signals():
    assert [signal.getsignal(number) for number in ENDING] != before
assert [signal.getsignal(number) for number in ENDING] == before
"""
    subprocess.run([sys.executable, "-c", said], check=True)


def test_a_second_signal_does_not_disturb_the_end():
    """An impatient Ctrl-C while the interpreter winds up."""
    process = started("""
import atexit, time
atexit.register(lambda: (print("winding up", flush=True), time.sleep(1)))
time.sleep(60)""")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "winding up\n"
    process.send_signal(signal.SIGINT)
    err = stderr_at_its_end(process)
    assert (process.returncode, err) == (130, "")


def test_a_signal_after_the_end_has_begun_ends_it_without_a_traceback():
    """All is done, and the interpreter winds up."""
    process = started("""
import atexit, sys, time
atexit.register(lambda: (print("winding up", flush=True), time.sleep(9)))
sys.exit(0)""")
    assert process.stdout.readline() == "winding up\n"
    process.send_signal(signal.SIGINT)
    err = stderr_at_its_end(process)
    assert (process.returncode, err) == (-signal.SIGINT, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_so(number):
    """`nohup`, and jobs that a script started in the background."""
    said = f"""
import os, signal
signal.signal({int(number)}, signal.SIG_IGN)
from ich_seq.signals import ended_by_signals
with ended_by_signals():
    os.kill(os.getpid(), {int(number)})
    print("went on")
"""
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_an_import_ends_the_process_without_an_exception(tmp_path, number):
    """Libraries of C++ that are half imported abort on one; the sentence is said all the same."""
    (tmp_path / "slow_to_import.py").write_text(f"""
import os
try:
    os.kill(os.getpid(), {int(number)})
finally:
    print("unwound", flush=True)
""")
    said = f"""{ANSWERING}
import sys
sys.path.insert(0, {str(tmp_path)!r})
with ended_by_signals():
    import slow_to_import
"""
    done = subprocess.run(
        [sys.executable, "-c", said],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert "Run the same command again" in done.stderr


@pytest.mark.slow
def test_an_error_that_a_signal_was_turned_into_is_still_its_end(tmp_path):
    """A library that catches SystemExit and raises an error of its own is no bug of ours."""
    said = """
import os, signal, sys, time
import ich_seq.extraction
from ich_seq.cli import main
def work(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except SystemExit:
        raise ImportError("no module")
ich_seq.extraction.extract_features = work
sys.argv = ["ich-seq", "extract-features", "in", "--out", "out"]
main()
"""
    done = subprocess.run([sys.executable, "-c", said], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert "bug" not in done.stderr
