"""Canary words wherever a hospital's files name people, and a search for them in all that the commands leave and say.

They stand in the identifying elements of DICOM (after PS3.15 Table E.1-1), private ones and sequences, in the names of
files and folders, in files that are rejected and in the columns of tables. Looked through are results, states of broken
runs, the terminal, temporary files while a command runs and after it, and what is printed when the package breaks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from attacks import Outcome, scaled
from attacks.canaries import Flock, contents_of
from attacks.identifying_data import write_files, write_labels, write_reads, write_slice_table
from attacks.proc import open_files
from attacks.scene import Scene
from attacks.zygote import Done, Fault, Zygote
from ich_seq.files import short_hash

SETTINGS = ("cnn.batch_slices=4", "train.epochs=2")
TIMEOUT_S = 300.0
STUDIES = 6
EVERY_S = 0.01
DONE, REFUSED, NOTHING, BROKEN, KILLED = (0, 3), (2,), (4,), (1,), (137,)
NAMED = ("PatientID ", "name of ")
"""What --phi asks for: Patient IDs and names of files."""

FILED_BY = (
    "PatientID ", "PatientName ", "AccessionNumber ", "ReferringPhysicianName ", "StudyID ", "IssuerOfPatientID ",
)  # fmt: skip
"""What --sr asks for, in OUT/sr/ alone: by what an archive files a study. Dates and a sex that are words are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A command, what else is done to it, and the exit codes that tell that it came to what it was to come to."""

    name: str
    arguments: tuple[str, ...]
    out: Path
    codes: tuple[int, ...] = DONE
    weakness: str = ""
    fault: Fault | None = None


@dataclass(slots=True)
class Seen:
    """What was looked through, and where canaries were."""

    files: int = 0
    searched_bytes: int = 0
    temporary: set[str] = field(default_factory=set)
    hashes: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where canaries are: `root` is the folder of DICOM files."""

    work: Path
    scene: Scene
    flock: Flock
    root: Path


def run(work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0) -> Outcome:
    """Run every command on files that name people, and look for the names."""
    flock = Flock(seed)
    ground = Ground(work=work, scene=scene, flock=flock, root=work / flock.word("root folder"))
    write_files(ground.root, flock, studies=STUDIES)
    write_labels(work / "labels.csv", flock, studies=STUDIES)
    write_reads(work / "reads.csv", flock, studies=STUDIES)
    write_slice_table(work / "slices.csv", flock, studies=STUDIES)
    trials, seen = _trials(ground), Seen()
    tried = trials[: scaled(len(trials), scale)]
    for trial in tried:
        _try(trial, ground, zygote, seen)
    _try_named(ground, zygote, seen)
    _try_sr(ground, zygote, seen)
    return Outcome(
        trials=len(tried) + 2,
        failures=tuple(seen.failures),
        figures={
            "canaries": len(flock.words),
            "files searched": seen.files,
            "MB searched": round(seen.searched_bytes / 1e6, 1),
            "temporary files seen": len(seen.temporary),
            "files with unkeyed hashes of a Patient ID": seen.hashes,
        },
    )


