"""Files that are whole or absent: atomic writes, hashes, one process a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from ich_seq import OutputError, UsageError

RESULTS = {
    "manifest.json": "a feature store",
    "plan.json": "a run of train-cnn",
    "watch.jsonl": "results of watch",
    "slices.csv": "results of predict",
    "bundle.json": "a bundle",
    "model.json": "a bundle that was exported",
    "exploration.json": "results of explore",
}
"""By which file a folder is known as the result of a command whose other files have names that others take too."""

ANALYSES = {"evaluation.json": "results of evaluate"}
"""As above, of what may lie beside the results of others, and of most of whose files nobody else has the names."""

PARTIAL = ".ich-seq-partial"
"""Suffix of a file or folder for the time of a run; leftovers are removed when the folder is opened again."""

UNWRITTEN = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
"""Controls that JSON allows, and halves of letters, as names that are no UTF-8 have."""

MAX_JSON_BYTES = 1 << 26
"""A description of ours has some kilobytes; that of a run with a million rejected files has less than this."""

MAX_WHOLE_BYTES = 1 << 31
"""What is read whole, such as weights, has to fit into memory more than once."""

MAX_HASHED_BYTES = 1 << 35
"""A longer file is none of ours, and often has nothing in it but its length."""


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of these bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits, in constant memory. Raises OSError as `open_file` does."""
    with open_file(path, MAX_HASHED_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_unwaiting(path: Path) -> BufferedReader:
    """Open a file to read, or what is no file any more since it was looked at: a pipe does not make us wait."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - a descriptor


def open_file(path: Path, most_bytes: int) -> BufferedReader:
    """Open a file to read. Raises OSError, also for a pipe or device, which would not end, and beyond `most_bytes`."""
    file = open_unwaiting(path)
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"more than {most_bytes} bytes")
    except OSError:
        file.close()
        raise
    return file


def read_whole(path: Path, most_bytes: int = MAX_WHOLE_BYTES) -> bytes:
    """Return a file's bytes. Raises OSError as `open_file` does."""
    with open_file(path, most_bytes) as file:
        return file.read()


def plain_name(name: Any) -> str:
    """Return a file's name. Raises ValueError if it is more than a name: a record must not reach outside its folder."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{name!r} is no plain file name")
    return name


def read_json(path: Path) -> Any:
    """Return the JSON values of a file of ours. Raises OSError, and ValueError for what `write_json` does not write."""
    return parse_json(read_whole(path, MAX_JSON_BYTES).decode())  # of bytes json takes UTF-16 too


def parse_json(data: bytes | str) -> Any:
    """Return JSON values. Raises ValueError for what is no JSON, NaN, a name twice, and nesting without end."""
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number beyond all bounds")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name that stands twice")
    return values


def short_hash(text: str) -> str:
    """Return 16 hex digits for a name on disk; UIDs and patient names never become file names."""
    return sha256_bytes(text.encode("utf-8", "surrogateescape"))[:16]


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that it is seen whole or not at all, even through a crash.

    The bytes go to a temporary name in the same folder, reach the disk, and are then renamed. What is `private` can at
    no time be read by others than the owner. Raises OutputError naming the path if the disk is full or the folder
    cannot be written.
    """
    with growing_file(path, private=private) as append:
        append(data)


@contextmanager
def growing_file(path: Path, *, private: bool = False) -> Iterator[Callable[[bytes], None]]:
    """Give what appends to a file that is seen whole, once the block ends well, or not at all.

    For what is too long to be held in memory. Raises OutputError as `write_bytes` does.
    """
    partial = path.with_name(path.name + PARTIAL)
    with ExitStack() as opened:
        with writing(path):
            file = opened.enter_context(open(partial, "wb", opener=_owner_only if private else None))

        def append(data: bytes) -> None:
            with writing(path):
                file.write(data)

        try:
            yield append
            with writing(path):
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
                _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # closing writes what is left, and would fail on the same disk with its own error
                file.close()
            with suppress(OSError):
                partial.unlink()
            raise


def _owner_only(path: str, flags: int) -> int:
    """Open a file to write that others cannot read, from its first moment on."""
    return os.open(path, flags, 0o600)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into an OutputError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror}. Free space or choose another --out.") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines: sorted keys, two blanks, no NaN, a line feed at the end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    plain = UNWRITTEN.sub(lambda letter: f"\\u{ord(letter[0]):04x}", text)
    write_bytes(path, (plain + "\n").encode())


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises OutputError naming the path."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot create the folder {path}: {error.strerror}. Choose another --out.") from error


def remove(paths: Iterable[Path]) -> None:
    """Remove files that may be there. Raises OutputError naming the one that cannot be removed."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"Cannot remove {path}: {error.strerror}. Choose another --out.") from error


def remove_folder(path: Path) -> None:
    """Remove a folder and all in it. Raises OutputError naming it if that cannot be done."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise OutputError(f"Cannot remove {path}: {error.strerror}. Choose another --out.") from error


def put_in_place(made: Path, path: Path) -> None:
    """Give a file or folder that is finished its name, and remove an older folder of that name first.

    Raises OutputError naming the path if that cannot be done.
    """
    if path.is_dir():
        remove_folder(path)
    with writing(path):
        made.replace(path)
        _sync_folder(path.parent)


@contextmanager
def locked_folder(path: Path, *, wait_s: float = 0) -> Iterator[None]:
    """Hold an output folder for this process alone; create it, and sweep what a crash left half-written.

    Raises OutputError if another process holds it, at once or after `wait_s`. The lock goes with the
    process, however it ends.
    """
    from filelock import FileLock, Timeout

    make_folder(path)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(path / ".lock", timeout=wait_s))
            for leftover in path.glob(f"*{PARTIAL}"):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
        except Timeout as error:
            told = f"Another process is writing to {path}; wait for it or choose another --out."
            if wait_s:
                told = f"Another process has been writing to {path} for {wait_s:g} s; run the same command again later."
            raise OutputError(told) from error
        except OSError as error:
            raise OutputError(f"Cannot write to {path}: {error.strerror}. Choose another --out.") from error
        yield  # outside the try: what the work itself raises is not the lock's


def spare_others(out: Path, own: str = "") -> None:
    """Raise UsageError if a folder is another command's result, which this one would write over; `own` marks ours."""
    for mark in RESULTS:
        if mark != own:
            spare_result(out, mark)


def spare_result(out: Path, mark: str) -> None:
    """Raise UsageError if a folder is the result of the command that leaves this mark."""
    if os.path.lexists(out / mark):
        kind = (RESULTS | ANALYSES)[mark]
        raise UsageError(f"{out} holds {kind}, which this command would destroy; choose another --out.")


def append_line(path: Path, line: str) -> None:
    """Append one line to a journal and see it to the disk. Raises OutputError naming the path."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
