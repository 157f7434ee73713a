"""Slices whose elements are given by keyword as bytes, and so hold any text: pydicom writes none that is no text."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from attacks.dicom_bytes import SIDE, compressed, element
from attacks.dicom_elements import PIXEL_DATA, item

Elements = Mapping[str | int, bytes]
"""Values by keyword, or by tag for those that have none."""

SLICE: dict[str | int, bytes] = {
    "SOPClassUID": CTImageStorage.encode(),
    "Modality": b"CT",
    "ImageType": b"ORIGINAL\\PRIMARY\\AXIAL",
    "AcquisitionNumber": b"1",
    "ImageOrientationPatient": b"1\\0\\0\\0\\1\\0",
    "PixelSpacing": b"5\\5",
    "SamplesPerPixel": struct.pack("<H", 1),
    "PhotometricInterpretation": b"MONOCHROME2",
    "Rows": struct.pack("<H", SIDE),
    "Columns": struct.pack("<H", SIDE),
    "BitsAllocated": struct.pack("<H", 16),
    "BitsStored": struct.pack("<H", 16),
    "HighBit": struct.pack("<H", 15),
    "PixelRepresentation": struct.pack("<H", 1),
    "RescaleIntercept": b"0",
    "RescaleSlope": b"1",
}
"""What all slices have; the spacing makes 32 pixels as wide as a head."""


def tag_of(name: str | int) -> int:
    """Return the tag of a keyword."""
    tag = name if isinstance(name, int) else tag_for_keyword(name)
    if tag is None:
        raise KeyError(name)
    return tag


def dataset(elements: Elements) -> bytes:
    """Return elements in the order of their tags; one whose tag is in no dictionary is a long string."""
    ordered = sorted(elements, key=tag_of)
    vrs = ["LO" if isinstance(name, int) else dictionary_VR(tag_of(name)).split(" ")[0] for name in ordered]
    return b"".join(element(tag_of(name), vr, elements[name]) for name, vr in zip(ordered, vrs, strict=True))


def sequence_item(elements: Elements) -> bytes:
    """Return the value of a sequence that has one item."""
    return item(dataset(elements))


def slice_bytes(
    elements: Elements,
    *,
    study: str,
    number: int,
    meta: Elements | None = None,
    syntax: bytes = ExplicitVRLittleEndian.encode(),
    preamble: bytes = bytes(128),
    pixels: bytes | None = None,
    frame: bytes | None = None,
) -> bytes:
    """Return a CT slice of 32 x 32 pixels, the `number`-th of its study from the feet; `elements` add or replace.

    `pixels` stand in for its own, or, compressed, one `frame`.
    """
    given = SLICE | {
        "SOPInstanceUID": f"{study}.{number}".encode(),
        "StudyInstanceUID": study.encode(),
        "SeriesInstanceUID": f"{study}.0".encode(),
        "InstanceNumber": str(number).encode(),
        "ImagePositionPatient": f"-80\\-80\\{5 * number}".encode(),
    }
    told = {"MediaStorageSOPClassUID": CTImageStorage.encode(), "TransferSyntaxUID": syntax} | dict(meta or {})
    own = _head(number).tobytes() if pixels is None else pixels
    held = element(PIXEL_DATA, "OW", own) if frame is None else compressed(frame)
    return preamble + b"DICM" + dataset(told) + dataset(given | dict(elements)) + held


def _head(number: int) -> NDArray[np.int16]:
    """Return Hounsfield units of a ball of brain in air, with a denser spot that moves from slice to slice."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    hu = np.where(x**2 + y**2 < (SIDE / 2.5) ** 2, 30, -1000)
    hu[(x - number % 7) ** 2 + y**2 < 9] = 70
    return hu.astype("<i2")
