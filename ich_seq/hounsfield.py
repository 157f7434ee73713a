"""The pixels of one DICOM file as Hounsfield units, from a header that has passed the gate."""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from ich_seq.codestreams import JPEG2000_FAMILY, check_end, check_tiles, read_frame, read_items
from ich_seq.config import AIR_HU
from ich_seq.decoding import decode
from ich_seq.dicom import MAX_BITS, MIN_BITS, SliceHeader
from ich_seq.dicom_files import inflated, opened
from ich_seq.reasons import Reason, Refused
from ich_seq.syntaxes import NATIVE, PLUGINS

QUIRK_MIN_INTERCEPT = -100
QUIRK_OFFSET = 1000
QUIRK_RANGE = 4096
DENSEST_HU = 3000
"""Denser than any bone; metal is denser still, and no padding value claims to be."""


def read_hounsfield(header: SliceHeader) -> NDArray[np.float32]:
    """Read the pixels of one slice, (H, W) float32 HU, by this slice's own slope and intercept.

    Values below AIR_HU are raised to it. MONOCHROME1 is a matter of display and inverts nothing.
    Raises Refused (PIXEL_DATA, CODESTREAM, DECODE, CHANGED, TOO_LARGE, DAMAGED_HEADER, UNREADABLE), naming the study,
    if the pixels cannot be had whole, and besides (ARCHIVE) if those of an archive are not what it says.
    """
    try:
        return to_hounsfield(_read_stored(header), header)
    except Refused as refusal:
        refusal.study_uid = header.study_uid
        raise


def _read_stored(header: SliceHeader) -> NDArray[np.integer[Any]]:
    try:
        with opened(header.path, header.member, whole=True) as (stream, status, end):
            _check_unchanged(header, status)
            return _read_native(header, stream) if header.transfer_syntax in NATIVE else _decode(header, stream, end)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.") from None
    except (ValueError, struct.error) as error:  # of a frame that is another than when the header was read
        raise Refused(Reason.DECODE, f"The pixels cannot be decoded ({type(error).__name__}).") from None


def _check_unchanged(header: SliceHeader, status: os.stat_result) -> None:
    if (status.st_size, status.st_mtime_ns) != (header.file_bytes, header.modified_ns):
        raise Refused(Reason.CHANGED, "The file was changed after its header was read; run the same command again.")


def _read_native(header: SliceHeader, stream: BinaryIO) -> NDArray[np.integer[Any]]:
    """Return the stored values, (H, W), straight from the bytes that `read_header` located."""
    expected = header.rows * header.columns
    kind = f"{NATIVE[header.transfer_syntax]}{'i' if header.signed else 'u'}2"
    data = _value(header, stream, 2 * expected)
    if len(data) < 2 * expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {len(data)} of {2 * expected} bytes.")
    flat = np.frombuffer(data, kind)
    stored = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(header.rows, header.columns)
    return _without_spare_bits(stored, header.bits_stored)


def _without_spare_bits(stored: NDArray[np.integer[Any]], bits_stored: int) -> NDArray[np.integer[Any]]:
    """Return (H, W) values of 16 bits without what stands above the stored bits: it means nothing (PS3.5 8.1.1)."""
    spare = MAX_BITS - bits_stored
    return (stored << spare) >> spare if spare else stored


def _value(header: SliceHeader, stream: BinaryIO, count: int) -> bytes:
    """Return the first bytes of the Pixel Data element of an uncompressed file, which may be deflated as a whole."""
    if header.transfer_syntax == DeflatedExplicitVRLittleEndian:
        stream, _ = inflated(stream)
    stream.seek(header.pixel_offset)
    return stream.read(count)


def _decode(header: SliceHeader, stream: BinaryIO, end: int) -> NDArray[np.integer[Any]]:
    """Return the stored values of a compressed slice, (H, W)."""
    stream.seek(header.pixel_offset)
    request = {
        "syntax": header.transfer_syntax,
        "plugin": PLUGINS[header.transfer_syntax],
        "rows": header.rows,
        "columns": header.columns,
        "bits_stored": header.bits_stored,
        "signed": header.signed,
    }
    frame = read_items(stream, header.pixel_end) if header.frame else read_frame(stream, end)
    if header.transfer_syntax in JPEG2000_FAMILY:
        check_tiles(frame)
    elif header.transfer_syntax != RLELossless:
        check_end(frame)
    stored = decode(frame, request)
    if stored.shape != (header.rows, header.columns):
        raise Refused(Reason.DECODE, f"The decoded image is {stored.shape}, the header says otherwise.")
    return _without_spare_bits(stored.astype(np.int16 if header.signed else np.uint16, copy=False), header.bits_stored)


def to_hounsfield(stored: NDArray[np.integer[Any]], header: SliceHeader) -> NDArray[np.float32]:
    """Turn stored values (H, W) into float32 HU, (H, W).

    Mends one known fault of the RSNA 2019 set (123 slices): 12-bit unsigned pixels whose HU wrapped
    below zero, to be told by an intercept above -100. Signed pixels with intercept 0 are HU already.
    """
    slope, intercept = header.slope, header.intercept
    padded = _padded(stored, header)
    if header.bits_stored == MIN_BITS and not header.signed and intercept > QUIRK_MIN_INTERCEPT:
        stored = (stored.astype(np.int32) + QUIRK_OFFSET) % QUIRK_RANGE
        intercept = -float(QUIRK_OFFSET)
    hu = stored.astype(np.float32)
    if slope != 1:
        hu *= np.float32(slope)
    hu += np.float32(intercept)
    if padded is not None:
        hu[padded] = AIR_HU
    return np.maximum(hu, np.float32(AIR_HU), out=hu)


def _padded(stored: NDArray[np.integer[Any]], header: SliceHeader) -> NDArray[np.bool_] | None:
    """Return where padding denser than any tissue is, (H, W), or None.

    A value that could be tissue would punch holes into the brain; one below air is raised to it like any other.
    """
    if header.padding is None or header.padding * header.slope + header.intercept < DENSEST_HU:
        return None
    return np.asarray(stored == header.padding)
