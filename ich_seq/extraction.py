"""extract-features: a folder of DICOM files into a feature store."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ich_seq import NothingUsableError, __version__, windows
from ich_seq.config import Config
from ich_seq.devices import choose_device
from ich_seq.encoder import EncoderSpec, SliceEncoder, build_encoder, embed, save_encoder
from ich_seq.files import locked_folder, short_hash, write_bytes
from ich_seq.hounsfield import read_hounsfield
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Refused, Unused, unused_csv
from ich_seq.store import ENCODER, REJECTED, StoreWriter, StudyFeatures
from ich_seq.studies import Findings, Geometry, Study, check_input, common_normal, describe, find_studies

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What became of every file seen: `files` = `used` + `excluded` + `rejected`; `reasons` counts the latter two."""

    files: int
    used: int
    excluded: int
    rejected: int
    reasons: dict[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionSummary:
    """What a run of extract-features did, and where it lies."""

    out: Path
    studies: int
    counts: Counts


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedStudy:
    """A study after the encoder: its features (None if no slice could be read) and the slices lost.

    `geometry` is that of the slices that are left.
    """

    study: Study
    features: StudyFeatures | None
    geometry: Geometry
    refused: tuple[Unused, ...]


def extract_features(
    root: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> ExtractionSummary:
    """Embed every slice below `root` and write the feature store `out`; take up a broken run where it ended.

    `workers` threads and processes read ahead of the encoder (None: one a core); the bytes written do
    not depend on them. Raises NothingUsableError if no slice of `root` is usable (rejected.csv then
    says why), OutputError if `out` cannot be written or another process holds it.
    """
    root, out, config = Path(root), Path(out), config or Config()
    workers = default_workers() if workers is None else workers
    check_input(root)
    processor = choose_device(device)
    encoder = build_encoder(config).to(processor)
    with locked_folder(out):
        findings = find_studies(root, skip=out, workers=workers, progress=progress)
        writer = StoreWriter(out, _fingerprint(encoder.spec, processor))
        save_encoder(encoder, out / ENCODER)
        refused = _grow(writer, findings, encoder, workers, progress)
        return _close(writer, findings, refused, encoder.spec)


def _fingerprint(spec: EncoderSpec, device: torch.device) -> str:
    """Return 16 hex digits that differ if any byte of a study's file could: another release may read otherwise."""
    return short_hash(" ".join([spec.fingerprint, __version__, torch.__version__, device.type]))


def default_workers() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _grow(
    writer: StoreWriter, findings: Findings, encoder: SliceEncoder, workers: int, progress: Progress
) -> list[Unused]:
    """Bring every study that is not there yet into the store; return the slices that could not be read."""
    missing = [study for study in findings.studies if not writer.has(_input_key(study))]
    refused: list[Unused] = []
    done = len(findings.studies) - len(missing)
    for embedded in embed_studies(missing, encoder, workers=workers):
        refused.extend(embedded.refused)
        if embedded.features is not None:
            key, geometry = _input_key(embedded.study), asdict(embedded.geometry)
            writer.add(key, embedded.features, geometry, whole=not embedded.refused)
        done += 1
        progress("embedding studies", done, len(findings.studies))
    return refused


def _input_key(study: Study) -> str:
    """Return a hash that changes when a file of the study is added, removed, renamed or written anew."""
    return short_hash(repr([(h.file, h.sop_uid, h.file_bytes, h.modified_ns) for h in study.slices]))


def _close(writer: StoreWriter, findings: Findings, refused: list[Unused], spec: EncoderSpec) -> ExtractionSummary:
    """Finish the store and sum it up; refuse to call an empty store a result."""
    unused, counts = account(findings, refused)
    if not counts.used:
        rejected = writer.root / REJECTED
        write_bytes(rejected, unused_csv(unused))
        raise NothingUsableError(f"None of the {counts.files} files is a usable CT slice; see {rejected}.")
    keys = [key for study in findings.studies if writer.has(key := _input_key(study))]
    writer.close(keys, unused_csv(unused), {"encoder": asdict(spec), "counts": asdict(counts)})
    return ExtractionSummary(out=writer.root, studies=len(keys), counts=counts)


def account(findings: Findings, refused: Sequence[Unused]) -> tuple[list[Unused], Counts]:
    """Return every file that is no slice of a study, sorted, the later `refused` among them, and the counts of all."""
    unused = sorted([*findings.unused, *refused], key=lambda u: u.file)
    fates = Counter(u.fate for u in unused)
    counts = Counts(
        files=findings.n_files,
        used=findings.n_files - len(unused),
        excluded=fates["excluded"],
        rejected=fates["rejected"],
        reasons=dict(sorted(Counter(str(u.reason) for u in unused).items())),
    )
    return unused, counts


def embed_studies(studies: Iterable[Study], encoder: SliceEncoder, *, workers: int) -> Iterator[EmbeddedStudy]:
    """Embed studies one by one, in their order, while `workers` threads read the next ones.

    A study is always cut into the same batches, so its features depend on nothing but itself.
    """

    def read(study: Study) -> tuple[Study, NDArray[np.float32], list[int], list[Unused]]:
        return study, *read_study(study, encoder.spec)

    for study, hu, kept, refused in _ahead(read, studies, workers):
        features = None
        if kept:
            embedded = embed(encoder, torch.from_numpy(hu))
            features = StudyFeatures(
                study_uid=study.uid,
                patient_key=short_hash(study.patient_id),
                sop_uids=tuple(study.slices[i].sop_uid for i in kept),
                positions_mm=study.positions_mm[kept],
                features=embedded.numpy().astype(np.float16),
            )
        geometry = study.geometry
        if features is not None and refused:
            geometry = describe(features.positions_mm, common_normal(study.slices))
        yield EmbeddedStudy(study=study, features=features, geometry=geometry, refused=tuple(refused))


def read_study(study: Study, spec: EncoderSpec) -> tuple[NDArray[np.float32], list[int], list[Unused]]:
    """Read the pixels of a study, resampled for the encoder.

    Returns HU (n, S, S) of the slices that could be read, their indices among the study's N, and the
    others with the reason. One bad slice costs itself only.
    """
    images, kept, refused = [], [], []
    for index, header in enumerate(study.slices):
        try:
            hu = read_hounsfield(header)
        except Refused as refusal:
            refusal.study_uid = study.uid
            refused.append(refusal.verdict(header.file))
            continue
        images.append(windows.resample(hu, header.spacing_mm, field_mm=spec.field_mm, size=spec.size))
        kept.append(index)
    return np.stack(images) if images else np.empty((0, spec.size, spec.size), np.float32), kept, refused


def _ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map in order, with `workers` results ahead of the one in use; 0 makes each when it is asked for."""
    if workers < 1:
        yield from map(read, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
