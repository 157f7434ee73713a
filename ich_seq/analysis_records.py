"""The JSON of evaluations and explorations, object by object, as `schemas` describes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ich_seq import evaluation, exploration
from ich_seq.failures import FALSE_ALARM, MISSED
from ich_seq.metrics import Estimate
from ich_seq.records import ABSENT, ByLabel, ByLevel, Count, Files, Nothing, Record, Sha256, Share, marked


class LabelQuality(Record):
    """Every figure of a label; null where a class is absent."""

    auroc: Estimate | None
    average_precision: Estimate | None
    log_loss: Estimate | None
    brier: Estimate | None
    calibration_error: Estimate | None
    sensitivity_at_95_specificity: Estimate | None
    ppv_at_95_specificity: Estimate | None
    npv_at_95_specificity: Estimate | None
    specificity_at_95_sensitivity: Estimate | None
    ppv_at_95_sensitivity: Estimate | None
    npv_at_95_sensitivity: Estimate | None


class Quality(Record):
    """The challenge's loss of a predictor, and each label's figures."""

    weighted_log_loss: Estimate
    labels: ByLabel[LabelQuality]


class SliceFlow(Record):
    """From tables to what is judged, where slices are labelled."""

    slices_labelled: Count
    slices_labelled_not_predicted: Count
    slices_predicted: Count
    slices_unlabelled: Count
    slices_of_studies_left_out: Count
    slices_judged: Count
    studies_predicted: Count
    studies_left_out: Count
    studies_judged: Count


class StudyFlow(Record):
    """From tables to what is judged, where studies are labelled."""

    studies_labelled: Count
    studies_labelled_not_predicted: Count
    studies_predicted: Count
    studies_of_shared_patient_ids: Count
    studies_left_out: Count
    studies_judged: Count


class Bootstrap(Record):
    """What intervals rest on."""

    clusters: Literal["patients", "studies"]
    number: Count
    resamples: Count


class Spread(Record):
    """How a number spreads over the studies; null where no study has it."""

    least: float | None
    low: float | None = Field(alias="5 %")
    median: float | None
    high: float | None = Field(alias="95 %")
    most: float | None


class Bin(Record):
    """Probabilities of a range: how many, their mean, and the share that is positive."""

    from_: Share = Field(alias="from")
    to: Share
    rows: Count
    mean: Share
    observed: Estimate | None


class Curve(Record):
    """A ROC curve, thresholds ascending: what scores at least the threshold is called positive."""

    threshold: list[float]
    sensitivity: list[Share]
    specificity: list[Share]


class Subgroup(Record):
    """A group of studies; figures of any haemorrhage are absent where the group is empty."""

    studies: Count
    positive: Count
    auroc: Estimate | None = ABSENT
    sensitivity_at_95_specificity: Estimate | None = ABSENT
    specificity_at_95_sensitivity: Estimate | None = ABSENT
    log_loss: Estimate | None = ABSENT


class Failure(Record):
    """A study on the wrong side, and the slice to look at."""

    label: str
    kind: str = Field(json_schema_extra={"enum": [MISSED, FALSE_ALARM]})
    study_uid: str
    sop_uid: str
    probability: Share


class Inputs(Record):
    """The files that were judged."""

    predictions_sha256: Sha256
    labels_sha256: Sha256


class MadeBy(Record):
    """What --bundle tells: `made_the_predictions` is null where the predictions do not tell."""

    card_sha256: Sha256
    made_the_predictions: bool | None
    trained_on_these_labels: bool


class Evaluation(Record):
    """evaluation.json: predictions held against labels."""

    schema_: str = marked(evaluation.SCHEMA)
    version: str
    levels: list[Literal["slices", "studies"]]
    flow: SliceFlow | StudyFlow
    bootstrap: Bootstrap
    positive: ByLevel[ByLabel[Count]]
    prevalence: ByLevel[ByLabel[Share]]
    data: dict[Literal["slices", "spacing_mm", "max_spacing_mm", "tilt_deg"], Spread]
    predictors: list[str]
    """That of the table first; `cnn`, `rnn`, `constant` and `position` as far as there are any."""
    slices: dict[str, Quality] = ABSENT
    studies: dict[str, Quality]
    differences: ByLevel[dict[str, Quality]]
    """Of "A - B": A's figures less B's, paired."""
    reliability: ByLevel[ByLabel[list[Bin]]]
    roc: ByLevel[ByLabel[Curve | None]]
    subgroups: dict[str, dict[str, Subgroup]]
    failures: list[Failure]
    inputs: Inputs
    files: Files | Nothing
    bundle: MadeBy = ABSENT


class ExplorationCounts(Files):
    """What was seen; null where the input does not tell."""

    slices: Count | None
    studies: Count | None
    patients: Count | None
    patients_with_several_studies: Count | None
    labelled_slices: Count | None
    unlabelled_slices: Count | None
    labels_of_no_slice: Count | None
    duplicate_label_rows: Count | None


class Prevalence(Record):
    """How many are positive, of how many."""

    positive: Count
    of: Count
    share: Share | None


class Prevalences(Record):
    """How often each label is there, of slices and of studies, as far as the input tells."""

    slices: ByLabel[Prevalence] = ABSENT
    studies: ByLabel[Prevalence] = ABSENT


class CoOccurrence(Record):
    """Of slices with a label, how many have each other one; null where no slice has the label."""

    counts: ByLabel[ByLabel[Count]]
    shares: ByLabel[ByLabel[Share | None]]
    subtypes_of_a_slice: dict[str, Count]


class Runs(Record):
    """Runs of positive slices along the head, and how like neighbours are."""

    runs: Count
    median_length: float | None
    longest: Count
    of_one_slice: Count
    one_slice_gaps: Count
    neighbours: Count
    agreeing: Count
    agreeing_share: Share | None
    lengths: dict[str, Count]


class Profile(Record):
    """Labels by relative position, feet (0) to head (1); a list's values lie between `edges`."""

    edges: list[float]
    slices: list[Count]
    positive: ByLabel[list[Count]]
    share: ByLabel[list[Share | None]]


