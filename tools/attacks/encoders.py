"""Compressed frames of every codec, of any size, number of components and precision.

pydicom's encoders make RLE, JPEG 2000 and, where pyjpegls is installed, JPEG-LS. None makes JPEG lossless or HTJ2K:
the first is written here whole, of the second only frames of a single grey, whose packets are empty.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import get_decoder, get_encoder

from attacks.dicom_elements import HTJ2K, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from ich_seq.syntaxes import PLUGINS

Stored = NDArray[np.unsignedinteger]
Encode = Callable[[Stored, int], bytes]
"""Takes stored values, (H, W) or (H, W, C), and their precision in bits."""

CATEGORY_BITS = 5
"""All 17 categories of a difference get a code of this length; codes of ones alone are not allowed."""


def by_pydicom(syntax: str) -> Encode:
    """Return an encoder that is pydicom's."""

    def encode(stored: Stored, precision: int) -> bytes:
        components = stored.shape[2] if stored.ndim == 3 else 1
        return get_encoder(syntax).encode(
            stored.astype(np.uint8 if precision <= 8 else np.uint16),
            rows=stored.shape[0],
            columns=stored.shape[1],
            samples_per_pixel=components,
            bits_allocated=8 if precision <= 8 else 16,
            bits_stored=precision,
            photometric_interpretation="MONOCHROME2" if components == 1 else "RGB",
            pixel_representation=0,
            planar_configuration=0,
            number_of_frames=1,
            use_mct=False,
        )

    return encode


def jpeg_lossless(stored: Stored, precision: int) -> bytes:
    """Return a JPEG lossless frame, first-order prediction (ITU T.81 annex H), components interleaved."""
    samples = np.atleast_3d(stored).astype(np.int64)
    rows, columns, components = samples.shape
    parts = b"".join(struct.pack(">BBB", number, 0x11, 0) for number in range(1, components + 1))
    frame_header = struct.pack(">BHHB", precision, rows, columns, components) + parts
    lengths = bytes(17 if length == CATEGORY_BITS else 0 for length in range(1, 17))
    scan = b"".join(struct.pack(">BB", number, 0) for number in range(1, components + 1))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xC3, frame_header),
            segment(0xC4, b"\0" + lengths + bytes(range(17))),
            segment(0xDA, bytes([components]) + scan + b"\x01\0\0"),
            _entropy_coded(_differences(samples, precision)),
            b"\xff\xd9",
        ]
    )


def segment(marker: int, body: bytes) -> bytes:
    """Return a marker segment of JPEG, JPEG-LS or JPEG 2000."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _differences(samples: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    """Return each sample less the one to its left, or above at the left edge, modulo 2^16 into -32767 to 32768."""
    predicted = np.empty_like(samples)
    predicted[:, 1:] = samples[:, :-1]
    predicted[1:, 0] = samples[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    return (samples - predicted + 32767) % 65536 - 32767


def _entropy_coded(differences: NDArray[np.int64]) -> bytes:
    """Return differences as a category and its extra bits each (T.81 H.1.2.2), 0xFF stuffed."""
    flat = differences.ravel()
    category = np.ceil(np.log2(np.abs(flat) + 1)).astype(np.int64)
    extra_bits = np.where(category == 16, 0, category)
    extra = np.where(flat < 0, flat + (1 << category) - 1, flat) & ((1 << extra_bits) - 1)
    codes, lengths = category << extra_bits | extra, CATEGORY_BITS + extra_bits
    places = lengths[:, None] - 1 - np.arange(CATEGORY_BITS + 16)
    bits = (codes[:, None] >> places.clip(0) & 1)[places >= 0].astype(np.uint8)
    padded = np.concatenate([bits, np.ones(-len(bits) % 8, np.uint8)])
    return np.packbits(padded).tobytes().replace(b"\xff", b"\xff\0")


def blank_htj2k(stored: Stored, precision: int) -> bytes:
    """Return an HTJ2K frame (ITU T.814) as large as the given image whose every sample is 2^(precision - 1).

    No code block is in it: each component is one empty packet, and what is not coded is the middle grey.
    """
    rows, columns, components = np.atleast_3d(stored).shape
    sizes = struct.pack(">H8IH", 0x4000, columns, rows, 0, 0, columns, rows, 0, 0, components)
    siz = segment(0x51, sizes + bytes([precision - 1, 1, 1]) * components)
    cap = segment(0x50, struct.pack(">IH", 0x00020000, 0))
    cod = segment(0x52, struct.pack(">BBHBBBBBB", 0, 0, 1, 0, 0, 4, 4, 0x40, 1))
    qcd = segment(0x5C, bytes([0x20, (precision + 1) << 3]))
    packets = bytes(components)
    sot = segment(0x90, struct.pack(">HIBB", 0, 12 + 2 + len(packets), 0, 1))
    return b"\xff\x4f" + siz + cap + cod + qcd + sot + b"\xff\x93" + packets + b"\xff\xd9"


ENCODERS: dict[str, Encode] = {
    RLE: by_pydicom(RLE),
    JPEG_2000: by_pydicom(JPEG_2000),
    JPEG_LOSSLESS: jpeg_lossless,
    JPEG_LS: by_pydicom(JPEG_LS),
    HTJ2K: blank_htj2k,
}
NAMES = {RLE: "RLE", JPEG_2000: "JPEG 2000", JPEG_LOSSLESS: "JPEG lossless", JPEG_LS: "JPEG-LS", HTJ2K: "HTJ2K"}


def made_here(syntax: str) -> bool:
    """Return whether frames of a syntax can be both written and read where this runs."""
    writable = syntax != JPEG_LS or find_spec("jpeg_ls") is not None
    return writable and PLUGINS[syntax] in get_decoder(syntax).available_plugins
