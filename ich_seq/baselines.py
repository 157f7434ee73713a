"""What a sequence model has to beat: the prevalence, the slice's position, its embedding alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

POSITION_BINS = 20
MAX_FIT_SLICES = 20_000
"""A classifier is fitted on no more: it would take minutes a label."""

MAX_ROUNDS = 1000

RIDGE = 1e-3
"""Inverse strength of the penalty (scikit-learn's C) on standardised embeddings; there are more
dimensions than patients, so it is strong."""


def constant(targets: NDArray[np.uint8], count: int) -> Floats:
    """Predict the training prevalence of each label, (M, K) targets -> (count, K)."""
    return np.tile(targets.mean(axis=0), (count, 1))


def log_odds(positives: NDArray[Any], count: float) -> Floats:
    """Return the log odds of each label, (K,) positives among `count`, with half a case more on either side."""
    return np.asarray(np.log((positives + 0.5) / (count - positives + 0.5)))


def relative_positions(positions_mm: Floats) -> Floats:
    """Return where N slices lie between the study's first (0) and last (1); 0.5 if all lie at one place."""
    span = positions_mm[-1] - positions_mm[0]
    if span <= 0:
        return np.full(len(positions_mm), 0.5)
    return np.asarray((positions_mm - positions_mm[0]) / span)


def by_position(relative: Floats, targets: NDArray[np.uint8], new_relative: Floats) -> Floats:
    """Predict the training prevalence at a slice's relative position (0 feet to 1 head), smoothed.

    Position alone scores a high AUC: bleeds are rare at both ends of a head. (M,) and (M, K) -> (L, K).
    """
    edges = np.linspace(0, 1, POSITION_BINS + 1)[1:-1]
    counts = np.full((POSITION_BINS, 1), 1.0)
    sums = np.tile(targets.mean(axis=0), (POSITION_BINS, 1))
    bins = np.digitize(relative, edges)
    np.add.at(counts, bins, 1.0)
    np.add.at(sums, bins, targets.astype(np.float64))
    return np.asarray((sums / counts)[np.digitize(new_relative, edges)])


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceClassifier:
    """A linear classifier of single slices: `weight` (K, D) and `bias` (K,), float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the logits of M slices, (M, D) -> (M, K)."""
        return np.asarray(features.astype(np.float32) @ self.weight.T + self.bias)


def fit_classifier(features: NDArray[np.floating[Any]], targets: NDArray[np.uint8]) -> SliceClassifier:
    """Fit logistic regression on standardised embeddings, (M, D) and (M, K).

    A label with one class among the targets gets weights of 0 and the log odds of half a case more.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features.astype(np.float64))
    standard = scaler.transform(features.astype(np.float64))
    positives, count = targets.sum(axis=0, dtype=np.int64), len(targets)
    weight = np.zeros((targets.shape[1], features.shape[1]))
    bias = log_odds(positives, count)
    for k in np.flatnonzero((positives > 0) & (positives < count)):
        fitted = LogisticRegression(C=RIDGE, max_iter=MAX_ROUNDS).fit(standard, targets[:, k])
        weight[k] = fitted.coef_[0] / scaler.scale_
        bias[k] = fitted.intercept_[0] - weight[k] @ scaler.mean_
    return SliceClassifier(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
