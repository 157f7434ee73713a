"""What a compressed frame says of itself, read before anything is decoded.

A decoder believes the codestream and pydicom the header; where the two differ, an image of the wrong shape can come out
without an error, or memory for an image that nobody asked for. Here the bytes are only looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from pydicom.uid import HTJ2K, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless, RLELossless

from ich_seq.reasons import Reason, Refused

JPEG2000_FAMILY = {JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K}
LOOKED_AT = 1 << 16
"""Bytes of a frame in which it must have said its size."""

LONGEST_TIMES, LONGEST_PLUS = 2, 1 << 16
"""No honest frame is longer than so many times its pixels, and so many bytes."""

MAX_FRAGMENTS = 1 << 16
MAX_TILES = 4096
"""Tiles of 64 x 64 on the largest slice; decoders keep a state for each."""

MAX_TILE_PARTS = 1 << 16
"""Of a frame, which are walked over one by one."""

LEAST_BITS, MOST_BITS = 9, 16
"""Encoders write the bits stored, the bits allocated or what the values need; 8 bits cannot hold HU."""

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP"
SOC_SIZ = b"\xff\x4f\xff\x51"
SOT = b"\xff\x90"
SOI, EOI, SOS, SOF_JPEG_LS = b"\xff\xd8", b"\xff\xd9", 0xDA, 0xF7
NOT_SOF = {0xC4, 0xC8, 0xCC}
"""Markers among C0 to CF that begin no frame: Huffman tables, extensions, arithmetic conditioning (ITU-T T.81)."""


@dataclass(frozen=True, slots=True)
class Size:
    """Rows, columns, components and bits a sample, as a codestream has them."""

    rows: int
    columns: int
    components: int
    bits: int


def read_frame(stream: BinaryIO, end: int) -> bytes:
    """Return the one frame of encapsulated pixel data, its fragments joined (PS3.5 A.4).

    The stream stands behind the element's length. Refused (PIXEL_DATA): fragments that are none, or reach beyond
    `end`, the file's size.
    """
    return b"".join(_fragments(stream, end))


def frame_start(stream: BinaryIO, places: Iterable[tuple[int, int]], rows: int, columns: int) -> bytes:
    """Return at most LOOKED_AT first bytes of a frame whose fragments lie at `places`, over all of which it walks.

    Refused (TOO_LARGE): a frame that is longer than any of this size.
    """
    head, total = b"", 0
    for start, length in places:
        if len(head) < LOOKED_AT:
            stream.seek(start)
            head += stream.read(min(length, LOOKED_AT - len(head)))
            stream.seek(start + length)
        total += length
    if total > LONGEST_TIMES * 2 * rows * columns + LONGEST_PLUS:
        raise Refused(Reason.TOO_LARGE, f"{total} compressed bytes are too many for {rows} x {columns} pixels.")
    return head


def frame_places(stream: BinaryIO, end: int, count: int) -> list[list[tuple[int, int]]]:
    """Return where the fragments of each of `count` frames begin and how long they are (PS3.5 A.4).

    The stream stands behind the element's length. As many fragments as frames are a frame each; of more the Basic
    Offset Table has to tell. Refused (PIXEL_DATA): fragments that are cut short, or not to be told apart.
    """
    table = _offset_table(stream, end)
    fragments = list(fragment_places(stream, end))
    starts = {start - fragments[0][0]: number for number, (start, _) in enumerate(fragments)}
    firsts = list(range(count)) if len(fragments) == count else [starts.get(offset, -1) for offset in table]
    if len(firsts) != count or firsts[0] != 0 or any(a >= b for a, b in pairwise(firsts)):
        raise Refused(Reason.PIXEL_DATA, f"Which of {len(fragments)} fragments make {count} frames is not told.")
    return [fragments[a:b] for a, b in pairwise([*firsts, len(fragments)])]


def read_items(stream: BinaryIO, end: int) -> bytes:
    """Return the frame whose fragments begin where the stream stands and end at `end`. Refused (PIXEL_DATA)."""
    parts = []
    while stream.tell() < end:
        head = stream.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or head[:4] != ITEM or stream.tell() + length > end:
            raise Refused(Reason.PIXEL_DATA, "The compressed frame is not where it was; copy the file again.")
        parts.append(stream.read(length))
    return b"".join(parts)


def _offset_table(stream: BinaryIO, end: int) -> list[int]:
    """Return the Basic Offset Table, the first item of encapsulated pixel data; the stream stays where it is."""
    place = stream.tell()
    head = stream.read(8)
    length = min(int.from_bytes(head[4:], "little"), 4 * MAX_FRAGMENTS, max(0, end - place))
    table = stream.read(length - length % 4) if head[:4] == ITEM else b""
    stream.seek(place)
    return [int.from_bytes(table[i : i + 4], "little") for i in range(0, len(table), 4)]


def _fragments(stream: BinaryIO, end: int) -> Iterator[bytes]:
    for start, length in fragment_places(stream, end):
        stream.seek(start)
        yield stream.read(length)


def fragment_places(stream: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield where each fragment begins and how long it is; the first item is the offset table and none.

    The stream stands behind the element's length. Refused (PIXEL_DATA): what is no item, or reaches beyond `end`.
    """
    place = stream.tell()
    for number in range(MAX_FRAGMENTS):
        stream.seek(place)
        head = stream.read(8)
        if number > 1 and (head[:4] == DELIMITER or not head):  # some writers leave the delimiter out
            return
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or head[:4] != ITEM or place + 8 + length > end:
            raise Refused(Reason.PIXEL_DATA, "Compressed pixel data is cut short or no item; copy the file again.")
        if number:
            yield place + 8, length
        place += 8 + length
    raise Refused(Reason.PIXEL_DATA, f"Pixel data in more than {MAX_FRAGMENTS} fragments.")


