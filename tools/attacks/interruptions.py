"""SIGTERM, SIGINT and SIGHUP at any time: commands end soon, with the code of the signal, and can be taken up again.

Each process is stopped while its result is looked at, then gets its signal. Was the result there to its last byte, the
command may end as if nothing had come; else it must end within five seconds with 128 + the signal's number, without a
traceback, leave nothing that passes for whole, and run again to the bytes of an undisturbed run. Some get a second
signal at once, as impatient people give it. SIGHUP is counted beside the others.

A few trials are starts as a shell makes them, imports and all; what they start in turn gets the signal too, as from a
terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from attacks import Outcome, scaled
from attacks.proc import status
from attacks.resumption import Course, Ground, last_line, looks_whole, mended, tells_of_a_bug, torn
from attacks.scene import RESULTS, Scene
from attacks.zygote import Done, Zygote

POINTS, HANGUPS, STARTS = 100, 24, 12
COMMANDS = (*RESULTS, *RESULTS, *RESULTS, *RESULTS, "explore", "evaluate")
"""In turn; the last two cannot be taken up and take longest."""

WITHIN_S = 5.0
ASKED = (signal.SIGTERM, signal.SIGINT)
IMPATIENT_EVERY = 5
IMPATIENT_AFTER_S = 0.05
STARTED = "predict"
"""The command that is started as a shell does: it needs nearly all modules, and cannot be taken up half-way."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """One trial: a signal, once or twice, after so many seconds of a command."""

    course: Course
    number: signal.Signals
    after_s: float
    twice: bool = False

    def __str__(self) -> str:
        return f"{self.course.name}, {self.number.name}{' twice' if self.twice else ''} after {self.after_s:.3f} s"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command met its signal: whether its result was there already, how it ended and how long that took."""

    late: bool
    done: Done
    took_s: float


@dataclass(slots=True)
class Attack:
    """What is attacked, and what came of it so far."""

    work: Path
    zygote: Zygote
    failures: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def attempt(self, trial: Interruption, out: Path, end: Callable[[Interruption, Path], Ended]) -> None:
        """Interrupt a command, run it again, and note what is amiss."""
        trial.course.prepare(out)
        ended = end(trial, out)
        self.slowest_s = max(self.slowest_s, ended.took_s)
        self.seen[f"{trial.number.name} ended with {ended.done.code}"] += 1
        self.seen["after the last byte"] += ended.late
        problems = [*_problems(trial, ended), torn(trial.course, out) if out.is_dir() else ""]
        _, unmended = mended(trial.course, self.zygote, out)
        self.failures += [f"{trial}: {problem}" for problem in [*problems, unmended] if problem]

    def in_child(self, trial: Interruption, out: Path) -> Ended:
        """Interrupt a command in a forked child."""
        running = self.zygote.start(trial.course.line(out))
        sent, late = _signalled(running.pid, trial, lambda: looks_whole(trial.course, out), group=False)
        done = self.zygote.wait(running, timeout_s=60)
        return Ended(late, done, running.began + done.seconds - sent)

    def in_start(self, trial: Interruption, out: Path) -> Ended:
        """Interrupt a command as a shell starts it, and the processes that it started."""
        with (self.work / "stderr").open("w+") as stderr, _start(trial.course, out, stderr) as process:
            sent, late = _signalled(process.pid, trial, lambda: looks_whole(trial.course, out), group=True)
            code = process.wait(timeout=60)
            took_s = time.monotonic() - sent
            stderr.seek(0)
            done = Done(code if code >= 0 else 128 - code, "", stderr.read(), took_s, 0)
        return Ended(late, done, took_s)


def _start(course: Course, out: Path, stderr: IO[str]) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own, with two threads that read."""
    command = [sys.executable, "-m", "ich_seq.cli", *course.line(out), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)


def _time_of_start(course: Course, out: Path) -> float:
    """Return how long a command takes that a shell starts, s."""
    began = time.monotonic()
    with (out.parent / "stderr").open("w") as stderr, _start(course, course.prepare(out), stderr) as process:
        process.wait()
    return time.monotonic() - began


def _problems(trial: Interruption, ended: Ended) -> list[str]:
    """Return what was amiss in how the command ended."""
    done, problems = ended.done, []
    expected = [128 + trial.number, *([trial.course.code] if ended.late else [])]
    if done.code not in expected:
        problems.append(f"it ended with {done.code}, not {' or '.join(map(str, expected))}: {last_line(done)}")
    if ended.took_s > WITHIN_S:
        problems.append(f"it took {ended.took_s:.1f} s to end")
    if tells_of_a_bug(done):
        problems.append(f"a traceback: {last_line(done)}")
    return problems


def _signalled(pid: int, trial: Interruption, whole: Callable[[], bool], *, group: bool) -> tuple[float, bool]:
    """Send the signal at its time; return when, and whether the result was there. One that has ended counts as late."""
    send = os.killpg if group else os.kill
    begun = _wait_for(pid, _listens)
    time.sleep(max(0.0, begun + trial.after_s - time.monotonic()))
    late = True
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        _wait_for(pid, lambda told: told["State"][0] in "TtZX")
        late = whole()
        send(pid, trial.number)
        os.kill(pid, signal.SIGCONT)
    sent = time.monotonic()
    if trial.twice:
        time.sleep(IMPATIENT_AFTER_S)
        with suppress(ProcessLookupError):
            send(pid, trial.number)
    return sent, late


def _wait_for(pid: int, reached: Callable[[dict[str, str]], bool]) -> float:
    """Wait until the kernel says of a process what is waited for, or that it is no more; return the time."""
    with suppress(OSError):
        while not reached(status(pid)):
            time.sleep(0.001)
    return time.monotonic()


def _listens(told: dict[str, str]) -> bool:
    """Tell whether a process catches SIGTERM, as the command line does first of all, or has ended.

    A signal that comes before that ends an interpreter that has not read a line of the package.
    """
    return told["State"][0] in "ZX" or bool(int(told["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def run(
    work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0, commands: Sequence[str] = COMMANDS
) -> Outcome:
    """Interrupt commands at POINTS points by those that ask to end, at HANGUPS by SIGHUP, and at STARTS real starts."""
    # ignored where this was started by nohup or a script, and what is started here would ignore them too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    attack, rng, ground = Attack(work, zygote), np.random.default_rng(seed), Ground(work, scene, zygote)
    courses = {command: ground.course(command, "afresh") for command in dict.fromkeys(commands)}
    points, hangups, starts = (scaled(full, scale) for full in (POINTS, HANGUPS, STARTS))
    asked = [ASKED[(number + number // 4) % len(ASKED)] for number in range(points)]
    for number, signalled in enumerate([*asked, *[signal.SIGHUP] * hangups]):
        course = courses[commands[number % len(commands)]]
        twice = signalled in ASKED and number % IMPATIENT_EVERY == IMPATIENT_EVERY - 1
        trial = Interruption(course, signalled, rng.random() * course.seconds, twice)
        attack.attempt(trial, work / "out", attack.in_child)
    if STARTED in courses:
        takes_s = _time_of_start(courses[STARTED], work / "out")
        for number in range(starts):
            trial = Interruption(courses[STARTED], ASKED[number % len(ASKED)], rng.random() * takes_s)
            attack.attempt(trial, work / "out", attack.in_start)
            attack.seen["real starts"] += 1
    trials = sum(number for name, number in attack.seen.items() if " ended with " in name)
    figures = dict(sorted(attack.seen.items())) | {"slowest end s": round(attack.slowest_s, 2)}
    return Outcome(trials, tuple(attack.failures), figures)
