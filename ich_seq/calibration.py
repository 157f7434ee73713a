"""How much of the sequence model to believe, label by label: a blend with the slice classifier.

Context can harm a rare label (published: AUC of epidural .954 without, .923 with the GRU), so each label
gets its own share of the GRU, chosen on studies that the networks did not learn from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ich_seq.metrics import log_losses

Floats = NDArray[np.float64]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the GRU that are tried; more of them would only be fitted to chance."""


def blend(base: Floats, refined: Floats, share: Floats) -> Floats:
    """Return logits (..., K) between those of the base and the refined ones, at `share` (K,) of the way."""
    return np.asarray(base + share * (refined - base))


def choose_shares(base: Floats, refined: Floats, targets: NDArray[np.uint8]) -> Floats:
    """Return for each label, (K,), the share of least log loss on M rows, (M, K); of equal ones the least.

    A label without a positive row has nothing to choose by and keeps the base.
    """
    losses = np.stack([log_losses(expit(blend(base, refined, np.array(s))), targets).mean(axis=0) for s in SHARES])
    best = np.array(SHARES)[losses.argmin(axis=0)]
    return np.where(targets.any(axis=0), best, 0.0)
