"""predict as a function: the pages beside the tables, whom they name, and what an older run left."""

from __future__ import annotations

import csv
import re
import shutil
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import config, dcmread

from ich_seq import NothingUsableError, UsageError
from ich_seq.bundle import Calibrations, save_bundle
from ich_seq.calibration import Calibration
from ich_seq.config import Rnn
from ich_seq.files import short_hash
from ich_seq.labels import LABELS
from ich_seq.model import SequenceModel
from ich_seq.novelty import Familiar
from ich_seq.prediction import predict
from ich_seq.study_pages import study_page

K = len(LABELS)
TABLES = {"studies.csv", "slices.csv", "submission.csv", "rejected.csv"}
NAME = "Haemorrhagicus^Testudo"
PATIENTS = {"1.2.30": "ZQX-4711-A", "1.2.4": "ZQX-4711-B", "1.2.5": "ZQX-4711-A"}
SLICES = {"1.2.30": 12, "1.2.4": 1, "1.2.5": 4}


@pytest.fixture(scope="module")
def bundle(headed_encoders, execution, tmp_path_factory):
    """A bundle of two encoders and a sequence model, all of random weights."""
    root, dim, rng = tmp_path_factory.mktemp("bundle"), headed_encoders[0].spec.dim, np.random.default_rng(0)
    torch.manual_seed(0)
    calibration = Calibration(share=np.full(K, 0.5), slope=np.ones(K), intercept=np.zeros(K))
    save_bundle(
        root,
        encoders=headed_encoders,
        execution=execution,
        models=[SequenceModel(dim, Rnn(projection=8, hidden=8, layers=1)).eval()],
        calibrations=Calibrations(slices=calibration, studies=calibration),
        familiar=Familiar(
            rng.normal(size=(2, dim)).astype(np.float32),
            np.ones((2, dim), np.float32),
            np.zeros((2, 1, dim), np.float32),
            1.0,
        ),
        facts={"training": {"studies": 7, "patients": 6}},
    )
    return root


@pytest.fixture(scope="module")
def dicom(write_slice, tmp_path_factory):
    """Three studies of two patients, each with an ID, a name and a birth date, and a file that is none."""
    root, rng = tmp_path_factory.mktemp("dicom"), np.random.default_rng(0)
    for uid, patient in PATIENTS.items():
        for i in range(SLICES[uid]):
            write_slice(
                root / f"{uid}-{i}.dcm",
                stored=rng.integers(900, 1200, (16, 16)),
                PixelSpacing=[5, 5],
                ImagePositionPatient=[-40, -40, 5 * i],
                StudyInstanceUID=uid,
                SOPInstanceUID=f"{uid}.{i}",
                PatientID=patient,
                PatientName=NAME,
                OtherPatientNames=NAME,
                PatientBirthDate="19470911",
            )
    (root / "bad.dcm").write_text("bad")
    return root


