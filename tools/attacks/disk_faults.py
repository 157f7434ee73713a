"""Disks that are full, broken, read-only or limited, while each command writes.

Small file systems in memory of many sizes and of few files, an errno at the n-th write, fsync, rename or removal, file
systems that are read-only, a limit on the size of a file. Each run ends in one sentence that names a path below --out,
exit code 5 and nothing that passes for whole; once there is space the same command ends with the same bytes. Mounting
needs root; without it these parts are left out, and the figures say so.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.events import FULL
from attacks.resumption import Course, Ground, last_line, looks_whole, mended, tells_of_a_bug, torn
from attacks.scene import RESULTS, Scene
from attacks.zygote import Done, Fault, Zygote

ERRNO_POINTS, ERRNO_POINTS_OVER = 96, 64
"""Afresh, and over the result of other data or settings, much of which has to be removed."""

SIZES, FILE_COUNTS, READ_ONLY, FILE_LIMITS = 40, 8, 12, 16
ERRNOS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
PAGE_BYTES = 4096
ROOMY = "size=256m,nr_inodes=100k"
OUTPUT_FAILED = 5


@dataclass(slots=True)
class Attack:
    """What is attacked, and what came of it so far."""

    work: Path
    zygote: Zygote
    rng: np.random.Generator
    failures: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def judge(self, trial: str, course: Course, out: Path, done: Done) -> None:
        """Note what is amiss in how a command met its fault; one that got through must have left all."""
        self.slowest_s = max(self.slowest_s, done.seconds)
        self.seen["faults"] += 1
        self.seen["exit code 5"] += done.code == OUTPUT_FAILED
        for problem in _problems(course, out, done):
            self.failures.append(f"{course.name}, {trial}: {problem}")

    def mend(self, trial: str, course: Course, out: Path) -> None:
        """Run the command again, and note if it does not end as it should."""
        _, problem = mended(course, self.zygote, out)
        self.failures += [f"{course.name}, {trial}: {problem}"] if problem else []


def _problems(course: Course, out: Path, done: Done) -> Iterator[str]:
    if done.code == course.code:
        if not looks_whole(course, out):
            yield f"it ended with {done.code} and left no whole result"
        return
    if done.code != OUTPUT_FAILED:
        yield f"it ended with {done.code}: {last_line(done)}"
    if tells_of_a_bug(done):
        yield f"a traceback: {last_line(done)}"
    elif done.code == OUTPUT_FAILED and str(out) not in done.stderr:
        yield f"no path below --out is named: {last_line(done)}"
    if out.is_dir() and (problem := torn(course, out)):
        yield problem


def run(
    work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0, commands: Sequence[str] = tuple(RESULTS)
) -> Outcome:
    """Let the disk fail under commands in every way of the module."""
    attack, ground = Attack(work, zygote, np.random.default_rng(seed)), Ground(work, scene, zygote)
    courses = [ground.course(command, "afresh") for command in commands]
    _errnos(attack, courses, scaled(ERRNO_POINTS, scale))
    _errnos(attack, [ground.course(command, "over another") for command in commands], scaled(ERRNO_POINTS_OVER, scale))
    _file_limits(attack, courses, scaled(FILE_LIMITS, scale))
    if mounted := _can_mount(work):
        _small_disks(attack, courses, scaled(SIZES, scale))
        _few_files(attack, courses, scaled(FILE_COUNTS, scale))
        _read_only(attack, courses, scaled(READ_ONLY, scale))
    figures = dict(attack.seen) | {"slowest end s": round(attack.slowest_s, 2), "mounts": "yes" if mounted else "none"}
    return Outcome(attack.seen["faults"], tuple(attack.failures), figures)


def _spread(courses: Sequence[Course], count: int, rng: np.random.Generator) -> Iterator[tuple[Course, float]]:
    """Yield `count` courses in turn, each with its own evenly spread shares, in 0..1."""
    for number, course in enumerate(courses):
        mine = len(range(number, count, len(courses)))
        for turn in range(mine):
            yield course, (turn + rng.random()) / mine


def _errnos(attack: Attack, courses: Sequence[Course], count: int) -> None:
    """Fail from the n-th write, fsync, rename or removal on; every other one that a removal meets, at a removal."""
    for number, (course, share) in enumerate(_spread(courses, count, attack.rng)):
        turn, kind = divmod(number, len(ERRNOS))
        at = course.removal(share) if turn % 2 and ERRNOS[kind] not in FULL else course.event(share)
        fault = Fault(ERRNOS[kind], at)
        trial, out = f"{fault.kind} at event {fault.at}", course.prepare(attack.work / "out")
        attack.judge(trial, course, out, attack.zygote.run(course.line(out), fault=fault, brisk=True))
        attack.seen[fault.kind] += 1
        attack.mend(trial, course, out)


def _file_limits(attack: Attack, courses: Sequence[Course], count: int) -> None:
    """Limit the size of files (what else is a signal, SIGXFSZ, that kills) to a share of the largest one's."""
    for course, share in _spread(courses, count, attack.rng):
        limit = max(PAGE_BYTES, int(share * max(map(len, course.whole.values()))))
        trial, out = f"files of at most {limit} bytes", course.prepare(attack.work / "out")
        done = attack.zygote.run(course.line(out), limits={"RLIMIT_FSIZE": limit}, brisk=True)
        attack.judge(trial, course, out, done)
        attack.seen["limited files"] += 1
        attack.mend(trial, course, out)


