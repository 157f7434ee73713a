"""One DICOM file: its header, checked. With `hounsfield` the only reader of DICOM.

Nothing here decides about studies. Every file ends as a `SliceHeader` or as an `Unused` with a reason
code; a file is never repaired by guessing.
"""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from ich_seq.codestreams import check_frame, frame_start
from ich_seq.dicom_files import check_size, check_status, inflated, read_syntax, seek_dataset, sparing
from ich_seq.elements import (
    TAG_NUMBERS,
    UNDEFINED_LENGTH,
    numbers,
    once,
    optional_whole,
    required,
    required_whole,
    text,
    whole,
    words,
)
from ich_seq.files import open_unwaiting
from ich_seq.reasons import Reason, Refused, Unused

NATIVE: dict[str, str] = {
    ImplicitVRLittleEndian: "<",
    ExplicitVRLittleEndian: "<",
    ExplicitVRBigEndian: ">",
    DeflatedExplicitVRLittleEndian: "<",
}
"""Uncompressed transfer syntaxes and the byte order of their pixels."""

PLUGINS: dict[str, str] = {
    RLELossless: "pydicom",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    JPEGLossless: "pylibjpeg",
    JPEGLosslessSV1: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEGExtended12Bit: "pylibjpeg",
}
"""The decoder of each compressed syntax, chosen here and not by pydicom: with every plugin installed it
would take GDCM first, which aborts the process on damaged frames. Of a JPEG-LS frame that is cut short
pylibjpeg makes an image without a word, pyjpegls an error."""

NEEDS_JPEG_EXTRA = {JPEGLossless, JPEGLosslessSV1, JPEGExtended12Bit}
"""Syntaxes whose decoder is under the GPL and so not a hard dependency: pip install 'ich-seq[jpeg]'."""

CT_CLASSES = {CTImageStorage, ""}
"""RSNA 2019 files carry no SOP Class UID."""

