"""Decoders in processes of their own: they decode as pydicom does, and what kills them costs one frame."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import RLELossless

from ich_seq import IchSeqError, decoding
from ich_seq.decoding import Decoder, decode
from ich_seq.reasons import Reason, Refused

ROWS, COLUMNS = 48, 32
REQUEST = {
    "syntax": RLELossless, "plugin": "pydicom", "rows": ROWS, "columns": COLUMNS, "bits_stored": 16, "signed": True,
}  # fmt: skip
LARGEST = {"rows": 4096, "columns": 4096}
RUNS = b"\x81\x00" * (4096 * 4096 // 128)
ZEROS = np.array([2, 64, 64 + len(RUNS), *[0] * 13], "<u4").tobytes() + RUNS + RUNS
"""A frame of the largest size."""


def packed(plane: bytes) -> bytes:
    """A byte plane as run-length packets of literal bytes, a row each."""
    return b"".join(bytes([COLUMNS - 1]) + plane[i : i + COLUMNS] for i in range(0, len(plane), COLUMNS))


def frame_of(stored: np.ndarray) -> bytes:
    """A run-length frame, high bytes first (PS3.5 G)."""
    high, low = (packed(stored.astype(">i2").tobytes()[k::2]) for k in (0, 1))
    return np.array([2, 64, 64 + len(high), *[0] * 13], "<u4").tobytes() + high + low


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(-2000, 3000, (ROWS, COLUMNS)).astype(np.int16)


@pytest.fixture(autouse=True)
def fresh():
    """No decoder is left by or for another test."""
    decoding._end_all()
    yield
    decoding._end_all()


def reason_of(frame: bytes, **changes: object) -> Reason:
    with pytest.raises(Refused) as caught:
        decode(frame, REQUEST | changes)
    return caught.value.reason


def test_a_frame_is_decoded_to_its_pixels(stored):
    """Bit for bit, and writable, as an array that was never elsewhere."""
    decoded = decode(frame_of(stored), REQUEST)
    np.testing.assert_array_equal(decoded, stored)
    assert decoded.flags.writeable


def test_a_process_is_kept_for_the_next_frame(stored):
    """A start takes as long as many frames; an error of the decoder is none of the process."""
    decode(frame_of(stored), REQUEST)
    (first,) = decoding._idle.queue
    assert reason_of(frame_of(stored)[:90]) == Reason.DECODE
    decode(frame_of(stored), REQUEST)
    assert list(decoding._idle.queue) == [first]


def test_planes_of_another_image_are_refused(stored):
    """pydicom cuts planes that are too long and warns of it; a padded byte is allowed."""
    assert reason_of(frame_of(np.vstack([stored, stored]))) == Reason.DECODE
    high = frame_of(stored)
    np.testing.assert_array_equal(decode(high + b"\x00\x07", REQUEST), stored)


def test_a_decoder_that_dies_costs_its_frame_and_no_other(stored, monkeypatch):
    """The next frame is decoded by another process."""
    decode(frame_of(stored), REQUEST)
    (idle,) = decoding._idle.queue
    os.kill(idle._process.pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, lambda: os.kill(idle._process.pid, signal.SIGKILL))
    killer.start()
    assert reason_of(frame_of(stored)) == Reason.DECODE
    killer.join()
    np.testing.assert_array_equal(decode(frame_of(stored), REQUEST), stored)


def test_a_decoder_that_computes_for_too_long_is_ended(monkeypatch):
    """By its own computing time, not by the clock: a busy machine refuses nothing."""
    monkeypatch.setattr(decoding, "CPU_S", 0.02)
    monkeypatch.setattr(decoding, "PIXELS_A_SECOND", 1e12)
    with pytest.raises(Refused, match="too much work"):
        decode(ZEROS, REQUEST | LARGEST)


def test_a_decoder_that_answers_nothing_is_not_waited_for_for_ever(stored, monkeypatch):
    """A process that is stopped, or waits for a disk, is given up."""
    decode(frame_of(stored), REQUEST)
    (idle,) = decoding._idle.queue
    monkeypatch.setattr(decoding, "WAIT_S", 0.3)
    os.kill(idle._process.pid, signal.SIGSTOP)
    assert reason_of(frame_of(stored)) == Reason.DECODE
    assert not idle.alive


def test_memory_has_a_limit(monkeypatch):
    """The largest slice fits; where a process may have less than that takes, it is a frame that cannot be decoded."""
    np.testing.assert_array_equal(decode(ZEROS, REQUEST | LARGEST), np.zeros((4096, 4096), np.int16))
    decoding._end_all()
    monkeypatch.setattr(decoding, "MEMORY_BYTES", 100 << 20)
    assert reason_of(ZEROS, **LARGEST) == Reason.DECODE


def test_threads_have_a_decoder_each(stored):
    """Answers never cross, and there are no more processes than threads that decode."""
    frames = [np.full((ROWS, COLUMNS), k, np.int16) for k in range(24)]
    wrong: list[int] = []

    def work(part: int) -> None:
        for k in range(part, 24, 3):
            if not (decode(frame_of(frames[k]), REQUEST) == k).all():
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert decoding._idle.qsize() <= 3


def test_a_forked_child_starts_decoders_of_its_own(stored):
    """On the parent's pipes two would mix their answers."""
    decode(frame_of(stored), REQUEST)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if decoding._idle.empty() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert decoding._idle.qsize() == 1


def test_an_ended_process_is_gone(stored):
    """No zombie and no open pipe stay behind."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    decoder = Decoder()
    decoder.decode(frame_of(stored), REQUEST)
    decoder.end()
    assert not decoder.alive
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_module_of_the_current_folder_is_run(stored, tmp_path, monkeypatch):
    """Which may be a stranger's data: `cd incoming; ich-seq predict .`"""
    for name in ("resource.py", "json.py", "numpy.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(decode(frame_of(stored), REQUEST), stored)
    assert not (tmp_path / "ran").exists()


def test_a_decoder_that_cannot_start_is_no_fault_of_the_frame(stored, monkeypatch):
    """It would be none of the next one either: the command ends, and no slice is rejected for it."""
    monkeypatch.setattr(decoding.sys, "executable", "/bin/false")
    with pytest.raises(IchSeqError, match="No process for decoding can be started"):
        decode(frame_of(stored), REQUEST)


def test_a_lower_limit_of_the_system_is_kept(stored):
    """A limit that is there already can only be lowered by who is not root."""
    limited = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
from ich_seq.decoding import decode
assert decode(bytes.fromhex({frame_of(stored).hex()!r}), {REQUEST!r}).shape == {(ROWS, COLUMNS)}
"""
    subprocess.run([sys.executable, "-c", limited], check=True)
