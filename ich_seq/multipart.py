"""A multipart message in pieces (RFC 2046): its parts one after another, however long, in little memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.message import Message

MAX_HEADERS = 1 << 14
"""Bytes that the headers of a part may have; they are passed over."""

MAX_PADDING = 64
"""Blanks that may stand behind a boundary."""


class MultipartError(Exception):
    """A message that is cut short, or whose form is another."""


def boundary_of(content_type: str) -> str:
    """Return what stands between the parts, as the header Content-Type says. Raises MultipartError if it does not."""
    message = Message()
    message["Content-Type"] = content_type
    try:
        boundary = message.get_boundary()
    except Exception:  # whatever the library makes of a parameter that is there twice, in pieces and whole
        boundary = None
    if message.get_content_maintype() != "multipart" or not boundary:
        raise MultipartError("no multipart message")
    return boundary


class Multipart:
    """The parts of a message of which `chunks` are the bytes, cut anywhere.

    Iterating yields each part as an iterator of its bytes, which has to be used before the next is asked for; what was
    not taken of it is passed over. Raises MultipartError, also in the midst of a part, if the message ends too early.
    """

    def __init__(self, chunks: Iterable[bytes], boundary: str) -> None:
        mark = b"\r\n--" + boundary.encode("utf-8", "surrogateescape")
        self._mark = re.compile(re.escape(mark) + rb"(--|[ \t]{0,%d}(?=\r\n))" % MAX_PADDING)
        self._longest = len(mark) + MAX_PADDING + len(b"\r\n")
        self._chunks, self._held, self._closed = iter(chunks), b"\r\n", False

    def __iter__(self) -> Iterator[Iterator[bytes]]:
        for _ in self._body():
            pass  # a preamble, which is for people
        while not self._closed:
            self._skip_headers()
            body = self._body()
            yield body
            for _ in body:
                pass

    def _body(self) -> Iterator[bytes]:
        while not (found := self._mark.search(self._held)):
            yield self._held[: -self._longest]  # what is kept back may be the beginning of a boundary
            self._held = self._held[-self._longest :] + self._next()
        self._closed = found[1] == b"--"
        last, self._held = self._held[: found.start()], self._held[found.end() :]
        yield last

    def _skip_headers(self) -> None:
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > MAX_HEADERS:
                raise MultipartError("the headers of a part do not end")
            self._held += self._next()
        self._held = self._held[end + 4 :]

    def _next(self) -> bytes:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise MultipartError("the message is cut short")
        return chunk
