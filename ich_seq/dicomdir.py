"""A DICOMDIR: the files that it names, wherever its folder spells them otherwise; none outside of the folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from ich_seq.elements import TAGS, integer, plain_uid, raw_value, text
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import Budget, Form, items, next_tag, sequence_start, sparing

RECORDS = 0x00041220
NEXT_AT, LOWER_AT = "OffsetOfTheNextDirectoryRecord", "OffsetOfReferencedLowerLevelDirectoryEntity"
KEYWORDS = ("DirectoryRecordType", NEXT_AT, LOWER_AT, "RecordInUseFlag", "ReferencedFileID", "StudyInstanceUID")
WANTED = [int(TAGS[keyword]) for keyword in KEYWORDS]
STUDY, IMAGE = "STUDY", "IMAGE"
EXPLICIT_LITTLE = Form(implicit=False, little=True)
"""PS3.10 8.6: a DICOMDIR is written in this way alone."""

MAX_RECORD_READS = 40 << 20
"""Bytes that may be read of all records: of 30,000 images and more, four times what a DVD has room for."""

MAX_ID_LETTERS = 1024
Parts = tuple[str, ...]


class NamedFile(NamedTuple):
    """A file that a DICOMDIR names: folders and a name; of an image also its study, empty where that is not told."""

    parts: Parts
    study_uid: str


class _Record(NamedTuple):
    """A directory record: what it is of, the file that it names, and where the next one and the first below it lie."""

    kind: str
    file_id: str
    study_uid: str
    next_at: int
    lower_at: int


def named_files(stream: BinaryIO) -> list[NamedFile]:
    """Return the files that are named, in the order of the records.

    The stream stands at the data set of a DICOMDIR. The records are taken as they lie; where they say that others lie
    tells of which study an image is, and nothing else. Refused (DAMAGED_HEADER): records that cannot be read.
    """
    read_dataset(sparing(stream), False, True, stop_when=lambda tag, vr, length: tag >= RECORDS, specific_tags=WANTED)
    if next_tag(stream, EXPLICIT_LITTLE) != RECORDS:
        raise Refused(Reason.DAMAGED_HEADER, "The DICOMDIR has no records; give the folder instead.")
    records = _records(stream)
    study_of = _studies(records)
    return [
        NamedFile(tuple(record.file_id.split("\\")), study_of.get(place, "") if record.kind == IMAGE else "")
        for place, record in records.items()
        if record.file_id
    ]


def _records(stream: BinaryIO) -> dict[int, _Record]:
    """Return the records by where each begins in the file, which is how they name one another (PS3.3 F.3.2.2)."""
    _, length = sequence_start(stream, EXPLICIT_LITTLE)
    found: dict[int, _Record] = {}
    place = stream.tell()
    for item in items(stream, length, EXPLICIT_LITTLE, WANTED, Budget(MAX_RECORD_READS)):
        found[place] = _record(item)
        place = stream.tell()
    return found


def _record(item: Dataset) -> _Record:
    """Return what a record says; one that is out of use names no file."""
    kind, named = text(item, "DirectoryRecordType"), text(item, "ReferencedFileID")
    in_use = named and integer(item, "RecordInUseFlag") != 0
    return _Record(
        kind=kind,
        file_id=named[:MAX_ID_LETTERS].replace("/", "\\") if in_use else "",
        study_uid=plain_uid(item, "StudyInstanceUID") if kind == STUDY else "",
        next_at=_offset(item, NEXT_AT),
        lower_at=_offset(item, LOWER_AT),
    )


def _offset(item: Dataset, keyword: str) -> int:
    """Return where another record begins; 0, where none does, if it does not say."""
    return int.from_bytes(raw_value(item, keyword)[:4], "little")


def _studies(records: Mapping[int, _Record]) -> dict[int, str]:
    """Return of which study each record is that lies below one; each is looked at once, so that a ring ends."""
    found: dict[int, str] = {}
    for study in (record for record in records.values() if record.study_uid):
        left = [study.lower_at]
        while left:
            place = left.pop()
            if place in records and place not in found and not records[place].study_uid:
                found[place] = study.study_uid
                left += records[place].next_at, records[place].lower_at
    return found


class Finder:
    """Finds the files that a DICOMDIR names below its folder; media write names in capitals that disks do not keep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, str]] = {}

    def find(self, parts: Parts) -> Path | None:
        """Return where a file lies, or None: it is not there, or its name leads out of the folder."""
        path = self._folder
        for part in parts:
            if part in ("", ".", "..") or not part.isprintable():
                return None
            if not os.path.lexists(path / part):
                spelt = self._names(path).get(part.casefold())
                if spelt is None:
                    return None
                part = spelt  # noqa: PLW2901 - as the disk has it
            path /= part
        return None if os.path.isdir(path) else path  # noqa: PTH112 - Path.is_dir raises where it may not look

    def _names(self, folder: Path) -> dict[str, str]:
        if folder not in self._listed:
            self._listed[folder] = {}
            with suppress(OSError):
                names = sorted((path.name for path in folder.iterdir()), reverse=True)
                self._listed[folder] = {name.casefold(): name for name in names}
        return self._listed[folder]
