"""Several inputs at once, and DICOMDIRs: every file once, by one name, wherever it is given; none that is not given."""

from __future__ import annotations

import os
import random
import shutil
import struct
import tempfile
import time
import zipfile
from itertools import accumulate
from pathlib import Path

import pytest
from attacks.bad_archives import dicomdir, record
from attacks.dicom_elements import item
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from ich_seq import NothingUsableError, UsageError
from ich_seq.cli import cli
from ich_seq.exploration import explore
from ich_seq.files import short_hash
from ich_seq.inputs import check_input, list_inputs
from ich_seq.reasons import Reason
from ich_seq.studies import Findings, account, find_studies


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_slice):
    """Four slices of one study, a.dcm to d.dcm."""
    root = tmp_path_factory.mktemp("study")
    for i, name in enumerate("abcd"):
        write_slice(root / f"{name}.dcm", SOPInstanceUID=f"1.2.3.{i}", ImagePositionPatient=[0, 0, 5 * i])
    return root


@pytest.fixture
def twofold(study, tmp_path):
    """One and two halves of the study in folders of the same file names, and the rest in an archive."""
    for folder, name in (("one", "a"), ("two", "b")):
        (tmp_path / folder).mkdir()
        shutil.copy(study / f"{name}.dcm", tmp_path / folder / "x.dcm")
    with zipfile.ZipFile(tmp_path / "rest.zip", "w") as archive:
        for name in "cd":
            archive.write(study / f"{name}.dcm", f"{name}.dcm")
    return tmp_path


def sources(*roots: Path | str) -> list[str]:
    listing = list_inputs(roots)
    return [source.file for source in listing.sources]


def fates(findings: Findings) -> dict[str, str]:
    used = {h.file: "used" for s in findings.studies for h in s.slices}
    return used | {u.file: str(u.reason) for u in findings.unused}


# ---- several inputs


def test_several_inputs_are_one(twofold):
    """A study that lies in two folders and an archive is one study, and equal names in two folders are two files."""
    findings = find_studies([twofold / "one", twofold / "two" / "x.dcm", twofold / "rest.zip"])
    assert len(findings.studies) == 1
    assert [h.file for h in findings.studies[0].slices] == [
        "one/x.dcm",
        "two/x.dcm",
        "rest.zip/c.dcm",
        "rest.zip/d.dcm",
    ]
    assert findings.n_files == 4


