"""One DICOM file: what is read of it, what is refused and why, and its Hounsfield units against pydicom's."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.verdicts import read_header
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
)

from ich_seq import phantom
from ich_seq.codestreams import check_tiles, read_frame
from ich_seq.config import AIR_HU
from ich_seq.dicom import SliceHeader
from ich_seq.dicom_files import MAX_INFLATED_BYTES
from ich_seq.elements import KEYWORDS
from ich_seq.hounsfield import read_hounsfield
from ich_seq.inputs import list_files
from ich_seq.reasons import EXCLUDED, Reason, Refused, Unused

NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
SYNTAXES = [*NATIVE, RLELossless]
SCREENSHOT = "1.2.840.10008.5.1.4.1.1.7"
MULTI_FRAME_WORD = "1.2.840.10008.5.1.4.1.1.7.3"
MAGIC = bytes(128) + b"DICM"

REQUIRED = [
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dicom")


def sound(path: Path) -> SliceHeader:
    header = read_header(path, path.name)
    assert isinstance(header, SliceHeader), header
    return header


def refused(path: Path) -> Unused:
    unused = read_header(path, path.name)
    assert isinstance(unused, Unused)
    assert unused.file == path.name
    return unused


def reason_for_pixels(header: SliceHeader) -> Reason:
    with pytest.raises(Refused) as refusal:
        read_hounsfield(header)
    return refusal.value.reason


def hu_or_reason(path: Path) -> NDArray[np.float32] | Reason:
    """Read header and pixels as a user does, to whom a warning of pydicom is no error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = read_header(path, path.name)
        if isinstance(header, Unused):
            return header.reason
        try:
            hu = read_hounsfield(header)
        except Refused as refusal:
            return refusal.reason
    assert hu.shape == (header.rows, header.columns)
    return hu


def pydicoms_hu(path: Path) -> NDArray[np.float64]:
    """What pydicom makes of the file, below-air clipped: the oracle."""
    with config.disable_value_validation():
        ds = dcmread(path)
        return np.maximum(apply_rescale(ds.pixel_array, ds).astype(np.float64), AIR_HU)


def with_syntax(content: bytes, uid: str) -> bytes:
    """The same file, its meta header naming another transfer syntax."""
    start = content.index(b"\x02\x00\x10\x00UI")
    (length,) = struct.unpack_from("<H", content, start + 6)
    value = uid.encode() + b"\0" * (len(uid) % 2)
    (group,) = struct.unpack_from("<I", content, 140)
    head = content[:140] + struct.pack("<I", group + len(value) - length) + content[144 : start + 6]
    return head + struct.pack("<H", len(value)) + value + content[start + 8 + length :]


def without_meta(content: bytes) -> bytes:
    """The bare data set of a file."""
    return content[144 + struct.unpack_from("<I", content, 140)[0] :]


# ---- Hounsfield units ---------------------------------------------------------------------------
@cache
def drawn() -> phantom.PhantomStudy:
    """A study whose corners hold the scanner's padding of -3024 HU, and whose skull reaches 1900."""
    study = phantom.draw_study(0, seed=3, matrix=64)
    hounsfield = study.hounsfield.copy()
    hounsfield[:, :3, :3] = phantom.PADDING_HU
    return replace(study, hounsfield=hounsfield, scout=False)


@pytest.mark.parametrize("syntax", phantom.SYNTAXES)
@pytest.mark.parametrize("encoding", list(phantom.ENCODINGS))
def test_every_encoding_in_every_syntax_gives_the_phantoms_hounsfield_units(tmp_path, encoding, syntax):
    """However HU are stored, the very HU of the phantom come back, clipped to the container and at -1024."""
    study, how = replace(drawn(), syntax=syntax), phantom.ENCODINGS[encoding]
    paths = phantom.write_study(study, tmp_path, encoding=encoding)
    low = how.intercept - (2 ** (how.bits - 1) if how.signed else 0)
    low, high = (-1000, 3095) if how.wrapped else (low, low + 2**how.bits - 1)
    for path, hu in list(zip(paths, study.hounsfield, strict=True))[::5]:
        read = read_hounsfield(sound(path))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.maximum(np.clip(hu, low, high), AIR_HU))


