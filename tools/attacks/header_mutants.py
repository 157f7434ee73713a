"""Spoilt headers, and what a header that the package made of one must say.

It must say of the image what a strict reader says of the same bytes (`oracle`); that a mutation turned a number into
another plausible one is not to be told. `header_mutant(seed, number)` makes a mutant anew.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from attacks.byte_mutators import BYTE_CHANGES
from attacks.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PIXEL_DATA,
    RLE,
    Element,
    encapsulated,
    order,
)
from attacks.encoders import ENCODERS
from attacks.header_mutators import DRAFT_CHANGES
from attacks.oracle import NATIVE, Reading, Unreadable, name_of, read_strictly
from attacks.plain_dicom import Draft, Format, open_sequence, sound_draft, written
from attacks.proc import peak_mb
from attacks.verdicts import ReadHeader, Verdict
from ich_seq.dicom import SliceHeader
from ich_seq.pixel_data import PADDING_BYTES
from ich_seq.reasons import Unused

UID_TAGS = {"study_uid": 0x0020000D, "series_uid": 0x0020000E, "sop_uid": 0x00080018}
UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What may name a study, since files are named after it: RSNA's are no UIDs of DICOM's, but harmless."""

MAX_DETAIL_LETTERS = 300
MAX_SHOWN = 40


@cache
def sound_drafts() -> tuple[Draft, ...]:
    """Return a sound slice in every kind of data set there is, each of another pixel format."""
    made = [
        _native_draft(IMPLICIT, Format(16, 18, padding=63536, more=_reference(IMPLICIT))),
        _native_draft(EXPLICIT, Format(18, 16, bits=12, more=_reference(EXPLICIT))),
        _native_draft(BIG_ENDIAN, Format(16, 18, signed=True, padding=-2000, more=_reference(BIG_ENDIAN))),
        _native_draft(DEFLATED, Format(17, 18, bits=14)),
    ]
    stored = np.arange(16 * 18, dtype=np.uint16).reshape(16, 18)
    return (*made, sound_draft(RLE, Format(16, 18, padding=4095), encapsulated(ENCODERS[RLE](stored, 16))))


def _native_draft(syntax: str, form: Format) -> Draft:
    stored = np.arange(900, 900 + form.rows * form.columns).astype(f"{order(syntax)}u2")
    return sound_draft(syntax, form, Element(PIXEL_DATA, b"OW", stored.tobytes()))


def _reference(syntax: str) -> dict[int, tuple[bytes, bytes]]:
    """Return elements that real files have besides: a sequence with a position of its own, and private ones."""
    inner = (Element(0x00081155, b"UI", b"1.2.9\0"), Element(0x00200032, b"DS", rb"7\8\9 "))
    nested = open_sequence(inner, syntax)
    return {0x00081140: (b"SQ", nested), 0x00090010: (b"LO", b"PRIVATE"), 0x00091001: (b"UN", b"1\\2\\3\\4 ")}


def header_mutant(seed: int, number: int) -> bytes:
    """Return a mutant: one to three changes of its elements or of its bytes."""
    rng = Random(f"header {seed} {number}")
    draft = sound_drafts()[number % len(sound_drafts())]
    changes = rng.choices((*DRAFT_CHANGES, *BYTE_CHANGES), k=rng.choice([1, 1, 1, 2, 3]))
    for change in changes:
        if change in DRAFT_CHANGES:
            draft = change(draft, rng)
    content = written(draft)
    for change in changes:
        if change in BYTE_CHANGES and content:
            content = change(content, rng)
    return content


def try_header(seed: int, folder: Path, read: ReadHeader, number: int) -> Verdict:
    """Read one mutant, and hold against the oracle whatever is taken from it."""
    content = header_mutant(seed, number)
    path = folder / f"{os.getpid()}.dcm"
    path.write_bytes(content)
    began = time.perf_counter()
    try:
        result = read(path, path.name)
    except Exception as escaped:
        return Verdict("escaped", 0.0, f"{type(escaped).__name__} escapes: {escaped}")
    seconds = time.perf_counter() - began
    if isinstance(result, Unused):
        return Verdict(f"refused: {result.reason}", seconds, _unfit_to_print(result), peak_mb=peak_mb(os.getpid()))
    changed = "as before" if _deciding(result) == _base_reading(number) else "with another plausible value"
    return Verdict(changed, seconds, silent_use(result, content), peak_mb=peak_mb(os.getpid()))


