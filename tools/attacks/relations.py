"""What must not change what is said of a head, and by how much it may all the same.

Tolerances are differences of probabilities: four to ten times the worst that 400 studies showed (x86-64, single
precision; told with each), and a fifth at most of the least that any of `alterations` made of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from attacks import changes, slice_edits
from attacks.changes import DEFLATED, Change, Rng, each, in_syntax, stored, tagged
from attacks.tiny_studies import with_a_study_of_one_slice, with_another_study
from ich_seq import inputs

SAME_PLACE_MM = 1e-3
"""Positions are written with six decimals and projected on a normal of six decimals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What was said of a study of N slices: `values` (3, N + 1, K), its slices, feet to head, and then itself.

    The three are the probabilities of classifier, sequence model and blend. `novelty` is in [0, 1),
    `positions_mm` (N,) are from the first slice, `rows` are the study's in slices.csv.
    """

    sop_uids: tuple[str, ...]
    positions_mm: NDArray[np.float64]
    values: NDArray[np.float64]
    novelty: float
    rows: tuple[str, ...] = ()


def apart(before: Said, after: Said) -> float:
    """Return the largest difference of all that was said; infinite if it is of other slices or in another order."""
    return max(order_apart(before, after), renamed_apart(before, after))


def renamed_apart(before: Said, after: Said) -> float:
    """Return the largest difference of all that was said, whatever the slices are called."""
    return np.inf if _misplaced(before, after) else values_apart(before, after)


def values_apart(before: Said, after: Said) -> float:
    """Return the largest difference of all that was said of as many slices."""
    return float(max(np.abs(before.values - after.values).max(), abs(before.novelty - after.novelty)))


def order_apart(before: Said, after: Said) -> float:
    """Return 0 if both are of the same slices in the same order and at the same places, else infinity."""
    return np.inf if before.sop_uids != after.sop_uids or _misplaced(before, after) else 0.0


def classifier_apart(before: Said, after: Said) -> float:
    """Return the largest difference in what the classifier, who sees slices one by one, said of those that are left."""
    left = [before.sop_uids.index(uid) for uid in after.sop_uids]
    return float(np.abs(before.values[0, left] - after.values[0, :-1]).max())


def _misplaced(before: Said, after: Said) -> bool:
    """Tell whether slices are not as many, or lie elsewhere beside each other."""
    if before.values.shape != after.values.shape:
        return True
    return bool(np.abs(before.positions_mm - after.positions_mm).max() > SAME_PLACE_MM)


# ---- what a run is done within


def walked_at_random(rng: Rng) -> AbstractContextManager[object]:
    """Let the disk list files and folders in no order."""
    plain = os.walk

    def walk(*where: Any, **how: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, names in plain(*where, **how):
            rng.shuffle(folders)
            rng.shuffle(names)
            yield folder, folders, names

    return patch.object(os, "walk", walk)


def read_at_random(rng: Rng) -> AbstractContextManager[object]:
    """Let files be read in another order than that of their names."""
    plain = inputs.list_files

    def listed(*where: Any, **how: Any) -> list[Path]:
        found = plain(*where, **how)
        return [found[i] for i in rng.permutation(len(found))]

    return patch.object(inputs, "list_files", listed)


def read_backwards(rng: Rng) -> AbstractContextManager[object]:
    """Let files be read from the last name to the first."""
    plain = inputs.list_files
    return patch.object(inputs, "list_files", lambda *where, **how: plain(*where, **how)[::-1])


# ---- the relations

SAME_NUMBERS = "the network is given the same numbers in the same order"


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A change that leaves the head as it is, and by how much what is said of it may differ, and why it may.

    Studies of fewer than `least_slices` slices have no part in it. `compare` says what is compared, `views` how many
    versions of a slice the bundle takes, `around` what the run on the changed files is done within.
    """

    name: str
    change: Change
    tolerance: float = 0.0
    why: str = SAME_NUMBERS
    compare: Callable[[Said, Said], float] = apart
    least_slices: int = 1
    views: int = 1
    around: Callable[[Rng], AbstractContextManager[object]] = lambda rng: nullcontext()


def nothing(folder: Path, rng: Rng) -> None:
    """Change nothing."""


def _exact(name: str, change: Change, **how: Any) -> Relation:
    return Relation(name=name, change=change, **how)