@given(
    bits=st.integers(12, 16),
    signed=st.booleans(),
    slope=st.sampled_from(["1", "2", "0.5", "2.0002442", "-1"]),
    intercept=st.sampled_from(["-1024", "-1000", "-4047.25", "-100"]),
    syntax=st.sampled_from(SYNTAXES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_any_integer_pixels_agree_with_pydicom(folder, write_slice, bits, signed, slope, intercept, syntax, seed):
    """Sign, byte order, rubbish in the unused high bits, fractional slope: HU are those of pydicom."""
    stored = np.random.default_rng(seed).integers(0, 2**16, (17, 19))  # all 16 bits are set, though only `bits` count
    tags = {
        "BitsStored": bits,
        "PixelRepresentation": int(signed),
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
    }
    path = write_slice(folder / "any.dcm", syntax=syntax, stored=stored, **tags)
    np.testing.assert_allclose(read_hounsfield(sound(path)), pydicoms_hu(path), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_rubbish_in_unused_high_bits_changes_nothing(tmp_path, write_slice, syntax, signed):
    """Twelve bits read the same whether the four above them are clear or set (PS3.5 8.1.1)."""
    stored = np.arange(0, 4096, 16).reshape(16, 16)
    tags = {"syntax": syntax, "BitsStored": 12, "PixelRepresentation": int(signed)}
    clean = write_slice(
        tmp_path / "clean.dcm", stored=np.where(signed & (stored > 2047), stored - 4096, stored), **tags
    )
    dirty = write_slice(tmp_path / "dirty.dcm", stored=stored ^ 0xA000, **tags)
    np.testing.assert_array_equal(read_hounsfield(sound(clean)), read_hounsfield(sound(dirty)))


def test_each_slice_is_read_by_its_own_slope_and_intercept(tmp_path, write_slice):
    """Two slices of one series with other slopes and intercepts (PET/CT, lossy exports) keep their own."""
    first = write_slice(tmp_path / "1.dcm", RescaleSlope="1.5", RescaleIntercept="-1000", SOPInstanceUID="1.1")
    second = write_slice(tmp_path / "2.dcm", RescaleSlope="0.25", RescaleIntercept="-50.5", SOPInstanceUID="1.2")
    stored = np.arange(900, 1156, dtype=np.float32).reshape(16, 16)
    np.testing.assert_array_equal(read_hounsfield(sound(first)), stored * 1.5 - 1000)
    np.testing.assert_array_equal(read_hounsfield(sound(second)), stored * 0.25 - 50.5)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_monochrome1_is_not_inverted(tmp_path, write_slice, syntax):
    """MONOCHROME1 is a matter of display: the HU are those of the same pixels as MONOCHROME2."""
    one = write_slice(tmp_path / "1.dcm", syntax=syntax, PhotometricInterpretation="MONOCHROME1")
    two = write_slice(tmp_path / "2.dcm", syntax=syntax, PhotometricInterpretation="MONOCHROME2")
    np.testing.assert_array_equal(read_hounsfield(sound(one)), read_hounsfield(sound(two)))


@pytest.mark.parametrize("intercept", ["0", "1", "-99"])
def test_wrapped_12_bit_pixels_are_mended(tmp_path, write_slice, intercept):
    """12-bit unsigned pixels whose HU wrapped at 4096 (123 RSNA slices) come back as the HU they were."""
    hu = np.linspace(-1000, 3095, 256).round().reshape(16, 16)
    tags = {"BitsStored": 12, "PixelRepresentation": 0, "RescaleIntercept": intercept}
    path = write_slice(tmp_path / "w.dcm", stored=hu.astype(int) % 4096, **tags)
    np.testing.assert_array_equal(read_hounsfield(sound(path)), hu)


@pytest.mark.parametrize(
    ("bits", "signed", "intercept"), [(12, 1, "0"), (16, 1, "0"), (16, 0, "0"), (12, 0, "-100"), (12, 0, "-1024")]
)
def test_only_wrapped_pixels_are_mended(tmp_path, write_slice, bits, signed, intercept):
    """Signed, 16-bit or honestly shifted pixels are left alone: the fix of the RSNA winners harms them."""
    stored = np.arange(0, 2048, 8).reshape(16, 16)
    tags = {"BitsStored": bits, "PixelRepresentation": signed, "RescaleIntercept": intercept}
    path = write_slice(tmp_path / "s.dcm", stored=stored, **tags)
    np.testing.assert_array_equal(read_hounsfield(sound(path)), np.maximum(stored + int(intercept), AIR_HU))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("padding", "signed", "intercept"),
    [
        (-2000, 1, "-1024"),  # GE
        (-1500, 1, "0"),  # GE
        (-32768, 1, "-1024"),
        (-32768, 1, "0"),
        (63536, 0, "-1024"),  # -2000 in an unsigned file
        (65535, 0, "-1024"),
        (32767, 1, "-1024"),
    ],
)
def test_padding_outside_tissue_becomes_air(tmp_path, write_slice, padding, signed, intercept, syntax):
    """Pixels outside the scanned circle hold no signal, far below air or far above bone; they become air."""
    stored = np.full((16, 16), 40 - int(intercept))
    stored[0] = padding
    tags = {"PixelRepresentation": signed, "RescaleIntercept": intercept, "PixelPaddingValue": padding}
    path = write_slice(tmp_path / "p.dcm", syntax=syntax, stored=stored, **tags)
    hu = read_hounsfield(sound(path))
    assert (hu[0] == AIR_HU).all()
    assert (hu[1:] == 40).all()


def test_padding_written_signed_into_an_unsigned_file_becomes_air(tmp_path, write_slice):
    """PixelPaddingValue -2000 (SS) beside unsigned pixels of 63536 means those pixels: same bits, other VR."""
    stored = np.full((16, 16), 1064)
    stored[0] = 63536
    path = write_slice(tmp_path / "p.dcm", stored=stored, PixelRepresentation=0, PixelPaddingValue=63536)
    written = path.read_bytes().replace(b"\x28\x00\x20\x01US", b"\x28\x00\x20\x01SS")
    path.write_bytes(written)
    assert dcmread(path).PixelPaddingValue == -2000
    hu = read_hounsfield(sound(path))
    assert (hu[0] == AIR_HU).all()
    assert (hu[1:] == 40).all()


@pytest.mark.parametrize("padding", [0, 1024, 1064, 2000])
def test_padding_inside_the_range_of_tissue_is_left(tmp_path, write_slice, padding):
    """A padding value that tissue may have too punches no holes into the brain."""
    stored = np.full((16, 16), 1064)
    stored[0] = padding
    path = write_slice(tmp_path / "p.dcm", stored=stored, PixelPaddingValue=padding)
    np.testing.assert_array_equal(read_hounsfield(sound(path)), stored - 1024)


def test_air_far_below_air_is_clipped_without_a_padding_tag(tmp_path, write_slice):
    """RSNA files name no padding value: anything below -1024 HU is raised to it all the same."""
    stored = np.full((16, 16), 1064)
    stored[0], stored[1] = -2000, -1
    hu = read_hounsfield(sound(write_slice(tmp_path / "p.dcm", stored=stored)))
    assert set(hu[:2].flat) == {AIR_HU}
    assert (hu[2:] == 40).all()


# ---- headers that are sound ---------------------------------------------------------------------
def test_a_header_is_read_whole(tmp_path, write_slice):
    """Every field of SliceHeader holds what the file says."""
    path = write_slice(
        tmp_path / "a.dcm",
        syntax=RLELossless,
        stored=np.zeros((18, 20), int),
        PatientID=" ID_x ",
        AcquisitionNumber=3,
        InstanceNumber=-7,
        ImagePositionPatient=["-125.5", "-105.497978", "4.1388954e1"],
        ImageOrientationPatient=["1", "0", "0", "0", "0.927184", "-0.374607"],
        PixelSpacing=["0.4", "0.5"],
        BitsStored=12,
        PixelPaddingValue=-2000,
        RescaleSlope="1.5",
        RescaleIntercept="-1000.25",
    )
    status = path.stat()
    assert sound(path) == SliceHeader(
        path=path,
        file="a.dcm",
        patient_id="ID_x",
        study_uid="1.2.3.4",
        series_uid="1.2.3.4.5",
        sop_uid="1.2.3",
        transfer_syntax=RLELossless,
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        acquisition=3,
        instance=-7,
        position_mm=(-125.5, -105.497978, 41.388954),
        orientation=(1, 0, 0, 0, 0.927184, -0.374607),
        rows=18,
        columns=20,
        spacing_mm=(0.4, 0.5),
        bits_stored=12,
        signed=True,
        padding=-2000,
        slope=1.5,
        intercept=-1000.25,
        pixel_offset=path.read_bytes().index(b"\xe0\x7f\x10\x00") + 12,
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
    )


def test_the_least_that_rsna_left_is_enough(tmp_path, write_slice):
    """A header without SOP class, image type, instance number, patient or photometry is a slice (RSNA 2019)."""
    spare = ["SOPClassUID", "ImageType", "AcquisitionNumber", "InstanceNumber", "PatientID", "SamplesPerPixel"]
    header = sound(write_slice(tmp_path / "a.dcm", drop=[*spare, "PhotometricInterpretation", "HighBit"]))
    assert (header.patient_id, header.image_type, header.acquisition, header.instance) == ("", (), 0, 0)


def test_several_windows_are_tolerated(tmp_path, write_slice):
    """Window Center and Width of two values, as in 4 % of RSNA, change nothing."""
    two = write_slice(tmp_path / "2.dcm", WindowCenter=["00040", "00700"], WindowWidth=["00080", "03200"])
    none = write_slice(tmp_path / "0.dcm")
    np.testing.assert_array_equal(read_hounsfield(sound(two)), read_hounsfield(sound(none)))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_rsnas_uids_cause_no_warning(tmp_path, write_slice, caplog, syntax):
    """UIDs like ID_x, in the meta header too, are read in silence, header and pixels."""
    uids = {"SOPInstanceUID": "ID_a", "StudyInstanceUID": "ID_b", "SeriesInstanceUID": "ID_c", "meta_sop": "ID_a"}
    path = write_slice(tmp_path / "ID_a.dcm", syntax=syntax, **uids)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        header = sound(path)
        read_hounsfield(header)
    assert (header.sop_uid, header.study_uid, header.series_uid) == ("ID_a", "ID_b", "ID_c")
    assert not caught
    assert not caplog.records


@pytest.mark.parametrize("charset", [b"ISO-IR 100", b"rubbish   ", b"ISO 2022\\x"])
def test_an_unknown_character_set_causes_no_warning(tmp_path, write_slice, charset):
    """A misspelt character set, common and of no matter here, neither warns nor costs the slice."""
    path = write_slice(tmp_path / "a.dcm", SpecificCharacterSet="ISO_IR 100")
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", charset))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_hounsfield(sound(path))
    assert not caught


@pytest.mark.parametrize("number", ["abc", "nan", "inf", "1e400", "1.5", "", "1\\2", "9" * 30])
@pytest.mark.parametrize("keyword", ["InstanceNumber", "AcquisitionNumber"])
def test_a_senseless_number_that_is_not_needed_counts_as_absent(tmp_path, write_slice, keyword, number):
    """Instance and acquisition number only break ties, so one that is no number does not cost the slice."""
    sound(write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian, drop=[keyword], text={keyword: number}))


def test_a_file_without_preamble_is_read(tmp_path, write_slice):
    """A file that begins with its meta header at byte 0 gives the same HU."""
    path = write_slice(tmp_path / "a.dcm")
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read_hounsfield(sound(bare)), read_hounsfield(sound(path)))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_file_without_meta_header_is_read_in_the_syntax_it_is_in(tmp_path, write_slice, syntax):
    """A bare data set (old archives), implicit or explicit, gives the same HU: no shift of the pixels."""
    path, bare = write_slice(tmp_path / "a.dcm", syntax=syntax), tmp_path / "bare.dcm"
    bare.write_bytes(without_meta(path.read_bytes()))
    np.testing.assert_array_equal(read_hounsfield(sound(bare)), read_hounsfield(sound(path)))


