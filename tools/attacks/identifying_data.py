"""Files that name people wherever files may: a canary in each place, and files that are rejected for every reason."""

from __future__ import annotations

import os
from pathlib import Path

from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from attacks.canaries import Flock
from attacks.codestream_bytes import J2K, rle_frame
from attacks.dicom_bytes import element
from attacks.encoders import segment
from attacks.hostile_data import READS, table
from attacks.raw_dicom import sequence_item, slice_bytes
from ich_seq.labels import LABELS, SUBTYPES

SLICES = 4
SIZE_ENDS = 45
"""Of a JPEG 2000 codestream: the size of one component comes first, what else is said behind it."""

IDENTIFYING = (
    "AccessionNumber", "AcquisitionComments", "AcquisitionDate", "AcquisitionDateTime", "AdditionalPatientHistory",
    "AdmissionID", "AdmittingDiagnosesDescription", "BranchOfService",
    "ConfidentialityConstraintOnPatientDataDescription", "ContentCreatorName", "ContentDate", "CountryOfResidence",
    "CurrentPatientLocation", "DeviceSerialNumber", "DischargeDiagnosisDescription", "EthnicGroup",
    "FillerOrderNumberImagingServiceRequest", "ImageComments", "InstitutionAddress", "InstitutionName",
    "InstitutionalDepartmentName", "InsurancePlanIdentification", "IssuerOfPatientID", "MedicalAlerts",
    "MedicalRecordLocator", "MilitaryRank", "NameOfPhysiciansReadingStudy", "Occupation", "OperatorsName",
    "OrderEnteredBy", "OtherPatientIDs", "OtherPatientNames", "PatientAddress", "PatientAge", "PatientBirthDate",
    "PatientBirthName", "PatientComments", "PatientMotherBirthName", "PatientName", "PatientReligiousPreference",
    "PatientSex", "PatientSize", "PatientState", "PatientTelephoneNumbers", "PatientWeight",
    "PerformedProcedureStepDescription", "PerformingPhysicianName", "PersonName", "PhysiciansOfRecord", "PlateID",
    "PregnancyStatus", "ProtocolName", "ReasonForStudy", "ReferringPhysicianAddress", "ReferringPhysicianName",
    "ReferringPhysicianTelephoneNumbers", "RegionOfResidence", "RequestedProcedureDescription", "RequestedProcedureID",
    "RequestingPhysician", "ResponsiblePerson", "ScheduledPerformingPhysicianName", "SeriesDate", "SeriesDescription",
    "SpecialNeeds", "StationName", "StudyComments", "StudyDate", "StudyDescription", "StudyID", "StudyTime",
    "TextString", "VisitComments",
)  # fmt: skip
"""Elements that PS3.15 Table E.1-1 removes, empties or replaces; none of them is ever to be read."""


def study_uid(number: int) -> str:
    """Return the UID of a study: UIDs may be written."""
    return f"1.2.840.77.{number}"


def write_files(root: Path, flock: Flock, *, studies: int) -> None:
    """Write studies, and beside them files that are rejected or left out; all hold canaries and are called by them."""
    for number in range(studies):
        folder = root / flock.word(f"name of folder {number}")
        folder.mkdir(parents=True)
        for k in range(SLICES):
            (folder / f"{flock.word(f'name of file {number} {k}')}.dcm").write_bytes(_slice(flock, number, k))
    _write_refused(root / flock.word("name of the folder of refused files"), flock)


def _slice(flock: Flock, number: int, k: int, *, replaced: dict[str | int, bytes] | None = None, **how: bytes) -> bytes:
    """Return the bytes of a file with a canary in every element that identifies somebody."""
    meta = {name: flock.bytes(name) for name in ("SourceApplicationEntityTitle", "ImplementationVersionName")}
    if "kind" in how:
        meta["MediaStorageSOPClassUID"] = how.pop("kind")
    elements = _elements(flock) | {"PatientID": flock.bytes(f"PatientID {number}")} | (replaced or {})
    preamble = flock.bytes("preamble").ljust(128, b"\0")
    data = slice_bytes(elements, study=study_uid(number), number=k, meta=meta, preamble=preamble, **how)
    return data + element(0xFFFCFFFC, "OB", flock.bytes("padding behind the pixels"))


def _elements(flock: Flock) -> dict[str | int, bytes]:
    inner = sequence_item(
        {"PatientID": flock.bytes("inner PatientID"), "PatientName": flock.bytes("inner PatientName")}
    )
    outer = sequence_item({"ModifiedAttributesSequence": inner, 0x00090010: flock.bytes("inner private creator")})
    return {
        **{keyword: flock.bytes(keyword) for keyword in IDENTIFYING},
        "PatientInsurancePlanCodeSequence": sequence_item({"CodeMeaning": flock.bytes("insurance")}),
        "OtherPatientIDsSequence": inner,
        "RequestAttributesSequence": sequence_item(
            {"ScheduledProcedureStepDescription": flock.bytes("scheduled step")}
        ),
        "OriginalAttributesSequence": outer,
        "ImageType": b"ORIGINAL\\PRIMARY\\AXIAL\\" + flock.bytes("ImageType"),
        0x00090010: flock.bytes("private creator"),
        0x00091001: flock.bytes("private value"),
        0x60000022: flock.bytes("overlay description"),
    }


