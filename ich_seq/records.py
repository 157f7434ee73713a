"""The JSON that runs, stores and bundles keep of themselves, object by object, as `schemas` describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ich_seq import bundle, cnn_run, store
from ich_seq.config import Augment, Cnn, Encoder, Rnn, Slices, Train
from ich_seq.contextual import Context
from ich_seq.encoder import EncoderSpec
from ich_seq.engines import Execution
from ich_seq.labels import LABELS
from ich_seq.metrics import Estimate
from ich_seq.reasons import Reason

T = TypeVar("T")

ABSENT: Any = None
"""The default of a key that may be absent; where it is there, it is of its type."""

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Reasons = dict[Reason, Annotated[int, Field(ge=1)]]

ByLabel = Annotated[
    dict[Literal["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"], T],
    Field(min_length=len(LABELS)),
]
"""A value for each of the six labels."""

ByLevel = Annotated[dict[Literal["slices", "studies"], T], Field(min_length=1)]
"""A value for slices and one for studies; without labels of slices there is none for slices."""


def marked(schema: str) -> Any:
    """Return the field of the mark that tells an artefact and its version."""
    return Field(alias="schema", json_schema_extra={"const": schema})


class Record(BaseModel):
    """An object of JSON; what stands below a field describes it."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Files(Record):
    """What became of every file seen: files = used + excluded + rejected."""

    files: Count
    used: Count
    excluded: Count
    rejected: Count
    reasons: Reasons
    """How many files by the reason code of rejected.csv."""
    lost_frames: Count = ABSENT
    """Frames of used files that were rejected; tables have none."""


class Nothing(Record):
    """An empty object: the input did not tell."""

    model_config = ConfigDict(extra="forbid")


class Difference(Record):
    """A predictor's figures less another's, paired."""

    slice_loss: Estimate
    slice_auc: ByLabel[Estimate | None]


class Figures(Record):
    """How good a predictor is, out of fold, each with its 95 % interval over patients; null where a class is absent."""

    slice_loss: Estimate
    """The challenge's weighted log loss."""
    study_loss: Estimate
    slice_auc: ByLabel[Estimate | None]
    study_auc: ByLabel[Estimate | None]
    difference_to_position: Difference = ABSENT
    difference_to_cnn: Difference = ABSENT
    difference_to_slice_logistic: Difference = ABSENT


class PredictRun(Record):
    """run.json of predict: written last, so that the tables beside it are whole."""

    version: str
    bundle: str
    """The name of its folder."""
    card_sha256: Sha256
    """Of the bundle's bundle.json."""
    intended_use: str
    execution: Execution
    counts: Files
    studies: Count
    files: dict[str, Sha256]
    """The SHA-256 of the tables and, with --sr, of the DICOM objects, by path."""


class Manifest(Record):
    """manifest.json of a feature store."""

    schema_: str = marked(store.SCHEMA)
    version: str
    fingerprint: Fingerprint
    """Differs if any embedding could."""
    encoders: dict[str, EncoderSpec]
    """By number, which is that of network-NUMBER.safetensors; of train-cnn, the fold that it did not learn from."""
    final: Count | None
    """The number of the one that is for new patients, and alone goes into a bundle; null if all do."""
    execution: Execution
    counts: Files
    files: dict[str, Sha256]


class CnnSettings(Record):
    """The settings that decided a run of train-cnn."""

    slices: Slices
    encoder: Encoder
    augment: Augment
    cnn: Cnn


class CnnRun(Record):
    """run.json of train-cnn: written anew after each fold."""

    schema_: str = marked(cnn_run.SCHEMA)
    version: str
    trained_folds: list[Count]
    encoders: list[EncoderSpec]
    """Those of the trained folds, in their order. The fold after the last, in which nobody is, is the final network."""
    folds_sha256: Sha256
    labels_sha256: Sha256
    also_sha256: Sha256 = ABSENT
    also_studies: Count = ABSENT
    also_slices: Count = ABSENT
    begun_sha256: Sha256 = ABSENT
    """Of what was only learnt from, if anything was. The counts below are of the set that is judged."""
    settings: CnnSettings
    studies: Count
    patients: Count
    slices: Count
    positive_slices: ByLabel[Count]
    studies_without_labels: Count
    counts: Files
    versions: dict[str, str]
    figures: dict[Literal["constant", "position", "cnn"], Figures]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledEncoder(EncoderSpec):
    """An encoder and the name of its file in the bundle."""

    file: str


class BundledFile(Record):
    """A file of the bundle."""

    file: str
    sha256: Sha256


