"""What a prediction leaves on disk: tables for people, for Kaggle and for machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich_seq.figures import Predicted
from ich_seq.files import growing_file
from ich_seq.labels import LABELS
from ich_seq.metrics import CLIP
from ich_seq.studies import Geometry
from ich_seq.tables import csv_rows

STUDIES, SLICES, SUBMISSION, RUN = "studies.csv", "slices.csv", "submission.csv", "run.json"
DECIMALS = 6
GEOMETRY_COLUMNS = [*Geometry.__slots__]
MACHINE_COLUMNS = ["rows", "columns", "scanner"]
PARTS = ("cnn", "rnn")
PART_COLUMNS = [f"{name}_{label}" for name in PARTS for label in LABELS]
"""What the slice classifier and the sequence models say by themselves stands beside their blend, label by label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What is kept of a study until all are predicted: `said` (1 + parts, K), the blend and then its PARTS.

    `patient` numbers the patients of a run, so that nobody is named and studies of one are still known as such;
    `patient_id` is the Patient ID if it was asked for. `matrix` is (H, W), `scanner` maker and model, `span_mm` from
    the first slice to the last. `novelty` tells how unlike the training data it is: above 1, further than 99 % of them;
    None if nothing is known of those.
    """

    study_uid: str
    patient: int
    patient_id: str | None
    matrix: tuple[int, int]
    scanner: str
    slices: int
    span_mm: float
    said: NDArray[np.float64]
    geometry: Geometry
    lost_slices: int
    novelty: float | None

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Return those of the blend, (K,)."""
        blend: NDArray[np.float64] = self.said[0]
        return blend


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPrediction:
    """The result for one study and its slices, feet to head: by name what the blend and its PARTS say."""

    result: StudyResult
    sop_uids: tuple[str, ...]
    positions_mm: NDArray[np.float64]
    beside: Mapping[str, Predicted]

    @property
    def slice_probabilities(self) -> NDArray[np.float64]:
        """Return those of the blend, (N, K)."""
        return self.beside["blend"].slices


def said_of_study(beside: Mapping[str, Predicted]) -> NDArray[np.float64]:
    """Return what `StudyResult.said` holds."""
    return np.asarray([beside[name].studies[0] for name in ("blend", *PARTS)], np.float64)


def by_likelihood(results: Sequence[StudyResult]) -> list[StudyResult]:
    """Return studies, the likeliest haemorrhage first; what has no probability (NaN) comes before all, to be seen."""
    return sorted(results, key=lambda r: (-np.nan_to_num(r.probabilities[-1], nan=2), r.study_uid))


def write_studies(path: Path, results: Sequence[StudyResult]) -> None:
    """Write a row a study, the likeliest haemorrhage first: probabilities, slices used and lost, geometry."""
    asked = any(r.patient_id is not None for r in results)
    described = ["slices", "lost_slices", *GEOMETRY_COLUMNS, *MACHINE_COLUMNS, "novelty", "patient"]
    head = ["study_uid", *LABELS, *described, *(["patient_id"] if asked else []), *PART_COLUMNS]
    with growing_file(path) as append:
        append(csv_rows([head]))
        append(csv_rows((_study_row(r, asked) for r in by_likelihood(results)), DECIMALS))


def _study_row(r: StudyResult, asked: bool) -> list[str | float | None]:
    geometry = [getattr(r.geometry, name) for name in GEOMETRY_COLUMNS]
    described = [r.slices, r.lost_slices, *geometry, *r.matrix, r.scanner, r.novelty, r.patient]
    blend, *parts = r.said.tolist()
    return [r.study_uid, *blend, *described, *([r.patient_id] if asked else []), *(p for part in parts for p in part)]


@contextmanager
def slice_tables(out: Path) -> Iterator[Callable[[Mapping[str, bytes]], None]]:
    """Give what writes the rows of a study, as `slice_table_rows` has them, into slices.csv and submission.csv.

    Both are there once the block ends well; nothing of a study stays in memory.
    """
    with growing_file(out / SLICES) as slices, growing_file(out / SUBMISSION) as submission:
        slices(csv_rows([["study_uid", "sop_uid", "position_mm", *LABELS, *PART_COLUMNS]]))
        submission(csv_rows([["ID", "Label"]]))

        def write(rows: Mapping[str, bytes]) -> None:
            slices(rows[SLICES])
            submission(rows[SUBMISSION])

        yield write


def slice_table_rows(p: StudyPrediction) -> dict[str, bytes]:
    """Return what the slices of a study, feet to head, are in slices.csv and in Kaggle's submission.csv, by its name.

    slices.csv has a row a slice: position, probabilities, and those of the blend's parts. submission.csv has
    `ID,Label`, ID = <SOP>_<subtype>, six rows a slice, clipped.
    """
    return {
        SLICES: csv_rows(_slice_rows(p), DECIMALS),
        SUBMISSION: csv_rows(_submission_rows(p), DECIMALS),
    }


def _slice_rows(p: StudyPrediction) -> Iterator[list[str | float | None]]:
    said = np.hstack([p.slice_probabilities, *(p.beside[name].slices for name in PARTS)]).tolist()
    for sop, position_mm, numbers in zip(p.sop_uids, p.positions_mm.tolist(), said, strict=True):
        yield [p.result.study_uid, sop, position_mm, *numbers]


def _submission_rows(p: StudyPrediction) -> Iterator[list[str | float | None]]:
    clipped = np.clip(p.slice_probabilities, CLIP, 1 - CLIP).tolist()
    for sop, numbers in zip(p.sop_uids, clipped, strict=True):
        yield from ([f"{sop}_{label}", number] for label, number in zip(LABELS, numbers, strict=True))
