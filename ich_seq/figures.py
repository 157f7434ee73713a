"""The figures that stand on a card: several predictors side by side, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS, Estimate, RankedScores, bootstrap, log_losses

RESAMPLES = 1000
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

    @classmethod
    def of_studies(cls, targets: Sequence[NDArray[np.uint8]], patients: Sequence[str]) -> Truth:
        """Join the labels of B studies, (N, K) each, with the patient of each; a study is what any slice of it is."""
        return cls(
            slices=np.concatenate(targets),
            studies=np.stack([t.max(axis=0) for t in targets]),
            slice_patients=np.repeat(patients, [len(t) for t in targets]),
            study_patients=np.array(patients),
        )


def judge(predicted: Mapping[str, Predicted], truth: Truth, *, seed: int, against: str | None = None) -> dict[str, Any]:
    """Return for each predictor its loss and AUCs with 95 % patient-bootstrap intervals, as JSON values.

    `slice_loss` and `study_loss` are the challenge's weighted log loss; `slice_auc` and `study_auc` hold
    a figure a label (None where a class is absent). `difference_to_<against>` is the paired difference
    of the slices' loss and AUCs to that predictor's.
    """
    result: dict[str, Any] = {name: _figures(p, truth, seed) for name, p in predicted.items()}
    for name, figures in result.items():
        if against is not None and name != against:
            figures[f"difference_to_{against}"] = _differences(predicted[name], predicted[against], truth, seed)
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
    """Return loss and AUCs of slices, `a` minus `b`, on the same resamples of patients."""
    rows = (log_losses(a.slices, truth.slices) - log_losses(b.slices, truth.slices)) @ LOSS_WEIGHTS
    patients = truth.slice_patients
    aucs = {}
    for k, label in enumerate(LABELS):
        first, second = (RankedScores(p.slices[:, k], truth.slices[:, k]) for p in (a, b))
        aucs[label] = _json(bootstrap(_auc_difference(first, second), patients, resamples=RESAMPLES, seed=seed))
    loss = bootstrap(lambda w: float(np.average(rows, weights=w)), patients, resamples=RESAMPLES, seed=seed)
    return {"slice_loss": _json(loss), "slice_auc": aucs}


def _auc_difference(a: RankedScores, b: RankedScores) -> Callable[[Floats | None], float]:
    return lambda weights: a.auc(weights) - b.auc(weights)


def _json(estimate: Estimate) -> dict[str, float] | None:
    return None if np.isnan(estimate.value) else {k: round(v, 6) for k, v in asdict(estimate).items()}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures of `judge` side by side for people: `any` with intervals, then each label's slice AUC."""
    head = ("", "slice AUC(any)", "study AUC(any)", "slice log loss", "study log loss")
    summary = [head, *((name.replace("_", " "), *_cells(f)) for name, f in figures.items())]
    by_label = [
        ("slice AUC", *LABELS),
        *((name.replace("_", " "), *_points(f["slice_auc"])) for name, f in figures.items()),
    ]
    return f"{_aligned(summary)}\n\n{_aligned(by_label)}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(f: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = f["slice_auc"]["any"], f["study_auc"]["any"], f["slice_loss"], f["study_loss"]
    return tuple("-" if c is None else str(Estimate(**c)) for c in chosen)


def _points(aucs: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple("-" if aucs[label] is None else f"{aucs[label]['value']:.3f}" for label in LABELS)
