"""What Linux tells of a process and of those below it; an MB is 10^6 bytes."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MB_A_KIB = 1024 / 1e6
"""The kernel tells memory in KiB, `resource` too."""


@dataclass(frozen=True, slots=True)
class Stat:
    """How a process stands: its state as a letter, the CPU time of it and its ended children, its resident memory."""

    state: str
    cpu_s: float
    resident_mb: float

    @property
    def may_run(self) -> bool:
        """Whether it runs, waits for a core or has ended, and so is not kept waiting by anything else."""
        return self.state in "RZX"


def stat(pid: int) -> Stat:
    """Return how a process stands. OSError: there is none."""
    state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks, pages = sum(map(int, numbers[10:14])), int(numbers[20])
    return Stat(state, ticks / os.sysconf("SC_CLK_TCK"), pages * resource.getpagesize() / 1e6)


def stats(pid: int) -> list[Stat]:
    """Return how a process and those below it stand, as far as there are any."""
    found = []
    for number in (pid, *descendants(pid)):
        with suppress(OSError):
            found.append(stat(number))
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    found: list[int] = []
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def status(pid: int) -> dict[str, str]:
    """Return what the kernel tells of a process by name. OSError: there is none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has held so far, 0 for one that has ended. OSError: there is none."""
    return int(status(pid).get("VmHWM", "0 kB").split()[0]) * MB_A_KIB


def peak_with_largest_mb() -> float:
    """Return the most memory that this process has held so far, and of those below it, ended or not, the largest."""
    below = [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MB_A_KIB]
    for number in descendants(os.getpid()):
        with suppress(OSError):
            below.append(peak_mb(number))
    return peak_mb(os.getpid()) + max(below)


def open_files(pid: int) -> list[Path]:
    """Return a link for each file that a process holds open, none if there is no such process."""
    with suppress(OSError):
        return list(Path(f"/proc/{pid}/fd").iterdir())
    return []
