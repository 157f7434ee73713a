"""From a probability to Present, Absent or Undetermined: two thresholds a label, chosen out of fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ich_seq.calibration import LEAST_STUDIES
from ich_seq.codes import Verdict
from ich_seq.labels import LABELS
from ich_seq.thresholds import ROUNDING, tally

Thresholds = tuple[float | None, ...]

SENSITIVITY, SPECIFICITY = 0.95, 0.95
"""Of the studies with a label at most one in twenty lies below Absent's threshold, of those without at or above
Present's."""

BASIS = (
    "Study probabilities of the blend out of fold. The ensembles that gave them learnt from fewer studies than the "
    "bundle's own, so sensitivity and specificity of the bundle at these thresholds are not known exactly."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoints:
    """Two thresholds a label, (K,) each, of study probabilities; None: never said.

    Below `absent_below` a label is Absent, at or above `present_from` it is Present, between them Undetermined.
    """

    absent_below: Thresholds
    present_from: Thresholds

    def __post_init__(self) -> None:
        for below, above in zip(self.absent_below, self.present_from, strict=True):
            if below is not None and above is not None and below > above:
                raise ValueError("a probability cannot be both Absent and Present")

    def verdicts(self, probabilities: NDArray[np.float64], *, doubtful: bool) -> tuple[Verdict, ...]:
        """Return what is said of a study of these probabilities, (K,); of one that is `doubtful` nothing is Absent."""
        thresholds = zip(probabilities.tolist(), self.absent_below, self.present_from, strict=True)
        return tuple(_verdict(p, below, above, doubtful) for p, below, above in thresholds)

    def to_json(self) -> dict[str, Any]:
        """Return what a bundle's card holds."""
        return {
            "sensitivity": SENSITIVITY,
            "specificity": SPECIFICITY,
            "basis": BASIS,
            "absent_below": list(self.absent_below),
            "present_from": list(self.present_from),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> OperatingPoints:
        """Read what `to_json` gave; None, of a bundle without, is NO_POINTS. Raises KeyError, TypeError, ValueError."""
        if value is None:
            return NO_POINTS
        return cls(absent_below=_read(value["absent_below"]), present_from=_read(value["present_from"]))


NO_POINTS = OperatingPoints(absent_below=(None,) * len(LABELS), present_from=(None,) * len(LABELS))
"""Where nothing is known everything is Undetermined."""


def choose_points(probabilities: NDArray[np.float64], targets: NDArray[np.uint8]) -> OperatingPoints:
    """Choose the thresholds on B studies, probabilities and labels (B, K), that the networks did not learn from.

    `present_from` is the lowest threshold of SPECIFICITY, `absent_below` the highest one of SENSITIVITY. Of a good
    predictor the latter lies above the former; Present then goes first and `absent_below` is lowered to it, which keeps
    both promises and leaves no Undetermined between. A label with fewer than LEAST_STUDIES studies with or without it
    has none, nor is there a threshold that no study of those at hand lies beyond.
    """
    chosen = [_choose(p, t) for p, t in zip(probabilities.T, targets.T, strict=True)]
    return OperatingPoints(absent_below=tuple(b for b, _ in chosen), present_from=tuple(a for _, a in chosen))


def _choose(scores: NDArray[np.float64], targets: NDArray[np.uint8]) -> tuple[float | None, float | None]:
    positive = int((targets > 0).sum())
    if min(positive, len(targets) - positive) < LEAST_STUDIES or not np.isfinite(scores).all():
        return None, None
    values = np.unique(scores)
    sensitivity, specificity = (rates[0, :-1] for rates in tally(scores, targets).reached())
    above = np.flatnonzero(specificity >= SPECIFICITY - ROUNDING)
    present_from = float(values[above[0]]) if len(above) else None
    absent_below = float(values[np.flatnonzero(sensitivity >= SENSITIVITY - ROUNDING)[-1]])
    if present_from is not None:
        absent_below = min(absent_below, present_from)
    return (absent_below if absent_below > values[0] else None), present_from


def _verdict(p: float, below: float | None, above: float | None, doubtful: bool) -> Verdict:
    if above is not None and p >= above:
        return Verdict.PRESENT
    if below is not None and p < below and not doubtful:
        return Verdict.ABSENT
    return Verdict.UNDETERMINED


def _read(values: Any) -> Thresholds:
    if not isinstance(values, list) or len(values) != len(LABELS):
        raise ValueError(f"{values!r} are no thresholds of six labels")
    if not all(value is None or (type(value) is float and 0 <= value <= 1) for value in values):
        raise ValueError("a threshold is a probability or null")
    return tuple(values)
