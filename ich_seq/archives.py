"""Zip archives, read where they lie: nothing is ever unpacked onto a disk, and no name in one leads anywhere.

The standard library reads the central directory; what is told there is believed of a member only as far as its bytes
bear it out. A member is known by its name, which is a label and no path.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from io import SEEK_CUR, SEEK_END, SEEK_SET
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ich_seq.files import open_unwaiting
from ich_seq.reasons import Reason, Refused

MAX_DIRECTORY_BYTES = 8 << 20
"""Of a central directory, which is held in memory: enough for the members that there may be, and long names."""

MAX_MEMBERS = 1 << 16
MAX_RATIO, SPARE_BYTES = 100, 1 << 27
"""All members together may inflate to so many times the archive's size, and so many bytes: CT shrinks to a half or a
third, air alone to a thousandth, and a bomb is many members over the same bytes."""

SUFFIX = ".zip"
MAGIC = b"PK"
PREAMBLE_BYTES = 128
LOCAL_HEAD = struct.Struct("<4s5H3L2H")
LOCAL_MAGIC = b"PK\x03\x04"
ENCRYPTED = 1
PIECE_BYTES = 1 << 14
"""Compressed bytes read at a time; what a header has is rarely in more than one piece."""

INFLATED_AT_ONCE = 1 << 20
KEPT_DIRECTORIES, KEPT_MEMBERS = 4, 2
"""What stays in memory: directories, as a folder's archives are read one after the other, and members, as the slices
of a multi-frame one are."""


class Member(NamedTuple):
    """What the central directory says of one member; `fault` is why it is not read, empty if it is."""

    offset: int
    packed: int
    size: int
    crc: int
    deflated: bool
    fault: str
    regular: bool


def is_archive(path: Path) -> bool:
    """Tell whether a file is a zip archive by its name and by how it begins; a slice is one whatever its name says."""
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    with open_unwaiting(path) as stream:
        head = stream.read(PREAMBLE_BYTES + 4)
    return head.startswith(MAGIC) and head[PREAMBLE_BYTES:] != b"DICM"


def member_names(path: Path) -> list[str]:
    """Return the names of an archive's files, in its own order; a name that is there again bears its number.

    Refused (ARCHIVE): what cannot be read, has too many members, spans several files, or would inflate beyond measure.
    Raises OSError.
    """
    status = path.stat()
    return list(_directory(path, status.st_size, status.st_mtime_ns))


class Sized:
    """A file of which the library reads its end and the central directory, and neither if it is without measure."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.close = stream.seek, stream.tell, stream.close

    def read(self, count: int = -1) -> bytes:
        """Read as the stream does. Refused (ARCHIVE): more at once than a directory has."""
        if count > MAX_DIRECTORY_BYTES:
            raise Refused(Reason.ARCHIVE, f"The archive's directory has over {MAX_DIRECTORY_BYTES} bytes; unpack it.")
        return self._stream.read(count)


@lru_cache(KEPT_DIRECTORIES)
def _directory(path: Path, size: int, modified_ns: int) -> dict[str, Member]:
    """Return the members of an archive of this size and date by name, folders left out."""
    try:
        with open_unwaiting(path) as stream, zipfile.ZipFile(cast(BinaryIO, Sized(stream))) as archive:
            listed = archive.infolist()
    except (Refused, OSError):
        raise
    except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on the archive
        detail = f"The archive cannot be read ({type(error).__name__}); copy it again, or unpack it."
        raise Refused(Reason.ARCHIVE, detail) from None
    files = [info for info in listed if info.file_size or not info.filename.endswith("/")]
    _check_measure(files, size)
    named: dict[str, Member] = {}
    for number, info in enumerate(files):
        name = info.filename or f"#{number}"
        while name in named:
            name = f"{name}#{number}"
        named[name] = _member(info)
    return named


def _check_measure(files: list[zipfile.ZipInfo], size: int) -> None:
    """Refused (ARCHIVE): an archive whose members have no end, or lie over one another."""
    if len(files) > MAX_MEMBERS:
        raise Refused(Reason.ARCHIVE, f"{len(files)} members; an archive may have {MAX_MEMBERS}. Unpack it.")
    if any(info.volume for info in files):
        raise Refused(Reason.ARCHIVE, "The archive is one part of several; join them, or unpack them.")
    if sum(info.compress_size for info in files) > size:
        raise Refused(Reason.ARCHIVE, "Members of the archive lie over one another, as in a bomb.")
    if sum(info.file_size for info in files) > MAX_RATIO * size + SPARE_BYTES:
        raise Refused(Reason.ARCHIVE, f"The archive would inflate to more than {MAX_RATIO} times its size.")


