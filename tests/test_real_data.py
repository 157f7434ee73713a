"""Real files with real quirks, beside the checkout: what becomes of each, their HU and their order against oracles."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attacks.verdicts import read_header
from highdicom.spatial import sort_datasets
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.pixels.processing import apply_rescale

from ich_seq.config import AIR_HU
from ich_seq.dicom import SliceHeader
from ich_seq.hounsfield import read_hounsfield
from ich_seq.reasons import Reason, Refused
from ich_seq.studies import Study, find_studies, group_studies, order_slices

USED = "used"
JPEG = find_spec("libjpeg") is not None
NEEDS_JPEG = ["*CT2_J[LP]*", "*JPEGLS*", "*JPEGProcess14*", "*JPEGProcess2_4*"]
TABLE = {"README.md": Reason.OTHER_FILE}

# Of copies of one SOP Instance UID an uncompressed one is used; see the README.md of each folder.
FATES: dict[str, dict[str, str]] = {
    "codecs_chest_16ts": {  # one slice in 15 transfer syntaxes; lossy ones have UIDs of their own
        "*BigEndianExplicit*.1.2.2.dcm": Reason.DUPLICATE,
        "*Deflated*": Reason.DUPLICATE,
        "*JPEG2000LosslessOnly*": Reason.DUPLICATE,
        "*JPEG2000Transfer*": USED,
        "*JPEGLSLossless*": Reason.DUPLICATE,
        "*JPEGLSLossy*": USED,
        "*JPEGProcess10_12*": Reason.TRANSFER_SYNTAX,  # retired
        "*JPEGProcess6_8*": Reason.TRANSFER_SYNTAX,  # retired
        "*JPEGProcess14SV1*": Reason.DUPLICATE,
        "*JPEGProcess14Transfer*": Reason.DUPLICATE,
        "*JPEGProcess1Transfer*": Reason.PIXEL_FORMAT,  # 8-bit
        "*JPEGProcess2_4*": USED,
        "*LittleEndianExplicit*": Reason.DUPLICATE,
        "*LittleEndianImplicit*": USED,
        "*RLELossless*": Reason.DUPLICATE,
        **TABLE,
    },
    "codecs_head_ct2": {  # the lossless J2KR, JLSL, JPLL and RLE have UIDs of their own, UNC and HTJ2K share one
        "CT2_HTJ2K": Reason.DUPLICATE,
        "CT2_UNC": USED,
        "CT2_J2K?": USED,
        "CT2_J[LP]??": USED,
        "CT2_RLE": USED,
        **TABLE,
    },
    "cq500_693": {
        "693_J2K?.dcm": Reason.DUPLICATE,
        "693_UNC?.dcm": USED,
        **TABLE,
    },
    "ge_head_tilt": {"[0-2][0-9].dcm": USED, **TABLE},
    "geometry_headers": {"IM-0001-000[1-4].dcm": USED, **TABLE},
    "multiframe": {
        "slice[1-7].dcm": USED,
        "volume.dcm": Reason.SECONDARY_CAPTURE,  # Multi-frame Grayscale Word Secondary Capture
        "eCT_Supplemental.dcm": Reason.RESCALE,  # Enhanced CT of a perfusion map, which holds no Hounsfield units
        **TABLE,
    },
    "philips_phantom_mixed": {
        "S2010/I*": USED,
        "S1000/I10": Reason.LOCALIZER,
        "S4010/I*": Reason.SECONDARY_CAPTURE,
        **TABLE,
    },
    "rsna_single_slices": {"ID_*.dcm": USED, "*.csv": Reason.OTHER_FILE, **TABLE},
}
HEAD_LOSSLESS = ["J2KR", "HTJ2K", "RLE", "JPLL", "JLSL"]
CHEST_LOSSLESS = [
    "*BigEndian*",
    "*LittleEndianImpl*",
    "*RLE*",
    "*J*G2000LosslessOnly*",
    "*J*Process14*",
    "*J*LSLossless*",
]
PIXELS = [
    "codecs_head_ct2/*",
    "cq500_693/*",
    "ge_head_tilt/*",
    "philips*/S2010/*",
    "multiframe/slice*",
    "rsna_single*/*",
]


def header_of(path: Path) -> SliceHeader:
    header = read_header(path, path.name)
    if any(fnmatch(path.name, pattern) for pattern in NEEDS_JPEG) and not JPEG:
        pytest.skip("pylibjpeg-libjpeg is not installed")
    assert isinstance(header, SliceHeader), header
    return header


def hounsfield(path: Path) -> NDArray[np.float32]:
    return read_hounsfield(header_of(path))


def pydicoms_hu(path: Path) -> NDArray[np.float64]:
    with config.disable_value_validation():
        ds = dcmread(path)
        return np.maximum(apply_rescale(ds.pixel_array, ds).astype(np.float64), AIR_HU)


def expected_fate(file: str, fates: dict[str, str]) -> str:
    """The one entry of `fates` that speaks of this file."""
    (pattern,) = [pattern for pattern in fates if fnmatch(file, pattern)]
    needs_jpeg = any(fnmatch(file, needed) for needed in NEEDS_JPEG)
    return Reason.TRANSFER_SYNTAX if needs_jpeg and not JPEG else fates[pattern]


@pytest.mark.parametrize("folder", list(FATES))
def test_the_fate_of_every_file(shared_data, folder):
    """Each real file is used or left out for the reason its README gives, and the counts add up."""
    findings = find_studies(shared_data / folder)
    fates = {h.file: USED for s in findings.studies for h in s.slices} | {u.file: u.reason for u in findings.unused}
    root = shared_data / folder
    present = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    assert sorted(fates) == present
    assert findings.n_files == len(present)
    assert fates == {file: expected_fate(file, FATES[folder]) for file in present}


def test_no_real_file_causes_a_warning(shared_data, caplog):
    """Header and pixels of every real slice are read in silence, RSNA's UIDs and all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for folder in FATES:
            for study in find_studies(shared_data / folder).studies:
                for header in study.slices[:2]:
                    read_hounsfield(header)
    assert [str(w.message) for w in caught] == []
    assert caplog.messages == []