class OfSlices(Record):
    """A histogram of slices: values lie between `edges`."""

    edges: list[float]
    slices: list[Count]


class OfStudies(Record):
    """A histogram of studies: values lie between `edges`."""

    edges: list[float]
    studies: list[Count]


class StudySizes(OfStudies):
    """Slices a study."""

    least: Count
    median: float
    most: Count


class StudyGeometry(Record):
    """How slices lie along the head."""

    zones: dict[str, Count]
    """How many studies have so many stretches of constant step."""
    studies_with_gaps: Count
    gaps: Count
    studies_with_repeated_positions: Count
    repeated_positions: Count
    studies_tilted_over_1_degree: Count
    spacing_mm: OfStudies
    largest_step_mm: float
    tilt_deg: OfStudies


class Formats(Record):
    """Slices by how they are stored; what no header tells is absent."""

    pixels: dict[str, Count] = ABSENT
    rescale: dict[str, Count] = ABSENT
    matrix: dict[str, Count] = ABSENT
    transfer_syntax: dict[str, Count] = ABSENT
    scanner: dict[str, Count] = ABSENT
    padding: dict[str, Count] = ABSENT
    pixel_spacing_mm: OfSlices = ABSENT
    quirks: dict[str, Count]


class Source(Record):
    """What was explored: DICOM files, or a table of slices, of labels alone, or of studies."""

    kind: Literal["dicom", "slices", "labels", "studies"]


class Exploration(Record):
    """exploration.json; `absent` has a sentence for each section that is not there."""

    schema_: str = marked(exploration.SCHEMA)
    version: str
    source: Source
    counts: ExplorationCounts
    absent: dict[str, str]
    prevalence: Prevalences = ABSENT
    co_occurrence: CoOccurrence = ABSENT
    runs: ByLabel[Runs] = ABSENT
    profile: Profile = ABSENT
    slices: StudySizes = ABSENT
    geometry: StudyGeometry = ABSENT
    formats: Formats = ABSENT
