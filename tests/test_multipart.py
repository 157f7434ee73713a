"""Multipart messages: the same parts however the bytes are cut, in little memory, and a message that is cut is told."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.multipart import MAX_PADDING, Multipart, MultipartError, boundary_of

BODY = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"b", b"x", b"\r\n--", b"\r\n--bb", b"\r\n\r\n"]), max_size=12
).map(b"".join)
"""Bytes out of which boundaries are made."""


def holds_none(bodies):
    """Whether no body holds the boundary b itself, as RFC 2046 has the writer see to."""
    return not any(b"\r\n--b" in b"\r\n" + body + b"\r\n--b"[:-1] for body in bodies)


def message(bodies, *, headers=(b"Content-Type: application/dicom",), preamble=b"", padding=b"", end=b"--\r\n"):
    head = b"".join(line + b"\r\n" for line in headers)
    parts = b"".join(b"--b" + padding + b"\r\n" + head + b"\r\n" + body + b"\r\n" for body in bodies)
    return preamble + parts + b"--b" + end


def cut(data, places):
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def read(chunks):
    return [b"".join(part) for part in Multipart(chunks, "b")]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(BODY, min_size=1, max_size=4).filter(holds_none),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([(), (b"A: 1",), (b"A: 1", b"Content-Length: 9999")]),
    st.sampled_from([b"", b"for people\r\n", b"\r\n"]),
    st.sampled_from([b"", b" \t "]),
    st.sampled_from([b"--", b"--\r\n", b"--\r\nepilogue --b\r\n"]),
)
def test_the_parts_are_those_that_were_written_however_the_bytes_are_cut(
    bodies, places, headers, preamble, padding, end
):
    """With headers or none, blanks behind boundaries, and text before and after."""
    data = message(bodies, headers=headers, preamble=preamble, padding=padding, end=end)
    assert read(cut(data, places)) == bodies


@settings(max_examples=80, deadline=None)
@given(st.lists(BODY, min_size=1, max_size=3).filter(holds_none), st.integers(0, 10_000), st.booleans())
def test_a_message_that_is_cut_anywhere_is_told_of(bodies, place, slowly):
    """Whatever of it had come; only its very end, behind the last boundary, may lack."""
    data = message(bodies, end=b"--")
    short = data[: place % len(data)]
    with pytest.raises(MultipartError, match="cut short"):
        read([bytes([b]) for b in short] if slowly else [short])


def test_a_longer_boundary_is_no_boundary():
    """It begins like ours, and belongs to something inside."""
    inside = b"1\r\n--bb\r\n2\r\n--bb--"
    assert read([message([inside])]) == [inside]


def test_what_is_not_taken_of_a_part_is_passed_over():
    """The next part is whole."""
    parts = iter(Multipart([message([b"first" * 99, b"second"])], "b"))
    next(parts)
    assert b"".join(next(parts)) == b"second"


def test_a_part_of_any_length_takes_little_memory():
    """Of 64 MB in pieces no more is held back than a boundary is long."""
    chunk = bytes(1 << 16)
    whole = Multipart([b"--b\r\n\r\n", *[chunk] * 1024, b"\r\n--b--"], "b")
    pieces = [len(piece) for part in whole for piece in part]
    assert sum(pieces) == 1 << 26
    assert max(pieces) <= len(chunk) + len(b"\r\n--b") + MAX_PADDING + 2


def test_headers_without_end_are_refused():
    """They are held until they end, so they have to; no more is read of them than that takes."""
    endless = (b"--b\r\n" if i == 0 else b"A" * 1024 for i in count())
    with pytest.raises(MultipartError, match="do not end"):
        read(endless)
    assert len(next(endless)) == 1024


@pytest.mark.parametrize(
    ("said", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="a b"', "a b"),
        ("Multipart/Related;boundary=x;type=application/dicom", "x"),
        ("multipart/related; start-info=y; BOUNDARY=z", "z"),
    ],
)
def test_the_boundary_is_found(said, boundary):
    """Quoted or not, in any place."""
    assert boundary_of(said) == boundary


@pytest.mark.parametrize(
    "said",
    [
        "",
        "text/html",
        "application/dicom; boundary=x",
        "multipart/related",
        "multipart",
        "multipart/related; boundary*=''x; boundary*0*=x",
    ],
)
def test_what_is_no_multipart_message_is_refused(said):
    """A page to log in, as portals send one, is none."""
    with pytest.raises(MultipartError, match="no multipart"):
        boundary_of(said)