@pytest.mark.parametrize("trailing", [0, 12])
@pytest.mark.parametrize("said", [*SYNTAXES, None])
@pytest.mark.parametrize("written", NATIVE)
def test_a_file_in_another_syntax_than_it_says_is_read_right_or_not_at_all(
    tmp_path, write_slice, written, said, trailing
):
    """A wrong transfer syntax, or none, may cost the slice but never shifts or swaps its pixels."""
    path, wrong = write_slice(tmp_path / "a.dcm", syntax=written), tmp_path / "wrong.dcm"
    content = path.read_bytes()
    content = with_syntax(content, said) if said else without_meta(content)
    padding = struct.pack("<HHI", 0xFFFC, 0xFFFC, trailing) + bytes(trailing)  # (FFFC,FFFC), legal after the pixels
    wrong.write_bytes(content + (padding if trailing and written != ExplicitVRBigEndian else b""))
    hu = hu_or_reason(wrong)
    if not isinstance(hu, Reason):
        np.testing.assert_array_equal(hu, read_hounsfield(sound(path)))


def test_compressed_pixels_in_an_uncompressed_syntax_are_refused(tmp_path, write_slice):
    """Pixel data of undefined length holds fragments; read as plain pixels they would be noise."""
    path = write_slice(tmp_path / "a.dcm")
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = encapsulate([bytes(4096)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.save_as(path)
    path.write_bytes(with_syntax(path.read_bytes(), ExplicitVRLittleEndian))
    assert refused(path).reason == Reason.PIXEL_DATA


CANARY = "Canary"


@pytest.mark.parametrize("drop", [[], ["RescaleSlope"], ["PixelSpacing"]])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_no_patient_text_is_read(tmp_path, write_slice, syntax, drop):
    """Name, birth date, hospital and physician appear in nothing that is returned."""
    private = {
        "PatientName": f"{CANARY}^Yellow",
        "PatientBirthDate": "19331224",
        "InstitutionName": f"{CANARY} hospital",
        "ReferringPhysicianName": f"{CANARY}^Doctor",
        "PatientComments": f"{CANARY} sings",
        "StudyDate": "20241225",
    }
    result = read_header(write_slice(tmp_path / "a.dcm", syntax=syntax, drop=drop, **private), "a.dcm")
    text = repr(result) + repr(astuple(result))
    assert isinstance(result, Unused if drop else SliceHeader)
    assert not any(word in text for word in (CANARY, "1933", "20241225"))


def test_no_element_that_may_name_a_person_is_asked_for():
    """Among the elements read there is no name, date, time, age or free text."""
    assert not {dictionary_VR(keyword) for keyword in KEYWORDS} & {"PN", "DA", "TM", "DT", "AS", "LT", "ST", "UT", "UC"}
    assert [keyword for keyword in KEYWORDS if keyword.startswith("Patient")] == ["PatientID"]


# ---- headers that are not -----------------------------------------------------------------------
@pytest.mark.parametrize("how", ["absent", "empty"])
@pytest.mark.parametrize("keyword", REQUIRED)
def test_each_required_element_is_missed_by_name(tmp_path, write_slice, keyword, how):
    """A slice without one of the elements it cannot do without is refused, and the element is named."""
    change: dict[str, Any] = {"drop": [keyword]} if how == "absent" else {keyword: None}
    unused = refused(write_slice(tmp_path / "a.dcm", **change))
    assert unused.reason == Reason.MISSING_TAG
    assert keyword in unused.detail
    assert unused.fate == "rejected"


HEADERS: dict[str, tuple[dict[str, Any], Reason]] = {
    "slope zero": ({"RescaleSlope": "0"}, Reason.RESCALE),
    "two slopes": ({"RescaleSlope": ["1", "2"]}, Reason.RESCALE),
    "zero rows": ({"Rows": 0}, Reason.DIMENSIONS),
    "65535 rows": ({"Rows": 65535}, Reason.DIMENSIONS),
    "65535 columns": ({"Columns": 65535}, Reason.DIMENSIONS),
    "15 columns": ({"stored": np.zeros((16, 15))}, Reason.DIMENSIONS),
    "8 bits": ({"BitsAllocated": 8, "BitsStored": 8}, Reason.PIXEL_FORMAT),
    "8 of 16 bits": ({"BitsStored": 8}, Reason.PIXEL_FORMAT),
    "32 bits": ({"BitsAllocated": 32, "BitsStored": 32}, Reason.PIXEL_FORMAT),
    "17 of 16 bits": ({"BitsStored": 17}, Reason.PIXEL_FORMAT),
    "representation 2": ({"PixelRepresentation": 2}, Reason.PIXEL_FORMAT),
    "RGB": ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, Reason.PIXEL_FORMAT),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, Reason.PIXEL_FORMAT),
    "two frames": ({"NumberOfFrames": 2}, Reason.MULTI_FRAME),
    "enhanced CT": ({"SOPClassUID": EnhancedCTImageStorage}, Reason.MISSING_TAG),
    "screenshot": ({"SOPClassUID": SCREENSHOT}, Reason.SECONDARY_CAPTURE),
    "multi-frame screenshot": ({"SOPClassUID": MULTI_FRAME_WORD, "NumberOfFrames": 7}, Reason.SECONDARY_CAPTURE),
    "MR": ({"Modality": "MR", "SOPClassUID": MRImageStorage}, Reason.NOT_CT),
    "MR by modality": ({"Modality": "MR"}, Reason.NOT_CT),
    "MR by class": ({"SOPClassUID": MRImageStorage}, Reason.NOT_CT),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALIZER),
    "scout": ({"ImageType": ["DERIVED", "SECONDARY", "ref_surview"]}, Reason.LOCALIZER),
    "sagittal": ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, Reason.NOT_AXIAL),
    "coronal": ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, Reason.NOT_AXIAL),
    "50 degrees": ({"ImageOrientationPatient": [1, 0, 0, 0, 0.6428, -0.766]}, Reason.NOT_AXIAL),
    "long row": ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, Reason.GEOMETRY),
    "no direction": ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, Reason.GEOMETRY),
    "skewed": ({"ImageOrientationPatient": [1, 0, 0, 0.6, 0.8, 0]}, Reason.GEOMETRY),
    "parallel": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, Reason.GEOMETRY),
    "two positions": ({"ImagePositionPatient": [0, 0]}, Reason.GEOMETRY),
    "four positions": ({"ImagePositionPatient": [0, 0, 0, 0]}, Reason.GEOMETRY),
    "five cosines": ({"ImageOrientationPatient": [1, 0, 0, 0, 1]}, Reason.GEOMETRY),
    "one spacing": ({"PixelSpacing": "0.5"}, Reason.GEOMETRY),
    "spacing zero": ({"PixelSpacing": [0, 0.5]}, Reason.GEOMETRY),
    "negative spacing": ({"PixelSpacing": [0.5, -0.5]}, Reason.GEOMETRY),
    "spacing in metres": ({"PixelSpacing": [0.0005, 0.0005]}, Reason.GEOMETRY),
    "huge spacing": ({"PixelSpacing": [500, 500]}, Reason.GEOMETRY),
    "unknown syntax": ({"syntax": "1.2.3.4.5.6"}, Reason.TRANSFER_SYNTAX),
    "8-bit JPEG": ({"syntax": JPEGBaseline8Bit}, Reason.TRANSFER_SYNTAX),
    "no pixels": ({"drop": ["PixelData"]}, Reason.PIXEL_DATA),
    "more rows than pixels": ({"Rows": 17}, Reason.PIXEL_DATA),
    "fewer rows than pixels": ({"Rows": 16, "stored": np.zeros((17, 16))}, Reason.PIXEL_DATA),
}


