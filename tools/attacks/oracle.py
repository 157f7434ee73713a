"""What a strict reader says of a header: its own walk over the bytes, and its own grammar of numbers.

It shares no code with the package or with pydicom, so that a header which the package took for something else than
what the file holds is found. Where real files ask every reader for leniency (a VR nobody knows, elements out of order
or without a VR, a stray end of an item, an item under another tag), it is lenient too; what decides about the image, it
does not guess.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from attacks.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LONG_VRS,
    PIXEL_DATA,
    SEQUENCE_END,
    SYNTAX_TAG,
    UNDEFINED,
)

NATIVE = {IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED}
DECIMAL = re.compile(rb"[ \t\r\n\f\v]*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[ \t\r\n\f\v]*")
WHOLE = re.compile(rb"[ \0]*([+-]?[0-9]+)(?:\.0*)?[ \0]*")
NUMBER_TEXT_VRS = {b"IS", b"DS", b"LO", b"SH", b"CS", b"ST", b"LT", b"UT", b"UN", b"AE", b"AS", b"UC"}
"""Text in which a careless writer may have put digits; other VRs hold bytes that only look like some."""

MAX_SHOWN = 24
PIECE_BYTES = 64
"""Deflated bytes inflated at a time: what stands before the damage is read."""


def name_of(tag: int) -> str:
    """Return a tag as DICOM writes it."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


class Unreadable(Exception):  # noqa: N818 - a verdict of the oracle
    """The bytes do not say, or say two things."""


