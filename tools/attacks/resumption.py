"""What a run that was broken off may leave: nothing that passes for finished, and that the same command mends.

A `Course` is a command as it goes undisturbed. After any disturbance two things are asked. `torn`: a manifest that is
there stands for every byte beside it, and a reader of the package takes nothing else. `mended`: the same command, run
again to its end, leaves the bytes of the undisturbed run and not a file or folder more.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attacks.events import REMOVAL
from attacks.scene import RESULTS, Scene, tree
from attacks.zygote import Done, Zygote
from ich_seq import IchSeqError
from ich_seq.bundle import CARD, load_bundle
from ich_seq.cnn_run import RUN, load_run
from ich_seq.exploration import EXPLORATION
from ich_seq.files import PARTIAL
from ich_seq.phantom import write_dataset
from ich_seq.report import SLICES, STUDIES
from ich_seq.results import read_results
from ich_seq.store import MANIFEST, open_store

Tree = dict[str, bytes]

MANIFESTS = {
    "train-cnn": RUN,
    "extract-features": MANIFEST,
    "train-rnn": CARD,
    "predict": "run.json",
    "explore": EXPLORATION,
    "evaluate": "evaluation.json",
}
"""The file of each command that is written last and makes its result whole."""

READERS: dict[str, Callable[[Path], Any]] = {
    "train-cnn": load_run,
    "extract-features": lambda out: list(open_store(out)),
    "train-rnn": lambda out: load_bundle(out, torch.device("cpu")),
    "predict": read_results,
}
"""What takes up each command's result; of predict it looks at two tables, which need no manifest."""

SCAFFOLD = re.compile(rf".*{re.escape(PARTIAL)}|\.training-.*|fold-\d+/fold-\d+(-\d+)?\.(json|safetensors)")
"""Files half written and states of trainings: no result, and no reader looks at them."""

GROUNDS = ("afresh", "over the same", "over another")

LIGHTER = {"train-cnn": ("--set", "cnn.folds=2"), "train-rnn": ("--set", "train.epochs=2")}
"""Settings that leave all there is to kill and less to compute."""

OTHER = {"train-cnn": ("--fold", "0"), "train-rnn": ("--set", "train.folds=4", "--set", "train.epochs=1")}
"""What makes the older result another one; train-cnn refuses a folder of other settings, but may have trained less."""

RESUMED_WITHIN_S = 120.0

BUG = ("Traceback", "Exception ignored", "A bug of ich-seq")
"""What stands on stderr where something went wrong that nobody thought of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A command, the older result it runs over (none: an empty folder), and what comes of it undisturbed.

    `letters` are its events, as `Done` has them. `stale` is a file that is not as it would be without the older result.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    older: Path | None
    code: int
    seconds: float
    letters: str
    whole: Tree
    folders: frozenset[str]
    stale: str

    @property
    def events(self) -> int:
        """Return how many writes, fsyncs, renames and removals there are."""
        return len(self.letters)

    def event(self, share: float) -> int:
        """Return the number of the event, from 1, that lies at a share (0..1) of all."""
        return 1 + int(share * self.events)

    def removal(self, share: float) -> int:
        """Return the number of the removal that lies at a share of all removals; of any event, if there is none."""
        removals = [number for number, letter in enumerate(self.letters, start=1) if letter == REMOVAL]
        return removals[int(share * len(removals))] if removals else self.event(share)

    def line(self, out: Path) -> list[str]:
        """Return the command line that makes `out`."""
        return [*self.arguments, "--out", str(out)]

    def prepare(self, out: Path) -> Path:
        """Make `out` what the command is to find: nothing, or the older result."""
        shutil.rmtree(out, ignore_errors=True)
        if self.older is not None:
            shutil.copytree(self.older, out)
        return out


def arguments_of(scene: Scene, command: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the command line of a command on a scene, without its --out."""
    if command in RESULTS:
        given = scene.arguments(command, Path())
        at = given.index("--out")
        return (*given[:at], *given[at + 2 :], *more)
    source = {
        "explore": (str(scene.dicom), "--workers", "0"),
        "evaluate": ("--predictions", str(scene.root / "results"), "--resamples", "100"),
    }[command]
    return (command, *source, "--labels", str(scene.labels), "--quiet", *more)


def undisturbed(work: Path, zygote: Zygote, name: str, arguments: tuple[str, ...], older: Path | None = None) -> Course:
    """Run a command, so that it is known what it does and makes; if over an older result, then first without it."""
    plan = Course(
        name=name, command=arguments[0], arguments=arguments, older=None, code=0, seconds=0.0, letters="", whole={},
        folders=frozenset(), stale="",
    )  # fmt: skip
    course = _measured(plan, zygote, work / "undisturbed")
    if older is None:
        return course
    over = _measured(replace(plan, older=older), zygote, work / "undisturbed")
    return replace(over, stale=_differing(over.whole, course.whole))


def _measured(plan: Course, zygote: Zygote, out: Path) -> Course:
    done = zygote.run(plan.line(plan.prepare(out)), count=True, brisk=True)
    if done.code not in (0, 3):
        raise RuntimeError(f"{plan.name} ended with {done.code} undisturbed: {done.stderr}")
    return replace(
        plan, code=done.code, seconds=done.seconds, letters=done.letters, whole=tree(out), folders=_folders(out)
    )