# ---- pixels -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", HEAD_LOSSLESS)
def test_lossless_encodings_of_the_head_slice_agree(shared_data, name):
    """JPEG 2000, HTJ2K, RLE, JPEG lossless and JPEG-LS give the very HU of the uncompressed slice."""
    folder = shared_data / "codecs_head_ct2"
    np.testing.assert_array_equal(hounsfield(folder / f"CT2_{name}"), hounsfield(folder / "CT2_UNC"))


@pytest.mark.parametrize("pattern", CHEST_LOSSLESS)
def test_lossless_encodings_of_the_chest_slice_agree(shared_data, pattern):
    """Both byte orders and every lossless codec give the very HU of the explicit little endian slice."""
    folder = shared_data / "codecs_chest_16ts"
    (reference,) = folder.glob("*LittleEndianExplicit*")
    paths = sorted(folder.glob(pattern))
    assert paths
    for path in paths:
        np.testing.assert_array_equal(hounsfield(path), hounsfield(reference))


@pytest.mark.parametrize(
    ("pattern", "reference", "mean", "largest"),
    [
        ("codecs_head_ct2/CT2_JLSN", "codecs_head_ct2/CT2_UNC", 2, 4),
        ("codecs_head_ct2/CT2_J2KI", "codecs_head_ct2/CT2_UNC", 15, 400),
        ("codecs_chest_16ts/*JPEGLSLossy*", "codecs_chest_16ts/*LittleEndianExplicit*", 1, 1),
        ("codecs_chest_16ts/*JPEG2000Transfer*", "codecs_chest_16ts/*LittleEndianExplicit*", 1, 5),
        ("codecs_chest_16ts/*JPEGProcess2_4*", "codecs_chest_16ts/*LittleEndianExplicit*", 4, 40),
        ("cq500_693/693_J2KI.dcm", "cq500_693/693_UNCR.dcm", 50, 1400),
    ],
)
def test_lossy_encodings_are_close(shared_data, pattern, reference, mean, largest):
    """Lossy pixels differ from the original by their codec's loss and no more: slope, sign, offset are right."""
    (path,), (original,) = shared_data.glob(pattern), shared_data.glob(reference)
    off = np.abs(hounsfield(path) - hounsfield(original))
    assert 0 < off.mean() <= mean
    assert off.max() <= largest


@pytest.mark.parametrize(("one", "other"), [("J2KR", "UNCR"), ("J2KI", "UNCI")])
def test_jpeg_2000_agrees_with_its_own_decoded_copy(shared_data, one, other):
    """BitsStored 16 in J2KR and 14 in UNCR, padding -3024: the same HU all the same."""
    folder = shared_data / "cq500_693"
    decoded = hounsfield(folder / f"693_{one}.dcm")
    np.testing.assert_array_equal(decoded, hounsfield(folder / f"693_{other}.dcm"))
    assert decoded.min() == AIR_HU


