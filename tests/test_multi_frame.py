"""Enhanced CT: each frame of a file is a slice like that of a file of its own, and a bad one costs itself."""

from __future__ import annotations

import io
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ich_seq import phantom
from ich_seq.codestreams import frame_places
from ich_seq.dicom import SliceHeader, read_headers
from ich_seq.hounsfield import read_hounsfield
from ich_seq.reasons import Reason, Refused, Unused
from ich_seq.studies import account, find_studies

STORED = np.random.default_rng(0).integers(0, 4000, (5, 34, 40)).astype(np.uint16)
ORDER = [2, 0, 4, 1, 3]
"""Where each frame lies, from the feet; frames need not be in the order of the head."""


def group(tag: str, **values: object) -> dict[str, list[Dataset]]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return {tag: [item]}


def filled(*groups: dict[str, list[Dataset]]) -> Dataset:
    ds = Dataset()
    for each in groups:
        for tag, value in each.items():
            setattr(ds, tag, value)
    return ds


def enhanced(stored: np.ndarray = STORED) -> Dataset:
    """One sound file of enhanced CT: rescale and orientation shared, positions and slopes of frames their own."""
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, "1.2.3"
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientID = EnhancedCTImageStorage, "1.2.3", "CT", "P"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.ImageType = "1.2.3.4", "1.2.3.4.5", ["ORIGINAL", "PRIMARY", "VOLUME"]
    ds.Rows, ds.Columns, ds.NumberOfFrames = *stored.shape[1:], len(stored)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.SharedFunctionalGroupsSequence = [
        filled(
            group("PixelMeasuresSequence", PixelSpacing=[0.4, 0.5], SliceThickness=5),
            group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
            group("PixelValueTransformationSequence", RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU"),
            group("CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        filled(
            group("PlanePositionSequence", ImagePositionPatient=[-4, -5, 5.0 * place]),
            group("FrameContentSequence", StackID="1", InStackPositionNumber=place + 1, FrameAcquisitionNumber=7),
        )
        for place, _ in zip(ORDER * 9, stored, strict=False)
    ]
    ds.PixelData = stored.astype("<u2").tobytes()
    return ds


def saved(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a file in a syntax, compressed if that is one of compression."""
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax in (RLELossless, JPEG2000Lossless):
        plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
    ds.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        ds.save_as(path, enforce_file_format=True)
    return path


def frames(path: Path) -> list[SliceHeader]:
    headers = read_headers(path, path.name)
    assert all(isinstance(header, SliceHeader) for header in headers), headers
    return [header for header in headers if isinstance(header, SliceHeader)]


def reason(path: Path) -> Reason:
    """Return why a file is refused as a whole."""
    (unused,) = read_headers(path, path.name)
    assert isinstance(unused, Unused)
    assert unused.frame == 0
    return unused.reason


def fates(path: Path) -> list[Reason | None]:
    return [one.reason if isinstance(one, Unused) else None for one in read_headers(path, path.name)]


# ---- what is read


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless]
)
@pytest.mark.parametrize("defined", [True, False])
def test_frames_are_those_of_pydicom(tmp_path, syntax, defined):
    """In every encoding, with lengths told and not, a frame's pixels are pydicom's bit for bit, its place its own."""
    ds = enhanced()
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        ds[sequence].is_undefined_length = not defined
        for item in ds[sequence].value:
            item.is_undefined_length_sequence_item = not defined
            for inner in item:
                inner.is_undefined_length = not defined
    path = saved(ds, tmp_path / "a.dcm", syntax)
    truth = dcmread(path)
    headers = frames(path)
    assert [h.frame for h in headers] == [h.instance for h in headers] == [1, 2, 3, 4, 5]
    for number, header in enumerate(headers):
        np.testing.assert_array_equal(read_hounsfield(header), truth.pixel_array[number].astype(np.float32) - 1024)
        assert header.position_mm == (-4, -5, 5.0 * ORDER[number])
        assert (header.orientation, header.spacing_mm) == ((1, 0, 0, 0, 1, 0), (0.4, 0.5))
        assert (header.acquisition, header.image_type[0]) == (7, "ORIGINAL")


def test_a_frame_has_a_name_of_its_own_and_that_of_its_file(tmp_path):
    """Rows about a frame are told apart by its number behind the SOP Instance UID, which stays to be had."""
    headers = frames(saved(enhanced(), tmp_path / "a.dcm"))
    assert [h.sop_uid for h in headers] == [f"1.2.3_frame{n}" for n in range(1, 6)]
    assert {h.instance_uid for h in headers} == {"1.2.3"}


def test_values_of_a_frame_go_before_shared_ones(tmp_path):
    """Slope, intercept and spacing may be of each frame; what stands outside of the groups is of none."""
    ds = enhanced()
    ds.RescaleIntercept, ds.RescaleSlope, ds.ImagePositionPatient = "99", "99", [9, 9, 9]
    ds.PerFrameFunctionalGroupsSequence[1].update(
        group("PixelValueTransformationSequence", RescaleSlope="2", RescaleIntercept="-1000", RescaleType="HU")
    )
    first, second, *_ = frames(saved(ds, tmp_path / "a.dcm"))
    assert (first.slope, first.intercept, second.slope, second.intercept) == (1, -1024, 2, -1000)
    hu = apply_rescale(STORED[1], ds.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence[0])
    np.testing.assert_array_equal(read_hounsfield(second), np.maximum(hu, -1024))


def test_slices_are_ordered_by_where_frames_lie(tmp_path):
    """The study runs from feet to head, whatever the order of the frames."""
    findings = find_studies(saved(enhanced(), tmp_path / "a.dcm"))
    (study,) = findings.studies
    assert study.positions_mm.tolist() == [0, 5, 10, 15, 20]
    assert [h.frame for h in study.slices] == [1 + ORDER.index(place) for place in range(5)]
    assert findings.n_files == 1


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Studies as files of one slice, and each as one legacy-converted enhanced file."""
    root = tmp_path_factory.mktemp("converted")
    for name in ("single", "legacy"):
        (root / name).mkdir()
    for index in range(2):
        study = phantom.draw_study(index, seed=3, matrix=64)
        paths = phantom.write_study(study, root / "single")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours = [ds for ds in map(dcmread, paths) if "LOCALIZER" not in ds.get("ImageType", "")]
            for ds in ours:
                if ds.file_meta.TransferSyntaxUID.is_compressed:
                    ds.decompress(generate_instance_uid=False)
            LegacyConvertedEnhancedCTImage(
                ours[::-1],
                series_instance_uid=f"1.2.{index}",
                series_number=1,
                sop_instance_uid=f"1.2.{index}.1",
                instance_number=1,
            ).save_as(root / "legacy" / f"{index}.dcm")
    return root


def test_a_legacy_converted_file_is_the_files_it_was_made_of(converted):
    """highdicom's conversion has the positions, the order, the geometry and the HU of the single files."""
    single, legacy = (find_studies(converted / name) for name in ("single", "legacy"))
    assert legacy.n_files == len(legacy.studies) == 2
    for one, other in zip(single.studies, legacy.studies, strict=True):
        assert (one.uid, one.patient_id, one.geometry) == (other.uid, other.patient_id, other.geometry)
        np.testing.assert_array_equal(one.positions_mm, other.positions_mm)
        for h, k in zip(one.slices, other.slices, strict=True):
            np.testing.assert_array_equal(read_hounsfield(h), read_hounsfield(k))


@pytest.mark.slow
def test_predictions_are_the_same_from_every_kind_of_input(converted, write_media, tmp_path):
    """Folder, files one by one, archive, DICOMDIR and multi-frame files give the same probabilities, bit for bit."""
    from attacks.tiny_bundle import write_tiny_bundle

    from ich_seq.prediction import predict

    bundle = write_tiny_bundle(tmp_path / "bundle")
    files = sorted((converted / "single").iterdir())
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.name)
    with zipfile.ZipFile(tmp_path / "multi.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (converted / "legacy").iterdir():
            archive.write(path, path.name)
    write_media(files, tmp_path / "media")
    inputs: dict[str, Any] = {
        "folder": converted / "single",
        "files": files[::-1],
        "archive": tmp_path / "a.zip",
        "dicomdir": tmp_path / "media" / "DICOMDIR",
        "multi-frame": converted / "legacy",
        "multi-frame in an archive": tmp_path / "multi.zip",
    }
    said = {}
    for name, root in inputs.items():
        summary = predict(root, bundle, tmp_path / "out", report=False, device="cpu", workers=0)
        said[name] = {result.study_uid: result.said.tobytes() for result in summary.results}
    assert len(said["folder"]) == 2
    assert [name for name in inputs if said[name] != said["folder"]] == []


# ---- what is not


def remove(ds: Dataset, frame: int, tag: str) -> None:
    delattr(ds.PerFrameFunctionalGroupsSequence[frame], tag)


def put(ds: Dataset, frame: int, tag: str, **values: object) -> None:
    setattr(ds.PerFrameFunctionalGroupsSequence[frame], tag, group(tag, **values)[tag])


ONE_FRAME: dict[str, tuple[Callable[[Dataset], object], Reason]] = {
    "no position": (lambda ds: remove(ds, 2, "PlanePositionSequence"), Reason.MISSING_TAG),
    "far off": (lambda ds: put(ds, 2, "PlanePositionSequence", ImagePositionPatient=[0, 0, 1e6]), Reason.GEOMETRY),
    "sagittal": (
        lambda ds: put(ds, 2, "PlaneOrientationSequence", ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        Reason.NOT_AXIAL,
    ),
    "wide pixels": (lambda ds: put(ds, 2, "PixelMeasuresSequence", PixelSpacing=[50, 50]), Reason.GEOMETRY),
    "no slope": (
        lambda ds: put(ds, 2, "PixelValueTransformationSequence", RescaleSlope="0", RescaleIntercept="0"),
        Reason.RESCALE,
    ),
    "no Hounsfield units": (
        lambda ds: put(
            ds, 2, "PixelValueTransformationSequence", RescaleSlope="1", RescaleIntercept="0", RescaleType="US"
        ),
        Reason.RESCALE,
    ),
    "a scout": (
        lambda ds: put(ds, 2, "CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]),
        Reason.LOCALIZER,
    ),
    "derived": (
        lambda ds: put(ds, 2, "CTImageFrameTypeSequence", FrameType=["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]),
        Reason.OTHER_SERIES,
    ),
}


@pytest.mark.parametrize("how", list(ONE_FRAME))
def test_a_bad_frame_costs_itself_only(tmp_path, how):
    """One frame that is no slice is listed by its number; the file counts as used."""
    change, why = ONE_FRAME[how]
    change(ds := enhanced())
    path = saved(ds, tmp_path / "a.dcm")
    assert fates(path) == [None, None, why, None, None]
    findings = find_studies(path)
    unused, counts = account(findings, ())
    assert [(u.file, u.frame, u.reason, u.study_uid) for u in unused] == [("a.dcm", 3, why, "1.2.3.4")]
    assert (counts.files, counts.used, counts.excluded + counts.rejected, counts.reasons) == (1, 1, 0, {})
    assert counts.lost_frames == (unused[0].fate == "rejected")


WHOLE: dict[str, tuple[Callable[[Dataset], object], Reason]] = {
    "several stacks": (lambda ds: put(ds, 2, "FrameContentSequence", StackID="2"), Reason.MULTI_FRAME),
    "several points of time": (
        lambda ds: put(ds, 2, "FrameContentSequence", StackID="1", TemporalPositionIndex=256),
        Reason.MULTI_FRAME,
    ),
    "fewer groups than frames": (lambda ds: ds.PerFrameFunctionalGroupsSequence.pop(), Reason.MULTI_FRAME),
    "no groups": (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), Reason.MULTI_FRAME),
    "no frames": (lambda ds: setattr(ds, "NumberOfFrames", 0), Reason.MULTI_FRAME),
    "frames without end": (lambda ds: setattr(ds, "NumberOfFrames", 2**31 - 1), Reason.MULTI_FRAME),
    "frames not told": (lambda ds: delattr(ds, "NumberOfFrames"), Reason.MISSING_TAG),
    "fewer pixels than frames": (lambda ds: setattr(ds, "PixelData", ds.PixelData[:-100]), Reason.PIXEL_DATA),
    "more pixels than frames": (lambda ds: setattr(ds, "PixelData", ds.PixelData + bytes(100)), Reason.PIXEL_DATA),
    "no pixels": (lambda ds: delattr(ds, "PixelData"), Reason.PIXEL_DATA),
    "another modality": (lambda ds: setattr(ds, "Modality", "MR"), Reason.NOT_CT),
    "a scout": (lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.LOCALIZER),
    "another class": (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"), Reason.MULTI_FRAME),
}


@pytest.mark.parametrize("how", list(WHOLE))
def test_a_file_whose_frames_mean_nothing_is_one_unused_file(tmp_path, how):
    """What makes all frames doubtful is said once, of the file."""
    change, why = WHOLE[how]
    change(ds := enhanced())
    if how == "another class":
        ds.RescaleSlope, ds.RescaleIntercept = "1", "0"
    assert reason(saved(ds, tmp_path / "a.dcm")) == why


def test_frames_that_are_deflated_together_are_refused(tmp_path):
    """Every frame would have to be inflated for each; the remedy is named."""
    assert reason(saved(enhanced(), tmp_path / "a.dcm", DeflatedExplicitVRLittleEndian)) == Reason.MULTI_FRAME


def test_only_derived_frames_are_a_series_like_any(tmp_path):
    """DERIVED stands back for ORIGINAL only, as with series."""
    ds = enhanced()
    ds.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = [
        "DERIVED",
        "PRIMARY",
        "VOLUME",
        "NONE",
    ]
    assert fates(saved(ds, tmp_path / "a.dcm")) == [None] * 5


def test_frames_that_meet_with_the_same_are_told_once(tmp_path):
    """A file none of whose frames is used for one reason is one line of the list and one of the counts."""
    ds = enhanced()
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    unused, counts = account(find_studies(saved(ds, tmp_path / "a.dcm")), ())
    assert [(u.frame, u.reason) for u in unused] == [(0, Reason.MISSING_TAG)]
    assert (counts.rejected, counts.reasons, counts.lost_frames) == (1, {"missing_tag": 1}, 0)


def test_frames_that_meet_with_several_things_are_told_each(tmp_path):
    """Each frame of an unused file is listed where they differ; the file counts once, as rejected if any frame was."""
    ds = enhanced()
    for frame in range(5):
        put(ds, frame, "PlaneOrientationSequence", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    put(ds, 3, "PixelMeasuresSequence", PixelSpacing=[50, 50])
    remove(ds, 3, "PlaneOrientationSequence")
    unused, counts = account(find_studies(saved(ds, tmp_path / "a.dcm")), ())
    assert [(u.frame, u.reason) for u in unused] == [
        (n, Reason.GEOMETRY if n == 4 else Reason.NOT_AXIAL) for n in range(1, 6)
    ]
    assert (counts.files, counts.used, counts.excluded, counts.rejected) == (1, 0, 0, 1)
    assert counts.reasons == {"geometry": 1}


def test_copies_and_other_series_are_told_once_a_file(tmp_path, write_slice):
    """A copy of a multi-frame file and one that is not chosen are one line each, not one a frame."""
    saved(enhanced(), tmp_path / "a.dcm")
    shutil.copy(tmp_path / "a.dcm", tmp_path / "b.dcm")
    ds = enhanced(STORED[:2])
    ds.SOPInstanceUID, ds.SeriesInstanceUID = "1.2.9", "1.2.3.4.9"
    saved(ds, tmp_path / "c.dcm")
    unused, counts = account(find_studies(tmp_path), ())
    assert {u.file: (u.frame, str(u.reason)) for u in unused} == {
        "b.dcm": (0, "duplicate"),
        "c.dcm": (0, "other_series"),
    }
    assert (counts.used, counts.excluded, len(unused)) == (1, 2, 2)


def test_a_slice_that_takes_the_name_of_a_frame_is_a_conflict(tmp_path, write_slice):
    """A file whose SOP Instance UID is a frame's own name is not mistaken for it: both are refused."""
    saved(enhanced(), tmp_path / "a.dcm")
    write_slice(tmp_path / "b.dcm", SOPInstanceUID="1.2.3_frame2", StudyInstanceUID="1.2.3.4", PatientID="P")
    unused, counts = account(find_studies(tmp_path), ())
    assert {(u.file, u.frame, str(u.reason)) for u in unused} == {
        ("a.dcm", 2, "sop_conflict"),
        ("b.dcm", 0, "sop_conflict"),
    }
    assert (counts.used, counts.rejected, counts.lost_frames) == (1, 1, 1)


# ---- pixels of frames


def test_a_file_that_ends_early_loses_its_last_frames(tmp_path):
    """Uncompressed frames that are there are read; those that the file no longer has are refused by number."""
    path = saved(enhanced(), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[: -STORED[0].nbytes - 10])
    assert fates(path) == [None, None, None, Reason.PIXEL_DATA, Reason.PIXEL_DATA]


def test_a_frame_that_cannot_be_decoded_is_lost_alone(tmp_path):
    """A damaged frame is found out when it is read, listed by its number, and costs no other."""
    ds = enhanced()
    saved(ds, tmp_path / "a.dcm", RLELossless)
    whole = list(generate_frames(ds.PixelData, number_of_frames=5))
    ds.PixelData = encapsulate([frame[: 200 if i == 3 else None] for i, frame in enumerate(whole)])
    saved_again = tmp_path / "a.dcm"
    ds.save_as(saved_again)
    refused = []
    findings = find_studies(saved_again)
    for header in findings.studies[0].slices:
        try:
            read_hounsfield(header)
        except Refused as refusal:
            refused.append(refusal.verdict(header.file, header.frame))
    unused, counts = account(findings, refused)
    assert [(u.frame, u.reason) for u in unused] == [(4, Reason.DECODE)]
    assert (counts.used, counts.lost_frames) == (1, 1)


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("fragments", [1, 3])
def test_fragments_make_frames_as_the_table_says(tmp_path, table, fragments):
    """Frames of one fragment need no table; of several the Basic Offset Table tells, else nothing is guessed."""
    ds = enhanced()
    saved(ds, tmp_path / "a.dcm", RLELossless)
    whole = list(generate_frames(ds.PixelData, number_of_frames=5))
    ds.PixelData = encapsulate(whole, fragments_per_frame=fragments, has_bot=table == "basic")
    if table == "extended":
        starts = np.cumsum([0, *(len(frame) + 8 * fragments for frame in whole[:-1])])
        ds.ExtendedOffsetTable = starts.astype("<u8").tobytes()
        ds.ExtendedOffsetTableLengths = np.array([len(frame) for frame in whole], "<u8").tobytes()
    ds.save_as(tmp_path / "a.dcm")
    if fragments > 1 and table != "basic":
        assert reason(tmp_path / "a.dcm") == Reason.PIXEL_DATA
        return
    for number, header in enumerate(frames(tmp_path / "a.dcm")):
        np.testing.assert_array_equal(read_hounsfield(header), STORED[number].astype(np.float32) - 1024)


@given(
    lengths=st.lists(st.lists(st.integers(1, 30).map(lambda n: 2 * n), min_size=1, max_size=4), min_size=1, max_size=5),
    lie=st.integers(-3, 3),
)
@settings(deadline=None, max_examples=80)
def test_places_of_frames_are_those_of_their_fragments(lengths: Sequence[Sequence[int]], lie: int) -> None:
    """Any frames of any fragments are found again; a table that names a place where no fragment begins is refused."""
    item = lambda data: b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data  # noqa: E731
    sizes = [sum(8 + n for n in frame) for frame in lengths]
    offsets = np.cumsum([0, *sizes[:-1]]) + np.arange(len(lengths)) * lie
    table = offsets.astype("<u4").tobytes()
    data = item(table) + b"".join(item(bytes([i]) * n) for i, frame in enumerate(lengths) for n in frame)
    stream = io.BytesIO(data + b"\xfe\xff\xdd\xe0\0\0\0\0")
    told = lie == 0 or len(lengths) == 1 or all(len(frame) == 1 for frame in lengths)
    if not told:
        with pytest.raises(Refused):
            frame_places(stream, len(data), len(lengths))
        return
    places = frame_places(stream, len(data), len(lengths))
    held = [b"".join(data[start : start + length] for start, length in frame) for frame in places]
    assert held == [bytes([i]) * sum(frame) for i, frame in enumerate(lengths)]


def test_a_large_file_is_not_held_in_memory(tmp_path):
    """Of a file of many frames one frame is read at a time, and its header costs what headers cost."""
    stored = np.zeros((40, 512, 512), np.uint16)
    path = saved(enhanced(stored), tmp_path / "a.dcm")
    tracemalloc.start()
    headers = frames(path)
    read_hounsfield(headers[39])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(headers) == 40
    assert peak < 6 << 20 < path.stat().st_size


def test_single_files_may_not_grow_with_the_limit_of_many_frames(tmp_path, write_slice, monkeypatch):
    """The larger limit is of multi-frame files alone."""
    monkeypatch.setattr("ich_seq.dicom_files.check_size.__defaults__", (2000,))
    assert frames(saved(enhanced(), tmp_path / "a.dcm"))
    assert reason(write_slice(tmp_path / "b.dcm", stored=np.zeros((64, 64)))) == Reason.TOO_LARGE


@pytest.mark.slow
@given(place=st.integers(0, 4000), change=st.binary(min_size=1, max_size=6))
@settings(deadline=None, max_examples=150)
def test_a_spoilt_file_ends_as_verdicts(tmp_path_factory, place, change):
    """Whatever bytes of the header are other ones, nothing is raised and each frame that is used can be read or not."""
    path = tmp_path_factory.getbasetemp() / "spoilt.dcm"
    data = bytearray(saved(enhanced(STORED[:2]), path).read_bytes())
    place %= len(data) - len(change)
    data[place : place + len(change)] = change
    path.write_bytes(data)
    findings, refused = find_studies(path), []
    for header in (h for study in findings.studies for h in study.slices):
        try:
            assert read_hounsfield(header).shape == (header.rows, header.columns)
        except Refused as refusal:
            refused.append(refusal.verdict(header.file, header.frame))
    _, counts = account(findings, refused)
    assert counts.files == 1 == counts.used + counts.excluded + counts.rejected


def test_the_real_perfusion_map_is_refused(shared_data):
    """A genuine enhanced CT of a perfusion map, which holds no Hounsfield units, is rejected with that reason."""
    unused, _ = account(find_studies(shared_data / "multiframe" / "eCT_Supplemental.dcm"), ())
    assert [(u.frame, u.reason) for u in unused] == [(0, Reason.RESCALE)]
