"""Hand-made bad inputs: bombs, torn files, lies about lengths, absurd geometry, traps of the file system and more.

Each case lies in a folder beside one sound slice of another study and is read in a process of its own, by the two steps
of the package: `find_studies`, then `read_hounsfield` of every slice found. Each file must end with the verdict that is
expected of it, the counts must add up, the sound slice must be used as it was drawn, nothing may be raised or written,
and time and memory are bounded.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.ma  # or each child would import it anew, for a median

from attacks import Figures, Outcome
from attacks.bad_archives import containers
from attacks.bad_bombs import bombs
from attacks.bad_case import ALTERED, USED, Case
from attacks.bad_files import files
from attacks.bad_folders import folders
from attacks.bad_headers import headers
from attacks.bad_pixels import pixel_data
from attacks.bad_values import values
from attacks.dicom_bytes import DRAWN, sound_slice
from attacks.proc import peak_with_largest_mb
from attacks.watch_child import watch
from ich_seq import hounsfield, studies
from ich_seq.reasons import Refused, Unused

MAX_SECONDS = 5.0
MAX_GROWTH_MB = 1500.0
MAX_LETTERS = 400
"""What is told of a file is longer than this in no honest case."""

NOBODY = 65534
"""The user who owns nothing."""

SOUND = "sound.dcm"
HU = np.asarray(DRAWN - 1024, np.float32)
"""What is drawn in every slice."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process reported of a case: the verdict of each file, the counts, and what it took.

    `error` is an exception that escaped, `unfit` what is wrong with the words that are reported, `ended` how the
    process ended where it gave no report.
    """

    verdicts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unfit: list[str] = field(default_factory=list)
    error: str = ""
    ended: str = ""
    seconds: float = 0.0
    growth_mb: float = 0.0


def run(work: Path, *, scale: float, seed: int = 0) -> Outcome:
    """Read every case, or of each family every n-th for a scale of 1/n; `seed` chooses which."""
    chosen = choose(every_case(), scale, seed)
    seen = [(case, attempt(case, work / "case")) for case in chosen]
    failures = [fault for case, report in seen for fault in judge(case, report)]
    return Outcome(len(chosen), tuple(failures), _figures(seen))


def every_case() -> list[Case]:
    """Return all cases, family by family."""
    return [*bombs(), *pixel_data(), *headers(), *values(), *files(), *containers(), *folders()]


def choose(cases: Iterable[Case], scale: float, seed: int) -> list[Case]:
    """Return of each family every n-th case, one at least."""
    step, by_family = max(1, round(1 / scale)), dict[str, list[Case]]()
    for case in cases:
        by_family.setdefault(case.family, []).append(case)
    return [case for family in by_family.values() for case in family[seed % min(step, len(family)) :: step]]


def _figures(seen: list[tuple[Case, Seen]]) -> Figures:
    slowest = max(seen, key=lambda pair: pair[1].seconds)
    largest = max(seen, key=lambda pair: pair[1].growth_mb)
    verdicts = Counter(verdict for _, report in seen for verdict in report.verdicts.values())
    return {
        "families": len({case.family for case, _ in seen}),
        "files": sum(report.counts.get("files", 0) for _, report in seen),
        "reason codes": len(set(verdicts) - {USED, ALTERED}),
        "crashes and hangs": sum(bool(report.ended) for _, report in seen),
        "worst seconds": round(slowest[1].seconds, 2),
        "slowest": f"{slowest[0].family}: {slowest[0].name}",
        "worst memory MB": round(largest[1].growth_mb),
        "largest": f"{largest[0].family}: {largest[0].name}",
    }


# ---- what is right


def judge(case: Case, seen: Seen) -> list[str]:
    """Return all that is wrong with what became of a case, a sentence each."""
    faults = [seen.ended, seen.error] if seen.ended or seen.error else [*_wrong_verdicts(case, seen), *seen.unfit]
    if seen.seconds > MAX_SECONDS:
        faults.append(f"took {seen.seconds:.1f} s, over {MAX_SECONDS:g}")
    if seen.growth_mb > MAX_GROWTH_MB:
        faults.append(f"took {seen.growth_mb:.0f} MB, over {MAX_GROWTH_MB:g}")
    return [f"{case.family}: {case.name}: {fault}." for fault in faults if fault]


def _wrong_verdicts(case: Case, seen: Seen) -> list[str]:
    expected, counts, n_used = {**case.expected, SOUND: {USED}}, seen.counts, 0
    faults = [f"{file} has no verdict" for file in sorted(expected.keys() - seen.verdicts.keys())]
    for file, verdict in seen.verdicts.items():
        n_used += verdict in (USED, ALTERED)
        if file not in expected:
            faults.append(f"{file!r} is no file of the case, but {verdict}")
        elif verdict not in expected[file]:
            faults.append(f"{file!r} is {verdict}, not {' or '.join(sorted(expected[file]))}")
    told = counts["used"], counts["files"], counts["used"] + counts["excluded"] + counts["rejected"]
    if told != (n_used, len(seen.verdicts), len(seen.verdicts)):
        faults.append(f"the counts {counts} do not add up to {len(seen.verdicts)} files, {n_used} used")
    return faults


# ---- the process of one case


def attempt(case: Case, top: Path) -> Seen:
    """Write a case a few folders deep, read it in a process of its own, and see that this wrote nothing anywhere."""
    folder, report = top / "deep" / "folder", top.with_name("report.json")
    folder.mkdir(parents=True)
    (folder / SOUND).write_bytes(sound_slice())
    case.build(folder)
    before = _listing(top)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside threads is deprecated; this child needs none of them
        pid = os.fork()
    if pid == 0:
        _child(case, folder, report)
    ended, seconds = watch(pid)
    seen = Seen(ended=ended, seconds=seconds) if ended else Seen(**json.loads(report.read_text()), seconds=seconds)
    if _listing(top) != before:
        seen.unfit.append("files were written or removed")
    _remove(top)
    return seen


def _listing(top: Path) -> list[str]:
    states = [(path.relative_to(top), path.lstat()) for path in top.rglob("*")]
    return sorted(f"{name} {state.st_mode} {state.st_size} {state.st_mtime_ns}" for name, state in states)


def _remove(top: Path) -> None:
    for path in top.rglob("*"):
        if stat.S_ISDIR(path.lstat().st_mode):
            path.chmod(stat.S_IRWXU)
    shutil.rmtree(top)


def _child(case: Case, folder: Path, report: Path) -> NoReturn:
    """Read a case, write the report and end, without the exit handlers of the process that was forked."""
    code = 1
    try:
        os.setsid()
        before_mb = peak_with_largest_mb()
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # decoders write to the terminal by themselves
            os.dup2(silence, number)
        with report.open("w") as file:  # before the rights to it are given up
            seen = _read(_become_outsider(folder) if case.outsider else folder)
            growth_mb = peak_with_largest_mb() - before_mb
            told = asdict(seen) | {"growth_mb": growth_mb}
            del told["seconds"]
            json.dump(told, file)
        code = 0
    finally:
        os._exit(code)


def _become_outsider(folder: Path) -> Path:
    """Give up the rights of root, if this is root, for whom no file is unreadable; return the folder's name then."""
    os.chdir(folder)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    return Path()


