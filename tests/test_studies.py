"""Files into studies: one series each, ordered feet to head whatever lies in the folder, all files accounted for."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.spatial import sort_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ich_seq import NothingUsableError, UsageError, phantom
from ich_seq.dicom import SliceHeader
from ich_seq.inputs import check_input
from ich_seq.reasons import EXCLUDED, Reason, Unused
from ich_seq.studies import (
    Findings,
    Geometry,
    Study,
    account,
    describe,
    find_studies,
    group_studies,
    order_slices,
)

HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LYING = {
    "supine": HEAD_FIRST,
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "on the left side": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
    "on the right side": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0),
    "row mirrored": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "column mirrored": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet first, prone, mirrored": (0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    "transposed and mirrored": (0.0, -1.0, 0.0, -1.0, 0.0, 0.0),
}
BLANK = SliceHeader(
    path=Path("x"),
    file="x",
    patient_id="P",
    study_uid="1",
    series_uid="1.1",
    sop_uid="1.1.1",
    transfer_syntax="1.2.840.10008.1.2",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    acquisition=0,
    instance=0,
    position_mm=(0.0, 0.0, 0.0),
    orientation=HEAD_FIRST,
    rows=16,
    columns=16,
    spacing_mm=(0.5, 0.5),
    bits_stored=16,
    signed=True,
    padding=None,
    slope=1.0,
    intercept=-1024.0,
    pixel_offset=0,
    file_bytes=0,
    modified_ns=0,
)


def header(sop: object, z: float = 0.0, **fields: Any) -> SliceHeader:
    """One slice at height z mm, its file named by its SOP Instance UID."""
    fields = {"file": f"{sop}.dcm", "sop_uid": str(sop), "position_mm": (-100.0, -120.0, z), **fields}
    return replace(BLANK, **fields)


def tilted(orientation: Sequence[float], degrees: float) -> tuple[Any, ...]:
    """Direction cosines turned about the patient's left-right axis, as a gantry tilts."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    return tuple(float(v) for v in (np.reshape(orientation, (2, 3)) @ turn.T).ravel())


def sops(slices: Sequence[SliceHeader]) -> list[str]:
    return [h.sop_uid for h in slices]


def plain(findings: Findings) -> Any:
    """All that a search found, comparable."""
    studies = [
        (s.uid, s.patient_id, s.series_uid, s.slices, s.positions_mm.tolist(), s.geometry) for s in findings.studies
    ]
    return studies, findings.unused, findings.n_files


def reasons(findings: Findings) -> dict[str, Reason]:
    return {u.file: u.reason for u in findings.unused}


def only(findings: Findings) -> Study:
    (study,) = findings.studies
    return study


# ---- order --------------------------------------------------------------------------------------
@given(
    heights=st.lists(st.integers(-9_000, 3_000), min_size=1, max_size=40, unique=True),
    lying=st.sampled_from(list(LYING)),
    degrees=st.floats(-25, 25),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=80)
def test_slices_run_from_feet_to_head(heights, lying, degrees, seed):
    """Any spacing, gantry tilt, mirroring, lying and input order, 1 um of jitter in x: feet first, head last."""
    rng = np.random.default_rng(seed)
    orientation = tilted(LYING[lying], degrees)
    headers = [
        header(f"1.{i}", orientation=orientation, instance=int(rng.integers(99)), position_mm=(x, -120.0, tenths / 10))
        for i, (tenths, x) in enumerate(zip(heights, -100 + rng.uniform(-1e-3, 1e-3, len(heights)), strict=True))
    ]
    slices, positions = order_slices([headers[i] for i in rng.permutation(len(headers))])
    z = np.array([h.position_mm[2] for h in slices])
    assert (np.diff(z) > 0).all()
    assert positions.dtype == np.float64
    np.testing.assert_allclose(np.diff(positions), np.diff(z) * np.cos(np.deg2rad(degrees)), atol=1e-6)


