"""Where the pixels of a file lie: the Pixel Data element, found and measured, and not read."""

from __future__ import annotations

from typing import BinaryIO, Literal

from ich_seq.elements import UNDEFINED_LENGTH
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import Form

PADDING_BYTES = 16
"""Some writers fill up the element; a column too many, which would shear the image, is longer than this."""

Fragments = list[tuple[int, int]]
"""Where the pieces of a frame's pixels begin, and how long they are."""


def pixel_value(stream: BinaryIO, form: Form) -> tuple[int, int]:
    """Return where the value of Pixel Data begins, and its length as told; the stream stands at the element.

    Refused (PIXEL_DATA): no pixel data, or of a kind that holds no pixels.
    """
    head = stream.read(12)
    order: Literal["little", "big"] = "little" if form.little else "big"
    if (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)) != (0x7FE0, 0x0010):
        raise Refused(Reason.PIXEL_DATA, "No pixel data in the file.")
    explicit = not form.implicit and b"AA" <= head[4:6] <= b"ZZ"  # not by the syntax, which some files misstate
    if explicit and head[4:6] not in (b"OW", b"OB"):
        raise Refused(Reason.PIXEL_DATA, "The pixel data is of no kind that holds pixels (its VR).")
    length = int.from_bytes((head[8:12] if explicit else head[4:8]).ljust(4, b"\0"), order)
    return stream.tell() - (0 if explicit else 4), length


def check_length(length: int, left: int, expected: int) -> None:
    """Refused (PIXEL_DATA): an element that is not as long as its image, or a file that ends before it, `left` on."""
    if length == UNDEFINED_LENGTH:
        raise Refused(Reason.PIXEL_DATA, "The pixels are compressed, but the transfer syntax says they are not.")
    held = max(0, min(length, left))
    if length > expected + PADDING_BYTES:
        raise Refused(Reason.PIXEL_DATA, f"{length} bytes of pixel data for an image of {expected}.")
    if held < expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {held} of {expected} bytes; copy the file again.")


def native_places(offset: int, length: int, end: int, size: int, count: int) -> list[Fragments]:
    """Return where each of `count` uncompressed frames of `size` bytes begins and how much of it is there before `end`.

    Refused (PIXEL_DATA): an element that is not as long as its frames.
    """
    check_length(length, length, count * size)
    starts = range(offset, offset + count * size, size)
    return [[(start, max(0, min(size, end - start)))] for start in starts]