@given(st.randoms(use_true_random=False), st.sets(st.sampled_from(range(7)), min_size=1))
@settings(deadline=None, max_examples=40)
def test_no_order_and_no_spelling_changes_what_is_read(random: random.Random, chosen: set[int]) -> None:
    """Inputs in any order, given twice, one within another, or by other spellings: the same files by the same names."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "a" / "b").mkdir(parents=True)
        for place in ("a/1", "a/b/2", "c"):
            (root / place).write_bytes(b"x")
        (root / "link").symlink_to(root / "a")
        spelt = ["a", "a/b", "a/1", "c", "link", "a/b/../1", "./c"]
        given = [root / spelt[i] for i in sorted(chosen)]
        mixed = [*given, *random.sample(given, random.randint(0, len(given)))]
        random.shuffle(mixed)
        listing, again = list_inputs(given), list_inputs(mixed)
        assert {s.file for s in listing.sources} == {s.file for s in again.sources}
        real = [s.path.resolve() for s in again.sources]
        assert len(set(real)) == len(real) == len({s.file for s in again.sources})


def test_one_input_names_its_files_as_ever(study, twofold):
    """Below a folder names are relative to it, an archive's members to the archive, a file's is its own; so hashes."""
    assert sources(study) == [f"{name}.dcm" for name in "abcd"]
    assert sources(study / "a.dcm") == ["a.dcm"]
    assert sources(twofold / "rest.zip") == ["rest.zip/c.dcm", "rest.zip/d.dcm"]
    hidden = list_inputs(twofold / "rest.zip", None, short_hash).sources
    assert [source.file for source in hidden] == [short_hash("rest.zip/c.dcm"), short_hash("rest.zip/d.dcm")]


def test_every_input_is_checked_before_anything_is_read(study, tmp_path):
    """Each has to be there and to be another than --out; none at all is a mistake."""
    with pytest.raises(UsageError, match="nowhere cannot be read"):
        check_input([study, tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="--out is the folder of the input"):
        check_input([tmp_path, study], study)
    with pytest.raises(UsageError, match="No input"):
        check_input([])
    empty = [tmp_path / name for name in "abcd"]
    for folder in empty:
        folder.mkdir()
    with pytest.raises(NothingUsableError, match="and 1 more holds no files"):
        find_studies(empty)


def test_what_is_being_written_is_passed_over_in_every_input(twofold):
    """The folder of --out below one of several inputs is no input."""
    out = twofold / "one" / "out"
    out.mkdir()
    shutil.copy(twofold / "two" / "x.dcm", out / "y.dcm")
    assert find_studies([twofold / "two", twofold / "one"], skip=out).n_files == 2


def test_commands_take_several_inputs(twofold, tmp_path):
    """The command line takes them side by side, and refuses none at all."""
    arguments = ["explore", str(twofold / "one"), str(twofold / "rest.zip"), "--out", str(tmp_path / "out"), "--quiet"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("3 slices, 1 studies")
    for command in ("explore", "train-cnn"):
        assert "Missing argument" in CliRunner().invoke(cli, [command, "--out", "x"]).output
    for command in (["extract-features"], ["predict", "--bundle", "b"]):
        assert "Give either DICOM, or --dicomweb" in CliRunner().invoke(cli, [*command, "--out", "x"]).output


def test_a_table_is_explored_by_itself(study, tmp_path):
    """A table among folders cannot be meant."""
    (tmp_path / "t.csv").write_text("ID,Label\n")
    with pytest.raises(UsageError, match="by itself"):
        explore([study, tmp_path / "t.csv"], tmp_path / "out")
    with pytest.raises(UsageError, match="--out is the folder of the input"):
        explore(study, study)


# ---- DICOMDIR


def test_a_medium_is_read_by_its_dicomdir(study, write_media, tmp_path):
    """The files that pydicom's own DICOMDIR names are read, and no other that lies there."""
    index = write_media(sorted(study.iterdir()), tmp_path / "media")
    shutil.copy(study / "a.dcm", tmp_path / "media" / "stray.dcm")
    findings = find_studies(index)
    named = sorted(path.relative_to(tmp_path / "media").as_posix() for path in (tmp_path / "media").rglob("IM*"))
    assert fates(findings) == {"DICOMDIR": "dicomdir", **dict.fromkeys(named, "used")}
    assert len(named) == 4
    assert find_studies(tmp_path / "media").n_files == findings.n_files + 1