@pytest.mark.parametrize("lying", list(LYING))
@pytest.mark.parametrize("degrees", [-25, 0, 25])
def test_highdicom_orders_alike(tmp_path, write_slice, lying, degrees):
    """highdicom sorts the same files the same way or the other: head to feet unless the image is mirrored."""
    orientation = [round(v, 6) for v in tilted(LYING[lying], degrees)]
    heights = np.random.default_rng(1).permutation(np.cumsum([0, 5, 5, 2.5, 2.5, 12, 1.1]))
    for i, z in enumerate(heights):
        tags = {"SOPInstanceUID": f"1.{i}", "ImagePositionPatient": [-4, -4, z], "FrameOfReferenceUID": "1.2"}
        write_slice(tmp_path / f"{i}.dcm", ImageOrientationPatient=orientation, **tags)
    ours = sops(only(find_studies(tmp_path)).slices)
    theirs = [ds.SOPInstanceUID for ds in sort_datasets([dcmread(path) for path in tmp_path.iterdir()])]
    downward = np.cross(orientation[:3], orientation[3:])[2] > 0
    assert ours == (theirs[::-1] if downward else theirs)


@pytest.mark.parametrize("tilt", [-25.0, 25.0])
def test_gantry_tilt_is_measured_with_its_sign(tilt):
    """A tilt of 25 degrees either way is no obstacle to the order and stands in the geometry."""
    headers = [header(i, z=5.0 * i, orientation=tilted(HEAD_FIRST, tilt)) for i in range(4)]
    (study,), _ = group_studies(headers[::-1])
    assert sops(study.slices) == list("0123")
    assert abs(study.geometry.tilt_deg) == pytest.approx(25)
    normal = np.cross(headers[0].orientation[:3], headers[0].orientation[3:])
    assert np.sign(study.geometry.tilt_deg) == np.sign(normal[1])
    assert study.geometry.spacing_mm == pytest.approx(5 * np.cos(np.deg2rad(25)))


@pytest.mark.parametrize("lying", list(LYING))
def test_mirrored_images_have_the_same_positions(lying):
    """However the patient lies and the image is mirrored, positions rise from feet to head."""
    (study,), _ = group_studies([header(i, z=float(i), orientation=LYING[lying]) for i in range(5)])
    np.testing.assert_allclose(study.positions_mm, np.arange(5.0))


@pytest.mark.parametrize("numbers", [range(9), range(9, 0, -1), [0] * 9, [4, 8, 1, 0, 2, 7, 3, 6, 5]])
def test_instance_numbers_do_not_decide_about_positions(numbers):
    """Instance numbers that rise, fall, repeat or mean nothing leave the order alone."""
    headers = [header(i, z=3.0 * i, instance=n, acquisition=-n) for i, n in enumerate(numbers)]
    slices, _ = order_slices(headers)
    assert slices == tuple(headers)


