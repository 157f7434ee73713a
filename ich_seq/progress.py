"""Progress on stderr: bars on a terminal, a plain line now and then otherwise, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done and how much there is."""

PLAIN_EVERY_S = 10.0


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing; the default of every Python call."""


@contextmanager
def shown(*, quiet: bool) -> Iterator[Progress]:
    """Give a `Progress` that shows itself on stderr as long as the block runs."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield _plain_lines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn()
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = int(bars.add_task(stage, total=total))
            bars.update(bars.task_ids[tasks[stage]], completed=done, total=total)

        yield report


def _plain_lines() -> Progress:
    last: dict[str, float] = {}

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - last.setdefault(stage, now) >= PLAIN_EVERY_S:
            last[stage] = now
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)

    return report
