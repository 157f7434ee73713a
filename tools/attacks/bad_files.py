"""Bad inputs as files: other formats in DICOM's clothes, and traps of the file system."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from attacks.bad_archives import zipped
from attacks.bad_case import USED, Case, expecting, many, one
from attacks.bad_headers import TORN
from attacks.dicom_bytes import PRIVATE, element, slice_file, sound_slice

MIB = 1 << 20
FORMATS = {
    "PE": b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0",
    "ELF": b"\x7fELF\x02\x01\x01\0",
    "Mach-O": b"\xcf\xfa\xed\xfe\x07\0\0\x01",
    "Java": b"\xca\xfe\xba\xbe\0\0\0\x34",
    "WebAssembly": b"\0asm\x01\0\0\0",
    "zip": b"PK\x03\x04\x14\0\0\0",
    "7z": b"7z\xbc\xaf\x27\x1c",
    "gzip": b"\x1f\x8b\x08\0",
    "PDF": b"%PDF-1.7\n",
    "TIFF": b"II*\0\x08\0\0\0",
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF89a",
    "HTML": b"<html><script>alert(1)</script>",
    "shell": b"#!/bin/sh\nrm -rf ~\n",
    "SQLite": b"SQLite format 3\0",
    "pickle": b"\x80\x04\x95",
    "bare DICOM": b"\x08\0\x05\0CS\n\0ISO_IR 100",
    "DICM": b"DICM" * 32,
}
"""How files of other formats begin; a preamble may hold any of them."""

SUFFIXES = {"PE": ".exe", "ELF": "", "zip": ".zip", "PDF": ".pdf", "PNG": ".png", "HTML": ".html", "TIFF": ".tif"}


def files() -> list[Case]:
    """Return all cases of files."""
    return [*polyglots(), *file_system(), *names()]


# ---- polyglots


def polyglots() -> Iterator[Case]:
    """A slice is one by its content, whatever its preamble, its end or its name say; nothing else is."""
    family = "polyglots"
    for name, start in FORMATS.items():
        yield one(family, f"a preamble of {name}", slice_file(preamble=start.ljust(128, b"\0")[:128]), USED)
    for name in ("PE", "ELF", "PDF", "HTML", "zip"):
        payload = FORMATS[name] + bytes(range(256)) * 20
        raw = {PRIVATE: element(PRIVATE, "OB", payload)}
        yield one(family, f"{name} behind the pixels", slice_file(tail=payload), USED)
        yield one(family, f"{name} in a private element", slice_file(raw=raw, preamble=payload[:128]), USED)
    yield one(family, "an archive behind the pixels", slice_file(tail=zipped({"../../evil.dcm": b"evil"})), USED)
    yield one(family, "another slice behind the pixels", slice_file(tail=sound_slice()), USED)
    for file in (
        "slice.exe",
        "slice.zip",
        "slice.pdf",
        "slice.jpg",
        "slice.dcm.gz",
        "slice",
        ".slice",
        "slice.sh",
        "0001",
    ):
        yield one(family, f"a slice named {file}", slice_file(), USED, file=file)
    for name, suffix in SUFFIXES.items():
        content = FORMATS[name] + bytes(range(256)) * 20
        yield one(family, f"{name} named .dcm", content, "not_dicom")
        reason = {"": "not_dicom", ".zip": "archive"}.get(suffix, "other_file")
        yield one(family, f"{name} by its own name", content, reason, file=f"file{suffix}")
    for name in ("zip", "PDF", "PE"):
        noise = FORMATS[name].ljust(128, b"\0") + b"DICM" + bytes(range(256)) * 8
        yield one(family, f"{name} with a marker, and noise", noise, *TORN)
    yield one(family, "a bare data set of noise", b"\x08\0" + bytes(range(256)) * 8, *TORN, "not_ct")
    yield one(family, "a line of text named .dcm", b"Not a slice.\n", "not_dicom")


# ---- the file system


def trap(name: str, build: Callable[[Path], object], *expected: str) -> Case:
    """Return a case of the file system, whose one file ends as one verdict."""
    return Case("file system", name, build, expecting({"bad.dcm": expected}))


def linked(target: str, name: str, *expected: str) -> Case:
    """Return a case of a link; `target` is as the link has it."""
    return trap(name, lambda folder: (folder / "bad.dcm").symlink_to(target), *expected)


def file_system() -> Iterator[Case]:
    """What is no file, no file that ends, or none that may be read."""
    yield trap("a pipe", lambda folder: os.mkfifo(folder / "bad.dcm"), "not_regular")
    yield trap("a socket", lambda folder: os.mknod(folder / "bad.dcm", stat.S_IFSOCK | 0o600), "not_regular")
    for device in ("zero", "null", "full", "random", "tty"):
        yield linked(f"/dev/{device}", f"a link to the device {device}", "not_regular")
    yield linked("/proc/self/mem", "a link to the memory", "unreadable")
    yield linked("/proc/self/environ", "a link to the environment", "not_dicom", "unreadable")
    yield linked("/etc/passwd", "a link to another's file", "not_dicom")
    yield linked("bad.dcm", "a link to itself", "unreadable")
    yield linked("nowhere.dcm", "a link to nothing", "unreadable")
    yield linked("x" * 300, "a link to a name that is too long", "unreadable")
    for mib in (129, 4096, MIB):
        yield trap(f"a sparse file of {mib} MiB", _sparse(b"", mib * MIB), "too_large", "not_dicom")
        yield trap(f"a slice and a hole, {mib} MiB", _sparse(slice_file(), mib * MIB), "too_large")
    yield trap("a hole of 100 MiB", _sparse(b"", 100 * MIB), "not_dicom")
    yield trap("a slice and a hole of 100 MiB", _sparse(slice_file(), 100 * MIB), USED)
    yield one("file system", "an empty file", b"", "not_dicom")
    yield from _links_and_folders()


def _links_and_folders() -> Iterator[Case]:
    for name, build, expected in (
        (
            "a link to the sound slice",
            lambda folder: (folder / "z.dcm").symlink_to("sound.dcm"),
            {"z.dcm": "duplicate"},
        ),
        ("a hard link", lambda folder: (folder / "z.dcm").hardlink_to(folder / "sound.dcm"), {"z.dcm": "duplicate"}),
        ("a link to its own folder", lambda folder: (folder / "loop").symlink_to("."), {}),
        ("two links to each other", _link_in_a_ring, {"a.dcm": "unreadable", "b.dcm": "unreadable"}),
        ("a ring of folders", _ring_of_folders, {"a/b/bad.dcm": USED}),
        ("a film of 4 GiB", _sparse(b"film", 4096 * MIB, "film.mp4"), {"film.mp4": "other_file"}),
        ("an empty folder named .dcm", lambda folder: (folder / "bad.dcm").mkdir(), {}),
    ):
        yield Case("file system", name, build, expecting({file: [verdict] for file, verdict in expected.items()}))
    yield many("file system", "a slice in a folder named .dcm", {"bad.dcm/bad.dcm": (slice_file(), USED)})
    yield many("file system", "a slice 60 folders deep", {"d/" * 60 + "bad.dcm": (slice_file(), USED)})
    for name, mode, file in (
        ("a file that may not be read", 0, "bad.dcm"),
        ("a folder that may not be listed", 0o300, "bad"),
        ("a folder that may not be entered", 0o644, "bad/bad.dcm"),
    ):
        build = _forbid_folder(mode) if mode else _forbid_file
        yield Case("file system", name, build, expecting({file: ["unreadable"]}), outsider=True)


def _link_in_a_ring(folder: Path) -> None:
    (folder / "a.dcm").symlink_to("b.dcm")
    (folder / "b.dcm").symlink_to("a.dcm")


def _ring_of_folders(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "bad.dcm").write_bytes(slice_file())
    for place in ("a/up", "a/b/top", "a/b/again"):
        (folder / place).symlink_to(folder)


def _forbid_file(folder: Path) -> None:
    (folder / "bad.dcm").write_bytes(slice_file())
    (folder / "bad.dcm").chmod(0)


def _forbid_folder(mode: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "bad").mkdir()
        (folder / "bad" / "bad.dcm").write_bytes(slice_file())
        (folder / "bad").chmod(mode)

    return build


def _sparse(content: bytes, size: int, file: str = "bad.dcm") -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / file).write_bytes(content)
        os.truncate(folder / file, size)

    return build


def names() -> Iterator[Case]:
    """Names that a shell, a terminal, a table or a page might take for something else."""
    for name, file in (
        ("a line break", "a\nb.dcm"),
        ("a terminal's escape", "\x1b[2J.dcm"),
        ("markup", "<script>.dcm"),
        ("a formula", "=cmd|A0.dcm"),
        ("an option", "--out.dcm"),
        ("blanks", "  .dcm "),
        ("no UTF-8", os.fsdecode(b"\xff\xfe.dcm")),
        ("255 letters", "x" * 251 + ".dcm"),
        ("an emoji", "\U0001f600.dcm"),
        ("a mark that turns the text", "\u202emcd.exe"),
        ("dots", "....dcm"),
        ("a backslash", "..\\..\\a.dcm"),
    ):
        yield one("file system", f"a slice whose name is {name}", slice_file(), USED, file=file)
        hidden = "other_file" if file.startswith(".") else "not_dicom"
        if file.endswith(".dcm"):
            yield one("file system", f"no slice, whose name is {name}", b"no slice", hidden, file=file)
    copies = {"\x1b[2J.dcm": (slice_file(), USED), "z.dcm": (slice_file(), "duplicate")}
    yield many("file system", "a copy of a file whose name is a terminal's escape", copies)
