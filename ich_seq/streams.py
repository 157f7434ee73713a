"""Streams of strangers: no element of a file can make a parser fill the memory, or take hours."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Literal, NamedTuple, cast

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from ich_seq.reasons import Reason, Refused

MAX_HEADER_READS = 4 << 20
"""Bytes that a parser may read of a header; elements that are not asked for are passed over, which reads nothing."""

LEAST_READ = 32
"""Bytes that a read counts at least: a parser takes as long for eight, and a sequence may be of empty items alone."""

LEAST_ITEM = 256
"""Bytes that an item counts at least where items are read one by one: making something of it takes the time."""

MAX_ITEM_BYTES = 1 << 20
"""Of an item of a sequence whose items are read one by one; the groups of a frame have a few thousand."""

ITEM_TAG, SEQUENCE_END, UNTOLD = 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF
"""Tags of items and of what ends a sequence; the length of what ends by such a tag (PS3.5 7.5)."""

PYDICOM_STATE = threading.Lock()
"""pydicom's validation and Python's warning filters are the process's own; two threads must not swap them at once."""


@contextmanager
def lenient() -> Iterator[None]:
    """Let pydicom read what it has something against: RSNA's UIDs are no UIDs, others misspell character sets."""
    with PYDICOM_STATE, pydicom_config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Budget:
    """Bytes that parsers may still read, all together."""

    def __init__(self, most: int = MAX_HEADER_READS) -> None:
        self.most = self.left = most


class Sparing:
    """A stream of which a parser reads a header and not more. Refused (DAMAGED_HEADER): the read that is too much."""

    def __init__(self, stream: BinaryIO, budget: Budget) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._budget = budget

    def read(self, count: int = -1) -> bytes:
        """Read as the stream does."""
        budget = self._budget
        budget.left -= max(count, LEAST_READ) if count >= 0 else budget.most + 1
        if budget.left < 0:
            raise Refused(Reason.DAMAGED_HEADER, f"The header needs more than {budget.most} bytes of reading.")
        return self._read(count)


def sparing(stream: BinaryIO, budget: Budget | None = None) -> BinaryIO:
    """Return a stream for a parser that can read no more of it than a header has, or than is left of `budget`."""
    return cast(BinaryIO, Sparing(stream, budget or Budget()))  # all of it that pydicom uses


class Form(NamedTuple):
    """How elements are written: without their VR or with it, the lowest byte first or last."""

    implicit: bool
    little: bool

    def unpack(self, layout: str, data: bytes) -> tuple[int, ...]:
        """Return numbers, by a layout of `struct`. Refused (DAMAGED_HEADER): fewer bytes than it has."""
        try:
            return struct.unpack(f"{'<' if self.little else '>'}{layout}", data)
        except struct.error:
            raise Refused(Reason.DAMAGED_HEADER, "The file ends within a sequence; copy it again.") from None


def sequence_start(stream: BinaryIO, form: Form) -> tuple[int, int]:
    """Read the head of the element at which a stream stands, a sequence; return its tag and its length."""
    group, element = form.unpack("HH", stream.read(4))
    (length,) = form.unpack("L", stream.read(4) if form.implicit else stream.read(8)[4:])
    return group << 16 | element, length


def next_tag(stream: BinaryIO, form: Form) -> int:
    """Return the tag of the element at which a stream stands and stays; 0 at its end."""
    place = stream.tell()
    data = stream.read(4)
    stream.seek(place)
    order: Literal["little", "big"] = "little" if form.little else "big"
    return int.from_bytes(data[:2], order) << 16 | int.from_bytes(data[2:], order)


def items(stream: BinaryIO, length: int, form: Form, wanted: Sequence[int], budget: Budget) -> Iterator[Dataset]:
    """Yield the items of a sequence one by one, each with the `wanted` elements alone, as raw as they are.

    The stream stands behind the sequence's head, which told the `length`, and in the end behind the sequence. Refused
    (DAMAGED_HEADER): what is no item, an item that is longer than any honest one, more reading than `budget` has.
    """
    end = None if length == UNTOLD else stream.tell() + length
    while end is None or stream.tell() < end:
        group, element, size = form.unpack("HHL", sparing(stream, budget).read(8))
        budget.left -= LEAST_ITEM
        if (tag := group << 16 | element) == SEQUENCE_END:
            return
        if tag != ITEM_TAG or MAX_ITEM_BYTES < size != UNTOLD:
            raise Refused(Reason.DAMAGED_HEADER, "A sequence holds what is no item, or one without measure.")
        # pydicom passes over what is not wanted without looking whether the item has ended: it gets the item alone
        part = stream if size == UNTOLD else io.BytesIO(stream.read(size))
        yield read_dataset(
            sparing(part, budget), form.implicit, form.little, specific_tags=list(wanted), at_top_level=False
        )  # fmt: skip
