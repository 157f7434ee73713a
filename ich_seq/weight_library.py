"""A library of weights in a folder of the user's, so that weights have names; each is known by its SHA-256.

    LIBRARY/                          the user's data folder, or what ICH_SEQ_WEIGHTS says
        NAME/
            weights.json              what it is, whence, under which licence, when it came, SHA-256 of its files
            encoder.safetensors       of an encoder: tensors under timm's names, as they were given
            bundle.json, ...          of a bundle: its files (see `bundle`)

An entry comes and goes as a whole: it is made beside the library's entries and renamed into its place.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ich_seq import ArtefactError, OutputError, UsageError
from ich_seq.files import (
    MAX_WHOLE_BYTES,
    PARTIAL,
    growing_file,
    locked_folder,
    make_folder,
    open_file,
    plain_name,
    read_json,
    remove_folder,
    sha256_file,
    write_json,
)

VARIABLE = "ICH_SEQ_WEIGHTS"
SCHEMA = "ich-seq weights 1"
RECORD, ENCODER_FILE, CARD_FILE = "weights.json", "encoder.safetensors", "bundle.json"
ENCODER, BUNDLE = "encoder", "bundle"
PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SHIPPED = "ct-ich"
"""The name of the bundle that lies in the package, in bundles/ct-ich: of 62 patients, for a first look."""

SPOKEN_FOR = ("imagenet", "random", "hub")
"""What encoder.weights means by these words is no entry."""

STAGED, REPLACED = ".staged", ".replaced"
"""Suffixes of hidden folders: an entry that is being made, and one that another takes the place of."""

CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the library says of weights: `arch` is timm's name of the network, `files` their SHA-256 by name."""

    name: str
    kind: str
    source: str
    arch: str
    licence: str | None
    notes: str | None
    added: str
    files: dict[str, str]


def library_folder() -> Path:
    """Return where the library lies, whether it is there or not."""
    from platformdirs import user_data_path

    chosen = os.environ.get(VARIABLE)
    return Path(chosen) if chosen else user_data_path("ich-seq", appauthor=False) / "weights"


def checked_name(name: str) -> str:
    """Return the name of an entry. Raises UsageError for one that is not plain, or that settings mean otherwise."""
    if not PLAIN.fullmatch(name) or name.endswith(PARTIAL):  # which is swept away as what a kill left
        raise UsageError(
            f"{name!r:.80} is no name for weights: 1 to 64 of a-z, 0-9 and . _ -, a letter or digit first."
        )
    if name in SPOKEN_FOR:
        raise UsageError(f"{name} means something else as encoder.weights; choose another name.")
    if name == SHIPPED:
        raise UsageError(f"{name} is the bundle that comes with ich-seq; choose another name.")
    return name


def is_shipped(given: Path) -> bool:
    """Tell whether the bundle that comes with the package is meant: by its name, unless a file or folder has it."""
    return str(given) == SHIPPED and not os.path.lexists(given)


def shipped_folder() -> Path:
    """Return the folder of the bundle that comes with the package. Raises UsageError if this installation lacks it."""
    folder = Path(__file__).with_name("bundles") / SHIPPED
    if not (folder / CARD_FILE).is_file():
        raise UsageError(f"This installation of ich-seq lacks its bundle {SHIPPED}; install it again, or name another.")
    return folder