# ---- the two steps of the package


def _read(folder: Path) -> Seen:
    """Find the studies of a folder and read the pixels of every slice, as a user who does not heed warnings."""
    warnings.simplefilter("ignore")
    try:
        return _report(studies.find_studies(folder))
    except BaseException as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name}:{line.lineno}"
        return Seen(error=f"{type(error).__name__} escaped from {where}: {str(error)[:MAX_LETTERS]}")


def _report(findings: studies.Findings) -> Seen:
    verdicts: dict[str, str] = {}
    refused: list[Unused] = []
    for header in (header for study in findings.studies for header in study.slices):
        try:
            hu = hounsfield.read_hounsfield(header)
            verdicts[header.file] = USED if np.array_equal(hu, HU) else ALTERED
        except Refused as refusal:
            refused.append(refusal.verdict(header.file))
    unused, counts = studies.account(findings, refused)
    verdicts |= {u.file: str(u.reason) for u in unused}
    numbers = {key: value for key, value in asdict(counts).items() if key != "reasons"}
    return Seen(verdicts, numbers, [fault for u in unused for fault in _too_long(u)])


def _too_long(unused: Unused) -> list[str]:
    """Say of what is told of a file where it is more than a table can show; how text is made harmless is theirs."""
    told = {"detail": unused.detail, "study UID": unused.study_uid}
    return [f"the {name} told of {unused.file!r} is too long" for name, text in told.items() if len(text) > MAX_LETTERS]
