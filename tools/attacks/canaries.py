"""Words found nowhere else, and a search for them in bytes, in whatever encoding they were carried off."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

CONSONANTS = "bcdfghjklmnpqrstvwxz"
PREFIX_LETTERS, OWN_LETTERS = 8, 4
DATA_URI = re.compile(rb"data:[\w/+.-]*;base64,([0-9A-Za-z+/=]+)")


class Flock:
    """Canaries by name, made when they are first asked for: all begin alike, so that they are searched for at once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"canaries {seed}")
        self._prefix = "".join(self._random.choices(CONSONANTS, k=PREFIX_LETTERS)).capitalize()
        self.words: dict[str, str] = {}

    def word(self, name: str) -> str:
        """Return the canary of this name."""
        while name not in self.words:
            word = self._prefix + "".join(self._random.choices(CONSONANTS, k=OWN_LETTERS))
            if word not in self.words.values():
                self.words[name] = word
        return self.words[name]

    def bytes(self, name: str) -> bytes:
        """Return the canary of this name as ASCII."""
        return self.word(name).encode()

    @cached_property
    def _prefixes(self) -> set[bytes]:
        return {code for codes in encodings(self._prefix).values() for code in codes}

    def found_in(self, data: bytes) -> Iterator[str]:
        """Yield the names of canaries that are in these bytes, each with the encoding it is in."""
        lower = data.lower()
        if not any(prefix in data or prefix in lower for prefix in self._prefixes):
            return
        for name, word in self.words.items():
            for encoding, codes in encodings(word).items():
                if any(code in data or code in lower for code in codes):
                    yield f"{name} ({encoding})"


def encodings(word: str) -> dict[str, set[bytes]]:
    """Return the forms an ASCII word may have in bytes or in their lower case."""
    cases = [case.encode() for case in (word, word.lower(), word.upper())]
    hexed = [case.hex() for case in cases]
    return {
        "plain": set(cases),
        "reversed": {case[::-1] for case in cases},
        "UTF-16": {case.decode().encode(f"utf-16-{order}") for case in cases for order in ("le", "be")},
        "base64": {form for case in cases for form in _base64(case)},
        "hex": {text.encode() for text in hexed},
        "percent": {"".join(f"%{text[i : i + 2]}" for i in range(0, len(text), 2)).encode() for text in hexed},
    }


def _base64(data: bytes) -> Iterator[bytes]:
    """Yield what base64 makes of bytes wherever they stand, less what depends on their neighbours."""
    for before in range(3):
        first, last = (0, 2, 3)[before], (before + len(data)) * 8 // 6
        yield base64.b64encode(bytes(before) + data)[first:last]


def contents_of(path: Path) -> Iterator[bytes]:
    """Yield what is in a file: its bytes, and what is packed in them."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".html":
        yield from (base64.b64decode(packed) for packed in DATA_URI.findall(data))
    elif path.suffix == ".parquet":
        yield pd.read_parquet(path).to_csv().encode()
        yield repr(pq.read_schema(path).metadata).encode()
