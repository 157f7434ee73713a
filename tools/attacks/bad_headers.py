"""Bad inputs in their header: torn files, lies about lengths and VRs, nesting."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from pydicom.uid import JPEG2000Lossless, RLELossless

from attacks.bad_case import USED, Case, one
from attacks.codestream_bytes import HIGH, J2K, LOW, rle_frame
from attacks.dicom_bytes import (
    PRIVATE,
    SOUND,
    compressed,
    dataset,
    element,
    file_head,
    named,
    nested,
    pixels,
    slice_file,
)
from attacks.dicom_elements import BIG_ENDIAN, EXPLICIT, IMPLICIT, UNDEFINED, item

TORN = ("damaged_header", "missing_tag", "pixel_data")
"""What may become of a file that ends in its header, or whose header cannot be followed to the pixels."""

GONE = ("pixel_data", "decode", "codestream")
"""What may become of a file that ends in its compressed pixels."""

CUTS = 64
"""At how many places of its header a file is cut."""

FEW_CUTS = 12

CODINGS = {EXPLICIT: "explicit", IMPLICIT: "implicit", BIG_ENDIAN: "big"}
"""What the cases call the syntaxes that a data set is written in."""


def headers() -> list[Case]:
    """Return all cases of headers."""
    return [*truncation(), *lengths(), *syntaxes(), *nesting()]


# ---- truncation


def truncation() -> Iterator[Case]:
    """Files that end too early: in the preamble, the header or the pixels, compressed or not."""
    whole = slice_file()
    meta, start = len(file_head(EXPLICIT)), len(whole) - len(pixels())
    for cut in (
        *np.linspace(0, start + 12, CUTS, dtype=int),
        *np.linspace(start + 13, len(whole) - 1, FEW_CUTS, dtype=int),
    ):
        if cut < 132:
            acceptable: tuple[str, ...] = ("not_dicom",)
        elif cut < meta:
            acceptable = ("damaged_header", "missing_tag")
        else:
            acceptable = ("pixel_data",) if cut >= start else (*TORN, "geometry")
        yield one("truncation", f"{cut} of {len(whole)} bytes", whole[:cut], *acceptable)
    for name, syntax, frame in (("RLE", RLELossless, rle_frame(HIGH, LOW)), ("JPEG 2000", JPEG2000Lossless, J2K)):
        whole = slice_file(syntax=syntax, pixel=compressed(frame))
        for cut in np.linspace(len(whole) - len(frame) - 32, len(whole) - 17, FEW_CUTS, dtype=int):
            yield one("truncation", f"{name}: {cut} of {len(whole)} bytes", whole[:cut], *GONE)
        for cut in np.linspace(0, len(frame) - 9, FEW_CUTS, dtype=int):
            content = slice_file(syntax=syntax, pixel=compressed(frame[:cut]))
            yield one("truncation", f"{name}: a sound file of {cut} of {len(frame)} bytes", content, *GONE)


# ---- lengths and VRs


def lengths() -> Iterator[Case]:
    """Elements that are not as long, or not of the VR, as they say."""
    family = "lengths"
    for name, raw, *acceptable in (
        ("UL", named("Rows", b"\x20\0\0\0", vr="UL"), "missing_tag"),
        ("SL", named("Rows", b"\x20\0\0\0", vr="SL"), "missing_tag"),
        ("FL", named("Rows", struct.pack("<f", 32), vr="FL"), "missing_tag"),
        ("AT", named("Rows", b"\x28\0\x10\0", vr="AT"), "missing_tag"),
        ("SS", named("Rows", 32, vr="SS"), USED),
        ("SS, negative", named("Rows", -32, vr="SS"), "dimensions"),
        ("IS", named("Rows", "32", vr="IS"), USED, "missing_tag"),
        ("IS, a word", named("Rows", "rows", vr="IS"), "missing_tag"),
        ("IS, not whole", named("Rows", "32.5", vr="IS"), "missing_tag"),
        ("OB", named("Rows", 32, vr="OB"), "missing_tag"),
        ("SQ", named("Rows", item(b""), vr="SQ"), "missing_tag"),
        ("US, empty", named("Rows", b""), "missing_tag"),
        ("US, of one byte", named("Rows", b"\x20", length=1), "damaged_header"),
        ("US, of three bytes", named("Rows", b"\x20\0\0", length=3), "damaged_header"),
        ("US, two values", named("Rows", b"\x20\0\x20\0"), "missing_tag"),
        ("US, 30,000 values", named("Rows", b"\x20\0" * 30_000), "missing_tag"),
        ("US, two bytes short", named("Rows", 32, length=0), *TORN),
        ("US, too long", named("Rows", 32, length=0xFFFE), *TORN),
        ("US, odd and too long", named("Rows", 32, length=0xFFFF), *TORN),
        ("twice, the second 16", named("Rows", 32) + named("Rows", 16), "damaged_header", USED),
        ("twice, the first 16", named("Rows", 16) + named("Rows", 32), "damaged_header", USED),
    ):
        yield one(family, f"Rows as {name}", slice_file(raw={"Rows": raw}), *acceptable)
    yield from _lying_lengths(family)
    yield from _strange_vrs(family)
    yield from _pixel_elements(family)


def _lying_lengths(family: str) -> Iterator[Case]:
    for keyword, *reason in (
        ("ImageType",),
        ("PatientID",),
        ("StudyInstanceUID",),
        ("ImagePositionPatient", "geometry"),
        ("RescaleSlope", "rescale"),
    ):
        for length in (0xFFFE, 1000):
            content = slice_file(raw={keyword: named(keyword, SOUND[keyword][2], length=length)})
            yield one(family, f"{keyword} of {length} bytes, it says", content, *TORN, *reason)
    for length in (0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE):
        for vr in ("OB", "UN", "SQ", "UT"):
            content = slice_file(raw={PRIVATE: element(PRIVATE, vr, b"1234", length=length)})
            yield one(family, f"a private {vr} of {length} bytes, it says", content, *TORN)
    for vr in ("OB", "UN", "UT", "SQ", "OF"):
        content = slice_file(raw={PRIVATE: element(PRIVATE, vr, b"1234", length=UNDEFINED)})
        yield one(family, f"a private {vr} without an end", content, *TORN)


def _strange_vrs(family: str) -> Iterator[Case]:
    for vr in ("ZZ", "XX", "AA"):
        content = slice_file(raw={"PatientID": named("PatientID", "P1", vr=vr)})
        yield one(family, f"Patient ID as {vr}", content, USED, "damaged_header")
    for name, vr in (("zeros", "\0\0"), ("blanks", "  "), ("small letters", "lo"), ("high bytes", "\xff\xfe")):
        content = slice_file(raw={PRIVATE: element(PRIVATE, vr, b"1234")})
        yield one(family, f"a private element whose VR is {name}", content, *TORN)
    for vr in ("UN", "OB", "LT"):
        content = slice_file(raw={"ImagePositionPatient": named("ImagePositionPatient", "-4\\-4\\10", vr=vr)})
        yield one(family, f"Image Position (Patient) as {vr}", content, USED, "geometry")
    floats = struct.pack("<3d", -4, -4, 10)
    content = slice_file(raw={"ImagePositionPatient": named("ImagePositionPatient", floats, vr="FD")})
    yield one(family, "Image Position (Patient) as FD", content, "geometry", "missing_tag")


def _pixel_elements(family: str) -> Iterator[Case]:
    wanted = len(pixels()) - 12
    for vr in ("OB", "UN", "OF", "UT", "SQ", "OV"):
        yield one(family, f"Pixel Data as {vr}", slice_file(pixel=pixels(vr=vr)), USED, "pixel_data")
    for vr in ("US", "ZZ", "\0\0"):
        yield one(family, f"Pixel Data as {vr!a}", slice_file(pixel=pixels(vr=vr, length=wanted)), USED, "pixel_data")
    for length in (0, 2, wanted - 2, wanted - 1):
        content = slice_file(pixel=pixels(length=length))
        yield one(family, f"Pixel Data of {length} bytes, it says", content, "pixel_data")
    for length in (wanted + 1, wanted * 2, 0x7FFFFFFE, 0xFFFFFFFE):
        content = slice_file(pixel=pixels(length=length))
        yield one(family, f"Pixel Data of {length} bytes, it says", content, USED, "pixel_data")
    yield one(family, "Pixel Data without an end", slice_file(pixel=pixels(length=UNDEFINED)), "pixel_data")
    for name, tag in (
        ("float", 0x7FE00008),
        ("double", 0x7FE00009),
        ("provider's", 0x7FE00001),
        ("retired", 0x7F000010),
    ):
        yield one(family, f"only {name} pixel data", slice_file(pixel=pixels(tag=tag)), "pixel_data")
    yield one(family, "no Pixel Data", slice_file(pixel=b""), "pixel_data")
    head = file_head(EXPLICIT)
    yield one(family, "Pixel Data before all else", head + pixels() + dataset(pixel=b""), *TORN)
    parts = [named(keyword, value) for keyword, (_, _, value) in SOUND.items()]
    yield one(family, "elements in falling order", head + b"".join(reversed(parts)) + pixels(), USED, "damaged_header")
    padding = element(0xFFFCFFFC, "OB", bytes(3000))
    yield one(family, "padding behind the pixels", slice_file(tail=padding), USED)
    yield one(family, "noise behind the pixels", slice_file(tail=bytes(range(256)) * 100), USED)


def syntaxes() -> Iterator[Case]:
    """Files that are not coded as they say, and file meta groups that lie."""
    family = "lengths"
    for syntax in (IMPLICIT, BIG_ENDIAN):
        yield one(family, f"a sound slice in syntax {syntax}", slice_file(syntax=syntax), USED)
    for written_in, said, *acceptable in (
        (EXPLICIT, IMPLICIT, USED),
        (IMPLICIT, EXPLICIT, USED),
        (EXPLICIT, BIG_ENDIAN),
        (BIG_ENDIAN, EXPLICIT),
    ):
        content = slice_file(syntax=said, written_in=written_in)
        yield one(family, f"{CODINGS[written_in]}, said to be {said}", content, *acceptable, *TORN)
    for name, syntax in (
        ("of no one", "1.2.3"),
        ("a private one", "1.2.840.113619.5.2"),
        ("JPEG baseline", "1.2.840.10008.1.2.4.50"),
        ("MPEG-4", "1.2.840.10008.1.2.4.102"),
        ("JPIP", "1.2.840.10008.1.2.4.94"),
        ("a word", "explicit"),
        ("control characters", "1.2.\x1b[2J\n\x07"),
        ("60,000 letters", "1." * 30_000),
    ):
        yield one(family, f"a transfer syntax, {name}", slice_file(syntax=syntax), "transfer_syntax")
    blank = slice_file(syntax=f"{EXPLICIT} ")
    yield one(family, "a transfer syntax with a blank behind it", blank, USED, "transfer_syntax")
    yield from _meta_groups(family)


def _meta_groups(family: str) -> Iterator[Case]:
    whole, start = slice_file(), 140
    content = dataset()
    for length in (0, 1, 200, 0x7FFFFFFF, 0xFFFFFFFF):
        lying = whole[:start] + struct.pack("<I", length) + whole[start + 4 :]
        yield one(family, f"a file meta group of {length} bytes, it says", lying, USED, *TORN)
    yield one(family, "a data set without a file meta group", dataset(syntax=IMPLICIT), USED)
    yield one(family, "a marker and no file meta group", bytes(128) + b"DICM" + dataset(syntax=IMPLICIT), USED, *TORN)
    yield one(family, "a file meta group alone", file_head(EXPLICIT), *TORN)
    yield one(family, "a marker alone", bytes(128) + b"DICM", *TORN)
    yield one(family, "two markers", bytes(128) + b"DICM" + whole, *TORN)
    yield one(family, "two heads", file_head(EXPLICIT) + whole, *TORN)
    yield one(family, "no preamble", whole[128:], "not_dicom")
    yield one(family, "zeros", bytes(4096), "not_dicom")
    yield one(family, "a big endian file meta group", whole[:132] + b"\0\x02\0\x10UI\0\x14" + content, *TORN)


# ---- nesting


def nesting() -> Iterator[Case]:
    """Sequences in sequences; those of defined length are passed over, others have to be followed."""
    family = "nesting"
    for levels in (1, 10, 100, 1000, 5000):
        deep = slice_file(raw={PRIVATE: nested(levels, defined=True)})
        yield one(family, f"{levels} sequences of defined length", deep, USED)
    for levels in (1, 10, 100):
        for syntax in (EXPLICIT, IMPLICIT):
            deep = slice_file(syntax=syntax, raw={PRIVATE: nested(levels, defined=False, syntax=syntax)})
            yield one(family, f"{levels} {CODINGS[syntax]} sequences of undefined length", deep, USED)
    for levels in (500, 1000, 5000, 40_000):
        deep = slice_file(raw={PRIVATE: nested(levels, defined=False)})
        yield one(family, f"{levels} sequences of undefined length", deep, USED, "damaged_header")
    outer = nested(1, defined=False)
    for levels in (10, 5000):
        half = nested(levels, defined=False)[: len(outer) * levels // 2]
        yield one(family, f"{levels} sequences without an end", slice_file(raw={PRIVATE: half}), *TORN)
    start, end = outer[:20], outer[20:]
    for name, sequence, *acceptable in (
        ("an item longer than its sequence", element(PRIVATE, "SQ", item(b"", 999)), USED),
        ("an item of 4 GiB", start[:12] + item(b"1234", 0xFFFFFFF0) + end[8:], *TORN),
        ("no item, but an element", start[:12] + named("PatientID", "P2") + end[8:], *TORN),
        ("an end of an item for an item", start[:12] + end, USED, *TORN),
        ("an end of an item outside", end[:8], *TORN),
        ("an end of a sequence outside", end[8:], USED, *TORN),
        ("an item outside", item(b""), USED, *TORN),
        ("an unknown VR of undefined length", start.replace(b"SQ", b"UN") + end, USED, *TORN),
        ("1000 items", start[:12] + item(b"") * 1000 + end[8:], USED),
        ("1000 sequences side by side", outer * 1000, USED),
    ):
        yield one(family, f"a sequence: {name}", slice_file(raw={PRIVATE: sequence}), *acceptable)
    yield from _inner_elements(family, start, end)


def _inner_elements(family: str, start: bytes, end: bytes) -> Iterator[Case]:
    """What lies in a sequence says nothing of the slice."""
    inner = dataset(StudyInstanceUID="6.6.6", SOPInstanceUID="6.6", Rows=64, RescaleSlope="9", Modality="MR")
    for name, sequence in (("undefined", start + inner + end), ("defined", element(PRIVATE, "SQ", item(inner)))):
        yield one(family, f"another slice in a sequence of {name} length", slice_file(raw={PRIVATE: sequence}), USED)
        alone = slice_file(raw={PRIVATE: sequence}, pixel=b"")
        yield one(family, f"pixels in a sequence of {name} length alone", alone, "pixel_data")
        uid = slice_file(raw={PRIVATE: sequence}, StudyInstanceUID=None)
        yield one(family, f"a study in a sequence of {name} length alone", uid, "missing_tag")