@pytest.fixture
def run(dicom, bundle, tmp_path):
    """Predict the studies, or those of another folder, into a folder of this name; returns it."""

    def run(name="out", root=dicom, **how) -> Path:
        predict(root, bundle, tmp_path / name, device="cpu", workers=0, **how)
        return tmp_path / name

    return run


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text_of(path: Path) -> str:
    """A page without its tags, cells apart."""
    return unescape(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")))


def test_a_report_is_a_worklist_and_a_page_for_each_study(run):
    """Beside the tables lie report.html and as many pages as studies, and nothing else."""
    found = tree(run())
    assert found.keys() == TABLES | {"run.json", "report.html"} | {study_page(uid) for uid in PATIENTS}


def test_without_a_report_the_tables_are_the_same_byte_for_byte(run):
    """Neither page nor folder is made, and every other file is as it is beside a report."""
    plain, beside = run("plain", report=False), run("beside", report=True)
    assert tree(plain).keys() == TABLES | {"run.json"}
    assert not (plain / "report").exists()
    assert tree(plain) == {name: data for name, data in tree(beside).items() if not name.startswith("report")}


def test_the_worklist_has_every_study_in_the_order_of_the_table(run):
    """report.html names and links each, likeliest first, with the probabilities that stand in studies.csv."""
    out = run()
    html = (out / "report.html").read_text()
    rows = rows_of(out / "studies.csv")
    assert {row["study_uid"] for row in rows} == PATIENTS.keys()
    places = [html.index(f'<a href="{study_page(row["study_uid"])}">{row["study_uid"]}</a>') for row in rows]
    assert all(a < b for a, b in pairwise(places))
    for row, start, end in zip(rows, places, [*places[1:], len(html)], strict=True):
        for label in LABELS:
            assert f"{float(row[label]):.3f}" in html[start:end]


def test_the_pages_say_what_the_tables_say(run):
    """Of each slice the blend's, of each study those of the parts too, its slices, its novelty and its patient."""
    out = run()
    slices = rows_of(out / "slices.csv")
    for study in rows_of(out / "studies.csv"):
        said = " ".join(text_of(out / study_page(study["study_uid"])).split())
        for label in LABELS:
            three = [f"{float(study[prefix + label]):.3f}" for prefix in ("", "cnn_", "rnn_")]
            assert f"{label} {' '.join(three)}" in said
        own = [row for row in slices if row["study_uid"] == study["study_uid"]]
        assert len(own) == SLICES[study["study_uid"]]
        for number, row in enumerate(own, start=1):
            six = " ".join(f"{float(row[label]):.3f}" for label in LABELS)
            assert f"{number} {float(row['position_mm']):.1f} {six} {row['sop_uid']}" in said
        assert f"patient of this run {study['patient']} " in said
        assert f"novelty {float(study['novelty']):.2f} " in said


@pytest.mark.parametrize("report", [True, False])
def test_no_patient_is_named_unless_asked_for(run, dicom, report):
    """No file written, nor its name, holds a Patient ID, a name or a birth date that the DICOM files hold."""
    secrets = [NAME, *NAME.split("^"), "ZQX-4711", "19470911"]
    assert all(secret.encode() in (dicom / "1.2.30-0.dcm").read_bytes() for secret in secrets)
    found = tree(run(report=report))
    for name, data in found.items():
        assert not [secret for secret in secrets if secret.encode() in data or secret in name]


def test_patient_ids_and_file_names_stand_where_asked_for(run):
    """A column more in studies.csv, a fact more on each page, names for hashes in rejected.csv; never the patient's."""
    plain, named = run("plain"), run("named", phi=True)
    for row in rows_of(named / "studies.csv"):
        uid = row["study_uid"]
        assert row.pop("patient_id") == PATIENTS[uid]
        assert row == next(other for other in rows_of(plain / "studies.csv") if other["study_uid"] == uid)
        page, without = ((out / study_page(uid)).read_text().split() for out in (named, plain))
        assert "".join(page).replace(f"<dt>PatientID</dt><dd>{PATIENTS[uid]}</dd>", "", 1) == "".join(without)
        assert page != without
    found, without = tree(named), tree(plain)
    assert {name for name in found if found[name] != without[name]} == {
        "studies.csv",
        "rejected.csv",
        "run.json",
        "report.html",
        *map(study_page, PATIENTS),
    }
    assert [rows_of(out / "rejected.csv")[0]["file"] for out in (plain, named)] == [short_hash("bad.dcm"), "bad.dcm"]
    assert not [name for name, data in found.items() if b"Testudo" in data]


def test_predicting_twice_gives_identical_pages(run):
    """No time, path or chance is in any file."""
    assert tree(run("one")) == tree(run("another"))


@pytest.mark.slow
@pytest.mark.parametrize("report", [True, False])
def test_what_an_older_run_left_is_no_part_of_this_one(run, dicom, tmp_path, report):
    """Of fewer studies there are fewer pages, of a run without a report none; somebody else's file is kept."""
    out = run()
    (out / "report" / "notes.txt").write_text("mine")
    fewer = Path(shutil.copytree(dicom, tmp_path / "fewer", ignore=shutil.ignore_patterns("1.2.30-*")))
    run(root=fewer, report=report)
    pages = {"report.html", study_page("1.2.4"), study_page("1.2.5")} if report else set()
    assert tree(out).keys() == TABLES | {"run.json", "report/notes.txt"} | pages


def test_a_run_that_finds_nothing_leaves_no_report_of_another(run, tmp_path):
    """The reasons stand in rejected.csv, and no page of an older run beside them."""
    out = run()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.dcm").write_text("bad")
    with pytest.raises(NothingUsableError):
        run(root=tmp_path / "bad")
    assert tree(out).keys() == {"rejected.csv"}


def test_the_bundle_s_own_folder_is_not_written_into(dicom, bundle, tmp_path):
    """Nor is that of any other bundle, with a lock of its training or without; nothing there is changed."""
    own, other = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("own", "other"))
    (other / ".lock").touch()
    before = tree(own)
    for out in (own, other):
        with pytest.raises(UsageError, match="holds a bundle, which this command would destroy; choose another --out"):
            predict(dicom, own, out, device="cpu", workers=0)
        assert tree(out) == before
    assert not (own / ".lock").exists()


def test_pages_below_the_input_are_no_input(dicom, bundle, tmp_path):
    """With the results in the folder of the files, a second run counts what the first one counted."""
    root = Path(shutil.copytree(dicom, tmp_path / "in"))
    first, again = (predict(root, bundle, root / "out", device="cpu", workers=0) for _ in range(2))
    assert first.counts == again.counts
    assert first.counts.files == sum(SLICES.values()) + 1


def test_an_image_that_a_medium_lacks_is_a_lost_slice_of_its_study(run, dicom, write_media, tmp_path):
    """Of that alone, so that nothing is called absent in it; the row of the missing file names it."""
    index = write_media(sorted(dicom.glob("1.2*")), tmp_path / "media")
    with config.disable_value_validation():
        images = {path: dcmread(path).StudyInstanceUID for path in sorted((tmp_path / "media").rglob("IM*"))}
    next(path for path, uid in images.items() if uid == "1.2.5").unlink()
    out = run(root=index)
    lost = {row["study_uid"]: row["lost_slices"] for row in rows_of(out / "studies.csv")}
    assert lost == {"1.2.30": "0", "1.2.4": "0", "1.2.5": "1"}
    told = [row["study_uid"] for row in rows_of(out / "rejected.csv") if row["reason"] == "missing_file"]
    assert told == ["1.2.5"]


def test_a_slice_that_cannot_be_read_is_told_of_and_not_shown(run, dicom, tmp_path, cut_frame):
    """The study has its page and pictures without it; page and worklist say that one is lost."""
    damaged = Path(shutil.copytree(dicom, tmp_path / "damaged"))
    cut_frame(damaged / "1.2.30-5.dcm")
    out = run(root=damaged)
    page = (out / study_page("1.2.30")).read_text()
    assert "11 used, 1 lost" in text_of(out / study_page("1.2.30"))
    assert "1.2.30.5<" not in page
    assert "1.2.30.4<" in page
    assert page.count("<img") == 9
    assert len(re.findall(r"Slice \d+ of 11,", page)) == 9
    assert " lost" in text_of(out / "report.html")
