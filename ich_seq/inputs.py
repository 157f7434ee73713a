"""What is given to be read: folders, files, archives and DICOMDIRs, many at once, into one list of DICOM files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from ich_seq import UsageError
from ich_seq.archives import is_archive, member_names
from ich_seq.dicom_files import opened, read_syntax, seek_dataset
from ich_seq.dicomdir import Finder, NamedFile, named_files
from ich_seq.reasons import Reason, Refused, Unused
from ich_seq.streams import lenient

Given = str | Path | Iterable[str | Path]
"""One path, or several."""

MAX_NAMED = 3
"""Inputs, or studies, that a message names."""


class InputFile(NamedTuple):
    """One DICOM file, as yet unread: the file on disk, the name below the inputs that reports give it, the member."""

    path: Path
    file: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of all inputs: `sources` to read, and what is known to be `unused` before anything is read."""

    sources: tuple[InputFile, ...]
    unused: tuple[Unused, ...]


def as_paths(given: Given) -> tuple[Path, ...]:
    """Return one path or several as several. Raises UsageError if there is none."""
    paths = (Path(given),) if isinstance(given, str | Path) else tuple(Path(path) for path in given)
    if not paths:
        raise UsageError("No input is given; name files or folders.")
    return paths


def named(given: Given) -> str:
    """Return inputs as a message names them."""
    paths = [str(path) for path in as_paths(given)]
    return ", ".join(paths[:MAX_NAMED]) + (f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else "")


def check_input(given: Given, out: Path | None = None) -> None:
    """Raise UsageError if an input is not there, or is `out`, before anything else is done or written."""
    for root in as_paths(given):
        try:
            root.stat()
        except OSError as error:
            raise UsageError(f"{root} cannot be read ({error.strerror}); give a folder of DICOM files.") from error
        if out is not None and identity_on_disk(out) == identity_on_disk(root):
            raise UsageError(f"--out is the folder of the input, {root}; choose another.")


def identity_on_disk(path: Path) -> tuple[int, int] | None:
    """Return what tells one file or folder from all others, whatever links lead to it; None: out of reach."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def list_inputs(given: Given, skip: Path | None = None, called: Callable[[str], str] = str) -> Listing:
    """Return every file of the inputs once: those below folders, the members of archives, those a DICOMDIR names.

    The order in which inputs are given changes nothing. `called` makes of a file's path below the deepest folder that
    holds all inputs the name for reports. The folder `skip` is passed over. Raises UsageError as `check_input` does.
    """
    check_input(paths := as_paths(given))
    roots = {_settled(root): root for root in sorted(paths)}
    top = Path(os.path.commonpath([place if roots[place].is_dir() else place.parent for place in roots]))
    visited = set() if skip is None else {identity_on_disk(skip)}
    found: dict[str, InputFile | Unused] = {}
    for place in sorted(roots):
        below = _Below(roots[place], place.relative_to(top), called)
        for item in _of_root(below, visited):
            found.setdefault(item.file, item)
    unused = tuple(item for item in found.values() if isinstance(item, Unused))
    return Listing(tuple(item for item in found.values() if isinstance(item, InputFile)), unused)


def _settled(root: Path) -> Path:
    """Return a path without links on the way to it; a file keeps the name by which it was given."""
    return root.resolve() if root.is_dir() else root.parent.resolve() / root.name


@dataclass(frozen=True, slots=True)
class _Below:
    """One input: the path by which it was given, its name below all inputs, and what makes names for reports."""

    root: Path
    name: PurePath
    called: Callable[[str], str]

    def source(self, path: Path, member: str = "") -> InputFile:
        """Return a file of this input; a DICOMDIR's are below its folder."""
        name = self._name(path)
        return InputFile(path, self.called(f"{name}/{member}" if member else name), member)

    def unused(self, path: Path, reason: Reason, detail: str, study_uid: str = "") -> Unused:
        """Return the verdict on a file of this input that is not read."""
        return Unused(self.called(self._name(path)), reason, detail, study_uid)

    def _name(self, path: Path) -> str:
        if path == self.root:
            return self.name.as_posix()
        whole = self.root.is_dir()
        base, name = (self.root, self.name) if whole else (self.root.parent, self.name.parent)
        return (name / path.relative_to(base)).as_posix()


