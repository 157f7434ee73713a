"""predict: a bundle and a folder of DICOM files into probabilities for every slice and study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ich_seq import __version__
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.devices import choose_workers, keep_memory
from ich_seq.dicom_results import DicomResults, NotWritten, ResultSource, check_can_write, clear_dicom_results
from ich_seq.distributed import own_device, working_group
from ich_seq.extraction import EmbeddedStudy, Networks, embed_studies
from ich_seq.files import remove, sha256_file, spare_others, write_bytes, write_json
from ich_seq.prediction_parts import Case, Predicted, cases_of, clear_parts, through_parts
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
    slice_table_rows,
    slice_tables,
    write_studies,
)
from ich_seq.shared_folder import Turn, held_together
from ich_seq.shared_search import deal_studies
from ich_seq.sources import Source, check_source, found_studies, nothing_usable
from ich_seq.store import REJECTED
from ich_seq.studies import Counts, Findings, Study, account
from ich_seq.study_pages import StudyPages
from ich_seq.weight_library import bundle_folder

TABLES = (STUDIES, SLICES, SUBMISSION)
WriteStudy = Callable[[Study, StudyPrediction], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionSummary:
    """What a run of predict did, and where it lies; `results` say of each study what studies.csv says.

    `dicom_results` are the DICOM objects that were written, if any were asked for, `not_written` the studies without.
    """

    out: Path
    studies: int
    counts: Counts
    results: tuple[StudyResult, ...]
    dicom_results: tuple[Path, ...] = ()
    not_written: tuple[NotWritten, ...] = ()


def predict(
    source: Source,
    bundle: str | Path,
    out: str | Path,
    *,
    engine: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    report: bool = True,
    sr: bool = False,
    phi: bool = False,
    progress: Progress = silent,
) -> PredictionSummary:
    """Predict every study of `source` and write studies.csv, slices.csv, submission.csv, rejected.csv, run.json.

    `source` is one path or several (folders, files, zip archives, DICOMDIRs), or `sources.ArchivedStudies`, which are
    fetched into `out` for the time of the run (ArchiveError if none can be had).

    With `report` also pages to look at: report.html, and one a study in report/, with pictures of key slices. With `sr`
    also DICOM objects for an archive, which name the patient, in sr/: see `dicom_results`.

    `bundle` is a folder or, where there is none, the name of one in the library of weights (see `weight_library`).
    The bundle's own encoders are used, so no setting can disagree with its training; `engine` says what
    runs them, if not what did then. Patients are numbered and files known by a hash; Patient IDs
    and file names are written only where `phi` asks for them. Raises NothingUsableError if no slice is usable
    (rejected.csv then says why), ArtefactError for a damaged bundle, OutputError if `out` cannot be written.

    Started by torchrun, the processes share out the studies; a folder and `out` must be the same for all, and
    what is left in `out` is the same too.
    """
    bundle, out = Path(bundle), Path(out)
    workers = choose_workers(workers)
    with working_group() as group:
        loaded = group.agree(lambda: _ready(source, bundle, out, device, engine, sr))
        group.same(f"{_manner(loaded)} {report} {sr} {phi}")
        with held_together(out, group) as turn:
            pages = StudyPages(out, loaded)
            group.lead(lambda: _clear(out, pages))
            shown, filed = pages if report else None, DicomResults(out, ResultSource.of(loaded)) if sr else None
            write_study = [each.write_study for each in (shown, filed) if each is not None]
            with found_studies(source, out, group, workers=workers, hide_names=not phi, progress=progress) as findings:
                cases = deal_studies(cases_of(findings), {s.uid: len(s.slices) for s in findings.studies}, group)
                refused: list[Unused] = []
                predicted = predict_cases(cases, loaded, refused, workers=workers, phi=phi, progress=progress)
                done = _written(predicted, turn, write_study)
                if group.size > 1:
                    done = through_parts(done, turn)
                    refused = group.collect(refused)
                    filed = None if filed is None else filed.joined(group)
                return group.lead(lambda: _write_results(out, done, findings, refused, loaded, shown, filed))


def _ready(source: Source, bundle: Path, out: Path, device: str, engine: str | None, sr: bool) -> Bundle:
    """Check what is given, as far as one process can, and make the bundle ready."""
    check_source(source, out)
    spare_others(out, SLICES)
    if sr:
        check_can_write()
    keep_memory()
    return load_bundle(bundle_folder(bundle), own_device(device), engine)


def _manner(bundle: Bundle) -> str:
    """Return what differs if any byte of the results could, of the same input."""
    runs = [f"{embedder.device.type} {embedder.execution}" for embedder in bundle.embedders.values()]
    return " ".join([__version__, torch.__version__, bundle.card_sha256, *runs])


def _clear(out: Path, pages: StudyPages) -> None:
    """Take away what an older run left and is no result of this one.

    First goes what vouches, then the table that readers ask for.
    """
    remove(out / name for name in (RUN, SLICES, STUDIES, SUBMISSION, REJECTED))
    pages.clear()
    clear_dicom_results(out)
    clear_parts(out)


def _write_results(
    out: Path,
    predicted: Iterable[Predicted],
    findings: Findings,
    refused: list[Unused],
    bundle: Bundle,
    pages: StudyPages | None,
    dicom: DicomResults | None,
) -> PredictionSummary:
    """Write the tables, what was not used and, last, the record; what was lost grows while studies are predicted."""
    with slice_tables(out) as write_slices:
        results = []
        for study in predicted:
            write_slices(study.rows)
            results.append(study.result)
        unused, counts = account(findings, refused)
        write_bytes(out / REJECTED, unused_csv(unused))
        if not results:
            raise nothing_usable(unused, counts, out / REJECTED)
        write_studies(out / STUDIES, results)  # before slices.csv, which makes the folder readable
    if pages is not None:
        pages.write_worklist(results, counts)
    _write_record(out, len(results), bundle, counts, {} if dicom is None else dicom.close())
    return PredictionSummary(
        out=out,
        studies=len(results),
        counts=counts,
        results=tuple(results),
        dicom_results=() if dicom is None else tuple(dicom.written),
        not_written=() if dicom is None else tuple(dicom.not_written),
    )


def predict_cases(
    cases: Sequence[Case], bundle: Bundle, refused: list[Unused], *, workers: int, phi: bool, progress: Progress
) -> Iterator[tuple[Case, StudyPrediction]]:
    """Yield the studies as they are predicted, in order; slices that cannot be read go to `refused`.

    A study of which no slice can be read is not among what is yielded.
    """
    networks = Networks(bundle.embedders, lambda patient_key, study_uid: (tuple(bundle.embedders), False))
    embedded = embed_studies([case.study for case in cases], networks, workers=workers)
    for done, (case, item) in enumerate(zip(cases, embedded, strict=True), start=1):
        refused.extend(item.refused)
        if item.features:
            yield case, _prediction(item, bundle, case, phi)
        progress("predicting studies", done, len(cases))


def _written(
    predicted: Iterable[tuple[Case, StudyPrediction]], turn: Turn, write_study: Sequence[WriteStudy]
) -> Iterator[Predicted]:
    """Write what goes with each study, as long as it is this run's turn, and yield the rows of the tables."""
    for case, prediction in predicted:
        turn.check()
        for write in write_study:
            write(case.study, prediction)
        yield Predicted(place=case.place, result=prediction.result, rows=slice_table_rows(prediction))


