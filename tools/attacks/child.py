"""A child process that is watched: how it ended, how long it took and how much memory, its own children with it.

For Linux, whose /proc tells.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
    began, why, idle_s, spent = time.monotonic(), "", 0.0, Spent()
    last = began
    while (done := os.wait4(pid, os.WNOHANG))[0] == 0:
        time.sleep(POLL_S)
        now, spent = time.monotonic(), _spent(pid)
        idle_s, last = idle_s + (0 if spent.running else now - last), now
        if spent.cpu_s + idle_s > KILL_AFTER_S or now - began > KILL_AFTER_WALL_S:
            why = f"was still running after {min(KILL_AFTER_S, now - began):.1f} s"
        elif spent.resident_mb > KILL_ABOVE_MB:
            why = f"had taken {spent.resident_mb:.0f} MB"
        if why:
            os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # its own children, if it left any
    _, status, usage = done
    code = os.waitstatus_to_exitcode(status)
    why = why or (f"the process ended with {code}" if code else "")
    return why, max(spent.cpu_s, usage.ru_utime + usage.ru_stime) + idle_s


@dataclass(frozen=True, slots=True)
class Spent:
    """What a process and those below it have taken so far, and whether one of them is running or waits for a core."""

    cpu_s: float = 0.0
    resident_mb: float = 0.0
    running: bool = True


def _spent(pid: int) -> Spent:
    cpu_s, resident_mb, running = 0.0, 0.0, False
    for number in (pid, *_descendants(pid)):
        with suppress(OSError):
            state, *numbers = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            cpu_s += sum(map(int, numbers[10:14])) / os.sysconf("SC_CLK_TCK")
            resident_mb += int(numbers[20]) * resource.getpagesize() / 1e6
            running |= state in "RZX"
    return Spent(cpu_s, resident_mb, running)


def peak_mb() -> float:
    """Return the most memory that this process has held so far, and of those below it, ended or not, the largest."""
    own, ended = (resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + max([ended, *map(_peak_kib, _descendants(os.getpid()))])) * 1024 / 1e6


def _peak_kib(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def _descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    found: list[int] = []
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found
