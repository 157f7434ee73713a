"""Compressed frames into pixels, each in a process that may die of it: with a limit on memory, on work and on waiting.

A process serves one thread at a time and is kept for the next frame; there are as many as are used at once. They are
started by `subprocess` and import pydicom alone: a fork of a process that runs torch's threads could hang.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, LifoQueue
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ich_seq import IchSeqError
from ich_seq.reasons import Reason, Refused

MEMORY_BYTES = 1 << 30
"""Address space of a process: four times what the largest slice takes."""

CPU_S, PIXELS_A_SECOND = 3.0, 1 << 22
"""Computing time of a frame: so much, and more for many pixels. The slowest decoder is ten times as fast."""

WAIT_S = 120.0
"""How long an answer is waited for on a machine that has no time for it."""

READY = "ready"
"""What a process says once it can decode."""

END_S = 0.5
"""How long a process that was told to end may take."""


class Decoder:
    """One process that decodes."""

    def __init__(self) -> None:
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                # -P: no module of the current folder, which may be a stranger's data
                [sys.executable, "-P", "-m", "ich_seq.decode_worker", str(MEMORY_BYTES), READY],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=os.environ | single | {"PYTHONPATH": path},
            )
        except OSError as error:
            raise IchSeqError(f"No process for decoding can be started: {error.strerror}; free memory.") from error
        try:
            _read(self._pipe(self._process.stdout), len(READY), time.monotonic() + WAIT_S)
        except (OSError, TimeoutError):  # not the frame's fault, nor would the next one fare better
            raise IchSeqError(f"No process for decoding can be started ({self.end()}); free memory.") from None

    def decode(self, frame: bytes, request: dict[str, Any]) -> NDArray[Any]:
        """Return the pixels of a frame. Refused (DECODE): an error, or the end of the process."""
        until = time.monotonic() + WAIT_S
        cpu_s = CPU_S + request["rows"] * request["columns"] / PIXELS_A_SECOND
        head = json.dumps(request | {"bytes": len(frame), "cpu_s": cpu_s}).encode()
        try:
            _write(self._pipe(self._process.stdin), len(head).to_bytes(4) + head + frame, until)
            answers = self._pipe(self._process.stdout)
            answer = json.loads(_read(answers, int.from_bytes(_read(answers, 4, until)), until))
            body = _read(answers, int(answer["bytes"]), until)
        except (OSError, ValueError, KeyError, TimeoutError):
            raise Refused(Reason.DECODE, f"The pixels cannot be decoded ({self.end()}).") from None
        if "error" in answer:
            raise Refused(Reason.DECODE, f"The pixels cannot be decoded ({answer['error']}).")
        return np.frombuffer(bytearray(body), answer["dtype"]).reshape(answer["shape"])

    @property
    def alive(self) -> bool:
        """Tell whether the process can be given another frame."""
        return self._process.poll() is None

    def end(self) -> str:
        """End the process, which does so when nothing more can be asked, and say how it ended."""
        self._pipe(self._process.stdin).close()
        try:
            code = self._process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._pipe(self._process.stdout).close()
        return {-signal.SIGPROF: "too much work", -signal.SIGKILL: "no answer"}.get(code, f"decoder died, {code}")

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def _write(pipe: IO[bytes], data: bytes, until: float) -> None:
    rest = memoryview(data)
    os.set_blocking(pipe.fileno(), False)
    while rest:
        _wait(pipe, select.POLLOUT, until)
        rest = rest[os.write(pipe.fileno(), rest) :]


def _read(pipe: IO[bytes], count: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        _wait(pipe, select.POLLIN, until)
        more = os.read(pipe.fileno(), min(count - len(data), 1 << 20))
        if not more:
            raise BrokenPipeError
        data += more
    return bytes(data)


def _wait(pipe: IO[bytes], event: int, until: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


_idle: LifoQueue[Decoder] = LifoQueue()


def decode(frame: bytes, request: dict[str, Any]) -> NDArray[Any]:
    """Decode one frame, (H, W) as it is stored, by a process of its own for as long as that takes.

    `request` are the plain values that describe the image: syntax, plugin, rows, columns, bits_stored, signed.
    Refused (DECODE): frames that cannot be decoded, or whose decoder died, took too long or too much memory.
    """
    decoder = _borrow()
    try:
        stored = decoder.decode(frame, request)
    except Refused:
        if decoder.alive:
            _idle.put(decoder)
        raise
    except BaseException:  # an interrupt may leave half an answer in the pipe
        decoder.end()
        raise
    _idle.put(decoder)
    return stored


def _borrow() -> Decoder:
    while True:
        try:
            decoder = _idle.get_nowait()
        except Empty:
            return Decoder()
        if decoder.alive:
            return decoder


def _forget() -> None:
    """Leave the parent's decoders to the parent: a forked child on the same pipes would mix the answers."""
    global _idle  # noqa: PLW0603 - made anew in a child, whose lock may be held by a thread that is not there
    _idle = LifoQueue()


def _end_all() -> None:
    with suppress(Empty):
        while True:
            _idle.get_nowait().end()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end_all)
