"""OUT/sr/: predictions as DICOM objects that an archive files beside the images, a report and a key selection a study.

    sr/<hash>-sr.dcm     Comprehensive 3D SR, of every study
    sr/<hash>-kos.dcm    Key Object Selection, of those where a look is called for
    sr/not_written.csv   studies that can have neither, and why

They name the patient, as an archive files them by that: only their owner may read them, and only where they are asked
for are they written. Objects of the same study, slices, bundle and version have the same UIDs, so that a second run
replaces those of the first; their dates are those of SOURCE_DATE_EPOCH where that is set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ich_seq import OutputError, UsageError, __version__
from ich_seq.codes import Verdict
from ich_seq.distributed import Group
from ich_seq.files import PARTIAL, make_folder, remove, sha256_file, short_hash, write_bytes
from ich_seq.highlights import KEY_APART, KEY_SLICES, flags, incomplete, key_slices
from ich_seq.labels import LABELS
from ich_seq.operating_points import SENSITIVITY, SPECIFICITY, OperatingPoints
from ich_seq.reasons import Reason, Refused
from ich_seq.report import StudyPrediction
from ich_seq.studies import Study
from ich_seq.study_identity import Reference, StudyIdentity, read_identity
from ich_seq.tables import csv_rows, printable

if TYPE_CHECKING:
    from ich_seq.bundle import Bundle
    from ich_seq.structured_report import Report

FOLDER, NOT_WRITTEN = "sr", "not_written.csv"
OURS = re.compile(rf"([0-9a-f]{{16}}-(sr|kos)\.dcm|{re.escape(NOT_WRITTEN)})({re.escape(PARTIAL)})?")
"""What is written into the folder, and what a kill leaves of it."""

ANY = LABELS.index("any")
CLOCK = "SOURCE_DATE_EPOCH"
"""Seconds since 1970, as reproducible-builds.org has it: the moment that stands in what would hold the present one."""

RULE = (
    f"Present: at or above the probability that {SPECIFICITY:.0%} of the studies without this finding stay below. "
    f"Absent: below the one that {SENSITIVITY:.0%} of those with it reach; both of studies not learnt from. Else "
    "Undetermined, as is all for which too few studies were at hand, and instead of Absent whatever is said of a study "
    "with slices lost, gaps or less than 100 mm of a head, or unlike the training data."
)

SELECTION = (
    "Research use only, not for diagnosis. The likeliest slices of any intracranial haemorrhage, by ich-seq, "
    f"{KEY_SLICES} at most and at least {KEY_APART} slices apart."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultSource:
    """What made a prediction: the version of the package, the bundle's card and weights by SHA-256, its thresholds."""

    version: str
    card_sha256: str
    weights: Mapping[str, str]
    operating_points: OperatingPoints
    intended_use: str

    @classmethod
    def of(cls, bundle: Bundle) -> ResultSource:
        """Return what identifies a bundle under this version; weights go by the name of their file."""
        card = bundle.card
        named = (*card["encoders"], *card["rnn"]["files"], *([card["familiar"]] if card["familiar"] else []))
        return cls(
            version=__version__,
            card_sha256=bundle.card_sha256,
            weights={entry["file"]: entry["sha256"] for entry in named},
            operating_points=bundle.operating_points,
            intended_use=card["intended_use"],
        )


@dataclass(frozen=True, slots=True)
class NotWritten:
    """A study without DICOM results, and why. `detail` is a sentence."""

    study_uid: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class DicomResults:
    """Writes the results of each study as it is predicted, below `out`, and in the end the list of those without."""

    out: Path
    source: ResultSource
    written: list[Path] = field(default_factory=list)
    not_written: list[NotWritten] = field(default_factory=list)

    def write_study(self, study: Study, prediction: StudyPrediction) -> None:
        """Write what one study has, or note why it has nothing. Raises OutputError."""
        try:
            self.written.extend(write_dicom_results(self.out / FOLDER, study, prediction, self.source))
        except Refused as refusal:
            self.not_written.append(NotWritten(study.uid, refusal.reason, refusal.detail))

    def joined(self, group: Group) -> DicomResults:
        """Return, to the first process of a group, what all have written and not written."""
        return replace(self, written=group.collect(self.written), not_written=group.collect(self.not_written))

    def close(self) -> dict[str, str]:
        """Write not_written.csv; return the SHA-256 of every file by its path below `out`. Raises OutputError."""
        make_folder(self.out / FOLDER)
        table = self.out / FOLDER / NOT_WRITTEN
        self.written.sort()
        self.not_written.sort(key=lambda n: n.study_uid)
        rows = ((n.study_uid, str(n.reason), n.detail) for n in self.not_written)
        write_bytes(table, csv_rows([("study_uid", "reason", "detail"), *rows]))
        return {path.relative_to(self.out).as_posix(): sha256_file(path) for path in (*self.written, table)}


