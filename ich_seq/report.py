"""What a prediction leaves on disk: tables for people, for Kaggle and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq.figures import Predicted
from ich_seq.files import write_bytes
from ich_seq.labels import LABELS
from ich_seq.metrics import CLIP
from ich_seq.studies import Geometry

STUDIES, SLICES, SUBMISSION, RUN = "studies.csv", "slices.csv", "submission.csv", "run.json"
DECIMALS = 6
GEOMETRY_COLUMNS = [*Geometry.__slots__]
MACHINE_COLUMNS = ["rows", "columns", "scanner"]
PARTS = ("cnn", "rnn")
PART_COLUMNS = [f"{name}_{label}" for name in PARTS for label in LABELS]
"""What the slice classifier and the sequence models say by themselves stands beside their blend, label by label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPrediction:
    """The result for one study: `slice_probabilities` (N, K), feet to head, and `study_probabilities` (K,).

    `patient` numbers the patients of a run, so that nobody is named and studies of one are still known as such;
    `patient_id` is the Patient ID if it was asked for. `matrix` is (H, W), `scanner` maker and model. `novelty` tells
    how unlike the training data it is: above 1, further than 99 % of them.
    `beside` is what the parts of the blend say of it, by name.
    """

    study_uid: str
    patient: int
    patient_id: str | None
    matrix: tuple[int, int]
    scanner: str
    sop_uids: tuple[str, ...]
    positions_mm: NDArray[np.float64]
    slice_probabilities: NDArray[np.float64]
    study_probabilities: NDArray[np.float64]
    beside: Mapping[str, Predicted]
    geometry: Geometry
    lost_slices: int
    novelty: float


def by_likelihood(predictions: Sequence[StudyPrediction]) -> list[StudyPrediction]:
    """Return studies, the likeliest haemorrhage first; what has no probability (NaN) comes before all, to be seen."""
    return sorted(predictions, key=lambda p: (-np.nan_to_num(p.study_probabilities[-1], nan=2), p.study_uid))


def write_studies(path: Path, predictions: Sequence[StudyPrediction]) -> None:
    """Write a row a study, the likeliest haemorrhage first: probabilities, slices used and lost, geometry."""
    rows = [
        {"study_uid": p.study_uid, "patient": p.patient}
        | _by_label(p.study_probabilities)
        | {f"{name}_{k}": v for name in PARTS for k, v in _by_label(p.beside[name].studies[0]).items()}
        | {"slices": len(p.sop_uids), "lost_slices": p.lost_slices}
        | asdict(p.geometry)
        | {"rows": p.matrix[0], "columns": p.matrix[1], "scanner": p.scanner, "novelty": p.novelty}
        | ({} if p.patient_id is None else {"patient_id": p.patient_id})
        for p in by_likelihood(predictions)
    ]
    asked = ["patient_id"] if any(p.patient_id is not None for p in predictions) else []
    described = ["slices", "lost_slices", *GEOMETRY_COLUMNS, *MACHINE_COLUMNS, "novelty", "patient", *asked]
    columns = ["study_uid", *LABELS, *described, *PART_COLUMNS]
    _write_csv(path, pd.DataFrame(rows, columns=columns))


def write_slices(path: Path, predictions: Iterable[StudyPrediction]) -> None:
    """Write a row a slice, study by study, feet to head: position, probabilities, and those of the blend's parts."""
    columns = ["study_uid", "sop_uid", "position_mm", *LABELS, *PART_COLUMNS]
    tables = [
        pd.DataFrame(
            np.hstack([p.slice_probabilities, *(p.beside[name].slices for name in PARTS)]),
            columns=[*LABELS, *PART_COLUMNS],
        ).assign(study_uid=p.study_uid, sop_uid=p.sop_uids, position_mm=p.positions_mm)
        for p in predictions
    ]
    _write_csv(path, pd.concat(tables)[columns])


def write_submission(path: Path, predictions: Iterable[StudyPrediction]) -> None:
    """Write Kaggle's form, `ID,Label` with ID = <SOP>_<subtype>: six rows an image, clipped, sorted by image."""
    rows = {
        sop: np.clip(probabilities, CLIP, 1 - CLIP)
        for p in predictions
        for sop, probabilities in zip(p.sop_uids, p.slice_probabilities, strict=True)
    }
    ids = [f"{sop}_{label}" for sop in sorted(rows) for label in LABELS]
    values = np.concatenate([rows[sop] for sop in sorted(rows)])
    _write_csv(path, pd.DataFrame({"ID": ids, "Label": values}))


def _by_label(probabilities: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(LABELS, probabilities.tolist(), strict=True))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, lineterminator="\n", float_format=f"%.{DECIMALS}f").encode())
