"""One forked child that is watched: how it ended and how long it took, its own children with it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from attacks.proc import stats

KILL_AFTER_S = 10.0
KILL_ABOVE_MB = 4000.0
"""Where a process is ended, lest it take the machine with it."""

KILL_AFTER_WALL_S = 100.0
"""The same where the machine is so busy that nothing gets on."""

POLL_S = 0.005


def watch(pid: int) -> tuple[str, float]:
    """Wait for a child, ending it where it takes too much; return what went wrong with it and its seconds.

    These are what it would take on a machine of its own, however busy this one is: the CPU time of its processes, and
    the time in which none of them could run.
    """
    why, cpu_s, idle_s = "", 0.0, 0.0
    began = last = time.monotonic()
    while (done := os.wait4(pid, os.WNOHANG))[0] == 0:
        time.sleep(POLL_S)
        now, family = time.monotonic(), stats(pid)
        cpu_s = sum(one.cpu_s for one in family)
        idle_s, last = idle_s + (0 if any(one.may_run for one in family) else now - last), now
        why = _excess(cpu_s + idle_s, now - began, sum(one.resident_mb for one in family)) or why
        if why:
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # its own children, if it left any
    _, status, usage = done
    code = os.waitstatus_to_exitcode(status)
    why = why or (f"the process ended with {code}" if code else "")
    return why, max(cpu_s, usage.ru_utime + usage.ru_stime) + idle_s


def _excess(seconds: float, wall_s: float, resident_mb: float) -> str:
    """Return what a child has taken too much of, empty if nothing."""
    if seconds > KILL_AFTER_S or wall_s > KILL_AFTER_WALL_S:
        return f"was still running after {min(KILL_AFTER_S, wall_s):.1f} s"
    return f"had taken {resident_mb:.0f} MB" if resident_mb > KILL_ABOVE_MB else ""
