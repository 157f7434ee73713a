"""Bleeds drawn into heads: where the brain is, what is changed and what is said of it, on phantoms as the patients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import draw_bleeds
import numpy as np
import pandas as pd
import pydicom
import pytest
from draw_bleeds import find_brain, write_drawn

from ich_seq.files import short_hash
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, SUBTYPES, read_labels
from ich_seq.phantom import PhantomSet, draw_study, write_dataset
from ich_seq.phantom_anatomy import draw_head
from ich_seq.studies import Study, find_studies

PIXEL_MM = 1.0
COPIES = 2


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    """Two phantoms in the place of patients."""
    return write_dataset(tmp_path_factory.mktemp("patients"), n_studies=2, seed=4, matrix=192)


@pytest.fixture(scope="module")
def drawn(patients: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    assert write_drawn([patients.dicom], patients.labels, out, copies=COPIES, seed=3, workers=1) == []
    return out


def pairs(patients: PhantomSet, drawn: Path) -> list[tuple[Study, Study]]:
    """Each drawn study beside the one that it was drawn into."""
    before = {study.patient_id: study for study in find_studies(patients.dicom).studies}
    return [(before[study.patient_id], study) for study in find_studies(drawn / "dicom").studies]


def hu_of(study: Study) -> np.ndarray:
    return np.stack([read_hounsfield(header) for header in study.slices])


@pytest.mark.parametrize("seed", range(3))
def test_the_brain_is_found_where_it_was_drawn(seed: int) -> None:
    """Between the base of the skull and the vertex, found and drawn regions overlap by nine tenths (Dice)."""
    head = draw_head(np.arange(0, 150, 5.0), PIXEL_MM, np.random.default_rng(seed))
    rng = np.random.default_rng(0)
    for k in range(12, 25):
        truth = head.brain[k] > 0.5
        found = find_brain(head.hu[k] + rng.normal(0, 4, head.hu[k].shape).astype(np.float32), PIXEL_MM)
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


@pytest.mark.parametrize("hu", [-1000, 40, 1200])
def test_there_is_no_brain_in_air_nor_in_what_has_no_skull_nor_in_bone(hu: int) -> None:
    """Soft tissue that no bone surrounds is an abdomen, or a face."""
    image = np.full((160, 160), -1000, np.float32)
    image[40:120, 40:120] = hu
    assert not find_brain(image, PIXEL_MM).any()


@pytest.mark.slow
def test_a_drawn_study_is_its_patients_and_lies_where_the_head_does(patients, drawn) -> None:
    """The same patient, places and sizes; UIDs of its own, and each copy has other bleeds."""
    found = pairs(patients, drawn)
    assert len(found) == patients.n_studies * COPIES
    assert len({after.uid for _, after in found}) == len(found)
    for before, after in found:
        assert after.uid != before.uid
        assert not {h.sop_uid for h in after.slices} & {h.sop_uid for h in before.slices}
        np.testing.assert_allclose(after.positions_mm, before.positions_mm, atol=1e-3)
        assert after.slices[0].spacing_mm == pytest.approx(before.slices[0].spacing_mm)
    one, two = (hu_of(after) for before, after in found if before is found[0][0])
    assert np.abs(one - two).max() > 20


@pytest.mark.slow
def test_only_the_inside_of_the_skull_is_changed_and_labels_say_where(patients, drawn) -> None:
    """What no label names is as it was, to the rounding; what is named shows 25 mm2 of blood or more; skulls stay."""
    table = read_labels(drawn / "labels.csv").table
    truth = read_labels(patients.labels).table
    for before, after in pairs(patients, drawn):
        was, now = hu_of(before), hu_of(after)
        area_mm2 = np.prod(before.slices[0].spacing_mm)
        for k, header in enumerate(after.slices):
            moved = now[k] - was[k]
            assert (np.abs(moved[was[k] > 250]) <= 1).all()
            assert (np.abs(moved[was[k] < -200]) <= 1).all()
            if header.sop_uid in table.index:
                assert (np.abs(moved) > 5).sum() * area_mm2 > 20
                own = truth.loc[before.slices[k].sop_uid]
                assert (table.loc[header.sop_uid, list(LABELS)] >= own[list(LABELS)]).all()
                assert table.loc[header.sop_uid, "any"] == table.loc[header.sop_uid, list(SUBTYPES)].max() == 1
            else:
                assert (np.abs(moved) > 6.5).sum() * area_mm2 <= 5 * 25  # less than what makes a label, of each kind


@pytest.mark.slow
def test_noise_is_left_where_blood_is_drawn(patients, drawn) -> None:
    """A bleed without the scanner's noise would be known by that: neighbouring pixels differ as much as before."""
    spread = []
    for before, after in pairs(patients, drawn):
        was, now = hu_of(before), hu_of(after)
        inside = (now - was > 15) & (np.roll(now - was, 1, axis=2) > 15)
        if inside.sum() > 200:
            spread.append(np.diff(now, axis=2, prepend=0)[inside].std() / np.diff(was, axis=2, prepend=0)[inside].std())
    assert spread
    assert np.median(spread) == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_other_bleeds(patients, drawn, tmp_path) -> None:
    """Whatever the workers."""
    same, other = tmp_path / "same", tmp_path / "other"
    write_drawn([patients.dicom], patients.labels, same, copies=COPIES, seed=3, workers=2)
    assert tree(same) == tree(drawn)
    write_drawn([patients.dicom], patients.labels, other, copies=1, seed=4, workers=1)
    assert (other / "labels.csv").read_bytes() != (same / "labels.csv").read_bytes()


