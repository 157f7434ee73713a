"""Crowds: several processes aimed at one output folder at once, where only the lock stands between them.

A round is 2 to 8 processes of one kind:

    same        one command, one input
    inputs      one command, two inputs
    commands    two commands
    folds       train-cnn, a fold each, which is work that may be shared; then one process for the whole run
    killed      one command, after a process that was killed while it held the folder; the times of all files are then
                moved to another century, as by a clock that jumped

Each process has to end with a result, or with 5 and a sentence that names the folder; one at least has to win, and what
lies in the folder then has to be, byte for byte, what a process of its own would have made.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.scene import Scene, tree
from attacks.zygote import Done, Zygote

ROUNDS = 50
KINDS = ("same", "inputs", "commands", "folds", "killed")
COMMANDS = ("extract-features", "predict", "train-rnn", "train-cnn")
FOLDS = 3
TIMEOUT_S = 120.0
REFUSED_PLAN = "was begun with other"
"""How train-cnn refuses to go on in the folder of another run, which is no matter of who came first."""

YEARS = {"1902": -2_145_916_800, "1970": 0, "2100": 4_102_444_800, "2300": 10_413_792_000}
"""Times to which files are moved, in seconds since 1970; of the last the nanoseconds pass 63 bits."""

Tree = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Aim:
    """What a process is to make: a command, on the usual input or on another, of a fold or of all."""

    command: str
    other: bool = False
    fold: int | None = None

    def __str__(self) -> str:
        of_fold = "" if self.fold is None else f" --fold {self.fold}"
        return f"{self.command}{of_fold}{' on other input' if self.other else ''}"

    @property
    def whole(self) -> Aim:
        """Return the aim of which this is a part."""
        return Aim(self.command, self.other)


@dataclass(frozen=True, slots=True)
class Round:
    """A crowd: its kind and an aim a process.

    Where one is killed before, `killed_at` is how long it had held the folder, as a share of its usual time, and `year`
    what the clock then says.
    """

    number: int
    kind: str
    aims: tuple[Aim, ...]
    killed_at: float
    year: str

    def __str__(self) -> str:
        return f"round {self.number} ({self.kind}: {', '.join(map(str, self.aims))})"


@dataclass(slots=True)
class Ground:
    """The scene, a copy of its input whose times may be moved, and what each aim comes to when nobody interferes."""

    work: Path
    scene: Scene
    zygote: Zygote
    alone: dict[Aim, tuple[Tree, float]] = field(default_factory=dict)

    def arguments(self, aim: Aim, out: Path) -> list[str]:
        """Return the command line of an aim."""
        given = self.scene.arguments(aim.command, out)
        if str(self.scene.dicom) in given:
            reads_less = aim.other and aim.command != "train-cnn"
            given[given.index(str(self.scene.dicom))] = str(self.work / ("fewer" if reads_less else "dicom"))
        seeds = {"train-cnn": ["--set", "cnn.seed=1"], "train-rnn": ["--set", "train.seed=1"]}
        of_fold = [] if aim.fold is None else ["--fold", str(aim.fold)]
        return [*given, *of_fold, *(seeds.get(aim.command, []) if aim.other else [])]

    def unbroken(self, aim: Aim) -> tuple[Tree, float]:
        """Return what one process alone makes of an aim, and in how many seconds."""
        if aim not in self.alone:
            out = self.work / f"alone-{len(self.alone)}"
            done = self.zygote.run(self.arguments(aim, out), timeout_s=TIMEOUT_S)
            if done.code not in (0, 3):
                raise RuntimeError(f"{aim} alone ended with {done.code}: {done.stderr}")
            self.alone[aim] = tree(out), done.seconds
        return self.alone[aim]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process of a crowd and how it ended."""

    aim: Aim
    done: Done

    @property
    def won(self) -> bool:
        """Tell whether it made its result."""
        return self.done.code in (0, 3)


@dataclass(frozen=True)
class Played:
    """A round, how its processes ended, what is left in the folder `out`, and what each aim comes to by itself."""

    round: Round
    out: Path
    ended: tuple[Ended, ...]
    found: Tree
    alone: dict[Aim, Tree]

    @cached_property
    def failures(self) -> list[str]:
        """Return what went wrong, a sentence each."""
        told = [wrong for end in self.ended if (wrong := _wrong_end(end, self.out, self._plans))]
        return [f"{self.round}: {wrong}." for wrong in [*told, *self._wrong_result()]]

    @property
    def _plans(self) -> int:
        return len({end.aim.whole for end in self.ended if end.aim.command == "train-cnn"})

    def _wrong_result(self) -> list[str]:
        """Return how the folder differs from what a process alone leaves, and what is missing of a winner."""
        winners = {end.aim.whole for end in self.ended if end.won}
        if not winners:
            return ["nobody won"]
        ours = [self.alone[end.aim.whole] for end in self.ended]
        strange = [name for name, data in self.found.items() if data not in (of.get(name) for of in ours)]
        if strange:
            return [f"{', '.join(strange[:3])} ({len(strange)} files) is what no process alone would have left"]
        same_command = len({end.aim.command for end in self.ended}) == 1
        if any(self._is(self.alone[winner], exactly=same_command) for winner in winners):
            return []
        return ["the folder holds no winner's result whole, or files of several"]

    def _is(self, result: Tree, *, exactly: bool) -> bool:
        return self.found == result if exactly else self.found | result == self.found


