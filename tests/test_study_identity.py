"""Whose study it is: only what DICOM allows is taken from a header, and a file is what was predicted."""

from __future__ import annotations

import os

import pytest
from attacks.verdicts import read_header
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.charset import convert_encodings
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import validate_value

from ich_seq.dicom import SliceHeader
from ich_seq.reasons import Reason, Refused
from ich_seq.study_identity import CLEANERS, Reference, date, person_name, read_identity, sex, time_of_day

VRS = {
    "PatientName": "PN",
    "PatientID": "LO",
    "IssuerOfPatientID": "LO",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "StudyDate": "DA",
    "StudyTime": "TM",
    "AccessionNumber": "SH",
    "ReferringPhysicianName": "PN",
    "StudyID": "SH",
}
PERSON = {
    "PatientID": "MRN 0815",
    "PatientName": "Curie^Marie^^Dr.",
    "PatientBirthDate": "18671107",
    "PatientSex": "F",
    "StudyDate": "20260102",
    "StudyTime": "030405.5",
    "AccessionNumber": "A-1",
    "ReferringPhysicianName": "Roentgen^W",
    "StudyID": "S1",
    "IssuerOfPatientID": "Hospital",
}
LETTERS = st.text(st.one_of(st.sampled_from("0123456789.:^=\\ \0MF"), st.characters(codec="utf-8")), max_size=90)


@pytest.fixture
def slices(write_slice, tmp_path):
    """Write slices with these elements, feet to head; returns their headers."""

    def slices(*changes, count=3, **how):
        changes = changes or ({},) * count
        made = []
        for i, change in enumerate(changes):
            place = {
                "ImagePositionPatient": [0, 0, 5 * i],
                "SOPInstanceUID": f"1.2.3.{i}",
                "SeriesInstanceUID": "1.2.5",
            }
            values = {k: v for k, v in (PERSON | change).items() if v is not None}
            path = write_slice(
                tmp_path / f"{i}.dcm", drop=[k for k, v in change.items() if v is None], **how, **(place | values)
            )
            made.append(read_header(path, path.name))
        return made

    return slices


@pytest.mark.parametrize("keyword", CLEANERS)
@given(LETTERS)
@example("20240230")
@example("2024.02.29")
@example("25")
@example("12:30:59.123456")
@example("A" * 65)
@example("x" * 70 + "^y=" + "\u5c71" * 65 + "=")
def test_what_is_taken_is_valid(keyword, value):
    """Whatever the header holds: pydicom's check of the VR finds nothing, and taking it twice changes nothing."""
    taken = CLEANERS[keyword](value.strip(" \0"))
    validate_value(VRS[keyword], taken, pydicom_config.RAISE)
    assert CLEANERS[keyword](taken) == taken
    assert "\\" not in taken


OLD_FORMS = [
    (date, "1947.09.11", "19470911"),
    (date, "1947-09-11", ""),
    (date, "20230229", ""),
    (time_of_day, "12:30:59.5", "123059.5"),
    (time_of_day, "12:30", "1230"),
    (time_of_day, "1:2:3:4:5:6", ""),
    (time_of_day, "2400", ""),
    (sex, "f", "F"),
    (sex, "female", ""),
    (person_name, "Curie^Marie^^^^^^", "Curie^Marie"),
    (person_name, "Curie\x1b[2J", "Curie [2J"),
    (person_name, "=^=", ""),
]


@pytest.mark.parametrize(("cleaner", "value", "taken"), OLD_FORMS)
def test_older_forms_are_understood_and_others_left_out(cleaner, value, taken):
    """Dates with dots and times with colons were DICOM's once (PS3.5 6.2); nothing is guessed."""
    assert cleaner(value) == taken


def test_all_that_is_sound_is_taken(slices):
    """Every element as it stands, and a reference to every slice."""
    identity = read_identity(slices())
    assert identity.elements == PERSON
    assert identity.study_uid == "1.2.3.4"
    assert identity.series_uid == "1.2.5"
    assert identity.references == tuple(Reference(CTImageStorage, f"1.2.3.{i}") for i in range(3))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_encoding_of_a_header_is_read(slices, syntax):
    """Deflated and big-endian ones too."""
    assert read_identity(slices(syntax=syntax)).elements == PERSON


def test_files_without_a_class_are_ct_images(slices):
    """RSNA's have none; the objects that refer to them need one."""
    made = slices({"SOPClassUID": None})
    assert read_identity(made).references == (Reference(CTImageStorage, "1.2.3.0"),)


def test_the_first_valid_value_from_the_feet_is_taken(slices):
    """An element that a slice lacks, or has wrong, is another slice's."""
    made = slices(
        {"PatientBirthDate": None, "PatientName": "", "StudyID": "far too long for a short string"},
        {"PatientBirthDate": "18670000", "PatientName": "Second^A", "StudyID": "two"},
        {"PatientBirthDate": "18671107", "PatientName": "Third^A", "StudyID": "three"},
    )
    elements = read_identity(made).elements
    assert elements["PatientBirthDate"] == "18671107"
    assert elements["PatientName"] == "Second^A"
    assert elements["StudyID"] == "two"