def test_names_in_capitals_are_found_in_small_letters(study, write_media, tmp_path):
    """Disks that keep names in small letters, as some systems mount CDs, are no obstacle."""
    index = write_media(sorted(study.iterdir()), tmp_path / "media")
    for path in sorted((tmp_path / "media").rglob("*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.lower()))
    found = fates(find_studies(index.with_name("dicomdir")))
    assert list(found.values()).count("used") == 4
    assert found.pop("dicomdir") == "dicomdir"


def test_a_file_that_is_not_there_is_rejected(study, write_media, tmp_path):
    """What a DICOMDIR names and the medium lacks is listed, and costs the others nothing."""
    index = write_media(sorted(study.iterdir()), tmp_path / "media")
    lost = next((tmp_path / "media").rglob("IM*"))
    lost.unlink()
    findings = find_studies(index)
    counts = account(findings, ())[1]
    assert (counts.files, counts.used, counts.excluded, counts.reasons["missing_file"]) == (5, 3, 1, 1)
    (missing,) = (u for u in findings.unused if u.reason is Reason.MISSING_FILE)
    assert missing.study_uid == findings.studies[0].uid


def linked(*records: tuple[str, str, int | None, int | None]) -> bytes:
    """A DICOMDIR of records as they lie: kind, file or study, and which of them is the next and the first below."""

    def written(place):
        return [
            record(
                "" if kind in ("STUDY", "SERIES") else name,
                kind=kind,
                study_uid=name if kind == "STUDY" else "",
                next_at=place(next_one),
                lower_at=place(lower),
            )
            for kind, name, next_one, lower in records
        ]

    starts = list(accumulate(map(len, written(lambda number: 0)), initial=len(dicomdir())))
    return dicomdir(*written(lambda number: 0 if number is None else starts[number]))


def test_a_missing_image_is_of_the_study_that_the_records_lead_to(tmp_path):
    """Not of the one that happens to lie before it; rings end; what no study leads to, or is no image, is of none."""
    content = linked(
        ("IMAGE", "OF_8", 8, None),
        ("STUDY", "1.2.7", 2, 3),
        ("STUDY", "1.2.8", 1, 4),
        ("SERIES", "", None, 5),
        ("SERIES", "", None, 0),
        ("IMAGE", "OF_7", 6, None),
        ("IMAGE", "OF_7_TOO", 5, 1),
        ("IMAGE", "OF_NONE", None, None),
        ("SR DOCUMENT", "REPORT", None, None),
        ("STUDY", "Testudo^no UID", None, 7),
    )
    (tmp_path / "DICOMDIR").write_bytes(content)
    missing = [u for u in find_studies(tmp_path / "DICOMDIR").unused if u.reason is Reason.MISSING_FILE]
    assert {u.file: u.study_uid for u in missing} == {
        "OF_7": "1.2.7",
        "OF_7_TOO": "1.2.7",
        "OF_8": "1.2.8",
        "OF_NONE": "",
        "REPORT": "",
    }


LEAVING = [
    "..\\secret.dcm",
    "A\\..\\..\\secret.dcm",
    "/etc/passwd",
    "\\DEV\\ZERO",
    "C:\\WIN.INI",
    "\\\\HOST\\X",
    ".",
    "A\0B",
]


@pytest.mark.parametrize("name", LEAVING)
def test_no_name_leads_out_of_the_folder(study, tmp_path, name):
    """A DICOMDIR reaches nothing outside of its folder, however it asks."""
    shutil.copy(study / "a.dcm", tmp_path / "secret.dcm")
    (tmp_path / "media" / "A").mkdir(parents=True)
    (tmp_path / "media" / "DICOMDIR").write_bytes(dicomdir(record(name), record("SOUND")))
    shutil.copy(study / "b.dcm", tmp_path / "media" / "sound")
    found = fates(find_studies(tmp_path / "media" / "DICOMDIR"))
    assert found.pop("sound") == "used"
    assert found.pop("DICOMDIR") == "dicomdir"
    assert list(found.values()) == ["missing_file"]


def test_forward_slashes_repetitions_and_records_out_of_use(study, tmp_path):
    """Names by forward slashes are understood, a file named twice is one, and a record out of use names none."""
    (tmp_path / "A").mkdir()
    shutil.copy(study / "a.dcm", tmp_path / "A" / "1")
    out_of_use = record("GONE").replace(struct.pack("<H", 0xFFFF), bytes(2))
    (tmp_path / "DICOMDIR").write_bytes(dicomdir(record("A/1"), record("A\\1"), out_of_use, record("", kind="STUDY")))
    assert fates(find_studies(tmp_path / "DICOMDIR")) == {"DICOMDIR": "dicomdir", "A/1": "used"}


ODD = {
    "a ring of records": (dicomdir(record("A", next_at=400, lower_at=400)), {"A": "used", "DICOMDIR": "dicomdir"}),
    "records beyond the file": (dicomdir(record("A", next_at=0xFFFFFFFF)), {"A": "used", "DICOMDIR": "dicomdir"}),
    "itself": (dicomdir(record("DICOMDIR"), record("A")), {"A": "used", "DICOMDIR": "dicomdir"}),
    "a folder": (dicomdir(record("F")), {"F": "missing_file", "DICOMDIR": "dicomdir"}),
    "no records": (dicomdir(), {"DICOMDIR": "dicomdir"}),
    "records of 2 GiB, it says": (dicomdir(record("A"), length=0x7FFFFFFF), {"DICOMDIR": "damaged_header"}),
    "a cut file": (dicomdir(record("A"))[:-30], {"DICOMDIR": "damaged_header"}),
    "nothing behind its head": (dicomdir()[:-60], {"DICOMDIR": "damaged_header"}),
    "a sequence that does not end": (
        dicomdir(record("A"), item(bytes.fromhex("8800000253510000ffffffff"))),
        {"DICOMDIR": "damaged_header"},
    ),
}


@pytest.mark.parametrize("how", list(ODD))
def test_an_odd_dicomdir_is_survived(study, tmp_path, how):
    """Rings are not followed, lies about lengths end as verdicts."""
    content, wanted = ODD[how]
    (tmp_path / "F").mkdir()
    (tmp_path / "DICOMDIR").write_bytes(content)
    shutil.copy(study / "a.dcm", tmp_path / "A")
    assert fates(find_studies(tmp_path / "DICOMDIR")) == wanted


@pytest.mark.slow
def test_a_huge_dicomdir_ends_in_time(study, tmp_path):
    """Records without measure are refused in seconds, in little memory."""
    (tmp_path / "DICOMDIR").write_bytes(dicomdir(*[b"\xfe\xff\x00\xe0\0\0\0\0"] * 400_000))
    began = time.process_time()
    assert fates(find_studies(tmp_path / "DICOMDIR")) == {"DICOMDIR": "damaged_header"}
    assert time.process_time() - began < 10


@given(place=st.integers(0, 2000), change=st.binary(min_size=1, max_size=6))
@settings(deadline=None, max_examples=100)
def test_a_spoilt_dicomdir_ends_as_verdicts(tmp_path_factory, study, place, change):
    """Whatever bytes of it are other ones, nothing is raised and nothing outside of the folder is named."""
    root = tmp_path_factory.getbasetemp() / "spoilt"
    root.mkdir(exist_ok=True)
    shutil.copy(study / "a.dcm", root / "A")
    data = bytearray(dicomdir(record("A"), record("B\\C")))
    place %= len(data) - len(change)
    data[place : place + len(change)] = change
    (root / "DICOMDIR").write_bytes(data)
    listing = list_inputs(root / "DICOMDIR")
    assert {source.path for source in listing.sources} <= {root / "A", root / "DICOMDIR"}
    findings = find_studies(root / "DICOMDIR")
    assert account(findings, ())[1].files == len(listing.sources) + len(listing.unused)


def test_a_dicomdir_that_names_an_archive_does_not_open_it(study, tmp_path):
    """An archive is looked into where it is given or found, not where it is named by something within."""
    with zipfile.ZipFile(tmp_path / "A.ZIP", "w") as archive:
        archive.write(study / "a.dcm", "a.dcm")
    (tmp_path / "DICOMDIR").write_bytes(dicomdir(record("A.ZIP")))
    assert fates(find_studies(tmp_path / "DICOMDIR")) == {"DICOMDIR": "dicomdir", "A.ZIP": "archive"}


def test_the_rows_of_a_store_change_with_an_archive(twofold):
    """An archive that was written anew is read anew."""
    from ich_seq.extraction import Networks, _row_keys

    networks = Networks({}, lambda patient, study: ((0,), False))
    before = _row_keys(find_studies(twofold / "rest.zip").studies[0], networks)
    assert before == _row_keys(find_studies(twofold / "rest.zip").studies[0], networks)
    os.utime(twofold / "rest.zip", (1, 1))
    assert before != _row_keys(find_studies(twofold / "rest.zip").studies[0], networks)


def test_a_dicomdir_within_a_folder_is_left_out_as_ever(study, write_media, tmp_path):
    """Below a folder every file is found without it."""
    index = write_media(sorted(study.iterdir()), tmp_path / "media")
    assert dcmread(index).file_meta.MediaStorageSOPClassUID.name == "Media Storage Directory Storage"
    findings = find_studies(tmp_path / "media")
    assert [u.reason for u in findings.unused] == [Reason.DICOMDIR]
    assert len(findings.studies[0].slices) == 4