def _wrong_end(end: Ended, out: Path, plans: int) -> str | None:
    """Return what is wrong with how a process ended, None if it won or said why not."""
    code, told = end.done.code, end.done.stderr
    named = str(out) in told and "Traceback" not in told
    of_another_run = code == 2 and plans > 1 and REFUSED_PLAN in told and named
    if end.won or of_another_run or (code == 5 and named):
        return None
    return f"{end.aim} ended with {code} after {end.done.seconds:.1f} s and said {told.strip()[-300:]!r}"


def draw_round(number: int, seed: int) -> Round:
    """Return a round by its number: kinds and commands in turn, all else by lot."""
    rng = np.random.default_rng([seed, number])
    kind, turn = KINDS[number % len(KINDS)], number // len(KINDS)
    command, size = COMMANDS[turn % len(COMMANDS)], int(rng.integers(2, 9))
    second = COMMANDS[(turn + 1 + int(rng.integers(len(COMMANDS) - 1))) % len(COMMANDS)]
    aims = {
        "same": [Aim(command)],
        "inputs": [Aim(command), Aim(command, other=True)],
        "commands": [Aim(command), Aim(second)],
        "folds": [Aim("train-cnn", fold=fold) for fold in range(FOLDS)],
        "killed": [Aim(command)],
    }[kind]
    crowd = [aims[i % len(aims)] for i in range(max(size, len(aims)))]
    shuffled = tuple(crowd[i] for i in rng.permutation(len(crowd)))
    return Round(number, kind, shuffled, float(rng.uniform(0, 0.7)), list(YEARS)[int(rng.integers(len(YEARS)))])


def move_times(folder: Path, second: int) -> None:
    """Give every file below a folder this time of change."""
    for path in folder.rglob("*"):
        os.utime(path, (second, second))


def play(drawn: Round, ground: Ground) -> Played:
    """Let a crowd run, and see what is left."""
    out = ground.work / f"round-{drawn.number}"
    alone = {aim.whole: ground.unbroken(aim.whole)[0] for aim in drawn.aims}
    if drawn.kind == "killed":
        _kill_one(drawn, ground, out)
    ended = _crowd(drawn.aims, ground, out)
    if drawn.kind == "folds":
        ended += _crowd([Aim("train-cnn")], ground, out)
    played = Played(drawn, out, tuple(ended), tree(out) if out.exists() else {}, alone)
    if not played.failures:
        shutil.rmtree(out)
    return played


def _kill_one(drawn: Round, ground: Ground, out: Path) -> None:
    """Kill a process while it holds the folder, somewhere on its way, and let the clock jump."""
    running = ground.zygote.start(ground.arguments(drawn.aims[0], out))
    while not (out / ".lock").exists() and time.monotonic() - running.began < TIMEOUT_S:
        time.sleep(0.002)
    time.sleep(drawn.killed_at * ground.unbroken(drawn.aims[0])[1])
    os.kill(running.pid, signal.SIGKILL)
    ground.zygote.wait(running, TIMEOUT_S)
    for folder in (ground.work / "dicom", out):
        move_times(folder, YEARS[drawn.year])


def _crowd(aims: Sequence[Aim], ground: Ground, out: Path) -> list[Ended]:
    started = [(aim, ground.zygote.start(ground.arguments(aim, out))) for aim in aims]
    return [Ended(aim, ground.zygote.wait(running, TIMEOUT_S)) for aim, running in started]


def prepare(work: Path, scene: Scene, zygote: Zygote) -> Ground:
    """Copy the scene's input, once whole and once without the last third of its files."""
    shutil.copytree(scene.dicom, work / "dicom")
    files = sorted((work / "dicom").iterdir())
    (work / "fewer").mkdir(parents=True)
    for path in files[: 2 * len(files) // 3]:
        shutil.copy(path, work / "fewer")
    return Ground(work, scene, zygote)


def run(work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0) -> Outcome:
    """Let crowds loose on folders, round after round."""
    ground = prepare(work, scene, zygote)
    played = [play(draw_round(number, seed), ground) for number in range(scaled(ROUNDS, scale))]
    ended = [end for one in played for end in one.ended]
    won, lost = [e.done for e in ended if e.won], [e.done for e in ended if not e.won]
    return Outcome(
        trials=len(played),
        failures=tuple(failure for one in played for failure in one.failures),
        figures={
            "rounds": len(played),
            "processes": len(ended),
            "processes that won": len(won),
            "processes that gave way": len(lost),
            "most processes at once": max(len(one.round.aims) for one in played),
            "rounds after a killed process": sum(one.round.kind == "killed" for one in played),
            "slowest winner (s)": round(max((d.seconds for d in won), default=0.0), 1),
            "slowest to give way (s)": round(max((d.seconds for d in lost), default=0.0), 1),
        },
    )