def test_what_no_slice_has_is_empty(slices):
    """A study of which nothing is known but its UIDs."""
    made = slices(dict.fromkeys(PERSON))
    assert set(read_identity(made).elements.values()) == {""}


@pytest.mark.parametrize("value", ["A" * 65, "one\\two", "bell\a", "bad\ufffd"])
def test_half_an_identifier_is_none(slices, value):
    """A Patient ID that is too long, several, or not of letters could be somebody else's, and is left empty."""
    made = slices({"SpecificCharacterSet": "ISO_IR 192"}, text={"PatientID": value})
    assert read_identity(made).elements["PatientID"] == ""


def test_lengths_are_of_letters(slices):
    """PS3.5 6.2 counts characters, and so sixteen of two bytes each fit; dciodvfy counts bytes, and would say no."""
    made = slices({"SpecificCharacterSet": "ISO_IR 192", "StudyID": "Ü" * 16, "PatientName": "山" * 64})
    elements = read_identity(made).elements
    assert (elements["StudyID"], elements["PatientName"]) == ("Ü" * 16, "山" * 64)


NAMES = {
    "Latin-1": (["ISO_IR 100"], "Müller^Jürgen"),
    "UTF-8": (["ISO_IR 192"], "Žižka^Jan=山田^太郎"),
    "Cyrillic": (["ISO_IR 144"], "Чайка^Ирина"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
}


@pytest.mark.parametrize(("charset", "name"), NAMES.values(), ids=NAMES)
def test_names_of_every_script_are_understood(slices, charset, name):
    """The file's own character sets, several in one name too."""
    made = slices({"SpecificCharacterSet": charset, "PatientName": name})
    assert convert_encodings(charset)
    assert read_identity(made).elements["PatientName"] == name


def rewritten(headers, old, new):
    """The same files with some bytes changed, their headers read again; those that are refused now are left out."""
    for header in headers:
        data = header.path.read_bytes()
        assert len(old) == len(new)
        assert data.count(old) == 1
        header.path.write_bytes(data.replace(old, new))
    again = [read_header(header.path, header.file) for header in headers]
    return [header for header in again if isinstance(header, SliceHeader)]


@pytest.mark.parametrize("charset", [b"ISO_IR 999", b"nonsense  ", b"ISO_IR\\\\ 1", b"\xff" * 10, b" " * 10])
def test_a_character_set_that_is_none_harms_nothing(slices, charset, capfd):
    """The rest is taken, and nothing is printed that would quote a name."""
    made = rewritten(
        slices({"SpecificCharacterSet": "ISO_IR 100", "PatientName": "M\xfcller^J"}), b"ISO_IR 100", charset
    )
    assert read_identity(made).elements["PatientID"] == PERSON["PatientID"]
    assert capfd.readouterr() == ("", "")


def outcome(headers):
    """What comes of slices: the elements, or the reason of the refusal."""
    try:
        return read_identity(headers).elements
    except Refused as refusal:
        return refusal.reason


@pytest.mark.parametrize("vr", [b"UL", b"FD", b"OB", b"SQ", b"AT", b"XX", b"IS", b"UI"])
def test_an_element_of_another_kind_is_absent_or_damages_the_header(slices, vr):
    """The bytes of the file say that a name is a number, or a sequence: no error but a verdict comes of it."""
    for header in rewritten(slices(), b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00" + vr):
        said = outcome([header])
        assert said == Reason.DAMAGED_HEADER or said["StudyDate"] == PERSON["StudyDate"]


@pytest.mark.parametrize(
    ("keyword", "uid"),
    [
        ("StudyInstanceUID", "ID_x"),
        ("SeriesInstanceUID", "1.2.03"),
        ("SOPInstanceUID", "1..2"),
        ("SOPInstanceUID", "1.2." + "3" * 61),
        ("StudyInstanceUID", "1.2."),
    ],
)
def test_a_uid_that_dicom_does_not_allow_is_refused(slices, keyword, uid):
    """PS3.5 9.1; no other object could refer to it."""
    with pytest.raises(Refused) as refused:
        read_identity(slices({keyword: uid}))
    assert refused.value.reason == Reason.UID


def test_a_file_that_is_another_by_now_is_refused(slices):
    """Changed, cut or gone since it was predicted: the result would be of something else."""
    changed, gone = slices(count=2)
    os.utime(changed.path, ns=(0, 0))
    with pytest.raises(Refused) as refused:
        read_identity([changed])
    assert refused.value.reason == Reason.CHANGED
    gone.path.unlink()
    with pytest.raises(Refused) as refused:
        read_identity([gone])
    assert refused.value.reason == Reason.UNREADABLE


def test_pixels_are_not_read(slices):
    """The last element asked for is the Study ID; what comes behind may be as large as it likes."""
    (header,) = slices(count=1)
    assert dcmread(header.path).PixelData
    assert read_identity([header]).elements == PERSON
