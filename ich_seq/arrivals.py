"""What has arrived, and which studies are quiet: a clock and snapshots in, studies out. Nothing here looks at a disk.

A study is *ready* once none of its files appeared or changed for the quiet time; taken, it is so no more until another
file appears or changes. Files that go make nothing ready and are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple


class Stamp(NamedTuple):
    """By what a file is known to be the same: its length in bytes and when it was last written, ns."""

    size: int
    modified_ns: int


class _Study:
    """A study of which some files are there."""

    __slots__ = ("changed_at", "names", "taken", "uid")

    def __init__(self, uid: str) -> None:
        self.uid, self.changed_at, self.taken = uid, 0.0, False
        self.names: set[str] = set()


class _File:
    """A file that is there; of hundreds of thousands this is kept, so it is no more than it has to be.

    `study` is None until it is told, `turn` the look that saw the file last.
    """

    __slots__ = ("modified_ns", "size", "study", "turn")

    def __init__(self, stamp: Stamp, turn: int) -> None:
        self.size, self.modified_ns = stamp
        self.study: _Study | None = None
        self.turn = turn


class Arrivals:
    """Files by name and the studies they belong to, from look to look.

    `quiet_s` is the quiet time. Times are seconds of any clock that never goes back.
    """

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._now, self._turn = 0.0, 0
        self._files: dict[str, _File] = {}
        self._studies: dict[str, _Study] = {}
        self._strays = _Study("")

    def look(self, now: float, snapshot: Iterable[tuple[str, Stamp]]) -> list[str]:
        """Take in all that is there at a moment; return the names of which `tell` has to hear, in their order.

        These are new or changed, or nobody could tell of them yet. A snapshot that breaks off with an error, which
        is passed on, makes nothing be forgotten.
        """
        self._now, self._turn = now, self._turn + 1
        untold = []
        for name, stamp in snapshot:
            file = self._files.get(name)
            if file is None or (file.size, file.modified_ns) != stamp:
                self._forget(name)
                file = self._files[name] = _File(stamp, self._turn)
            file.turn = self._turn
            if file.study is None:
                untold.append(name)
        for name in [name for name, file in self._files.items() if file.turn != self._turn]:
            self._forget(name)
        return untold

    def tell(self, name: str, study_uid: str) -> None:
        """Say to which study a file belongs that the last look found; "" if to none."""
        study = self._studies.setdefault(study_uid, _Study(study_uid)) if study_uid else self._strays
        self._files[name].study = study
        if study_uid:
            study.names.add(name)
            study.changed_at, study.taken = self._now, False

    def ready(self) -> list[str]:
        """Return the studies that were quiet at the last look and not taken, those that wait longest first."""
        quiet = [s for s in self._studies.values() if not s.taken and self._now - s.changed_at >= self._quiet_s]
        return [study.uid for study in sorted(quiet, key=lambda s: (s.changed_at, s.uid))]

    def waiting(self) -> set[str]:
        """Return the studies that are not taken, ready or not."""
        return {study.uid for study in self._studies.values() if not study.taken}

    def files(self, study_uid: str) -> dict[str, Stamp]:
        """Return the files of a study that were there at the last look, sorted by name."""
        study = self._studies.get(study_uid)
        names = () if study is None else sorted(study.names)
        return {name: Stamp(self._files[name].size, self._files[name].modified_ns) for name in names}

    def take(self, study_uid: str) -> dict[str, Stamp]:
        """Return the files of a study, which is ready again when another appears or one changes."""
        self._studies[study_uid].taken = True
        return self.files(study_uid)

    def give_back(self, study_uid: str) -> None:
        """Let a study that was taken, and could not be worked through, be ready again after another quiet time."""
        if study := self._studies.get(study_uid):
            study.changed_at, study.taken = self._now, False

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __len__(self) -> int:
        return len(self._files)

    def _forget(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is None or file.study is None or file.study is self._strays:
            return
        file.study.names.discard(name)
        if not file.study.names:
            del self._studies[file.study.uid]


class Change(StrEnum):
    """How the files of a study are to those that a result was made of."""

    NONE = "none"
    GROWN = "grown"
    PARTED = "parted"


def compare(made_of: Mapping[str, str], there: Mapping[str, str]) -> Change:
    """Tell what a study's files, stamps by name, are to those that its result was made of.

    NONE: no other is there, though some may have gone. GROWN: others have come, or some have changed, beside all the
    old ones. PARTED: others have come, but old ones have gone, so that what is there is no whole study.
    """
    if there.items() <= made_of.items():
        return Change.NONE
    return Change.GROWN if made_of.keys() <= there.keys() else Change.PARTED
