"""What a prediction leaves on disk: tables that other programs can read back, byte for byte repeatable."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ich_seq.figures import Predicted
from ich_seq.labels import LABELS
from ich_seq.report import StudyPrediction, StudyResult, said_of_study, slice_table_rows, slice_tables, write_studies
from ich_seq.studies import Geometry

K = len(LABELS)
GEOMETRY = Geometry(
    spacing_mm=5.0, min_spacing_mm=2.5, max_spacing_mm=5.0, zones=2, gaps=1, duplicates=0, tilt_deg=-12.345678901
)


def prediction(uid: str, slices: int, seed: int = 0, likeliest: float | None = None) -> StudyPrediction:
    """A study whose SOP UIDs do not sort as its slices lie."""
    rng = np.random.default_rng([seed, slices])
    beside = {
        name: Predicted(slices=rng.uniform(size=(slices, K)), studies=rng.uniform(size=(1, K)))
        for name in ("cnn", "rnn", "blend")
    }
    if likeliest is not None:
        beside["blend"].studies[0, -1] = likeliest
    positions_mm = -40 + rng.uniform(0.5, 8, slices).cumsum()
    result = StudyResult(
        study_uid=uid,
        patient=seed + 7,
        patient_id=None,
        matrix=(512, 384),
        scanner="GE LightSpeed VCT",
        slices=slices,
        span_mm=float(positions_mm[-1] - positions_mm[0]),
        said=said_of_study(beside),
        geometry=GEOMETRY,
        lost_slices=seed,
        novelty=0.5 + seed,
    )
    sops = tuple(f"{uid}.{rng.integers(10**9)}" for _ in range(slices))
    return StudyPrediction(result=result, sop_uids=sops, positions_mm=positions_mm, beside=beside)


def results(predictions: list[StudyPrediction]) -> list[StudyResult]:
    return [p.result for p in predictions]


def write_slices(path: Path, predictions: list[StudyPrediction]) -> None:
    """Write both tables of slices and keep slices.csv, under this name."""
    _write_tables(path, predictions, {"slices.csv": path, "submission.csv": None})


def write_submission(path: Path, predictions: list[StudyPrediction]) -> None:
    """Write both tables of slices and keep submission.csv, under this name."""
    _write_tables(path, predictions, {"slices.csv": None, "submission.csv": path})


def _write_tables(path: Path, predictions: list[StudyPrediction], kept: dict[str, Path | None]) -> None:
    with slice_tables(path.parent) as write:
        for p in predictions:
            write(slice_table_rows(p))
    for name, to in kept.items():
        if to is None:
            (path.parent / name).unlink()
        else:
            (path.parent / name).rename(to)


def write_results(path: Path, predictions: list[StudyPrediction]) -> None:
    write_studies(path, results(predictions))


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


def test_a_submission_comes_in_the_order_of_the_slices(tmp_path, predictions):
    """Study by study, feet to head, the labels in their order, so that nothing waits in memory for its place."""
    write_submission(tmp_path / "s.csv", predictions)
    parts = [row["ID"].rpartition("_")[::2] for row in rows_of(tmp_path / "s.csv")]
    assert parts == [(sop, label) for p in predictions for sop in p.sop_uids for label in LABELS]


def test_tables_of_slices_are_there_once_all_is_written(tmp_path, predictions):
    """Where the work ends early neither they nor their beginnings are left."""
    with suppress(ZeroDivisionError), slice_tables(tmp_path) as write:
        write(slice_table_rows(predictions[0]))
        assert {p.name for p in tmp_path.iterdir()}.isdisjoint({"slices.csv", "submission.csv"})
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


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
        own = [row for row in rows if row["study_uid"] == p.result.study_uid]
        assert [row["sop_uid"] for row in own] == list(p.sop_uids)
        assert [float(row["position_mm"]) for row in own] == pytest.approx(p.positions_mm, abs=1e-6)
        assert (np.diff([float(row["position_mm"]) for row in own]) > 0).all()
        for row, *said in zip(own, p.slice_probabilities, p.beside["cnn"].slices, p.beside["rnn"].slices, strict=True):
            for prefix, probabilities in zip(("", "cnn_", "rnn_"), said, strict=True):
                assert [float(row[prefix + label]) for label in LABELS] == pytest.approx(probabilities, abs=5.1e-7)


def test_studies_come_likeliest_first(tmp_path, predictions):
    """A worklist: studies by falling probability of any haemorrhage, each beside its own numbers and geometry."""
    write_results(tmp_path / "s.csv", predictions)
    rows = rows_of(tmp_path / "s.csv")
    assert [row["study_uid"] for row in rows] == ["1.2.4", "1.2.30", "1.2.5"]
    assert list(rows[0])[: K + 3] == ["study_uid", *LABELS, "slices", "lost_slices"]
    by_uid = {p.result.study_uid: p for p in predictions}
    for row in rows:
        p = by_uid[row["study_uid"]]
        assert [float(row[label]) for label in LABELS] == pytest.approx(p.result.probabilities, abs=5.1e-7)
        for name in ("cnn", "rnn"):
            assert [float(row[f"{name}_{label}"]) for label in LABELS] == pytest.approx(
                p.beside[name].studies[0], abs=5.1e-7
            )
        assert int(row["patient"]) == p.result.patient
        assert (int(row["slices"]), int(row["lost_slices"])) == (len(p.sop_uids), p.result.lost_slices)
        assert (int(row["zones"]), int(row["gaps"]), int(row["duplicates"])) == (2, 1, 0)
        assert float(row["tilt_deg"]) == pytest.approx(GEOMETRY.tilt_deg, abs=1e-6)
        assert [float(row[f"{which}spacing_mm"]) for which in ("", "min_", "max_")] == [5.0, 2.5, 5.0]


def test_patient_ids_are_written_only_where_asked_for(tmp_path, predictions):
    """Patients are numbers; an ID is a column of its own, and only if the predictions hold one."""
    write_results(tmp_path / "s.csv", predictions)
    assert "patient_id" not in rows_of(tmp_path / "s.csv")[0]
    named = [replace(r, patient_id=f"CQ500-CT-{r.patient}") for r in results(predictions)]
    write_studies(tmp_path / "s.csv", named)
    assert {f"CQ500-CT-{row['patient']}" for row in rows_of(tmp_path / "s.csv")} == {
        row["patient_id"] for row in rows_of(tmp_path / "s.csv")
    }


def test_equal_studies_are_ordered_by_uid(tmp_path):
    """A draw is settled by UID, so that the table does not depend on the order of finding."""
    drawn = [prediction(f"1.2.{i}", 2, i, 0.5) for i in (3, 1, 2)]
    write_results(tmp_path / "a.csv", drawn)
    write_results(tmp_path / "b.csv", drawn[::-1])
    assert [row["study_uid"] for row in rows_of(tmp_path / "a.csv")] == ["1.2.1", "1.2.2", "1.2.3"]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize("write", [write_results, write_slices, write_submission])
def test_the_same_predictions_give_the_same_bytes(tmp_path, predictions, write):
    """Written twice a table is the same, in UTF-8 with line feeds, and nothing is left beside it."""
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, predictions)
    data = (tmp_path / "a.csv").read_bytes()
    assert data == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"\n")
    assert {p.name for p in tmp_path.iterdir()} == {"a.csv", "b.csv"}


@pytest.mark.parametrize("write", [write_results, write_slices, write_submission])
def test_predictions_may_come_one_by_one(tmp_path, predictions, write):
    """A single study of a single slice makes a table as well."""
    write(tmp_path / "s.csv", predictions[1:2])
    rows = rows_of(tmp_path / "s.csv")
    assert len(rows) == (6 if write is write_submission else 1)
    assert all(value != "" for row in rows for value in row.values())


def test_no_cell_of_text_is_a_formula(tmp_path):
    """A scanner or Patient ID that begins like one gets a ' before it; numbers below zero stay numbers."""
    (result,) = results([prediction("1.2", 2)])
    write_studies(tmp_path / "s.csv", [replace(result, scanner="=1+1", patient_id="@SUM(A1)")])
    (row,) = rows_of(tmp_path / "s.csv")
    assert (row["scanner"], row["patient_id"]) == ("'=1+1", "'@SUM(A1)")
    assert float(row["tilt_deg"]) < 0
