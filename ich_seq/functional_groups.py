"""The functional groups of enhanced CT (PS3.3 C.7.6.16): each frame as the header of the file it might have been."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from ich_seq.elements import TAGS
from ich_seq.reasons import Reason, Refused
from ich_seq.streams import Budget, Form, items, next_tag, sequence_start

SHARED, PER_FRAME = 0x52009229, 0x52009230
GROUPS = {
    0x00289110: ("PixelSpacing",),
    0x00209113: ("ImagePositionPatient",),
    0x00209116: ("ImageOrientationPatient",),
    0x00289145: ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    0x00189329: ("FrameType",),
    0x00209111: ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber"),
}
"""What is read of each group: Pixel Measures, Plane Position (Patient), Plane Orientation (Patient), Pixel Value
Transformation, CT Image Frame Type, Frame Content."""

IMAGE_TYPE, FRAME_TYPE = TAGS["ImageType"], TAGS["FrameType"]
"""A Frame Type is the Image Type of its frame; that of the whole file stands in for one that converters leave out."""

OF_FRAMES = {TAGS[keyword] for keywords in GROUPS.values() for keyword in keywords} | {TAGS["NumberOfFrames"]}
"""What beside the groups says nothing of a frame."""

MAX_GROUP_READS = 16 << 20
"""Bytes that may be read of the groups of all frames: four times what 2,048 frames have that tell a lot."""

Elements = dict[BaseTag, Any]
"""Elements by tag, as raw as pydicom finds them."""


def read_frames(stream: BinaryIO, top: Dataset, form: Form) -> list[Dataset]:
    """Return a data set for each frame, its elements where a single-frame file has them: pixels are all that lack.

    The stream stands behind what `top` holds, and in the end behind the groups. Refused (DAMAGED_HEADER): groups that
    cannot be read.
    """
    budget, wanted = Budget(MAX_GROUP_READS), list(GROUPS)
    shared: Elements = {}
    frames: list[Elements] = []
    while (tag := next_tag(stream, form)) in (SHARED, PER_FRAME):
        _, length = sequence_start(stream, form)
        found = [_flat(group, form, budget) for group in items(stream, length, form, wanted, budget)]
        if tag == SHARED:
            shared = found[0] if found else {}
        else:
            frames = found
    common = {tag: top.get_item(tag) for tag in top.keys() - OF_FRAMES}
    return [Dataset({**common, **shared, **frame}) for frame in frames]


def _flat(group: Dataset, form: Form, budget: Budget) -> Elements:
    """Return the elements in the first item of each of a frame's groups."""
    found: Elements = {}
    for tag in GROUPS.keys() & group.keys():
        wanted = [TAGS[keyword] for keyword in GROUPS[tag]]
        for item in islice(_items_of(group, tag, wanted, form, budget), 1):
            raw = {key: item.get_item(key) for key in wanted if key in item}
            found |= {key: element for key, element in raw.items() if isinstance(element, RawDataElement)}
    if FRAME_TYPE in found:
        found[IMAGE_TYPE] = found[FRAME_TYPE]._replace(tag=IMAGE_TYPE)
    return found


def _items_of(group: Dataset, tag: int, wanted: Sequence[int], form: Form, budget: Budget) -> Iterator[Dataset]:
    """Yield the items of a sequence, which pydicom has parsed only if it is of undefined length."""
    element: Any = group.get_item(tag)
    if isinstance(element, RawDataElement):
        value = element.value or b""
        if len(value) < element.length:
            raise Refused(Reason.DAMAGED_HEADER, "The file ends within the groups of its frames; copy it again.")
        return items(io.BytesIO(value), len(value), form, wanted, budget)
    return iter(element.value)
