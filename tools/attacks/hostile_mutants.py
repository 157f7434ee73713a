"""Bundles, stores and runs with one file changed a little: no change may pass, and none may bring the reader down.

Safetensors files are changed beside records of their old SHA-256: the result must be refused, unless the bytes are the
same. Some, and the index of a store, are changed beside records that were made to vouch for them: these may be read,
where what they say can be meant, but whatever reads them has to stay alive and in bounds.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attacks import Outcome, scaled
from attacks.mutations import OF_BYTES, OF_SAFETENSORS, mutate
from attacks.scene import Scene
from attacks.targets import LIMITS, MOST_MB, MOST_S, TARGETS, Target, attempt, fresh, prepare
from attacks.zygote import Zygote

MUTANTS, VOUCHED, INDEXES = 4000, 600, 600
ATTACKED = ("bundle", "features", "cnn")
TIMEOUT_S = 3600.0


@dataclass(slots=True)
class Tally:
    """How reading mutants ended, what was wrong, and the longest that one took."""

    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def _target(name: str) -> Target:
    return next(target for target in TARGETS if target.name == name)


def read_mutants(
    target: Target, pattern: str, prepared: Path, work: Path, numbers: Iterable[int], seed: int, *, vouched: bool
) -> Tally:
    """Read a target once for each number, in this process, with a mutant in the place of a file of this pattern."""
    tally, copy = Tally(), fresh(prepared, work, target)
    files = sorted(copy.rglob(pattern))
    ways = OF_SAFETENSORS if pattern.endswith("safetensors") else OF_BYTES
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        path = files[int(rng.integers(len(files)))]
        original = path.read_bytes()
        way, mutant = mutate(original, ways, rng)
        what = f"mutant {number} of {target.name} (seed {seed}), {path.name} after '{way}'{', vouched for,' * vouched}"
        print(what, file=sys.stderr, flush=True)  # the last words of a process that is brought down
        path.write_bytes(mutant)
        if vouched and target.vouch is not None:
            target.vouch(copy)
        began = time.monotonic()
        end = attempt(target, copy)
        taken_s = time.monotonic() - began
        _count(tally, what, "identical" if mutant == original else end, taken_s, vouched=vouched, read=end == "read")
        if vouched:
            copy = fresh(prepared, work, target)
        else:
            path.write_bytes(original)
    return tally


def _count(tally: Tally, what: str, end: str, taken_s: float, *, vouched: bool, read: bool) -> None:
    right = read if end == "identical" else end == "refused" or (vouched and read)
    tally.ends[end] += 1
    tally.slowest_s = max(tally.slowest_s, taken_s)
    if not right:
        tally.failures.append(f"{what} {'was read in silence' if read else end}.")
    if taken_s > MOST_S:
        tally.failures.append(f"{what} took {taken_s:.1f} s to read.")


def main() -> None:
    """Read mutants of one target as the arguments say, and print how it went as JSON."""
    name, pattern, prepared, work, first, last, seed, vouched = sys.argv[1:]
    numbers = range(int(first), int(last))
    given = _target(name), pattern, Path(prepared), Path(work), numbers, int(seed)
    tally = read_mutants(*given, vouched=vouched == "vouched")
    print(json.dumps([tally.ends, tally.failures, tally.slowest_s]))


@dataclass(frozen=True, slots=True)
class Herd:
    """Mutants that are read in one process: of which target, which of its files, how many, vouched for or not."""

    target: str
    pattern: str
    count: int
    vouched: str

    def read(self, prepared: Path, work: Path, zygote: Zygote, seed: int) -> tuple[Tally, float]:
        """Return how reading them ended, and the most memory (MB) that it took."""
        arguments = [self.target, self.pattern, str(prepared), str(work), "0", str(self.count), str(seed), self.vouched]
        done = zygote.run(arguments, call="attacks.hostile_mutants:main", timeout_s=TIMEOUT_S, limits=LIMITS)
        if done.code:
            last = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("mutant")), "")
            return Tally(failures=[f"{last} ended the process with {done.code}."]), done.most_mb
        ends, failures, slowest_s = json.loads(done.stdout.splitlines()[-1])
        tally = Tally(Counter(ends), failures, slowest_s)
        if done.most_mb > MOST_MB:
            tally.failures.append(f"Reading mutants of {self.target} took {done.most_mb:.0f} MB.")
        return tally, done.most_mb


def _herds(scale: float) -> list[Herd]:
    """Return what is to be read; the most is of unvouched safetensors."""
    each, vouched = scaled(MUTANTS // len(ATTACKED) + 1, scale), scaled(VOUCHED // len(ATTACKED), scale)
    return [
        *(Herd(name, "*.safetensors", each, "unvouched") for name in ATTACKED),
        *(Herd(name, "*.safetensors", vouched, "vouched") for name in ATTACKED),
        Herd("features", "studies.parquet", scaled(INDEXES, scale), "vouched"),
    ]


def run(work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0) -> Outcome:
    """Change files, read what they belong to, and count."""
    prepared = work / "prepared"
    prepare(prepared, scene, zygote)
    read = [(herd, *herd.read(prepared, work, zygote, seed)) for herd in _herds(scale)]
    silent, of_index = (
        sum((tally.ends for herd, tally, _ in read if chosen(herd)), Counter[str]())
        for chosen in (lambda h: h.vouched == "unvouched", lambda h: h.pattern == "studies.parquet")
    )
    trials = sum(tally.ends.total() for _, tally, _ in read)
    return Outcome(
        trials=trials,
        failures=tuple(failure for _, tally, _ in read for failure in tally.failures),
        figures={
            "safetensors mutants": silent.total(),
            "identical after all": silent["identical"],
            "refused": silent["refused"],
            "changed in silence": silent.total() - silent["identical"] - silent["refused"],
            "safetensors mutants vouched for": trials - silent.total() - of_index.total(),
            "index mutants vouched for": of_index.total(),
            "index mutants that could be read": of_index["read"],
            "slowest (s)": round(max(tally.slowest_s for _, tally, _ in read), 2),
            "most memory (MB)": round(max(most_mb for *_, most_mb in read)),
        },
    )
