"""Edits of one slice that leave the head as it is: how its numbers are written, its HU stored, its pixels laid.

An edit is made of a generator's numbers and then done to each slice of a study alike.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from attacks.changes import Edit, Rng, hounsfield, store
from ich_seq.config import AIR_HU

TEXT = {
    "PatientID": "ZQX-4711",
    "PatientName": "Testudo^Haemorrhagica",
    "PatientBirthDate": "19470911",
    "PatientSex": "F",
    "InstitutionName": "Hôpital",
    "StudyDescription": "LOCALIZER SCOUT",
    "SeriesDescription": "DERIVED",
    "ImageComments": "=cmd|' /C calc'!A0",
}
DISPLAY = {
    "WindowCenter": "-600",
    "WindowWidth": "1500",
    "PhotometricInterpretation": "MONOCHROME1",
    "PresentationLUTShape": "INVERSE",
    "Manufacturer": "another",
    "ManufacturerModelName": "model",
    "ConvolutionKernel": "H70h",
    "SliceThickness": "99",
    "SpacingBetweenSlices": "-3",
    "SliceLocation": "12345",
    "GantryDetectorTilt": "45",
}
"""Elements on which no probability may depend: they are for display, or tell what position and pixels tell better."""


# ---- numbers, text and bytes of a header


def uids_renamed(rng: Rng) -> Edit:
    """Give study, series and slices other UIDs, in another order of the alphabet."""
    salt = str(rng.integers(10**9))

    def edit(dataset: Dataset) -> None:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            digest = hashlib.sha256(f"{salt} {dataset[keyword].value}".encode()).hexdigest()
            setattr(dataset, keyword, f"2.25.{int(digest[:24], 16)}")

    return edit


def numbers_reversed(rng: Rng) -> Edit:
    """Count slices from the other end."""
    return lambda ds: setattr(ds, "InstanceNumber", 1000 - int(ds.get("InstanceNumber", 0) or 0))


def numbers_at_random(rng: Rng) -> Edit:
    """Count slices in no order, some twice."""
    return lambda ds: setattr(ds, "InstanceNumber", int(rng.integers(1, 9)))


def in_another_notation(rng: Rng) -> Edit:
    """Write the same decimal numbers with exponents, as some writers do."""

    def edit(dataset: Dataset) -> None:
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            setattr(dataset, keyword, [f"{float(value):+.9e}" for value in dataset[keyword].value])
        dataset.RescaleSlope, dataset.RescaleIntercept = "+1.0E+0", f" {float(dataset.RescaleIntercept):.4e} "

    return edit


def with_other_elements(rng: Rng) -> Edit:
    """Add private elements, a sequence in a sequence, an overlay and bytes behind the pixels."""

    def edit(dataset: Dataset) -> None:
        dataset.private_block(0x0009, "SOMEBODY", create=True).add_new(0x10, "UN", b"\0" * 9999)
        inner, outer = Dataset(), Dataset()
        inner.Rows, inner.RescaleSlope, inner.ImagePositionPatient = 3, "7", ["1", "2", "3"]
        outer.ReferencedImageSequence = [inner]
        dataset.ReferencedStudySequence = [outer]
        dataset.add_new(0x60003000, "OW", b"\1" * 512)
        dataset.add_new(0xFFFCFFFC, "OB", b"\0" * 126)

    return edit


def spare_bits(rng: Rng) -> Edit:
    """Store 12 bits of 16, the others full of what means nothing."""

    def edit(dataset: Dataset) -> None:
        store(dataset, hounsfield(dataset), bits=12, signed=False)
        stored = np.frombuffer(dataset.PixelData, "<u2")
        noise = rng.integers(0, 16, len(stored), np.uint16) << 12
        dataset.PixelData = (stored | noise).astype("<u2").tobytes()

    return edit


# ---- the same head on another grid


def dense_padding(rng: Rng) -> Edit:
    """Store air as a padding value that is denser than bone."""

    def edit(dataset: Dataset) -> None:
        hu = hounsfield(dataset)
        store(dataset, np.where(hu <= AIR_HU, 32767 + AIR_HU, hu))
        dataset.add_new("PixelPaddingValue", "SS", 32767)

    return edit


def wrapped(rng: Rng) -> Edit:
    """Store HU as a known fault of the RSNA 2019 set has them: 12 bits that wrap below zero, and no intercept."""

    def edit(dataset: Dataset) -> None:
        store(dataset, np.maximum(hounsfield(dataset), -1000) % 4096, bits=12, signed=False, intercept=0)

    return edit


def padded(rng: Rng) -> Edit:
    """Put air around the image."""

    def edit(dataset: Dataset) -> None:
        side = dataset.Rows // 4
        store(dataset, np.pad(hounsfield(dataset), side, constant_values=AIR_HU))
        _move_corner(dataset, -side, -side)

    return edit


def finer(rng: Rng) -> Edit:
    """Store each pixel several times, smaller by as much, along rows, along columns or both."""
    down, across = ((2, 2), (1, 2), (2, 1), (4, 4))[int(rng.integers(4))]

    def edit(dataset: Dataset) -> None:
        spacing = [float(value) for value in dataset.PixelSpacing]
        store(dataset, hounsfield(dataset).repeat(down, axis=0).repeat(across, axis=1))
        _move_corner(dataset, (1 / down - 1) / 2, (1 / across - 1) / 2)
        dataset.PixelSpacing = [f"{spacing[0] / down:.8f}", f"{spacing[1] / across:.8f}"]

    return edit


def translated(rng: Rng) -> Edit:
    """Lay the patient elsewhere."""
    by_mm = np.round([*rng.uniform(-50, 50, 2), rng.uniform(-900, 900)], 6)
    return lambda ds: _move_mm(ds, by_mm)


def mirrored(rng: Rng) -> Edit:
    """Store rows from the patient's other side, and say so."""
    return lambda ds: _turn(ds, across=True, down=False)


def turned(rng: Rng) -> Edit:
    """Store rows, columns or both from the other end, and say so."""
    across, down = ((True, True), (True, False), (False, True))[int(rng.integers(3))]
    return lambda ds: _turn(ds, across=across, down=down)


# ---- where pixels lie


def _turn(dataset: Dataset, *, across: bool, down: bool) -> None:
    hu = hounsfield(dataset)
    cosines = [float(value) for value in dataset.ImageOrientationPatient]
    _move_corner(dataset, (dataset.Rows - 1) * down, (dataset.Columns - 1) * across)
    store(dataset, hu[:: -1 if down else 1, :: -1 if across else 1])
    row, column = (-1 if across else 1), (-1 if down else 1)
    signs = [row] * 3 + [column] * 3
    dataset.ImageOrientationPatient = [f"{s * c:.6f}" for s, c in zip(signs, cosines, strict=True)]


def _move_corner(dataset: Dataset, rows: float, columns: float) -> None:
    """Move the middle of the first pixel by so many pixels down and across the image."""
    cosines = np.array([float(value) for value in dataset.ImageOrientationPatient])
    down_mm, across_mm = (float(value) for value in dataset.PixelSpacing)
    _move_mm(dataset, rows * down_mm * cosines[3:] + columns * across_mm * cosines[:3])


def _move_mm(dataset: Dataset, by_mm: NDArray[np.float64]) -> None:
    corner = np.array([float(value) for value in dataset.ImagePositionPatient])
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in corner + by_mm]