RELATIONS = (
    _exact("the same files again", nothing),
    _exact("names shuffled", changes.names_shuffled),
    _exact("names against the order of slices", changes.names_reversed),
    _exact("names of other kinds", changes.names_of_other_kinds),
    _exact("nested folders", changes.nested),
    _exact("links", changes.linked),
    _exact("no preamble", changes.without_preamble),
    _exact("listed in no order", nothing, around=walked_at_random),
    _exact("read in no order", nothing, around=read_at_random),
    _exact("read backwards", nothing, around=read_backwards),
    _exact("copies of files", changes.copied),
    _exact("copies in other syntaxes", changes.copied_in_other_syntax),
    _exact("a localizer more", changes.with_localizer),
    _exact("a shorter series more", changes.with_shorter_series, least_slices=2),
    _exact("a longer derived series more", changes.with_longer_derived_series),
    _exact("a bad slice more", changes.with_bad_slice),
    _exact("other files beside", changes.with_other_files),
    _exact("another study beside", with_another_study),
    _exact("a study of one slice beside", with_a_study_of_one_slice),
    _exact("InstanceNumber reversed", each(slice_edits.numbers_reversed)),
    _exact("InstanceNumber at random", each(slice_edits.numbers_at_random)),
    _exact("InstanceNumber dropped", tagged(InstanceNumber=None)),
    _exact("other UIDs", each(slice_edits.uids_renamed), compare=renamed_apart),
    _exact("other patient text", tagged(**slice_edits.TEXT)),
    _exact("other display", tagged(**slice_edits.DISPLAY)),
    _exact("other elements", each(slice_edits.with_other_elements)),
    _exact("numbers in another notation", each(slice_edits.in_another_notation)),
    _exact("implicit", in_syntax(ImplicitVRLittleEndian)),
    _exact("explicit", in_syntax(ExplicitVRLittleEndian)),
    _exact("big endian", in_syntax(ExplicitVRBigEndian)),
    _exact("deflated", in_syntax(DEFLATED)),
    _exact("RLE", in_syntax(RLELossless)),
    _exact("JPEG 2000 lossless", in_syntax(JPEG2000Lossless)),
    _exact("16 bits, signed", stored()),
    _exact("16 bits, unsigned, intercept -4000", stored(signed=False, intercept=-4000)),
    _exact("12 bits, unsigned", stored(bits=12, signed=False)),
    _exact("12 bits, signed, intercept 0", stored(bits=12, intercept=0)),
    _exact("12 bits and noise in the others", each(slice_edits.spare_bits)),
    _exact("slope 2", stored(slope=2.0)),
    _exact("slope 0.5", stored(slope=0.5)),
    _exact("slope -1", stored(slope=-1.0)),
    _exact("padding denser than bone", each(slice_edits.dense_padding)),
    Relation(
        name="wrapped 12 bits without intercept",
        change=each(slice_edits.wrapped),
        tolerance=1e-2,
        why="air is -1000 where it was -1024, which shows where air and skin share a pixel (worst 2.4e-3)",
    ),
    Relation(
        name="air around the image",
        change=each(slice_edits.padded),
        tolerance=1e-5,
        why="the corner lies elsewhere in the slice's plane, rounded to a millionth of a millimetre (worst 0)",
    ),
    Relation(
        name="finer pixels",
        change=each(slice_edits.finer),
        tolerance=1e-3,
        why="areas are sums of other pixels, and rounded to single precision (worst 1.3e-4)",
    ),
    Relation(
        name="moved with the table",
        change=each(slice_edits.translated),
        tolerance=1e-5,
        why="steps between positions are rounded otherwise far from 0, and then to single precision (worst 0)",
    ),
    Relation(
        name="mirrored, two views",
        change=each(slice_edits.mirrored),
        tolerance=1e-3,
        why="the mirrored view of one is the plain view of the other, up to the order of sums (worst 1.4e-4)",
        views=2,
    ),
    Relation(
        name="stored from other ends",
        change=each(slice_edits.turned),
        why="slices are in the order of their places whichever way rows and columns run",
        compare=order_apart,
    ),
    Relation(
        name="one slice alone",
        change=changes.all_but_one_removed,
        tolerance=5e-6,
        why="a matrix product of one row is summed in another order than one of several (worst 5e-7)",
        compare=classifier_apart,
        least_slices=2,
    ),
)
