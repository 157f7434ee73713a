"""Changes that do not leave the head as it is: a bundle that does not see them proves nothing by not seeing others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks.changes import Change, Edit, Rng, each, hounsfield, read, store, tagged, upwards, write


def brighter(rng: Rng) -> Edit:
    """Make all 40 HU denser."""
    return lambda ds: setattr(ds, "RescaleIntercept", str(int(ds.RescaleIntercept) + 40))


def larger(rng: Rng) -> Edit:
    """Make pixels a fifth larger."""
    return lambda ds: setattr(ds, "PixelSpacing", [f"{1.2 * float(value):.6f}" for value in ds.PixelSpacing])


def shifted(rng: Rng) -> Edit:
    """Move the head in the image."""
    return lambda ds: store(ds, np.roll(hounsfield(ds), ds.Columns // 10, axis=1))


def flipped(rng: Rng) -> Edit:
    """Mirror the head in the image."""
    return lambda ds: store(ds, hounsfield(ds)[:, ::-1])


def one_slice_bleeding(folder: Path, rng: Rng) -> None:
    """Put something denser than brain into the middle of a slice."""
    path = upwards(folder)[0]
    dataset = read(path)
    hu = hounsfield(dataset)
    quarter = hu.shape[0] // 4
    hu[quarter:-quarter, quarter:-quarter] += 60
    store(dataset, hu)
    write(dataset, path)


def ends_exchanged(folder: Path, rng: Rng) -> None:
    """Exchange the pixels of the first and the last slice."""
    ends = [upwards(folder)[i] for i in (0, -1)]
    first, last = (read(path) for path in ends)
    pixels = hounsfield(first), hounsfield(last)
    for dataset, hu, path in zip((first, last), pixels[::-1], ends, strict=True):
        store(dataset, hu)
        write(dataset, path)


def last_slice_raised(folder: Path, rng: Rng) -> None:
    """Lay the topmost slice 30 mm higher."""
    path = upwards(folder)[-1]
    dataset = read(path)
    x, y, z = (float(value) for value in dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [str(x), str(y), f"{z + 30:.6f}"]
    write(dataset, path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alteration:
    """A change that does not leave the head as it is: what is said of it must differ by more than any tolerance."""

    name: str
    change: Change
    least_slices: int = 1
    around: Callable[[Rng], AbstractContextManager[object]] = lambda rng: nullcontext()


ALTERATIONS = (
    Alteration(name="another slope", change=tagged(RescaleSlope="1.1")),
    Alteration(name="another intercept", change=each(brighter)),
    Alteration(name="larger pixels", change=each(larger)),
    Alteration(name="pixels shifted", change=each(shifted)),
    Alteration(name="pixels mirrored, not their places", change=each(flipped)),
    Alteration(name="a bleed in one slice", change=one_slice_bleeding),
    Alteration(name="two slices exchanged", change=ends_exchanged, least_slices=3),
    Alteration(name="the last slice further up", change=last_slice_raised, least_slices=2),
)
