"""Work that may never end, such as an exchange with a server: waited for as long as it gets on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")
LEAVE_S = 0.5
"""How long work that nobody waits for any more may take to notice that, before what it works on is cleared away."""

Advance = Callable[[int], None]
"""Called by work with how much it has done since it called last."""


class Stalled(Exception):  # noqa: N818 - a verdict on the work
    """The work did not get on, and nobody waits for it any more."""


def patiently(work: Callable[[Advance], Result], *, least: int, every_s: float) -> Result:
    """Return what `work` returns or raise what it raises, as long as each `every_s` seconds bring it on by `least`.

    Else Stalled is raised here, and in the work when it next tells of itself. It is done by a thread of its own, as a
    name service, a handshake or a line of a header that comes letter by letter has no limit of its own.
    """
    outcome: Future[Result] = Future()
    done, left = [0], threading.Event()

    def advance(amount: int) -> None:
        if left.is_set():
            raise Stalled
        done[0] += amount

    def run() -> None:
        try:
            outcome.set_result(work(advance))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="ich-seq-patience").start()
    try:
        before = 0
        while wait([outcome], timeout=every_s).not_done:
            if done[0] - before < least:
                raise Stalled
            before = done[0]
        return outcome.result()
    finally:
        left.set()
        wait([outcome], timeout=LEAVE_S)