def _of_root(below: _Below, visited: set[tuple[int, int] | None]) -> Iterator[InputFile | Unused]:
    root = below.root
    if not root.is_dir() and (index := _directory_of(root)) is not None:
        yield from _of_directory(below, index)
        return
    for path in list_files(root, visited=visited):
        yield from _of_archive(below, path) if _looks_like_archive(path) else (below.source(path),)


def _looks_like_archive(path: Path) -> bool:
    with suppress(OSError):  # which is told when it is read
        return is_archive(path)
    return False


def _of_archive(below: _Below, path: Path) -> Iterator[InputFile | Unused]:
    """Yield the members of an archive, or what is wrong with it."""
    try:
        members = member_names(path)
    except Refused as refusal:
        yield below.unused(path, refusal.reason, refusal.detail)
        return
    except OSError as error:
        yield below.unused(path, Reason.UNREADABLE, f"The archive cannot be read: {error.strerror or error}.")
        return
    if not members:
        yield below.unused(path, Reason.OTHER_FILE, "An archive that holds no file.")
    yield from (below.source(path, member) for member in members)


def _directory_of(path: Path) -> list[NamedFile] | Refused | None:
    """Return what a DICOMDIR names, or why that cannot be told; None for any other file."""
    try:
        with lenient(), opened(path) as (stream, _, _):
            return named_files(stream) if _is_directory(stream, path) else None
    except Refused as refusal:
        return refusal if refusal.reason is Reason.DAMAGED_HEADER else None
    except OSError as error:
        if error.errno is None:  # pydicom's own, of a sequence that ends too early
            return Refused(Reason.DAMAGED_HEADER, "The DICOMDIR ends within a sequence; copy it again.")
        return None  # which is told when it is read
    except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on the file
        return Refused(Reason.DAMAGED_HEADER, f"The DICOMDIR cannot be parsed ({type(error).__name__}).")


def _is_directory(stream: BinaryIO, path: Path) -> bool:
    """Tell whether a file is a DICOMDIR; what is wrong with any other is told when it is read."""
    try:
        seek_dataset(stream, path)
        read_syntax(stream)
    except Exception as error:
        return isinstance(error, Refused) and error.reason is Reason.DICOMDIR
    return False


def _of_directory(below: _Below, index: list[NamedFile] | Refused) -> Iterator[InputFile | Unused]:
    """Yield the DICOMDIR itself, which is no slice, and the files that it names."""
    if isinstance(index, Refused):
        yield below.unused(below.root, index.reason, index.detail)
        return
    yield below.unused(below.root, Reason.DICOMDIR, "A DICOMDIR; the files that it names were read.")
    finder = Finder(below.root.parent)
    for parts, study_uid in index:
        path = finder.find(parts)
        if path is None:
            detail = "The DICOMDIR names it, but it is not there, or would lie outside of its folder; copy the whole."
            yield below.unused(below.root.parent / "\\".join(parts), Reason.MISSING_FILE, detail, study_uid)
        else:
            yield below.source(path)


def list_files(root: Path, *, visited: set[tuple[int, int] | None] | None = None) -> list[Path]:
    """Return every file below a folder (or the file itself), sorted by name, links followed but no loop twice.

    A folder that cannot be listed stands for the files it hides; `visited` is as `walk` has it.
    """
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    for folder, names in walk(root, set() if visited is None else visited, lambda e: found.append(Path(e.filename))):
        found.extend(Path(folder, name) for name in names)
    return sorted(found)


def walk(
    root: Path, visited: set[tuple[int, int] | None], hidden: Callable[[OSError], object]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below one, itself first, and the names of its files; links are followed but no loop twice.

    Folders `visited`, by `identity_on_disk`, are passed over, and those seen now are added to them. `hidden` is called
    with the error where a folder cannot be listed.
    """
    for folder, folders, names in os.walk(root, followlinks=True, onerror=hidden):
        folders.sort()  # which of several links to a folder is followed must not depend on the disk
        here = identity_on_disk(Path(folder))
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        yield folder, names
