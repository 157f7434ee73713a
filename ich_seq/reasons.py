"""Why a file is part of no study: the reason codes of rejected.csv, and the verdict on a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ich_seq.tables import csv_rows


class Reason(StrEnum):
    """Why a file is not part of a study. `EXCLUDED` holds those that are no fault of the file."""

    UNREADABLE = "unreadable"
    NOT_REGULAR = "not_regular"
    ARCHIVE = "archive"
    MISSING_FILE = "missing_file"
    NOT_DICOM = "not_dicom"
    TOO_LARGE = "too_large"
    DAMAGED_HEADER = "damaged_header"
    TRANSFER_SYNTAX = "transfer_syntax"
    MISSING_TAG = "missing_tag"
    UID = "uid"
    MULTI_FRAME = "multi_frame"
    GEOMETRY = "geometry"
    DIMENSIONS = "dimensions"
    PIXEL_FORMAT = "pixel_format"
    RESCALE = "rescale"
    PIXEL_DATA = "pixel_data"
    CODESTREAM = "codestream"
    DECODE = "decode"
    CHANGED = "changed"
    SOP_CONFLICT = "sop_conflict"
    PATIENT_CONFLICT = "patient_conflict"
    FAILED = "failed"
    NOT_FETCHED = "not_fetched"
    WRONG_STUDY = "wrong_study"
    OTHER_FILE = "other_file"
    DICOMDIR = "dicomdir"
    NOT_CT = "not_ct"
    SECONDARY_CAPTURE = "secondary_capture"
    LOCALIZER = "localizer"
    NOT_AXIAL = "not_axial"
    OTHER_SERIES = "other_series"
    DUPLICATE = "duplicate"


EXCLUDED = {
    Reason.OTHER_FILE,
    Reason.DICOMDIR,
    Reason.NOT_CT,
    Reason.SECONDARY_CAPTURE,
    Reason.LOCALIZER,
    Reason.NOT_AXIAL,
    Reason.OTHER_SERIES,
    Reason.DUPLICATE,
}
"""Sound files that a stated rule leaves out. All other reasons mean that something is wrong."""


@dataclass(frozen=True, slots=True)
class Unused:
    """A file that is part of no study, and why. `detail` is a sentence with the remedy.

    `study_uid` is the study it would belong to, empty where the file does not tell. `frame` is the number, from 1, of
    the one frame of a file that is meant, 0 for the whole file.
    """

    file: str
    reason: Reason
    detail: str
    study_uid: str = ""
    frame: int = 0

    @property
    def fate(self) -> str:
        """Return "excluded" (a sound file, left out by rule) or "rejected" (something is wrong with it)."""
        return "excluded" if self.reason in EXCLUDED else "rejected"


def unused_from_json(value: dict[str, Any]) -> Unused:
    """Read back what `dataclasses.asdict` wrote of an `Unused`."""
    return Unused(**value | {"reason": Reason(value["reason"])})


class Refused(Exception):  # noqa: N818 - a verdict, not an error of ours
    """A file that cannot be used, on its way to becoming an `Unused`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail
        self.study_uid = ""

    def verdict(self, file: str, frame: int = 0) -> Unused:
        """Return what is reported of the file, or of one frame of it."""
        return Unused(file, self.reason, self.detail, self.study_uid, frame)


def unused_csv(unused: Iterable[Unused]) -> bytes:
    """Return `rejected.csv`: file, fate (excluded or rejected), reason code, detail with the remedy, study, frame."""
    rows = ((u.file, u.fate, str(u.reason), u.detail, u.study_uid, u.frame or None) for u in unused)
    return csv_rows([("file", "fate", "reason", "detail", "study_uid", "frame"), *rows])
