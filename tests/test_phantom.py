"""The phantoms: label statistics against the RSNA figures, geometry, encodings, pixels."""

from __future__ import annotations

import csv
import hashlib
import pickle
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import config
from pydicom.pixels.processing import apply_rescale

from ich_seq import OutputError, UsageError, phantom
from ich_seq.labels import LABELS, SUBTYPES
from ich_seq.phantom_labels import DEMO_EPIDURAL, Body, LabelPlan, draw_labels, present_subtypes

STUDIES = 6_000
SIDE = 96


@cache
def drawn_labels() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    counts = np.clip(np.rint(rng.normal(34.5, 5.0, STUDIES)), 20, 60).astype(int)
    return [draw_labels(int(n), rng).targets for n in counts]


@cache
def held() -> NDArray[np.bool_]:
    """(studies, K) which labels each study holds."""
    return np.array([t.any(axis=0) for t in drawn_labels()])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> phantom.PhantomSet:
    return phantom.write_dataset(tmp_path_factory.mktemp("set"), n_studies=8, seed=3, matrix=SIDE, enrich=0.2)


def headers(folder: Path) -> list[Any]:
    with config.disable_value_validation():
        files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
        assert all(list(ds) for ds in files)  # parses every element while ids are tolerated
    return files


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def runs(column: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Lengths of the runs of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], column, [0]])))
    return edges[1::2] - edges[::2]


def projected(ds: Any) -> float:
    """Position of a file on its slice normal, turned towards the head, from the header alone."""
    iop = np.array(ds.ImageOrientationPatient, float)
    normal = np.cross(iop[:3], iop[3:])
    normal *= np.sign(normal[np.argmax(np.abs(normal))])
    return float(normal @ np.array(ds.ImagePositionPatient, float))


# ---- labels -------------------------------------------------------------------------------------
def test_study_prevalence_is_that_of_rsna() -> None:
    """Each label is in as many studies as in the training set, within two points."""
    wanted = [0.016, 0.246, 0.170, 0.182, 0.176, 0.410]
    np.testing.assert_allclose(held().mean(axis=0), wanted, atol=0.02)


@pytest.mark.parametrize(
    ("given", "then", "share"),
    [(1, 2, 0.51), (2, 1, 0.74), (2, 3, 0.55), (3, 1, 0.60), (4, 3, 0.42), (1, 4, 0.30)],
)
def test_subtypes_keep_company_as_in_rsna(given: int, then: int, share: float) -> None:
    """Co-occurrence at study level is that of the training set, within six points."""
    assert held()[held()[:, given], then].mean() == pytest.approx(share, abs=0.06)


def test_number_of_subtypes_in_a_positive_study() -> None:
    """One to four subtypes in 41, 33, 20 and 6 % of the positive studies."""
    counts = np.bincount(held()[:, :5].sum(axis=1), minlength=6)[1:5]
    shares = counts / held()[:, 5].sum()
    np.testing.assert_allclose(shares, [0.408, 0.326, 0.199, 0.063], atol=0.03)


@pytest.mark.parametrize(
    ("label", "mean_run", "single"),
    [("intraparenchymal", 5.5, 0.83), ("intraventricular", 5.2, 0.81),
     ("subarachnoid", 5.7, 0.62), ("subdural", 8.3, 0.76), ("any", 8.5, 0.72)],
)  # fmt: skip
def test_runs_are_as_long_and_as_single_as_in_rsna(label: str, mean_run: float, single: float) -> None:
    """Mean run length within 15 % and the share of single runs within eight points."""
    column = LABELS.index(label)
    lengths = [runs(t[:, column]) for t in drawn_labels() if t[:, column].any()]
    assert np.concatenate(lengths).mean() == pytest.approx(mean_run, rel=0.15)
    assert np.mean([len(found) == 1 for found in lengths]) == pytest.approx(single, abs=0.08)


@pytest.mark.parametrize(
    ("label", "profile"),
    [
        ("any", (0.24, 0.41, 0.55, 0.68, 0.82)),
        ("intraparenchymal", (0.23, 0.39, 0.52, 0.63, 0.78)),
        ("intraventricular", (0.22, 0.38, 0.48, 0.55, 0.64)),
        ("subarachnoid", (0.23, 0.41, 0.58, 0.71, 0.84)),
        ("subdural", (0.30, 0.45, 0.59, 0.71, 0.84)),
    ],
)
def test_bleeds_lie_at_the_heights_of_rsna(label: str, profile: tuple[float, ...]) -> None:
    """Quartiles of relative z within .04; the 5 and 95 % points within .12."""
    column = LABELS.index(label)
    z = np.concatenate([np.flatnonzero(t[:, column]) / (len(t) - 1) for t in drawn_labels()])
    found = np.quantile(z, [0.05, 0.25, 0.50, 0.75, 0.95])
    np.testing.assert_allclose(found[1:4], profile[1:4], atol=0.04)
    np.testing.assert_allclose(found, profile, atol=0.12)


