"""What a prediction leaves on disk: tables that other programs can read back, byte for byte repeatable."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ich_seq.figures import Predicted
from ich_seq.labels import LABELS
from ich_seq.report import StudyPrediction, write_slices, write_studies, write_submission
from ich_seq.studies import Geometry

K = len(LABELS)
GEOMETRY = Geometry(
    spacing_mm=5.0, min_spacing_mm=2.5, max_spacing_mm=5.0, zones=2, gaps=1, duplicates=0, tilt_deg=-12.345678901
)


def prediction(uid: str, slices: int, seed: int = 0, likeliest: float | None = None) -> StudyPrediction:
    """A study whose SOP UIDs do not sort as its slices lie."""
    rng = np.random.default_rng([seed, slices])
    study = rng.uniform(size=K)
    if likeliest is not None:
        study[-1] = likeliest
    beside = {
        name: Predicted(slices=rng.uniform(size=(slices, K)), studies=rng.uniform(size=(1, K)))
        for name in ("cnn", "rnn", "blend")
    }
    return StudyPrediction(
        study_uid=uid,
        patient=seed + 7,
        patient_id=None,
        matrix=(512, 384),
        scanner="GE LightSpeed VCT",
        sop_uids=tuple(f"{uid}.{rng.integers(10**9)}" for _ in range(slices)),
        positions_mm=-40 + rng.uniform(0.5, 8, slices).cumsum(),
        slice_probabilities=rng.uniform(size=(slices, K)),
        study_probabilities=study,
        beside=beside,
        geometry=GEOMETRY,
        lost_slices=seed,
        novelty=0.5 + seed,
    )


@pytest.fixture
def predictions() -> list[StudyPrediction]:
    return [prediction("1.2.30", 4, 1, 0.4), prediction("1.2.4", 1, 2, 0.9), prediction("1.2.5", 12, 3, 0.1)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_submission_has_six_rows_an_image(tmp_path, predictions):
    """Every image stands once for each of the six labels, named <SOP>_<label>, and nothing else does."""
    write_submission(tmp_path / "s.csv", predictions)
    rows = rows_of(tmp_path / "s.csv")
    assert list(rows[0]) == ["ID", "Label"]
    assert len(rows) == 6 * (4 + 1 + 12)
    assert {row["ID"] for row in rows} == {
        f"{sop}_{label}" for p in predictions for sop in p.sop_uids for label in LABELS
    }


def test_a_submission_gives_each_image_its_own_probabilities(tmp_path, predictions):
    """Each value is that of its slice and label, to six decimals, whatever the order of studies."""
    write_submission(tmp_path / "s.csv", predictions)
    said = {row["ID"]: float(row["Label"]) for row in rows_of(tmp_path / "s.csv")}
    for p in predictions:
        for sop, probabilities in zip(p.sop_uids, p.slice_probabilities, strict=True):
            for label, probability in zip(LABELS, probabilities, strict=True):
                assert said[f"{sop}_{label}"] == pytest.approx(probability, abs=5.1e-7)


def test_a_submission_is_sorted_by_image_and_the_same_in_any_order_of_studies(tmp_path, predictions):
    """Images ascend by UID, labels come in their order, and the bytes do not depend on how studies were found."""
    write_submission(tmp_path / "a.csv", predictions)
    write_submission(tmp_path / "b.csv", predictions[::-1])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    parts = [row["ID"].rpartition("_")[::2] for row in rows_of(tmp_path / "a.csv")]
    images = [sop for sop, _ in parts]
    assert images == sorted(images)
    assert [label for _, label in parts] == list(LABELS) * 17


def test_a_submission_is_clipped(tmp_path):
    """No probability is nearer to 0 or 1 than 1e-5, though the network was sure; those between stay."""
    p = prediction("1.2", 3)
    p.slice_probabilities[:] = np.array([0.0, 1.0, 1e-7, 1 - 1e-7, 0.25, 0.999])
    write_submission(tmp_path / "s.csv", [p])
    labels = [float(row["Label"]) for row in rows_of(tmp_path / "s.csv")]
    assert labels == pytest.approx([1e-5, 1 - 1e-5, 1e-5, 1 - 1e-5, 0.25, 0.999] * 3, abs=1e-12)
    assert p.slice_probabilities[0, 0] == 0  # the prediction itself is not touched


def test_slices_stand_feet_to_head(tmp_path, predictions):
    """A row a slice, study by study in the order given, positions ascending, each beside its own numbers."""
    write_slices(tmp_path / "s.csv", predictions)
    rows = rows_of(tmp_path / "s.csv")
    parts = [f"{name}_{label}" for name in ("cnn", "rnn") for label in LABELS]
    assert list(rows[0]) == ["study_uid", "sop_uid", "position_mm", *LABELS, *parts]
    assert [row["sop_uid"] for row in rows] == [sop for p in predictions for sop in p.sop_uids]
    for p in predictions:
        own = [row for row in rows if row["study_uid"] == p.study_uid]
        assert [row["sop_uid"] for row in own] == list(p.sop_uids)
        assert [float(row["position_mm"]) for row in own] == pytest.approx(p.positions_mm, abs=1e-6)
        assert (np.diff([float(row["position_mm"]) for row in own]) > 0).all()
        for row, *said in zip(own, p.slice_probabilities, p.beside["cnn"].slices, p.beside["rnn"].slices, strict=True):
            for prefix, probabilities in zip(("", "cnn_", "rnn_"), said, strict=True):
                assert [float(row[prefix + label]) for label in LABELS] == pytest.approx(probabilities, abs=5.1e-7)


def test_studies_come_likeliest_first(tmp_path, predictions):
    """A worklist: studies by falling probability of any haemorrhage, each beside its own numbers and geometry."""
    write_studies(tmp_path / "s.csv", predictions)
    rows = rows_of(tmp_path / "s.csv")
    assert [row["study_uid"] for row in rows] == ["1.2.4", "1.2.30", "1.2.5"]
    assert list(rows[0])[: K + 3] == ["study_uid", *LABELS, "slices", "lost_slices"]
    by_uid = {p.study_uid: p for p in predictions}
    for row in rows:
        p = by_uid[row["study_uid"]]
        assert [float(row[label]) for label in LABELS] == pytest.approx(p.study_probabilities, abs=5.1e-7)
        for name in ("cnn", "rnn"):
            assert [float(row[f"{name}_{label}"]) for label in LABELS] == pytest.approx(
                p.beside[name].studies[0], abs=5.1e-7
            )
        assert int(row["patient"]) == p.patient
        assert (int(row["slices"]), int(row["lost_slices"])) == (len(p.sop_uids), p.lost_slices)
        assert (int(row["zones"]), int(row["gaps"]), int(row["duplicates"])) == (2, 1, 0)
        assert float(row["tilt_deg"]) == pytest.approx(GEOMETRY.tilt_deg, abs=1e-6)
        assert [float(row[f"{which}spacing_mm"]) for which in ("", "min_", "max_")] == [5.0, 2.5, 5.0]


def test_patient_ids_are_written_only_where_asked_for(tmp_path, predictions):
    """Patients are numbers; an ID is a column of its own, and only if the predictions hold one."""
    write_studies(tmp_path / "s.csv", predictions)
    assert "patient_id" not in rows_of(tmp_path / "s.csv")[0]
    write_studies(tmp_path / "s.csv", [replace(p, patient_id=f"CQ500-CT-{p.patient}") for p in predictions])
    assert {f"CQ500-CT-{row['patient']}" for row in rows_of(tmp_path / "s.csv")} == {
        row["patient_id"] for row in rows_of(tmp_path / "s.csv")
    }


def test_equal_studies_are_ordered_by_uid(tmp_path):
    """A draw is settled by UID, so that the table does not depend on the order of finding."""
    drawn = [prediction(f"1.2.{i}", 2, i, 0.5) for i in (3, 1, 2)]
    write_studies(tmp_path / "a.csv", drawn)
    write_studies(tmp_path / "b.csv", drawn[::-1])
    assert [row["study_uid"] for row in rows_of(tmp_path / "a.csv")] == ["1.2.1", "1.2.2", "1.2.3"]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("write", [write_studies, write_slices, write_submission])
def test_the_same_predictions_give_the_same_bytes(tmp_path, predictions, write):
    """Written twice a table is the same, in UTF-8 with line feeds, and nothing is left beside it."""
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, predictions)
    data = (tmp_path / "a.csv").read_bytes()
    assert data == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "b.csv"}


@pytest.mark.parametrize("write", [write_studies, write_slices, write_submission])
def test_predictions_may_come_one_by_one(tmp_path, predictions, write):
    """A single study of a single slice makes a table as well."""
    write(tmp_path / "s.csv", predictions[1:2])
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) == (6 if write is write_submission else 1)
    assert all(value != "" for row in rows for value in row.values())
