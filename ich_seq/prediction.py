"""predict: a bundle and a folder of DICOM files into probabilities for every slice and study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from ich_seq import NothingUsableError, __version__
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.devices import choose_device, choose_workers, keep_memory
from ich_seq.extraction import EmbeddedStudy, Networks, embed_studies
from ich_seq.files import locked_folder, remove, sha256_file, spare_others, write_bytes, write_json
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Unused, unused_csv
from ich_seq.report import (
    RUN,
    SLICES,
    STUDIES,
    SUBMISSION,
    StudyPrediction,
    StudyResult,
    said_of_study,
    slice_tables,
    write_studies,
)
from ich_seq.sources import Source, check_source, found_studies
from ich_seq.store import REJECTED
from ich_seq.studies import Counts, Findings, Study, account
from ich_seq.study_pages import StudyPages

TABLES = (STUDIES, SLICES, SUBMISSION)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionSummary:
    """What a run of predict did, and where it lies; `results` say of each study what studies.csv says."""

    out: Path
    studies: int
    counts: Counts
    results: tuple[StudyResult, ...]


def predict(
    source: Source,
    bundle: str | Path,
    out: str | Path,
    *,
    engine: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    report: bool = True,
    phi: bool = False,
    progress: Progress = silent,
) -> PredictionSummary:
    """Predict every study of `source` and write studies.csv, slices.csv, submission.csv, rejected.csv, run.json.

    `source` is a folder of DICOM files, or `sources.ArchivedStudies`, which are fetched into `out` for the time of the
    run (ArchiveError if none can be had, as `dicomweb.fetched` tells).

    With `report` also pages to look at: report.html, and one a study in report/, with pictures of key slices.

    The bundle's own encoders are used, so no setting can disagree with its training; `engine` says what
    runs them, if not what did then. Patients are numbered and files known by a hash; Patient IDs
    and file names are written only where `phi` asks for them. Raises NothingUsableError if no slice is usable
    (rejected.csv then says why), ArtefactError for a damaged bundle, OutputError if `out` cannot be written.
    """
    bundle, out = Path(bundle), Path(out)
    workers = choose_workers(workers)
    check_source(source, out)
    spare_others(out, SLICES)
    keep_memory()
    loaded = load_bundle(bundle, choose_device(device), engine)
    with locked_folder(out), ExitStack() as held:
        # what an older run left is no result of this one; first goes what vouches, then the table that readers ask for
        remove(out / name for name in (RUN, SLICES, STUDIES, SUBMISSION, REJECTED))
        pages = StudyPages(out, loaded)
        pages.clear()
        studies = found_studies(source, out, workers=workers, hide_names=not phi, progress=progress)
        findings = held.enter_context(studies)
        refused: list[Unused] = []
        with slice_tables(out) as write_slices:
            results = []
            for study, prediction in _predict_studies(findings, loaded, workers, progress, refused, phi):
                write_slices(prediction)
                if report:
                    pages.write_study(study, prediction)
                results.append(prediction.result)
            unused, counts = account(findings, refused)
            write_bytes(out / REJECTED, unused_csv(unused))
            if not results:
                raise NothingUsableError(
                    f"None of the {counts.files} files is a usable CT slice; see {out / REJECTED}."
                )
            write_studies(out / STUDIES, results)  # before slices.csv, which makes the folder readable
        if report:
            pages.write_worklist(results, counts)
        _write_record(out, len(results), loaded, counts)
    return PredictionSummary(out=out, studies=len(results), counts=counts, results=tuple(results))


def _predict_studies(
    findings: Findings, bundle: Bundle, workers: int, progress: Progress, refused: list[Unused], phi: bool
) -> Iterator[tuple[Study, StudyPrediction]]:
    """Yield the studies with their predictions in order; slices that cannot be read go to `refused`."""
    lost = Counter(u.study_uid for u in findings.unused if u.fate == "rejected")
    networks = Networks(bundle.embedders, lambda patient_key, study_uid: (tuple(bundle.embedders), False))
    embedded = embed_studies(findings.studies, networks, workers=workers)
    patients: dict[str, int] = {}
    for done, item in enumerate(embedded, start=1):
        refused.extend(item.refused)
        if item.features:
            number = patients.setdefault(item.study.patient_id, len(patients) + 1)
            yield item.study, _prediction(item, bundle, number, lost[item.study.uid], phi)
        progress("predicting studies", done, len(findings.studies))


def _prediction(item: EmbeddedStudy, bundle: Bundle, patient: int, lost: int, phi: bool) -> StudyPrediction:
    beside, features = bundle.beside(item.features), item.features[0]
    result = StudyResult(
        study_uid=item.study.uid,
        patient=patient,
        patient_id=_patient_id(item.study) if phi else None,
        matrix=item.study.matrix,
        scanner=item.study.scanner,
        slices=len(features.sop_uids),
        span_mm=float(features.positions_mm[-1] - features.positions_mm[0]),
        said=said_of_study(beside),
        geometry=item.geometry,
        lost_slices=len(item.refused) + lost,
        novelty=bundle.novelty(item.features),
    )
    return StudyPrediction(result=result, sop_uids=features.sop_uids, positions_mm=features.positions_mm, beside=beside)


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
