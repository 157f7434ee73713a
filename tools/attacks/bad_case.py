"""What a hand-made bad input is: who writes it, and what may become of each of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Content = bytes | Callable[[], bytes]
"""The bytes of a file, or what makes them where they are too many to be kept."""

USED = "used"
"""A slice with the very HU that were drawn."""

ALTERED = "altered"
"""A slice that was used with other HU than those drawn: right only where the header asks for them."""

Verdicts = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Case:
    """A bad input: `build` writes its files into a folder; `expected` has the acceptable verdicts of each by its name.

    A verdict is a reason code, USED or ALTERED. `outsider` cases are read as a user without rights to the files.
    """

    family: str
    name: str
    build: Callable[[Path], object]
    expected: Verdicts
    outsider: bool = False


def one(family: str, name: str, content: Content, *expected: str, file: str = "bad.dcm") -> Case:
    """Return a case of one file."""
    return many(family, name, {file: (content, *expected)})


def many(family: str, name: str, files: Mapping[str, tuple[Content | str, ...]]) -> Case:
    """Return a case of several files by name: for each its content and then its acceptable verdicts."""
    contents = {file: content for file, (content, *_) in files.items()}

    def build(folder: Path) -> None:
        for file, content in contents.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content() if callable(content) else bytes(content))

    return Case(family, name, build, expecting({file: verdicts for file, (_, *verdicts) in files.items()}))


def expecting(verdicts: Mapping[str, Iterable[str]]) -> Verdicts:
    """Return the acceptable verdicts of files as a case holds them."""
    return {file: frozenset(acceptable) for file, acceptable in verdicts.items()}