def _trials(ground: Ground) -> list[Trial]:
    """Return the commands, those first that others need."""
    made, work, scene = ground.work / "made", ground.work, ground.scene
    config = ["--config", str(scene.root / "settings.toml"), *(p for s in SETTINGS for p in ("--set", s))]
    root, bundle, labels = str(ground.root), str(scene.root / "bundle"), ["--labels", str(work / "labels.csv")]
    cpu, one = ["--device", "cpu"], ["--workers", "0"]
    predict = ["predict", root, "--bundle", bundle, *cpu, *one]
    explore = ["explore", root, *labels, *one]
    extract = ["extract-features", root, "--cnn", str(scene.root / "cnn"), *config, *cpu, *one]
    cnn = ["train-cnn", root, *labels, *config, *cpu, *one]
    rnn = ["train-rnn", str(made / "extract-features"), *labels, *config, *cpu]
    said = ["evaluate", "--predictions", str(made / "predict"), "--resamples", "100"]
    evaluate = [*said, *labels, "--dicom", root, "--bundle", bundle]
    table = ["explore", str(work / "slices.csv"), *one]
    reads = [*said, "--labels", str(work / "reads.csv")]

    def trial(name: str, arguments: list[str], codes: tuple[int, ...] = DONE, bug: str = "", at: int = 0) -> Trial:
        out = made / name.replace(" ", "-")
        weakness, fault = f"raise_in ich_seq.{bug}" if bug else "", Fault("kill", at) if at else None
        given = (*arguments, "--out", str(out))
        return Trial(name=name, arguments=given, out=out, codes=codes, weakness=weakness, fault=fault)

    return [
        trial("predict", predict),
        trial("predict broken", predict, BROKEN, "prediction.account"),
        trial("explore", explore),
        trial("explore broken", explore, BROKEN, "exploration.take_inventory"),
        trial("explore a table", table),
        trial("explore as JSON", [*explore, "--json"]),
        trial("evaluate", evaluate),
        trial("evaluate reads", reads, REFUSED),
        trial("train-cnn", cnn),
        trial("train-cnn killed", cnn, KILLED, at=14),
        trial("extract-features", extract),
        trial("extract-features killed", extract, KILLED, at=14),
        trial("train-rnn", rnn),
        trial("train-rnn killed", rnn, KILLED, at=10),
        trial("predict without headers", predict, NOTHING, "dicom._slice_header"),
        trial("predict broken in a study", predict, BROKEN, "extraction._features"),
        trial("extract-features broken", extract, BROKEN, "studies.group_studies"),
        trial("extract-features broken in a thread", extract, BROKEN, "store.encode_study"),
        trial("train-cnn broken", cnn, BROKEN, "cnn_training.label_slices"),
        trial("train-rnn broken", rnn, BROKEN, "rnn_training.label_studies"),
        trial("evaluate broken", evaluate, BROKEN, "evaluation.find_failures"),
        trial("explore a table broken", table, BROKEN, "collection.group_studies"),
    ]


def _try(trial: Trial, ground: Ground, zygote: Zygote, seen: Seen) -> None:
    """Run a command with a folder of its own for temporary files, and search all that it leaves and says."""
    done = _run(trial, ground, zygote, seen)
    if done.code not in trial.codes:
        seen.failures.append(f"{trial.name}: it ended with {done.code}, not {trial.codes} ({done.stderr[-200:]!r})")
    _search(trial, trial.out, ground.flock, seen)
    _search_said(trial, done, ground.flock, seen)


def _search_said(trial: Trial, done: Done, flock: Flock, seen: Seen) -> None:
    for name in ("stdout", "stderr"):
        found = list(flock.found_in(getattr(done, name).encode()))
        told = [what for what in found if not what.startswith("root folder")]  # the user's own argument
        seen.failures += [f"{trial.name}: {name} tells {what}" for what in told[:3]]


def _run(trial: Trial, ground: Ground, zygote: Zygote, seen: Seen) -> Done:
    """Run a command; note what is in its temporary files meanwhile, and what it leaves there."""
    folder = ground.work / "tmp" / trial.out.name
    folder.mkdir(parents=True)
    temporary = {"TMPDIR": str(folder)}
    running = zygote.start(trial.arguments, fault=trial.fault, weakness=trial.weakness, environment=temporary)
    found: set[str] = set()
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(folder, running.pid, ground.flock, seen, found, ended))
    watch.start()
    try:
        done = zygote.wait(running, TIMEOUT_S)
    finally:
        ended.set()
        watch.join()
    seen.failures += [f"{trial.name}: a temporary file held {what}" for what in sorted(found)[:3]]
    if trial.codes != KILLED:
        left = sorted(path.name for path in folder.rglob("*"))
        seen.failures += [f"{trial.name}: a temporary file was left, {name!r}" for name in left[:3]]
    return done


