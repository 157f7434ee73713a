"""Ways to spoil bytes, of any file and of compressed frames; each takes its source of chance and returns a copy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

ByteChange = Callable[[bytes, Random], bytes]

EXTREME_WORDS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]

# ---- of any bytes


def flip_bits(content: bytes, rng: Random) -> bytes:
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _run(content: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice([1, 2, 4, 8, 16, 64]))


def replace_run(content: bytes, rng: Random) -> bytes:
    start, stop = _run(content, rng)
    filling = rng.choice([bytes(stop - start), b"\xff" * (stop - start), rng.randbytes(stop - start)])
    return content[:start] + filling + content[stop:]


def delete_run(content: bytes, rng: Random) -> bytes:
    start, stop = _run(content, rng)
    return content[:start] + content[stop:]


def insert_run(content: bytes, rng: Random) -> bytes:
    start, stop = _run(content, rng)
    return content[:start] + rng.randbytes(stop - start) + content[start:]


def repeat_run(content: bytes, rng: Random) -> bytes:
    start, stop = _run(content, rng)
    to = rng.randrange(len(content))
    return content[:to] + content[start:stop] + content[to:]


def exchange_runs(content: bytes, rng: Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(content) + 1) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def truncate(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content))]


def append_junk(content: bytes, rng: Random) -> bytes:
    return content + rng.choice([rng.randbytes(rng.randrange(1, 99)), content, bytes(4096)])


def extreme_word(content: bytes, rng: Random) -> bytes:
    """Put an extreme number, of either byte order, where it does most harm: mostly near the beginning."""
    at = rng.randrange(min(len(content), rng.choice([32, 128, len(content)])))
    word = struct.pack(rng.choice(["<I", ">I"]), rng.choice(EXTREME_WORDS))
    word = rng.choice([word, word.strip(b"\0") or b"\0\0"])
    return content[:at] + word + content[at + len(word) :]


# ---- of codestreams


def _marker(content: bytes, rng: Random) -> int:
    """Return where some marker begins, or any place if there is none."""
    found = [
        at for at in range(min(len(content) - 1, 4096)) if content[at] == 0xFF and content[at + 1] not in (0, 0xFF)
    ]
    return rng.choice(found or [rng.randrange(len(content))])


def insert_marker(content: bytes, rng: Random) -> bytes:
    at = rng.choice([_marker(content, rng), rng.randrange(len(content))])
    return content[:at] + bytes([0xFF, rng.randrange(0x30, 0x100)]) + content[at:]


def remove_marker(content: bytes, rng: Random) -> bytes:
    at = _marker(content, rng)
    return content[:at] + content[at + 2 :]


def change_marker(content: bytes, rng: Random) -> bytes:
    at = _marker(content, rng)
    return content[: at + 1] + bytes([rng.randrange(256)]) + content[at + 2 :]


def lie_in_segment(content: bytes, rng: Random) -> bytes:
    """Change the length behind a marker, or one of the first fields behind it."""
    at = _marker(content, rng) + rng.choice([2, 2, 3, *range(4, 24)])
    return content[:at] + struct.pack(">H", rng.choice(EXTREME_WORDS) & 0xFFFF) + content[at + 2 :]


def flip_in_head(content: bytes, rng: Random) -> bytes:
    return flip_bits(content[:96], rng) + content[96:]


BYTE_CHANGES: tuple[ByteChange, ...] = (
    *(flip_bits, replace_run, delete_run, insert_run, repeat_run, exchange_runs, truncate, append_junk, extreme_word),
)
STREAM_CHANGES: tuple[ByteChange, ...] = (
    *BYTE_CHANGES,
    *(insert_marker, remove_marker, change_marker, lie_in_segment, flip_in_head),
)
