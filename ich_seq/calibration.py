"""From two opinions to a probability: how much of the sequence model to believe, then how sure to be, label by label.

Context can harm a rare label (published: AUC of epidural .954 without, .923 with the GRU), so each label
gets its own share of the sequence model, and then its own line through the logits (after Platt 1999) or
temperature (Guo et al. 2017). All is chosen on studies that the networks did not learn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ich_seq.metrics import log_losses

Floats = NDArray[np.float64]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the sequence model that are tried; more of them would only be fitted to chance."""

SURE = 2.0
"""Standard errors from nothing at which a gain counts: 95 % (with 1, subarachnoid on CT-ICH came out worse)."""

LEAST_STUDIES = 20
"""A label with fewer studies on either side is left as it is: a line fitted to so few does more harm than good."""

LEAST_SPREAD = 1e-6
"""Logits that lie no further apart are all one: no line goes through them."""

STEEPEST = 10.0
"""The largest slope believed; logits that need ten times their size were not learnt by log loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Three numbers a label, (K,) each: logits are `slope` x (base + `share` x (refined - base)) + `intercept`."""

    share: Floats
    slope: Floats
    intercept: Floats

    def logits(self, base: Floats, refined: Floats) -> Floats:
        """Return calibrated logits, (..., K), of the base's and the sequence model's."""
        return np.asarray(self.slope * blend(base, refined, self.share) + self.intercept)


def blend(base: Floats, refined: Floats, share: Floats) -> Floats:
    """Return logits (..., K) between those of the base and the refined ones, at `share` (K,) of the way."""
    return np.asarray(base + share * (refined - base))


def fit_calibration(
    base: Floats, refined: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64], method: str
) -> Calibration:
    """Choose the shares on M rows, (M, K), then fit lines ("platt"), slopes alone ("temperature") or nothing ("none").

    `lengths` (B,) are the rows of each study, be these its slices or the study itself: slices of one study are no
    independent evidence, so studies are counted. A share, and then a line, is taken only if its gain is surer than
    chance: with few studies either may fit nothing but them.
    """
    share = fit_shares(base, refined, targets, lengths)
    slope, intercept = fit_lines(blend(base, refined, share), targets, lengths, method)
    return Calibration(share=share, slope=slope, intercept=intercept)


def fit_shares(base: Floats, refined: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Floats:
    """Return the shares of least loss, (K,), but 0 where the gain is not sure: see `fit_calibration`."""
    share = choose_shares(base, refined, targets)
    return np.where(gains(base, blend(base, refined, share), targets, lengths), share, 0.0)


def fit_lines(
    logits: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64], method: str
) -> tuple[Floats, Floats]:
    """Return slopes and intercepts, (K,) each, of the lines that surely gain: see `fit_calibration`."""
    slope, intercept = np.ones(logits.shape[1]), np.zeros(logits.shape[1])
    study_targets = np.maximum.reduceat(targets, starts(lengths), axis=0)
    positive = study_targets.sum(axis=0, dtype=np.int64)
    enough = np.minimum(positive, len(study_targets) - positive) >= LEAST_STUDIES
    enough &= np.ptp(logits, axis=0) > LEAST_SPREAD
    for k in np.flatnonzero(enough) if method != "none" else ():
        slope[k], intercept[k] = fit_line(logits[:, k], targets[:, k], intercept=method == "platt")
    sure = gains(logits, slope * logits + intercept, targets, lengths)
    return np.where(sure, slope, 1.0), np.where(sure, intercept, 0.0)


def choose_shares(base: Floats, refined: Floats, targets: NDArray[np.uint8]) -> Floats:
    """Return for each label, (K,), the share of least log loss on M rows, (M, K); of equal ones the least.

    A label without a positive row has nothing to choose by and keeps the base.
    """
    losses = np.stack([log_losses(expit(blend(base, refined, np.array(s))), targets).mean(axis=0) for s in SHARES])
    best = np.array(SHARES)[losses.argmin(axis=0)]
    return np.where(targets.any(axis=0), best, 0.0)


def gains(before: Floats, after: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each label, (K,), whether logits `after`, (M, K), have less loss than `before`, and surely so.

    That is by more than SURE standard errors over studies; they are those that `after` was fitted to, so a little of
    the gain is the fit's own. False for a single study.
    """
    return surely(log_losses(expit(before), targets) - log_losses(expit(after), targets), lengths)


def surely(saved: Floats, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell whether what M rows save, (M, ...), is above nothing by SURE standard errors over their studies.

    False for a single study.
    """
    of_study = np.add.reduceat(saved, starts(lengths), axis=0)
    if len(of_study) == 1:
        return np.zeros(of_study.shape[1:], bool)
    error = np.sqrt(len(of_study)) * of_study.std(axis=0, ddof=1)
    return np.asarray(of_study.sum(axis=0) > SURE * error)


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first row of each study, (B,), of studies that lie one after the other."""
    return np.cumsum(lengths) - lengths


def fit_line(logits: Floats, targets: NDArray[np.uint8], *, intercept: bool) -> tuple[float, float]:
    """Return the slope and intercept of maximum likelihood for M logits and targets, both classes present.

    A slope that is not positive would turn the order of slices round, and one above STEEPEST comes of logits that
    part the classes, where there is no likeliest one; the logits then stay as they are: (1, 0).
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, fit_intercept=intercept, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    fitted = model.fit(logits[:, None], targets)
    slope = float(fitted.coef_[0, 0])
    return (slope, float(np.ravel(fitted.intercept_)[0]) if intercept else 0.0) if 0 < slope <= STEEPEST else (1.0, 0.0)
