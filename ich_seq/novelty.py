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

MOST = 10.0
"""Ten standard deviations are as bad as any more."""

STRANGE = 1.25
"""From here on a study is called unlike the training data. With an ImageNet encoder and the 62 heads of CT-ICH, heads
left out of the fit reach 1.10, heads of other scanners .6 to 1.3, a water phantom 2.6, a chest 4.0."""


@dataclass(frozen=True, slots=True)
class Familiar:
    """What embeddings are usual: of each of E networks the mean and standard deviation, (E, D) float32.

    `limit` is the distance that QUANTILE of the training studies stay below.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    limit: float

    def novelty(self, views: Iterable[NDArray[np.floating]]) -> float:
        """Return how far a study lies from the training data, in units of the limit: 1 is as far as any of them.

        `views` are its embeddings, (N, D), by each of the networks in turn; the mean is taken of those that are known.
        """
        usual = zip(self.mean, self.scale, strict=True)
        far = [_distance(view, *of) for view, of in zip(views, usual, strict=True) if np.isfinite(of[0][0])]
        return float(np.mean(far)) / self.limit


def fit_familiar(studies: Mapping[int, Sequence[NDArray[np.float16]]], networks: Sequence[int]) -> Familiar:
    """Learn what is usual from the embeddings of training studies, (N, D) each, by the network that made them.

    They may lie on the disk, are read twice, and one at a time. Of one of `networks` that made none nothing is known
    (NaN).
    """
    usual = {number: _usual(made) for number, made in studies.items()}
    distances = [_distance(np.asarray(x), *usual[number]) for number, made in studies.items() for x in made]
    unknown = (np.full_like(next(iter(usual.values()))[0], np.nan),) * 2
    mean, scale = (np.stack([usual.get(number, unknown)[which] for number in networks]) for which in range(2))
    return Familiar(mean, scale, max(float(np.quantile(distances, QUANTILE)), TINY))


def _usual(studies: Iterable[NDArray[np.float16]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and standard deviation of all rows, (D,) each."""
    rows, sums, squares = 0, np.float64(0), np.float64(0)
    for study in studies:
        x = np.asarray(study, np.float64)
        rows, sums, squares = rows + len(x), sums + x.sum(axis=0), squares + (x * x).sum(axis=0)
    mean = np.asarray(sums / rows)
    scale = np.sqrt(np.maximum(squares / rows - mean**2, 0))
    floor = max(LEAST_SCALE * float(scale.mean()), TINY)
    return mean.astype(np.float32), np.maximum(scale, floor).astype(np.float32)


def _distance(study: NDArray[np.floating], mean: NDArray[np.float32], scale: NDArray[np.float32]) -> float:
    """Return the mean square of how many standard deviations off N embeddings are, (N, D)."""
    off = (np.asarray(study, np.float32) - mean) / scale
    return float((off.clip(-MOST, MOST) ** 2).mean(dtype=np.float64))
