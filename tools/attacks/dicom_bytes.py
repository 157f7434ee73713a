"""DICOM files written byte by byte, so that they can be wrong in every way that no library would write.

`slice_file` gives one sound CT slice, 32 x 32; each argument makes it another or a worse one. Nothing is checked.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from openjpeg.utils import encode_array
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

Coding = Literal["explicit", "implicit", "big"]
Value = str | bytes | int | None

CODINGS: dict[str, Coding] = {ImplicitVRLittleEndian: "implicit", ExplicitVRBigEndian: "big"}
"""Of the syntaxes that are not explicit little endian."""

LONG_VRS = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
"""VRs whose length has four bytes."""

UNDEFINED = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
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


def element(tag: int, vr: str, value: bytes = b"", *, length: int | None = None, coding: Coding = "explicit") -> bytes:
    """Return one element; `length` is what it says of its length where that is a lie, `vr` may be none of DICOM's.

    A value of odd length is padded as its VR has it, unless a length is given.
    """
    if length is None and len(value) % 2:
        value += b"\0" if vr in LONG_VRS | {"UI"} else b" "
    order, said = (">" if coding == "big" else "<"), len(value) if length is None else length
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if coding == "implicit":
        return head + struct.pack("<I", said) + value
    if vr in LONG_VRS:
        return head + vr.encode() + struct.pack(f"{order}HI", 0, said) + value
    return head + vr.encode("latin-1") + struct.pack(f"{order}H", said) + value


def named(keyword: str, value: Value, *, vr: str = "", coding: Coding = "explicit", length: int | None = None) -> bytes:
    """Return one element of the sound slice with another value, VR or length; None gives no element."""
    tag, own_vr, _ = SOUND[keyword]
    if value is None:
        return b""
    if isinstance(value, int):
        value = struct.pack(f"{'>' if coding == 'big' else '<'}H", value & 0xFFFF)
    raw = value.encode() if isinstance(value, str) else value
    return element(tag, vr or own_vr, raw, length=length, coding=coding)


def pixels(coding: Coding = "explicit", *, vr: str = "OW", length: int | None = None, tag: int = PIXEL_DATA) -> bytes:
    """Return the Pixel Data element of the drawn pixels, uncompressed."""
    return element(tag, vr, DRAWN.astype(">i2" if coding == "big" else "<i2").tobytes(), length=length, coding=coding)


def dataset(
    *,
    coding: Coding = "explicit",
    pixel: bytes | None = None,
    raw: Mapping[str | int, bytes] | None = None,
    **values: Value,
) -> bytes:
    """Return the sound slice's elements in the order of their tags, then its pixels.

    `values` replace those of the sound slice by keyword (None leaves one out), `raw` whole elements by keyword or adds
    some by tag, `pixel` is the Pixel Data element.
    """
    parts = {tag: named(key, values.get(key, own), coding=coding) for key, (tag, _, own) in SOUND.items()}
    parts |= {key if isinstance(key, int) else SOUND[key][0]: given for key, given in (raw or {}).items()}
    return b"".join(parts[tag] for tag in sorted(parts)) + (pixels(coding) if pixel is None else pixel)


def file_head(syntax: str, *, preamble: bytes = bytes(128), sop_class: str = CTImageStorage) -> bytes:
    """Return what comes before a data set: preamble, marker and the file meta group."""
    meta = element(0x00020002, "UI", sop_class.encode()) + element(0x00020003, "UI", b"1.2.3")
    meta += element(0x00020010, "UI", syntax.encode())
    return preamble + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta


def slice_file(
    *, syntax: str = ExplicitVRLittleEndian, preamble: bytes = bytes(128), tail: bytes = b"", **how: Any
) -> bytes:
    """Return a file: head, data set and `tail`. `how` goes to `dataset`; `syntax` need not be how it is coded."""
    content = dataset(**{"coding": CODINGS.get(syntax, "explicit")} | how)
    return file_head(syntax, preamble=preamble) + content + tail


def sound_slice() -> bytes:
    """Return the slice of another study that lies beside every bad file."""
    return slice_file(StudyInstanceUID="9.8.7", SeriesInstanceUID="9.8.7.6", SOPInstanceUID="9.8.7.6.5", PatientID="P9")


def nested(levels: int, *, defined: bool, tag: int = PRIVATE, coding: Coding = "explicit") -> bytes:
    """Return a sequence in a sequence, and so on, all of defined or of undefined length."""
    if not defined:
        start = element(tag, "SQ", length=UNDEFINED, coding=coding) + struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
        end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return start * levels + end * levels
    inner = b""
    for _ in range(levels):
        inner = element(tag, "SQ", item(inner), coding=coding)
    return inner


def item(content: bytes, length: int | None = None) -> bytes:
    """Return one item of a sequence or one fragment of compressed pixels."""
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content) if length is None else length) + content


def compressed(*fragments: bytes, offsets: bytes = b"", closed: bool = True) -> bytes:
    """Return a Pixel Data element of compressed fragments behind an offset table."""
    padded = b"".join(item(fragment + b"\0" * (len(fragment) % 2)) for fragment in fragments)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) if closed else b""
    return element(PIXEL_DATA, "OB", length=UNDEFINED) + item(offsets) + padded + end


def deflated(content: bytes) -> bytes:
    """Return a whole file whose data set is deflated."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return file_head(DeflatedExplicitVRLittleEndian) + deflater.compress(content) + deflater.flush()


