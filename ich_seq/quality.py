"""How good a predictor is: every usual figure, label by label, each with what it is in every resample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.figures import Resampled
from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS, Resamples, log_losses
from ich_seq.thresholds import (
    OperatingPoint,
    Tally,
    at_sensitivity,
    at_specificity,
    average_precisions,
    roc_areas,
    tally,
    tally_resamples,
)

Floats = NDArray[np.float64]
LabelFigures = dict[str, Resampled]

BINS = 15
"""Bins of equal width for the calibration error (Guo et al. 2017)."""

LEAST = 0.95
"""Where thresholds are put: so much specificity, or so much sensitivity."""

POINTS: dict[str, Callable[[Tally, float], OperatingPoint]] = {
    "at_95_specificity": at_specificity,
    "at_95_sensitivity": at_sensitivity,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What predictors are held against: `targets` (M, K), resamples of their patients, and `prevalence` (K,).

    The prevalence is that of the people whom predictive values are to hold for.
    """

    targets: NDArray[np.uint8]
    resamples: Resamples
    prevalence: Floats


@dataclass(frozen=True, slots=True)
class Quality:
    """The figures of one predictor, or of a paired difference: the challenge's loss, and each label's by name."""

    loss: Resampled
    labels: dict[str, LabelFigures]

    def __sub__(self, other: Quality) -> Quality:
        labels = {
            label: {name: figure - other.labels[label][name] for name, figure in figures.items()}
            for label, figures in self.labels.items()
        }
        return Quality(self.loss - other.loss, labels)

    def json(self) -> dict[str, Any]:
        """Return all figures with their intervals, None where a class is absent."""
        labels = {label: {name: f.json() for name, f in figures.items()} for label, figures in self.labels.items()}
        return {"weighted_log_loss": self.loss.json(), "labels": labels}


def measure(probabilities: Floats, sample: Sample) -> Quality:
    """Return every figure of a predictor's probabilities, (M, K)."""
    labels = of_labels(probabilities, sample)
    losses = [figures["log_loss"] for figures in labels]
    loss = Resampled(
        float(LOSS_WEIGHTS @ [x.value for x in losses]), np.stack([x.values for x in losses], axis=1) @ LOSS_WEIGHTS
    )
    return Quality(loss, dict(zip(LABELS, labels, strict=True)))


def of_labels(p: Floats, sample: Sample) -> list[LabelFigures]:
    """Return every figure of each label of a sample, of probabilities (M, L)."""
    rows = np.hstack([log_losses(p, sample.targets), (p - sample.targets) ** 2])
    drawn = sample.resamples.means(rows).T
    means = [Resampled(float(value), values) for value, values in zip(rows.mean(axis=0), drawn, strict=True)]
    errors = _calibration_errors(p, sample)
    return [
        _of_thresholds(p[:, k], sample.targets[:, k], sample.resamples, float(sample.prevalence[k]))
        | {"log_loss": means[k], "brier": means[p.shape[1] + k], "calibration_error": errors[k]}
        for k in range(p.shape[1])
    ]


def _of_thresholds(p: Floats, y: NDArray[np.uint8], resamples: Resamples, prevalence: float) -> LabelFigures:
    """Return what hangs on the order of M probabilities alone."""
    whole, drawn = tally(p, y), tally_resamples(p, y, resamples)
    return {
        "auroc": _corrected(roc_areas(whole), roc_areas(drawn)),
        "average_precision": _corrected(average_precisions(whole), average_precisions(drawn)),
    } | _operating(whole, drawn, prevalence)


def _corrected(exact: Floats, values: Floats) -> Resampled:
    """Return a figure, (1,), and in each resample, (R + 1,), less what the groups of scores do to it (row 0)."""
    return Resampled(float(exact[0]), np.clip(values[1:] + (exact[0] - values[0]), 0, 1))


def _operating(whole: Tally, drawn: Tally, prevalence: float) -> LabelFigures:
    """Return what the thresholds that are put by specificity and by sensitivity lead to."""
    found: LabelFigures = {}
    for name, put in POINTS.items():
        exact, values = put(whole, LEAST), put(drawn, LEAST)
        other = "sensitivity" if put is at_specificity else "specificity"
        found[f"{other}_{name}"] = _corrected(getattr(exact, other), getattr(values, other))
        predictive = zip(exact.predictive_values(prevalence), values.predictive_values(prevalence), strict=True)
        found |= {f"{kind}_{name}": _corrected(*pair) for kind, pair in zip(("ppv", "npv"), predictive, strict=True)}
    return found


def _calibration_errors(p: Floats, sample: Sample) -> list[Resampled]:
    """Return each label's expected calibration error: how far from the truth a bin is, weighed by its share of rows."""
    off = [binned(p[:, k], p[:, k] - y, sample.resamples) for k, y in enumerate(sample.targets.T)]
    whole = [float(np.abs(x.sum(axis=0)).sum() / len(p)) for x in off]
    drawn = np.abs(sample.resamples.weights @ np.hstack(off)).reshape(-1, len(off), BINS).sum(axis=2)
    with np.errstate(invalid="ignore"):  # none of the rows may have been drawn
        shares = drawn / sample.resamples.rows[:, None]
    return [Resampled(value, np.asarray(values)) for value, values in zip(whole, shares.T, strict=True)]


def binned(p: Floats, values: Floats, resamples: Resamples) -> Floats:
    """Return the sums of M values by patient and bin of probability, (P, BINS)."""
    shape = resamples.weights.shape[1], BINS
    at = resamples.index * BINS + np.minimum((p * BINS).astype(np.int64), BINS - 1)
    return np.bincount(at, values, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)


def reliability(p: Floats, y: NDArray[np.uint8], resamples: Resamples) -> list[dict[str, Any]]:
    """Return for each bin with rows its borders, how many, their mean probability, and the positives with interval."""
    counts, said, positives = (binned(p, v, resamples) for v in (np.ones(len(p)), p, y.astype(np.float64)))
    sums = (resamples.weights @ np.hstack([positives, counts])).astype(np.float64)
    with np.errstate(invalid="ignore"):
        drawn = sums[:, :BINS] / sums[:, BINS:]
    found = []
    for b in np.flatnonzero(counts.sum(axis=0)):
        rows = counts[:, b].sum()
        share = Resampled(float(positives[:, b].sum() / rows), drawn[:, b])
        found.append(
            {
                "from": b / BINS,
                "to": (b + 1) / BINS,
                "rows": int(rows),
                "mean": round(float(said[:, b].sum() / rows), 6),
            }
            | {"observed": share.json()}
        )
    return found


def compare(measured: Mapping[str, Quality], against: str) -> dict[str, Any]:
    """Return each other predictor's figures less those of `against`, paired resample by resample."""
    return {f"{name} - {against}": (q - measured[against]).json() for name, q in measured.items() if name != against}
