"""Pickle gadgets under the names of all that the package reads: refused, and none of them ever run.

Each stands in for each file twice, beside a record that says another SHA-256 and beside one that says its own.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.gadgets import build_gadgets
from attacks.scene import Scene
from attacks.targets import TARGETS, Target, attempt, fresh, prepare, run_on
from attacks.zygote import Zygote

TIMEOUT_S = 1800.0
SHOWN_TO_COMMANDS = 3
"""How many of the gadgets, besides those that are read by function calls, whole commands are given for each file."""

Read = tuple[Counter[str], list[str]]
"""How reading ended, each so often, and what was wrong, a sentence each."""

FINE = ("refused", "counts as none", "done anew")


def stand_in(copy: Path, file: str, gadget: bytes, target: Target, *, vouched: bool) -> None:
    """Put a gadget in the place of a file; `vouched`, with its hash in the records."""
    (copy / file).write_bytes(gadget)
    if vouched and target.vouch is not None and not _is_record(file):
        target.vouch(copy)


def _is_record(file: str) -> bool:
    """Tell whether a file holds others' hashes and has none itself."""
    return file in ("bundle.json", "manifest.json", "run.json", "plan.json")


def draw_trials(target: Target, copy: Path, count: int, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Yield which gadget stands in for which file, and whether a record vouches for it: `count` gadgets a file."""
    names = list(build_gadgets(copy.with_name("canary")))
    for file in target.paths(copy):
        rng = np.random.default_rng([seed, *file.encode()])
        for number in rng.permutation(len(names))[:count]:
            for vouched in (False,) if target.vouch is None or _is_record(file) else (False, True):
                yield names[number], file, vouched


def read_all(target: Target, prepared: Path, work: Path, count: int, seed: int) -> Read:
    """Read a target in this process with gadgets in the places of its files; count how that ended."""
    canary, ends, failures = work / "canary", Counter[str](), []
    gadgets = build_gadgets(canary)
    for name, file, vouched in draw_trials(target, prepared / target.name, count, seed):
        copy = fresh(prepared, work, target)
        stand_in(copy, file, gadgets[name], target, vouched=vouched)
        end = attempt(target, copy)
        ends[end] += 1
        unjudged = bool(target.result) and end == "read"  # whether a state fits is for the command to say
        failures += _told(name, target, file, vouched, "counts as none" if unjudged else end, canary)
    return ends, failures


def _told(name: str, target: Target, file: str, vouched: bool, end: str, canary: Path) -> list[str]:
    """Return what is wrong with a trial as a sentence, or nothing."""
    what = f"{name} as {file} of {target.name}{', vouched for,' if vouched else ''}"
    ran = canary.exists()
    canary.unlink(missing_ok=True)
    return [f"{what} was executed."] if ran else [] if end in FINE else [f"{what} {end}."]


def main() -> None:
    """Read one target as the arguments say, and print how it went as JSON."""
    name, prepared, work, count, seed = sys.argv[1:]
    target = next(target for target in TARGETS if target.name == name)
    ends, failures = read_all(target, Path(prepared), Path(work), int(count), int(seed))
    print(json.dumps([ends, failures]))


def _run_commands(
    target: Target, prepared: Path, work: Path, scene: Scene, zygote: Zygote, count: int, seed: int
) -> Read:
    """Run the command that reads a target, with gadgets in the places of its files."""
    canary, ends, failures = work / "canary", Counter[str](), []
    gadgets = build_gadgets(canary)
    for name, file, vouched in draw_trials(
        target, prepared / target.name, min(count, 1) if target.result else count, seed
    ):
        copy = fresh(prepared, work, target)
        stand_in(copy, file, gadgets[name], target, vouched=vouched)
        end, _ = run_on(target, copy, scene, zygote)
        ends[end] += 1
        failures += _told(name, target, file, vouched, end if end in FINE else f"given to a command {end}", canary)
    return ends, failures


def _read_in_child(target: Target, prepared: Path, work: Path, zygote: Zygote, count: int, seed: int) -> Read:
    """Read a target in a process apart, since what is read may end it."""
    if target.read is None:
        return Counter(), []
    arguments = [target.name, str(prepared), str(work), str(count), str(seed)]
    done = zygote.run(arguments, call="attacks.hostile_pickles:main", timeout_s=TIMEOUT_S)
    if done.code:
        return Counter(), [f"Reading {target.name} ended the process with {done.code}: {done.stderr[-300:]!r}."]
    ends, failures = json.loads(done.stdout.splitlines()[-1])
    return Counter(ends), failures


def run(
    work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0, targets: Sequence[Target] = TARGETS
) -> Outcome:
    """Put gadgets everywhere."""
    prepared = work / "prepared"
    prepare(prepared, scene, zygote, targets)
    kinds = scaled(len(build_gadgets(work / "canary")), scale)
    shown = scaled(SHOWN_TO_COMMANDS, scale, least=0)
    live = zygote.run([str(work / "canary")], call="attacks.gadgets:main").stdout.split("\n")[:-1]
    read = [_read_in_child(target, prepared, work, zygote, kinds, seed) for target in targets]
    given = [_run_commands(target, prepared, work, scene, zygote, shown, seed) for target in targets]
    ends, failures = (
        sum(part, start) for part, start in zip(zip(*read, *given, strict=True), (Counter(), []), strict=True)
    )
    return Outcome(
        trials=ends.total(),
        failures=tuple(failures),
        figures={
            "kinds of gadgets": kinds,
            "gadgets that work on careless loaders": len(live),
            "files stood in for": sum(len(target.files) for target in targets),
            "read by function calls": sum(part.total() for part, _ in read),
            "given to commands": sum(part.total() for part, _ in given),
            "executed": sum("executed" in failure for failure in failures),
        },
    )
