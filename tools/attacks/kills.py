"""kill -9: at writes, fsyncs, renames and removals, at random times, and again while the command is restarted.

Each command runs into an empty folder, over its own finished result, and over a result of other data or settings.
After each kill nothing in the folder passes for whole that is not, and the same command, run again, ends with the bytes
of a run that was never killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.resumption import GROUNDS, Course, Ground, mended, partial_files, torn
from attacks.scene import RESULTS, Scene
from attacks.zygote import Done, Fault, Zygote

POINTS = 300
KILLED = 128 + signal.SIGKILL
LAST_EVENTS = 40
"""In so many events a result is put together from what was computed."""

KINDS = ("anywhere", "at a removal", "near the end", "at a time", "twice")


@dataclass(frozen=True, slots=True)
class Kill:
    """One trial: a course, and where its command is killed: at events, or after a share of its time."""

    course: Course
    kind: str
    at: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.course.name}, killed {self.kind} at {', '.join(f'{at:.4g}' for at in self.at)}"


def run(
    work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0, commands: Sequence[str] = tuple(RESULTS)
) -> Outcome:
    """Kill commands at POINTS points in all; see the module."""
    failures: list[str] = []
    seen: Counter[str] = Counter()
    slowest = 0.0
    points = scaled(POINTS, scale, least=2)
    stale: dict[str, str] = {}
    for kill in _kills(Ground(work, scene, zygote), commands, points, np.random.default_rng(seed)):
        out = kill.course.prepare(work / "out")
        stale[kill.course.name] = kill.course.stale
        for at in kill.at:
            done = _killed(kill, at, zygote, out)
            seen["struck"] += done.code == KILLED
            seen["torn files left"] += partial_files(out)
            failures += [f"{kill}: right after it {problem}" for problem in [torn(kill.course, out)] if problem]
        again, problem = mended(kill.course, zygote, out)
        slowest = max(slowest, again.seconds)
        failures += [f"{kill}: {problem}"] if problem else []
        seen[kill.kind] += 1
        seen[kill.course.command] += 1
    failures += [f"{name}: never killed, it leaves {file} as it was" for name, file in stale.items() if file]
    figures = dict(sorted(seen.items())) | {"slowest restart s": round(slowest, 2)}
    return Outcome(points, tuple(failures), figures)


def _kills(ground: Ground, commands: Sequence[str], points: int, rng: np.random.Generator) -> Iterator[Kill]:
    """Yield the trials course by course: each course has its share of the points, and all kinds in turn."""
    plans = [(command, where) for where in GROUNDS for command in commands]
    for number, (command, where) in enumerate(plans):
        mine = range(number, points, len(plans))
        if mine:
            course = ground.course(command, where)
            for turn in range(len(mine)):
                kind = KINDS[(turn + number) % len(KINDS)]
                yield Kill(course, kind, _points(course, kind, (turn + rng.random()) / len(mine), rng))


def _points(course: Course, kind: str, share: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Return where to kill: at a share (0..1) of the course's events, of a kind of them, or of its seconds."""
    if kind == "at a time":
        return (share * course.seconds,)
    if kind == "at a removal":
        return (course.removal(share),)
    if kind == "near the end":
        return (course.event(1 - (1 - share) * min(1.0, LAST_EVENTS / course.events)),)
    return (course.event(share), course.event(rng.random())) if kind == "twice" else (course.event(share),)


def _killed(kill: Kill, at: float, zygote: Zygote, out: Path) -> Done:
    """Run the command and kill it; one that is over before ends as it does."""
    line = kill.course.line(out)
    if kill.kind != "at a time":
        return zygote.run(line, fault=Fault("kill", int(at)))
    running = zygote.start(line)
    time.sleep(at)
    os.kill(running.pid, signal.SIGKILL)
    return zygote.wait(running)