@dataclass(frozen=True, slots=True)
class Ground:
    """What the courses are made of."""

    work: Path
    scene: Scene
    zygote: Zygote

    def course(self, command: str, ground: str) -> Course:
        """Return a command's course into an empty folder or over an older result, which is made first."""
        arguments = arguments_of(self.scene, command, LIGHTER.get(command, ()))
        if ground == "afresh":
            return undisturbed(self.work, self.zygote, f"{command} {ground}", arguments)
        older = self.work / f"older-{command}-{ground.replace(' ', '-')}"
        line = arguments if ground == "over the same" else self._other(command, arguments)
        if "--cnn" in line and line != arguments:
            at = arguments.index("--cnn")
            arguments = (*arguments[:at], *arguments[at + 2 :])  # fewer networks than the older result has
        done = self.zygote.run([*line, "--out", str(older)], brisk=True)
        if done.code not in (0, 3):
            raise RuntimeError(f"{command} ended with {done.code} undisturbed: {done.stderr}")
        return undisturbed(self.work, self.zygote, f"{command} {ground}", arguments, older)

    def _other(self, command: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """Return a command line that makes another result: of other settings, or of other data."""
        if command in OTHER:
            return (*arguments, *OTHER[command])
        data = self.work / "other data"
        if not data.exists():
            write_dataset(data, n_studies=2, matrix=64, seed=1)
        return (arguments[0], str(data / "dicom"), *arguments[2:])


def _folders(out: Path) -> frozenset[str]:
    return frozenset(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_dir())


def partial_files(out: Path) -> int:
    """Return how many files lie there half written."""
    return sum(name.endswith(PARTIAL) for name in tree(out))


def looks_whole(course: Course, out: Path) -> bool:
    """Tell whether the result is there to its last byte."""
    return settled(tree(out)) == course.whole


def settled(found: Tree) -> Tree:
    """Return the files of a result, without what is only there while it is made."""
    return {name: data for name, data in found.items() if not SCAFFOLD.fullmatch(name)}


def torn(course: Course, out: Path) -> str:
    """Return what passes for whole in `out` and is not; nothing if all is as it should be."""
    found = settled(tree(out))
    allowed = [course.whole] + ([] if course.older is None else [tree(course.older)])
    manifest = MANIFESTS[course.command]
    if manifest in found:
        beside = [whole for whole in allowed if whole.get(manifest) == found[manifest]]
        told = [_differing(_vouched(course.command, found), _vouched(course.command, whole)) for whole in beside]
        if not told:
            return f"{manifest} is that of no run"
        if all(told):
            return f"{manifest} vouches for files of another run, or that are not there ({told[0]})"
    return _misread(course, out, found, allowed)


def _vouched(command: str, found: Tree) -> Tree:
    """Return the files that a manifest stands for: all, but of train-cnn those of the folds that it names."""
    if command != "train-cnn":
        return found
    folds = [f"fold-{k}/" for k in json.loads(found[RUN])["trained_folds"]]
    return {name: data for name, data in found.items() if name in (RUN, "folds.csv") or name.startswith(tuple(folds))}


def _differing(found: Tree, whole: Tree) -> str:
    """Return the first name by which two trees differ; nothing if they are the same."""
    names = (name for name in sorted({*found, *whole}) if found.get(name) != whole.get(name))
    return next(names, "")


def _misread(course: Course, out: Path, found: Tree, allowed: list[Tree]) -> str:
    """Return what a reader of the package does amiss with `out`; nothing if it takes what is whole, and only that."""
    if course.command not in READERS:
        return ""
    try:
        READERS[course.command](out)
    except IchSeqError as refusal:
        return f"the whole result is refused: {refusal}" if MANIFESTS[course.command] in found else ""
    except Exception as error:  # whatever it is, a reader of the package should have said so in a sentence
        return f"the reader broke: {type(error).__name__}: {error}"
    if course.command == "predict":
        tables = [{name: whole.get(name) for name in (SLICES, STUDIES)} for whole in allowed]
        return "" if {name: found.get(name) for name in (SLICES, STUDIES)} in tables else "torn tables are taken"
    return "" if MANIFESTS[course.command] in found else "it is taken for whole without a manifest"


def mended(course: Course, zygote: Zygote, out: Path) -> tuple[Done, str]:
    """Run the command again to its end; return how it ended, and what is not as in the undisturbed run."""
    done = zygote.run(course.line(out), timeout_s=RESUMED_WITHIN_S, brisk=True)
    if done.code != course.code:
        return done, f"run again it ended with {done.code}: {last_line(done)}"
    if name := _differing(tree(out), course.whole):
        return done, f"run again it left other bytes in {name}"
    if folders := _folders(out) ^ course.folders:
        return done, f"run again it left or lacks the folder {min(folders)}"
    return done, ""


def tells_of_a_bug(done: Done) -> bool:
    """Tell whether a command said on stderr what users are not to see."""
    return any(mark in done.stderr for mark in BUG)


def last_line(done: Done) -> str:
    """Return the last line of what a command said on stderr."""
    return (done.stderr.strip().splitlines() or ["(nothing said)"])[-1]
