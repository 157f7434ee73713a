"""One DICOM file as bytes: opened so that it cannot make us wait, and read so that it cannot fill the memory."""

from __future__ import annotations

import io
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.filereader import read_dataset
from pydicom.uid import ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from ich_seq.elements import once, text
from ich_seq.reasons import Reason, Refused

MAX_FILE_BYTES = 1 << 27
"""Four times the largest slice, so that private elements find room."""

MAX_INFLATED_BYTES = 40 << 20
"""The largest slice and its header: deflate makes up to a thousand bytes of one."""

MAX_HEADER_READS = 4 << 20
"""Bytes that a parser may read of a header; elements that are not asked for are passed over, which reads nothing."""

LEAST_READ = 32
"""Bytes that a read counts at least: a parser takes as long for eight, and a sequence may be of empty items alone."""

PREAMBLE_BYTES = 128
MARKER = b"DICM"
META_GROUP = 0x0002
DICOM_SUFFIXES = {"", ".dcm", ".dicom", ".dic", ".ima", ".img"}


def check_status(status: os.stat_result) -> None:
    """Refused (UNREADABLE, NOT_REGULAR): what is no file, by its status alone."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused(Reason.UNREADABLE, "The folder cannot be listed; its files are not counted.")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Reason.NOT_REGULAR, "Not a regular file (pipe, socket or device).")


def check_size(status: os.stat_result) -> None:
    """Refused (TOO_LARGE): a DICOM file that is none of a slice; a film beside it is just no DICOM file."""
    if status.st_size > MAX_FILE_BYTES:
        raise Refused(Reason.TOO_LARGE, f"{status.st_size} bytes; a slice has at most {MAX_FILE_BYTES}.")


def inflated(stream: BinaryIO) -> tuple[BinaryIO, int]:
    """Return the data set of a deflated file, and its length in bytes; the stream stands anywhere in the file.

    Refused (TOO_LARGE, DAMAGED_HEADER): what inflates to more than a slice has, or not at all.
    """
    stream.seek(0)
    seek_dataset(stream, Path())
    read_syntax(stream)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(stream.read(), MAX_INFLATED_BYTES)
    except zlib.error:
        raise Refused(Reason.DAMAGED_HEADER, "The deflated data set is damaged; copy the file again.") from None
    if inflate.unconsumed_tail:
        raise Refused(Reason.TOO_LARGE, f"The file inflates to more than {MAX_INFLATED_BYTES} bytes.")
    return io.BytesIO(data), len(data)


def seek_dataset(stream: BinaryIO, path: Path) -> None:
    """Go to the first element, behind preamble and marker where a file has them."""
    head = stream.read(PREAMBLE_BYTES + len(MARKER))
    if head[PREAMBLE_BYTES:] == MARKER:
        return
    if head[:2] not in (b"\x02\x00", b"\x08\x00"):
        named_so = path.suffix.lower() in DICOM_SUFFIXES or path.suffix[1:].isdigit()
        if path.name.startswith(".") or not named_so:
            raise Refused(Reason.OTHER_FILE, "Not a DICOM file, by its name and by its content.")
        raise Refused(Reason.NOT_DICOM, "Not a DICOM file, though its name suggests one: no DICM marker.")
    stream.seek(0)


def read_syntax(stream: BinaryIO) -> str:
    """Read the file meta group, which alone is always explicit little endian; return the transfer syntax."""
    meta = read_dataset(sparing(stream), False, True, stop_when=once(lambda tag: tag >> 16 != META_GROUP))
    if text(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise Refused(Reason.DICOMDIR, "A DICOMDIR; the files it lists are read from the folder itself.")
    return text(meta, "TransferSyntaxUID") or ImplicitVRLittleEndian


class Sparing:
    """A stream of which a parser reads a header and not more: no element can make it fill the memory, or take hours.

    Refused (DAMAGED_HEADER) is the read that would be too much.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._left = MAX_HEADER_READS

    def read(self, count: int = -1) -> bytes:
        """Read as the stream does."""
        self._left -= max(count, LEAST_READ) if count >= 0 else MAX_HEADER_READS + 1
        if self._left < 0:
            raise Refused(Reason.DAMAGED_HEADER, f"The header needs more than {MAX_HEADER_READS} bytes of reading.")
        return self._read(count)


def sparing(stream: BinaryIO) -> BinaryIO:
    """Return a stream for a parser that can read no more of it than a header has."""
    return cast(BinaryIO, Sparing(stream))  # all of it that pydicom uses
