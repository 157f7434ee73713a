"""A series of trials in processes of their own: one that kills or hangs its process is a finding and ends no other."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import TypeVar

from attacks.proc import descendants, stats

Result = TypeVar("Result")

START_S, END_S = 120, 10
"""How long a process may take to import what it needs, and to end its own helpers."""

IDLE_FACTOR = 12
"""A trial that waits without computing hangs as well, but on a busy machine honest ones wait too."""

PARALLEL_FROM = 2000
"""Fewer trials are over before a second process has started."""

MEMORY_BYTES = 6 << 30
"""What a process may address: a bomb that goes off must not take the machine with it."""


class Fate(StrEnum):
    """What became of a trial that gave no answer."""

    KILLED = "killed the process that reads"
    HUNG = "did not end"


def watched(
    trial: Callable[[int], Result], count: int, limit_s: float, processes: int = 2
) -> list[tuple[int, Result | Fate]]:
    """Try every number below `count` and return what came of each, in order. A trial must be picklable.

    A trial that computes for longer than `limit_s` is ended; what comes after it runs in a fresh process. What a trial
    raises is raised here: it is a fault of the attack.
    """
    processes = processes if count >= PARALLEL_FROM else 1
    shares = [range(first, count, processes) for first in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        answers = pool.map(lambda share: list(_watch(trial, share, limit_s)), shares)
        return sorted((pair for share in answers for pair in share), key=lambda pair: pair[0])


def _watch(
    trial: Callable[[int], Result], numbers: Iterable[int], limit_s: float
) -> Iterator[tuple[int, Result | Fate]]:
    left = list(numbers)
    while left:
        answered = 0
        for answer in _answers(trial, left, limit_s):
            yield left[answered], answer
            answered += 1
        left = left[answered:]


def _answers(trial: Callable[[int], Result], numbers: list[int], limit_s: float) -> Iterator[Result | Fate]:
    """Yield what came of one number after another, as far as one process gets."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_try_all, args=(trial, numbers, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_S) or ours.recv() is not None:
            raise RuntimeError("The process for the trials did not start.")
        for _ in numbers:
            if not _answered(ours, process.pid or 0, limit_s):
                yield Fate.HUNG
                return
            try:
                answer = ours.recv()
            except (EOFError, ConnectionError):
                yield Fate.KILLED
                return
            if isinstance(answer, BaseException):
                raise answer
            yield answer
        process.join(END_S)
    finally:
        for pid in descendants(process.pid or 0) if process.is_alive() else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.join()


def _answered(answers: Connection, pid: int, limit_s: float) -> bool:
    """Wait for an answer; give up once the trial has computed for `limit_s`, or waited for many times that."""
    if answers.poll(limit_s):
        return True
    began, used_s = time.monotonic() - limit_s, _cpu_s(pid)  # a whole limit more, as what it used before is not known
    while not answers.poll(0.2):
        if _cpu_s(pid) - used_s > limit_s or time.monotonic() - began > IDLE_FACTOR * limit_s:
            return False
    return True


def _cpu_s(pid: int) -> float:
    """Return the seconds that a process and those it started have computed so far."""
    return sum(member.cpu_s for member in stats(pid))


def _try_all(trial: Callable[[int], object], numbers: list[int], answers: Connection) -> None:
    """Send None, then what each trial returns. Nothing is printed: some decoders print at every damaged frame."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers.send(None)
    for number in numbers:
        try:
            answers.send(trial(number))
        except Exception as fault:
            answers.send(fault)
            return