@given(
    keys=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 999)),
        min_size=1,
        max_size=20,
        unique_by=lambda key: key[3],
    ),
    jitter=st.sampled_from([0.0, 1e-3]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_ties_are_kept_and_broken_by_acquisition_instance_and_uid(keys, jitter, seed):
    """Slices at one position, equal but for a micrometre, all stay: by acquisition, instance number, SOP UID."""
    rng = np.random.default_rng(seed)
    headers = [
        header(f"1.{uid:03d}", z=5.0 * level + rng.uniform(0, jitter), acquisition=acquisition, instance=instance)
        for level, acquisition, instance, uid in keys
    ]
    slices, positions = order_slices([headers[i] for i in rng.permutation(len(headers))])
    found = [(round(h.position_mm[2] / 5), h.acquisition, h.instance, int(h.sop_uid[2:])) for h in slices]
    assert found == sorted(keys)
    assert (np.diff(positions) >= 0).all()
    (study,), _ = group_studies(headers)
    assert study.geometry.duplicates == len(keys) - len({key[0] for key in keys})


def test_the_normal_is_that_of_most_slices():
    """One slice of a stray orientation neither turns the axis nor leaves the series."""
    headers = [header(i, z=5.0 * i, orientation=tilted(HEAD_FIRST, 10)) for i in range(5)]
    headers[2] = replace(headers[2], orientation=HEAD_FIRST)
    (study,), unused = group_studies(headers)
    assert sops(study.slices) == list("01234")
    assert abs(study.geometry.tilt_deg) == pytest.approx(10)
    assert not unused


def test_one_slice_is_a_study():
    """N = 1: one position, no step, one zone."""
    (study,), unused = group_studies([header("1.1", z=7.0)])
    assert (len(study.slices), study.positions_mm.shape, unused) == (1, (1,), [])
    assert study.geometry == Geometry(
        spacing_mm=0, min_spacing_mm=0, max_spacing_mm=0, zones=1, gaps=0, duplicates=0, tilt_deg=0
    )


# ---- geometry -----------------------------------------------------------------------------------
def along(steps: Sequence[float]) -> Geometry:
    return describe(np.concatenate([[0.0], np.cumsum(steps)]), np.array([0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("steps", "zones", "gaps", "duplicates", "spacing"),
    [
        ([5.0] * 30, 1, 0, 0, (5, 5, 5)),
        ([2.5] * 10 + [5.0] * 20, 2, 0, 0, (5, 2.5, 5)),
        ([5.0] * 10 + [2.5] * 12 + [5.0] * 5, 3, 0, 0, (5, 2.5, 5)),
        ([5.0] * 5 + [10.0] + [5.0] * 5, 1, 1, 0, (5, 5, 10)),
        ([10.0] + [5.0] * 5, 1, 1, 0, (5, 5, 10)),
        ([5.0] * 5 + [10.0], 1, 1, 0, (5, 5, 10)),
        ([5.0] * 5 + [155.0] + [5.0] * 5 + [20.0] + [5.0] * 4, 1, 2, 0, (5, 5, 155)),
        ([5.0] * 5 + [0.0] + [5.0] * 5, 1, 0, 1, (5, 5, 5)),
        ([5.0, 0.0, 0.001, 0.0, 5.0, 5.0], 1, 0, 3, (5, 5, 5)),
        ([0.0, 0.0], 1, 0, 2, (0, 0, 0)),
        ([5.0], 1, 0, 0, (5, 5, 5)),
        ([5.0, 20.0], 1, 1, 0, (12.5, 5, 20)),
        ([4.9, 5.1, 5.0, 4.8, 5.2, 5.0] * 4, 1, 0, 0, (5, 4.8, 5.2)),
        ([2.5] * 2 + [5.0] * 20, 1, 0, 0, (5, 2.5, 5)),  # two steps are no zone
    ],
)
def test_spacing_is_described(steps, zones, gaps, duplicates, spacing):
    """Zones, holes, repeated positions and the range of steps are counted as a reader would count them."""
    geometry = along(steps)
    assert (geometry.zones, geometry.gaps, geometry.duplicates) == (zones, gaps, duplicates)
    found = (geometry.spacing_mm, geometry.min_spacing_mm, geometry.max_spacing_mm)
    assert found == pytest.approx(spacing)


@given(steps=st.lists(st.sampled_from([0.0, 1.0, 2.5, 5.0, 5.2, 40.0]), max_size=40))
@settings(deadline=None, max_examples=60)
def test_a_description_does_not_depend_on_the_direction(steps):
    """Upside down, a study has the same zones, holes, duplicates and spacing; all figures are finite."""
    up, down = along(steps), along(steps[::-1])
    assert up.gaps == down.gaps
    assert up.zones == down.zones
    assert up.duplicates == down.duplicates == steps.count(0.0)
    assert (up.spacing_mm, up.min_spacing_mm, up.max_spacing_mm) == pytest.approx(
        (down.spacing_mm, down.min_spacing_mm, down.max_spacing_mm)
    )
    assert up.min_spacing_mm <= up.spacing_mm <= up.max_spacing_mm
    assert up.zones >= 1


# ---- which files make a study -------------------------------------------------------------------
def series(uid: str, n: int, kind: str = "ORIGINAL") -> list[SliceHeader]:
    return [header(f"{uid}.{i}", z=5.0 * i, series_uid=uid, image_type=(kind, "PRIMARY", "AXIAL")) for i in range(n)]


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ([("1.2", 3, "ORIGINAL"), ("1.1", 2, "ORIGINAL")], "1.2"),
        ([("1.1", 30, "DERIVED"), ("1.2", 2, "ORIGINAL")], "1.2"),
        ([("1.1", 3, "DERIVED"), ("1.2", 4, "DERIVED")], "1.2"),
        ([("1.2", 3, "ORIGINAL"), ("1.1", 3, "ORIGINAL")], "1.1"),
        ([("1.2", 3, "ORIGINAL"), ("1.1", 3, "ORIGINAL"), ("1.3", 9, "DERIVED")], "1.1"),
    ],
)
def test_one_series_of_a_study_is_chosen(present, chosen):
    """ORIGINAL before DERIVED, then most slices, then the lower UID; every other slice is listed."""
    headers = [h for uid, n, kind in present for h in series(uid, n, kind)]
    for given_order in (headers, headers[::-1]):
        (study,), unused = group_studies(given_order)
        assert study.series_uid == chosen
        assert {h.series_uid for h in study.slices} == {chosen}
        assert {u.reason for u in unused} == {Reason.OTHER_SERIES}
        assert sorted(u.file for u in unused) == sorted(h.file for h in headers if h.series_uid != chosen)


def test_a_series_that_no_head_has_is_refused(monkeypatch):
    """A study is held in memory as a whole; its other series is taken, and where there is none all is refused."""
    monkeypatch.setattr("ich_seq.studies.MAX_SLICES", 4)
    studies, unused = group_studies([*series("1.9", 5), *series("1.8", 4)])
    assert [study.series_uid for study in studies] == ["1.8"]
    assert {u.reason for u in unused} == {Reason.OTHER_SERIES}
    studies, unused = group_studies(series("1.9", 5))
    assert (studies, [u.reason for u in unused]) == ([], [Reason.TOO_LARGE] * 5)


def test_a_file_refused_twice_is_counted_once(tmp_path, write_slice):
    """Several processes and epochs may each have their own word on a file."""
    write_slice(tmp_path / "a.dcm")
    findings = find_studies(tmp_path)
    twice = [Unused("a.dcm", Reason.DECODE, detail, "1.2.3.4") for detail in ("no answer", "too much work")]
    unused, counts = account(findings, twice)
    assert (counts.files, counts.used, counts.rejected, counts.reasons) == (1, 0, 1, {"decode": 1})
    assert len(unused) == 1


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_files_of_one_uid_with_other_pixels_are_both_refused(tmp_path, write_slice, syntax):
    """Whoever can add a file cannot replace a slice unseen."""
    stored = np.arange(900, 1156).reshape(16, 16)
    write_slice(tmp_path / "a.dcm", syntax=syntax, stored=stored)
    write_slice(tmp_path / "b.dcm", syntax=syntax, stored=stored[::-1])
    assert reasons(find_studies(tmp_path)) == dict.fromkeys(["a.dcm", "b.dcm"], Reason.SOP_CONFLICT)


def test_the_input_is_no_output(tmp_path):
    """Not even a lock is left among the data."""
    with pytest.raises(UsageError, match="--out is the folder of the input"):
        check_input(tmp_path, tmp_path / "." / "")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    check_input(tmp_path, tmp_path / "dangling")


@pytest.mark.slow
def test_reading_that_is_broken_off_leaves_no_process(many, monkeypatch):
    """Whatever ends it, those that read for it end too."""
    monkeypatch.setattr("ich_seq.studies.PARALLEL_FROM", 1)

    def fail(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        find_studies(many, workers=1, progress=fail)
    assert multiprocessing.active_children() == []


def test_copies_are_left_out():
    """The same slice under several names is used once, under the name that sorts first."""
    slices = series("1.1", 3)
    copies = [replace(slices[1], file=name) for name in ("a.dcm", "z.dcm")]
    (study,), unused = group_studies([*slices, *copies])
    assert [h.file for h in study.slices] == ["1.1.0.dcm", slices[1].file, "1.1.2.dcm"]
    assert {u.file: u.reason for u in unused} == dict.fromkeys(("a.dcm", "z.dcm"), Reason.DUPLICATE)


@pytest.mark.parametrize(
    "change",
    [
        {"position_mm": (0.0, 0.0, 99.0)},
        {"orientation": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        {"study_uid": "2"},
        {"series_uid": "1.9"},
        {"rows": 32},
        {"intercept": 0.0},
    ],
)
def test_contradicting_files_of_one_uid_are_both_refused(change):
    """Two files that claim one SOP Instance UID and differ cannot both be right, so neither is taken."""
    slices = series("1.1", 3)
    other = replace(slices[1], file="other.dcm", **change)
    (study,), unused = group_studies([*slices, other])
    assert sops(study.slices) == ["1.1.0", "1.1.2"]
    assert {u.file: u.reason for u in unused} == dict.fromkeys((slices[1].file, "other.dcm"), Reason.SOP_CONFLICT)
    assert {u.fate for u in unused} == {"rejected"}


def test_studies_without_patient_id_stand_alone():
    """Anonymisers empty the Patient ID; two such studies are not one patient."""
    headers = [header(f"{s}.1", study_uid=s, series_uid=f"{s}.0", patient_id="") for s in ("1", "2")]
    studies, _ = group_studies(headers)
    assert len({s.patient_id for s in studies}) == 2
    assert all(s.patient_id for s in studies)


@given(
    choices=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 12), st.sampled_from(["ORIGINAL", "DERIVED"])),
        min_size=1,
        max_size=30,
    ),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_grouping_does_not_depend_on_the_order_of_the_files(choices, seed):
    """Mixed studies, series, copies and contradictions group alike in any order, and every file is somewhere."""
    headers = [
        header(
            f"{study}.{number % 8}",  # equal numbers mod 8 claim one UID
            z=float(number),
            file=f"{i}.dcm",
            study_uid=f"{study}",
            series_uid=f"{study}.{run}",
            image_type=(kind,),
        )
        for i, (study, run, number, kind) in enumerate(choices)
    ]
    shuffled = [headers[i] for i in np.random.default_rng(seed).permutation(len(headers))]
    one, two = (
        plain(Findings(tuple(studies), tuple(sorted(unused, key=lambda u: u.file)), len(headers)))
        for studies, unused in map(group_studies, (headers, shuffled))
    )
    assert one == two
    files = [h.file for study in one[0] for h in study[3]] + [u.file for u in one[1]]
    assert sorted(files) == sorted(h.file for h in headers)


def test_a_study_of_two_patients_is_no_study():
    """Whose head it is cannot be known: all its slices are rejected; one without a Patient ID names nobody."""
    mixed = [header("1.1", z=0.0, patient_id="A", file="a"), header("1.2", z=5.0, patient_id="B", file="b")]
    studies, unused = group_studies(mixed)
    assert studies == []
    assert [(u.file, u.reason) for u in unused] == [("a", Reason.PATIENT_CONFLICT), ("b", Reason.PATIENT_CONFLICT)]
    (study,), unused = group_studies([mixed[0], header("1.2", z=5.0, patient_id="", file="b")])
    assert (study.patient_id, len(study.slices), unused) == ("A", 2, [])


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a")])
def test_of_copies_the_one_that_nobody_compressed_is_used(names):
    """Whatever they are called; of compressed ones the longer, since the other may have been cut short."""
    plain, long, short = (
        header("1.1", file=name, transfer_syntax=syntax, file_bytes=size)
        for name, syntax, size in zip(names, (ExplicitVRLittleEndian, RLELossless, RLELossless), (9, 8, 7), strict=True)
    )
    for copies, chosen in (((short, long, plain), plain), ((short, long), long)):
        (study,), unused = group_studies(copies)
        assert study.slices == (chosen,)
        assert {u.reason for u in unused} == {Reason.DUPLICATE}


# ---- folders ------------------------------------------------------------------------------------
def write_series(
    write: Callable[..., Path], folder: Path, study: str, n: int, *, names: Sequence[str] | None = None, **tags: Any
) -> list[str]:
    """Write n slices feet to head; return their SOP Instance UIDs."""
    folder.mkdir(parents=True, exist_ok=True)
    uids = [f"{study}.{i + 1}" for i in range(n)]
    ids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.0", "PatientID": f"P{study}", **tags}
    for i, uid in enumerate(uids):
        name = names[i] if names else f"{uid}.dcm"
        write(folder / name, SOPInstanceUID=uid, ImagePositionPatient=[-4, -4, 5 * i], **ids)
    return uids


def test_file_names_do_not_matter(tmp_path, write_slice):
    """A study whose names sort against, or have nothing to do with, its order reads like one whose names agree."""
    wanted = write_series(write_slice, tmp_path / "agreeing", "1.5", 12)
    names = ["b", "10.dcm", "9.dcm", "1", "I7.ima", "z.DCM", "0.img", "a", "x.dicom", "c", "02", "11.dcm"]
    assert wanted == write_series(write_slice, tmp_path / "shuffled", "1.5", 12, names=names)
    for folder in ("agreeing", "shuffled"):
        findings = find_studies(tmp_path / folder)
        assert sops(only(findings).slices) == wanted
        assert not findings.unused


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_mixed_studies_are_told_apart(tmp_path, write_slice, layout):
    """Two studies in one flat folder, or strewn over nested ones, come out whole and sorted by UID."""
    for study in ("1.7", "1.6"):
        write_series(write_slice, tmp_path / study, study, 6)
    wanted = {s.uid: sops(s.slices) for s in find_studies(tmp_path).studies}
    assert list(wanted) == ["1.6", "1.7"]
    assert [len(slices) for slices in wanted.values()] == [6, 6]
    mixed = tmp_path / "mixed"
    for number, path in enumerate(sorted(tmp_path.glob("1.*/*.dcm"))):
        folder = mixed / "/".join("ab"[bit == "1"] for bit in f"{number:04b}") if layout == "nested" else mixed
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / path.name)
    findings = find_studies(mixed)
    assert {s.uid: sops(s.slices) for s in findings.studies} == wanted
    assert (findings.n_files, findings.unused) == (12, ())
    assert all(h.path == mixed / h.file for s in findings.studies for h in s.slices)


