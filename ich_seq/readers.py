"""Threads that read ahead of what computes and write behind it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")
READER = "ich-seq-reader"


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Map in order, with `workers` results ahead of the one in use; 0 makes each when it is asked for.

    Threads, since a process that already runs OpenMP's or OpenVINO's threads cannot be forked safely, and
    one started afresh has to import torch and to be sent every header. Each computes on one core. Closed
    early, it drops what no thread has begun.
    """
    if workers < 1:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
    with one_core_threads(workers, READER) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for result in waiting:
                result.cancel()


def write_behind(write: Callable[[Item], None], items: Iterable[Item]) -> Iterator[Item]:
    """Pass each item on once it is written, by a thread of its own while the next is made: it waits for the disk."""
    with ThreadPoolExecutor(1) as writer:
        waiting: tuple[Item, Future[None]] | None = None
        for item in items:
            if waiting is not None:
                waiting[1].result()
                yield waiting[0]
            waiting = item, writer.submit(write, item)
        if waiting is not None:
            waiting[1].result()
            yield waiting[0]


def one_core_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Return so many threads of this name, each of which computes on one core."""
    return ThreadPoolExecutor(count, name, initializer=_take_one_core)


def _take_one_core() -> None:
    """Let OpenMP compute on this thread alone, or each reader would bring as many threads as there are cores.

    Not by torch.set_num_threads, which speaks for all threads still to come and moves MKL's choices in
    those that are there, and so the last bits of a training.
    """
    torch.get_num_threads()  # lets torch set this thread's number now, as it would later undo what follows
    threadpool_limits(limits=1, user_api="openmp")