@pytest.mark.parametrize("case", list(HEADERS))
def test_a_file_that_is_no_usable_slice_is_refused_for_its_reason(tmp_path, write_slice, case):
    """Each fault has its own code, and a fate that tells a rule of ours from a fault of the file."""
    change, reason = HEADERS[case]
    if "syntax" in change:
        path = write_slice(tmp_path / "a.dcm")
        path.write_bytes(with_syntax(path.read_bytes(), change["syntax"]))
    else:
        path = write_slice(tmp_path / "a.dcm", **change)
    unused = refused(path)
    assert unused.reason == reason
    assert unused.fate == ("excluded" if reason in EXCLUDED else "rejected")
    assert unused.detail.endswith(".")


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "-inf", "1e400", "1,5", "0x10", "\x00\x01", "1_0", "1\xa0"])
@pytest.mark.parametrize(
    ("keyword", "count", "reason"),
    [
        ("ImagePositionPatient", 3, Reason.GEOMETRY),
        ("ImageOrientationPatient", 6, Reason.GEOMETRY),
        ("PixelSpacing", 2, Reason.GEOMETRY),
        ("RescaleSlope", 1, Reason.RESCALE),
        ("RescaleIntercept", 1, Reason.RESCALE),
    ],
)
def test_a_number_that_is_none_is_refused(tmp_path, write_slice, keyword, count, reason, value):
    """Text, NaN and infinity where a number must be are told from a sound value, never taken for 0."""
    text = {keyword: "\\".join(["0.5"] * (count - 1) + [value])}
    path = write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian, drop=[keyword], text=text)
    assert refused(path).reason == reason


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RescaleSlope", "1e300", Reason.RESCALE),
        ("RescaleSlope", "1e36", Reason.RESCALE),  # 65535 times it is past float32
        ("RescaleIntercept", "-1e39", Reason.RESCALE),
        ("ImagePositionPatient", "0\\0\\1e300", Reason.GEOMETRY),
    ],
)
def test_a_finite_but_absurd_number_is_refused(tmp_path, write_slice, keyword, value, reason):
    """Numbers that overflow float32 pixels or the distance of two slices never get through the gate."""
    path = write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian, drop=[keyword], text={keyword: value})
    assert refused(path).reason == reason