def test_slice_prevalence_of_any() -> None:
    """About one slice in seven is positive (.144 in the training set)."""
    slices = np.concatenate(drawn_labels())
    assert slices[:, -1].mean() == pytest.approx(0.144, abs=0.012)


def test_any_is_the_maximum_of_the_subtypes() -> None:
    """On every slice, as in every row of the training set."""
    slices = np.concatenate(drawn_labels())
    np.testing.assert_array_equal(slices[:, -1], slices[:, :-1].max(axis=1))


def test_gaps_of_one_slice_are_covered_by_a_body() -> None:
    """A gap of one slice is noise of the label, so the bleed goes on through it."""
    rng, gaps = np.random.default_rng(1), 0
    for _ in range(400):
        plan: LabelPlan = draw_labels(34, rng)
        for i, subtype in enumerate(SUBTYPES):
            covered = np.zeros(34, bool)
            for body in plan.bodies:
                covered[body.first : body.last + 1] |= body.subtype == subtype
            extra = covered & (plan.targets[:, i] == 0)
            assert not (plan.targets[:, i].astype(bool) & ~covered).any()
            gaps += int(extra.sum())
    assert gaps > 0


def test_forty_demo_studies_hold_every_class() -> None:
    """Whatever the seed, the enriched demo meets each subtype at least three times in 40."""
    for seed in range(5):
        sets = [present_subtypes(phantom.label_quantile(i, seed), DEMO_EPIDURAL) for i in range(40)]
        assert min(sum(name in held for held in sets) for name in SUBTYPES) >= 3


# ---- pixels -------------------------------------------------------------------------------------
@cache
def bleeding() -> list[tuple[phantom.PhantomStudy, phantom.PhantomStudy]]:
    """Positive studies, each with its twin without the bleeds."""
    found = []
    for index in range(24):
        study = phantom.draw_study(index, seed=5, matrix=SIDE, enrich=0.2)
        if study.targets.any():
            clean = phantom.draw_study(index, seed=5, matrix=SIDE, enrich=0.2, lesions=False)
            found.append((study, clean))
    return found


def test_labelled_slices_are_denser_than_their_twins() -> None:
    """Nine in ten labelled slices gain 15 mm2 of density; other slices gain none, but for noise."""
    labelled, plain = [], []
    for study, clean in bleeding():
        gain = study.hounsfield.astype(int) - clean.hounsfield
        area = (gain > 4).sum(axis=(1, 2)) * study.pixel_spacing_mm**2
        positive = study.targets[:, -1] == 1
        labelled += list(area[positive])
        plain += list(area[~positive])
    assert np.mean(np.array(labelled) > 15) > 0.9
    assert np.mean(np.array(plain) > 15) < 0.05


def test_bleeds_fade_towards_their_ends() -> None:
    """The outermost labelled slice holds less blood than the middle one, the next slice little."""
    body = Body(subtype="subdural", first=10, last=17)
    size = body.size(30)
    assert size[13] > 0.98
    assert 0.5 < size[10] < 0.8
    assert size[9] < 0.3
    assert not size[:9].any()


