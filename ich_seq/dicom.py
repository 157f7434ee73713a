"""One DICOM file: its header, checked. With `hounsfield` the only reader of DICOM.

Nothing here decides about studies. Every file ends as a `SliceHeader`, or one a frame, or as an `Unused` with a
reason code; a file is never repaired by guessing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from ich_seq.codestreams import check_frame, fragment_places, frame_places, frame_start
from ich_seq.dicom_files import (
    MAX_FILE_BYTES,
    MAX_MULTI_FRAME_BYTES,
    check_size,
    inflated,
    opened,
    read_syntax,
    seek_dataset,
)
from ich_seq.elements import (
    TAG_NUMBERS,
    UID_FORM,
    numbers,
    once,
    optional_whole,
    plain_uid,
    raw_value,
    required,
    required_whole,
    text,
    whole,
    words,
)
from ich_seq.functional_groups import PER_FRAME, SHARED, read_frames
from ich_seq.pixel_data import Fragments, check_length, native_places, pixel_value
from ich_seq.reasons import Reason, Refused, Unused
from ich_seq.streams import Form, lenient, next_tag, sparing
from ich_seq.syntaxes import NATIVE, readable_syntax

MULTI_FRAME_CLASSES = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
CT_CLASSES = {CTImageStorage, *MULTI_FRAME_CLASSES, ""}
"""RSNA 2019 files carry no SOP Class UID."""

SECONDARY_CAPTURE_ROOT = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"}
MAX_SIDE = 4096
MIN_SIDE = 16
MAX_POSITION_MM = 1e5
MIN_SLOPE = 1e-3
"""All values of 16 bits span 65 HU then; no head fits into that."""

MAX_RESCALE = 1e6
"""Far beyond any scanner, and far from where float32 ends."""

MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 5.0
"""Wider than any head CT (0.2 to 1); beyond it, resampling to a field in mm would ask for absurd sizes."""

MIN_BITS, MAX_BITS = 12, 16
"""DICOM PS3.3 C.8.2.1 (CT Image module): Bits Allocated 16, Bits Stored 12 to 16. Fewer cannot hold HU."""

UNIT_TOLERANCE = 1e-2
"""How far the direction cosines may be from unit length and from a right angle: some writers keep
three decimals only."""

AXIAL_COSINE = math.cos(math.radians(45))
MAX_SCANNER_LETTERS = 2 * 64
"""DICOM PS3.5 6.2: a Long String, as maker and model are, has 64 letters at most."""

FIRST_PIXEL_TAG = 0x7FE00008
ITEM_HEAD_BYTES = 8
MAX_FRAMES = 2048
"""Of a file, as many as a series may have slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceHeader:
    """What is known of one slice before its pixels are read; every value has passed the gate.

    It lies in the file at `path`, or in this `member` of the archive that the file is. `sop_uid` is the slice's own
    name: the SOP Instance UID, and behind it _frame and the number where a file has several; `frame` is that number,
    from 1 as DICOM has it, and 0 where the file is one slice. `position_mm` is Image Position (Patient), `orientation`
    the six direction cosines (row, column), `spacing_mm` (between rows, between columns), `scanner` its maker and
    model, empty where unknown. `pixel_offset` is where the value of Pixel Data, or a frame of it, begins in the file or
    member, or in what a deflated one inflates to; `pixel_end` is where a frame among several ends. `file` is the name
    that reports give it; `file_bytes` and `modified_ns`, of the file at `path`, tell later whether it is the same.
    """

    path: Path
    file: str
    patient_id: str
    study_uid: str
    series_uid: str
    sop_uid: str
    transfer_syntax: str
    image_type: tuple[str, ...]
    acquisition: int
    instance: int
    position_mm: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    rows: int
    columns: int
    spacing_mm: tuple[float, float]
    bits_stored: int
    signed: bool
    padding: int | None
    slope: float
    intercept: float
    pixel_offset: int
    file_bytes: int
    modified_ns: int
    scanner: str = ""
    member: str = ""
    frame: int = 0
    pixel_end: int = 0

    @property
    def instance_uid(self) -> str:
        """Return the SOP Instance UID of the file, which frames share."""
        return self.sop_uid.removesuffix(frame_suffix(self.frame)) if self.frame else self.sop_uid


