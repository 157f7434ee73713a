"""What is in the JSON that commands print and write, as JSON Schemas (draft 2020-12).

    python -m ich_seq.schemas            the names of all schemas
    python -m ich_seq.schemas bundle     that of bundle.json

Tests hold them against what commands write. A later version may add keys: a program should pass over those that it
does not know. Nothing here is needed to run a command.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from ich_seq import UsageError, __version__, export
from ich_seq.analysis_records import Evaluation, Exploration
from ich_seq.labels import LABELS
from ich_seq.records import (
    ABSENT,
    ByLabel,
    Calibrations,
    Card,
    CnnRun,
    Count,
    Figures,
    Files,
    Manifest,
    PredictRun,
    Record,
    Sha256,
    marked,
)
from ich_seq.tables import printable


class ReadingOutput(Files):
    """What every command that reads DICOM files prints: where the result lies, and what became of the files."""

    out: str
    studies: Count


class ExploreOutput(ReadingOutput):
    """explore --json."""

    exploration: Exploration


class TrainCnnOutput(ReadingOutput):
    """train-cnn --json: the folds trained by now, whether the final network is too, and figures out of fold."""

    folds: list[Count]
    final: bool
    figures: dict[Literal["constant", "position", "cnn"], Figures]


class TrainRnnOutput(Record):
    """train-rnn --json."""

    out: str
    studies: Count
    unlabelled: list[str]
    """Studies left out for want of labels."""
    duplicate_label_rows: Count
    networks: Count
    unchanged: Count
    figures: dict[Literal["constant", "position", "cnn", "slice_logistic", "rnn", "blend"], Figures]


class Sent(Record):
    """send --json, and `sent` of predict: what an archive took; `refused` says why by file."""

    stored: Count
    refused: dict[str, str]


class PredictOutput(ReadingOutput):
    """predict --json."""

    dicom_results: Count = ABSENT
    """With --sr: DICOM objects written."""
    not_written: Count = ABSENT
    """With --sr: studies that have none."""
    sent: Sent = ABSENT
    """With --send."""


class WatchOutput(Record):
    """watch --json: a line a study, when it has been worked through."""

    study_uid: str
    fate: Literal["predicted", "unusable", "failed"]
    reason: str
    """Why there is no result, else empty."""
    again: bool
    probabilities: ByLabel[float | None] | None
    slices: Count
    lost_slices: Count
    folder: str


class WithoutResult(Record):
    """A study that has no result, and why."""

    fate: Literal["unusable", "failed"]
    reason: str


class WatchRun(PredictRun):
    """run.json of watch: written anew after each study."""

    without_result: dict[str, WithoutResult]
    """By Study Instance UID."""


class LibraryEntry(Record):
    """Weights of the library, and weights add --json."""

    name: str
    kind: Literal["bundle", "encoder"]
    source: str
    arch: str
    licence: str | None
    notes: str | None
    added: str
    files: dict[str, Sha256]


class DamagedEntry(Record):
    """Weights whose record cannot be read."""

    name: str
    damaged: list[str]


class WeightsListOutput(Record):
    """weights list --json."""

    library: str
    weights: list[LibraryEntry | DamagedEntry]
    shipped: str
    """The name of the bundle that comes with the package; it is none of the library's."""


class WeightsVerifyOutput(Record):
    """weights verify --json: by name what is wrong, nothing where nothing is."""

    library: str
    damaged: dict[str, list[str]]


class ExportOutput(Record):
    """export --json: by file how far a graph's numbers lie from its network's, at most."""

    out: str
    furthest_from_its_network: dict[str, float]


class ExportedSlices(Record):
    """How the slices are made that an exported encoder takes."""

    size: Count
    field_mm: float
    air_hu: float
    neighbours: list[int]
    beyond_the_ends: Literal["air", "the first or last slice"]
    windows_hu_inside: list[tuple[float, float]]
    """Level and width; the graph applies them itself."""


class ExportedModel(Record):
    """model.json of export: all that is not in the graphs."""

    schema_: str = marked(export.SCHEMA)
    version: str
    bundle_card_sha256: Sha256
    intended_use: str
    labels: list[str] = Field(json_schema_extra={"const": list(LABELS)})
    slices: ExportedSlices
    encoders: list[str]
    sequence_models: list[str]
    largest_logit_of_a_study_by_its_slices: float | None
    calibration: Calibrations
    files: dict[str, Sha256]
    furthest_from_its_network: dict[str, float]


class EvaluateOutput(Evaluation):
    """evaluate --json: evaluation.json, and where it lies."""

    out: str


class DemoOutput(Record):
    """demo --json; with --real it prints what predict does."""

    out: str
    figures: dict[str, Figures]
    explanation: str


SCHEMAS: dict[str, type[Record]] = {
    "run": PredictRun,
    "watch-run": WatchRun,
    "cnn-run": CnnRun,
    "manifest": Manifest,
    "bundle": Card,
    "model": ExportedModel,
    "evaluation": Evaluation,
    "exploration": Exploration,
    "explore-output": ExploreOutput,
    "train-cnn-output": TrainCnnOutput,
    "extract-features-output": ReadingOutput,
    "train-rnn-output": TrainRnnOutput,
    "predict-output": PredictOutput,
    "watch-output": WatchOutput,
    "evaluate-output": EvaluateOutput,
    "demo-output": DemoOutput,
    "send-output": Sent,
    "weights-add-output": LibraryEntry,
    "weights-list-output": WeightsListOutput,
    "weights-verify-output": WeightsVerifyOutput,
    "export-output": ExportOutput,
}
"""Files by their name (run.json of watch as watch-run, of train-cnn as cnn-run), what COMMAND --json prints as
COMMAND-output."""


class _Generator(GenerateJsonSchema):
    """Draft 2020-12, with no default for keys that may be absent, and no titles that repeat a key."""

    def default_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(name: str) -> dict[str, Any]:
    """Return a schema by its name in SCHEMAS, as JSON values. Raises UsageError for another name."""
    if name not in SCHEMAS:
        raise UsageError(f"There is no schema {printable(name)}; known are {', '.join(SCHEMAS)}.")
    described = TypeAdapter(SCHEMAS[name]).json_schema(schema_generator=_Generator)
    head = {"$schema": _Generator.schema_dialect, "$id": f"urn:ich-seq:{__version__}:{name}"}
    return head | described


def main(arguments: list[str]) -> str:
    """Return what `python -m ich_seq.schemas` prints."""
    return json.dumps(json_schema(arguments[0]), indent=2) if arguments else "\n".join(SCHEMAS)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except UsageError as error:
        sys.exit(str(error))
