"""How unlike the training data a study is, by the embeddings of its slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

QUANTILE = 0.99
LEAST_SCALE = 0.1
"""No dimension counts as steadier than a tenth of the usual: one that is nearly always 0 would decide alone."""

TINY = 1e-30
"""Stands for 0 where it would be divided by."""

ROUNDED = 1e-6
"""What differs by less, of embeddings of length 1, is the same: they are kept in half precision."""

MOST = 10.0
"""Ten standard deviations are as bad as any more."""

AXES = 8
"""Along the axes of most spread an embedding may lie far out and be usual: there a network trained on haemorrhages puts
the blood it sees. By the mere distance bleeding heads were strange and a chest was not (docs/experiments.md, 16)."""

STRANGE = 1.5
"""From here on a study is called unlike the training data. With the bundle in the box heads of other scanners reach .96
to 1.24, a water phantom 1.7, a chest 1.9, a leg 2.1; single slices up to 2.5 (docs/experiments.md, section 16)."""


@dataclass(frozen=True, slots=True)
class Familiar:
    """What embeddings of unit length are usual: of E networks mean and standard deviation, (E, D) float32, and axes.

    `axes` (E, R, D) float32 are orthonormal directions of standardised embeddings, or 0. `limit` is the distance off
    them that QUANTILE of the training studies stay below.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    axes: NDArray[np.float32]
    limit: float

    def novelty(self, views: Iterable[NDArray[np.floating]]) -> float:
        """Return how far a study lies off what is usual, in units of the limit: 1 is as far as any of them.

        `views` are its embeddings, (N, D), by each of the networks in turn; the mean is taken of those that are known.
        """
        usual = zip(self.mean, self.scale, self.axes, strict=True)
        off = [_distance(view, *of) for view, of in zip(views, usual, strict=True) if np.isfinite(of[0][0])]
        return float(np.mean(off)) / self.limit


def fit_familiar(studies: Mapping[int, Sequence[NDArray[np.float16]]], networks: Sequence[int]) -> Familiar:
    """Learn what is usual from the embeddings of training studies, (N, D) each, by the network that made them.

    They may lie on the disk, are read three times, and one at a time. Of one of `networks` that made none nothing is
    known (NaN).
    """
    usual = {number: _usual(made) for number, made in studies.items()}
    distances = [_distance(np.asarray(x), *usual[number]) for number, made in studies.items() for x in made]
    unknown = tuple(np.full_like(x, np.nan) for x in next(iter(usual.values())))
    mean, scale, axes = (np.stack([usual.get(number, unknown)[which] for number in networks]) for which in range(3))
    return Familiar(mean, scale, axes, max(float(np.quantile(distances, QUANTILE)), TINY))


def _usual(studies: Sequence[NDArray[np.float16]]) -> tuple[NDArray[np.float32], ...]:
    """Return mean and standard deviation of all rows, (D,) each, and the axes of most spread, (R, D)."""
    rows, sums, squares = 0, np.float64(0), np.float64(0)
    for study in studies:
        x = _unit(study)
        rows, sums, squares = rows + len(x), sums + x.sum(axis=0), squares + (x * x).sum(axis=0)
    mean = np.asarray(sums / rows)
    spread = np.sqrt(np.maximum(squares / rows - mean**2, 0))
    floor = max(LEAST_SCALE * float(spread.mean()), ROUNDED)
    centre, scale = mean.astype(np.float32), np.maximum(spread, floor).astype(np.float32)
    return centre, scale, _axes(studies, centre, scale, rows)


def _axes(
    studies: Iterable[NDArray[np.float16]], mean: NDArray[np.float32], scale: NDArray[np.float32], rows: int
) -> NDArray[np.float32]:
    """Return the principal axes of standardised rows, (R, D), R at most AXES and half of D.

    One in ten rows at most, the others are 0: as many axes as rows would leave nothing off them.
    """
    moments = np.zeros((len(mean), len(mean)))
    for study in studies:
        off = _standardised(study, mean, scale)
        moments += off.T @ off
    ascending: Floats = np.linalg.eigh(moments).eigenvectors.T
    axes = np.zeros((min(AXES, len(mean) // 2), len(mean)), np.float32)
    kept = min(len(axes), rows // 10)
    axes[len(axes) - kept :] = ascending[len(mean) - kept :]
    return axes


def _distance(
    study: NDArray[np.floating], mean: NDArray[np.float32], scale: NDArray[np.float32], axes: NDArray[np.float32]
) -> float:
    """Return the squared distance of N embeddings from the mean that no axis takes, the mean over slices and D."""
    off = _standardised(study, mean, scale)
    beside = (off**2).sum(axis=1) - ((off @ axes.T) ** 2).sum(axis=1)
    return float(beside.clip(0).mean()) / len(mean)


def _standardised(study: NDArray[np.floating], mean: NDArray[np.float32], scale: NDArray[np.float32]) -> Floats:
    """Return how many standard deviations off embeddings are, (N, D), at most MOST."""
    return ((_unit(study) - mean) / scale).clip(-MOST, MOST)


def _unit(study: NDArray[np.floating]) -> Floats:
    """Return embeddings at length 1, or 0: how long they are, blood decides more than what is shown."""
    x = np.asarray(study, np.float64)
    lengths: Floats = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.maximum(lengths, TINY)
