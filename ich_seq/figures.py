"""The figures that stand on a card: several predictors side by side, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS, Estimate, RankedScores, bootstrap, log_losses

RESAMPLES = 1000
ANY = LABELS.index("any")
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """Probabilities of M slices, (M, K), study after study, and of their B studies, (B, K)."""

    slices: Floats
    studies: Floats

    @classmethod
    def joined(cls, parts: Sequence[Predicted]) -> Predicted:
        """Return the predictions of several groups of studies, one after the other."""
        return cls(slices=np.concatenate([p.slices for p in parts]), studies=np.concatenate([p.studies for p in parts]))

    @classmethod
    def of_slices(cls, slices: Floats, lengths: Sequence[int]) -> Predicted:
        """Take for each study its likeliest slice, label by label; `lengths` are the slices of each study."""
        starts = np.cumsum([0, *lengths[:-1]])
        return cls(slices=slices, studies=np.maximum.reduceat(slices, starts, axis=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Labels in the order of `Predicted`, (M, K) and (B, K), with the patient of each row, (M,) and (B,)."""

    slices: NDArray[np.uint8]
    studies: NDArray[np.uint8]
    slice_patients: NDArray[np.str_]
    study_patients: NDArray[np.str_]


def judge(predicted: Mapping[str, Predicted], truth: Truth, *, seed: int) -> dict[str, Any]:
    """Return for each predictor its loss and AUCs with 95 % patient-bootstrap intervals, as JSON values.

    `slice_loss` and `study_loss` are the challenge's weighted log loss; `slice_auc` and `study_auc` hold
    a figure a label (None where a class is absent). "difference_to_<name>" is the paired difference of
    the last predictor's loss and AUC(any) to each of the others'.
    """
    result: dict[str, Any] = {name: _figures(p, truth, seed) for name, p in predicted.items()}
    *others, last = predicted
    for name in others:
        result[last][f"difference_to_{name}"] = _differences(predicted[last], predicted[name], truth, seed)
    return result


def _figures(p: Predicted, truth: Truth, seed: int) -> dict[str, Any]:
    return {
        "slice_loss": _json(_loss(p.slices, truth.slices, truth.slice_patients, seed)),
        "study_loss": _json(_loss(p.studies, truth.studies, truth.study_patients, seed)),
        "slice_auc": _aucs(p.slices, truth.slices, truth.slice_patients, seed),
        "study_auc": _aucs(p.studies, truth.studies, truth.study_patients, seed),
    }


def _loss(probabilities: Floats, targets: NDArray[np.uint8], patients: NDArray[np.str_], seed: int) -> Estimate:
    rows = log_losses(probabilities, targets) @ LOSS_WEIGHTS
    return bootstrap(lambda w: float(np.average(rows, weights=w)), patients, resamples=RESAMPLES, seed=seed)


def _aucs(
    probabilities: Floats, targets: NDArray[np.uint8], patients: NDArray[np.str_], seed: int
) -> dict[str, dict[str, float] | None]:
    return {
        label: _json(
            bootstrap(RankedScores(probabilities[:, k], targets[:, k]).auc, patients, resamples=RESAMPLES, seed=seed)
        )
        for k, label in enumerate(LABELS)
    }


def _differences(a: Predicted, b: Predicted, truth: Truth, seed: int) -> dict[str, Any]:
    """Return loss and AUC(any) of slices, `a` minus `b`, on the same resamples of patients."""
    rows = (log_losses(a.slices, truth.slices) - log_losses(b.slices, truth.slices)) @ LOSS_WEIGHTS
    ranked_a, ranked_b = (RankedScores(p.slices[:, ANY], truth.slices[:, ANY]) for p in (a, b))
    return {
        "slice_loss": _json(
            bootstrap(
                lambda w: float(np.average(rows, weights=w)), truth.slice_patients, resamples=RESAMPLES, seed=seed
            )
        ),
        "slice_auc_any": _json(
            bootstrap(lambda w: ranked_a.auc(w) - ranked_b.auc(w), truth.slice_patients, resamples=RESAMPLES, seed=seed)
        ),
    }


def _json(estimate: Estimate) -> dict[str, float] | None:
    return None if np.isnan(estimate.value) else {k: round(v, 6) for k, v in asdict(estimate).items()}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures of `judge` side by side for people, a line a predictor."""
    head = ("", "slice AUC(any)", "study AUC(any)", "slice log loss", "study log loss")
    rows = [head, *((name.replace("_", " "), *_cells(f)) for name, f in figures.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(f: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = f["slice_auc"]["any"], f["study_auc"]["any"], f["slice_loss"], f["study_loss"]
    return tuple("-" if c is None else str(Estimate(**c)) for c in chosen)
