"""DICOM files as drafts, lists of elements that can be spoilt one by one before they are written."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from attacks.dicom_elements import (
    DEFLATED,
    EXPLICIT,
    ITEM_END,
    SEQUENCE_END,
    SYNTAX_TAG,
    UNDEFINED,
    Element,
    deflate,
    element_bytes,
    end_of,
    even,
    item,
    meta_group,
    order,
)

CT_CLASS = b"1.2.840.10008.5.1.4.1.1.2"


@dataclass(frozen=True, slots=True)
class Draft:
    """A file before it is written: `syntax` is how it is written, the meta element says what it claims."""

    syntax: str
    elements: tuple[Element, ...]
    meta: tuple[Element, ...]
    preamble: bytes = bytes(128) + b"DICM"
    meta_length_lie: int = 0


def written(draft: Draft) -> bytes:
    """Return the bytes of a file."""
    head = draft.preamble + meta_group(joined(draft.meta, EXPLICIT), draft.meta_length_lie)
    body = joined(draft.elements, draft.syntax)
    return head + (deflate(body) if draft.syntax == DEFLATED else body)


def joined(elements: Iterable[Element], syntax: str) -> bytes:
    """Return elements in a syntax, one behind the other."""
    return b"".join(element_bytes(element, syntax) for element in elements)


def open_sequence(elements: Iterable[Element], syntax: str, *, ended: bool = True) -> bytes:
    """Return the value of a sequence of undefined length that holds one item of undefined length."""
    end = end_of(ITEM_END, syntax) + end_of(SEQUENCE_END, syntax) if ended else b""
    return item(joined(elements, syntax), UNDEFINED, syntax) + end


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
