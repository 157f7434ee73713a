"""A DICOMDIR: the files that it names, wherever its folder spells them otherwise; none outside of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import read_dataset

from ich_seq.elements import TAGS, integer, text
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import Budget, Form, items, next_tag, sequence_start, sparing

RECORDS = 0x00041220
WANTED = [int(TAGS[keyword]) for keyword in ("ReferencedFileID", "RecordInUseFlag")]
EXPLICIT_LITTLE = Form(implicit=False, little=True)
"""PS3.10 8.6: a DICOMDIR is written in this way alone."""

MAX_RECORD_READS = 32 << 20
"""Bytes that may be read of all records: of 30,000 images and more, four times what a DVD has room for."""

MAX_ID_LETTERS = 1024
Parts = tuple[str, ...]


def named_files(stream: BinaryIO) -> Iterator[Parts]:
    """Yield the Referenced File IDs, in the order of the records, each as folders and a name.

    The stream stands at the data set of a DICOMDIR. The records are taken as they lie; where they say that others lie
    is not followed, so that a ring has no end to miss. Refused (DAMAGED_HEADER): records that cannot be read.
    """
    read_dataset(sparing(stream), False, True, stop_when=lambda tag, vr, length: tag >= RECORDS, specific_tags=WANTED)
    if next_tag(stream, EXPLICIT_LITTLE) != RECORDS:
        raise Refused(Reason.DAMAGED_HEADER, "The DICOMDIR has no records; give the folder instead.")
    _, length = sequence_start(stream, EXPLICIT_LITTLE)
    for record in items(stream, length, EXPLICIT_LITTLE, WANTED, Budget(MAX_RECORD_READS)):
        if (named := text(record, "ReferencedFileID")) and integer(record, "RecordInUseFlag") != 0:
            yield tuple(named[:MAX_ID_LETTERS].replace("/", "\\").split("\\"))


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
