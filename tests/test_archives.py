"""Zip archives, read where they lie: what is in one is as good as in a folder, and what is wrong with one is said."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import threading
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from ich_seq.dicom import read_headers
from ich_seq.dicom_files import opened
from ich_seq.hounsfield import read_hounsfield
from ich_seq.reasons import Reason, Refused
from ich_seq.studies import account, find_studies

ZIP64_COUNT = 0xFFFF


@pytest.fixture(scope="module")
def slices(tmp_path_factory, write_slice):
    """Five slices of one study as bytes, by name: plain, run-length, deflated, big and small."""
    root, rng = tmp_path_factory.mktemp("slices"), np.random.default_rng(0)
    forms = {"plain": {}, "rle": {"syntax": RLELossless}, "deflated": {"syntax": DeflatedExplicitVRLittleEndian}}
    made = {}
    for i, (name, form) in enumerate({**forms, "large": {}, "flat": {}}.items()):
        stored = rng.integers(0, 2000, (128, 128) if name == "large" else (16, 16))
        how = {
            "SOPInstanceUID": f"1.2.3.{i}",
            "ImagePositionPatient": [0, 0, 5 * i],
            "stored": stored * (name != "flat"),
        }
        made[f"{name}.dcm"] = write_slice(root / name, **how, **form).read_bytes()
    return made


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, mode: int = 0o644) -> Path:
    """Write files into an archive, in this order, by names that may be anything."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, method
            archive.writestr(info, data)
    return path


def verdicts(path: Path) -> dict[str, str]:
    """Read an input and every slice of it; return what became of each file."""
    findings, refused = find_studies(path), []
    for header in (h for study in findings.studies for h in study.slices):
        try:
            read_hounsfield(header)
        except Refused as refusal:
            refused.append(refusal.verdict(header.file))
    unused, counts = account(findings, refused)
    told = {u.file: str(u.reason) for u in unused}
    used = {h.file: "used" for study in findings.studies for h in study.slices if h.file not in told}
    assert counts.files == len(told) + len(used) == counts.used + counts.excluded + counts.rejected
    return told | used


def patched(path: Path, *changes: tuple[bytes, int, str, int]) -> Path:
    """Write numbers into the first record that begins by a signature: offset in it, layout, value."""
    data = bytearray(path.read_bytes())
    for signature, offset, layout, value in changes:
        struct.pack_into(layout, data, data.index(signature) + offset, value)
    path.write_bytes(data)
    return path


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