@pytest.mark.parametrize("value", ["2xyz", "1\\1 ", "abcd"])
@pytest.mark.parametrize("keyword", ["NumberOfFrames", "SamplesPerPixel", "HighBit", "PixelPaddingValue"])
def test_an_optional_number_that_decides_about_pixels_is_not_guessed(tmp_path, write_slice, keyword, value):
    """One that is there and cannot be read is no absent one: its default would be a guess."""
    path = write_slice(tmp_path / "a.dcm", syntax=ImplicitVRLittleEndian, drop=[keyword], text={keyword: value})
    assert refused(path).reason == Reason.PIXEL_FORMAT


@pytest.mark.parametrize("value", [b"2 ", b"1 ", b""])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_element_that_is_there_twice_is_refused(tmp_path, write_slice, syntax, value):
    """Of two slopes one would be taken in silence, and readers differ in which."""
    path = write_slice(tmp_path / "a.dcm", syntax=syntax)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    implicit = syntax == ImplicitVRLittleEndian
    tag = struct.pack(f"{order}HH", 0x0028, 0x1053)
    length = struct.pack(f"{order}I", len(value)) if implicit else b"DS" + struct.pack(f"{order}H", len(value))
    content = path.read_bytes()
    at = content.index(tag)
    path.write_bytes(content[:at] + tag + length + value + content[at:])
    assert refused(path).reason == Reason.DAMAGED_HEADER


def test_two_transfer_syntaxes_are_refused(tmp_path, write_slice):
    """Whoever takes the last and whoever takes the first would read two different images."""
    path = write_slice(tmp_path / "a.dcm")
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI")
    second = b"\x02\x00\x10\x00UI" + struct.pack("<H", 18) + ImplicitVRLittleEndian.encode().ljust(18, b"\0")
    path.write_bytes(content[:at] + second + content[at:])
    assert refused(path).reason == Reason.DAMAGED_HEADER


@pytest.mark.parametrize("vr", [b"UN", b"OF", b"OV", b"UT"])
def test_pixels_of_another_kind_are_not_read_from_the_wrong_byte(tmp_path, write_slice, vr):
    """Their length once was read from the VR, and the image began four bytes early."""
    path = write_slice(tmp_path / "a.dcm", syntax=ExplicitVRLittleEndian)
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(content[: at + 4] + vr + content[at + 6 :])
    assert refused(path).reason == Reason.PIXEL_DATA


def test_a_syntax_that_is_no_uid_is_not_repeated(tmp_path, write_slice):
    """What a file says of itself reaches tables and terminals."""
    path = write_slice(tmp_path / "a.dcm")
    path.write_bytes(with_syntax(path.read_bytes(), "\x1b[2J=evil"))
    unused = refused(path)
    assert unused.reason == Reason.TRANSFER_SYNTAX
    assert unused.detail.isprintable()
    assert "evil" not in unused.detail


def test_cosines_of_three_decimals_are_accepted(tmp_path, write_slice):
    """Some writers round the direction cosines; that is no reason to lose the study."""
    sound(write_slice(tmp_path / "a.dcm", ImageOrientationPatient=[1, 0, 0, 0, 0.948, -0.317]))