def _watch(folder: Path, pid: int, flock: Flock, seen: Seen, found: set[str], ended: threading.Event) -> None:
    """Search temporary files as long as a command runs, also those that are open and have no name any more."""
    last = False
    while not last:
        last = ended.wait(EVERY_S)
        for path in [*folder.rglob("*"), *_nameless(pid)]:
            with suppress(OSError):  # it is gone, or another kind of file
                if path.is_file():
                    seen.temporary.add(str(path))
                    found.update(flock.found_in(os.fsencode(path.name) + b" " + path.read_bytes()))


def _nameless(pid: int) -> Iterable[Path]:
    """Yield the files that a process holds open and that were removed."""
    for path in open_files(pid):
        with suppress(OSError):
            if str(path.readlink()).endswith(" (deleted)"):
                yield path


def _search(trial: Trial, folder: Path, flock: Flock, seen: Seen) -> None:
    """Search every file below a folder, and its name."""
    hashes = [short_hash(flock.word(f"PatientID {number}")).encode() for number in range(STUDIES)]
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found = dict.fromkeys(flock.found_in(os.fsencode(name)))
        for data in contents_of(path) if path.is_file() else ():
            seen.searched_bytes += len(data)
            found |= dict.fromkeys(flock.found_in(data))
        seen.files += path.is_file()
        seen.hashes += path.is_file() and any(code in path.read_bytes() for code in hashes)
        seen.failures += [f"{trial.name}: {name} tells {what}" for what in list(found)[:3]]


def _try_named(ground: Ground, zygote: Zygote, seen: Seen) -> None:
    """See that --phi names patients and files, so that canaries can be found at all, and nothing else."""
    out = ground.work / "made" / "named"
    bundle = str(ground.scene.root / "bundle")
    given = ("predict", str(ground.root), "--bundle", bundle, "--device", "cpu", "--workers", "0", "--no-report")
    trial = Trial(name="predict --phi", arguments=(*given, "--out", str(out), "--phi"), out=out)
    named = Seen()
    done = _run(trial, ground, zygote, named)
    told = " ".join(what for path in out.glob("*.csv") for what in ground.flock.found_in(path.read_bytes()))
    for kind in (kind for kind in NAMED if kind not in told):
        seen.failures.append(f"predict --phi: it tells no {kind}..., and ended with {done.code}")
    others = [word for word in told.split(") ") if word and not word.startswith(NAMED)]
    seen.failures += [f"predict --phi: it tells {what}" for what in others[:3]]


def _try_sr(ground: Ground, zygote: Zygote, seen: Seen) -> None:
    """See that the DICOM objects of --sr name what they are filed by and nothing else, and that no other file does."""
    out = ground.work / "made" / "sr"
    bundle = str(ground.scene.root / "bundle")
    given = (
        "predict",
        str(ground.root),
        "--bundle",
        bundle,
        "--device",
        "cpu",
        "--workers",
        "0",
        "--no-report",
        "--sr",
    )
    trial = Trial(name="predict --sr", arguments=(*given, "--out", str(out)), out=out)
    done = _run(trial, ground, zygote, seen)
    objects = sorted((out / "sr").glob("*.dcm"))
    told = [what for path in objects for what in ground.flock.found_in(path.read_bytes())]
    for kind in (kind for kind in FILED_BY if not any(what.startswith(kind) for what in told)):
        seen.failures.append(f"predict --sr: it is not filed by {kind}..., and ended with {done.code}")
    others = [what for what in told if not what.startswith(FILED_BY)]
    seen.failures += [f"predict --sr: an object tells {what}" for what in others[:3]]
    for path in objects:
        path.unlink()
    _search(trial, out, ground.flock, seen)
    _search_said(trial, done, ground.flock, seen)
