"""DICOM elements as bytes, in any transfer syntax, and what they are put together with; any may be wrong.

pydicom writes no element that lies about its length or names no VR at all; an attack needs those as well.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"

LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""PS3.5 7.1.2: after these two reserved bytes and a length of four bytes follow."""

SHORT_VRS = set(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
ZERO_PADDED = LONG_VRS - {b"UC", b"UR", b"UT"} | {b"UI"}
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
META_LENGTH, SYNTAX_TAG, PIXEL_DATA = 0x00020000, 0x00020010, 0x7FE00010


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


def order(syntax: str) -> str:
    """Return the byte order of a syntax as `struct` has it."""
    return ">" if syntax == BIG_ENDIAN else "<"


def even(vr: bytes, value: bytes) -> bytes:
    """Return a value padded to an even length as its VR asks."""
    return value + (b"\0" if vr in ZERO_PADDED else b" ") * (len(value) % 2)


def element_bytes(element: Element, syntax: str) -> bytes:
    """Return one element in a syntax; a length that its field cannot hold is cut to it."""
    o = order(syntax)
    length = len(element.value) if element.length is None else element.length
    tag = struct.pack(f"{o}HH", element.tag >> 16, element.tag & 0xFFFF)
    if element.bare or syntax == IMPLICIT:
        return tag + struct.pack(f"{o}I", length) + element.value
    if element.vr in LONG_VRS:
        return tag + element.vr + bytes(2) + struct.pack(f"{o}I", length) + element.value
    return tag + element.vr + struct.pack(f"{o}H", length & 0xFFFF) + element.value


# ---- sequences and fragments


def item(content: bytes, length: int | None = None, syntax: str = EXPLICIT) -> bytes:
    """Return one item of a sequence or one fragment of compressed pixels; one of undefined length is left open."""
    return element_bytes(Element(ITEM, b"", content, length, bare=True), syntax)


def end_of(tag: int, syntax: str = EXPLICIT) -> bytes:
    """Return what ends an item (ITEM_END) or a sequence (SEQUENCE_END) of undefined length."""
    return element_bytes(Element(tag, b"", b"", bare=True), syntax)


def encapsulated(*fragments: bytes, offsets: bytes = b"", closed: bool = True) -> Element:
    """Return the Pixel Data element that holds compressed fragments behind a table of offsets."""
    padded = b"".join(item(even(b"OB", fragment)) for fragment in fragments)
    return Element(PIXEL_DATA, b"OB", item(offsets) + padded + (end_of(SEQUENCE_END) if closed else b""), UNDEFINED)


# ---- parts of a file


def meta_group(meta: bytes, lie: int = 0) -> bytes:
    """Return file meta elements behind their group length, which says so many bytes more than there are."""
    length = struct.pack("<I", (len(meta) + lie) & UNDEFINED)
    return element_bytes(Element(META_LENGTH, b"UL", length), EXPLICIT) + meta


def deflate(content: bytes) -> bytes:
    """Return a data set deflated as its transfer syntax has it, without a header."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(content) + deflater.flush()
