"""Bad inputs as folders: mixed series, what is no slice, several frames in a file, duplicates and contradictions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydicom.uid import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    KeyObjectSelectionDocumentStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MRImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    NuclearMedicineImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RawDataStorage,
    RLELossless,
    RTDoseStorage,
    RTPlanStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
    XRayRadiationDoseSRStorage,
)

from attacks.bad_case import ALTERED, USED, Case, Content, many, one
from attacks.codestream_bytes import HIGH, J2K, LOW, rle_frame
from attacks.dicom_bytes import DRAWN, PRIVATE, Value, compressed, element, nested, pixels, slice_file
from attacks.dicom_elements import PIXEL_DATA, item

Files = dict[str, tuple[Content | str, ...]]


def folders() -> list[Case]:
    """Return all cases of folders."""
    return [*series(), *no_slices(), *frames(), *duplicates()]


def nth(number: int, **how: object) -> bytes:
    """Return a slice of the study by its number: an instance and a place of its own, 5 mm above the one before."""
    own = {
        "SOPInstanceUID": f"1.2.3.{number}",
        "ImagePositionPatient": f"-4\\-4\\{5 * number}",
        "InstanceNumber": str(number),
    }
    return slice_file(**own | how)


def stack(count: int, verdict: str, *, first: int = 1, **how: object) -> Files:
    """Return several slices, all with one verdict."""
    return {f"{n:03}.dcm": (nth(n, **how), verdict) for n in range(first, first + count)}


# ---- series


def series() -> Iterator[Case]:
    """Studies that are mixed of several things: one series is taken, the rest is named."""
    family = "mixed series"
    low, high = {"SeriesInstanceUID": "1.1"}, {"SeriesInstanceUID": "1.9"}
    derived = {"SeriesInstanceUID": "1.0", "ImageType": "DERIVED\\SECONDARY\\AXIAL"}
    for name, taken, left in (
        ("three slices and two", stack(3, USED, **high), stack(2, "other_series", first=10, **low)),
        ("two series as long", stack(3, USED, **low), stack(3, "other_series", first=10, **high)),
        ("one original and nine derived", stack(1, USED), stack(9, "other_series", first=10, **derived)),
        ("an original and its screenshots", stack(2, USED), stack(2, "secondary_capture", first=10, SOPClassUID=SC)),
        ("a CT and an MR", stack(2, USED), stack(3, "not_ct", first=10, SOPClassUID=MRImageStorage, Modality="MR")),
        (
            "axial slices and coronal ones",
            stack(2, USED),
            stack(3, "not_axial", first=10, ImageOrientationPatient=CORONAL),
        ),
        (
            "slices and scouts",
            stack(2, USED),
            stack(2, "localizer", first=10, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER"),
        ),
        ("slices and torn ones", stack(2, USED), stack(2, "pixel_data", first=10, pixel=pixels()[:99])),
        (
            "slices and some without a place",
            stack(2, USED),
            stack(2, "missing_tag", first=10, ImagePositionPatient=None),
        ),
        ("slices and undecodable ones", stack(2, USED), stack(2, "decode", first=10, **torn_rle())),
        (
            "slices of a shared series in two studies",
            stack(2, USED),
            stack(2, USED, first=10, StudyInstanceUID="1.2.9"),
        ),
        ("two acquisitions in one series", stack(3, USED), stack(3, USED, first=10, AcquisitionNumber="2")),
        ("slices in two syntaxes", stack(2, USED), stack(2, USED, first=10, syntax=ImplicitVRLittleEndian)),
        ("slices and big endian ones", stack(2, USED), stack(2, USED, first=10, syntax=ExplicitVRBigEndian)),
        ("slices and RLE ones", stack(2, USED), stack(2, USED, first=10, syntax=RLELossless, pixel=RLE)),
        (
            "slices and JPEG 2000 ones",
            stack(2, USED),
            stack(2, USED, first=10, syntax=JPEG2000Lossless, pixel=compressed(J2K)),
        ),
        ("two scales", stack(2, USED), stack(2, ALTERED, first=10, RescaleSlope="0.5")),
        ("two sizes", stack(2, USED), stack(2, ALTERED, first=10, **large())),
        ("two spacings", stack(2, USED), stack(2, USED, first=10, PixelSpacing="0.25\\0.25")),
        ("two turns of the head", stack(2, USED), stack(2, USED, first=10, ImageOrientationPatient=TURNED)),
        ("opposite normals", stack(2, USED), stack(2, USED, first=10, ImageOrientationPatient="-1\\0\\0\\0\\1\\0")),
    ):
        yield many(family, name, taken | left)
    yield from _alike(family, derived)


def _alike(family: str, derived: dict[str, str]) -> Iterator[Case]:
    yield many(family, "all derived", stack(3, USED, **derived))
    yield many(family, "no series but single slices", {f"{n:03}.dcm": _single(n) for n in range(60)})
    yield many(family, "all at one place", stack(5, USED, ImagePositionPatient="-4\\-4\\10"))
    yield many(family, "all of one number", stack(5, USED, InstanceNumber="1"))
    yield many(family, "numbers that are none", stack(5, USED, InstanceNumber="first", AcquisitionNumber="1e99"))
    far = {f"{n}.dcm": (nth(n, ImagePositionPatient=f"0\\0\\{n * 99999}"), USED) for n in (-1, 0, 1)}
    yield many(family, "slices 100 m apart", far)
    joined = slice_file(
        StudyInstanceUID="9.8.7", SeriesInstanceUID="9.8.7.6", SOPInstanceUID="9.8.7.6.4", PatientID="P9"
    )
    yield one(family, "one more slice of the sound study", joined, USED)


SC = str(SecondaryCaptureImageStorage)
CORONAL = "1\\0\\0\\0\\0\\-1"
TURNED = "0.996\\0.087\\0\\-0.087\\0.996\\0"
RLE = compressed(rle_frame(HIGH, LOW))


def _single(number: int) -> tuple[Content, str]:
    return nth(number, SeriesInstanceUID=f"1.{number + 100}"), USED if number == 0 else "other_series"


def torn_rle() -> dict[str, object]:
    """Say how to make a slice whose header is sound and whose pixels cannot be decoded."""
    return {"syntax": RLELossless, "pixel": compressed(rle_frame(HIGH[:200], LOW))}


def large() -> dict[str, object]:
    """Say how to make a slice of twice the size."""
    side = 2 * len(DRAWN)
    return {"Rows": side, "Columns": side, "pixel": element(PIXEL_DATA, "OW", np.tile(DRAWN, (2, 2)).tobytes())}


# ---- no slices


def no_slices() -> Iterator[Case]:
    """What a study holds beside its slices: sound files that are left out and named."""
    family = "no slices"
    for sop_class in (
        SecondaryCaptureImageStorage,
        MultiFrameSingleBitSecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
    ):
        for modality in ("CT", "OT", None):
            content = slice_file(SOPClassUID=str(sop_class), Modality=modality)
            yield one(family, f"a {sop_class.name} of {modality}", content, "secondary_capture")
    for word in ("LOCALIZER", "SCOUT", "SURVIEW", "TOPOGRAM", "localizer", "Scout "):
        for image_type in (f"ORIGINAL\\PRIMARY\\{word}", f"DERIVED\\SECONDARY\\OTHER\\{word}"):
            yield one(family, f"a scout of type {image_type}", slice_file(ImageType=image_type), "localizer")
    for modality, sop_class in NO_CT:
        bare = slice_file(SOPClassUID=str(sop_class), Modality=modality, Rows=None, Columns=None, pixel=b"")
        yield one(family, f"{sop_class.name}", bare, "not_ct")
        pictured = slice_file(SOPClassUID=str(sop_class), Modality="CT")
        yield one(family, f"{sop_class.name} that says it is CT", pictured, "not_ct")
    yield one(family, "a CT image that says it is MR", slice_file(Modality="MR"), "not_ct")
    yield one(family, "a slice without a class, as RSNA's", slice_file(SOPClassUID=None), USED)
    yield one(family, "a slice without a modality", slice_file(Modality=None), "missing_tag")
    yield one(family, "a slice of an unknown class", slice_file(SOPClassUID="1.2.3"), "not_ct")
    yield one(family, "a slice of many types", slice_file(ImageType="\\".join(["ORIGINAL"] * 3000)), USED)
    yield one(family, "a coronal slice", slice_file(ImageOrientationPatient=CORONAL), "not_axial")


NO_CT = (
    ("SR", XRayRadiationDoseSRStorage),
    ("SR", BasicTextSRStorage),
    ("SR", ComprehensiveSRStorage),
    ("KO", KeyObjectSelectionDocumentStorage),
    ("PR", GrayscaleSoftcopyPresentationStateStorage),
    ("DOC", EncapsulatedPDFStorage),
    ("SEG", SegmentationStorage),
    ("RTDOSE", RTDoseStorage),
    ("RTPLAN", RTPlanStorage),
    ("RTSTRUCT", RTStructureSetStorage),
    ("MR", MRImageStorage),
    ("MR", EnhancedMRImageStorage),
    ("PT", PositronEmissionTomographyImageStorage),
    ("NM", NuclearMedicineImageStorage),
    ("US", UltrasoundImageStorage),
    ("CR", ComputedRadiographyImageStorage),
    ("DX", DigitalXRayImageStorageForPresentation),
    ("OT", ParametricMapStorage),
    ("CT", RawDataStorage),
)
"""Dose reports and all else that studies hold, by modality and class."""


# ---- frames


def frames() -> Iterator[Case]:
    """Several frames in a file: enhanced CT without groups of them, and more frames than one in a class of one."""
    family = "multi-frame"
    shared = {0x52009229: nested(3, defined=False, tag=0x52009229), PRIVATE: element(PRIVATE, "SQ", item(b""))}
    for sop_class in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        gone: dict[str, Value] = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope"))
        for name, how in (
            ("of one frame", {"NumberOfFrames": "1"}),
            ("of two frames", {"NumberOfFrames": "2", "pixel": element(PIXEL_DATA, "OW", DRAWN.tobytes() * 2)}),
            ("of a billion frames", {"NumberOfFrames": "1000000000"}),
            ("without frames", {"NumberOfFrames": None, "pixel": b""}),
            ("with groups", {"raw": shared, "NumberOfFrames": "2"} | gone),
            ("compressed", {"syntax": RLELossless, "pixel": RLE, "NumberOfFrames": "2"}),
            ("of another modality", {"Modality": "OT"}),
        ):
            verdict = {"without frames": "missing_tag", "of another modality": "not_ct"}.get(name, "multi_frame")
            yield one(family, f"{sop_class.name} {name}", slice_file(SOPClassUID=str(sop_class), **how), verdict)
    for number in ("2", "3 ", "+2", "1000000000", "2.0", "1e9", "9" * 300):
        plain = slice_file(NumberOfFrames=number)
        yield one(family, f"a CT image of {number} frames", plain, "multi_frame")
    for number in ("1", "1 ", "", None):
        yield one(family, f"a CT image of {number!a} frames", slice_file(NumberOfFrames=number), USED)
    for number in ("0", "-1", "two", "1\\1", "nan"):
        plain = slice_file(NumberOfFrames=number)
        yield one(family, f"a CT image of {number} frames", plain, USED, "multi_frame", "pixel_format")
    both = slice_file(NumberOfFrames="2", syntax=RLELossless, pixel=compressed(*[rle_frame(HIGH, LOW)] * 2))
    yield one(family, "an RLE image of two frames", both, "multi_frame")
    many_frames = slice_file(SOPClassUID=str(CTImageStorage), NumberOfFrames="2", Rows=4096, Columns=4096)
    yield one(family, "two frames of 4096 x 4096", many_frames, "multi_frame", "pixel_data")


# ---- duplicates


def duplicates() -> Iterator[Case]:
    """Files of one SOP Instance UID: copies are left out, contradictions are refused on both sides."""
    family, whole = "duplicates", slice_file()
    for name, other in (
        ("a copy", whole),
        ("a copy in big endian", slice_file(syntax=ExplicitVRBigEndian)),
        ("a copy in RLE", slice_file(syntax=RLELossless, pixel=RLE)),
        ("a copy in JPEG 2000", slice_file(syntax=JPEG2000Lossless, pixel=compressed(J2K))),
        ("a copy with another preamble", slice_file(preamble=b"MZ".ljust(128, b"\0"))),
        ("a copy with another number", slice_file(InstanceNumber="7", AcquisitionNumber="7")),
    ):
        yield many(family, name, {"a.dcm": (whole, USED), "b.dcm": (other, "duplicate")})
    for name, longer in (
        ("a copy with more behind it", slice_file(tail=bytes(5000))),
        ("a copy with a name in it", slice_file(PatientName="DOE^JANE")),
    ):
        yield many(family, name, {"a.dcm": (whole, "duplicate"), "b.dcm": (longer, USED)})
    for keyword, value in (
        ("PatientID", "P2"),
        ("PatientID", None),
        ("StudyInstanceUID", "1.2.99"),
        ("SeriesInstanceUID", "1.2.99"),
        ("ImagePositionPatient", "-4\\-4\\11"),
        ("ImageOrientationPatient", "-1\\0\\0\\0\\1\\0"),
        ("PixelSpacing", "0.5\\0.6"),
        ("RescaleSlope", "2"),
        ("RescaleIntercept", "0"),
    ):
        both: Files = {"a.dcm": (whole, "sop_conflict"), "b.dcm": (slice_file(**{keyword: value}), "sop_conflict")}
        yield many(family, f"another {keyword}, {value}", both)
    larger: Files = {"a.dcm": (whole, "sop_conflict"), "b.dcm": (slice_file(**large()), "sop_conflict")}
    yield many(family, "another size", larger)
    yield many(family, "fifty copies", {f"{n:02}.dcm": (whole, "duplicate" if n else USED) for n in range(50)})
    folders_of_copies: Files = {f"{n}/a.dcm": (whole, "duplicate" if n else USED) for n in range(5)}
    yield many(family, "copies in folders", folders_of_copies)
    three: Files = {f"{n}.dcm": (whole, "sop_conflict") for n in range(3)}
    conflict = three | {"z.dcm": (slice_file(PixelSpacing="1\\1"), "sop_conflict")}
    yield many(family, "three copies and a contradiction", conflict)
    for name, how, reason in (
        ("a torn copy", {"pixel": pixels()[:100]}, "pixel_data"),
        ("a copy without a place", {"ImagePositionPatient": None}, "missing_tag"),
        ("a copy of a screenshot", {"SOPClassUID": SC}, "secondary_capture"),
    ):
        yield many(family, f"{name}, first", {"a.dcm": (slice_file(**how), reason), "b.dcm": (whole, USED)})
        yield many(family, f"{name}, second", {"a.dcm": (whole, USED), "b.dcm": (slice_file(**how), reason)})
    implicit: Files = {"a.dcm": (whole, "duplicate"), "b.dcm": (slice_file(syntax=ImplicitVRLittleEndian), USED)}
    yield many(family, "a copy in implicit VR", implicit)
    broken, packed = slice_file(**torn_rle()), slice_file(syntax=RLELossless, pixel=RLE)
    yield many(family, "an undecodable copy, first", {"a.dcm": (broken, "duplicate"), "b.dcm": (whole, USED)})
    yield many(family, "an undecodable copy, second", {"a.dcm": (whole, USED), "b.dcm": (broken, "duplicate")})
    for first, second in (("a.dcm", "b.dcm"), ("b.dcm", "a.dcm")):
        packs: Files = {first: (packed, "sop_conflict"), second: (broken, "sop_conflict")}
        yield many(family, f"a compressed slice {first} and its undecodable copy {second}", packs)