def tree(folder: Path) -> dict[str, str]:
    return {p.name: short_hash(p.read_bytes().hex()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_head_whose_patient_id_was_emptied_stays_one_patient(patients, tmp_path) -> None:
    """Each of its studies is a patient of its own, and what is drawn into it is of the same."""
    for path in patients.dicom.iterdir():
        ds = pydicom.dcmread(path)
        ds.PatientID = ""
        (tmp_path / "in").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "in" / path.name)
    write_drawn([tmp_path / "in"], patients.labels, tmp_path / "out", copies=1, seed=0, workers=1)
    before, after = (find_studies(root).studies for root in (tmp_path / "in", tmp_path / "out" / "dicom"))
    assert sorted(s.patient_id for s in after) == sorted(s.patient_id for s in before)
    assert len({s.patient_id for s in before}) == patients.n_studies


@pytest.mark.parametrize("what", ["no studies", "no labels", "other labels", "no copies", "a folder in use"])
def test_what_cannot_be_drawn_into_is_refused_and_nothing_written(
    patients, tmp_path, monkeypatch, capsys, what
) -> None:
    """With a sentence and the exit codes of the package."""
    dicom, labels, out, copies = patients.dicom, patients.labels, tmp_path / "out", "1"
    if what == "no studies":
        (dicom := tmp_path / "empty").mkdir()
    elif what == "no labels":
        labels = tmp_path / "none.csv"
    elif what == "other labels":
        labels = tmp_path / "other.csv"
        labels.write_text("ID,Label\n" + "".join(f"ID_0_{label},0\n" for label in LABELS))
    elif what == "no copies":
        copies = "0"
    else:
        (out / "dicom").mkdir(parents=True)
        (out / "dicom" / "a.dcm").touch()
    words = [str(dicom), "--labels", str(labels), "--out", str(out), "--copies", copies, "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["draw_bleeds.py", *words])
    with pytest.raises(SystemExit) as ended:
        draw_bleeds.main()
    assert ended.value.code in {2, 4, 5}
    assert "Error: " in capsys.readouterr().err
    assert not (out / "labels.csv").exists()
    assert what == "a folder in use" or not out.exists()


@pytest.mark.slow
def test_who_has_no_brain_is_left_out_and_named(tmp_path, write_slice: Callable[..., Path]) -> None:
    """A stack of squares is no head."""
    for k in range(4):
        write_slice(tmp_path / f"{k}.dcm", SOPInstanceUID=f"1.2.{k}", ImagePositionPatient=[0, 0, 5 * k])
    studies = find_studies(tmp_path).studies
    rows = [f"{h.sop_uid}_{label},0" for s in studies for h in s.slices for label in LABELS]
    (tmp_path / "labels.csv").write_text("\n".join(["ID,Label", *rows]))
    out = tmp_path / "out"
    assert write_drawn([tmp_path], tmp_path / "labels.csv", out, copies=2, seed=0, workers=1) == [studies[0].uid]
    assert len(pd.read_csv(out / "labels.csv")) == 0
    assert not list((out / "dicom").iterdir())


@pytest.mark.slow
def test_every_kind_of_bleed_is_drawn() -> None:
    """Into 20 copies of one head: hardly one is left without, and all five kinds occur."""
    study = draw_study(1, seed=2, matrix=128, lesions=False)
    hu = study.hounsfield.astype(np.float32)
    seen = np.zeros(len(LABELS), int)
    for seed in range(20):
        found = draw_bleeds.draw_bleeds(hu, study.positions_mm, study.pixel_spacing_mm, np.random.default_rng(seed))
        assert found is not None
        seen += found.targets.any(axis=0)
    assert seen[-1] >= 18
    assert (seen > 0).all()