@pytest.mark.parametrize("degrees", [-44, 44])
def test_steep_gantry_tilt_is_still_axial(tmp_path, write_slice, degrees):
    """Anything up to 45 degrees from axial is a slice."""
    cosines = [1, 0, 0, 0, round(np.cos(np.deg2rad(degrees)), 6), round(np.sin(np.deg2rad(degrees)), 6)]
    sound(write_slice(tmp_path / "a.dcm", ImageOrientationPatient=cosines))


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("kept", [0, 1, 200, 511])
def test_truncated_pixel_data_is_found_in_the_header_already(tmp_path, write_slice, syntax, kept):
    """A file cut short anywhere in its pixels is refused before its study is taken for whole."""
    path = write_slice(tmp_path / "a.dcm", syntax=syntax)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - 512 + kept])
    assert refused(path).reason == Reason.PIXEL_DATA


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_truncated_compressed_pixels_never_come_back_as_an_image(tmp_path, write_slice, cut):
    """A compressed slice whose end is missing is refused, by header or decoder; nothing is filled in."""
    stored = np.random.default_rng(0).integers(0, 2000, (16, 16))
    path = write_slice(tmp_path / "a.dcm", syntax=RLELossless, stored=stored)
    whole = read_hounsfield(sound(path))
    path.write_bytes(path.read_bytes()[:-cut])
    hu = hu_or_reason(path)
    if cut <= 8 and not isinstance(hu, Reason):  # only the closing delimiter is missing
        np.testing.assert_array_equal(hu, whole)
    else:
        assert hu in (Reason.PIXEL_DATA, Reason.DECODE)


def transcoded(path: Path, syntax: str, change: Callable[[bytes], bytes] = bytes, bits: int = 16) -> Path:
    """Compress a slice with all bits of its words, then do something to its frame; the fragments stay sound."""
    with config.disable_value_validation():
        ds = dcmread(path)
        stored = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
        form = {"bits_allocated": 16, "bits_stored": bits, "samples_per_pixel": 1, "number_of_frames": 1}
        form |= {"pixel_representation": 0, "photometric_interpretation": "MONOCHROME2", "planar_configuration": 0}
        frame = get_encoder(syntax).encode(stored, rows=ds.Rows, columns=ds.Columns, use_mct=False, **form)
        ds.PixelData = encapsulate([change(frame)])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path)
    return path


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut and ended"])
def test_a_jpeg_ls_frame_that_is_cut_short_is_refused(tmp_path, write_slice, end):
    """Some decoders make up the rest without a word, as after a transfer that broke off between two archives."""
    stored = np.random.default_rng(0).integers(0, 2000, (64, 64))
    path = transcoded(write_slice(tmp_path / "a.dcm", stored=stored), JPEGLSLossless)
    np.testing.assert_array_equal(read_hounsfield(sound(path)), stored - 1024)
    for share in (0.3, 0.6, 0.9, 0.98):
        path = write_slice(tmp_path / "b.dcm", stored=stored)
        cut = transcoded(path, JPEGLSLossless, lambda frame, share=share: frame[: int(len(frame) * share)] + end)
        assert hu_or_reason(cut) in (Reason.DECODE, Reason.CODESTREAM)


@pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\0" * 7])
def test_what_pads_the_end_of_a_jpeg_is_no_part_of_it(tmp_path, write_slice, padding):
    """Fragments have even lengths; some writers take FF."""
    stored = np.random.default_rng(0).integers(0, 2000, (64, 64))
    path = write_slice(tmp_path / "a.dcm", stored=stored)
    read = hu_or_reason(transcoded(path, JPEGLSLossless, lambda frame: frame + padding))
    np.testing.assert_array_equal(read, stored - 1024)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("signed", [0, 1])
def test_rubbish_in_unused_high_bits_changes_nothing_in_a_compressed_slice(tmp_path, write_slice, syntax, signed):
    """Overlays of old, or signs that nobody extended, transcoded with all 16 bits."""
    rng = np.random.default_rng(0)
    stored = rng.integers(-2048, 2048, (64, 64)) if signed else rng.integers(0, 4096, (64, 64))
    dirty = (stored & 0xFFF) | (rng.integers(0, 16, (64, 64)) << 12)
    bits = {"BitsStored": 12, "PixelRepresentation": signed}
    clean = write_slice(tmp_path / "clean.dcm", stored=stored, **bits)
    path = transcoded(write_slice(tmp_path / "dirty.dcm", stored=dirty, **bits), syntax)
    np.testing.assert_array_equal(read_hounsfield(sound(path)), read_hounsfield(sound(clean)))


def test_a_codestream_without_end_is_walked_over_in_no_time(tmp_path, write_slice):
    """Tens of megabytes of empty segments, or of tile parts of one tile."""
    stored = np.random.default_rng(0).integers(0, 2000, (64, 64))
    for more in (bytes(12 << 20), b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\1\xff\x93" * (1 << 20)):
        path = write_slice(tmp_path / "a.dcm", stored=stored)
        header = sound(transcoded(path, JPEG2000Lossless))
        began = time.perf_counter()
        with suppress(Refused):
            frame = read_frame_of(header)
            check_tiles(frame[:60] + more + frame[60:])
        assert time.perf_counter() - began < 1


def read_frame_of(header: SliceHeader) -> bytes:
    with header.path.open("rb") as stream:
        stream.seek(header.pixel_offset)
        return read_frame(stream, header.file_bytes)


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path, write_slice, syntax):
    """Such a file is CHANGED; were its status as before, its pixels would still be PIXEL_DATA, not zeros."""
    path = write_slice(tmp_path / "a.dcm", syntax=syntax)
    header = sound(path)
    for left in (header.file_bytes - 1, header.pixel_offset, 10, 0):
        os.truncate(path, left)
        assert reason_for_pixels(header) == Reason.CHANGED
        assert reason_for_pixels(as_it_is_now(header)) == Reason.PIXEL_DATA