def _small_disks(attack: Attack, courses: Sequence[Course], count: int) -> None:
    """Fill file systems of sizes from a page to a little more than the result."""
    for course, share in _spread(courses, count, attack.rng):
        needed = 1.2 * sum(len(data) + PAGE_BYTES for data in course.whole.values())
        size = max(PAGE_BYTES, int(share * needed))
        _on_disk(attack, course, f"size={size}", f"a disk of {size} bytes")
        attack.seen["small disks"] += 1


def _few_files(attack: Attack, courses: Sequence[Course], count: int) -> None:
    """Let a file system have fewer files than the result: then none can be opened."""
    for course, share in _spread(courses, count, attack.rng):
        files = 2 + int(share * (len(course.whole) + len(course.folders)))
        _on_disk(attack, course, f"nr_inodes={files}", f"a disk of {files} files")
        attack.seen["disks of few files"] += 1


def _on_disk(attack: Attack, course: Course, options: str, trial: str) -> None:
    with _disk(attack.work / "disk", options) as disk:
        out = disk / "out"
        attack.judge(trial, course, out, attack.zygote.run(course.line(out), brisk=True))
        _mount(f"remount,{ROOMY}", disk)
        attack.mend(trial, course, out)


def _read_only(attack: Attack, courses: Sequence[Course], count: int) -> None:
    """Find a read-only file system: an empty one, one with a folder, one with the finished result."""
    for number, (course, _) in enumerate(_spread(courses, count, attack.rng)):
        there = ("nothing", "an empty folder", "a result")[number % 3]
        with _disk(attack.work / "disk", ROOMY) as disk:
            out = disk / "out"
            if there == "an empty folder":
                out.mkdir()
            elif there == "a result":
                attack.zygote.run(course.line(out), brisk=True)
            _mount("remount,ro", disk)
            trial = f"read-only with {there}"
            done = attack.zygote.run(course.line(out), brisk=True)
            attack.judge(trial, course, out, done)
            if done.code == course.code:
                attack.failures.append(f"{course.name}, {trial}: it ended with {done.code}, as if it had written")
            _mount(f"remount,rw,{ROOMY}", disk)
            attack.mend(trial, course, out)
        attack.seen["read-only disks"] += 1


@contextmanager
def _disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount(options, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(options: str, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


def _can_mount(work: Path) -> bool:
    """Tell whether this user may mount file systems."""
    if shutil.which("mount") is None:
        return False
    with suppress(subprocess.CalledProcessError, OSError), _disk(work / "disk", ROOMY):
        return True
    return False