# ---- what is in an archive is as good as in a folder


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_holds_what_the_folder_holds(tmp_path, slices, method):
    """Every header and every pixel is the same from the disk and from a member, in every encoding."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in slices.items():
        (folder / name).write_bytes(data)
    packed = find_studies(zipped(tmp_path / "a.zip", slices, method))
    plain = find_studies(folder)
    (one,), (other,) = packed.studies, plain.studies
    assert [h.sop_uid for h in one.slices] == [h.sop_uid for h in other.slices]
    assert [h.file for h in one.slices] == [f"a.zip/{h.file}" for h in other.slices]
    assert packed.n_files == plain.n_files == len(slices)
    for h, k in zip(one.slices, other.slices, strict=True):
        np.testing.assert_array_equal(read_hounsfield(h), read_hounsfield(k))


def test_nothing_is_written_and_no_file_stays_open(tmp_path, slices, monkeypatch):
    """A member is read in place: neither a temporary file nor a descriptor is left."""
    path = zipped(tmp_path / "a.zip", slices)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert set(verdicts(path).values()) == {"used"}
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_among_other_files_is_found(tmp_path, slices):
    """Archives below a folder are looked into, in any letters; what only calls itself one is read as what it is."""
    zipped(tmp_path / "A.ZIP", {"x/plain.dcm": slices["plain.dcm"]})
    (tmp_path / "b.zip").write_bytes(slices["large.dcm"])
    (tmp_path / "c.zip").write_bytes(b"no archive")
    (tmp_path / "d.dcm").write_bytes(zipped(tmp_path / "d", {}).read_bytes())
    assert verdicts(tmp_path) == {
        "A.ZIP/x/plain.dcm": "used",
        "b.zip": "used",
        "c.zip": "other_file",
        "d": "not_dicom",
        "d.dcm": "not_dicom",
    }


def test_a_header_inflates_what_a_header_has(tmp_path, write_slice):
    """Of a large deflated member the header costs the header, not the pixels."""
    stored = np.random.default_rng(0).integers(0, 4096, (2048, 2048))
    data = write_slice(tmp_path / "a.dcm", stored=stored).read_bytes()
    path = zipped(tmp_path / "a.zip", {"a.dcm": data})
    with opened(path, "a.dcm") as (stream, _, end):
        assert end == len(data)
        stream.read(4096)
        assert len(stream._data) < 1 << 17
    (header,) = read_headers(path, "a", "a.dcm")
    assert read_hounsfield(header).shape == (2048, 2048)


def test_folders_in_an_archive_are_no_files(tmp_path, slices):
    """Empty folders, as archivers write them, are counted nowhere; an archive of nothing else is one file, left out."""
    path = zipped(tmp_path / "a.zip", {"x/": b"", "x/a.dcm": slices["plain.dcm"]})
    assert verdicts(path) == {"a.zip/x/a.dcm": "used"}
    assert verdicts(zipped(tmp_path / "b.zip", {"x/": b""})) == {"b.zip": "other_file"}
    assert verdicts(zipped(tmp_path / "c.zip", {})) == {"c.zip": "other_file"}


def test_names_are_labels(tmp_path, slices):
    """Names that lead elsewhere, bear controls, are not ASCII or are empty lead nowhere and lose nothing."""
    names = ["../../a.dcm", "/etc/a.dcm", "a\x1b[2Jb.dcm", "ä ö/頭.dcm", ""]
    path = zipped(tmp_path / "a.zip", dict(zip(names, slices.values(), strict=True)))
    found = verdicts(path)
    assert set(found.values()) == {"used"}
    assert {name.removeprefix("a.zip/") for name in found} == {*names[:-1], "#4"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_two_files(tmp_path, slices):
    """Neither of two members of one name hides the other, and each is reported by a name of its own."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, key in (("a", "plain"), ("a#2", "large"), ("a", "flat"), ("a", "rle")):
            archive.writestr(name, slices[f"{key}.dcm"])
    found = verdicts(tmp_path / "a.zip")
    assert found == dict.fromkeys(["a.zip/a", "a.zip/a#2", "a.zip/a#2#2", "a.zip/a#3"], "used")