def _prediction(item: EmbeddedStudy, bundle: Bundle, case: Case, phi: bool) -> StudyPrediction:
    beside, features = bundle.beside(item.features), item.features[0]
    result = StudyResult(
        study_uid=item.study.uid,
        patient=case.patient,
        patient_id=_patient_id(item.study) if phi else None,
        matrix=item.study.matrix,
        scanner=item.study.scanner,
        slices=len(features.sop_uids),
        span_mm=float(features.positions_mm[-1] - features.positions_mm[0]),
        said=said_of_study(beside),
        geometry=item.geometry,
        lost_slices=len(item.refused) + case.lost,
        novelty=bundle.novelty(item.features),
    )
    return StudyPrediction(result=result, sop_uids=features.sop_uids, positions_mm=features.positions_mm, beside=beside)


def _patient_id(study: Study) -> str:
    """Return the Patient ID as the files have it; the name that stands in for an empty one is nobody's ID."""
    return min((h.patient_id for h in study.slices if h.patient_id), default="")


def made_by(bundle: Bundle) -> dict[str, Any]:
    """Return what a result says of what made it, as JSON values."""
    return {
        "version": __version__,
        "bundle": bundle.name,
        "card_sha256": bundle.card_sha256,
        "intended_use": bundle.card["intended_use"],
        "execution": asdict(next(iter(bundle.embedders.values())).execution),
    }


def _write_record(out: Path, studies: int, bundle: Bundle, counts: Counts, more: dict[str, str]) -> None:
    """Write, last, the record that makes the tables whole, and `more` files with their SHA-256."""
    record = made_by(bundle) | {
        "counts": asdict(counts),
        "studies": studies,
        "files": {name: sha256_file(out / name) for name in (*TABLES, REJECTED)} | more,
    }
    write_json(out / RUN, record)