def names(root: Path) -> list[str]:
    """Return the names of all entries, sound or not, in their order."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(p.name for p in root.iterdir() if PLAIN.fullmatch(p.name) and p.is_dir())
    return []


def read_entry(folder: Path) -> Entry:
    """Read the record of an entry. Raises ArtefactError if it is none; its files are not looked at."""
    try:
        record = read_json(folder / RECORD)
        if record.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        entry = Entry(**record)
        texts = (entry.name, entry.kind, entry.source, entry.arch, entry.added, *entry.files.values())
        if not all(isinstance(text, str) for text in texts) or entry.name != folder.name:
            raise ValueError("not the record of this entry")
        needed = {ENCODER: ENCODER_FILE, BUNDLE: CARD_FILE}[entry.kind]
        if needed not in {plain_name(name) for name in entry.files}:
            raise ValueError(f"no {needed}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(
            f"{folder / RECORD} cannot be read ({error}); add the weights again (ich-seq weights add --replace)."
        ) from error
    return entry


def damages(folder: Path) -> list[str]:
    """Return what is wrong with an entry, all of its files read and hashed; nothing if it is as it was added."""
    try:
        entry = read_entry(folder)
    except ArtefactError as error:
        return [str(error)]
    told = []
    for name, sha256 in entry.files.items():
        try:
            if sha256_file(folder / name) != sha256:
                told.append(f"{name} was changed (SHA-256 differs)")
        except OSError as error:
            told.append(f"{name} cannot be read ({error.strerror})")
    others = sorted(path.name for path in folder.iterdir() if path.name not in (RECORD, *entry.files))
    return told + [f"{name} does not belong there" for name in others]


def find(name: str) -> tuple[Entry, Path] | None:
    """Return the entry of this name and its folder; None if there is none. Raises ArtefactError for a bad record."""
    if not PLAIN.fullmatch(name) or not (folder := library_folder() / name).is_dir():
        return None
    return read_entry(folder), folder


def encoder_of_library(name: str, arch: str) -> tuple[Path, str] | None:
    """Return the file of an encoder's weights and its SHA-256; None if the library has nothing of this name.

    Raises UsageError if the entry is a bundle or of another network, ArtefactError if its record is damaged.
    """
    if (found := find(name)) is None:
        return None
    entry, folder = found
    if entry.kind != ENCODER:
        raise UsageError(f"{name} of the library is a bundle, not an encoder's weights; give it to predict --bundle.")
    if entry.arch.partition(".")[0] != arch.partition(".")[0]:
        raise UsageError(f'{name} of the library are weights of {entry.arch}: set encoder.arch = "{entry.arch}".')
    return folder / ENCODER_FILE, entry.files[ENCODER_FILE]


def bundle_folder(given: Path) -> Path:
    """Return the folder of a bundle: the one given, or if there is none that of this name, the package's or library's.

    Raises UsageError if that is no bundle, ArtefactError if its card is not the one that was added.
    """
    if is_shipped(given):
        return shipped_folder()
    if str(given) == SHIPPED and not os.path.lexists(given / CARD_FILE):
        raise UsageError(
            f"What is called {SHIPPED} in this folder is no bundle, and hides the one that comes with ich-seq; start "
            "ich-seq in another folder, or name a bundle by its path."
        )
    if os.path.lexists(given) or (found := find(str(given))) is None:
        return given
    entry, folder = found
    if entry.kind != BUNDLE:
        raise UsageError(f"{given} of the library are an encoder's weights, no bundle; set encoder.weights to it.")
    try:
        changed = sha256_file(folder / CARD_FILE) != entry.files[CARD_FILE]
    except OSError:
        changed = True
    if changed:
        raise ArtefactError(f"{folder / CARD_FILE} is not what was added (SHA-256 differs); add the bundle again.")
    return folder


def absent(name: str) -> UsageError:
    """Return the refusal of a name that is none of the library's, with those like it."""
    root = library_folder()
    known = names(root)
    near = difflib.get_close_matches(name, known, n=3) or known[:5]
    hint = f"; there are {', '.join(near)}" if near else " and is empty"
    return UsageError(f"The library {root} has no weights {name!r:.80}{hint}.")


@contextmanager
def new_entry(root: Path, name: str, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes the entry of this name once the block ends well, or else is gone.

    Raises UsageError for a name that is taken, unless it may be replaced, OutputError if the library cannot be written.
    """
    checked_name(name)
    with locked_folder(root):
        _tidy(root)
        entry = root / name
        if os.path.lexists(entry) and not replace:
            raise UsageError(
                f"The library has weights {name} already; choose another name, or replace them: --replace."
            )
        staged = root / f".{name}{STAGED}"
        make_folder(staged)
        try:
            yield staged
            _put(staged, entry)
        finally:
            if staged.exists():
                remove_folder(staged)


def write_entry(folder: Path, name: str, facts: dict[str, Any]) -> Entry:
    """Write the record of a folder that is to be the entry of this name, which makes it whole; return it."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    entry = Entry(name=name, files=files, **facts)
    write_json(folder / RECORD, {"schema": SCHEMA, **asdict(entry)})
    return entry


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, whole or not at all. Raises UsageError if it cannot be read, OutputError if not written."""
    try:
        file = open_file(source, MAX_WHOLE_BYTES)
    except (OSError, ValueError) as error:  # a path may hold a NUL
        raise UsageError(f"Cannot read {source}: {getattr(error, 'strerror', error)}.") from error
    with file, growing_file(target) as append:
        while chunk := file.read(CHUNK):
            append(chunk)


def _put(staged: Path, entry: Path) -> None:
    """Rename a folder into its place; what stood there goes once it is done."""
    old = entry.with_name(f".{entry.name}{REPLACED}")
    try:
        if os.path.lexists(entry):
            entry.rename(old)
        staged.rename(entry)
    except OSError as error:
        raise OutputError(f"Cannot write {entry}: {error.strerror}.") from error
    if old.exists():
        remove_folder(old)


def _tidy(root: Path) -> None:
    """End what a kill interrupted: an entry that was put aside comes back if nothing took its place."""
    for old in root.glob(f".*{REPLACED}"):
        entry = root / old.name[1:].removesuffix(REPLACED)
        if entry.exists():
            remove_folder(old)
        else:
            old.rename(entry)
    for staged in root.glob(f".*{STAGED}"):
        remove_folder(staged)