MULTI_FRAME_CLASSES = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
SECONDARY_CAPTURE_ROOT = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"}
SYNTAX_FORM = re.compile("[0-9.]{1,64}")
UID_FORM = re.compile("[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
"""Wider than DICOM's digits and dots, since anonymisers write all kinds of names: RSNA's are ID_..."""

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
PADDING_BYTES = 16
"""Some writers fill up the element; a column too many, which would shear the image, is longer than this."""

PYDICOM_STATE = threading.Lock()
"""pydicom's validation and Python's warning filters are the process's own; two threads must not swap them at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceHeader:
    """What is known of one slice before its pixels are read; every value has passed the gate.

    `position_mm` is Image Position (Patient), `orientation` the six direction cosines (row, column),
    `spacing_mm` (between rows, between columns), `scanner` its maker and model, empty where unknown. `pixel_offset` is
    where the value of Pixel Data begins in the file, or in what a deflated one inflates to. `file` is the name that
    reports give it; `file_bytes` and `modified_ns` tell later whether the file is still the same.
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


def read_header(path: Path, file: str) -> SliceHeader | Unused:
    """Read and check the header of one file; the pixels are not read, the patient's name never is.

    `file` is the name under which the file is reported. Never raises for what a file holds: whatever
    is wrong comes back as `Unused`.
    """
    try:
        with PYDICOM_STATE, pydicom_config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # RSNA's UIDs are no UIDs, others misspell character sets: no faults
            return _read_header(path, file)
    except Refused as refusal:
        return refusal.verdict(file)
    except OSError as error:
        if error.errno is None:  # pydicom's own, of a sequence that ends too early
            return Unused(file, Reason.DAMAGED_HEADER, "The header ends within a sequence; copy the file again.")
        return Unused(file, Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.")
    except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on this file
        return Unused(file, Reason.DAMAGED_HEADER, f"The header cannot be parsed ({type(error).__name__}).")


def _read_header(path: Path, file: str) -> SliceHeader:
    check_status(path.stat())  # before it is opened: that alone can wind a tape, or wait for a pipe's other end
    with open_unwaiting(path) as stream:
        status = os.fstat(stream.fileno())
        check_status(status)
        seek_dataset(stream, path)
        check_size(status)
        syntax = read_syntax(stream)
        deflated = syntax == DeflatedExplicitVRLittleEndian
        content, end = inflated(stream) if deflated else (stream, status.st_size)
        dataset = _parse(content, syntax)
        try:
            _check_kind(dataset)
            implicit = bool(dataset.original_encoding[0])
            return _locate_pixels(_slice_header(dataset, path, file, syntax, status), content, end, implicit)
        except Refused as refusal:
            refusal.study_uid = _plain(text(dataset, "StudyInstanceUID"))
            raise


def _parse(stream: BinaryIO, syntax: str) -> Dataset:
    """Parse the header up to the pixel data, where the stream is left."""
    return read_dataset(
        sparing(stream),
        syntax == ImplicitVRLittleEndian,
        syntax != ExplicitVRBigEndian,
        stop_when=once(lambda tag: tag >= FIRST_PIXEL_TAG),
        specific_tags=TAG_NUMBERS,
    )


def _check_kind(dataset: Dataset) -> None:
    """Leave out what is no single-frame CT slice at all, before asking more of it."""
    sop_class = text(dataset, "SOPClassUID")
    if sop_class.startswith(SECONDARY_CAPTURE_ROOT):
        raise Refused(Reason.SECONDARY_CAPTURE, "A secondary capture (screenshot, dose page), not a CT slice.")
    if sop_class in MULTI_FRAME_CLASSES:
        raise Refused(
            Reason.MULTI_FRAME, "Multi-frame CT is not read; convert it to one file a slice (dcuncat, emf2sf)."
        )
    modality = text(dataset, "Modality")
    if modality not in ("CT", "") or sop_class not in CT_CLASSES:
        raise Refused(Reason.NOT_CT, "Not a CT image, by its modality or SOP class.")
    required(dataset, "Modality")  # absent, the file is damaged rather than of another kind
    if LOCALIZER_WORDS & {word.upper() for word in words(dataset, "ImageType")}:
        raise Refused(Reason.LOCALIZER, "A scout view, by its image type.")


def _slice_header(dataset: Dataset, path: Path, file: str, syntax: str, status: os.stat_result) -> SliceHeader:
    rows, columns = _dimensions(dataset)
    bits_stored, signed = _pixel_format(dataset)
    slope, intercept = _rescale(dataset)
    return SliceHeader(
        path=path,
        file=file,
        patient_id=text(dataset, "PatientID"),
        study_uid=_uid(dataset, "StudyInstanceUID"),
        series_uid=_uid(dataset, "SeriesInstanceUID"),
        sop_uid=_uid(dataset, "SOPInstanceUID"),
        transfer_syntax=_readable_syntax(syntax),
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
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        scanner=scanner_name(text(dataset, "Manufacturer"), text(dataset, "ManufacturerModelName")),
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    """Return an identifier that can stand in a table, a page or a command without harm."""
    value = required(dataset, keyword)
    if not _plain(value):
        raise Refused(Reason.UID, f"{keyword} is no identifier: 1 to 128 of letters, digits and . _ -")
    return value


def _plain(uid: str) -> str:
    return uid if UID_FORM.fullmatch(uid) else ""


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


def _readable_syntax(syntax: str) -> str:
    if syntax in NATIVE:
        return syntax
    if syntax not in PLUGINS:
        named = syntax if SYNTAX_FORM.fullmatch(syntax) else "of that name"
        raise Refused(
            Reason.TRANSFER_SYNTAX, f"Transfer syntax {named} is not read; convert the file (dcmdjpeg, dcmconv)."
        )
    if PLUGINS[syntax] not in get_decoder(syntax).available_plugins:
        remedy = "pip install 'ich-seq[jpeg]'" if syntax in NEEDS_JPEG_EXTRA else "pip install ich-seq"
        raise Refused(Reason.TRANSFER_SYNTAX, f"No decoder for transfer syntax {syntax} is installed: {remedy}.")
    return syntax


def _locate_pixels(header: SliceHeader, stream: BinaryIO, end: int, implicit: bool) -> SliceHeader:
    """Check that the pixel data is there, and a compressed frame what the header says; note where it begins.

    The stream stands at the Pixel Data element and ends at `end`. An element shorter than the image, or a file that
    ends before its pixels do, is refused now and not when the study is half read.
    """
    order = ">" if header.transfer_syntax == ExplicitVRBigEndian else "<"
    head = stream.read(12)
    if head[:4] != np.array([0x7FE0, 0x0010], f"{order}u2").tobytes():
        raise Refused(Reason.PIXEL_DATA, "No pixel data in the file.")
    explicit = not implicit and b"AA" <= head[4:6] <= b"ZZ"  # not by the syntax, which some files misstate
    if explicit and head[4:6] not in (b"OW", b"OB"):
        raise Refused(Reason.PIXEL_DATA, "The pixel data is of no kind that holds pixels (its VR).")
    length = int(np.frombuffer((head[8:12] if explicit else head[4:8]).ljust(4, b"\0"), f"{order}u4")[0])
    offset = stream.tell() - (0 if explicit else 4)
    if header.transfer_syntax in NATIVE:
        _check_length(length, end - offset, header.rows * header.columns * 2)
    else:
        stream.seek(offset)
        start = frame_start(stream, end, header.rows, header.columns)
        check_frame(start, header.transfer_syntax, header.rows, header.columns)
    return replace(header, pixel_offset=offset)


def _check_length(length: int, left: int, expected: int) -> None:
    if length == UNDEFINED_LENGTH:
        raise Refused(Reason.PIXEL_DATA, "The pixels are compressed, but the transfer syntax says they are not.")
    held = max(0, min(length, left))
    if length > expected + PADDING_BYTES:
        raise Refused(Reason.PIXEL_DATA, f"{length} bytes of pixel data for an image of {expected}.")
    if held < expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {held} of {expected} bytes; copy the file again.")