def check_can_write() -> None:
    """Raise UsageError now for what would fail at the first study: no highdicom, a clock that tells no time."""
    try:
        import_module("ich_seq.structured_report")
    except ImportError as error:
        raise UsageError(f"DICOM results need {error.name or 'highdicom'}: pip install 'ich-seq[pacs]'") from error
    moment()


def clear_dicom_results(out: Path) -> None:
    """Take away what an older run left; what else is in the folder is not ours. Raises OutputError."""
    folder = out / FOLDER
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link, and its files are none of ours; remove it or choose another --out.")
    remove(path for path in folder.glob("*") if OURS.fullmatch(path.name))
    with suppress(OSError):  # it is not there, or holds something of somebody's
        folder.rmdir()


def dicom_results_in(out: Path) -> list[Path]:
    """Return the objects that lie in a folder of results; what else is in there is not ours to send on."""
    return sorted(path for path in (out / FOLDER).glob("*.dcm") if OURS.fullmatch(path.name))


def write_dicom_results(
    folder: Path, study: Study, prediction: StudyPrediction, source: ResultSource
) -> tuple[Path, ...]:
    """Write the report of a study into a folder, and a selection of its key slices if a look is called for.

    Returns the paths, the report's first; those of an older run are replaced or removed. No selection is written where
    the probability of any haemorrhage is below its threshold of Absent, whatever makes the study doubtful, and no label
    is Present. Raises Refused as `read_identity` does, for a study that cannot have any; OutputError, UsageError.
    """
    report_path, selection_path = (folder / f"{short_hash(study.uid)}-{kind}.dcm" for kind in ("sr", "kos"))
    remove([report_path, selection_path])
    headers = {header.sop_uid: header for header in study.slices}
    identity = read_identity([headers[uid] for uid in prediction.sop_uids])
    from ich_seq.structured_report import key_object_selection, structured_report

    verdicts = source.operating_points.verdicts(prediction.result.probabilities, doubtful=incomplete(prediction.result))
    report = _report(identity, prediction, source, verdicts)
    make_folder(folder)
    write_bytes(report_path, structured_report(report), private=True)
    if not _of_interest(prediction, source.operating_points, verdicts):
        return (report_path,)
    chosen = report.findings[ANY].slices
    write_bytes(selection_path, key_object_selection(report, chosen, SELECTION), private=True)
    return report_path, selection_path


def moment() -> datetime:
    """Return when this is, to the second: by the clock, or by SOURCE_DATE_EPOCH in UTC. Raises UsageError."""
    given = os.environ.get(CLOCK)
    if given is None:
        return datetime.now().replace(microsecond=0)
    try:
        if not given.isascii() or not given.isdecimal():
            raise ValueError
        return datetime.fromtimestamp(int(given), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{CLOCK} is no number of seconds since 1970; unset it.") from None


def _report(
    identity: StudyIdentity, prediction: StudyPrediction, source: ResultSource, verdicts: Sequence[Verdict]
) -> Report:
    from ich_seq.structured_report import RESEARCH_ONLY, Algorithm, Finding, Report

    result, of_slices = prediction.result, prediction.slice_probabilities
    findings = tuple(
        Finding(label=label, probability=float(p), verdict=verdict, slices=_chosen(identity, of_slices[:, k]))
        for k, (label, p, verdict) in enumerate(zip(LABELS, result.probabilities, verdicts, strict=True))
    )
    hashes = {"bundle.json": source.card_sha256, **source.weights}
    doubts = flags(result)
    return Report(
        identity=identity,
        algorithm=Algorithm(
            version=source.version,
            parameters=tuple(f"{file} SHA-256 {sha256}" for file, sha256 in hashes.items()),
            key=f"{source.version} {source.card_sha256}",
        ),
        findings=findings,
        comments=(
            RESEARCH_ONLY,
            f"Intended use: {printable(source.intended_use)}",
            RULE,
            *([f"To know of this study: {'; '.join(doubts)}."] if doubts else []),
        ),
        slices_lost=result.lost_slices,
        moment=moment(),
    )


def _chosen(identity: StudyIdentity, probabilities: NDArray[np.float64]) -> tuple[Reference, ...]:
    """Return the slices to look at for a label, feet to head: the same rule as on the study's page."""
    return tuple(identity.references[index] for index in key_slices(probabilities))


def _of_interest(prediction: StudyPrediction, points: OperatingPoints, verdicts: Sequence[Verdict]) -> bool:
    below = points.absent_below[ANY]
    return below is None or not prediction.result.probabilities[ANY] < below or Verdict.PRESENT in verdicts
