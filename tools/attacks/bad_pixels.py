"""Bad inputs in their compressed pixels: frames that are bombs, disagree with the header, or are broken."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from openjpeg.utils import encode_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from attacks.bad_case import ALTERED, USED, Case, one
from attacks.codestream_bytes import (
    COMPONENTS,
    HIGH,
    J2K,
    JPEG_LS_FRAME,
    LOW,
    PRECISION,
    STEP_X,
    STEP_Y,
    jpeg_frame,
    patched,
    rle_frame,
    with_bytes,
)
from attacks.dicom_bytes import DRAWN, compressed, element, nested, pixels, slice_file
from attacks.dicom_elements import PIXEL_DATA, UNDEFINED, item

FAMILY = "bombs"
MIB = 1 << 20
JPEG = () if find_spec("libjpeg") else ("transfer_syntax",)
"""What else may become of JPEG files: without its optional decoder none is read."""


def pixel_data() -> list[Case]:
    """Return all cases of compressed pixels."""
    return [*rle_bombs(), *jpeg_2000_bombs(), *jpeg_bombs(), *frame_bombs()]


# ---- run length encoding


def rle(frame: bytes, **how: int) -> bytes:
    """Return an RLE file of one frame."""
    return slice_file(syntax=RLELossless, pixel=compressed(frame), **how)


def rle_bombs() -> Iterator[Case]:
    """RLE frames whose header or runs do not make the image."""
    runs = b"\x81\x00" * (4 * MIB)
    yield one(FAMILY, "a sound RLE slice", rle(rle_frame(HIGH, LOW)), USED)
    yield one(FAMILY, "8 MiB of runs for 32 x 32 pixels", lambda: rle(rle_frame(runs, LOW)), "too_large")
    big = lambda: rle(rle_frame(runs, runs), Rows=4096, Columns=4096)  # noqa: E731
    yield one(FAMILY, "16 MiB of runs, a GiB of pixels, for 4096 x 4096", big, "decode", "too_large", ALTERED)
    for count in (0, 1, 3, 4, 15, 16, 0x7FFFFFFF, 0xFFFFFFFF):
        yield one(FAMILY, f"{count} RLE planes", rle(rle_frame(HIGH, LOW, count=count)), "codestream")
    for name, offsets in (
        ("beyond the frame", (64, 9999)),
        ("beyond 4 GiB", (64, 0xFFFFFFFF)),
        ("in the header", (0, 32)),
        ("in the wrong order", (64 + len(HIGH), 64)),
        ("at the same place", (64, 64)),
    ):
        frame = rle_frame(HIGH, LOW, offsets=offsets)
        yield one(FAMILY, f"RLE planes that begin {name}", rle(frame), "codestream", "decode")
    for name, high, low in (
        ("half a plane", HIGH[:100], LOW),
        ("an empty plane", b"", LOW),
        ("no operation but 128", b"\x80" * 300, LOW),
        ("a run without its byte", HIGH, LOW[:-129] + b"\x81"),
    ):
        yield one(FAMILY, f"RLE: {name}", rle(rle_frame(high, low)), "decode", "codestream")
    yield one(FAMILY, "RLE: a plane twice as long", rle(rle_frame(HIGH * 2, LOW)), USED, "decode", "codestream")
    for name, frame in (("a header cut short", rle_frame(HIGH, LOW)[:40]), ("noise", bytes(range(256)) * 2)):
        yield one(FAMILY, f"RLE: {name}", rle(frame), "codestream", "decode")


# ---- JPEG 2000


def j2k(stream: bytes, syntax: str = JPEG2000Lossless, **how: int) -> bytes:
    """Return a JPEG 2000 file of one frame."""
    return slice_file(syntax=syntax, pixel=compressed(stream), **how)


def jpeg_2000_bombs() -> Iterator[Case]:
    """Codestreams that disagree with the header, are absurd, or are broken behind a sound SIZ marker."""
    yield one(FAMILY, "a sound JPEG 2000 slice", j2k(J2K), USED)
    unsigned = bytes(
        encode_array(DRAWN.view(np.uint16), bits_stored=16)
    )  # some writers do so, and their pixels are right
    yield one(FAMILY, "JPEG 2000: unsigned, said to be signed", j2k(unsigned), USED, "codestream")
    huge = 0x7FFFFFFF
    for numbers in (
        {"Xsiz": 33},
        {"Ysiz": 31},
        {"Xsiz": 16, "Ysiz": 64},
        {"Xsiz": 0},
        {"Ysiz": 0, "Xsiz": 0},
        {"Xsiz": 4096, "Ysiz": 4096, "XTsiz": 4096, "YTsiz": 4096},
        {"Xsiz": huge, "Ysiz": huge},
        {"Xsiz": huge, "Ysiz": huge, "XTsiz": huge, "YTsiz": huge},
        {"Xsiz": 0xFFFFFFFF, "Ysiz": 0xFFFFFFFF, "XOsiz": 0xFFFFFFDF, "YOsiz": 0xFFFFFFDE},
        {"XOsiz": 8},
        {"XOsiz": huge, "YOsiz": huge},
        {"Xsiz": huge, "Ysiz": huge, "XTsiz": 1, "YTsiz": 1},
    ):
        name = "SIZ with " + ", ".join(f"{key} {number}" for key, number in numbers.items())
        for syntax, kind in ((JPEG2000Lossless, "JPEG 2000"), (HTJ2KLossless, "HTJ2K")):
            yield one(FAMILY, f"{kind}: {name}", j2k(patched(J2K, **numbers), syntax), "codestream")
    yield one(FAMILY, "JPEG 2000: sides swapped", j2k(J2K, Rows=16, Columns=64, syntax=JPEG2000), "codestream")
    yield one(FAMILY, "JPEG 2000: 32 x 32 said to be 512 x 512", j2k(J2K, Rows=512, Columns=512), "codestream")
    for name, numbers in (
        ("1024 tiles of a pixel", {"XTsiz": 1, "YTsiz": 1}),
        ("tiles without size", {"XTsiz": 0, "YTsiz": 0}),
        ("tiles that begin behind the image", {"XTOsiz": 99, "YTOsiz": 99}),
        ("a tile of 2 billion", {"XTsiz": huge, "YTsiz": huge}),
    ):
        acceptable = ("codestream", "decode", *((USED,) if "billion" in name else ()))
        yield one(FAMILY, f"JPEG 2000: {name}", j2k(patched(J2K, **numbers)), *acceptable)
    yield from _jpeg_2000_components()
    yield from _jpeg_2000_torn()


def _jpeg_2000_components() -> Iterator[Case]:
    for count in (0, 2, 3, 16384, 65535):
        stream = with_bytes(J2K, COMPONENTS, struct.pack(">H", count))
        yield one(FAMILY, f"JPEG 2000: {count} components, one given", j2k(stream), "codestream")
    for count in (3, 1000):
        said = struct.pack(">H", count) + J2K[PRECISION : PRECISION + 3] * count
        stream = with_bytes(J2K[:COMPONENTS], 4, struct.pack(">H", 38 + 3 * count)) + said + J2K[PRECISION + 3 :]
        yield one(FAMILY, f"JPEG 2000: {count} components", j2k(stream), "codestream")
    for name, at, byte in (
        ("8 bits", PRECISION, 0x87),
        ("38 bits", PRECISION, 0xA5),
        ("every 255th column", STEP_X, 255),
        ("every 2nd row", STEP_Y, 2),
        ("every 0th column", STEP_X, 0),
    ):
        yield one(FAMILY, f"JPEG 2000: {name}", j2k(with_bytes(J2K, at, bytes([byte]))), "codestream")


def _jpeg_2000_torn() -> Iterator[Case]:
    """The SIZ marker is sound in these; what follows it is not."""
    coding, data = J2K.index(b"\xff\x52"), J2K.index(b"\xff\x93")
    part = patched(J2K, Xsiz=4096, Ysiz=4096, XTsiz=4096, YTsiz=4096)
    yield one(FAMILY, "JPEG 2000: 32 x 32 of 4096 x 4096", j2k(part, Rows=4096, Columns=4096), "decode", ALTERED)
    tiles = patched(J2K, Xsiz=4096, Ysiz=4096, XTsiz=32, YTsiz=32)
    yield one(FAMILY, "JPEG 2000: 16384 tiles, one given", j2k(tiles, Rows=4096, Columns=4096), "decode", "codestream")
    for side in (16, 32, 64):
        first = patched(bytes(encode_array(np.tile(DRAWN, (4, 4)), bits_stored=16)), XTsiz=side, YTsiz=side)
        content = j2k(first, Rows=128, Columns=128)
        yield one(FAMILY, f"JPEG 2000: 128 x 128 in tiles of {side}, one given", content, "decode", "codestream")
    for name, at, byte in (("99 levels", 9, b"\x63"), ("huge blocks", 10, b"\x0f\x0f")):
        yield one(FAMILY, f"JPEG 2000: {name}", j2k(with_bytes(J2K, coding + at, byte)), "decode", "codestream")
    layers = j2k(with_bytes(J2K, coding + 6, b"\xff\xff"))
    yield one(FAMILY, "JPEG 2000: 65535 layers", layers, USED, "decode", "codestream")
    zeros = j2k(J2K[: data + 2] + bytes(len(J2K) - data - 4) + J2K[-2:])  # which are a valid, empty image
    yield one(FAMILY, "JPEG 2000: data of zeros", zeros, ALTERED, "decode", "codestream")
    for name, stream in (
        ("no data", J2K[: data + 2]),
        ("half of the data", J2K[: (data + len(J2K)) // 2]),
        ("data of noise", J2K[: data + 2] + bytes(range(1, 201)) + J2K[-2:]),
        ("no coding style", J2K[:coding] + J2K[coding + 14 :]),
    ):
        yield one(FAMILY, f"JPEG 2000: {name}", j2k(stream), "decode", "codestream")
    for name, stream in (
        ("noise", bytes(range(256)) * 2),
        ("a cut SIZ marker", J2K[:30]),
        ("one byte", b"\xff"),
        ("nothing but its start", J2K[:2]),
        ("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(200)),
    ):
        yield one(FAMILY, f"JPEG 2000: {name}", j2k(stream, JPEG2000), "codestream", "decode")
        yield one(FAMILY, f"HTJ2K: {name}", j2k(stream, HTJ2K), "codestream", "decode")


# ---- JPEG


def jpeg_bombs() -> Iterator[Case]:
    """JPEGs that disagree with the header, and others that agree but hold no image."""
    for name, syntax, marker, bits in (
        ("JPEG lossless", JPEGLosslessSV1, 0xC3, 16),
        ("JPEG-LS", JPEGLSLossless, JPEG_LS_FRAME, 16),
        ("JPEG-LS near lossless", JPEGLSNearLossless, JPEG_LS_FRAME, 16),
        ("JPEG extended", JPEGExtended12Bit, 0xC1, 12),
    ):
        how = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0}
        for lie in (
            {"rows": 33},
            {"columns": 16, "rows": 64},
            {"rows": 0},
            {"rows": 65535, "columns": 65535},
            {"components": 3},
            {"components": 255},
            {"bits": 8},
            {"bits": 2},
        ):
            frame = jpeg_frame(marker, **{"bits": bits} | lie)
            said = ", ".join(f"{number} {key}" for key, number in lie.items())
            content = slice_file(syntax=syntax, pixel=compressed(frame), **how)
            yield one(FAMILY, f"{name}: {said}", content, "codestream", *JPEG)
        for said, frame in (("noise for data", jpeg_frame(marker, bits=bits)), ("no JPEG", bytes(500))):
            content = slice_file(syntax=syntax, pixel=compressed(frame), **how)
            # any bits are an image in JPEG-LS
            lossless = (ALTERED,) if marker == JPEG_LS_FRAME and said != "no JPEG" else ()
            yield one(FAMILY, f"{name}: {said}", content, "decode", "codestream", *lossless, *JPEG)


# ---- how frames are packed


def frame_bombs() -> Iterator[Case]:
    """Frames in fragments that are too long, too many, too few or open at the end."""
    frame, half = rle_frame(HIGH, LOW), len(rle_frame(HIGH, LOW)) // 2 & ~1

    def packed(*fragments: bytes, **how: bytes | bool) -> bytes:
        return slice_file(syntax=RLELossless, pixel=compressed(*fragments, **how))

    yield one(FAMILY, "a frame of 60 MiB for 32 x 32 pixels", lambda: packed(frame + bytes(60 * MIB)), "too_large")
    yield one(FAMILY, "a JPEG 2000 of 60 MiB for 32 x 32", lambda: j2k(J2K + bytes(60 * MIB)), "too_large")
    million = lambda: packed(*[b""] * MIB, frame)  # noqa: E731
    yield one(FAMILY, "a million empty fragments", million, USED, "too_large", "decode", "pixel_data", "codestream")
    yield one(FAMILY, "a frame in two fragments", packed(frame[:half], frame[half:]), USED)
    yield one(
        FAMILY, "an offset table of 4000 zeros", packed(frame, offsets=bytes(16000)), USED, "decode", "pixel_data"
    )
    yield one(
        FAMILY, "an offset table beyond the file", packed(frame, offsets=b"\xff" * 4), USED, "decode", "pixel_data"
    )
    yield one(
        FAMILY, "two frames in an image of one", packed(frame, frame), USED, "decode", "codestream", "multi_frame"
    )
    gone = ("pixel_data", "decode", "codestream")
    for name, pixel in (
        ("no fragment", compressed()),
        ("an empty fragment", compressed(b"")),
        ("an open end", compressed(frame, closed=False)),
        ("no offset table", element(PIXEL_DATA, "OB", length=UNDEFINED)),
        ("a fragment of 4 GiB", compressed()[:-8] + item(frame, 0xFFFFFFF0)),
        ("a fragment of undefined length", compressed()[:-8] + item(frame, UNDEFINED)),
        ("noise for fragments", element(PIXEL_DATA, "OB", length=UNDEFINED) + bytes(range(256)) * 4),
        ("a defined length", element(PIXEL_DATA, "OB", frame)),
        ("uncompressed pixels", pixels()),
        ("a nested sequence", element(PIXEL_DATA, "SQ", length=UNDEFINED) + nested(50, defined=False)),
    ):
        acceptable = (USED, *gone) if name == "an open end" else gone
        yield one(FAMILY, f"compressed pixels: {name}", slice_file(syntax=RLELossless, pixel=pixel), *acceptable)
    plain = slice_file(pixel=compressed(frame))
    yield one(FAMILY, "compressed pixels, said to be uncompressed", plain, "pixel_data")
    yield one(FAMILY, "RLE, said to be JPEG 2000", j2k(frame), "codestream", "decode")
    yield one(FAMILY, "JPEG 2000, said to be RLE", rle(J2K), "codestream", "decode")
