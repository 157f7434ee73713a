"""One DICOM file as bytes: opened so that it cannot make us wait, and read so that it cannot fill the memory."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

from pydicom.filereader import read_dataset
from pydicom.uid import ImplicitVRLittleEndian, MediaStorageDirectoryStorage

from ich_seq.archives import MAGIC, SUFFIX, open_member, whole_member
from ich_seq.elements import once, text
from ich_seq.files import open_unwaiting
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import sparing

MAX_FILE_BYTES = 1 << 27
"""Four times the largest slice, so that private elements find room."""

MAX_MULTI_FRAME_BYTES = 1 << 30
"""Of a multi-frame file: 2,048 frames of 512 x 512. It is never held in memory as a whole."""

MAX_INFLATED_BYTES = 40 << 20
"""The largest slice and its header: deflate makes up to a thousand bytes of one."""

PREAMBLE_BYTES = 128
MARKER = b"DICM"
META_GROUP = 0x0002
DICOM_SUFFIXES = {"", ".dcm", ".dicom", ".dic", ".ima", ".img"}


@contextmanager
def opened(path: Path, member: str = "", *, whole: bool = False) -> Iterator[tuple[BinaryIO, os.stat_result, int]]:
    """Open a file, or a member of the archive that it is, to read.

    Gives the stream, what the disk says of the file at `path`, and where the stream ends. A member is inflated as far
    as it is read, and only as a `whole` held against its checksum. Raises OSError. Refused (UNREADABLE, NOT_REGULAR,
    ARCHIVE, CHANGED).
    """
    check_status(path.stat())  # before it is opened: that alone can wind a tape, or wait for a pipe's other end
    with open_unwaiting(path) as stream:
        status = os.fstat(stream.fileno())
        check_status(status)
        if not member:
            yield stream, status, status.st_size
            return
        known = path, status.st_size, status.st_mtime_ns, member
        if whole:
            data = whole_member(*known)
            yield io.BytesIO(data), status, len(data)
        else:
            inner, end = open_member(stream, *known)
            yield inner, status, end


def check_status(status: os.stat_result) -> None:
    """Refused (UNREADABLE, NOT_REGULAR): what is no file, by its status alone."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused(Reason.UNREADABLE, "The folder cannot be listed; its files are not counted.")
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Reason.NOT_REGULAR, "Not a regular file (pipe, socket or device).")


def check_size(size: int, most: int = MAX_FILE_BYTES) -> None:
    """Refused (TOO_LARGE): a DICOM file that is none of a slice; a film beside it is just no DICOM file."""
    if size > most:
        raise Refused(Reason.TOO_LARGE, f"{size} bytes; a slice has at most {most}.")


def inflated(stream: BinaryIO) -> tuple[BinaryIO, int]:
    """Return the data set of a deflated file, and its length in bytes; the stream stands anywhere in the file.

    Refused (TOO_LARGE, DAMAGED_HEADER): what inflates to more than a slice has, or not at all.
    """
    stream.seek(0)
    seek_dataset(stream, PurePath())
    read_syntax(stream)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(stream.read(), MAX_INFLATED_BYTES)
    except zlib.error:
        raise Refused(Reason.DAMAGED_HEADER, "The deflated data set is damaged; copy the file again.") from None
    if inflate.unconsumed_tail:
        raise Refused(Reason.TOO_LARGE, f"The file inflates to more than {MAX_INFLATED_BYTES} bytes.")
    return io.BytesIO(data), len(data)


def seek_dataset(stream: BinaryIO, path: PurePath) -> None:
    """Go to the first element, behind preamble and marker where a file has them."""
    head = stream.read(PREAMBLE_BYTES + len(MARKER))
    if head[PREAMBLE_BYTES:] == MARKER:
        return
    if head.startswith(MAGIC) and path.suffix.lower() == SUFFIX:
        where = "within another, named by a DICOMDIR or in a folder that is watched"
        raise Refused(Reason.ARCHIVE, f"An archive {where} is not looked into; unpack it.")
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
