"""Files changed a little: bytes of any file, and the parts of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]


def change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Write 1 to 8 bytes anew, anywhere; they may come out as they were."""
    changed = bytearray(data)
    for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
        changed[place] = int(rng.integers(256))
    return bytes(changed)


def flip_bit(data: bytes, rng: np.random.Generator) -> bytes:
    """Turn one bit."""
    changed = bytearray(data)
    changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """Keep the beginning."""
    return data[: int(rng.integers(len(data)))]


def extend(data: bytes, rng: np.random.Generator) -> bytes:
    """Add zeros, or noise, at the end."""
    count = int(rng.integers(1, 4097))
    return data + (bytes(count) if rng.integers(2) else rng.bytes(count))


def move_block(data: bytes, rng: np.random.Generator) -> bytes:
    """Write a block over another place."""
    size = int(rng.integers(1, max(2, len(data) // 4)))
    source, target = rng.integers(len(data) - size, size=2)
    return data[:target] + data[source : source + size] + data[target + size :]


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and the bytes behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def joined(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    """Return a safetensors file of a header and the bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def change_header_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Write a few bytes of the header anew."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    return joined(change_bytes(header, rng), data[8 + len(header) :])


def change_length(data: bytes, rng: np.random.Generator) -> bytes:
    """Let the header claim another length: a little more or less, or one of up to 64 bits."""
    length = int.from_bytes(data[:8], "little")
    claimed = length + int(rng.integers(-16, 17)) if rng.integers(2) else int(rng.integers(2**63)) * 2
    return max(claimed, 0).to_bytes(8, "little") + data[8:]


def edit_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Rename a tensor, call it of another type or shape, leave it out, exchange two places, or add metadata."""
    header, body = parts(data)
    names = [name for name in header if name != "__metadata__"]
    first, second = (names[int(i)] for i in rng.integers(len(names), size=2))
    edit = int(rng.integers(6))
    if edit == 0:
        header[first + "x"] = header.pop(first)
    elif edit == 1:
        header[first]["dtype"] = str(rng.choice(["F64", "F16", "BF16", "I32", "U8", "F33"]))
    elif edit == 2:
        header[first]["shape"] = header[first]["shape"][::-1] + [1] * int(rng.integers(2))
    elif edit == 3:
        del header[first]
    elif edit == 4:
        places = header[first]["data_offsets"], header[second]["data_offsets"]
        header[second]["data_offsets"], header[first]["data_offsets"] = places
    else:
        header["__metadata__"] = {"format": "pt", "note": "x" * int(rng.integers(64))}
    return joined(header, body)


def swap_tensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Exchange the values of two tensors of one size, if there are such."""
    header, body = parts(data)
    places = [tuple(of["data_offsets"]) for name, of in header.items() if name != "__metadata__"]
    first = places[int(rng.integers(len(places)))]
    alike = [place for place in places if place[1] - place[0] == first[1] - first[0] and place != first]
    if not alike:
        return data
    (a, b), (c, d) = sorted([first, alike[int(rng.integers(len(alike)))]])
    return joined(data[8 : len(data) - len(body)], body[:a] + body[c:d] + body[b:c] + body[a:b] + body[d:])


OF_BYTES: tuple[Mutation, ...] = (change_bytes, flip_bit, cut, extend, move_block)
OF_SAFETENSORS: tuple[Mutation, ...] = (*OF_BYTES, change_header_bytes, change_length, edit_header, swap_tensors)


def mutate(data: bytes, ways: tuple[Mutation, ...], rng: np.random.Generator) -> tuple[str, bytes]:
    """Return a mutation's name and what it makes of the data; it may be the same."""
    way = ways[int(rng.integers(len(ways)))]
    return way.__name__.replace("_", " "), way(data, rng)
