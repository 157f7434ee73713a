"""What neighbouring slices say of a slice, by a few weights that all labels share: what little data can learn.

A bleed spans slices, so a slice's logit moves towards those beside it, a slice above counting as one below. Six labels
have one kernel because the bleeds of all of them do: on the 62 patients of CT-ICH three weights take off loss that a
regression for each label puts on (docs/experiments.md, section 13). Neighbours are slices, whatever lies between them:
one 1 mm away is heard as one 5 mm away.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ich_seq.calibration import Calibration, blend, fit_lines, fit_shares, starts, surely
from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS, log_losses

Floats = NDArray[np.float64]

REACH = 3
"""Slices to either side that are heard: what the sequence model's own smoothing reads (`rnn.smoothing`)."""

NO_KERNEL = np.zeros((len(LABELS), 0))
"""Of bundles that leave slices as they are."""


def smooth(logits: Floats, lengths: NDArray[np.int64], kernel: Floats) -> Floats:
    """Return the logits of M slices, (M, K), moved towards their neighbours by a kernel, (K, R).

    `lengths` (B,) are the slices of each study, which lie one after the other, feet to head. `kernel[k, r - 1]` is the
    weight of both slices r away; a study's first and last slice stand in for those beyond its ends.
    """
    return np.asarray(logits + np.einsum("mkr,kr->mk", beside(logits, lengths, kernel.shape[1]), kernel))


def beside(logits: Floats, lengths: NDArray[np.int64], reach: int) -> Floats:
    """Return what the two slices r away say more than a slice itself, together: (M, K) -> (M, K, reach)."""
    row = np.arange(len(logits))
    first = np.repeat(starts(lengths), lengths)
    last = first + np.repeat(lengths, lengths) - 1
    both = [logits[np.maximum(row - r, first)] + logits[np.minimum(row + r, last)] for r in range(1, reach + 1)]
    return np.stack([pair - 2 * logits for pair in both], axis=-1) if both else np.zeros((*logits.shape, 0))


def fit_smoothed(
    base: Floats, refined: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64], method: str
) -> tuple[Calibration, Floats]:
    """Return the calibration of M slices, as `fit_calibration` does, and the kernel, (K, R), for those without a share.

    It stands in for a sequence model that nothing vouches for, fitted and proven on all labels, those with a share too.
    Where something does, the model has read neighbours itself; held against slices smoothed already, it would have to
    show its gain a second time.
    """
    share = fit_shares(base, refined, targets, lengths)
    kernel = np.where(share[:, None] > 0, 0.0, fit_kernel(base, targets, lengths))
    slope, intercept = fit_lines(blend(smooth(base, lengths, kernel), refined, share), targets, lengths, method)
    return Calibration(share=share, slope=slope, intercept=intercept), kernel


def fit_kernel(logits: Floats, targets: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Floats:
    """Return the kernel, (K, R), of least weighted log loss on M slices, (M, K), its weights in 0..1.

    It is 0 for all labels unless the loss that it takes off them together is sure, as a share of the blend has to be
    (see `calibration.surely`); then too it is 0 for a label that loses by it, and the same for all others. A label of
    which all slices are alike has no say and no kernel.
    """
    near = beside(logits, lengths, REACH)
    told = targets.any(axis=0) & ~targets.all(axis=0)  # any averaging takes loss off a label that never changes
    weights = _likeliest(logits, near, targets, LOSS_WEIGHTS * told)
    saved = log_losses(expit(logits), targets) - log_losses(expit(logits + near @ weights), targets)
    taken = told & (saved.sum(axis=0) > 0) & surely(saved @ (LOSS_WEIGHTS * told), lengths)
    return np.where(taken[:, None], weights, 0.0)


def _likeliest(logits: Floats, near: Floats, targets: NDArray[np.uint8], label_weights: Floats) -> Floats:
    """Return the weights, (R,), of least weighted log loss; it is convex in them."""
    shares = label_weights / len(logits)

    def loss(weights: Floats) -> tuple[float, Floats]:
        said = logits + near @ weights
        losses = np.logaddexp(0, said) - targets * said
        return float((losses @ shares).sum()), np.einsum("mk,mkr->r", (expit(said) - targets) * shares, near)

    found = minimize(loss, np.zeros(REACH), jac=True, bounds=[(0, 1)] * REACH, method="L-BFGS-B")
    return np.asarray(found.x, np.float64)