def test_a_phantom_comes_back_in_order_without_its_scout(tmp_path):
    """A phantom study with a scout beside it is found as it was drawn, position and tilt included."""
    drawn = phantom.draw_study(1, seed=5, matrix=64)
    scout = phantom.write_study(replace(drawn, rsna_style=False, scout=True), tmp_path)[-1].name
    findings = find_studies(tmp_path)
    study = only(findings)
    assert sops(study.slices) == list(drawn.sop_uids)
    assert reasons(findings) == {scout: Reason.LOCALIZER}
    np.testing.assert_allclose(study.positions_mm, drawn.positions_mm, atol=1e-4)
    assert study.geometry.tilt_deg == pytest.approx(drawn.tilt_deg, abs=1e-3)


@pytest.fixture(scope="module")
def many(tmp_path_factory, write_slice) -> Path:
    """More files than are read without worker processes, 16 x 16: two studies, copies, tables, broken files."""
    root = tmp_path_factory.mktemp("many")
    write_series(write_slice, root / "a", "1.5", 260, Rows=16)
    write_series(write_slice, root / "b", "1.6", 260)
    for number in range(4):
        shutil.copy(root / "a/1.5.7.dcm", root / f"copy{number}.dcm")
        (root / f"table{number}.csv").write_text("ID,Label\n")
        (root / f"broken{number}.dcm").write_bytes((root / f"b/1.6.{number + 1}.dcm").read_bytes()[:-1])
    return root


