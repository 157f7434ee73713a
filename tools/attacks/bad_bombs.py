"""Bad inputs that are bombs: small or huge files that ask for much memory or time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from attacks.bad_case import USED, Case, one
from attacks.dicom_bytes import PRIVATE, dataset, deflate_bomb, deflated, element, named, nested, slice_file
from attacks.dicom_elements import SEQUENCE_END, UNDEFINED, end_of, item

FAMILY = "bombs"
MIB = 1 << 20
OVERLAY, COMMENT = 0x60003000, 0x00204000


def bombs() -> list[Case]:
    """Return all cases of files that inflate and of large headers."""
    return [*deflate_bombs(), *header_bombs()]


def deflate_bombs() -> Iterator[Case]:
    """Deflated files are read, but not beyond 40 MiB."""
    whole = dataset()
    before, _, after = dataset(raw={PRIVATE: b"<zeros>"}).partition(b"<zeros>")

    def bomb(mib: int) -> Callable[[], bytes]:
        return lambda: deflate_bomb(mib, before + element(PRIVATE, "OB", length=mib * MIB), after)

    yield one(FAMILY, "a sound deflated slice", deflated(whole), USED)
    for mib in (41, 200, 1024, 3072):
        yield one(FAMILY, f"a deflated file of {mib} MiB", bomb(mib), "too_large")
    yield one(FAMILY, "a deflated bomb behind the pixels", lambda: deflate_bomb(1024, whole, b""), "too_large")
    twice = deflated(deflated(whole))
    yield one(FAMILY, "a deflated file in a deflated file", twice, "damaged_header", "missing_tag")
    for name, content in (
        ("half of a deflated stream", deflated(whole)[:-200]),
        ("a deflated stream of noise", deflated(b"")[:-2] + bytes(range(255, 0, -1)) * 9),
        ("a deflated stream of nothing", deflated(b"")),
        ("no deflated stream at all", deflated(b"")[:-2]),
        ("a deflated syntax, not deflated", slice_file(syntax="1.2.840.10008.1.2.1.99")),
    ):
        yield one(FAMILY, name, content, "damaged_header", "missing_tag", "pixel_data")


def header_bombs() -> Iterator[Case]:
    """Headers that are large: what is not asked for is passed over, what is asked for has a bound."""
    many, items = element(PRIVATE, "LO"), element(PRIVATE, "SQ", length=UNDEFINED)
    for name, tag, raw in (
        ("a private element of 60 MiB", PRIVATE, lambda: element(PRIVATE, "OB", huge())),
        ("an overlay of 60 MiB", OVERLAY, lambda: element(OVERLAY, "OW", huge())),
        ("a text of 60 MiB", COMMENT, lambda: element(COMMENT, "UT", huge())),
        ("a sequence of 60 MiB, of defined length", PRIVATE, lambda: element(PRIVATE, "SQ", item(huge()))),
    ):
        yield one(FAMILY, name, large_header(tag, raw), USED)
    for count in (10_000, 100_000, 500_000):
        small = large_header(PRIVATE, lambda count=count: many * count)
        yield one(FAMILY, f"{count} small elements", small, "damaged_header", USED)
    for count in (10_000, 100_000, 500_000, MIB):
        acceptable = ("damaged_header",) if count == MIB else ("damaged_header", USED)
        empty = large_header(PRIVATE, lambda count=count: items + item(b"") * count + end_of(SEQUENCE_END))
        yield one(FAMILY, f"{count} empty items", empty, *acceptable)
    for name, tag, raw in (
        ("a million small elements", PRIVATE, lambda: many * MIB),
        ("a Patient ID of 60 MiB", "PatientID", lambda: named("PatientID", huge(), vr="UN")),
        ("a Study Instance UID of 60 MiB", "StudyInstanceUID", lambda: named("StudyInstanceUID", huge(b"1"), vr="UT")),
        ("a character set of 60 MiB", "SpecificCharacterSet", lambda: named("SpecificCharacterSet", huge(), vr="UN")),
        ("an Image Type of 60 MiB", "ImageType", lambda: named("ImageType", huge(b"\\"), vr="UT")),
        ("an open value of 60 MiB", PRIVATE, lambda: element(PRIVATE, "OB", huge(), length=UNDEFINED)),
        ("an open sequence of 60 MiB", PRIVATE, lambda: nested(1, defined=False)[:20] + element(PRIVATE, "OB", huge())),
    ):
        yield one(FAMILY, name, large_header(tag, raw), "damaged_header")
    yield one(FAMILY, "a sound slice in a file of 130 MiB", lambda: slice_file(tail=bytes(130 * MIB)), "too_large")
    yield one(FAMILY, "a file meta group of 60 MiB", _large_meta_group, "damaged_header")


def large_header(tag: str | int, raw: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return what makes a slice with a large element; nothing of it is made before."""
    return lambda: slice_file(raw={tag: raw()})


def huge(byte: bytes = b"\0") -> bytes:
    """Return 60 MiB of a byte."""
    return byte * (60 * MIB)


def _large_meta_group() -> bytes:
    start = element(0x00020000, "UL", struct.pack("<I", 60 * MIB)) + element(0x00020102, "OB", huge())
    return bytes(128) + b"DICM" + start + dataset()
