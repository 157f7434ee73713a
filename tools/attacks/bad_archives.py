"""Bad inputs that hold other files: archives and DICOMDIRs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from attacks.bad_case import USED, Case, expecting, many, one
from attacks.bad_headers import TORN
from attacks.dicom_bytes import dataset, element, file_head, slice_file
from attacks.dicom_elements import UNDEFINED, item

MIB = 1 << 20


def containers() -> list[Case]:
    """Return all cases of archives and directories."""
    return [*archives(), *directories()]


# ---- archives


def zipped(entries: dict[str, bytes], *, mode: int = 0o644, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip file of entries by name, the names as they are."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            information = zipfile.ZipInfo(name)
            information.external_attr, information.compress_type = mode << 16, method
            archive.writestr(information, content)
    return stream.getvalue()


def tarred(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """Return a tar file of one entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        information = tarfile.TarInfo(name)
        information.type, information.linkname, information.size = kind, target, 0 if target else 4
        archive.addfile(information, io.BytesIO(b"evil"))
    return stream.getvalue()


def zips() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return zip archives by name: their bytes, and the verdict on each member; "" stands for the archive itself."""
    good, bomb, central = slice_file(), zipped({"zeros": bytes(8 * MIB)}), zipped({"a": b"a"})
    ways_out = {"../../evil.dcm": USED, "..\\evil.dcm": "duplicate", "/tmp/evil.dcm": "duplicate"}
    endless = central[:-14] + b"\xff" * 4 + central[-10:]
    return {
        "a zip with a way out": (zipped(dict.fromkeys(ways_out, good)), ways_out),
        "a zip with a link": (zipped({"evil": b"/etc"}, mode=stat.S_IFLNK | 0o777), {"evil": "not_regular"}),
        "a zip of slices": (zipped({"a.dcm": good, "b.dcm": good}), {"a.dcm": USED, "b.dcm": "duplicate"}),
        "a zip of stored slices": (zipped({"a.dcm": good}, method=zipfile.ZIP_STORED), {"a.dcm": USED}),
        "a zip bomb": (bomb, {"zeros": "not_dicom"}),
        "a zip bomb of zip bombs": (
            zipped({f"{n}.zip": bomb for n in range(500)}),
            {f"{n}.zip": "archive" for n in range(500)},
        ),
        "a zip of 5000 files": (zipped({str(n): b"" for n in range(5000)}), {str(n): "not_dicom" for n in range(5000)}),
        "a zip that says it has 65535 files": (endless, {"a": "not_dicom"}),
        "half a zip": (zipped({"a.dcm": good})[:200], {"": "archive"}),
    }


def archives() -> Iterator[Case]:
    """A zip archive is what its members are; no other archive is looked into, and nothing is ever unpacked."""
    good = slice_file()
    for name, (content, verdicts) in zips().items():
        expected = {f"bad.zip/{member}".removesuffix("/"): [verdict] for member, verdict in verdicts.items()}
        yield Case("archives", name, partial(_put, content), expecting(expected))
        yield one("archives", f"{name}, named .dcm", content, "not_dicom")
        yield one("archives", f"{name}, without a suffix", content, "not_dicom", file="IM0001")
    for name, content, suffix in (
        ("a tar with a way out", tarred("../../evil.dcm"), ".tar"),
        ("a tar with a link", tarred("evil", kind=tarfile.SYMTYPE, target="/etc"), ".tar"),
        ("a tar with a device", tarred("evil", kind=tarfile.CHRTYPE, target="/"), ".tar"),
        ("a slice in gzip", gzip.compress(good, mtime=0), ".dcm.gz"),
        ("a bomb in gzip", gzip.compress(bytes(8 * MIB), mtime=0), ".gz"),
        ("a slice in bzip2", bz2.compress(good), ".bz2"),
        ("a slice in xz", lzma.compress(good), ".xz"),
    ):
        yield one("archives", name, content, "other_file", file=f"bad{suffix}")
        yield one("archives", f"{name}, named .dcm", content, "not_dicom")
        yield one("archives", f"{name}, without a suffix", content, "not_dicom", file="IM0001")


def _put(content: bytes, folder: Path) -> None:
    (folder / "bad.zip").write_bytes(content)


# ---- DICOMDIR


def record(file: str, *, next_at: int = 0, lower_at: int = 0, kind: str = "IMAGE", study_uid: str = "") -> bytes:
    """Return a directory record that refers to a file, and to other records by where they are."""
    study = element(0x0020000D, "UI", study_uid.encode()) if study_uid else b""
    return item(
        element(0x00041400, "UL", struct.pack("<I", next_at))
        + element(0x00041410, "US", b"\xff\xff")
        + element(0x00041420, "UL", struct.pack("<I", lower_at))
        + element(0x00041430, "CS", kind.encode())
        + element(0x00041500, "CS", file.encode())
        + study
    )


def dicomdir(*records: bytes, first_at: int = 400, length: int | None = None) -> bytes:
    """Return a DICOMDIR."""
    where = struct.pack("<I", first_at)
    head = element(0x00041130, "CS", b"FILES") + element(0x00041200, "UL", where) + element(0x00041202, "UL", where)
    records_element = element(0x00041220, "SQ", b"".join(records), length=length)
    return file_head(ExplicitVRLittleEndian, sop_class=MediaStorageDirectoryStorage) + head + records_element


def directories() -> Iterator[Case]:
    """Below a folder a DICOMDIR is named as such, and no file that it refers to is opened for its sake."""
    family = "DICOMDIR"
    for name, file in (
        ("a way out", "..\\..\\..\\ETC\\PASSWD"),
        ("a path from the root", "/etc/passwd"),
        ("a drive", "C:\\WINDOWS\\WIN.INI"),
        ("another computer", "\\\\HOST\\SHARE\\A.DCM"),
        ("a device", "\\DEV\\ZERO"),
        ("the sound slice", "sound.dcm"),
        ("itself", "DICOMDIR"),
        ("nothing", ""),
        ("a NUL", "A\0B"),
        ("60,000 letters", "A\\" * 30_000),
        ("an escape", "\x1b[2J"),
    ):
        yield one(family, f"refers to {name}", dicomdir(record(file)), "dicomdir", file="DICOMDIR")
    whole = dicomdir(record("A"))
    for name, content in (
        ("a ring of records", dicomdir(record("A", next_at=400, lower_at=400))),
        ("records beyond the file", dicomdir(record("A", next_at=0xFFFFFFFF), first_at=0xFFFFFFF0)),
        ("10,000 records", dicomdir(*[record("..\\A")] * 10_000)),
        ("no records", dicomdir()),
        ("records without an end", dicomdir(record("A"), length=UNDEFINED)),
        ("records of 2 GiB, it says", dicomdir(record("A"), length=0x7FFFFFFF)),
        ("a cut file", whole[:-30]),
        ("nothing behind its head", file_head(ExplicitVRLittleEndian, sop_class=MediaStorageDirectoryStorage)),
        (
            "a slice that says it is one",
            file_head(ExplicitVRLittleEndian, sop_class=MediaStorageDirectoryStorage) + dataset(),
        ),
    ):
        yield one(family, name, content, "dicomdir", file="DICOMDIR")
        yield one(family, f"{name}, named .dcm", content, "dicomdir")
    yield one(family, "a text of that name", b"nothing", "not_dicom", file="DICOMDIR")
    yield one(family, "an empty file of that name", b"", "not_dicom", file="DICOMDIR")
    yield one(family, "a slice of that name", slice_file(), USED, file="DICOMDIR")
    yield many(family, "a folder of that name", {"DICOMDIR/A": (slice_file(), USED)})
    mislabelled = file_head(ExplicitVRLittleEndian) + whole[len(file_head(ExplicitVRLittleEndian)) :]
    yield one(family, "said to be a slice", mislabelled, *TORN, file="DICOMDIR")
    yield many(family, "beside the slice it refers to", {"DICOMDIR": (whole, "dicomdir"), "A": (slice_file(), USED)})
