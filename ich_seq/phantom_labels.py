"""Labels of synthetic studies: which subtypes bleed in a study and on which slices, as often as in RSNA 2019.

The lowest of the three phantom modules: it holds the figures of the RSNA data set and draws from them,
and it knows nothing of pixels. `phantom_anatomy` draws the bodies of a label plan into a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ich_seq.labels import LABELS, SUBTYPES

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# RSNA 2019 stage-1 training set, 19,530 studies: studies holding each subtype, in SUBTYPES order.
STUDIES, ANY_STUDIES = 19_530, 8_003
SUBTYPE_STUDIES = (313, 4_796, 3_313, 3_549, 3_442)
# The same studies: share of the row's studies that hold the column as well.
GIVEN = {(0, 1): 0.460, (0, 2): 0.211, (0, 3): 0.374, (0, 4): 0.403, (1, 2): 0.510,
         (1, 3): 0.447, (1, 4): 0.298, (2, 3): 0.547, (2, 4): 0.283, (3, 4): 0.405}  # fmt: skip
SUBTYPES_PER_POSITIVE = (0.408, 0.326, 0.199, 0.063, 0.003)  # the same: 1, 2, 3, 4, 5 subtypes
RSNA_EPIDURAL = SUBTYPE_STUDIES[0] / STUDIES
DEMO_EPIDURAL = 0.10  # not RSNA: at 1.6 % a demo of 40 studies would mostly hold no epidural at all


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Where along z a subtype lies; lengths in slices of a study of 34.5 slices."""

    again: float  # chance that one more run follows
    median: float
    log_sd: float
    z: tuple[float, float, float, float, float]  # 5/25/50/75/95 % of the relative z of run centres


# RSNA 2019, 275 complete studies: runs per study, run length, relative z of the positive slices.
# Centres lie closer together than the slices they bring: `z` is the published profile narrowed.
# Epidural: two studies only there, so its length is the full set's 8.8 slices a study, its z ours.
RUNS = {
    "epidural": _Runs(again=0.04, median=7.0, log_sd=0.60, z=(0.32, 0.45, 0.54, 0.62, 0.73)),
    "intraparenchymal": _Runs(again=0.19, median=4.3, log_sd=0.74, z=(0.32, 0.44, 0.53, 0.61, 0.70)),
    "intraventricular": _Runs(again=0.19, median=4.4, log_sd=0.78, z=(0.24, 0.43, 0.50, 0.56, 0.61)),
    "subarachnoid": _Runs(again=0.40, median=3.1, log_sd=1.25, z=(0.34, 0.48, 0.62, 0.73, 0.83)),
    "subdural": _Runs(again=0.27, median=7.6, log_sd=0.72, z=(0.47, 0.54, 0.62, 0.70, 0.79)),
}
Z_SHARES = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
Z_LIMITS = {"intraventricular": (0.19, 0.70)}  # where the phantom has ventricles; others below
ANY_LIMITS = (0.08, 0.92)  # RSNA 2019: .010 and .011 of the lowest and highest tenth are positive
SLICES_MEAN = 34.5  # RSNA 2019 headers: slices a study
SHARED_HEIGHT = 0.85  # correlation of run centres in a study: slice-level Jaccard .22-.37 in RSNA
ONE_SLICE_GAP = 0.50  # RSNA 2019: share of the gaps inside a bleed that are one slice long


