"""What a process does to the disk, as events that are counted and of which one may go wrong."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.zygote import Fault

WRITE, FSYNC, RENAME, REMOVAL = "wfrx"

FULL = ("ENOSPC", "EDQUOT")
"""Of a full disk files can still be removed."""


class Events:
    """The writes, fsyncs, renames and removals of this process: each leaves a letter in a file, and some go wrong."""

    def __init__(self, letters: Path, fault: Fault | None) -> None:
        self.seen, self.fault = 0, fault
        self.letters = os.open(letters, os.O_RDWR | os.O_CREAT)

    def __call__(self, letter: str, half: Callable[[], Any] = lambda: None) -> None:
        """Note what is about to happen; raise or be killed where it is to go wrong, after `half` of it."""
        os.pwrite(self.letters, letter.encode(), self.seen)
        self.seen += 1
        if self.fault is None or self.seen < self.fault.at:
            return
        if letter == REMOVAL and self.fault.kind in FULL:
            return
        if self.fault.kind == "kill":
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.fault.kind)
        raise OSError(number, os.strerror(number))


class WatchedFile:
    """A file whose writes are events."""

    def __init__(self, file: Any, event: Events) -> None:
        self.file, self.event = file, event

    def __enter__(self) -> WatchedFile:
        self.file.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        self.file.__exit__(*problem)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> Any:
        """Write, unless this is what goes wrong."""
        self.event(WRITE, lambda: (self.file.write(data[: len(data) // 2]), self.file.flush()))
        return self.file.write(data)


def watch_writes(event: Events) -> None:
    """Let every write, fsync, rename and removal of this process be an event."""
    plain_open, plain_fsync, plain_replace = pathlib.Path.open, os.fsync, os.replace

    def watched_open(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = plain_open(self, mode, *arguments, **named)
        return WatchedFile(file, event) if set(mode) & set("wax+") else file

    def watched_fsync(number: int) -> None:
        event(FSYNC)
        plain_fsync(number)

    def watched_replace(*arguments: Any, **named: Any) -> None:
        event(RENAME)
        plain_replace(*arguments, **named)

    def watched_removal(plain: Any) -> Any:
        def remove(*arguments: Any, **named: Any) -> None:
            event(REMOVAL)
            plain(*arguments, **named)

        return remove

    pathlib.Path.open, os.fsync, os.replace = watched_open, watched_fsync, watched_replace  # type: ignore[assignment]
    os.unlink, os.remove, os.rmdir = map(watched_removal, (os.unlink, os.remove, os.rmdir))
