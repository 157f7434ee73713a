"""SIGINT, SIGTERM and SIGHUP end a command soon, with the exit code a shell gives them, whatever it is in the midst of.

Python turns a signal into an exception at some point of the main thread, and an exception can be swallowed: in a
destructor, in a library's callback, in an import that fails with another. So it is raised again until the command has
ended, and at last the process ends without asking: what is on disk is whole at any moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_S = 1.0
"""How long the command may take to unwind before it is interrupted anew."""

GRACE_S = 4.5
"""How long after a signal the process ends in any case: orchestrators that give five seconds shall see it gone."""

INTERRUPTED = 130
ENDED: dict[object, str] = {129: "Ended by SIGHUP", INTERRUPTED: "Interrupted", 143: "Ended by SIGTERM"}
"""What a command says by the code that a signal ends it with, 128 and its number."""

GO_ON = "Run the same command again: trainings, extract-features and watch go on where they ended, others start over."

_IMPORTS = "<frozen importlib._bootstrap>"
"""The file that Python's frames name where a module is being imported."""

_came: list[int] = []


def exit_code() -> int | None:
    """Return the code to end with if a signal came, 128 and its number."""
    return 128 + _came[0] if _came else None


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the block by SystemExit when a signal comes, at the latest GRACE_S later; for the main thread of a command.

    A signal that the process was started to ignore (`nohup`, jobs of a script) stays ignored. Where a training lets
    SIGTERM wait (`checkpoint.deferred_sigterm`), it ends a step first.
    """
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    handlers: dict[signal.Signals, Any] = {number: signal.signal(number, _end) for number in heard}
    shown = sys.unraisablehook
    sys.unraisablehook = lambda swallowed: None if _ours(swallowed) else shown(swallowed)
    try:
        yield
    except SystemExit:
        # the end has begun: Python's own handler would only interrupt it with a traceback
        handlers = dict.fromkeys(handlers, signal.SIG_IGN if _came else signal.SIG_DFL)
        raise
    finally:
        sys.unraisablehook = shown
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _ours(swallowed: sys.UnraisableHookArgs) -> bool:
    """Tell whether what a destructor swallowed is the end that we asked for: it will be asked for again."""
    return bool(_came) and issubclass(swallowed.exc_type, SystemExit)


def _end(number: int, frame: FrameType | None) -> None:
    if not _came:
        _came.append(number)
        threading.Thread(target=_insist, args=(number,), daemon=True).start()
    if _importing(frame):  # an exception inside the import of a C++ library can abort the process
        with suppress(OSError):
            os.write(2, f"{ENDED[128 + number]}. {GO_ON}\n".encode())
        _leave(number)
    raise SystemExit(exit_code())


def _importing(frame: FrameType | None) -> bool:
    """Tell whether a module is half imported."""
    while frame is not None and frame.f_code.co_filename != _IMPORTS:
        frame = frame.f_back
    return frame is not None


def _insist(number: int) -> None:
    until, main = time.monotonic() + GRACE_S, threading.main_thread().ident or 0
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(AGAIN_S, left))
        if signal.getsignal(number) is _end:
            signal.pthread_kill(main, number)  # to that thread, so that what it waits for is interrupted
    _leave(number)


def _leave(number: int) -> NoReturn:
    """End without unwinding, which is safe as what is on disk is whole at any moment; our processes end with us."""
    if pools := sys.modules.get("multiprocessing"):  # where nothing has imported it there are none
        for child in pools.active_children():
            child.kill()
    os._exit(128 + number)
