"""How good probabilities are: the challenge's loss, AUC, and intervals that respect patients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOSS_WEIGHTS = np.array([1, 1, 1, 1, 1, 2]) / 7
"""RSNA 2019: the log loss of `any` counts twice. (K,), summing to 1."""

CLIP = 1e-5
"""Probabilities are kept this far from 0 and 1, as the winners did: one sure mistake would cost all."""

Floats = NDArray[np.float64]


def log_losses(probabilities: Floats, targets: NDArray[np.uint8]) -> Floats:
    """Return the log loss of each entry, (..., K) -> (..., K), probabilities clipped by CLIP."""
    p = np.clip(probabilities, CLIP, 1 - CLIP)
    return -np.where(targets > 0, np.log(p), np.log1p(-p))


def weighted_log_loss(probabilities: Floats, targets: NDArray[np.uint8], weights: Floats | None = None) -> float:
    """Return the challenge's metric of M slices or studies, (M, K): `any` counts twice, lower is better.

    `weights` (M,) count a row several times or not at all. The prevalence as a constant scores 0.2320
    on RSNA 2019, 0.5 everywhere scores 0.6931.
    """
    return float(np.average(log_losses(probabilities, targets) @ LOSS_WEIGHTS, weights=weights))


def auc(scores: Floats, targets: NDArray[np.uint8], weights: Floats | None = None) -> float:
    """Return the area under the ROC curve of M scores, ties counting half; NaN if a class is absent or a score is NaN.

    `weights` (M,) count a row several times or not at all.
    """
    return RankedScores(scores, targets).auc(weights)


class RankedScores:
    """Scores sorted once, so that AUCs under many weightings of the same rows cost one pass each."""

    def __init__(self, scores: Floats, targets: NDArray[np.uint8]) -> None:
        self._numbers = not np.isnan(scores).any()
        self._order = np.argsort(scores, kind="stable")
        ranked = scores[self._order]
        self._positive = targets[self._order] > 0
        self._starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])[: len(ranked)])

    def auc(self, weights: Floats | None = None) -> float:
        """Return the AUC with these row weights (M,), or with all equal."""
        w = np.ones(len(self._order)) if weights is None else weights[self._order]
        if not len(w) or not self._numbers:
            return float("nan")
        positive = np.add.reduceat(np.where(self._positive, w, 0), self._starts)
        negative = np.add.reduceat(np.where(self._positive, 0, w), self._starts)
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    statistic: Callable[[Floats | None], float],
    patients: NDArray[np.str_],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of M rows with its 95 % percentile interval, resampling patients.

    Rows of one patient are no independent evidence, so whole patients are drawn with replacement:
    `statistic` gets (M,) weights that say how often each row was drawn, None for the data as they
    are. Resamples in which it is NaN (a class absent) do not count. Seeded, hence repeatable; a
    difference of two models is paired if one statistic takes both.
    """
    unique, index = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    even = np.full(len(unique), 1 / len(unique))
    values = np.array([statistic(rng.multinomial(len(unique), even)[index].astype(float)) for _ in range(resamples)])
    values = values[~np.isnan(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return Estimate(statistic(None), float(low), float(high))
