"""What went wrong most: the positive studies of least probability, the negative ones of most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.figures import Predicted
from ich_seq.labels import LABELS
from ich_seq.results import Held

MOST_SHOWN = 3
MISSED, FALSE_ALARM = "least likely positive", "likeliest negative"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A study on the wrong side: `label` and `kind`, and its probability.

    `positions_mm` and `slice_probabilities` (N,) run feet to head, `slice_truth` (N,) beside them where slices are
    labelled. `sop_uid` names the slice to look at: the middle one of a missed finding's, the likeliest of an alarm's.
    """

    label: str
    kind: str
    study_uid: str
    probability: float
    positions_mm: NDArray[np.float64]
    slice_probabilities: NDArray[np.float64]
    slice_truth: NDArray[np.uint8] | None
    sop_uid: str

    def json(self) -> dict[str, Any]:
        """Return what names it, as JSON values."""
        named = {name: getattr(self, name) for name in ("label", "kind", "study_uid", "sop_uid")}
        return named | {"probability": round(self.probability, 6)}


def find_failures(held: Held, predicted: Predicted) -> list[Failure]:
    """Return for each label the MOST_SHOWN worst studies of either kind, the worst first; those of its right side only.

    A missed study is one of less probability than some negative study has, a false alarm one of more than some
    positive has: where all are told apart there is none.
    """
    return [
        _failure(held, predicted, label, kind, int(index))
        for label in range(len(LABELS))
        for kind, found in _worst(predicted.studies[:, label], held.truth.studies[:, label]).items()
        for index in found
    ]


def _worst(p: NDArray[np.float64], y: NDArray[np.uint8]) -> dict[str, Sequence[int]]:
    """Return the indices of the worst of B studies, by kind."""
    positive, negative = np.flatnonzero(y), np.flatnonzero(y == 0)
    if not len(positive) or not len(negative):
        return {}
    missed = positive[p[positive] <= p[negative].max()]
    alarms = negative[p[negative] >= p[positive].min()]
    return {
        MISSED: missed[np.argsort(p[missed], kind="stable")][:MOST_SHOWN].tolist(),
        FALSE_ALARM: alarms[np.argsort(-p[alarms], kind="stable")][:MOST_SHOWN].tolist(),
    }


def _failure(held: Held, predicted: Predicted, label: int, kind: str, study: int) -> Failure:
    start = int(held.lengths[:study].sum())
    rows = slice(start, start + int(held.lengths[study]))
    p = predicted.slices[rows, label]
    truth = held.truth.slices[rows, label] if "slices" in held.levels else None
    found = np.flatnonzero(truth) if kind == MISSED and truth is not None else np.array([p.argmax()])
    return Failure(
        label=LABELS[label],
        kind=kind,
        study_uid=held.uids[study],
        probability=float(predicted.studies[study, label]),
        positions_mm=held.positions_mm[rows],
        slice_probabilities=p,
        slice_truth=truth,
        sop_uid=held.sop_uids[start + int(found[len(found) // 2])],
    )