def test_workers_change_nothing(many):
    """Read by this process or by two others, more than 512 files give the same findings, counted as they come."""
    calls: list[tuple[str, int, int]] = []
    alone = find_studies(many, workers=0)
    helped = find_studies(many, workers=2, progress=lambda *call: calls.append(call))
    assert plain(alone) == plain(helped)
    assert Counter(reasons(alone).values()) == {Reason.DUPLICATE: 4, Reason.OTHER_FILE: 4, Reason.PIXEL_DATA: 4}
    assert [len(s.slices) for s in alone.studies] == [260, 260]
    assert calls == [("reading headers", done, 532) for done in range(1, 533)]


KINDS = ["slice", "copy", "conflict", "other series", "localizer", "sagittal", "garbage", "table", "short", "screen"]


def put(write: Callable[..., Path], path: Path, kind: str, study: int, number: int) -> None:
    """Write one file of the given kind; equal numbers of one study claim one SOP Instance UID."""
    uid = f"1.{study}"
    tags: dict[str, Any] = {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{uid}.0"}
    tags |= {"SOPInstanceUID": f"{uid}.0.{number}", "ImagePositionPatient": [0, 0, number]}
    special: dict[str, dict[str, Any]] = {
        "conflict": {"ImagePositionPatient": [0, 0, 99]},
        "other series": {"SeriesInstanceUID": f"{uid}.1", "SOPInstanceUID": f"{uid}.1.{number}"},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SOPInstanceUID": f"{uid}.2.{number}"},
        "sagittal": {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        "screen": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    }
    if kind == "garbage":
        path.write_bytes(b"nothing" * number)
    elif kind == "table":
        path.with_suffix(".csv").write_text("ID,Label\n")
    else:
        write(path, **{**tags, **special.get(kind, {})})
        if kind == "short":
            path.write_bytes(path.read_bytes()[:-5])


@given(
    files=st.lists(
        st.tuples(
            st.sampled_from(KINDS), st.integers(1, 2), st.integers(1, 4), st.sampled_from(["", "a", "a/b", "ID_x"])
        ),
        min_size=1,
        max_size=14,
    )
)
@settings(deadline=None, max_examples=40)
def test_every_file_is_used_or_listed_exactly_once(write_slice, files):
    """Whatever mixture lies in a folder, each file is one slice or one line of the list, and the counts add up."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for i, (kind, study, number, folder) in enumerate(files):
            (root / folder).mkdir(parents=True, exist_ok=True)
            put(write_slice, root / folder / f"{i:02d}.dcm", kind, study, number)
        findings = find_studies(root)
        present = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    used = [h.file for s in findings.studies for h in s.slices]
    listed = [u.file for u in findings.unused]
    assert sorted(used + listed) == present
    assert findings.n_files == len(files) == len(used) + len(listed)
    assert listed == sorted(listed)
    assert [s.uid for s in findings.studies] == sorted({s.uid for s in findings.studies})
    for study in findings.studies:
        assert {(h.study_uid, h.series_uid) for h in study.slices} == {(study.uid, study.series_uid)}
        assert all(a <= b for a, b in pairwise(study.positions_mm))


verdicts = st.lists(st.sampled_from(list(Reason)), max_size=8)


@given(found=verdicts, later=verdicts, used=st.integers(0, 20), data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_account_of_a_run_adds_up(found, later, used, data):
    """Files = used + excluded + rejected, each reason counted; what was refused later stands sorted among the rest."""
    names = data.draw(st.permutations([f"{i:02}.dcm" for i in range(len(found) + len(later))]))
    verdict = [Unused(name, reason, "So it is.") for name, reason in zip(names, [*found, *later], strict=True)]
    files = used + len(verdict)
    unused, counts = account(Findings((), tuple(verdict[: len(found)]), files), verdict[len(found) :])
    assert unused == sorted(verdict, key=lambda u: u.file)
    assert (counts.files, counts.used) == (files, used)
    assert counts.excluded == sum(reason in EXCLUDED for reason in (*found, *later))
    assert counts.rejected == len(verdict) - counts.excluded
    assert counts.reasons == {str(reason): n for reason, n in Counter([*found, *later]).items()}
    assert list(counts.reasons) == sorted(counts.reasons)


def test_links_pipes_and_loops_are_survived(tmp_path, write_slice):
    """A loop of links, a pipe, a dangling link and a hidden file cost nothing but themselves."""
    write_series(write_slice, tmp_path / "a", "1.5", 3)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    os.mkfifo(tmp_path / "pipe")
    findings = find_studies(tmp_path)
    assert len(only(findings).slices) == 3
    assert reasons(findings) == {
        ".DS_Store": Reason.OTHER_FILE,
        "dangling": Reason.UNREADABLE,
        "pipe": Reason.NOT_REGULAR,
    }


def test_one_file_may_be_given(tmp_path, write_slice):
    """The path of a single slice is a study of one."""
    path = write_slice(tmp_path / "one.dcm")
    findings = find_studies(path)
    assert [h.file for h in only(findings).slices] == ["one.dcm"]
    assert findings.n_files == 1


@pytest.mark.parametrize(
    ("folder", "error"), [("missing", UsageError), ("empty", NothingUsableError), ("hollow", NothingUsableError)]
)
def test_a_folder_without_files_is_named(tmp_path, folder, error):
    """A folder that does not exist is a mistake, one that is empty or holds only folders holds nothing usable."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/inner").mkdir(parents=True)
    with pytest.raises(error, match=str(tmp_path / folder)):
        find_studies(tmp_path / folder)


def test_a_folder_of_nothing_usable_is_no_error_here(tmp_path):
    """Files that are all unusable are listed; it is for the caller to find that too little."""
    (tmp_path / "a.txt").write_text("no slice")
    findings = find_studies(tmp_path)
    assert (findings.studies, findings.n_files, reasons(findings)) == ((), 1, {"a.txt": Reason.OTHER_FILE})


def test_one_sop_uid_for_two_patients_or_scales_is_a_conflict(tmp_path, write_slice):
    """Files that agree in place but not in patient or pixel spacing are no copies of each other."""
    for key, change in {"patient": {"PatientID": "B"}, "spacing": {"PixelSpacing": [0.9, 0.9]}}.items():
        folder = tmp_path / key
        folder.mkdir()
        write_slice(folder / "a.dcm", SOPInstanceUID="1.2.3", PatientID="A")
        write_slice(folder / "b.dcm", **({"SOPInstanceUID": "1.2.3", "PatientID": "A"} | change))
        assert reasons(find_studies(folder)) == dict.fromkeys(("a.dcm", "b.dcm"), Reason.SOP_CONFLICT)


def test_a_blank_patient_id_on_one_slice_does_not_make_another_patient(tmp_path, write_slice):
    """The study's patient is the one that any of its slices names, wherever the slice lies."""
    for z in range(3):
        write_slice(
            tmp_path / f"{z}.dcm",
            SOPInstanceUID=f"1.2.{z}",
            ImagePositionPatient=[0, 0, 5.0 * z],
            PatientID="" if z == 0 else "P",
        )
    assert only(find_studies(tmp_path)).patient_id == "P"


def test_the_folder_being_written_is_passed_over(tmp_path, write_slice):
    """An output folder inside the input is no input, whatever it holds."""
    write_slice(tmp_path / "a.dcm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.dcm").write_bytes(b"of an earlier run")
    assert find_studies(tmp_path, skip=tmp_path / "out").n_files == 1
