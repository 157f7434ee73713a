"""How good probabilities are: the challenge's loss, AUC, and intervals that respect patients."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

LOSS_WEIGHTS = np.array([1, 1, 1, 1, 1, 2]) / 7
"""RSNA 2019: the log loss of `any` counts twice. (K,), summing to 1."""

CLIP = 1e-5
"""Probabilities are kept this far from 0 and 1, as the winners did: one sure mistake would cost all."""

Floats = NDArray[np.float64]

CHUNK_NUMBERS = 8_000_000
"""Numbers held at once while resampling: 64 MB as float64."""


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


def log_loss_of_logits(logits: NDArray[np.float64], targets: NDArray[np.uint8]) -> float:
    """Return the challenge's weighted log loss of M slices, (M, K), without clipping."""
    losses = np.logaddexp(0, logits) - targets * logits
    return float((losses @ LOSS_WEIGHTS).mean())


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

    @classmethod
    def of(cls, value: float, resampled: Floats) -> Estimate:
        """Take the percentile interval of resampled values; those that are NaN (a class absent) do not count."""
        known = resampled[~np.isnan(resampled)]
        low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
        return cls(value, float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resamples:
    """How often each of R bootstrap samples holds each of the P patients of M rows: `weights` (R, P), `index` (M,).

    Rows of one patient are no independent evidence, so whole patients are drawn with replacement. Seeded,
    hence repeatable; a difference of two models on the same resamples is paired.
    """

    def __init__(self, patients: NDArray[np.str_], *, resamples: int = 2000, seed: int = 0) -> None:
        unique, self.index = np.unique(patients, return_inverse=True)
        even = np.full(len(unique), 1 / len(unique))
        self.weights = np.random.default_rng(seed).multinomial(len(unique), even, size=resamples).astype(np.float32)

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Resamples:
        """Return the same samples of other rows: those marked of the M, or by number, any as often as named."""
        part = copy(self)
        part.index = self.index[rows]
        part.__dict__.pop("rows", None)
        return part

    def means(self, values: Floats) -> Floats:
        """Return the mean of M values in each resample, (M,) or (M, C) -> (R,) or (R, C), NaN where it holds no row."""
        columns = values.reshape(len(values), -1).T
        sums = np.stack([np.bincount(self.index, v, minlength=self.weights.shape[1]) for v in columns], axis=1)
        with np.errstate(invalid="ignore"):
            means = (self.weights @ sums) / self.rows[:, None]
        return np.asarray(means.reshape(-1, *values.shape[1:]))

    @cached_property
    def rows(self) -> Floats:
        """How many rows each resample holds, (R,)."""
        return np.asarray(self.weights @ np.bincount(self.index, minlength=self.weights.shape[1]).astype(float))

    @cached_property
    def times(self) -> NDArray[np.float32]:
        """How often the data themselves, and then each resample, hold each patient, (P, R + 1)."""
        return np.ascontiguousarray(np.vstack([np.ones_like(self.weights[:1]), self.weights]).T)

    def aucs(self, scores: Floats, targets: NDArray[np.uint8]) -> Floats:
        """Return the AUC of M scores in each resample, (R,), NaN where a class is absent.

        Only the place of a negative among the positives matters, so each patient's rows are counted
        between the distinct scores of positives; a resample is then a weighted sum of such counts.
        """
        positive = targets > 0
        if np.isnan(scores).any() or not positive.any():
            return np.full(len(self.weights), np.nan)
        marks = np.unique(scores[positive])
        at = 2 * np.searchsorted(marks, scores, side="left") + np.isin(scores, marks)
        shape = self.weights.shape[1], 2 * len(marks) + 1
        of = [
            coo_array((np.ones(int(rows.sum()), np.float32), (self.index[rows], at[rows])), shape).tocsr()
            for rows in (positive, ~positive)
        ]
        size = max(1, CHUNK_NUMBERS // shape[1])
        chunks = (self.weights[i : i + size] for i in range(0, len(self.weights), size))
        return np.concatenate([_weighted_aucs(*((counts.T @ w.T).T for counts in of)) for w in chunks])


def _weighted_aucs(positives: NDArray[np.float32], negatives: NDArray[np.float32]) -> Floats:
    """Return AUCs from counts at ascending scores, (R, G) each."""
    below = np.cumsum(negatives, axis=1, dtype=np.float64)
    wins = np.einsum("rg,rg->r", positives, below - negatives / 2)
    pairs: Floats = positives.sum(axis=1, dtype=np.float64) * below[:, -1]
    return np.asarray(np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))


def bootstrap(
    statistic: Callable[[Floats | None], float],
    patients: NDArray[np.str_],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return any statistic of M rows with its 95 % interval over resampled patients, slowly.

    `statistic` gets (M,) weights that say how often each row was drawn, None for the data as they are.
    """
    drawn = Resamples(patients, resamples=resamples, seed=seed)
    values = [statistic(weights[drawn.index].astype(np.float64)) for weights in drawn.weights]
    return Estimate.of(statistic(None), np.array(values))
