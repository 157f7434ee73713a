"""DICOM files as lists of elements, written byte by byte, so that anything may be wrong with them.

pydicom writes no file that lies about its lengths or names no VR at all; an attack needs those as well.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"
CT_CLASS = b"1.2.840.10008.5.1.4.1.1.2"

LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""PS3.5 7.1.2: after these two reserved bytes and a length of four bytes follow."""

SHORT_VRS = set(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXEL_DATA = 0x7FE00010
SYNTAX_TAG = 0x00020010


@dataclass(frozen=True, slots=True)
class Element:
    """One element as it is to be written. `length` is what it says of itself, where that is not the truth.

    `bare` leaves the VR out, as implicit VR does, in a file that states it elsewhere.
    """

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A file before it is written: `syntax` is how it is written, the meta element says what it claims."""

    syntax: str
    elements: tuple[Element, ...]
    meta: tuple[Element, ...]
    preamble: bytes = bytes(128) + b"DICM"
    meta_length_lie: int = 0


def explicit(syntax: str) -> bool:
    """Return whether elements of a syntax state their VR."""
    return syntax != IMPLICIT


def order(syntax: str) -> str:
    """Return the byte order of a syntax as `struct` has it."""
    return ">" if syntax == BIG_ENDIAN else "<"


def written(draft: Draft) -> bytes:
    """Return the bytes of a file."""
    meta = b"".join(element_bytes(element, EXPLICIT) for element in draft.meta)
    length = struct.pack("<I", (len(meta) + draft.meta_length_lie) & UNDEFINED)
    head = draft.preamble + element_bytes(Element(0x00020000, b"UL", length), EXPLICIT) + meta
    body = b"".join(element_bytes(element, draft.syntax) for element in draft.elements)
    if draft.syntax != DEFLATED:
        return head + body
    squeezer = zlib.compressobj(wbits=-15)
    return head + squeezer.compress(body) + squeezer.flush()


def element_bytes(element: Element, syntax: str) -> bytes:
    """Return one element in a syntax; a length that its field cannot hold is cut to it."""
    o = order(syntax)
    length = len(element.value) if element.length is None else element.length
    tag = struct.pack(f"{o}HH", element.tag >> 16, element.tag & 0xFFFF)
    if element.bare or not explicit(syntax):
        return tag + struct.pack(f"{o}I", length) + element.value
    if element.vr in LONG_VRS:
        return tag + element.vr + bytes(2) + struct.pack(f"{o}I", length) + element.value
    return tag + element.vr + struct.pack(f"{o}H", length & 0xFFFF) + element.value


def item(elements: tuple[Element, ...], syntax: str, *, ended: bool = True) -> bytes:
    """Return the value of a sequence of undefined length that holds one item of undefined length."""
    marks = [Element(tag, b"", b"", length, bare=True) for tag, length in ((ITEM, UNDEFINED), (ITEM_END, 0))]
    end = Element(SEQUENCE_END, b"", b"", bare=True)
    whole = (marks[0], *elements, *((marks[1], end) if ended else ()))
    return b"".join(element_bytes(element, syntax) for element in whole)


def encapsulated(frame: bytes) -> Element:
    """Return the Pixel Data element that holds one compressed frame, behind an empty table of offsets."""
    padded = frame + bytes(len(frame) % 2)
    parts = [struct.pack("<HHI", 0xFFFE, 0xE000, 0), struct.pack("<HHI", 0xFFFE, 0xE000, len(padded)), padded]
    return Element(PIXEL_DATA, b"OB", b"".join([*parts, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)]), UNDEFINED)


@dataclass(frozen=True, slots=True)
class Format:
    """What a header says of its pixels."""

    rows: int
    columns: int
    bits: int = 16
    signed: bool = False
    padding: int | None = None
    more: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict)


def sound_draft(syntax: str, form: Format, pixels: Element) -> Draft:
    """Return a sound CT slice; no two numbers in it are alike, so that one taken for another is noticed."""
    o = order(syntax)
    us = lambda number: struct.pack(f"{o}H", number & 0xFFFF)  # noqa: E731 - a value of two bytes
    values: dict[int, tuple[bytes, bytes]] = {
        0x00080008: (b"CS", rb"ORIGINAL\PRIMARY\AXIAL"),
        0x00080016: (b"UI", CT_CLASS),
        0x00080018: (b"UI", b"1.2.3"),
        0x00080020: (b"DA", b"20190101"),
        0x00080060: (b"CS", b"CT"),
        0x00080070: (b"LO", b"Maker"),
        0x00100010: (b"PN", b"Name^Some"),
        0x00100020: (b"LO", b"P1"),
        0x0020000D: (b"UI", b"1.2.3.4"),
        0x0020000E: (b"UI", b"1.2.3.4.5"),
        0x00200013: (b"IS", b"7"),
        0x00200032: (b"DS", rb"-4.5\-5.25\10.125"),
        0x00200037: (b"DS", rb"1\0\0\0\0.96\-0.28"),
        0x00280002: (b"US", us(1)),
        0x00280004: (b"CS", b"MONOCHROME2"),
        0x00280010: (b"US", us(form.rows)),
        0x00280011: (b"US", us(form.columns)),
        0x00280030: (b"DS", rb"0.5\0.625"),
        0x00280100: (b"US", us(16)),
        0x00280101: (b"US", us(form.bits)),
        0x00280102: (b"US", us(form.bits - 1)),
        0x00280103: (b"US", us(form.signed)),
        0x00281052: (b"DS", b"-1024"),
        0x00281053: (b"DS", b"1"),
        **form.more,
    }
    if form.padding is not None:
        values[0x00280120] = (b"SS" if form.signed else b"US", us(form.padding))
    elements = tuple(Element(tag, vr, even(vr, value)) for tag, (vr, value) in sorted(values.items()))
    meta = (
        Element(0x00020002, b"UI", even(b"UI", CT_CLASS)),
        Element(0x00020003, b"UI", even(b"UI", b"1.2.3")),
        Element(SYNTAX_TAG, b"UI", even(b"UI", syntax.encode())),
    )
    return Draft(syntax, (*elements, pixels), meta)


def even(vr: bytes, value: bytes) -> bytes:
    """Return a value padded to an even length as its VR asks."""
    return value + (b"\0" if vr in (b"UI", b"OB", b"UN") else b" ") * (len(value) % 2)
