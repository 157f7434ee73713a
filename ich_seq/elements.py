"""The elements of a DICOM header as plain values, straight from their bytes.

pydicom finds them; its own conversion of each would take most of the time of a header.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from ich_seq.reasons import Reason, Refused

KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "Manufacturer",
    "ManufacturerModelName",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RescaleIntercept",
    "RescaleSlope",
]
"""All that is ever read of a header; names, dates and other patient text are not."""

ELSEWHERE = [
    "MediaStorageSOPClassUID",
    "TransferSyntaxUID",
    "RescaleType",
    "FrameType",
    "FrameAcquisitionNumber",
    "StackID",
    "TemporalPositionIndex",
    "DirectoryRecordType",
    "OffsetOfTheNextDirectoryRecord",
    "OffsetOfReferencedLowerLevelDirectoryEntity",
    "ReferencedFileID",
    "RecordInUseFlag",
]
"""What is read of file meta information, of the groups of frames and of directories."""

TAGS = {keyword: Tag(keyword) for keyword in (*ELSEWHERE, *KEYWORDS)}
TAG_NUMBERS = [int(TAGS[keyword]) for keyword in KEYWORDS]
ASKED_FOR = {int(TAGS[keyword]) for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID", *KEYWORDS)}

BINARY = {
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "FrameAcquisitionNumber",
    "RecordInUseFlag",
}
"""Elements that are two binary bytes where the file does not state another VR (PS3.6)."""


UID_FORM = re.compile("[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
"""Wider than DICOM's digits and dots, since anonymisers write all kinds of names: RSNA's are ID_..."""

DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
"""PS3.5 6.2: a Decimal String; Python reads more than that as a number, such as 1_000."""

UNDEFINED_LENGTH = 0xFFFFFFFF
BINARY_VRS = {"AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SQ", "SV", "UL", "UV"}
"""Their bytes are no digits, though they may look so."""


def once(ends: Callable[[int], bool], seen: set[int] | None = None) -> Callable[[BaseTag, str | None, int], bool]:
    """Return what tells pydicom where a header ends. Refused (DAMAGED_HEADER): an element of ours a second time.

    `seen` are those of a part of the same header that was read before.
    """
    seen = set() if seen is None else seen

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        number = int(tag)
        if number in seen:
            raise Refused(Reason.DAMAGED_HEADER, f"({number >> 16:04X},{number & 0xFFFF:04X}) is there twice.")
        if number in ASKED_FOR and (seen or length):  # pydicom may ask about the first one twice, by no length at first
            seen.add(number)
        return ends(number)

    return stop


def _raw(dataset: Dataset, keyword: str) -> RawDataElement | None:
    """Return an element as its bytes, or None if it is absent or empty."""
    try:
        element: Any = dataset.get_item(TAGS[keyword])
    except KeyError:
        return None
    if not isinstance(element, RawDataElement) or not element.value:
        return None
    if len(element.value) < element.length != UNDEFINED_LENGTH:  # pydicom returns what there is
        raise Refused(Reason.DAMAGED_HEADER, f"The file ends in {keyword}; copy it again.")
    return element


def raw_value(dataset: Dataset, keyword: str) -> bytes:
    """Return an element as its bytes, none if it is absent."""
    element = _raw(dataset, keyword)
    return b"" if element is None else bytes(element.value or b"")


def text(dataset: Dataset, keyword: str) -> str:
    """Return an element as text without the padding around it, empty if it is absent."""
    element = _raw(dataset, keyword)
    if element is None:
        return ""
    raw = bytes(element.value or b"")
    try:
        return raw.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:  # other character sets are not looked up: nothing that is read here depends on them
        return raw.decode("latin-1").strip(" \0")


def plain_uid(dataset: Dataset, keyword: str) -> str:
    """Return an identifier that can stand in a table, a page or a command without harm; empty for anything else."""
    value = text(dataset, keyword)
    return value if UID_FORM.fullmatch(value) else ""


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return the values of an element as texts, none if it is absent."""
    value = text(dataset, keyword)
    return tuple(word.strip(" \t\r\n\f\v") for word in value.split("\\")) if value else ()


def required(dataset: Dataset, keyword: str) -> str:
    """Return an element as text. Refused (MISSING_TAG) if it is absent or empty."""
    value = text(dataset, keyword)
    if not value:
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or empty.")
    return value


def whole(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return a whole number that may be absent; one that cannot be read counts as absent."""
    value = integer(dataset, keyword)
    return default if value is None else value


def optional_whole(dataset: Dataset, keyword: str) -> int | None:
    """Return a whole number, None if it is absent. Refused (PIXEL_FORMAT) if it is there and none."""
    value = integer(dataset, keyword)
    if value is None and _raw(dataset, keyword) is not None:
        raise Refused(Reason.PIXEL_FORMAT, f"{keyword} is no whole number.")
    return value


def required_whole(dataset: Dataset, keyword: str) -> int:
    """Return a whole number. Refused (MISSING_TAG) if it is absent or none."""
    value = integer(dataset, keyword)
    if value is None:
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or no whole number.")
    return value


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Return one integer, binary or in digits as the file's VR says, or None if it is absent or no whole number."""
    element = _raw(dataset, keyword)
    if element is None:
        return None
    value = bytes(element.value or b"")
    if element.VR in ("US", "SS") or (element.VR is None and keyword in BINARY):
        order: Literal["little", "big"] = "little" if element.is_little_endian else "big"
        if len(value) % 2:
            raise Refused(Reason.DAMAGED_HEADER, f"{keyword} has an impossible length.")
        return int.from_bytes(value, order, signed=element.VR == "SS") if len(value) == 2 else None
    digits = value.decode("latin-1").strip(" \0")
    if element.VR in BINARY_VRS or not DECIMAL.fullmatch(digits):
        return None
    number = float(digits)
    return int(number) if number.is_integer() else None


def numbers(dataset: Dataset, keyword: str, count: int, reason: Reason) -> tuple[float, ...]:
    """Return `count` finite numbers. Refused: absent (MISSING_TAG); too few, too many, not finite (`reason`)."""
    given = words(dataset, keyword)
    if not given:
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or empty.")
    if not all(DECIMAL.fullmatch(value) for value in given):
        raise Refused(reason, f"{keyword} is not a number.")
    values = tuple(float(value) for value in given)
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise Refused(reason, f"{keyword} is not {count} finite number{'s' if count > 1 else ''}.")
    return values
