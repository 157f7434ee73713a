"""What labels tell by themselves: how often, with which others, how long along z, and where. Arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ich_seq.baselines import relative_positions

Targets = NDArray[np.uint8]
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """One label along the slices of many studies.

    `lengths` are those of the stretches of positive slices, in order; `gaps` counts single negative slices between two
    positive ones; of `neighbours` pairs of slices `agreeing` are labelled alike.
    """

    lengths: Counts
    gaps: int
    neighbours: int
    agreeing: int


def positives(targets: Targets) -> Counts:
    """Count the positive rows of each label, (M, K) -> (K,)."""
    return np.asarray(targets.sum(axis=0), np.int64)


def co_occurrence(targets: Targets) -> Counts:
    """Count the rows where both labels are positive, (M, K) -> (K, K); the diagonal counts each label."""
    wide = targets.astype(np.float64)  # exact up to 2**53, and a product of integers would not go through BLAS
    return np.asarray(np.rint(wide.T @ wide), np.int64)


def shares_of_rows(counts: Counts) -> NDArray[np.float64]:
    """Divide each row of a co-occurrence (K, K) by its diagonal: the share of one label that has the other, too.

    NaN where a label never occurs.
    """
    own = counts.diagonal()[:, None].astype(np.float64)
    return np.asarray(np.divide(counts, own, out=np.full(counts.shape, np.nan), where=own > 0))


def any_of_groups(targets: Targets, group: NDArray[np.int64], n_groups: int) -> Targets:
    """Return which label any row of a group has, (M, K) and (M,) in 0..n_groups-1 -> (n_groups, K)."""
    found = np.zeros((n_groups, targets.shape[1]), np.uint8)
    np.maximum.at(found, group, targets)
    return found


def stretches(study: NDArray[np.int64], labelled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the stretches of neighbouring labelled slices, (M,) -> (M labelled,): a study ends one, so does a hole.

    `study` numbers the study of each slice, whose slices stand together, feet to head.
    """
    ends = np.diff(study, prepend=study[:1] - 1) != 0
    behind_a_hole = np.concatenate([[False], ~labelled[:-1]]) if len(labelled) else labelled
    return np.cumsum(ends | behind_a_hole)[labelled]


def runs(positive: NDArray[np.bool_], stretch: NDArray[np.int64]) -> Runs:
    """Return the runs of one label, (M,), along slices of which those of one stretch (M,) are neighbours."""
    beside = stretch[1:] == stretch[:-1]
    begins = positive & np.concatenate([[True], ~beside | ~positive[:-1]])[: len(positive)]
    ends = positive & np.concatenate([~beside | ~positive[1:], [True]])[: len(positive)]
    between = positive[:-2] & ~positive[1:-1] & positive[2:] & beside[:-1] & beside[1:]
    return Runs(
        lengths=(np.flatnonzero(ends) - np.flatnonzero(begins) + 1).astype(np.int64),
        gaps=int(between.sum()),
        neighbours=int(beside.sum()),
        agreeing=int((beside & (positive[1:] == positive[:-1])).sum()),
    )


def places(positions_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where the N slices of a study lie from its first, 0, to its last, 1; NaN if all lie at one position."""
    if positions_mm[-1] <= positions_mm[0]:
        return np.full(len(positions_mm), np.nan)
    return relative_positions(positions_mm)


def profile(place: NDArray[np.float64], targets: Targets, bins: int) -> tuple[Counts, Counts]:
    """Count slices, (bins,), and the positive ones of each label, (bins, K), by place in [0, 1], (M,); NaN is left out.

    A bin holds its lower edge; the last one holds 1 too.
    """
    known = ~np.isnan(place)
    bin_ = np.minimum((place[known] * bins).astype(np.int64), bins - 1)
    positive = np.zeros((bins, targets.shape[1]), np.int64)
    np.add.at(positive, bin_, targets[known])
    return np.bincount(bin_, minlength=bins).astype(np.int64), positive
