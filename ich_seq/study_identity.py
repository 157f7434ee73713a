"""Whose study it is: the elements by which an archive files a result, read again from the slices that were predicted.

Only for results that are DICOM objects themselves; nothing else of the package ever reads a name or a date. What is
read is taken only if it is as DICOM has it: a result with an empty element is filed by its others, one with a wrong
element is refused by archives, and half of an identifier may be somebody else's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import PersonName

from ich_seq.dicom import SliceHeader
from ich_seq.dicom_files import inflated, opened, read_syntax, seek_dataset
from ich_seq.elements import text
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import lenient, sparing

UID_RULE = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
MAX_UID_LETTERS = 64
"""PS3.5 9.1: numbers without leading zeros, joined by dots, 64 characters at most."""

MAX_NAME_GROUPS, MAX_NAME_PARTS, MAX_NAME_LETTERS = 3, 5, 64
"""PS3.5 6.2.1: a Person Name has an alphabetic, an ideographic and a phonetic group of five parts each."""

UNSURE = {"\\", "\ufffd"}
"""Letters of no identifier: what parts several values, and what stands for bytes that are of no character set."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A slice as another DICOM object refers to it; `frame` is its number, from 1, where a file holds several."""

    sop_class: str
    sop_uid: str
    frame: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyIdentity:
    """What a result inherits of its N slices: UIDs, a reference to each, and `elements`, plain values by keyword.

    An element that none of the slices has in a valid form is the empty text.
    """

    study_uid: str
    series_uid: str
    references: tuple[Reference, ...]
    elements: Mapping[str, str]


def read_identity(headers: Sequence[SliceHeader]) -> StudyIdentity:
    """Read again whose study N slices are of; of each element the first valid value from the feet is taken.

    Raises Refused: UID (a study, series or slice whose UID no DICOM object may refer to), CHANGED (a file is not what
    it was when it was predicted), UNREADABLE, DAMAGED_HEADER.
    """
    for header in headers:
        check_uids(header)
    found = dict.fromkeys(CLEANERS, "")
    references = []
    for header in headers:
        with lenient():
            dataset = _read(header)
            for keyword, value in _clean_values(dataset, [k for k, known in found.items() if not known]):
                found[keyword] = value
        references.append(reference_to(header, sop_class=text(dataset, "SOPClassUID") or CTImageStorage))
    return StudyIdentity(
        study_uid=headers[0].study_uid,
        series_uid=headers[0].series_uid,
        references=tuple(references),
        elements=found,
    )


def reference_to(header: SliceHeader, *, sop_class: str) -> Reference:
    """Return how another object refers to a slice: the one place that knows."""
    return Reference(sop_class, header.instance_uid, header.frame or None)


def check_uids(header: SliceHeader) -> None:
    """Refused (UID): a slice that no DICOM object can refer to, such as one of RSNA's, whose UIDs are ID_..."""
    sop_uid = reference_to(header, sop_class="").sop_uid
    for what, uid in (("Study", header.study_uid), ("Series", header.series_uid), ("SOP", sop_uid)):
        if len(uid) > MAX_UID_LETTERS or not UID_RULE.fullmatch(uid):
            raise Refused(
                Reason.UID,
                f"A {what} Instance UID is not one by DICOM's rule (PS3.5 9.1), so no object can refer to it.",
            )


def _read(header: SliceHeader) -> Dataset:
    try:
        with opened(header.path, header.member) as (stream, status, _):
            if (status.st_size, status.st_mtime_ns) != (header.file_bytes, header.modified_ns):
                raise Refused(Reason.CHANGED, "A file was changed after it was predicted; run the same command again.")
            seek_dataset(stream, header.path)
            syntax = read_syntax(stream)
            content = inflated(stream)[0] if syntax == DeflatedExplicitVRLittleEndian else stream
            return read_dataset(
                sparing(content),
                syntax == ImplicitVRLittleEndian,
                syntax != ExplicitVRBigEndian,
                stop_when=lambda tag, vr, length: tag > LAST_TAG,
                specific_tags=TAGS,
            )
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"A file cannot be read any more: {error.strerror or 'cut short'}.") from None
    except Refused:
        raise
    except Exception as error:  # whatever a parser makes of elements that were passed over before
        raise Refused(Reason.DAMAGED_HEADER, f"A header cannot be parsed ({type(error).__name__}).") from None


def _clean_values(dataset: Dataset, keywords: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield those elements that have a value as DICOM allows it."""
    for keyword in keywords:
        with suppress(Exception):  # of an element that cannot be converted, which counts as absent
            value = dataset.get(keyword)
            if isinstance(value, str | PersonName):  # neither several values nor what the file calls a number
                yield keyword, CLEANERS[keyword](str(value).strip(" \0"))


def person_name(value: str) -> str:
    """Return a Person Name (PN) of printable letters, its groups cut where they are too long."""
    value = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in value)
    groups = ["^".join(group.split("^")[:MAX_NAME_PARTS]) for group in value.split("=")[:MAX_NAME_GROUPS]]
    return "=".join(group[:MAX_NAME_LETTERS].strip().rstrip("^ ") for group in groups).rstrip("=")


def identifier(most: int) -> Callable[[str], str]:
    """Return what takes an identifier (LO, SH) of so many letters whole, or not at all."""
    return lambda value: value if len(value) <= most and value.isprintable() and not UNSURE & set(value) else ""


def date(value: str) -> str:
    """Return a date (DA) as YYYYMMDD, also of the older form with dots; empty if there is no such day."""
    digits = value.replace(".", "") if re.fullmatch(r"[0-9]{4}\.[0-9]{2}\.[0-9]{2}", value) else value
    return digits if re.fullmatch(r"[0-9]{8}", digits, re.ASCII) and _exists(digits, "%Y%m%d") else ""


def time_of_day(value: str) -> str:
    """Return a time (TM) as HH[MM[SS[.F]]], also of the older form with colons; empty if there is no such time."""
    colons = re.fullmatch(r"[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?", value)
    digits = value.replace(":", "") if colons else value
    form = re.fullmatch(r"([0-9]{2}|[0-9]{4}|[0-9]{6})(\.[0-9]{1,6})?", digits, re.ASCII)
    if form is None or (form[2] and len(form[1]) < 6):
        return ""
    return digits if _exists(form[1], "%H%M%S"[: len(form[1])]) else ""


def _exists(digits: str, form: str) -> bool:
    try:
        return bool(datetime.strptime(digits, form))
    except ValueError:
        return False


def sex(value: str) -> str:
    """Return M, F or O (PS3.3 C.7.1.1)."""
    return value.upper() if value.upper() in ("M", "F", "O") else ""


CLEANERS: Mapping[str, Callable[[str], str]] = {
    "PatientName": person_name,
    "PatientID": identifier(64),
    "IssuerOfPatientID": identifier(64),
    "PatientBirthDate": date,
    "PatientSex": sex,
    "StudyDate": date,
    "StudyTime": time_of_day,
    "AccessionNumber": identifier(16),
    "ReferringPhysicianName": person_name,
    "StudyID": identifier(16),
}
"""What is taken over, and how: the elements that the Patient and General Study modules must have (PS3.3 C.7.1.1 and
C.7.2.1, types 1 and 2), and who issued the Patient ID."""

TAGS = [int(Tag(keyword)) for keyword in ("SpecificCharacterSet", "SOPClassUID", *CLEANERS)]
LAST_TAG = max(TAGS)