@dataclass(frozen=True, slots=True)
class Field:
    """An element at the top of a data set; `start` is where its value begins, `length` what it says its length is."""

    tag: int
    vr: bytes | None
    value: bytes
    start: int
    length: int
    order: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All elements of a file up to its Pixel Data, every one of those that stand there more than once."""

    syntax: str
    fields: dict[int, list[Field]]
    pixel_data: Field | None

    def field(self, tag: int) -> Field | None:
        """Return the one element of a tag that holds anything. Unreadable: several, which differ."""
        found = self.fields.get(tag, [])
        if len({(field.vr, field.value) for field in found}) > 1:
            raise Unreadable(f"{name_of(tag)} stands there twice and differs")
        return found[0] if found and found[0].value else None

    def text(self, tag: int) -> str:
        """Return an element as ASCII, empty if it is absent."""
        field = self.field(tag)
        try:
            return field.value.decode("ascii").strip(" \0") if field else ""
        except UnicodeDecodeError:
            raise Unreadable(f"{name_of(tag)} is no ASCII") from None

    def decimals(self, tag: int) -> tuple[float, ...]:
        """Return an element as decimal strings, none if it is absent."""
        field = self.field(tag)
        matches = [DECIMAL.fullmatch(word) for word in field.value.strip(b" \0").split(b"\\")] if field else []
        if not all(matches):
            raise Unreadable(f"{name_of(tag)} is {field.value[:MAX_SHOWN]!r}, no decimal string")
        return tuple(float(match[1]) for match in matches)

    def whole(self, tag: int) -> int | None:
        """Return one whole number, of two bytes or of digits as the VR says; None if it is absent."""
        field = self.field(tag)
        if field is None:
            return None
        two_bytes = field.vr in (b"US", b"SS") or (field.vr is None and tag >> 16 == 0x0028 and tag != 0x00280008)
        if two_bytes and len(field.value) == 2:
            return int(struct.unpack(f"{field.order}{'h' if field.vr == b'SS' else 'H'}", field.value)[0])
        match = WHOLE.fullmatch(field.value) if not two_bytes and (field.vr or b"IS") in NUMBER_TEXT_VRS else None
        if match is None:
            raise Unreadable(f"{name_of(tag)} is {field.value[:MAX_SHOWN]!r} of VR {field.vr!r}, no number")
        return int(match[1])


def read_strictly(content: bytes, *, stated: bool = True) -> Reading:
    """Return what a file holds. Unreadable if it does not begin as a DICOM file does.

    A file whose first element states no VR can be meant in two ways, whatever its syntax says: one element was spoilt,
    or none states any, for which `stated` is false.
    """
    at = 132 if content[128:132] == b"DICM" else 0
    if at == 0 and content[:2] not in (b"\x02\x00", b"\x08\x00"):
        raise Unreadable("it does not begin as a DICOM file")
    meta: dict[int, list[Field]] = {}
    for field in _walk(content, at, implicit=False, order="<"):
        if field.tag >> 16 != 2:
            break
        meta.setdefault(field.tag, []).append(field)
        at = field.start + field.length
    syntax = Reading("", meta, None).text(SYNTAX_TAG) or IMPLICIT
    if syntax == DEFLATED:
        content, at = _inflated(content[at:]), 0
    first_vr = content[at + 4 : at + 6]
    implicit = (syntax == IMPLICIT or not stated) and not (first_vr.isalpha() and first_vr.isupper())
    fields: dict[int, list[Field]] = {}
    for field in _walk(content, at, implicit=implicit, order=">" if syntax == BIG_ENDIAN else "<"):
        if field.tag == ITEM_END:
            continue  # nothing ends here, and nothing is lost
        if field.tag >= 0x7FE00008:
            return Reading(syntax, fields, field if field.tag == PIXEL_DATA else None)
        fields.setdefault(field.tag, []).append(field)
    return Reading(syntax, fields, None)


def _inflated(content: bytes) -> bytes:
    """Return what a deflated stream holds before its end or its first fault."""
    inflater, pieces = zlib.decompressobj(-15), []
    try:
        for start in range(0, len(content), PIECE_BYTES):
            pieces.append(inflater.decompress(content[start : start + PIECE_BYTES]))
    except zlib.error:
        pass
    return b"".join(pieces)


def _walk(content: bytes, at: int, *, implicit: bool, order: str) -> Iterator[Field]:
    """Yield element after element till the bytes end."""
    while at + 8 <= len(content):
        field = _field(content, at, implicit=implicit, order=order)
        yield field
        at = field.start + (0 if field.tag == ITEM_END else field.length)
        if field.length == UNDEFINED and field.tag != ITEM_END:
            at = _end_of_undefined(content, field, implicit=implicit)


def _field(content: bytes, at: int, *, implicit: bool, order: str) -> Field:
    group, number = struct.unpack_from(f"{order}HH", content, at)
    tag, vr, start = group << 16 | number, None, at + 8
    if group == 0xFFFE or implicit or not _states_vr(content[at + 4 : at + 6]):
        (length,) = struct.unpack_from(f"{order}I", content, at + 4)
    else:
        vr = content[at + 4 : at + 6]
        kind, start = ("I", at + 12) if vr in LONG_VRS else ("H", at + 8)
        place = start - struct.calcsize(kind)
        if start > len(content):
            raise Unreadable("it ends within an element")
        (length,) = struct.unpack_from(f"{order}{kind}", content, place)
    return Field(tag, vr, content[start : start + length] if length != UNDEFINED else b"", start, length, order)


def _states_vr(two: bytes) -> bool:
    return b"AA" <= two <= b"ZZ"


def _end_of_undefined(content: bytes, field: Field, *, implicit: bool) -> int:
    """Return where a value of undefined length ends. Unreadable if it does not, or is a sequence and does not hold one.

    What is neither a sequence nor begins as one is passed over, up to the next mark that ends one.
    """
    head = content[field.start : field.start + 4]
    if field.vr == b"SQ" or head in (_mark(ITEM, field.order), _mark(SEQUENCE_END, field.order)):
        return _sequence_end(content, field.start, implicit=implicit, order=field.order)
    end = content.find(_mark(SEQUENCE_END, field.order), field.start)
    if end < 0:
        raise Unreadable("a value of undefined length does not end")
    return end + 8


def _mark(tag: int, order: str) -> bytes:
    return struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)


def _sequence_end(content: bytes, at: int, *, implicit: bool, order: str) -> int:
    """Return where a sequence of undefined length ends; whatever else stands in it is taken for an item."""
    while at + 8 <= len(content):
        field = _field(content, at, implicit=True, order=order)
        if field.tag == SEQUENCE_END:
            return at + 8
        at = field.start + field.length
        if field.length == UNDEFINED:
            at = _item_end(content, field.start, implicit=implicit, order=order)
    raise Unreadable("a sequence does not end")


def _item_end(content: bytes, at: int, *, implicit: bool, order: str) -> int:
    for field in _walk(content, at, implicit=implicit, order=order):
        if field.tag == ITEM_END:
            return field.start
    raise Unreadable("an item does not end")
