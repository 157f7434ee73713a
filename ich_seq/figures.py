"""The figures that stand on a card: several predictors side by side, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS, Estimate, Resamples, auc, log_losses

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
    of_slices = Resamples(truth.slice_patients, resamples=RESAMPLES, seed=seed)
    of_studies = Resamples(truth.study_patients, resamples=RESAMPLES, seed=seed)
    slices = {name: _measure(p.slices, truth.slices, of_slices) for name, p in predicted.items()}
    studies = {name: _measure(p.studies, truth.studies, of_studies) for name, p in predicted.items()}
    result: dict[str, Any] = {
        name: {
            "slice_loss": slices[name].loss.json(),
            "study_loss": studies[name].loss.json(),
            "slice_auc": slices[name].auc_json(),
            "study_auc": studies[name].auc_json(),
        }
        for name in predicted
    }
    for name in predicted:
        if against is not None and name != against:
            difference = slices[name] - slices[against]
            result[name][f"difference_to_{against}"] = {
                "slice_loss": difference.loss.json(),
                "slice_auc": difference.auc_json(),
            }
    return result


@dataclass(frozen=True, slots=True)
class Resampled:
    """A figure and its value in each resample, (R,)."""

    value: float
    values: Floats

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(self.value - other.value, self.values - other.values)

    def json(self) -> dict[str, float] | None:
        """Return the figure with its interval, or None if there is none."""
        return _json(Estimate.of(self.value, self.values))


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss and the AUC of each label, of one predictor or of a paired difference."""

    loss: Resampled
    aucs: tuple[Resampled, ...]

    def __sub__(self, other: Measured) -> Measured:
        return Measured(self.loss - other.loss, tuple(a - b for a, b in zip(self.aucs, other.aucs, strict=True)))

    def auc_json(self) -> dict[str, dict[str, float] | None]:
        """Return the AUC of each label by name."""
        return {label: auc.json() for label, auc in zip(LABELS, self.aucs, strict=True)}


def _measure(probabilities: Floats, targets: NDArray[np.uint8], resamples: Resamples) -> Measured:
    rows = log_losses(probabilities, targets) @ LOSS_WEIGHTS
    return Measured(
        Resampled(float(rows.mean()), resamples.means(rows)),
        tuple(Resampled(auc(p, y), resamples.aucs(p, y)) for p, y in zip(probabilities.T, targets.T, strict=True)),
    )


def _json(estimate: Estimate) -> dict[str, float] | None:
    return None if np.isnan(estimate.value) else {k: round(v, 6) for k, v in asdict(estimate).items()}


def table(figures: Mapping[str, Any]) -> str:
    """Lay the figures of `judge` side by side for people: `any` with intervals, then each label's AUC.

    That is of slices, and of studies where there are no figures of slices.
    """
    levels = [level for level in ("slice", "study") if all(f"{level}_auc" in f for f in figures.values())]
    head = ("", *(f"{level} AUC(any)" for level in levels), *(f"{level} log loss" for level in levels))
    summary = [head, *((name.replace("_", " "), *_cells(f, levels)) for name, f in figures.items())]
    by_label = [
        (f"{levels[0]} AUC", *LABELS),
        *((name.replace("_", " "), *_points(f[f"{levels[0]}_auc"])) for name, f in figures.items()),
    ]
    return f"{_aligned(summary)}\n\n{_aligned(by_label)}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cells(f: Mapping[str, Any], levels: Sequence[str]) -> tuple[str, ...]:
    chosen = *(f[f"{level}_auc"]["any"] for level in levels), *(f[f"{level}_loss"] for level in levels)
    return tuple("-" if c is None else str(Estimate(**c)) for c in chosen)


def _points(aucs: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple("-" if aucs[label] is None else f"{aucs[label]['value']:.3f}" for label in LABELS)