def test_hounsfield_units_are_plausible() -> None:
    """Brain 20-45, skull above 300, air below -900, on a mid-ventricular stack without bleeds."""
    for _, clean in bleeding()[:4]:
        n, h, w = clean.hounsfield.shape
        centre = clean.hounsfield[int(0.65 * n) : int(0.75 * n), h // 3 : 2 * h // 3, w // 3 : -w // 3]
        assert 20 < np.median(centre) < 45
        assert (clean.hounsfield[n // 2] > 300).mean() > 0.02
        assert clean.hounsfield[n // 2, 0, w // 2] < -900


def test_noise_of_the_scanner_is_that_of_a_head_ct() -> None:
    """Neighbouring pixels correlate, and the spread inside the brain is 2-12 HU."""
    _, clean = bleeding()[0]
    n, side, _ = clean.hounsfield.shape
    patch = clean.hounsfield[int(0.72 * n), side // 2 - 8 : side // 2 + 8, side // 2 + 4 : side // 2 + 14]
    assert 2 < patch.std() < 12
    assert np.corrcoef(patch[:, 1:].ravel(), patch[:, :-1].ravel())[0, 1] > 0.2


def test_a_patient_keeps_the_same_skull_in_two_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two studies of one patient share the id, and neither study nor slice ids."""
    monkeypatch.setattr(phantom, "SHARED_PATIENT", 1.0)
    one, two = (phantom.draw_study(i, seed=0, matrix=32) for i in (2, 3))
    assert one.patient_id == two.patient_id
    assert one.study_uid != two.study_uid
    assert not set(one.sop_uids) & set(two.sop_uids)


def test_study_does_not_hang_on_the_others() -> None:
    """Study 4 drawn alone, twice, and through pickle is one and the same."""
    one, two = (phantom.draw_study(4, seed=1, matrix=48) for _ in range(2))
    np.testing.assert_array_equal(one.hounsfield, two.hounsfield)
    assert one.sop_uids == pickle.loads(pickle.dumps(two)).sop_uids
    assert one.study_uid != phantom.draw_study(4, seed=2, matrix=48).study_uid


# ---- files --------------------------------------------------------------------------------------
def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every file of two runs is equal, and the first studies do not depend on how many follow."""
    few = phantom.write_dataset(tmp_path / "few", n_studies=2, seed=7, matrix=48)
    again = phantom.write_dataset(tmp_path / "again", n_studies=2, seed=7, matrix=48)
    many = phantom.write_dataset(tmp_path / "many", n_studies=3, seed=7, matrix=48)
    assert digests(tmp_path / "few") == digests(tmp_path / "again")
    assert digests(few.dicom).items() <= digests(many.dicom).items()
    assert again.n_slices < many.n_slices


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Two workers leave the files of none behind, and their studies are reported in order."""
    calls: list[tuple[str, int, int]] = []
    alone = phantom.write_dataset(tmp_path / "alone", n_studies=3, seed=7, matrix=32)
    shared = phantom.write_dataset(
        tmp_path / "shared", n_studies=3, seed=7, matrix=32, workers=2, progress=lambda *call: calls.append(call)
    )
    assert digests(tmp_path / "alone") == digests(tmp_path / "shared")
    assert (alone.n_slices, alone.n_files) == (shared.n_slices, shared.n_files)
    assert calls == [("drawing phantoms", done, 3) for done in (1, 2, 3)]


def test_labels_have_exactly_six_rows_a_slice(written: phantom.PhantomSet) -> None:
    """RSNA's long form: header, six labels for each slice of order.csv, each 0 or 1, no repeats."""
    header, *body = rows(written.labels)
    sops = [sop for _, sop, _ in rows(written.order)[1:]]
    assert header == ["ID", "Label"]
    assert [i for i, _ in body] == [f"{sop}_{name}" for sop in sops for name in LABELS]
    assert {value for _, value in body} == {"0", "1"}
    assert len(set(sops)) == len(sops) == written.n_slices
    assert written.n_files == len(list(written.dicom.iterdir()))


def test_positions_in_the_headers_give_the_true_order(written: phantom.PhantomSet) -> None:
    """Projecting ImagePositionPatient on the normal reproduces order.csv to a micrometre."""
    found = {ds.SOPInstanceUID: projected(ds) for ds in headers(written.dicom)}
    table = rows(written.order)[1:]
    for (study, sop, position), following in pairwise([*table, ["", "", ""]]):
        assert found[sop] == pytest.approx(float(position), abs=1e-3)
        assert following[0] != study or float(following[2]) >= float(position)


def test_tilted_and_two_zone_series_occur() -> None:
    """Most gantries are tilted, two in five series change their spacing on the way up."""
    scans = [phantom.draw_scan(64, np.random.default_rng(i)) for i in range(600)]
    zones = [len(np.unique(np.diff(s.table_mm).round(2))) for s in scans if s.acquisition.max() == 1]
    counts = [len(s.table_mm) for s in scans]
    assert np.mean([s.tilt_deg != 0 for s in scans]) == pytest.approx(0.70, abs=0.06)
    assert np.mean(np.array(zones) == 2) == pytest.approx(0.43, abs=0.06)
    assert np.mean(counts) == pytest.approx(34.5, abs=0.7)
    assert min(counts) >= 20
    assert max(counts) <= 60


def test_file_names_carry_no_order(written: phantom.PhantomSet) -> None:
    """Sorted by name, no study comes out in its true order or in the reverse of it."""
    table = rows(written.order)[1:]
    for study in {row[0] for row in table}:
        positions = [float(p) for _, _, p in sorted(r for r in table if r[0] == study)]
        assert positions != sorted(positions)
        assert positions != sorted(positions, reverse=True)


@pytest.mark.parametrize("syntax", phantom.SYNTAXES)
@pytest.mark.parametrize("name", [n for n in phantom.ENCODINGS if n != "u12-wrapped"])
def test_encoding_gives_the_hounsfield_units_back(name: str, syntax: str, tmp_path: Path) -> None:
    """pydicom's own rescale returns the drawn HU within 1, down to what the container holds."""
    study = phantom.draw_study(1, seed=0, matrix=32)
    object.__setattr__(study, "syntax", syntax)
    lowest = max(-1024, phantom.ENCODINGS[name].intercept if name.startswith("u12") else -1024)
    for path, drawn in zip(phantom.write_study(study, tmp_path, encoding=name)[:3], study.hounsfield, strict=False):
        with config.disable_value_validation():
            ds = pydicom.dcmread(path)
            read = apply_rescale(ds.pixel_array, ds)
        wanted = np.clip(drawn, lowest, None)
        np.testing.assert_allclose(np.clip(read, lowest, None), wanted, atol=1)
        assert ds.file_meta.TransferSyntaxUID.is_compressed == (syntax == "rle")


def test_wrapped_encoding_obeys_the_known_repair(tmp_path: Path) -> None:
    """Adding 1000, wrapping at 4096 and an intercept of -1000 bring the HU back."""
    study = phantom.draw_study(1, seed=0, matrix=32)
    path = phantom.write_study(study, tmp_path, encoding="u12-wrapped")[0]
    with config.disable_value_validation():
        stored = pydicom.dcmread(path).pixel_array.astype(int) + 1000
    stored[stored >= 4096] -= 4096
    np.testing.assert_array_equal(stored - 1000, np.clip(study.hounsfield[0], -1000, None))


def test_repeated_pass_has_an_acquisition_number_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices scanned twice share position and labels, differ in noise, and come pass by pass."""
    monkeypatch.setattr(phantom, "REPEATED", 1.0)
    study = phantom.draw_study(0, seed=0, matrix=32)
    same = np.flatnonzero(np.diff(study.positions_mm) == 0)
    assert same.size
    np.testing.assert_array_equal(study.targets[same], study.targets[same + 1])
    assert (study.hounsfield[same] != study.hounsfield[same + 1]).any(axis=(1, 2)).all()
    phantom.write_study(study, tmp_path)
    numbers = {ds.SOPInstanceUID: ds.AcquisitionNumber for ds in headers(tmp_path)}
    assert all(numbers[study.sop_uids[k]] == 1 for k in same)
    assert all(numbers[study.sop_uids[k + 1]] == 2 for k in same)


def test_scout_is_sagittal_and_outside_the_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A localizer is one more file of the study, marked as such, that no slice id names."""
    monkeypatch.setattr(phantom, "SCOUT", 1.0)
    monkeypatch.setattr(phantom, "RSNA_STYLE", 0.0)
    study = phantom.draw_study(0, seed=0, matrix=48)
    last = pydicom.dcmread(phantom.write_study(study, tmp_path)[-1])
    assert last.ImageType[2] == "LOCALIZER"
    assert list(last.ImageOrientationPatient) == [0, 1, 0, 0, 0, -1]
    assert last.StudyInstanceUID == study.study_uid
    assert last.SeriesInstanceUID != study.series_uid
    assert last.SOPInstanceUID not in study.sop_uids


def test_rsna_style_headers_hold_what_rsna_left(written: phantom.PhantomSet) -> None:
    """`ID_` ids come without instance number or maker, valid UIDs with both; each kind occurs."""
    kinds = set()
    for ds in headers(written.dicom):
        rsna = str(ds.SOPInstanceUID).startswith("ID_")
        kinds.add(rsna)
        assert ("InstanceNumber" in ds) != rsna
        assert ("Manufacturer" in ds) != rsna
        assert rsna or pydicom.uid.UID(ds.SOPInstanceUID).is_valid
    assert kinds == {True, False}


def test_writing_leaves_pydicom_as_it_was(tmp_path: Path) -> None:
    """Tolerance for invalid ids is not left switched on behind the caller's back."""
    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    phantom.write_study(phantom.draw_study(0, seed=0, matrix=32), tmp_path)
    after = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    assert before == after


def test_progress_is_called_once_a_study(tmp_path: Path) -> None:
    """A progress bar of n_studies steps ends full."""
    calls: list[tuple[str, int, int]] = []
    phantom.write_dataset(tmp_path, n_studies=2, matrix=32, progress=lambda *call: calls.append(call))
    assert calls == [("drawing phantoms", 1, 2), ("drawing phantoms", 2, 2)]


def test_nonsense_is_refused(tmp_path: Path) -> None:
    """No studies, too few pixels and a folder in use each say what to do instead."""
    with pytest.raises(UsageError, match="one or more"):
        phantom.write_dataset(tmp_path, n_studies=0)
    with pytest.raises(UsageError, match="32 or more"):
        phantom.draw_study(0, seed=0, matrix=16)
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "x").touch()
    with pytest.raises(OutputError, match="empty folder"):
        phantom.write_dataset(tmp_path, n_studies=1)
