"""The pixels of one DICOM file as Hounsfield units, from a header that has passed the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder

from ich_seq.config import AIR_HU
from ich_seq.dicom import MAX_BITS, MIN_BITS, NATIVE, PLUGINS, SliceHeader
from ich_seq.reasons import Reason, Refused

QUIRK_MIN_INTERCEPT = -100
QUIRK_OFFSET = 1000
QUIRK_RANGE = 4096
DENSEST_HU = 3000
"""Denser than any bone; metal is denser still, and no padding value claims to be."""


def read_hounsfield(header: SliceHeader) -> NDArray[np.float32]:
    """Read the pixels of one slice, (H, W) float32 HU, by this slice's own slope and intercept.

    Values below AIR_HU are raised to it. MONOCHROME1 is a matter of display and inverts nothing.
    Raises Refused (PIXEL_DATA, DECODE, UNREADABLE), naming the study, if the pixels cannot be had whole.
    """
    try:
        stored = _read_native(header) if header.transfer_syntax in NATIVE else _decode(header)
    except Refused as refusal:
        refusal.study_uid = header.study_uid
        raise
    return to_hounsfield(stored, header)


def _read_native(header: SliceHeader) -> NDArray[np.integer[Any]]:
    """Return the stored values, (H, W), straight from the bytes that `read_header` located."""
    expected = header.rows * header.columns
    kind = f"{NATIVE[header.transfer_syntax]}{'i' if header.signed else 'u'}2"
    try:
        flat = np.fromfile(header.path, kind, count=expected, offset=header.pixel_offset)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.") from None
    if len(flat) < expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {2 * len(flat)} of {2 * expected} bytes.")
    stored = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(header.rows, header.columns)
    spare = MAX_BITS - header.bits_stored
    return (stored << spare) >> spare if spare else stored  # PS3.5 8.1.1: unused high bits mean nothing


def _decode(header: SliceHeader) -> NDArray[np.integer[Any]]:
    """Return the stored values of a compressed slice, (H, W)."""
    try:
        dataset = dcmread(header.path, force=True)
        decoder, plugin = get_decoder(header.transfer_syntax), PLUGINS[header.transfer_syntax]
        stored, _ = decoder.as_array(dataset, raw=True, decoding_plugin=plugin)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # decoders raise whatever they like on damaged frames
        raise Refused(Reason.DECODE, f"The pixels cannot be decoded ({type(error).__name__}).") from None
    if stored.shape != (header.rows, header.columns):
        raise Refused(Reason.DECODE, f"The decoded image is {stored.shape}, the header says otherwise.")
    return stored


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