def test_zip64_is_read(tmp_path, slices):
    """Records of 64 bits, as archives of many or large files have them, are read like any other."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in slices.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    data = (tmp_path / "a.zip").read_bytes()
    end = data.index(END)
    count, size, start = struct.unpack_from("<HLL", data, end + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    told = struct.pack("<4s4H2LH", END, 0, 0, ZIP64_COUNT, ZIP64_COUNT, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "a.zip").write_bytes(data[:end] + record + locator + told)
    assert verdicts(tmp_path / "a.zip") == {f"a.zip/{name}": "used" for name in slices}


def test_bytes_before_the_archive_do_no_harm(tmp_path, slices):
    """An archive behind something else, as a program that unpacks itself is one, is read from where it begins."""
    path = zipped(tmp_path / "a.zip", slices)
    path.write_bytes(b"PK" + bytes(500) + path.read_bytes())
    assert set(verdicts(path).values()) == {"used"}


def test_an_archive_that_was_changed_is_told(tmp_path, slices):
    """Headers of an archive that was written anew meanwhile are not believed of its pixels."""
    path = zipped(tmp_path / "a.zip", slices)
    header = find_studies(path).studies[0].slices[0]
    zipped(path, {"other.dcm": slices["plain.dcm"]})
    os.utime(path, ns=(0, header.modified_ns + 1))
    with pytest.raises(Refused) as refusal:
        read_hounsfield(header)
    assert refusal.value.reason == Reason.CHANGED


def test_threads_read_members_side_by_side(tmp_path, slices):
    """Readers of several threads do not move one another's place in the archive."""
    plain = {name: data for name, data in slices.items() if name != "rle.dcm"}
    found = find_studies(zipped(tmp_path / "a.zip", plain)).studies[0].slices
    wanted = [read_hounsfield(h) for h in found]
    wrong = []

    def read(start: int) -> None:
        for i in range(15):
            k = (start + i) % len(found)
            if not np.array_equal(read_hounsfield(found[k]), wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- what is wrong with an archive is said


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


BROKEN = {
    "cut short": cut,
    "a directory that is none": lambda path: patched(path, (CENTRAL, 0, "<L", 0)),
    "a directory that begins elsewhere": lambda path: patched(path, (END, 12, "<L", 1 << 30)),
    "a directory without measure": lambda path: patched(path, (END, 12, "<L", 0xFFFFFFF0)),
    "one part of several": lambda path: patched(path, (CENTRAL, 34, "<H", 3)),
    "a version of the future": lambda path: patched(path, (CENTRAL, 6, "<H", 999)),
    "a name that is no text": lambda path: patched(path, (CENTRAL, 8, "<H", 0x800), (CENTRAL, 46, "<B", 0xFF)),
    "a bomb by its own words": lambda path: patched(path, (CENTRAL, 24, "<L", 0xFFFFFFF0)),
    "members over one another": lambda path: patched(path, (CENTRAL, 20, "<L", 1 << 30)),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_broken_archive_is_one_rejected_file(tmp_path, slices, how):
    """What cannot be listed is one file with a reason, given by itself or found in a folder."""
    path = BROKEN[how](zipped(tmp_path / "a.zip", slices))
    assert verdicts(path) == {"a.zip": "archive"}
    (tmp_path / "b.dcm").write_bytes(slices["plain.dcm"])
    assert verdicts(tmp_path) == {"a.zip": "archive", "b.dcm": "used"}


FIRST = {
    "encrypted": lambda path: patched(path, (CENTRAL, 8, "<H", 1)),
    "compressed by another way": lambda path: patched(path, (CENTRAL, 10, "<H", 9)),
    "longer than told": lambda path: patched(path, (CENTRAL, 24, "<L", 500)),
    "shorter than told": lambda path: patched(path, (CENTRAL, 24, "<L", 900_000)),
    "of another checksum": lambda path: patched(path, (CENTRAL, 16, "<L", 12345)),
    "not where it is told": lambda path: patched(path, (CENTRAL, 42, "<L", 7)),
    "far beyond the file": lambda path: patched(path, (CENTRAL, 42, "<L", 1 << 31)),
    "deflated bytes that are none": lambda path: patched(path, (b"plain.dcm", 9 + 20, "<Q", 0xFFFFFFFFFFFFFFFF)),
    "stored bytes called deflated": lambda path: patched(path, (CENTRAL, 10, "<H", 0)),
}


@pytest.mark.parametrize("how", list(FIRST))
def test_a_bad_member_costs_itself_only(tmp_path, slices, how):
    """A member that is not what the archive says is refused; its neighbours are used."""
    found = verdicts(FIRST[how](zipped(tmp_path / "a.zip", slices)))
    first = found.pop("a.zip/plain.dcm")
    assert set(found.values()) == {"used"}
    assert first in ("archive", "not_dicom", "pixel_data", "damaged_header", "missing_tag")
    assert first == "archive" or how in ("stored bytes called deflated", "longer than told")


def test_what_is_no_file_is_not_read(tmp_path):
    """A link in an archive is followed nowhere, and an archive in an archive is not looked into."""
    link = zipped(tmp_path / "link.zip", {"evil": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777)
    assert verdicts(link) == {"link.zip/evil": "not_regular"}
    inner = zipped(tmp_path / "inner.zip", {"a": b"a"}).read_bytes()
    assert verdicts(zipped(tmp_path / "outer.zip", {"in.zip": inner, "in.txt": inner})) == {
        "outer.zip/in.zip": "archive",
        "outer.zip/in.txt": "other_file",
    }


def test_a_member_is_not_larger_than_a_file_may_be(tmp_path, slices, monkeypatch):
    """The limit on files is one on what members inflate to; what is no DICOM file is called so, whatever its size."""
    monkeypatch.setattr("ich_seq.dicom.MAX_FILE_BYTES", 30_000)
    path = zipped(tmp_path / "a.zip", {**slices, "film.mp4": bytes(100_000)})
    found = verdicts(path)
    assert found.pop("a.zip/large.dcm") == "too_large"
    assert found.pop("a.zip/film.mp4") == "other_file"
    assert set(found.values()) == {"used"}


@pytest.mark.parametrize(("mib", "verdict"), [(100, "not_dicom"), (300, "archive")])
def test_a_bomb_is_not_set_off(tmp_path, mib, verdict):
    """A member of nothing but zeros costs neither a second nor the memory that it claims."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = squeeze.compress(b"0") + squeeze.flush(zlib.Z_FULL_FLUSH)
    zeros = squeeze.compress(bytes(1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)  # which may stand any number of times
    bomb = start + zeros * mib + squeeze.flush()
    sizes = len(bomb), 1 + (mib << 20)
    body = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 8, 0, 0, 0, *sizes, 1, 0) + b"a" + bomb
    central = struct.pack("<4s6H3L5H2L", CENTRAL, 20, 20, 0, 8, 0, 0, 0, *sizes, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", END, 0, 0, 1, 1, len(central), len(body), 0)
    (tmp_path / "a.zip").write_bytes(body + central + end)
    tracemalloc.start()
    began = time.process_time()
    found = verdicts(tmp_path / "a.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(found.values()) == [verdict]
    assert peak < 16 << 20
    assert time.process_time() - began < 1


def test_members_over_the_same_bytes_are_a_bomb(tmp_path, slices):
    """A hundred entries that all point at one member are refused together."""
    data = zipped(tmp_path / "a.zip", {"a": slices["large.dcm"]}).read_bytes()
    at, end = data.index(CENTRAL), data.index(END)
    entry = data[at:end]
    told = struct.pack("<4s4H2LH", END, 0, 0, 100, 100, 100 * len(entry), at, 0)
    (tmp_path / "a.zip").write_bytes(data[:at] + entry * 100 + told)
    assert verdicts(tmp_path / "a.zip") == {"a.zip": "archive"}


def test_an_archive_of_100_000_members_is_refused_quickly(tmp_path):
    """More members than there may be are one rejected file, in seconds and a few dozen megabytes."""
    entry = struct.pack("<4s6H3L5H2L", CENTRAL, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 100_000
    end = struct.pack("<4s4H2LH", END, 0, 0, ZIP64_COUNT, ZIP64_COUNT, len(directory), 4, 0)
    (tmp_path / "a.zip").write_bytes(LOCAL + directory + end)
    began = time.process_time()
    assert verdicts(tmp_path / "a.zip") == {"a.zip": "archive"}
    assert time.process_time() - began < 5


@given(
    data=st.one_of(
        st.binary(max_size=300).map(lambda tail: b"PK\x03\x04" + tail),
        st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)),
    )
)
@settings(deadline=None, max_examples=150)
def test_any_bytes_end_as_verdicts(slices, data):
    """Whatever an archive holds, noise or a sound one spoilt anywhere, nothing is raised and each file has its fate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zip"
        if isinstance(data, tuple):
            zipped(path, {name: slices[name] for name in ("plain.dcm", "rle.dcm", "deflated.dcm")})
            sound = bytearray(path.read_bytes())
            place = data[0] % len(sound)
            sound[place : place + len(data[1])] = data[1]
            data = bytes(sound)
        path.write_bytes(data)
        assert verdicts(path)


@given(st.binary(max_size=5000), st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 3000)), max_size=8))
@settings(deadline=None, max_examples=60)
def test_a_member_reads_like_a_file(data, reads):
    """Wherever one goes in a member and however much one reads, the bytes are those of the file that it was."""
    with tempfile.TemporaryDirectory() as folder:
        path = zipped(Path(folder) / "a.zip", {"a": data})
        with opened(path, "a") as (stream, _, end):
            assert end == len(data)
            for place, count in reads:
                stream.seek(place)
                assert stream.read(count) == data[place : place + count]
                assert stream.tell() == place + len(data[place : place + count])
        with opened(path, "a", whole=True) as (stream, _, end):
            assert stream.read() == data