def check_frame(head: bytes, syntax: str, rows: int, columns: int) -> None:
    """Compare what a frame's first bytes say with the header. Refused (CODESTREAM) if they differ or say nothing."""
    if syntax == RLELossless:
        _check_rle(head)
        return
    try:
        size = _jpeg2000_size(head) if syntax in JPEG2000_FAMILY else _jpeg_size(head)
    except (struct.error, IndexError, ValueError):
        raise Refused(Reason.CODESTREAM, "The compressed frame does not begin as its transfer syntax has it.") from None
    if (size.rows, size.columns) != (rows, columns):
        said = f"{size.rows} x {size.columns} pixels, the header {rows} x {columns}"
        raise Refused(Reason.CODESTREAM, f"The compressed frame has {said}.")
    if size.components != 1 or not LEAST_BITS <= size.bits <= MOST_BITS:
        said = f"{size.components} components of {size.bits} bits"
        raise Refused(
            Reason.CODESTREAM,
            f"The compressed frame has {said}; a CT slice has one, of {LEAST_BITS} to {MOST_BITS} bits.",
        )


def _check_rle(head: bytes) -> None:
    """Check the header of a run-length frame (PS3.5 G.5); it says how many byte planes there are, but no size."""
    count, *offsets = struct.unpack_from("<3I", head) if len(head) >= 64 else (0,)
    if count != 2 or offsets[0] != 64 or offsets[1] <= 64:
        raise Refused(Reason.CODESTREAM, "The run-length frame is not of two byte planes, as 16 bits a pixel make it.")


def _jpeg2000_size(head: bytes) -> Size:
    """Read the SIZ segment, which comes first (ISO/IEC 15444-1 A.5.1), also inside a JP2 file."""
    start = _codestream_box(head) if head.startswith(JP2_SIGNATURE) else 0
    if head[start : start + 4] != SOC_SIZ:
        raise ValueError("no SIZ segment")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, components = struct.unpack_from(">8IH", head, start + 8)
    depth, step_x, step_y = struct.unpack_from(">3B", head, start + 42)
    if not tile_x or not tile_y or (step_x, step_y) != (1, 1):
        raise ValueError("no tiles, or fewer samples than pixels")
    if -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y) > MAX_TILES:
        raise ValueError("tiles without number")
    return Size(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1)


def check_tiles(frame: bytes) -> None:
    """Refused (CODESTREAM): a JPEG 2000 stream that lacks tiles, which decoders leave blank without a word.

    Each tile-part says which tile it is of and how long it is (ISO/IEC 15444-1 A.4.2).
    """
    start = _codestream_box(frame) if frame.startswith(JP2_SIGNATURE) else 0
    x1, y1, _, _, width, height, x0, y0 = struct.unpack_from(">8I", frame, start + 8)
    expected, found, place = -(-(x1 - x0) // width) * -(-(y1 - y0) // height), set(), start + 2
    while place < LOOKED_AT and frame[place : place + 2] != SOT:
        place += 2 + max(2, int.from_bytes(frame[place + 2 : place + 4]))
    for _ in range(MAX_TILE_PARTS):
        if frame[place : place + 2] != SOT or place + 10 > len(frame):
            break
        tile, length = struct.unpack_from(">HI", frame, place + 4)
        found.add(tile)
        place += length or len(frame)
    if len(found) < expected:
        raise Refused(Reason.CODESTREAM, f"The compressed frame has {len(found)} of {expected} tiles; copy it again.")


def check_end(frame: bytes) -> None:
    """Refused (CODESTREAM): a JPEG or JPEG-LS stream without its end, for which a decoder can make pixels up.

    The End of Image marker (ITU-T T.81 B.1.1.3) comes last, before padding: zeros, or FF of some writers.
    """
    if not frame.rstrip(b"\0\xff").endswith(EOI):
        raise Refused(Reason.CODESTREAM, "The compressed frame is cut short: it has no End of Image; copy it again.")


def _codestream_box(head: bytes) -> int:
    """Return where the codestream begins in a JP2 file (ISO/IEC 15444-1 I.4), whose other boxes may hold anything."""
    place = 0
    while True:
        length, name = struct.unpack_from(">I4s", head, place)
        if name == b"jp2c":
            return place + (16 if length == 1 else 8)
        if length < 8:
            raise ValueError("no box")
        place += length


def _jpeg_size(head: bytes) -> Size:
    """Walk over the segments of a JPEG or JPEG-LS stream up to its scan: one is the frame header (ITU-T T.81 B.2)."""
    if head[:2] != SOI:
        raise ValueError("no start of image")
    place, size = 2, None
    while True:
        while head[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker = head[place + 1]
        if head[place] != 0xFF or marker < 0xC0:
            raise ValueError("no marker")
        if marker == SOF_JPEG_LS or (0xC0 <= marker <= 0xCF and marker not in NOT_SOF):
            bits, rows, columns, components = struct.unpack_from(">BHHB", head, place + 4)
            if size is not None:
                raise ValueError("two frame headers, of which decoders take the other")
            size = Size(rows, columns, components, bits)
        if marker == SOS:
            if size is None:
                raise ValueError("no frame header")
            return size
        place += 2 + struct.unpack_from(">H", head, place + 2)[0]
