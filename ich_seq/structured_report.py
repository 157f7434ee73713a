"""A prediction as DICOM objects, by highdicom: a measurement report (TID 1500) and a key object selection (TID 2010).

Nothing of the source files passes through highdicom but UIDs: names and dates are put in at the end, as they were
cleaned. What highdicom dates by the clock is dated by ours.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from ich_seq import codes
from ich_seq.codes import Coded, Verdict
from ich_seq.study_identity import Reference, StudyIdentity

PRODUCT = "ich-seq"
SERIES = "ich-seq: research use only, not for diagnosis"
RESEARCH_ONLY = (
    "Research use only, not for diagnosis. Made by software, seen and verified by nobody. Not a medical device."
)
CONTENT_QUALIFICATION = "RESEARCH"
UTF8 = "ISO_IR 192"
REPORT_SERIES, SELECTION_SERIES = 9101, 9102
"""Series Numbers that no scanner gives."""

UID_NAMESPACE = uuid.UUID("6f0f8f3c-55a5-5bb5-9a43-0d9a9ad5a1c8")
PERCENT_DECIMALS = 4
"""As many as the six of studies.csv, of a probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """What made a result: `parameters` are sentences; `key` is another for all that could give another result."""

    version: str
    parameters: tuple[str, ...]
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is said of one label: probability (NaN: none), verdict, and the slices to look at."""

    label: str
    probability: float
    verdict: Verdict
    slices: tuple[Reference, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """All that goes into the objects of one study. `slices_lost` of the series are not covered by it."""

    identity: StudyIdentity
    algorithm: Algorithm
    findings: tuple[Finding, ...]
    comments: tuple[str, ...]
    slices_lost: int
    moment: datetime


def result_uid(*what: str) -> str:
    """Return the UID of what is described, the same for the same description: 2.25 and a UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(UID_NAMESPACE, chr(0).join(what)).int}"


def structured_report(report: Report) -> bytes:
    """Return the file of a Comprehensive 3D SR: preliminary, unverified, a measurement group for each label."""
    context = hd.sr.ObservationContext(observer_device_context=_observer(report.algorithm))
    content = hd.sr.MeasurementReport(
        observation_context=context,
        procedure_reported=_concept(codes.CT_OF_HEAD),
        imaging_measurements=[_group(finding, report) for finding in report.findings],
    )
    content[0].ContentSequence.append(_comments(report.comments))
    made = hd.sr.Comprehensive3DSR(
        evidence=_evidence(report.identity, report.identity.references),
        content=content,
        series_number=REPORT_SERIES,
        is_complete=report.slices_lost == 0,
        **_common(report, "SR"),
    )
    if report.slices_lost:
        made.CompletionFlagDescription = f"{report.slices_lost} files of the study could not be used."
    return _finished(made, report)


def key_object_selection(report: Report, chosen: Sequence[Reference], description: str) -> bytes:
    """Return the file of a Key Object Selection, "Of Interest", of these slices (at least one)."""
    images = _evidence(report.identity, chosen, image=True)
    content = hd.ko.KeyObjectSelection(
        document_title=_concept(codes.OF_INTEREST),
        referenced_objects=images,
        observer_device_context=_observer(report.algorithm),
        description=description,
    )
    selected = [item for item in content[0].ContentSequence if item.ValueType == "IMAGE"]
    for item, reference in zip(selected, chosen, strict=True):
        if reference.frame is not None:
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = reference.frame
    made = hd.ko.KeyObjectSelectionDocument(
        evidence=images, content=content, series_number=SELECTION_SERIES, **_common(report, "KO")
    )
    return _finished(made, report)


def _common(report: Report, kind: str) -> dict[str, Any]:
    """Return what both objects are told: UIDs that depend on what they are made of, and by what."""
    identity, algorithm = report.identity, report.algorithm
    series = result_uid(kind, "series", identity.study_uid, identity.series_uid, algorithm.key)
    slices = [f"{r.sop_uid} {r.frame}" for r in identity.references]
    return {
        "series_instance_uid": series,
        "sop_instance_uid": result_uid(kind, "instance", series, *slices),
        "instance_number": 1,
        "manufacturer": PRODUCT,
        "manufacturer_model_name": PRODUCT,
        "software_versions": algorithm.version,
        "series_description": SERIES,
        "content_qualification": CONTENT_QUALIFICATION,
        "content_date": DA(report.moment.date()),
        "content_time": TM(report.moment.time()),
        "specific_character_set": UTF8,
    }


def _observer(algorithm: Algorithm) -> hd.sr.ObserverContext:
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=result_uid("device", algorithm.key), name=PRODUCT, manufacturer_name=PRODUCT, model_name=PRODUCT
    )
    return hd.sr.ObserverContext(
        observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )


def _group(finding: Finding, report: Report) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    """Return the measurement group (TID 1501) of a label."""
    identity, algorithm = report.identity, report.algorithm
    concept, site = _concept(codes.FINDINGS[finding.label]), codes.SITES.get(finding.label)
    tracking = result_uid("finding", finding.label, identity.study_uid, identity.series_uid, algorithm.key)
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=tracking, identifier=finding.label),
        finding_type=concept,
        finding_sites=[hd.sr.FindingSite(_concept(site))] if site else None,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=PRODUCT, version=algorithm.version, parameters=algorithm.parameters
        ),
        measurements=_measurements(finding.probability),
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(concept, _concept(codes.ANSWERS[finding.verdict]))],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(r.sop_class, r.sop_uid, None if r.frame is None else [r.frame])
            for r in finding.slices
        ],
    )


def _measurements(probability: float) -> list[hd.sr.Measurement]:
    if not np.isfinite(probability):
        return []
    percent = round(100 * probability, PERCENT_DECIMALS)
    return [hd.sr.Measurement(name=_concept(codes.CERTAINTY), value=percent, unit=_concept(codes.PERCENT))]


def _comments(texts: Sequence[str]) -> hd.sr.ContainerContentItem:
    """Return what is to be known of the report as a whole, texts among its qualitative evaluations: TID 1500 row 12."""
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    container = hd.sr.ContainerContentItem(_concept(codes.QUALITATIVE_EVALUATIONS), relationship_type=contains)
    container.ContentSequence = hd.sr.ContentSequence(
        [hd.sr.TextContentItem(_concept(codes.COMMENT), text, contains) for text in texts]
    )
    return container


def _concept(coded: Coded) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(coded.value, coded.scheme, coded.meaning)


def _evidence(identity: StudyIdentity, references: Sequence[Reference], *, image: bool = False) -> list[Dataset]:
    """Return slices as highdicom asks for them: UIDs, and of a patient nothing; an `image` has rows and columns."""
    made = []
    for reference in references:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = reference.sop_class, reference.sop_uid
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = identity.study_uid, identity.series_uid
        for keyword in identity.elements:
            setattr(dataset, keyword, None)
        if image:
            dataset.Rows = dataset.Columns = 1
        made.append(dataset)
    return made


def _finished(made: Dataset, report: Report) -> bytes:
    """Put in whose study it is, and our moment for every other date; return the file."""
    for keyword, value in report.identity.elements.items():
        setattr(made, keyword, value)
    if not made.IssuerOfPatientID:
        del made.IssuerOfPatientID  # the only one that must not be there without a value
    made.InstanceCreationDate, made.InstanceCreationTime = DA(report.moment.date()), TM(report.moment.time())
    for equipment in made.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(report.moment)
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()