@pytest.mark.parametrize("pattern", PIXELS)
def test_hounsfield_units_are_pydicoms(shared_data, pattern):
    """HU of every real slice equal pydicom's pixels by slope and intercept, clipped at -1024."""
    paths = [p for p in sorted(shared_data.glob(pattern)) if p.suffix not in (".md", ".csv")]
    paths = [p for p in paths if JPEG or not any(fnmatch(p.name, needed) for needed in NEEDS_JPEG)]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(hounsfield(path), pydicoms_hu(path))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", [*HEAD_LOSSLESS, "UNC"])
def test_a_truncated_real_slice_is_refused(shared_data, tmp_path, name, kept):
    """A file cut short, whatever its codec, is refused by header or decoder; no decoder fills in the rest."""
    source = shared_data / "codecs_head_ct2" / f"CT2_{name}"
    header_of(source)
    content, path = source.read_bytes(), tmp_path / "cut.dcm"
    path.write_bytes(content[: int(len(content) * kept)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = read_header(path, "cut.dcm")
        if isinstance(header, SliceHeader):
            with pytest.raises(Refused) as refusal:
                read_hounsfield(header)
            assert refusal.value.reason == Reason.DECODE
        else:
            assert header.reason == Reason.PIXEL_DATA


def test_single_slices_hold_the_frames_of_the_multi_frame_file(shared_data):
    """The seven slices of one leg, ordered, are the frames of the same scan in one file, by position."""
    folder = shared_data / "multiframe"
    (study,) = find_studies(folder).studies
    volume = dcmread(folder / "volume.dcm")
    frames = {
        float(group.PlanePositionSequence[0].ImagePositionPatient[2]): frame
        for group, frame in zip(volume.PerFrameFunctionalGroupsSequence, volume.pixel_array, strict=True)
    }
    assert [h.position_mm[2] for h in study.slices] == sorted(frames)
    for header in study.slices:
        np.testing.assert_array_equal(read_hounsfield(header), frames[header.position_mm[2]].astype(np.float32) - 1024)


# ---- order --------------------------------------------------------------------------------------
@pytest.mark.parametrize("folder", ["ge_head_tilt", "philips_phantom_mixed/S2010", "geometry_headers", "multiframe"])
def test_highdicom_orders_alike(shared_data, folder):
    """Feet to head is highdicom's order reversed, for all of these are unmirrored."""
    (study,) = find_studies(shared_data / folder).studies
    theirs = [ds.SOPInstanceUID for ds in sort_datasets([dcmread(h.path) for h in study.slices])]
    assert [h.sop_uid for h in study.slices] == theirs[::-1]


def test_the_ge_head_is_whole(shared_data):
    """28 slices, tilt +18.5 degrees, steps of 1.08 to 7.0 mm, padding of -1500 HU raised to -1024."""
    findings = find_studies(shared_data / "ge_head_tilt")
    (study,) = findings.studies
    assert len(study.slices) == 28
    assert study.geometry.tilt_deg == pytest.approx(18.5, abs=0.01)
    assert study.geometry.min_spacing_mm == pytest.approx(1.08, abs=0.005)
    assert study.geometry.max_spacing_mm == pytest.approx(7.0, abs=0.005)
    assert (study.geometry.zones, study.geometry.gaps, study.geometry.duplicates) == (2, 0, 0)
    for header in study.slices:
        hu = read_hounsfield(header)
        assert hu[0, 0] == AIR_HU == hu.min()
        assert 1000 < hu.max() < 3000


def test_the_siemens_headers_are_ordered(shared_data):
    """Four slices 4.85 mm apart along a normal tilted by 14 degrees."""
    (study,) = find_studies(shared_data / "geometry_headers").studies
    assert study.geometry.tilt_deg == pytest.approx(14, abs=0.01)
    np.testing.assert_allclose(np.diff(study.positions_mm), 4.85, atol=0.01)


# ---- RSNA, 1,110 studies from a table -----------------------------------------------------------
@dataclass(frozen=True)
class Table:
    """All slices of the RSNA table, grouped: headers shuffled, studies found, seconds it took."""

    headers: list[SliceHeader]
    studies: list[Study]
    seconds: float


def rsna_header(row: Any) -> SliceHeader:
    return SliceHeader(
        path=Path(row.image_id),
        file=f"{row.image_id}.dcm",
        patient_id=row.PatientID,
        study_uid=row.StudyInstanceUID,
        series_uid=row.SeriesInstanceUID,
        sop_uid=row.image_id,
        transfer_syntax="1.2.840.10008.1.2",
        image_type=(),
        acquisition=0,
        instance=0,
        position_mm=(row.ImagePositionPatient_1, row.ImagePositionPatient_2, row.ImagePositionPatient_3),
        orientation=(
            row.ImageOrientationPatient_1,
            row.ImageOrientationPatient_2,
            row.ImageOrientationPatient_3,
            row.ImageOrientationPatient_4,
            row.ImageOrientationPatient_5,
            row.ImageOrientationPatient_6,
        ),
        rows=row.Rows,
        columns=row.Columns,
        spacing_mm=(row.PixelSpacing_1, row.PixelSpacing_2),
        bits_stored=row.BitsStored,
        signed=bool(row.PixelRepresentation),
        padding=None,
        slope=row.RescaleSlope,
        intercept=row.RescaleIntercept,
        pixel_offset=0,
        file_bytes=0,
        modified_ns=0,
    )


@pytest.fixture(scope="module")
def table(shared_data) -> Table:
    frame = pd.read_csv(shared_data / "rsna_tables/stage1test_slices.csv.gz")
    geometry = frame.columns[frame.columns.str.contains("Image[PO]|Spacing")]
    frame[geometry] = frame[geometry].astype(float)
    headers = [rsna_header(row) for row in frame.sample(frac=1, random_state=0).itertuples()]
    started = time.perf_counter()
    studies, unused = group_studies(headers)
    assert not unused
    return Table(headers, studies, time.perf_counter() - started)


@pytest.mark.slow
def test_rsna_studies_are_ordered_as_numpy_orders_them(table):
    """1,110 real studies, shuffled, run feet to head: by projection on the normal, equal ones by UID."""
    assert len(table.studies) == 1110
    by_study: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in table.headers:
        by_study[header.study_uid].append(header)
    for study in table.studies:
        headers = by_study[study.uid]
        cosines = pd.DataFrame([h.orientation for h in headers]).mode().to_numpy()[0]
        normal = np.cross(cosines[:3], cosines[3:])
        normal *= np.sign(normal[2]) / np.linalg.norm(normal)
        along = np.array([h.position_mm for h in headers]) @ normal
        names = np.array([h.sop_uid for h in headers])
        level = pd.Series(along).sort_values().diff().gt(0.01).cumsum().sort_index()  # repeated passes: 5 um apart
        order = np.lexsort((names, level))
        slices, positions = order_slices(headers)
        assert [h.sop_uid for h in slices] == names[order].tolist()
        assert slices == study.slices
        np.testing.assert_allclose(positions, along[order], atol=0.01)
        assert (np.diff(positions) >= 0).all()


def test_rsna_geometry_is_as_published(table):
    """42 % of the studies have two zones or more, 14 repeat positions, 91.4 % are tilted."""
    geometries = [study.geometry for study in table.studies]
    assert np.mean([g.zones >= 2 for g in geometries]) == pytest.approx(0.42, abs=0.02)
    assert sum(g.duplicates > 0 for g in geometries) == 14
    assert np.mean([abs(g.tilt_deg) > 1 for g in geometries]) == pytest.approx(0.914, abs=0.01)
    assert max(g.tilt_deg for g in geometries) <= 30.5
    assert min(g.tilt_deg for g in geometries) >= -18.5


def test_rsna_is_grouped_in_seconds(table):
    """39,409 slices are grouped, ordered and described in less than ten seconds."""
    assert sum(len(study.slices) for study in table.studies) == 39_409
    assert table.seconds < 10


# ---- CT-ICH, rebuilt as DICOM -------------------------------------------------------------------
@pytest.fixture(scope="module")
def ct_ich(shared_data, tmp_path_factory) -> Path:
    """Six patients as a flat folder of shuffled DICOM files, with the true order beside it."""
    out = tmp_path_factory.mktemp("ct_ich")
    tool = shared_data.parent / "tools/ctich_to_dicom.py"
    subprocess.run([sys.executable, str(tool), str(out), "--patients", "6"], check=True, capture_output=True)
    return out


def test_ct_ich_studies_come_back_in_their_true_order(ct_ich):
    """Both bit depths, both syntaxes, three tilts: every file is used, each study in the order it was made."""
    wanted: dict[str, list[str]] = defaultdict(list)
    heights: dict[str, list[float]] = defaultdict(list)
    with (ct_ich / "order.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            wanted[row["study"]].append(row["sop"])
            heights[row["study"]].append(float(row["position_mm"]))
    findings = find_studies(ct_ich / "dicom")
    assert findings.unused == ()
    assert {s.uid: [h.sop_uid for h in s.slices] for s in findings.studies} == wanted
    assert len(wanted) == 6
    for study in findings.studies:
        np.testing.assert_allclose(np.diff(study.positions_mm), np.diff(heights[study.uid]), atol=1e-4)
        assert study.geometry.zones == 1
        assert round(study.geometry.tilt_deg) in (0, 14, -8)
        for header in study.slices[:: len(study.slices) // 3]:
            np.testing.assert_array_equal(read_hounsfield(header), pydicoms_hu(header.path))
