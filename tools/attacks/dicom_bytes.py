"""DICOM files written byte by byte, so that they can be wrong in every way that no library would write.

`slice_file` gives one sound CT slice, 32 x 32; each argument makes it another or a worse one. Nothing is checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydicom.uid import CTImageStorage

from attacks.dicom_elements import (
    DEFLATED,
    EXPLICIT,
    ITEM_END,
    PIXEL_DATA,
    SEQUENCE_END,
    SYNTAX_TAG,
    UNDEFINED,
    Element,
    deflate,
    element_bytes,
    encapsulated,
    end_of,
    even,
    item,
    meta_group,
    order,
)

Value = str | bytes | int | None

SIDE = 32
DRAWN = np.arange(900, 900 + SIDE * SIDE, dtype=np.int16).reshape(SIDE, SIDE)
"""The pixels of every slice as they are stored, -124 to 899 HU. Smaller images have no JPEG 2000 of usual form."""

PRIVATE = 0x00090010
"""A private tag that stands before the rows and columns."""

SOUND: dict[str, tuple[int, str, Value]] = {
    "SpecificCharacterSet": (0x00080005, "CS", None),
    "ImageType": (0x00080008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"),
    "SOPClassUID": (0x00080016, "UI", str(CTImageStorage)),
    "SOPInstanceUID": (0x00080018, "UI", "1.2.3"),
    "Modality": (0x00080060, "CS", "CT"),
    "Manufacturer": (0x00080070, "LO", "Maker"),
    "ManufacturerModelName": (0x00081090, "LO", "Model"),
    "PatientName": (0x00100010, "PN", None),
    "PatientID": (0x00100020, "LO", "P1"),
    "StudyInstanceUID": (0x0020000D, "UI", "1.2.3.4"),
    "SeriesInstanceUID": (0x0020000E, "UI", "1.2.3.4.5"),
    "AcquisitionNumber": (0x00200012, "IS", "1"),
    "InstanceNumber": (0x00200013, "IS", "1"),
    "ImagePositionPatient": (0x00200032, "DS", "-4\\-4\\10"),
    "ImageOrientationPatient": (0x00200037, "DS", "1\\0\\0\\0\\1\\0"),
    "SamplesPerPixel": (0x00280002, "US", 1),
    "PhotometricInterpretation": (0x00280004, "CS", "MONOCHROME2"),
    "PlanarConfiguration": (0x00280006, "US", None),
    "NumberOfFrames": (0x00280008, "IS", None),
    "Rows": (0x00280010, "US", SIDE),
    "Columns": (0x00280011, "US", SIDE),
    "PixelSpacing": (0x00280030, "DS", "0.5\\0.5"),
    "BitsAllocated": (0x00280100, "US", 16),
    "BitsStored": (0x00280101, "US", 16),
    "HighBit": (0x00280102, "US", 15),
    "PixelRepresentation": (0x00280103, "US", 1),
    "PixelPaddingValue": (0x00280120, "SS", None),
    "RescaleIntercept": (0x00281052, "DS", "-1024"),
    "RescaleSlope": (0x00281053, "DS", "1"),
}
"""The elements of the sound slice: tag, VR and value, None where it has none."""


def element(tag: int, vr: str, value: bytes = b"", *, length: int | None = None, syntax: str = EXPLICIT) -> bytes:
    """Return one element; `length` is what it says of its length where that is a lie, `vr` may be none of DICOM's.

    A value of odd length is padded as its VR has it, unless a length is given.
    """
    code = vr.encode("latin-1")
    return element_bytes(Element(tag, code, even(code, value) if length is None else value, length), syntax)


def named(keyword: str, value: Value, *, vr: str = "", syntax: str = EXPLICIT, length: int | None = None) -> bytes:
    """Return one element of the sound slice with another value, VR or length; None gives no element."""
    tag, own_vr, _ = SOUND[keyword]
    if value is None:
        return b""
    if isinstance(value, int):
        value = struct.pack(f"{order(syntax)}H", value & 0xFFFF)
    raw = value.encode() if isinstance(value, str) else value
    return element(tag, vr or own_vr, raw, length=length, syntax=syntax)


def pixels(syntax: str = EXPLICIT, *, vr: str = "OW", length: int | None = None, tag: int = PIXEL_DATA) -> bytes:
    """Return the Pixel Data element of the drawn pixels, uncompressed."""
    return element(tag, vr, DRAWN.astype(f"{order(syntax)}i2").tobytes(), length=length, syntax=syntax)


def compressed(*fragments: bytes, offsets: bytes = b"", closed: bool = True) -> bytes:
    """Return the Pixel Data element of compressed fragments, as `encapsulated` makes it."""
    return element_bytes(encapsulated(*fragments, offsets=offsets, closed=closed), EXPLICIT)


def dataset(
    *,
    syntax: str = EXPLICIT,
    pixel: bytes | None = None,
    raw: Mapping[str | int, bytes] | None = None,
    **values: Value,
) -> bytes:
    """Return the sound slice's elements in the order of their tags, then its pixels.

    `values` replace those of the sound slice by keyword (None leaves one out), `raw` whole elements by keyword or adds
    some by tag, `pixel` is the Pixel Data element.
    """
    parts = {tag: named(key, values.get(key, own), syntax=syntax) for key, (tag, _, own) in SOUND.items()}
    parts |= {key if isinstance(key, int) else SOUND[key][0]: given for key, given in (raw or {}).items()}
    return b"".join(parts[tag] for tag in sorted(parts)) + (pixels(syntax) if pixel is None else pixel)


def file_head(syntax: str, *, preamble: bytes = bytes(128), sop_class: str = CTImageStorage) -> bytes:
    """Return what comes before a data set: preamble, marker and the file meta group."""
    meta = element(0x00020002, "UI", sop_class.encode()) + element(0x00020003, "UI", b"1.2.3")
    return preamble + b"DICM" + meta_group(meta + element(SYNTAX_TAG, "UI", syntax.encode()))


def slice_file(
    *, syntax: str = EXPLICIT, written_in: str = "", preamble: bytes = bytes(128), tail: bytes = b"", **how: Any
) -> bytes:
    """Return a file: head, data set and `tail`. `how` goes to `dataset`.

    `syntax` is what the head says; `written_in` is the one that the data set is in, where that is another.
    """
    return file_head(syntax, preamble=preamble) + dataset(syntax=written_in or syntax, **how) + tail


def sound_slice() -> bytes:
    """Return the slice of another study that lies beside every bad file."""
    return slice_file(StudyInstanceUID="9.8.7", SeriesInstanceUID="9.8.7.6", SOPInstanceUID="9.8.7.6.5", PatientID="P9")


def nested(levels: int, *, defined: bool, tag: int = PRIVATE, syntax: str = EXPLICIT) -> bytes:
    """Return a sequence in a sequence, and so on, all of defined or of undefined length."""
    if not defined:
        start = element(tag, "SQ", length=UNDEFINED, syntax=syntax) + item(b"", UNDEFINED, syntax)
        return start * levels + (end_of(ITEM_END, syntax) + end_of(SEQUENCE_END, syntax)) * levels
    inner = b""
    for _ in range(levels):
        inner = element(tag, "SQ", item(inner, syntax=syntax), syntax=syntax)
    return inner


def deflated(content: bytes) -> bytes:
    """Return a whole file whose data set is deflated."""
    return file_head(DEFLATED) + deflate(content)


def deflate_bomb(mib: int, before: bytes, after: bytes) -> bytes:
    """Return a deflated file with `mib` MiB of zeros between two parts of its data set, made without inflating it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflater.compress(before) + deflater.flush(zlib.Z_FULL_FLUSH)
    zeros = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)  # which may stand any number of times
    end = deflater.compress(after) + deflater.flush()
    return file_head(DEFLATED) + start + zeros * mib + end