def _unfit_to_print(refused: Unused) -> str:
    """Return what of a refusal should not be in a table or on a terminal: text of the file as it stands there."""
    if not refused.detail.isprintable() or len(refused.detail) > MAX_DETAIL_LETTERS:
        return f"its detail is {refused.detail[:MAX_SHOWN]!r}"
    if refused.study_uid and not UID.fullmatch(refused.study_uid):
        return f"it is reported with the study {refused.study_uid[:MAX_SHOWN]!r}"
    return ""


def _deciding(header: SliceHeader) -> tuple[object, ...]:
    where = header.position_mm, header.orientation, header.spacing_mm, header.rows, header.columns
    pixels = header.slope, header.intercept, header.bits_stored, header.signed, header.padding
    return (*where, *pixels, *(getattr(header, name) for name in UID_TAGS))


@cache
def _bases_as_read() -> tuple[tuple[object, ...], ...]:
    return tuple(_as_read_strictly(read_strictly(written(draft))) for draft in sound_drafts())


def _base_reading(number: int) -> tuple[object, ...]:
    return _bases_as_read()[number % len(sound_drafts())]


def _as_read_strictly(reading: Reading) -> tuple[object, ...]:
    """Return what `_deciding` does, by the oracle. Unreadable if any of it is."""
    bits, signed = reading.whole(0x00280101), reading.whole(0x00280103)
    where = reading.decimals(0x00200032), reading.decimals(0x00200037), reading.decimals(0x00280030)
    scale = [value for tag in (0x00281053, 0x00281052) for value in reading.decimals(tag)]
    padding = _padding(reading, bits or 0, bool(signed))
    size = reading.whole(0x00280010), reading.whole(0x00280011)
    return (*where, *size, *scale, bits, signed == 1, padding, *map(reading.text, UID_TAGS.values()))


def _padding(reading: Reading, bits: int, signed: bool) -> int | None:
    value = reading.whole(0x00280120)
    if value is None:
        return None
    held = value % (1 << bits)
    return held - (1 << bits) if signed and held >> (bits - 1) else held


def silent_use(header: SliceHeader, content: bytes) -> str:
    """Return what the package took from a file that the file does not say, as a sentence; empty if nothing."""
    wrong = _silent_use(header, content, stated=True)
    return wrong and _silent_use(header, content, stated=False) and wrong


def _silent_use(header: SliceHeader, content: bytes, *, stated: bool) -> str:
    try:
        reading = read_strictly(content, stated=stated)
        said, taken = _as_read_strictly(reading), _deciding(header)
        if said != taken:
            return f"it was read as {taken}, but says {said}"
        return next(_contradictions(header, reading), "")
    except Unreadable as why:
        return f"it was used, though {why}"


def _contradictions(header: SliceHeader, reading: Reading) -> Iterator[str]:
    """Yield what else forbids to use a slice so."""
    for name in UID_TAGS:
        if not UID.fullmatch(getattr(header, name)):
            yield f"it was used, though its {name} is {getattr(header, name)[:MAX_SHOWN]!r}"
    if header.transfer_syntax != reading.syntax:
        yield f"it was read in syntax {header.transfer_syntax}, but is in {reading.syntax}"
    yield from _not_one_grey_image(header, reading)
    yield from _misplaced_pixels(header, reading)


def _not_one_grey_image(header: SliceHeader, reading: Reading) -> Iterator[str]:
    optional = {0x00280002: {None, 1}, 0x00280008: {None, 1}, 0x00280102: {None, header.bits_stored - 1}}
    for tag, allowed in (optional | {0x00280100: {16}}).items():
        if reading.whole(tag) not in allowed:
            yield f"it was used, though {name_of(tag)} is {reading.whole(tag)}"
    if reading.text(0x00280004) not in ("", "MONOCHROME1", "MONOCHROME2"):
        yield f"it was used, though it is {reading.text(0x00280004)!r}"


def _misplaced_pixels(header: SliceHeader, reading: Reading) -> Iterator[str]:
    pixels, image_bytes = reading.pixel_data, header.rows * header.columns * 2
    if pixels is None:
        yield "it was used without pixels"
    elif header.pixel_offset != pixels.start:
        yield f"its pixels are read from byte {header.pixel_offset}, but begin at {pixels.start}"
    elif reading.syntax in NATIVE and not 0 <= pixels.length - image_bytes <= PADDING_BYTES:
        yield f"it was used, though its image takes {image_bytes} bytes and it holds {pixels.length}"