@dataclass(frozen=True, kw_only=True)
class Body:
    """One bleed: a subtype of SUBTYPES on the slices first..last, counted from the feet, both included."""

    subtype: str
    first: int
    last: int

    def size(self, n_slices: int) -> Floats:
        """Return the (N,) share of its full size that the bleed has on each slice of a study, 0 to 1.

        It is .5 to .8 on the first and last slice, below .4 on the next one outside and 0 further out.
        """
        reach = (self.last - self.first + 1) / 2 + 0.55
        u = (np.arange(n_slices) - (self.first + self.last) / 2) / reach
        return np.asarray(np.sqrt(np.clip(1 - u * u, 0, None)), np.float32)


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The labels of a study and the bodies that explain them.

    targets   (N, K) uint8, 0 or 1, feet to head; `any` is the maximum of the others
    bodies    every positive slice lies in a body of its subtype; a body may also cover a slice that
              its label omits (one-slice gaps: noise of the readers, as real)
    """

    targets: NDArray[np.uint8]
    bodies: tuple[Body, ...]


@lru_cache(maxsize=1)
def _subtype_sets() -> tuple[NDArray[np.bool_], Doubles]:
    """The 32 sets of subtypes (32, 5) and their shares (32,): the flattest table with the figures.

    Iterative proportional fitting to the single, the pair and the set-size figures.
    """
    sets = np.array(list(itertools.product([False, True], repeat=5)))
    counts = np.array(SUBTYPE_STUDIES)
    wanted = [(sets[:, i], counts[i] / STUDIES) for i in range(5)]
    both = [(sets[:, i] & sets[:, j], p * counts[i] / STUDIES) for (i, j), p in GIVEN.items()]
    sizes = np.array(SUBTYPES_PER_POSITIVE) / sum(SUBTYPES_PER_POSITIVE) * ANY_STUDIES / STUDIES
    wanted += both + [(sets.sum(1) == size + 1, p) for size, p in enumerate(sizes)]
    shares = np.full(len(sets), 1 / len(sets))
    for _ in range(300):
        for inside, p in wanted:
            now = shares[inside].sum()
            shares *= np.where(inside, p / now, (1 - p) / (1 - now))
    return sets, shares / shares.sum()


def present_subtypes(quantile: float, enrich: float) -> tuple[str, ...]:
    """Return the subtypes of the study at `quantile` in [0, 1) of all studies, none to five, in SUBTYPES order.

    Studies are ranked by their set of subtypes, so quantiles spread evenly bring each set as often as
    RSNA does. `enrich`, a share in (0, 1), is how many studies hold an epidural; the other sets keep
    their odds. Refuses nothing: a quantile of 1 or more gives the last set.
    """
    sets, shares = _subtype_sets()
    epidural = sets[:, 0]
    now = shares[epidural].sum()
    shares = shares * np.where(epidural, enrich / now, (1 - enrich) / (1 - now))
    row = min(int(np.searchsorted(np.cumsum(shares), quantile, side="right")), len(sets) - 1)
    return tuple(name for name, held in zip(SUBTYPES, sets[row], strict=True) if held)


def _runs(subtype: str, n: int, height: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Runs (first, last) of a subtype over n slices; the first lies at quantile `height` of z."""
    table = RUNS[subtype]
    low, high = (round(edge * (n - 1)) for edge in Z_LIMITS.get(subtype, ANY_LIMITS))
    scale = table.median * n / SLICES_MEAN

    def length() -> int:
        drawn = scale * np.exp(table.log_sd * rng.standard_normal())
        return int(np.clip(round(drawn), 1, high - low))

    edges = (2 * table.z[0] - table.z[1], *table.z, 2 * table.z[4] - table.z[3])
    centre, slices = np.interp(height, Z_SHARES, edges) * (n - 1), length()
    first = int(np.clip(round(centre - (slices - 1) / 2), low, high - slices + 1))
    runs = [(first, first + slices - 1)]
    while rng.random() < table.again:
        gap = 1 if rng.random() < ONE_SLICE_GAP else 1 + int(rng.geometric(0.35))
        slices, above = length(), bool(rng.random() < (high - runs[-1][1]) / (high - low))
        if above:
            runs.append((runs[-1][1] + gap + 1, min(runs[-1][1] + gap + slices, high)))
        else:
            runs.insert(0, (max(runs[0][0] - gap - slices, low), runs[0][0] - gap - 1))
    return [(a, b) for a, b in runs if low <= a <= b <= high]


def _bodies(subtype: str, runs: list[tuple[int, int]]) -> Iterator[Body]:
    """Bodies behind the runs: runs that are one slice apart belong to one body."""
    first, last = runs[0]
    for a, b in runs[1:]:
        if a - last > 2:
            yield Body(subtype=subtype, first=first, last=last)
            first = a
        last = b
    yield Body(subtype=subtype, first=first, last=last)


def draw_labels(
    n_slices: int,
    rng: np.random.Generator,
    *,
    enrich: float = RSNA_EPIDURAL,
    quantile: float | None = None,
) -> LabelPlan:
    """Draw the labels of one study without its pixels: which subtypes, and on which of its N slices.

    `enrich` and `quantile` as in `present_subtypes`; without `quantile` the set of subtypes is left to
    chance. The plan hangs on the arguments and the state of `rng` alone. Refuses nothing; it
    is meant for the 20 to 60 slices of a head CT, and one slice is too few (IndexError).
    """
    targets = np.zeros((n_slices, len(LABELS)), np.uint8)
    bodies: list[Body] = []
    shared = rng.standard_normal()
    for subtype in present_subtypes(rng.random() if quantile is None else quantile, enrich):
        own = np.sqrt(1 - SHARED_HEIGHT**2) * rng.standard_normal()
        runs = _runs(subtype, n_slices, float(ndtr(SHARED_HEIGHT * shared + own)), rng)
        bodies.extend(_bodies(subtype, runs))
        for first, last in runs:
            targets[first : last + 1, SUBTYPES.index(subtype)] = 1
    targets[:, -1] = targets[:, :-1].max(axis=1)
    return LabelPlan(targets=targets, bodies=tuple(bodies))
