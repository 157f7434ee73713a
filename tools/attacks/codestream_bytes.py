"""Compressed frames of the drawn pixels written byte by byte, so that they can be wrong in every way."""

from __future__ import annotations

import struct

import numpy as np
from openjpeg.utils import encode_array

from attacks.dicom_bytes import DRAWN, SIDE
from attacks.encoders import segment


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


JPEG_LS_FRAME = 0xF7
"""The marker of a frame of JPEG-LS."""


def jpeg_frame(marker: int, *, bits: int = 16, rows: int = SIDE, columns: int = SIDE, components: int = 1) -> bytes:
    """Return a JPEG of sound markers, but without tables and with noise for data."""
    said = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    start = struct.pack(">BHHB", bits, rows, columns, components) + said
    scan = bytes([components, *(part for n in range(components) for part in (n + 1, 0)), 1, 0, 0])
    return b"\xff\xd8" + segment(marker, start) + segment(0xDA, scan) + bytes(range(1, 255)) * 2 + b"\xff\xd9"
