"""predict: a bundle and a folder of DICOM files into probabilities for every slice and study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ich_seq import NothingUsableError, __version__
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.devices import choose_device, choose_workers, keep_memory
from ich_seq.extraction import Networks, embed_studies
from ich_seq.files import locked_folder, remove, sha256_file, write_bytes, write_json
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Unused, unused_csv
from ich_seq.report import (
    RUN,
    SLICES,
    STUDIES,
    SUBMISSION,
    StudyPrediction,
    write_slices,
    write_studies,
    write_submission,
)
from ich_seq.store import REJECTED
from ich_seq.studies import Counts, Findings, Study, account, check_input, find_studies
from ich_seq.study_pages import StudyPages

TABLES = (STUDIES, SLICES, SUBMISSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionSummary:
    """What a run of predict did, and where it lies."""

    out: Path
    studies: int
    counts: Counts
    predictions: tuple[StudyPrediction, ...]


def predict(
    root: str | Path,
    bundle: str | Path,
    out: str | Path,
    *,
    engine: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    report: bool = True,
    patient_ids: bool = False,
    progress: Progress = silent,
) -> PredictionSummary:
    """Predict every study below `root` and write studies.csv, slices.csv, submission.csv, rejected.csv, run.json.

    With `report` also pages to look at: report.html, and one a study in report/, with pictures of key slices.

    The bundle's own encoders are used, so no setting can disagree with its training; `engine` says what
    runs them, if not what did then. Patients are numbered; their Patient ID is written only where `patient_ids` asks
    for it. Raises NothingUsableError if no slice is usable (rejected.csv then says why), ArtefactError for a damaged
    bundle, OutputError if `out` cannot be written.
    """
    root, bundle, out = Path(root), Path(bundle), Path(out)
    workers = choose_workers(workers)
    check_input(root)
    keep_memory()
    loaded = load_bundle(bundle, choose_device(device), engine)
    with locked_folder(out):
        pages = StudyPages(out, loaded)
        pages.clear()
        remove(out / name for name in (RUN, *TABLES, REJECTED))  # what an older run left is no result of this one
        findings = find_studies(root, skip=out, workers=workers, progress=progress)
        refused: list[Unused] = []
        draw = pages.write_study if report else None
        predictions = tuple(_predict_studies(findings, loaded, workers, progress, refused, patient_ids, draw))
        unused, counts = account(findings, refused)
        write_bytes(out / REJECTED, unused_csv(unused))
        if not predictions:
            raise NothingUsableError(f"None of the {counts.files} files is a usable CT slice; see {out / REJECTED}.")
        write_studies(out / STUDIES, predictions)
        write_slices(out / SLICES, predictions)
        write_submission(out / SUBMISSION, predictions)
        if report:
            pages.write_worklist(predictions, counts)
        _write_record(out, len(predictions), loaded, counts)
    return PredictionSummary(out=out, studies=len(predictions), counts=counts, predictions=predictions)


def _predict_studies(
    findings: Findings,
    bundle: Bundle,
    workers: int,
    progress: Progress,
    refused: list[Unused],
    patient_ids: bool,
    draw: Callable[[Study, StudyPrediction], None] | None,
) -> Iterator[StudyPrediction]:
    """Yield the studies' predictions in order; slices that cannot be read go to `refused`."""
    lost = Counter(u.study_uid for u in findings.unused if u.fate == "rejected")
    networks = Networks(bundle.embedders, lambda patient_key, study_uid: (tuple(bundle.embedders), False))
    embedded = embed_studies(findings.studies, networks, workers=workers)
    patients: dict[str, int] = {}
    for done, item in enumerate(embedded, start=1):
        refused.extend(item.refused)
        if item.features:
            said = bundle.beside(item.features)
            prediction = StudyPrediction(
                study_uid=item.study.uid,
                patient=patients.setdefault(item.study.patient_id, len(patients) + 1),
                patient_id=_patient_id(item.study) if patient_ids else None,
                matrix=item.study.matrix,
                scanner=item.study.scanner,
                sop_uids=item.features[0].sop_uids,
                positions_mm=item.features[0].positions_mm,
                slice_probabilities=said["blend"].slices,
                study_probabilities=said["blend"].studies[0],
                beside=said,
                geometry=item.geometry,
                lost_slices=len(item.refused) + lost[item.study.uid],
                novelty=bundle.novelty(item.features),
            )
            if draw is not None:
                draw(item.study, prediction)
            yield prediction
        progress("predicting studies", done, len(findings.studies))


def _patient_id(study: Study) -> str:
    """Return the Patient ID as the files have it; the name that stands in for an empty one is nobody's ID."""
    return min((h.patient_id for h in study.slices if h.patient_id), default="")


def _write_record(out: Path, studies: int, bundle: Bundle, counts: Counts) -> None:
    """Write, last, the record that makes the tables whole."""
    record = {
        "version": __version__,
        "card_sha256": bundle.card_sha256,
        "intended_use": bundle.card["intended_use"],
        "execution": asdict(next(iter(bundle.embedders.values())).execution),
        "counts": asdict(counts),
        "studies": studies,
        "files": {name: sha256_file(out / name) for name in (*TABLES, REJECTED)},
    }
    write_json(out / RUN, record)
