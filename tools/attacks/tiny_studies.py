"""Phantom studies of a few small slices, as various as scanners make them: tilt, zones, holes, repeats, encodings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from attacks.changes import Rng, files_of, read
from ich_seq.phantom import PhantomStudy, draw_study, write_study
from ich_seq.studies import SAME_POSITION_MM

MATRIX = 64
FEWEST, MOST = 3, 9
ONE_SLICE_IN = 8
"""Every so manieth study is of one slice."""

HOLED, REPEATED = 0.3, 0.3
"""The share of studies that lack slices, and of those whose last slices were scanned twice."""

STRANGERS = 1_000_000
"""From here on number the studies that are put beside others."""


def tiny_study(index: int, seed: int) -> PhantomStudy:
    """Return a study of at most a dozen slices in a row, 64 x 64 pixels, of even HU, which a slope of 2 can hold.

    Slices at one position differ in pixels, and in acquisition number, which tells their order.
    """
    rng, whole = np.random.default_rng([seed, index]), draw_study(index, seed=seed, matrix=MATRIX)
    count = 1 if index % ONE_SLICE_IN == 1 else int(rng.integers(FEWEST, MOST + 1))
    chosen = int(rng.integers(0, len(whole.sop_uids) - count + 1)) + np.arange(count)
    if count > FEWEST and rng.random() < HOLED:
        chosen = np.delete(chosen, int(rng.integers(1, count - 1)))
    if count > 1 and rng.random() < REPEATED:
        chosen = np.sort(np.append(chosen, chosen[-2:]))
    places = whole.positions_mm[chosen]
    passes = [int((np.abs(places[: i + 1] - places[i]) < SAME_POSITION_MM).sum()) for i in range(len(chosen))]
    pixels = [np.roll(whole.hounsfield[k] // 2 * 2, 5 * (turn - 1)) for k, turn in zip(chosen, passes, strict=True)]
    return replace(
        whole,
        sop_uids=tuple(f"{whole.sop_uids[k]}.{turn}" for k, turn in zip(chosen, passes, strict=True)),
        hounsfield=np.stack(pixels),
        positions_mm=places,
        corners_mm=whole.corners_mm[chosen],
        targets=whole.targets[chosen],
        acquisitions=tuple(passes),
        rsna_style=whole.rsna_style or count == 1,  # else a thickness is told, which one slice has not
        scout=False,  # it would be of a dozen rows, too few for an encoder; relations add one
    )


def with_another_study(folder: Path, rng: Rng) -> None:
    """Add the files of another study, now and then of the same patient."""
    _add(folder, ONE_SLICE_IN * int(rng.integers(1000)), rng)


def with_a_study_of_one_slice(folder: Path, rng: Rng) -> None:
    """Add the one file of another study."""
    _add(folder, ONE_SLICE_IN * int(rng.integers(1000)) + 1, rng)


def _add(folder: Path, index: int, rng: Rng) -> None:
    stranger = tiny_study(STRANGERS + index, seed=0)
    if rng.integers(2):
        stranger = replace(stranger, patient_id=str(read(files_of(folder)[0]).PatientID))
    write_study(stranger, folder)
