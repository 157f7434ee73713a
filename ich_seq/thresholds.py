"""What scores tell at every threshold, in every resample: areas under curves, and operating points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from ich_seq.metrics import Resamples

Floats = NDArray[np.float64]

GROUPS = 512
"""At most so many groups of neighbouring scores are told apart while resampling: RSNA's 752,803 take a second."""


ROUNDING = 1e-9
"""A share such as 19 of 20 is not to miss .95 by its last bit."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often `positives` and `negatives` have each of G ascending scores in each of R samples, (R, G) each."""

    positives: Floats
    negatives: Floats

    def reached(self) -> tuple[Floats, Floats]:
        """Return sensitivity and specificity, (R, G + 1) each, when what scores at least as much is called positive.

        The last column calls nothing positive. NaN where a sample has no positive, or no negative.
        """
        with np.errstate(invalid="ignore"):
            sensitivity = _from_above(self.positives) / self.positives.sum(axis=1, keepdims=True)
            specificity = 1 - _from_above(self.negatives) / self.negatives.sum(axis=1, keepdims=True)
        return sensitivity, specificity


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Sensitivity and specificity where a threshold was put, (R,) each."""

    sensitivity: Floats
    specificity: Floats

    def predictive_values(self, prevalence: float) -> tuple[Floats, Floats]:
        """Return the positive and the negative predictive value among people of this prevalence (Bayes), (R,) each.

        NaN where nobody would be called so.
        """
        hit, miss = prevalence * self.sensitivity, prevalence * (1 - self.sensitivity)
        passed, alarm = (1 - prevalence) * self.specificity, (1 - prevalence) * (1 - self.specificity)
        with np.errstate(invalid="ignore"):
            return hit / (hit + alarm), passed / (passed + miss)


def _from_above(counts: Floats) -> Floats:
    """Return how many have each score or a higher one, (R, G) -> (R, G + 1): from all to none."""
    sums = np.cumsum(counts[:, ::-1], axis=1, dtype=np.float64)[:, ::-1]
    return np.pad(sums, ((0, 0), (0, 1)))


def tally(scores: Floats, targets: NDArray[np.uint8]) -> Tally:
    """Count M scores as they are, as a single sample (R = 1)."""
    values, at = np.unique(scores, return_inverse=True)
    counts = (np.bincount(at[rows], minlength=len(values)) for rows in (targets > 0, targets == 0))
    return Tally(*(c[None].astype(np.float64) for c in counts))


def tally_resamples(scores: Floats, targets: NDArray[np.uint8], resamples: Resamples) -> Tally:
    """Count M scores as they are (row 0) and in each resample, (R + 1, G): by themselves, or in GROUPS groups if more.

    Half of the borders are quantiles of the positives, half of the negatives, so that neither is lumped together.
    What groups do to a figure is what row 0 differs by from `tally`.
    """
    borders = _borders(scores, targets > 0)
    at = np.searchsorted(borders, scores)
    shape = resamples.weights.shape[1], len(borders)
    counts = []
    for rows in (targets > 0, targets == 0):
        ones = np.ones(int(rows.sum()), np.float32)
        of_patients = coo_array((ones, (resamples.index[rows], at[rows])), shape).tocsr()
        counts.append((of_patients.T @ resamples.times).T.astype(np.float64))
    return Tally(*counts)


def _borders(scores: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Return the largest score of each group, ascending."""
    distinct = np.unique(scores)
    if len(distinct) <= GROUPS:
        return distinct
    shares = np.linspace(0, 1, GROUPS // 2)
    parts = [np.quantile(scores[rows], shares, method="higher") for rows in (positive, ~positive) if rows.any()]
    return np.unique(np.concatenate([*parts, distinct[-1:]]))


ABOVE_ALL = 2.0
"""A threshold that no probability reaches; JSON knows no infinity."""

MOST_POINTS = 200
"""So many points of a curve are kept to draw it; a page is no wider."""


def roc_curve(scores: Floats, targets: NDArray[np.uint8]) -> dict[str, list[float]] | None:
    """Return a ROC curve as JSON values, thresholds ascending, with sensitivity and specificity; None without a class.

    What scores at least the threshold is called positive. Of more than MOST_POINTS points those are kept that lie
    evenly along the curve, first and last among them.
    """
    counted = tally(scores, targets)
    sensitivity, specificity = (rates[0] for rates in counted.reached())
    if np.isnan(sensitivity).any() or np.isnan(specificity).any():
        return None
    kept = _spread_out(sensitivity, specificity)
    threshold = np.append(np.unique(scores), ABOVE_ALL)
    rates = {"sensitivity": sensitivity, "specificity": specificity}
    return {"threshold": threshold[kept].tolist()} | {
        name: np.round(values[kept], 6).tolist() for name, values in rates.items()
    }


def _spread_out(sensitivity: Floats, specificity: Floats) -> NDArray[np.intp]:
    """Return which of the points of a curve to keep."""
    if len(sensitivity) <= MOST_POINTS:
        return np.arange(len(sensitivity))
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(sensitivity)) + np.abs(np.diff(specificity)))])
    return np.unique(np.searchsorted(along, np.linspace(0, along[-1], MOST_POINTS)))


def roc_areas(counted: Tally) -> Floats:
    """Return the area under the ROC curve, ties counting half, (R,); NaN where a class is absent."""
    sensitivity, specificity = counted.reached()
    return np.asarray(np.trapezoid(sensitivity[:, ::-1], (1 - specificity)[:, ::-1], axis=1))


def average_precisions(counted: Tally) -> Floats:
    """Return the average precision, (R,): precision weighed by the recall gained at each score, as scikit-learn does.

    NaN where there is no positive.
    """
    hits, alarms = _from_above(counted.positives)[:, :-1], _from_above(counted.negatives)[:, :-1]
    called = hits + alarms
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((precision * counted.positives).sum(axis=1) / counted.positives.sum(axis=1))


def at_specificity(counted: Tally, least: float) -> OperatingPoint:
    """Return the point of highest sensitivity among those of at least this specificity."""
    sensitivity, specificity = counted.reached()
    # sensitivity falls and specificity rises from threshold to threshold: the first that will do is the best
    chosen = (specificity >= least - ROUNDING).argmax(axis=1)[:, None]
    return _point(sensitivity, specificity, chosen)


def at_sensitivity(counted: Tally, least: float) -> OperatingPoint:
    """Return the point of highest specificity among those of at least this sensitivity."""
    sensitivity, specificity = counted.reached()
    enough = sensitivity >= least - ROUNDING
    chosen = enough.shape[1] - 1 - enough[:, ::-1].argmax(axis=1)[:, None]
    return _point(sensitivity, specificity, chosen)


def _point(sensitivity: Floats, specificity: Floats, chosen: NDArray[np.intp]) -> OperatingPoint:
    """Return the chosen points, NaN where there is no positive or no negative to tell."""
    known = ~(np.isnan(sensitivity[:, 0]) | np.isnan(specificity[:, 0]))
    values = (np.take_along_axis(x, chosen, axis=1)[:, 0] for x in (sensitivity, specificity))
    return OperatingPoint(*(np.where(known, v, np.nan) for v in values))