def _member(info: zipfile.ZipInfo) -> Member:
    fault = ""
    if info.flag_bits & ENCRYPTED:
        fault = "The member is encrypted; unpack the archive with its password."
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        fault = "The member is compressed by another way than deflate; unpack the archive."
    return Member(
        offset=info.header_offset,
        packed=info.compress_size,
        size=info.file_size,
        crc=info.CRC,
        deflated=info.compress_type == zipfile.ZIP_DEFLATED,
        fault=fault,
        regular=stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
    )


def open_member(archive: BinaryIO, path: Path, size: int, modified_ns: int, name: str) -> tuple[BinaryIO, int]:
    """Return a stream of a member that inflates it no further than it is read, and how long it says it is.

    `archive` is the open file at `path`, of this size and date. Refused (ARCHIVE, NOT_REGULAR, CHANGED).
    """
    member = _directory(path, size, modified_ns).get(name)
    if member is None:
        raise Refused(Reason.CHANGED, "The archive was changed while it was read; run the same command again.")
    if member.fault:
        raise Refused(Reason.ARCHIVE, member.fault)
    if not member.regular:
        raise Refused(Reason.NOT_REGULAR, "Not a regular file (a link or device in an archive).")
    archive.seek(max(0, member.offset))
    head = archive.read(LOCAL_HEAD.size)
    if member.offset < 0 or len(head) < LOCAL_HEAD.size or not head.startswith(LOCAL_MAGIC):
        raise Refused(Reason.ARCHIVE, "The member does not begin where the archive says; copy the archive again.")
    *_, name_bytes, extra_bytes = LOCAL_HEAD.unpack(head)
    archive.seek(name_bytes + extra_bytes, SEEK_CUR)
    return cast(BinaryIO, Inflating(archive, member)), member.size


@lru_cache(KEPT_MEMBERS)
def whole_member(path: Path, size: int, modified_ns: int, name: str) -> bytes:
    """Return all bytes of a member of the archive of this size and date, held against its checksum.

    Refused besides what `open_member` refuses (ARCHIVE): bytes that are not what the archive says. Raises OSError.
    """
    with open_unwaiting(path) as archive:
        stream, length = open_member(archive, path, size, modified_ns, name)
        data = stream.read(length)
        if len(data) != length or stream.read(1) or zlib.crc32(data) != _directory(path, size, modified_ns)[name].crc:
            raise Refused(Reason.ARCHIVE, "The member is not what the archive says of it; copy the archive again.")
    return data


class Inflating:
    """A member of an archive as a stream: inflated as far as it was read or sought, its length as the archive has it.

    One more byte than that length is given where there is one: a member that goes on is none that the archive told.
    """

    def __init__(self, archive: BinaryIO, member: Member) -> None:
        self._pieces = _inflated(archive, member) if member.deflated else _pieces(archive, member.packed)
        self._most = member.size + 1
        self._data, self._place = bytearray(), 0

    def read(self, count: int = -1) -> bytes:
        """Read as a file does. Refused (ARCHIVE): deflated bytes that are none, or end too early."""
        end = self._most if count < 0 else min(self._place + count, self._most)
        self._reach(end)
        data = bytes(self._data[self._place : end])
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a place, as in a file; nothing is inflated for it."""
        self._place = max(0, offset + {SEEK_SET: 0, SEEK_CUR: self._place, SEEK_END: self._most - 1}[whence])
        return self._place

    def tell(self) -> int:
        """Return where the stream stands."""
        return self._place

    def _reach(self, place: int) -> None:
        while len(self._data) < place:
            try:
                self._data += next(self._pieces)
            except StopIteration:
                return


def _pieces(archive: BinaryIO, left: int) -> Iterator[bytes]:
    """Yield the bytes of a member as they are stored."""
    while left:
        piece = archive.read(min(left, PIECE_BYTES))
        if not piece:
            raise Refused(Reason.ARCHIVE, "The archive is cut short; copy it again.")
        left -= len(piece)
        yield piece


def _inflated(archive: BinaryIO, member: Member) -> Iterator[bytes]:
    """Yield the bytes of a deflated member, never many at once."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in _pieces(archive, member.packed):
            yield inflate.decompress(piece, INFLATED_AT_ONCE)
            while inflate.unconsumed_tail:
                yield inflate.decompress(inflate.unconsumed_tail, INFLATED_AT_ONCE)
            if inflate.eof:
                return
    except zlib.error:
        raise Refused(Reason.ARCHIVE, "The member does not inflate; copy the archive again.") from None
