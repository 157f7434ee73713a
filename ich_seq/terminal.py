"""The standard streams of a command: the result on stdout, all else on stderr, and neither can harm a run.

A terminal that is gone, a full disk behind `2> log` or a stream closed by a scheduler must not end work of hours.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ich_seq import OutputError

STDOUT, STDERR = 1, 2


class _Lenient(io.FileIO):
    """A stream that takes everything, whether it can keep it or not."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # as FileIO declares it, by a name that is private
        except OSError:
            return len(bytes(data))  # type: ignore[call-overload]  # a buffer


@contextmanager
def harmless_streams() -> Iterator[None]:
    """Let no word on stderr fail, and no file get the number of a closed stream, as long as the block runs.

    A file opened after a stream was closed gets its number, and what a C library then says lands in that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(number, True)
    os.close(number)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever the terminal's letters are
    before = sys.stderr
    raw = _Lenient(STDERR, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)
    try:
        yield
    finally:
        sys.stderr = before


def print_result(text: str) -> None:
    """Print the result, the one thing that goes to stdout. Raises OutputError if nobody takes it."""
    try:
        click.echo(text)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python writes out at its end what is left, and would fail
        raise OutputError(
            f"The result cannot be printed on stdout ({error.strerror}). All files were written; run the command again "
            "with stdout elsewhere to see it."
        ) from error