def deflate_bomb(mib: int, before: bytes, after: bytes) -> bytes:
    """Return a deflated file with `mib` MiB of zeros between two parts of its data set, made without inflating it."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflater.compress(before) + deflater.flush(zlib.Z_FULL_FLUSH)
    zeros = deflater.compress(bytes(1 << 20)) + deflater.flush(zlib.Z_FULL_FLUSH)  # which may stand any number of times
    end = deflater.compress(after) + deflater.flush()
    return file_head(DeflatedExplicitVRLittleEndian) + start + zeros * mib + end


# ---- frames


def rle_frame(*planes: bytes, count: int | None = None, offsets: tuple[int, ...] | None = None) -> bytes:
    """Return a frame of run length encoded planes; its header may lie."""
    starts = [64 + sum(map(len, planes[:n])) for n in range(len(planes))]
    said = (list(starts if offsets is None else offsets) + [0] * 15)[:15]
    return struct.pack("<16I", len(planes) if count is None else count, *said) + b"".join(planes)


def plane(values: bytes) -> bytes:
    """Return a plane of bytes as literal runs, nothing of it shorter than before."""
    return b"".join(bytes([len(run) - 1]) + run for run in (values[n : n + 128] for n in range(0, len(values), 128)))


HIGH, LOW = (plane((part & 0xFF).astype(np.uint8).tobytes()) for part in (DRAWN >> 8, DRAWN))
"""The high and the low bytes of the drawn pixels."""

J2K = bytes(encode_array(DRAWN, bits_stored=16))
"""A sound codestream of the drawn pixels."""

SIZE = {"Xsiz": 8, "Ysiz": 12, "XOsiz": 16, "YOsiz": 20, "XTsiz": 24, "YTsiz": 28, "XTOsiz": 32, "YTOsiz": 36}
"""Where the SIZ marker, the second of a codestream, has its numbers of four bytes."""

COMPONENTS, PRECISION, STEP_X, STEP_Y = 40, 42, 43, 44
"""Where it has the number of components, and then of the first the bits and the steps between its pixels."""


def patched(stream: bytes, **numbers: int) -> bytes:
    """Return a codestream with other numbers in its SIZ marker."""
    changed = bytearray(stream)
    for name, number in numbers.items():
        struct.pack_into(">I", changed, SIZE[name], number)
    return bytes(changed)


def with_bytes(stream: bytes, at: int, new: bytes) -> bytes:
    """Return a codestream with other bytes at a place."""
    return stream[:at] + new + stream[at + len(new) :]


JPEG_LS = 0xF7
"""The marker of a frame of JPEG-LS."""


def jpeg_frame(marker: int, *, bits: int = 16, rows: int = SIDE, columns: int = SIDE, components: int = 1) -> bytes:
    """Return a JPEG of sound markers, but without tables and with noise for data."""
    said = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    start = struct.pack(">BHHB", bits, rows, columns, components) + said
    scan = bytes([components, *(part for n in range(components) for part in (n + 1, 0)), 1, 0, 0])
    segments = b"".join(
        bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body for code, body in ((marker, start), (0xDA, scan))
    )
    return b"\xff\xd8" + segments + bytes(range(1, 255)) * 2 + b"\xff\xd9"