class SequenceModels(Record):
    """The sequence models of train-rnn: their settings, the width D of the embeddings they read, their files."""

    kind: Literal["correction"]
    dim: Count
    config: Rnn
    files: list[BundledFile]


class ContextualModels(Record):
    """The sequence models of weights that others published, in the same words."""

    kind: Literal["contextual"]
    dim: Count
    config: Context
    files: list[BundledFile]


class LevelCalibration(Record):
    """Label by label: the sequence model's share of the blend, then slope and intercept of the blend's logit."""

    share: list[Share]
    slope: list[Annotated[float, Field(gt=0)]]
    intercept: list[float]


class Calibrations(Record):
    """How logits become probabilities.

    `kernel`: label by label the weights of the slices one, two and three away, by which the base's slices are smoothed
    before the blend; none in a bundle that leaves them as they are.
    """

    slices: LevelCalibration
    studies: LevelCalibration
    kernel: list[list[Share]]


class Familiar(BundledFile):
    """What embeddings are usual; 99 % of the training studies stay below the distance `limit` off their axes."""

    limit: float


class OperatingPoints(Record):
    """Thresholds of study probabilities, a label each; null where too few studies were at hand to choose one."""

    sensitivity: Share
    """That share of the studies with a label reaches `absent_below`, out of fold."""
    specificity: Share
    """That share of the studies without a label stays below `present_from`, out of fold."""
    basis: str
    absent_below: list[Share | None]
    present_from: list[Share | None]


class TrainingSettings(Record):
    """The settings of the sequence models' training."""

    rnn: Rnn
    train: Train


class Training(Record):
    """What a bundle was trained on, and how."""

    studies: Count
    patients: Count
    slices: Count
    positive_slices: ByLabel[Count]
    positive_studies: ByLabel[Count]
    lengths: dict[str, Count]
    """How many studies have so many slices."""
    features_fingerprint: Fingerprint
    settings: TrainingSettings
    versions: dict[str, str]
    studies_without_labels: Count
    networks_unchanged: Count
    """Sequence models that learnt nothing that held, and add nothing."""
    duplicate_label_rows: Count
    labels_sha256: Sha256
    studies_in_sample: Count = ABSENT
    """Those whose features came of an encoder that learnt from their patients, so that all figures are too good."""
    final_encoder: bool = ABSENT
    """Whether the encoder learnt from all patients; the figures are then of others, one a fold, made as it was."""


class TheirFigures(Record):
    """Areas under the curve, as the authors give them."""

    data: str
    slice_auc: ByLabel[Share]
    study_auc: ByLabel[Share]


class Published(Record):
    """Whose weights they are; `differences` are sentences about what is done otherwise here."""

    source: str
    licence: str
    revision: str
    sha256: dict[str, Sha256]
    training_data: str
    figures_of_its_authors: TheirFigures | None
    """Null for weights of another revision than that which they are of."""
    differences: list[str]


class DrawnHeads(Record):
    """The phantoms that the encoder learnt from first."""

    studies: Count
    seed: Count
    matrix: Count


class DrawnBleeds(Record):
    """The copies of the patients with bleeds drawn in that the encoder learnt from next, and their labelled slices."""

    copies: Count
    seed: Count
    slices: Count


class InputHashes(Record):
    """The SHA-256 of what the recipe read: labels, DICOM files (of their `sha256sum`, by name), settings."""

    labels: Sha256
    dicom: Sha256
    recipe: Sha256


class Provenance(Record):
    """Whence a bundle comes that tools/train_bundled.py made."""

    data: str
    citation: str
    licence: str
    recipe: str
    phantoms: DrawnHeads
    drawn_bleeds: DrawnBleeds = ABSENT
    sha256_of_inputs: InputHashes
    folds_sha256: Sha256
    encoder_settings: CnnSettings
    encoder_figures: dict[Literal["constant", "position", "cnn"], Figures]


class Card(Record):
    """bundle.json: the model card. A bundle of train-rnn has `training`, one of others' weights `published`."""

    schema_: str = marked(bundle.SCHEMA)
    version: str
    intended_use: str
    labels: list[str] = Field(json_schema_extra={"const": list(LABELS)})
    encoders: list[BundledEncoder]
    execution: Execution
    rnn: SequenceModels | ContextualModels
    calibration: Calibrations
    familiar: Familiar | None
    """Null where nothing tells what the training data were like."""
    operating_points: OperatingPoints = ABSENT
    training: Training = ABSENT
    figures: dict[Literal["constant", "position", "cnn", "slice_logistic", "rnn", "blend"], Figures] = ABSENT
    """Out of fold; of a bundle of train-rnn."""
    published: Published = ABSENT
    provenance: Provenance = ABSENT