def _commented(comment: bytes) -> bytes:
    """Return a sound JPEG 2000 codestream that holds a comment."""
    return J2K[:SIZE_ENDS] + segment(0x64, b"\0\1" + comment) + J2K[SIZE_ENDS:]


def _write_refused(folder: Path, flock: Flock) -> None:
    """Write files that are rejected or left out, for as many reasons as there are."""
    folder.mkdir(parents=True)
    changed: dict[str, dict[str | int, bytes]] = {
        keyword: {keyword: flock.bytes(f"refused {keyword}")}
        for keyword in ("Modality", "SOPClassUID", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept",
                        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    } | {
        **{keyword: {keyword: flock.bytes(keyword) + b" ^x"}
           for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")},
        "missing": {"ImagePositionPatient": b""},
        "localizer": {"ImageType": b"ORIGINAL\\PRIMARY\\LOCALIZER"},
        "secondary capture": {"SOPClassUID": SecondaryCaptureImageStorage.encode()},
        "multi frame": {"SOPClassUID": EnhancedCTImageStorage.encode()},
        "bits": {"BitsStored": b"\x08\0"},
        "rows": {"Rows": b"\x01\0"},
    }  # fmt: skip
    files = {name: _slice(flock, 50 + k, 0, replaced=values) for k, (name, values) in enumerate(changed.items())}
    sound = _slice(flock, 70, 0)
    files |= {
        "syntax": _slice(flock, 71, 0, syntax=flock.bytes("refused TransferSyntaxUID")),
        "RLE": _slice(flock, 72, 0, syntax=RLELossless.encode(), frame=rle_frame(*2 * [flock.bytes("frame") * 9])),
        "JPEG 2000": _slice(flock, 73, 0, syntax=JPEG2000Lossless.encode(), frame=_commented(flock.bytes("comment"))),
        "cut JPEG 2000": _slice(
            flock, 79, 0, syntax=JPEG2000Lossless.encode(), frame=J2K[:200] + flock.bytes("frame") * 9
        ),
        "no JPEG 2000": _slice(flock, 78, 0, syntax=JPEG2000Lossless.encode(), frame=flock.bytes("frame") * 9),
        "DICOMDIR": _slice(flock, 74, 0, kind=MediaStorageDirectoryStorage.encode()),
        "few pixels": _slice(flock, 75, 0, pixels=bytes(100)),
        "cut": sound[:700],
        "original": sound,
        "copy": sound,
        "conflict a": _slice(flock, 76, 0, replaced={"SOPInstanceUID": b"1.2.3"}),
        "conflict b": _slice(flock, 77, 0, replaced={"SOPInstanceUID": b"1.2.3"}),
        "no DICOM": flock.bytes("text of no DICOM file"),
        "empty": b"",
    }
    for name, data in files.items():
        (folder / f"{flock.word(f'name of refused file, {name}')}.dcm").write_bytes(data)
    (folder / f"{flock.word('name of notes')}.txt").write_bytes(flock.bytes("text of notes"))
    (folder / f"{flock.word('name of a link')}.dcm").symlink_to(flock.word("target of a link"))
    os.mkfifo(folder / f"{flock.word('name of a pipe')}.dcm")


def write_labels(path: Path, flock: Flock, *, studies: int) -> None:
    """Write labels of the slices, beside them columns that name people."""
    more = ("PatientName", "AccessionNumber", "radiologist")
    rows = [
        [f"{study_uid(number)}.{k}", *_bits(number, k), *(flock.word(f"labels' {name}") for name in more)]
        for number in range(studies)
        for k in range(SLICES)
    ]
    path.write_bytes(table(["sop_uid", *LABELS, *more], rows))


def _bits(number: int, k: int = 1) -> list[int]:
    found = [int(number % 6 == label and k % 2 == 1) for label in range(len(SUBTYPES))]
    return [*found, max(found)]


def write_reads(path: Path, flock: Flock, *, studies: int) -> None:
    """Write reads of studies as CQ500 has them, named by Patient IDs, the last of them twice."""
    rows = [[flock.word(f"PatientID {number}"), *3 * _bits(number)] for number in range(studies)]
    path.write_bytes(table(["name", *READS], [*rows, rows[-1]]))


def write_slice_table(path: Path, flock: Flock, *, studies: int) -> None:
    """Write a table of slices with DICOM keywords as columns, some that name people; some rows are refused."""
    people = ("PatientName", "PatientBirthDate", "AccessionNumber", "StudyDescription")
    heads = ["SOPInstanceUID", "StudyInstanceUID", "PatientID", "ImagePositionPatient", "ImageOrientationPatient"]
    rows = [
        [
            f"{study_uid(number)}.{k}", study_uid(number) if k else "", flock.word(f"PatientID {number}"),
            f"[0, 0, {5 * k}]" if k != 1 else flock.word("table's place"), "[1, 0, 0, 0, 1, 0]",
            *(flock.word(f"table's {name}") for name in people), *_bits(number, k),
        ]
        for number in range(studies)
        for k in range(SLICES)
    ]  # fmt: skip
    path.write_bytes(table([*heads, *people, *LABELS], rows))