def as_it_is_now(header: SliceHeader) -> SliceHeader:
    """A header whose file looks unchanged."""
    status = header.path.stat()
    return replace(header, file_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def test_a_file_written_anew_after_its_header_was_read_is_refused(tmp_path, write_slice):
    """Even of the same size: its slope may be another."""
    path = write_slice(tmp_path / "a.dcm")
    header = sound(path)
    os.utime(path, ns=(0, header.modified_ns + 1))
    assert reason_for_pixels(header) == Reason.CHANGED


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_that_vanishes_after_its_header_was_read_is_refused(tmp_path, write_slice, syntax):
    """A file deleted between the two reads is UNREADABLE and kills nothing else."""
    path = write_slice(tmp_path / "a.dcm", syntax=syntax)
    header = sound(path)
    path.unlink()
    assert reason_for_pixels(header) == Reason.UNREADABLE


def test_a_compressed_file_replaced_after_its_header_was_read_is_refused(tmp_path, write_slice):
    """An image of another size than the header said is not passed on, though the file's status be as before."""
    header = sound(write_slice(tmp_path / "a.dcm", syntax=RLELossless))
    write_slice(tmp_path / "a.dcm", syntax=RLELossless, stored=np.zeros((16, 32), int))
    assert reason_for_pixels(header) == Reason.CHANGED
    assert reason_for_pixels(as_it_is_now(header)) == Reason.DECODE


def test_damaged_frames_are_refused(tmp_path, write_slice):
    """Fragments that are none, a frame that is no RLE, and one of another size than the header says."""
    stored = np.random.default_rng(0).integers(0, 2000, (16, 16))
    path = write_slice(tmp_path / "a.dcm", syntax=RLELossless, stored=stored)
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00") + 12  # past the element, at the offset table
    table = 8 + int.from_bytes(content[at + 4 : at + 8], "little")
    for start, reason in (
        (at, Reason.PIXEL_DATA),
        (at + table, Reason.PIXEL_DATA),
        (at + table + 8, Reason.CODESTREAM),
    ):
        path.write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])
        assert refused(path).reason == reason
    path.write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00\x10\x00", b"\x28\x00\x10\x00US\x02\x00\x20\x00"))
    assert reason_for_pixels(sound(path)) == Reason.DECODE


# ---- files that are no slices at all ------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("readme.txt", b"text\n" * 400, Reason.OTHER_FILE),
        ("labels.csv", b"ID,Label\nID_x_any,0\n", Reason.OTHER_FILE),
        (".DS_Store", b"\x00\x00\x00\x01Bud1", Reason.OTHER_FILE),
        ("empty.txt", b"", Reason.OTHER_FILE),
        ("empty.dcm", b"", Reason.NOT_DICOM),
        ("README", b"text\n" * 400, Reason.NOT_DICOM),
        ("text.dcm", b"text\n" * 400, Reason.NOT_DICOM),
        ("I10", b"", Reason.NOT_DICOM),
        ("1.2.840.1", b"text\n" * 400, Reason.NOT_DICOM),
    ],
)
def test_other_files_are_told_from_broken_slices_by_name(tmp_path, name, content, reason):
    """A table beside the slices is left out; nonsense under a slice's name is reported as wrong."""
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path).reason == reason


@pytest.mark.parametrize("rest", [b"", bytes(2), b"\x02\x00", b"\x08\x00\x05\x00CS", b"\xff" * 400, b"text " * 99])
def test_magic_alone_is_no_sound_file(tmp_path, rest):
    """A preamble followed by nothing or by rubbish is wrong, not merely "not CT"."""
    path = tmp_path / "a.dcm"
    path.write_bytes(MAGIC + rest)
    reason = hu_or_reason(path)
    assert isinstance(reason, Reason)
    assert reason not in EXCLUDED


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_slice_cut_short_anywhere_is_rejected(tmp_path, write_slice, syntax):
    """An interrupted copy is a fault to be told of, wherever it ended; it is never left out as if it were sound."""
    path = write_slice(tmp_path / "a.dcm", syntax=syntax)
    content = path.read_bytes()
    kind = content.rindex(CTImageStorage.encode())
    modality = content.index(b"CT", kind)
    ambiguous = [*range(kind + 1, kind + len(CTImageStorage)), modality + 1]  # half a word is another word
    for kept in range(content.rindex(b"\x10\x00O") if b"\x10\x00O" in content else len(content) - 512):
        path.write_bytes(content[:kept])
        if kept not in ambiguous:
            assert hu_or_reason(path) in set(Reason) - EXCLUDED, kept


def test_an_element_of_impossible_length_is_a_damaged_header(tmp_path, write_slice):
    """Rows of one byte cannot be parsed."""
    path = write_slice(tmp_path / "a.dcm")
    path.write_bytes(
        path.read_bytes().replace(b"\x28\x00\x10\x00US\x02\x00\x10\x00", b"\x28\x00\x10\x00US\x01\x00\x10")
    )
    assert refused(path).reason == Reason.DAMAGED_HEADER


def test_a_dicomdir_is_left_out(tmp_path, write_slice):
    """The index file of a disc is known by its class, in the meta header alone too."""
    path = write_slice(tmp_path / "DICOMDIR", SOPClassUID=None, Modality=None)
    path.write_bytes(path.read_bytes().replace(CTImageStorage.encode() + b"\0", b"%-26b" % b"1.2.840.10008.1.3.10"))
    ds = dcmread(path)
    ds.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    ds.save_as(path)
    assert refused(path).reason == Reason.DICOMDIR


def deflated(path: Path, zeros: int = 0, meta_bytes: int = 2) -> Path:
    """Write a deflated file: the slice of `path` and then `zeros` bytes of a private element."""
    ds, out = dcmread(path), io.BytesIO()
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.file_meta.FileMetaInformationVersion = bytes(meta_bytes)
    ds.save_as(out)
    head = out.getvalue()[: 144 + struct.unpack_from("<I", out.getvalue(), 140)[0]]
    body = zlib.decompress(out.getvalue()[len(head) :], -zlib.MAX_WBITS)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(head + packer.compress(body + bytes(zeros)) + packer.flush())
    return path


