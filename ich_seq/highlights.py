"""Where in a study to look, and what to know before believing what is said of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ich_seq.novelty import STRANGE
from ich_seq.report import StudyResult

KEY_SLICES = 3
KEY_APART = 2
"""Key slices are at least so many slices apart: the neighbours of the likeliest one show the same."""

TILT_DEG, THICK_MM, SHORT_MM, FEW_SLICES = 10.0, 7.5, 100.0, 10
"""Beyond these a gantry is much tilted (most are a little), steps are thick, a head not covered, a study short."""


def key_slices(probabilities: NDArray[np.float64]) -> list[int]:
    """Return which of N slices to look at, ascending: the likeliest, at least KEY_APART from each other."""
    chosen: list[int] = []
    for index in np.argsort(-probabilities, kind="stable"):
        if len(chosen) < KEY_SLICES and all(abs(int(index) - other) >= KEY_APART for other in chosen):
            chosen.append(int(index))
    return sorted(chosen)


def flags(result: StudyResult) -> tuple[str, ...]:
    """Return what a reader should know of a study before believing its probabilities."""
    g, n, span_mm, novelty = result.geometry, result.slices, result.span_mm, result.novelty or 0
    found = {
        f"unlike the training data: {novelty:.2f}": novelty >= STRANGE,
        f"slices lost: {result.lost_slices}": result.lost_slices > 0,
        f"gaps: {g.gaps}": g.gaps > 0,
        f"repeated positions: {g.duplicates}": g.duplicates > 0,
        f"gantry tilt {g.tilt_deg:.0f}°": abs(g.tilt_deg) >= TILT_DEG,
        "spacing changes": g.zones > 1,
        f"thick steps: {g.spacing_mm:.1f} mm": g.spacing_mm > THICK_MM,
        f"few slices: {n}": n < FEW_SLICES,
        f"covers {span_mm:.0f} mm": n >= FEW_SLICES and span_mm < SHORT_MM,
    }
    return tuple(flag for flag, raised in found.items() if raised)


def incomplete(result: StudyResult) -> bool:
    """Tell whether a study may hold what was not seen, or not as it was learnt, so that nothing in it is absent.

    That is one with slices lost, with gaps or that covers less than a head, or one unlike the training data, or of
    which that is not known.
    """
    unseen = result.lost_slices > 0 or result.geometry.gaps > 0 or not result.span_mm >= SHORT_MM
    return unseen or result.novelty is None or not result.novelty < STRANGE
