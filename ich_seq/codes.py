"""The codes that DICOM results speak in: one table, reviewed, with the source of each row.

DCM and UCUM codes are DICOM's own (PS3.16). SCT codes are SNOMED CT's; those that DICOM uses itself are in its context
groups, the others were taken from cohort definitions and not looked up in a SNOMED browser, which their source says.
Code values must never change their meaning once results are out: add a row rather than edit one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DICTIONARY = "PS3.16, Annex D"
COHORTS = "OMOP vocabulary (Athena), as cohort definitions cite it; not in PS3.16"


class Verdict(StrEnum):
    """What is said of a label of a study; the three answers of DICOM's CID 240."""

    PRESENT = "Present"
    ABSENT = "Absent"
    UNDETERMINED = "Undetermined"


@dataclass(frozen=True, slots=True)
class Coded:
    """A concept: code value, coding scheme, meaning (64 letters at most), and where the row was taken from."""

    value: str
    scheme: str
    meaning: str
    source: str


INTRACRANIAL_HEMORRHAGE = Coded("1386000", "SCT", "Intracranial hemorrhage", "PS3.16, table of SNOMED concepts")
BRAIN_VENTRICLE = Coded("35764002", "SCT", "Brain ventricle", "PS3.16, CID 7151")

FINDINGS: dict[str, Coded] = {
    "epidural": Coded("82999001", "SCT", "Epidural intracranial hemorrhage", COHORTS),
    "intraparenchymal": Coded("274100004", "SCT", "Cerebral hemorrhage", COHORTS),
    "intraventricular": INTRACRANIAL_HEMORRHAGE,
    "subarachnoid": Coded("21454007", "SCT", "Subarachnoid intracranial hemorrhage", COHORTS),
    "subdural": Coded("35486000", "SCT", "Subdural hemorrhage", COHORTS),
    "any": INTRACRANIAL_HEMORRHAGE,
}
"""The finding of each label."""

SITES: dict[str, Coded] = {"intraventricular": BRAIN_VENTRICLE}
"""Where a finding is, for labels whose finding does not say so itself: public code lists disagree on a single code for
intraventricular haemorrhage, while haemorrhage at a site says the same in codes that DICOM has."""

ANSWERS: dict[Verdict, Coded] = {
    Verdict.PRESENT: Coded("52101004", "SCT", "Present", "PS3.16, CID 240"),
    Verdict.ABSENT: Coded("272519000", "SCT", "Absent", "PS3.16, CID 240"),
    Verdict.UNDETERMINED: Coded("373068000", "SCT", "Undetermined", "PS3.16, CID 240"),
}

CT_OF_HEAD = Coded("303653007", "SCT", "CT of head", "PS3.16, table of SNOMED concepts")
CERTAINTY = Coded("111012", "DCM", "Certainty of Finding", DICTIONARY)
"""0 (none) to 100 % (absolute); the probability is given under this name."""

PERCENT = Coded("%", "UCUM", "Percent", "PS3.16, CID 7181")
COMMENT = Coded("121106", "DCM", "Comment", DICTIONARY)
QUALITATIVE_EVALUATIONS = Coded("C0034375", "UMLS", "Qualitative Evaluations", "PS3.16, TID 1500 row 12")
OF_INTEREST = Coded("113000", "DCM", "Of Interest", "PS3.16, CID 7010")

ALL = (
    *FINDINGS.values(), *SITES.values(), *ANSWERS.values(), CT_OF_HEAD, CERTAINTY, PERCENT, COMMENT,
    QUALITATIVE_EVALUATIONS, OF_INTEREST,
)  # fmt: skip
"""Every row, for review."""