@pytest.mark.parametrize("meta_bytes", [2, 2000])
def test_a_deflated_file_is_read_as_any_other(tmp_path, write_slice, meta_bytes):
    """Its pixels are those of the file before it was deflated, however long its meta header."""
    path = write_slice(tmp_path / "a.dcm")
    plain = read_hounsfield(sound(path))
    np.testing.assert_array_equal(read_hounsfield(sound(deflated(path, meta_bytes=meta_bytes))), plain)


@pytest.mark.slow
def test_a_deflated_file_is_inflated_to_a_slice_and_no_further(tmp_path, write_slice):
    """A small file that would inflate to 256 MB is refused in the memory of the largest slice."""
    path = deflated(write_slice(tmp_path / "a.dcm"), zeros=2**28)
    assert path.stat().st_size < 2**19
    tracemalloc.start()
    unused = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert unused.reason == Reason.TOO_LARGE
    assert peak < 3 * MAX_INFLATED_BYTES


def test_deflated_data_that_is_none_is_refused(tmp_path, write_slice):
    """Damage within the data is DAMAGED_HEADER, an end before its end PIXEL_DATA."""
    path = deflated(write_slice(tmp_path / "a.dcm", stored=np.random.default_rng(0).integers(0, 2**15, (64, 64))))
    content = path.read_bytes()
    path.write_bytes(content[:-8000] + b"\xff" * 8000)
    assert refused(path).reason == Reason.DAMAGED_HEADER
    path.write_bytes(content[:-4000])
    assert refused(path).reason == Reason.PIXEL_DATA


def test_special_files_are_not_opened(tmp_path):
    """A pipe (which would block for ever), a folder and a dangling link each end with a reason."""
    pipe, dangling, looped = tmp_path / "pipe.dcm", tmp_path / "dangling.dcm", tmp_path / "looped.dcm"
    os.mkfifo(pipe)
    dangling.symlink_to(tmp_path / "nowhere")
    looped.symlink_to(looped)
    assert refused(pipe).reason == Reason.NOT_REGULAR
    assert refused(tmp_path).reason == Reason.UNREADABLE  # stands for the files of a folder that cannot be listed
    assert refused(dangling).reason == Reason.UNREADABLE
    assert refused(looped).reason == Reason.UNREADABLE


# ---- hostile bytes ------------------------------------------------------------------------------
@cache
def seeds(folder: Path, write: Callable[..., Path]) -> list[bytes]:
    """One good file in each syntax, with a sequence of items on top of what a slice needs."""
    files = []
    for syntax in SYNTAXES:
        path = write(folder / "seed.dcm", syntax=syntax, PixelPaddingValue=-2000, PatientName="A^B")
        files.append(path.read_bytes())
    return files


def check(path: Path) -> None:
    """Reading `path` ends as a slice with finite HU or as a refusal, whatever it holds."""
    hu = hu_or_reason(path)
    if not isinstance(hu, Reason):
        assert np.isfinite(hu).all()
        assert hu.min() >= AIR_HU


@given(content=st.binary(max_size=600), head=st.sampled_from([b"", MAGIC, MAGIC + b"\x02\x00\x10\x00UI", b"\x08\x00"]))
@settings(deadline=None, max_examples=80)
def test_random_bytes_never_raise(folder, content, head):
    """Garbage under a .dcm name, with the magic or without, comes back as a refusal."""
    path = folder / "garbage.dcm"
    path.write_bytes(head + content)
    check(path)


@given(
    which=st.integers(0, len(SYNTAXES) - 1),
    cut=st.none() | st.integers(0, 1400),
    flips=st.lists(st.tuples(st.integers(128, 1000), st.integers(0, 255)), max_size=4),
    inserted=st.tuples(st.integers(128, 1000), st.binary(max_size=12)),
)
@settings(deadline=None, max_examples=200)
def test_damaged_files_never_raise(folder, write_slice, which, cut, flips, inserted):
    """Cut, overwritten and shifted bytes of a good file end as a slice with finite HU or as a refusal."""
    content = bytearray(seeds(folder, write_slice)[which])
    for at, byte in flips:
        content[at % len(content)] = byte
    at, extra = inserted
    content[at:at] = extra
    path = folder / "damaged.dcm"
    path.write_bytes(bytes(content[:cut]))
    check(path)


# ---- the walk -----------------------------------------------------------------------------------
def test_files_are_listed_below_every_folder_and_link_once(tmp_path):
    """Nested folders, links to folders and loops of links: each file once, and the walk ends."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    for name in ("z", "a/y", "a/b/x", "a/b/c/w.dcm"):
        (tmp_path / name).touch()
    (tmp_path / "a/b/loop").symlink_to(tmp_path)
    (tmp_path / "a/b/c/up").symlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a/b/c")
    names = [p.name for p in list_files(tmp_path)]
    assert sorted(names) == ["w.dcm", "x", "y", "z"]
    assert list_files(tmp_path) == sorted(list_files(tmp_path))


def test_the_name_of_a_file_behind_links_does_not_depend_on_the_file_system(tmp_path):
    """Of several ways to one folder the first by name is taken, whatever order the disc lists them in."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").touch()
    for number in range(30):
        (tmp_path / f"link{number:02d}").symlink_to(tmp_path / "real")
    assert list_files(tmp_path) == [tmp_path / "link00/x"]


def test_a_file_instead_of_a_folder_lists_itself(tmp_path):
    """One file may be given where a folder is expected."""
    (tmp_path / "x").touch()
    assert list_files(tmp_path / "x") == [tmp_path / "x"]


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"Manufacturer": "GE", "ManufacturerModelName": "LightSpeed VCT"}, "GE LightSpeed VCT"),
        ({"Manufacturer": "SIEMENS"}, "SIEMENS"),
        ({}, ""),
    ],
)
def test_the_scanner_is_maker_and_model(write_slice, tmp_path, tags, named):
    """Both where both are there, one where one is, nothing where the file was stripped of them."""
    assert read_header(write_slice(tmp_path / "a.dcm", **tags), "a.dcm").scanner == named