def frame_suffix(frame: int) -> str:
    """Return what a frame's name has behind the SOP Instance UID; no UID of DICOM's own digits and dots ends so."""
    return f"_frame{frame}"


class _Origin(NamedTuple):
    """Where a header comes from: what is known of a file beside its elements."""

    path: Path
    member: str
    file: str
    syntax: str
    status: os.stat_result


def read_headers(path: Path, file: str, member: str = "") -> tuple[SliceHeader | Unused, ...]:
    """Read and check the header of one file, or of a member of an archive; one of enhanced CT has one for each frame.

    `file` is the name under which it is reported. The pixels are not read, the patient's name never is. Never raises
    for what a file holds: whatever is wrong comes back as `Unused`, of the file or of a frame.
    """
    try:
        with lenient():
            return _read_headers(path, file, member)
    except Refused as refusal:
        return (refusal.verdict(file),)
    except OSError as error:
        if error.errno is None:  # pydicom's own, of a sequence that ends too early
            return (Unused(file, Reason.DAMAGED_HEADER, "The header ends within a sequence; copy the file again."),)
        return (Unused(file, Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}."),)
    except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on this file
        return (Unused(file, Reason.DAMAGED_HEADER, f"The header cannot be parsed ({type(error).__name__})."),)


def _read_headers(path: Path, file: str, member: str) -> tuple[SliceHeader | Unused, ...]:
    with opened(path, member) as (stream, status, size):
        seek_dataset(stream, PurePath(member) if member else path)
        check_size(size, MAX_FILE_BYTES if member else MAX_MULTI_FRAME_BYTES)
        syntax = read_syntax(stream)
        deflated = syntax == DeflatedExplicitVRLittleEndian
        if deflated:
            check_size(size)
        content, end = inflated(stream) if deflated else (stream, size)
        dataset = _parse(content, syntax)
        origin = _Origin(path, member, file, syntax, status)
        try:
            if text(dataset, "SOPClassUID") in MULTI_FRAME_CLASSES:
                return _frame_headers(dataset, content, end, origin)
            check_size(size)
            _check_kind(dataset)
            return (_locate_pixels(_slice_header(dataset, origin), content, end, _form(dataset)),)
        except Refused as refusal:
            refusal.study_uid = plain_uid(dataset, "StudyInstanceUID")
            raise


def _parse(stream: BinaryIO, syntax: str) -> Dataset:
    """Parse the header up to the pixel data, or to the groups of frames of enhanced CT, where the stream is left."""
    seen: set[int] = set()
    form = Form(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
    dataset = _parse_to((SHARED, PER_FRAME), stream, form, seen)
    if next_tag(stream, form) < FIRST_PIXEL_TAG and text(dataset, "SOPClassUID") not in MULTI_FRAME_CLASSES:
        dataset.update(_parse_to((), stream, _form(dataset), seen))
    return dataset


def _parse_to(ends: tuple[int, ...], stream: BinaryIO, form: Form, seen: set[int]) -> Dataset:
    return read_dataset(
        sparing(stream),
        form.implicit,
        form.little,
        stop_when=once(lambda tag: tag >= FIRST_PIXEL_TAG or tag in ends, seen),
        specific_tags=TAG_NUMBERS,
    )


def _form(dataset: Dataset) -> Form:
    """Return how a data set was found to be written, which is not always as its transfer syntax says."""
    implicit, little = dataset.original_encoding
    return Form(bool(implicit), bool(little))


def _frame_headers(dataset: Dataset, stream: BinaryIO, end: int, origin: _Origin) -> tuple[SliceHeader | Unused, ...]:
    """Return the headers of the frames of enhanced CT; the stream stands before their groups and ends at `end`."""
    _check_kind(dataset)
    if origin.syntax == DeflatedExplicitVRLittleEndian:
        raise Refused(Reason.MULTI_FRAME, "Frames that are deflated together are not read; convert the file (dcmconv).")
    count = required_whole(dataset, "NumberOfFrames")
    if not 1 <= count <= MAX_FRAMES:
        raise Refused(Reason.MULTI_FRAME, f"{count} frames in a file; a head has 1 to {MAX_FRAMES}.")
    frames = read_frames(stream, dataset, form := _form(dataset))
    if len(frames) != count:
        raise Refused(Reason.MULTI_FRAME, f"{count} frames, but functional groups of {len(frames)}.")
    _parse_to((), stream, form, set())
    places = _frame_places(dataset, stream, end, count, origin.syntax)
    headers = [
        _frame_header(frame, number, place, stream, origin)
        for number, (frame, place) in enumerate(zip(frames, places, strict=True), start=1)
    ]
    return tuple(_of_one_kind(headers, frames))


def _frame_places(dataset: Dataset, stream: BinaryIO, end: int, count: int, syntax: str) -> list[Fragments]:
    """Return where the pixels of each frame lie and how long they are, uncompressed ones in one piece."""
    offset, length = pixel_value(stream, _form(dataset))
    if readable_syntax(syntax) not in NATIVE:
        stream.seek(offset)
        return frame_places(stream, end, count)
    rows, columns = _dimensions(dataset)
    return native_places(offset, length, end, 2 * rows * columns, count)


def _frame_header(
    dataset: Dataset, number: int, places: Fragments, stream: BinaryIO, origin: _Origin
) -> SliceHeader | Unused:
    try:
        _check_type(dataset)
        header = _slice_header(dataset, origin)
        (first, length), (last, last_length) = places[0], places[-1]
        if header.transfer_syntax in NATIVE:
            check_length(length, length, 2 * header.rows * header.columns)
        else:
            start = frame_start(stream, places, header.rows, header.columns)
            check_frame(start, header.transfer_syntax, header.rows, header.columns)
            first -= ITEM_HEAD_BYTES
        named = _uid_form(header.sop_uid + frame_suffix(number), "SOPInstanceUID")
        numbered = replace(header, sop_uid=named, frame=number, instance=number)
        acquisition = whole(dataset, "FrameAcquisitionNumber")
        return replace(numbered, acquisition=acquisition, pixel_offset=first, pixel_end=last + last_length)
    except Refused as refusal:
        refusal.study_uid = plain_uid(dataset, "StudyInstanceUID")
        return refusal.verdict(origin.file, number)


def _of_one_kind(found: Sequence[SliceHeader | Unused], frames: Sequence[Dataset]) -> Iterator[SliceHeader | Unused]:
    """Yield what was found, but of ORIGINAL and DERIVED frames the latter as left out.

    Refused (MULTI_FRAME): frames of several stacks or points of time, among which nothing tells the head.
    """
    headers = [h for h in found if isinstance(h, SliceHeader)]
    originals = [h for h in headers if "DERIVED" not in h.image_type]
    taken = {h.frame for h in originals or headers}
    stacks = {tuple(raw_value(frames[number - 1], k) for k in ("StackID", "TemporalPositionIndex")) for number in taken}
    if len(stacks) > 1:
        raise Refused(
            Reason.MULTI_FRAME,
            "Frames of several stacks or points of time; convert those of the head (dcuncat, emf2sf).",
        )
    detail = "Other frames of this file were taken (ORIGINAL before DERIVED)."
    for one in found:
        aside = isinstance(one, SliceHeader) and one.frame not in taken
        yield Unused(one.file, Reason.OTHER_SERIES, detail, one.study_uid, one.frame) if aside else one


def _check_kind(dataset: Dataset) -> None:
    """Leave out what is no CT slice at all, before asking more of it."""
    sop_class = text(dataset, "SOPClassUID")
    if sop_class.startswith(SECONDARY_CAPTURE_ROOT):
        raise Refused(Reason.SECONDARY_CAPTURE, "A secondary capture (screenshot, dose page), not a CT slice.")
    modality = text(dataset, "Modality")
    if modality not in ("CT", "") or sop_class not in CT_CLASSES:
        raise Refused(Reason.NOT_CT, "Not a CT image, by its modality or SOP class.")
    required(dataset, "Modality")  # absent, the file is damaged rather than of another kind
    _check_type(dataset)


def _check_type(dataset: Dataset) -> None:
    if LOCALIZER_WORDS & {word.upper() for word in words(dataset, "ImageType")}:
        raise Refused(Reason.LOCALIZER, "A scout view, by its image type.")


def _slice_header(dataset: Dataset, origin: _Origin) -> SliceHeader:
    rows, columns = _dimensions(dataset)
    bits_stored, signed = _pixel_format(dataset)
    slope, intercept = _rescale(dataset)
    return SliceHeader(
        path=origin.path,
        member=origin.member,
        file=origin.file,
        patient_id=text(dataset, "PatientID"),
        study_uid=_uid(dataset, "StudyInstanceUID"),
        series_uid=_uid(dataset, "SeriesInstanceUID"),
        sop_uid=_uid(dataset, "SOPInstanceUID"),
        transfer_syntax=readable_syntax(origin.syntax),
        image_type=words(dataset, "ImageType"),
        acquisition=whole(dataset, "AcquisitionNumber"),
        instance=whole(dataset, "InstanceNumber"),
        position_mm=_position(dataset),
        orientation=_orientation(dataset),
        rows=rows,
        columns=columns,
        spacing_mm=_spacing(dataset),
        bits_stored=bits_stored,
        signed=signed,
        padding=_padding(dataset, bits_stored, signed),
        slope=slope,
        intercept=intercept,
        pixel_offset=-1,
        file_bytes=origin.status.st_size,
        modified_ns=origin.status.st_mtime_ns,
        scanner=scanner_name(text(dataset, "Manufacturer"), text(dataset, "ManufacturerModelName")),
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    """Return an identifier that can stand in a table, a page or a command without harm."""
    return _uid_form(required(dataset, keyword), keyword)


def _uid_form(value: str, keyword: str) -> str:
    if not UID_FORM.fullmatch(value):
        raise Refused(Reason.UID, f"{keyword} is no identifier: 1 to 128 of letters, digits and . _ -")
    return value


def scanner_name(maker: str, model: str) -> str:
    """Return maker and model as one line of printable text, cut where no honest one is longer."""
    return "".join(c if c.isprintable() else " " for c in f"{maker} {model}").strip()[:MAX_SCANNER_LETTERS]


def _dimensions(dataset: Dataset) -> tuple[int, int]:
    rows, columns = required_whole(dataset, "Rows"), required_whole(dataset, "Columns")
    if not (MIN_SIDE <= rows <= MAX_SIDE and MIN_SIDE <= columns <= MAX_SIDE):
        raise Refused(
            Reason.DIMENSIONS, f"{rows} x {columns} pixels; a slice has {MIN_SIDE} to {MAX_SIDE} on each side."
        )
    return rows, columns


def _pixel_format(dataset: Dataset) -> tuple[int, bool]:
    """Return Bits Stored and whether the pixels are signed."""
    if optional_whole(dataset, "NumberOfFrames") not in (None, 1):
        raise Refused(Reason.MULTI_FRAME, "More than one frame in a file; convert it to one file a slice.")
    colours = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if optional_whole(dataset, "SamplesPerPixel") not in (None, 1) or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused(Reason.PIXEL_FORMAT, "Colour pixels cannot hold Hounsfield units.")
    allocated, stored = required_whole(dataset, "BitsAllocated"), required_whole(dataset, "BitsStored")
    representation = required_whole(dataset, "PixelRepresentation")
    if optional_whole(dataset, "HighBit") not in (None, stored - 1):
        raise Refused(Reason.PIXEL_FORMAT, "The stored bits are not the lowest ones (HighBit), as CT has them.")
    if allocated != MAX_BITS or not MIN_BITS <= stored <= MAX_BITS or representation not in (0, 1):
        raise Refused(
            Reason.PIXEL_FORMAT,
            f"{stored} of {allocated} bits a pixel, representation {representation}; "
            f"CT has {MIN_BITS} to {MAX_BITS} of {MAX_BITS}.",
        )
    return stored, representation == 1


def _rescale(dataset: Dataset) -> tuple[float, float]:
    if (unit := text(dataset, "RescaleType") or "HU") != "HU":
        raise Refused(Reason.RESCALE, f"The pixels are no Hounsfield units, by their Rescale Type ({unit[:16]}).")
    slope = numbers(dataset, "RescaleSlope", 1, Reason.RESCALE)[0]
    intercept = numbers(dataset, "RescaleIntercept", 1, Reason.RESCALE)[0]
    if abs(slope) < MIN_SLOPE or max(abs(slope), abs(intercept)) > MAX_RESCALE:
        raise Refused(
            Reason.RESCALE, f"Rescale Slope {slope:g} and Intercept {intercept:g} cannot give Hounsfield units."
        )
    return slope, intercept


def _padding(dataset: Dataset, bits_stored: int, signed: bool) -> int | None:
    """Return the padding value as the stored bits hold it; some writers give it the other signedness."""
    value = optional_whole(dataset, "PixelPaddingValue")
    if value is None:
        return None
    stored = value & ((1 << bits_stored) - 1)
    return stored - (1 << bits_stored) if signed and stored >> (bits_stored - 1) else stored


def _position(dataset: Dataset) -> tuple[float, float, float]:
    x, y, z = numbers(dataset, "ImagePositionPatient", 3, Reason.GEOMETRY)
    if max(abs(x), abs(y), abs(z)) > MAX_POSITION_MM:
        raise Refused(Reason.GEOMETRY, "Image Position (Patient) lies outside of any scanner.")
    return x, y, z


def _orientation(dataset: Dataset) -> tuple[float, float, float, float, float, float]:
    o = numbers(dataset, "ImageOrientationPatient", 6, Reason.GEOMETRY)
    row, column = o[:3], o[3:]
    off = max(abs(_dot(row, row) - 1), abs(_dot(column, column) - 1), abs(_dot(row, column)))
    if off > UNIT_TOLERANCE:
        raise Refused(Reason.GEOMETRY, "Image Orientation (Patient) is not a pair of unit vectors at a right angle.")
    if abs(row[0] * column[1] - row[1] * column[0]) < AXIAL_COSINE:  # of their cross product, the part along the body
        raise Refused(Reason.NOT_AXIAL, "The slice is turned more than 45 degrees from axial.")
    return (o[0], o[1], o[2], o[3], o[4], o[5])


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _spacing(dataset: Dataset) -> tuple[float, float]:
    between_rows, between_columns = numbers(dataset, "PixelSpacing", 2, Reason.GEOMETRY)
    if min(between_rows, between_columns) < MIN_SPACING_MM or max(between_rows, between_columns) > MAX_SPACING_MM:
        raise Refused(
            Reason.GEOMETRY,
            f"Pixel Spacing {between_rows:g} x {between_columns:g} mm is no head CT's "
            f"({MIN_SPACING_MM} to {MAX_SPACING_MM}).",
        )
    return between_rows, between_columns


def _locate_pixels(header: SliceHeader, stream: BinaryIO, end: int, form: Form) -> SliceHeader:
    """Check that the pixel data is there, and a compressed frame what the header says; note where it begins.

    The stream stands at the Pixel Data element and ends at `end`. An element shorter than the image, or a file that
    ends before its pixels do, is refused now and not when the study is half read.
    """
    offset, length = pixel_value(stream, form)
    if header.transfer_syntax in NATIVE:
        check_length(length, end - offset, header.rows * header.columns * 2)
    else:
        stream.seek(offset)
        start = frame_start(stream, fragment_places(stream, end), header.rows, header.columns)
        check_frame(start, header.transfer_syntax, header.rows, header.columns)
    return replace(header, pixel_offset=offset)
