"""One DICOM file: its header, checked, and its pixels as Hounsfield units. The only reader of DICOM.

Nothing here decides about studies. Every file ends as a `SliceHeader` or as an `Unused` with a reason
code; a file is never repaired by guessing.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    CTImageStorage,
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
    MediaStorageDirectoryStorage,
    RLELossless,
)

from ich_seq.config import AIR_HU
from ich_seq.reasons import Reason, Refused, Unused

NATIVE: dict[str, str] = {ImplicitVRLittleEndian: "<", ExplicitVRLittleEndian: "<", ExplicitVRBigEndian: ">"}
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
    JPEGLSLossless: "pylibjpeg",
    JPEGLSNearLossless: "pylibjpeg",
    JPEGExtended12Bit: "pylibjpeg",
}
"""The decoder of each compressed syntax, chosen here and not by pydicom: with every plugin installed it
would take GDCM first, which aborts the process on damaged frames."""

NEEDS_JPEG_EXTRA = {JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, JPEGExtended12Bit}
"""Syntaxes whose decoder is under the GPL and so not a hard dependency: pip install 'ich-seq[jpeg]'."""

CT_CLASSES = {CTImageStorage, ""}
"""RSNA 2019 files carry no SOP Class UID."""

MULTI_FRAME_CLASSES = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
SECONDARY_CAPTURE_ROOT = "1.2.840.10008.5.1.4.1.1.7"
LOCALIZER_WORDS = {"LOCALIZER", "SCOUT", "SURVIEW", "REF_SURVIEW", "TOPOGRAM"}
MAX_SIDE = 4096
MIN_SIDE = 16
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 5.0
"""Wider than any head CT (0.2 to 1); beyond it, resampling to a field in mm would ask for absurd sizes."""

MIN_BITS, MAX_BITS = 12, 16
"""DICOM PS3.3 C.8.2.1 (CT Image module): Bits Allocated 16, Bits Stored 12 to 16. Fewer cannot hold HU."""

QUIRK_MIN_INTERCEPT = -100
QUIRK_OFFSET = 1000
QUIRK_RANGE = 4096

UNIT_TOLERANCE = 1e-2
"""How far the direction cosines may be from unit length and from a right angle: some writers keep
three decimals only."""

AXIAL_COSINE = math.cos(math.radians(45))
HEAD_BYTES = 1024
PREAMBLE_BYTES = 128
DEFLATED = b"1.2.840.10008.1.2.1.99"
DICOM_SUFFIXES = {"", ".dcm", ".dicom", ".dic", ".ima", ".img"}

TAGS = [
    "TransferSyntaxUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PixelPaddingValue",
    "RescaleIntercept",
    "RescaleSlope",
]
"""All that is ever read of a header; names, dates and other patient text are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceHeader:
    """What is known of one slice before its pixels are read; every value has passed the gate.

    `position_mm` is Image Position (Patient), `orientation` the six direction cosines (row, column),
    `spacing_mm` (between rows, between columns). `pixel_offset` is where uncompressed pixels begin in
    the file and -1 for compressed ones. `file` is the path relative to the folder that was searched;
    `file_bytes` and `modified_ns` tell later whether the file is still the same.
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


def read_header(path: Path, file: str) -> SliceHeader | Unused:
    """Read and check the header of one file; the pixels are not read, the patient's name never is.

    `file` is the name under which the file is reported. Never raises for what a file holds: whatever
    is wrong comes back as `Unused`.
    """
    try:
        with pydicom_config.disable_value_validation():  # RSNA's UIDs are no UIDs, and that is no fault
            return _read_header(path, file)
    except Refused as refusal:
        return Unused(file, refusal.reason, refusal.detail)
    except OSError as error:
        return Unused(file, Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.")
    except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on this file
        return Unused(file, Reason.DAMAGED_HEADER, f"The header cannot be parsed ({type(error).__name__}).")


def _read_header(path: Path, file: str) -> SliceHeader:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Refused(Reason.NOT_REGULAR, "Not a regular file (pipe, socket or device).")
    with path.open("rb") as stream:
        _check_magic(stream, path)
        dataset = _parse(stream)
        _check_kind(dataset)
        syntax = _text(dataset.file_meta, "TransferSyntaxUID") if hasattr(dataset, "file_meta") else ""
        header = _slice_header(dataset, path, file, syntax or ImplicitVRLittleEndian)
        header = replace(header, file_bytes=status.st_size, modified_ns=status.st_mtime_ns)
        return _locate_pixels(header, stream)


def _check_magic(stream: BinaryIO, path: Path) -> None:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] != b"DICM" and head[:2] not in (b"\x02\x00", b"\x08\x00"):
        named_so = path.suffix.lower() in DICOM_SUFFIXES or path.suffix[1:].isdigit()
        if path.name.startswith(".") or not named_so:
            raise Refused(Reason.OTHER_FILE, "Not a DICOM file, by its name and by its content.")
        raise Refused(Reason.NOT_DICOM, "Not a DICOM file, though its name suggests one: no DICM marker.")
    if DEFLATED in head:
        raise Refused(
            Reason.TRANSFER_SYNTAX,
            "Deflated files are not read, as a small one can inflate without limit; convert it (dcmconv +te).",
        )


def _parse(stream: BinaryIO) -> Dataset:
    """Parse the header up to the pixel data, where the stream is left."""
    return dcmread(stream, stop_before_pixels=True, force=True, specific_tags=list(TAGS))


def _check_kind(dataset: Dataset) -> None:
    """Leave out what is no single-frame CT slice at all, before asking more of it."""
    sop_class = _text(dataset, "SOPClassUID")
    if sop_class == MediaStorageDirectoryStorage or _is_directory(dataset):
        raise Refused(Reason.DICOMDIR, "A DICOMDIR; the files it lists are read from the folder itself.")
    if sop_class.startswith(SECONDARY_CAPTURE_ROOT):
        raise Refused(Reason.SECONDARY_CAPTURE, "A secondary capture (screenshot, dose page), not a CT slice.")
    if sop_class in MULTI_FRAME_CLASSES:
        raise Refused(
            Reason.MULTI_FRAME, "Multi-frame CT is not read; convert it to one file a slice (dcuncat, emf2sf)."
        )
    modality = _text(dataset, "Modality")
    if modality != "CT" or sop_class not in CT_CLASSES:
        raise Refused(Reason.NOT_CT, "Not a CT image, by its modality or SOP class.")
    if LOCALIZER_WORDS & {word.upper() for word in _words(dataset, "ImageType")}:
        raise Refused(Reason.LOCALIZER, "A scout view, by its image type.")


def _is_directory(dataset: Dataset) -> bool:
    meta = getattr(dataset, "file_meta", None)
    return meta is not None and _text(meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def _slice_header(dataset: Dataset, path: Path, file: str, syntax: str) -> SliceHeader:
    rows, columns = _dimensions(dataset)
    bits_stored, signed = _pixel_format(dataset)
    slope, intercept = _rescale(dataset)
    position = _numbers(dataset, "ImagePositionPatient", 3, Reason.GEOMETRY)
    orientation = _orientation(dataset)
    spacing = _spacing(dataset)
    padding = dataset.get("PixelPaddingValue")
    return SliceHeader(
        path=path,
        file=file,
        patient_id=_text(dataset, "PatientID"),
        study_uid=_required(dataset, "StudyInstanceUID"),
        series_uid=_required(dataset, "SeriesInstanceUID"),
        sop_uid=_required(dataset, "SOPInstanceUID"),
        transfer_syntax=_readable_syntax(syntax),
        image_type=_words(dataset, "ImageType"),
        acquisition=_whole(dataset, "AcquisitionNumber"),
        instance=_whole(dataset, "InstanceNumber"),
        position_mm=(position[0], position[1], position[2]),
        orientation=orientation,
        rows=rows,
        columns=columns,
        spacing_mm=spacing,
        bits_stored=bits_stored,
        signed=signed,
        padding=padding if isinstance(padding, int) else None,
        slope=slope,
        intercept=intercept,
        pixel_offset=-1,
        file_bytes=0,
        modified_ns=0,
    )


def _dimensions(dataset: Dataset) -> tuple[int, int]:
    rows, columns = _required_whole(dataset, "Rows"), _required_whole(dataset, "Columns")
    if not (MIN_SIDE <= rows <= MAX_SIDE and MIN_SIDE <= columns <= MAX_SIDE):
        raise Refused(
            Reason.DIMENSIONS, f"{rows} x {columns} pixels; a slice has {MIN_SIDE} to {MAX_SIDE} on each side."
        )
    return rows, columns


def _pixel_format(dataset: Dataset) -> tuple[int, bool]:
    """Return Bits Stored and whether the pixels are signed."""
    if _whole(dataset, "NumberOfFrames", 1) > 1:
        raise Refused(Reason.MULTI_FRAME, "More than one frame in a file; convert it to one file a slice.")
    colours = _text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if _whole(dataset, "SamplesPerPixel", 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise Refused(Reason.PIXEL_FORMAT, "Colour pixels cannot hold Hounsfield units.")
    allocated, stored = _required_whole(dataset, "BitsAllocated"), _required_whole(dataset, "BitsStored")
    representation = _required_whole(dataset, "PixelRepresentation")
    if allocated != MAX_BITS or not MIN_BITS <= stored <= MAX_BITS or representation not in (0, 1):
        raise Refused(
            Reason.PIXEL_FORMAT,
            f"{stored} of {allocated} bits a pixel, representation {representation}; "
            f"CT has {MIN_BITS} to {MAX_BITS} of {MAX_BITS}.",
        )
    return stored, representation == 1


def _rescale(dataset: Dataset) -> tuple[float, float]:
    slope = _numbers(dataset, "RescaleSlope", 1, Reason.RESCALE)[0]
    intercept = _numbers(dataset, "RescaleIntercept", 1, Reason.RESCALE)[0]
    if slope == 0:
        raise Refused(Reason.RESCALE, "Rescale Slope is 0, so all pixels would be equal.")
    return slope, intercept


def _orientation(dataset: Dataset) -> tuple[float, float, float, float, float, float]:
    o = _numbers(dataset, "ImageOrientationPatient", 6, Reason.GEOMETRY)
    row, column = np.array(o[:3]), np.array(o[3:])
    off = max(abs(float(row @ row) - 1), abs(float(column @ column) - 1), abs(float(row @ column)))
    if off > UNIT_TOLERANCE:
        raise Refused(Reason.GEOMETRY, "Image Orientation (Patient) is not a pair of unit vectors at a right angle.")
    if abs(float(np.cross(row, column)[2])) < AXIAL_COSINE:
        raise Refused(Reason.NOT_AXIAL, "The slice is turned more than 45 degrees from axial.")
    return (o[0], o[1], o[2], o[3], o[4], o[5])


def _spacing(dataset: Dataset) -> tuple[float, float]:
    between_rows, between_columns = _numbers(dataset, "PixelSpacing", 2, Reason.GEOMETRY)
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
        raise Refused(
            Reason.TRANSFER_SYNTAX, f"Transfer syntax {syntax} is not read; convert the file (dcmdjpeg, dcmconv)."
        )
    if PLUGINS[syntax] not in get_decoder(syntax).available_plugins:
        remedy = "pip install 'ich-seq[jpeg]'" if syntax in NEEDS_JPEG_EXTRA else "pip install pylibjpeg-openjpeg"
        raise Refused(Reason.TRANSFER_SYNTAX, f"No decoder for transfer syntax {syntax} is installed: {remedy}.")
    return syntax


def _locate_pixels(header: SliceHeader, stream: BinaryIO) -> SliceHeader:
    """Check that the pixel data is there; note where it begins if it is not compressed.

    The stream stands at the Pixel Data element. An element shorter than the image, or a file that
    ends before its pixels do, is refused now and not when the study is half read.
    """
    order = ">" if header.transfer_syntax == ExplicitVRBigEndian else "<"
    head = stream.read(12)
    if head[:4] != np.array([0x7FE0, 0x0010], f"{order}u2").tobytes():
        raise Refused(Reason.PIXEL_DATA, "No pixel data in the file.")
    if header.transfer_syntax not in NATIVE:
        return header
    explicit = header.transfer_syntax != ImplicitVRLittleEndian
    length = int(np.frombuffer(head[8:12] if explicit else head[4:8], f"{order}u4")[0])
    offset = stream.tell() - (0 if explicit else 4)
    expected = header.rows * header.columns * 2
    held = max(0, min(length, header.file_bytes - offset))
    if held < expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {held} of {expected} bytes; copy the file again.")
    return replace(header, pixel_offset=offset)


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword)
    values = [value] if isinstance(value, str) else value or []
    return tuple(str(v).strip() for v in values)


def _required(dataset: Dataset, keyword: str) -> str:
    text = _text(dataset, keyword)
    if not text:
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or empty.")
    return text


def _whole(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """Return a whole number that may be absent; one that cannot be read counts as absent."""
    value = dataset.get(keyword)
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _required_whole(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    if not isinstance(value, int):
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or no whole number.")
    return int(value)


def _numbers(dataset: Dataset, keyword: str, count: int, reason: Reason) -> tuple[float, ...]:
    """Return `count` finite numbers. Refused: absent (MISSING_TAG); too few, too many, not finite (`reason`)."""
    value = dataset.get(keyword)
    if value is None or value == "":
        raise Refused(Reason.MISSING_TAG, f"{keyword} is absent or empty.")
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError):
        raise Refused(reason, f"{keyword} is not a number.") from None
    if len(numbers) != count or not all(math.isfinite(n) for n in numbers):
        raise Refused(reason, f"{keyword} is not {count} finite number{'s' if count > 1 else ''}.")
    return numbers


def read_hounsfield(header: SliceHeader) -> NDArray[np.float32]:
    """Read the pixels of one slice, (H, W) float32 HU, by this slice's own slope and intercept.

    Values below AIR_HU are raised to it. MONOCHROME1 is a matter of display and inverts nothing.
    Raises Refused (PIXEL_DATA, DECODE, UNREADABLE) if the pixels cannot be had whole.
    """
    stored = _read_native(header) if header.transfer_syntax in NATIVE else _decode(header)
    return to_hounsfield(stored, header)


def _read_native(header: SliceHeader) -> NDArray[np.integer[Any]]:
    """Return the stored values, (H, W), straight from the bytes that `read_header` located."""
    expected = header.rows * header.columns
    kind = f"{NATIVE[header.transfer_syntax]}{'i' if header.signed else 'u'}2"
    try:
        flat = np.fromfile(header.path, kind, count=expected, offset=header.pixel_offset)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.") from None
    if len(flat) < expected:
        raise Refused(Reason.PIXEL_DATA, f"Pixel data is cut short: {2 * len(flat)} of {2 * expected} bytes.")
    stored = flat.astype(flat.dtype.newbyteorder("="), copy=False).reshape(header.rows, header.columns)
    spare = MAX_BITS - header.bits_stored
    return (stored << spare) >> spare if spare else stored  # PS3.5 8.1.1: unused high bits mean nothing


def _decode(header: SliceHeader) -> NDArray[np.integer[Any]]:
    """Return the stored values of a compressed slice, (H, W)."""
    try:
        dataset = dcmread(header.path, force=True)
        decoder, plugin = get_decoder(header.transfer_syntax), PLUGINS[header.transfer_syntax]
        stored, _ = decoder.as_array(dataset, raw=True, decoding_plugin=plugin)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"The file cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # decoders raise whatever they like on damaged frames
        raise Refused(Reason.DECODE, f"The pixels cannot be decoded ({type(error).__name__}).") from None
    if stored.shape != (header.rows, header.columns):
        raise Refused(Reason.DECODE, f"The decoded image is {stored.shape}, the header says otherwise.")
    return stored


def to_hounsfield(stored: NDArray[np.integer[Any]], header: SliceHeader) -> NDArray[np.float32]:
    """Turn stored values (H, W) into float32 HU, (H, W).

    Mends one known fault of the RSNA 2019 set (123 slices): 12-bit unsigned pixels whose HU wrapped
    below zero, to be told by an intercept above -100. Signed pixels with intercept 0 are HU already.
    """
    slope, intercept = header.slope, header.intercept
    if header.bits_stored == MIN_BITS and not header.signed and intercept > QUIRK_MIN_INTERCEPT:
        stored = (stored.astype(np.int32) + QUIRK_OFFSET) % QUIRK_RANGE
        intercept = -float(QUIRK_OFFSET)
    hu = stored.astype(np.float32)
    if slope != 1:
        hu *= np.float32(slope)
    hu += np.float32(intercept)
    if header.padding is not None and _is_impossible(header.padding * slope + intercept):
        hu[stored == header.padding] = AIR_HU
    return np.maximum(hu, np.float32(AIR_HU), out=hu)


def _is_impossible(hu: float) -> bool:
    """Tell whether a padding value is no tissue; one inside the range would punch holes into the brain."""
    return not AIR_HU < hu < 3 * QUIRK_OFFSET


def list_files(root: Path) -> list[Path]:
    """Return every file below a folder (or the file itself), sorted by name, links followed but no loop twice."""
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    visited: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        found.extend(Path(folder, name) for name in names)
    return sorted(found)
