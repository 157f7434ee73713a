"""extract-features: a folder of DICOM files into a feature store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ich_seq import __version__, windows
from ich_seq.cnn_run import load_runs
from ich_seq.config import Config
from ich_seq.devices import choose_workers, keep_memory
from ich_seq.distributed import ALONE, Group, own_device, working_group
from ich_seq.encoder import EncoderSpec, build_encoder, save_encoder
from ich_seq.engines import Embedded, Embedder, Execution
from ich_seq.files import short_hash, spare_others, write_bytes
from ich_seq.hounsfield import read_hounsfield
from ich_seq.progress import Progress, silent
from ich_seq.readers import read_ahead, write_behind
from ich_seq.reasons import Refused, Unused, unused_csv
from ich_seq.shared_folder import Turn, held_together
from ich_seq.shared_search import deal_studies
from ich_seq.sources import Source, check_source, found_studies, nothing_usable
from ich_seq.store import MANIFEST, REJECTED, StoreWriter, StudyFeatures, encoder_file, part_journal
from ich_seq.studies import Counts, Findings, Geometry, Study, account, common_normal, describe

Images = NDArray[np.float32]
Pixels = tuple[Images, list[int], list[Unused]]
Runs = str | Path | Sequence[str | Path]
"""A folder of train-cnn, or several whose networks embed side by side."""

RowKeys = dict[str, list[str]]
"""The keys of a study's rows in the store, a network each, by Study Instance UID."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionSummary:
    """What a run of extract-features did, and where it lies; `in_sample` studies had only a network that knew them."""

    out: Path
    studies: int
    counts: Counts
    in_sample: int


@dataclass(frozen=True, slots=True)
class Networks:
    """The encoders of a run, by number, ready to work, and `choose`: which of them embed a study.

    `choose` takes a patient key and a study UID, and tells too whether the networks learnt from the patient. `final` is
    the one that is for new patients, if that is one of them.
    """

    embedders: dict[int, Embedder]
    choose: Callable[[str, str], tuple[tuple[int, ...], bool]]
    final: int | None = None

    def of(self, study: Study) -> tuple[tuple[int, ...], bool]:
        """Return the numbers of the networks that are to embed a study, and whether they learnt from its patient."""
        return self.choose(short_hash(study.patient_id), study.uid)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedStudy:
    """A study after the encoders: its features, a piece a network (none if no slice could be read), and slices lost.

    `geometry` is that of the slices that are left.
    """

    study: Study
    features: tuple[StudyFeatures, ...]
    in_sample: bool
    geometry: Geometry
    refused: tuple[Unused, ...]


def extract_features(
    source: Source,
    out: str | Path,
    config: Config | None = None,
    *,
    cnn: Runs | None = None,
    engine: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    phi: bool = False,
    progress: Progress = silent,
) -> ExtractionSummary:
    """Embed every slice of `source` and write the feature store `out`; take up a broken run where it ended.

    `source` is one path or several (folders, files, zip archives, DICOMDIRs), or `sources.ArchivedStudies`, which are
    fetched into `out` for the time of the run, each time anew (ArchiveError if none can be had).
    `cnn` is a folder of train-cnn: its networks are taken instead of the settings' encoder, for each
    study the one that did not learn from its patient, or all if none did; of several such folders each fold's networks
    embed side by side, and the mean is taken of their logits. `engine` stands in for
    `config.extract.engine`. `workers` processes read headers and threads see to studies (None: one a core);
    the bytes written do not depend on them. rejected.csv names files only where `phi` asks for it, else by a
    hash. Raises NothingUsableError if no slice is usable
    (rejected.csv then says why), OutputError if `out` cannot be written or another process holds it.

    Started by torchrun, the processes share out the studies; a folder and `out` must be the same for all, and
    what is left in `out` is the same too.
    """
    out, config = Path(out), config or Config()
    workers = choose_workers(workers)
    with working_group() as group:
        networks = group.agree(lambda: _ready(source, out, config, device, cnn, engine))
        group.same(f"{_fingerprint(networks)} {phi}")
        return fill_store(source, out, networks, workers=workers, phi=phi, progress=progress, group=group)


def _ready(source: Source, out: Path, config: Config, device: str, cnn: Runs | None, engine: str | None) -> Networks:
    """Check what is given, as far as one process can, and make the networks ready."""
    check_source(source, out)
    spare_others(out, MANIFEST)
    keep_memory()
    return open_networks(config, own_device(device), cnn=cnn, engine=engine)


def open_networks(
    config: Config, device: torch.device, *, cnn: Runs | None = None, engine: str | None = None
) -> Networks:
    """Make the settings' encoder ready, or the networks of one folder of train-cnn or of several."""
    execution = Execution.of(config.extract, engine)
    if cnn is None:
        return Networks({0: Embedder(build_encoder(config), execution, device)}, lambda patient, study: ((0,), False))
    folders = [cnn] if isinstance(cnn, str | Path) else cnn
    run = load_runs([Path(folder) for folder in folders])
    embedders = {k: Embedder(run.load(k), execution, device) for k in run.results}
    return Networks(embedders, run.networks_for, run.final)


def fill_store(
    source: Source,
    out: Path,
    networks: Networks,
    *,
    workers: int,
    phi: bool = False,
    progress: Progress,
    group: Group = ALONE,
) -> ExtractionSummary:
    """Embed every slice of `source` by networks that are ready, into the store `out`, a share of it by this process.

    Raises, in every process of the group, as `extract_features` does.
    """
    with (
        held_together(out, group) as turn,
        found_studies(source, out, group, workers=workers, hide_names=not phi, progress=progress) as findings,
    ):
        writer = group.agree(lambda: _open(turn, networks))
        keys = {study.uid: _row_keys(study, networks) for study in findings.studies}
        missing = {s.uid: s for s in findings.studies if not all(writer.has(key) for key in keys[s.uid])}
        weights = {uid: len(keys[uid]) * len(study.slices) for uid, study in missing.items()}
        share = deal_studies(missing, weights, group)
        done = len(findings.studies) - len(missing)
        refused = group.collect(_grow(writer, turn, share, networks, workers, partial(_from, progress, done)))
        rows = group.collect(writer.added())
        group.lead(lambda: writer.take(rows, [part_journal(turn.name, rank) for rank in range(1, group.size)]))
        return group.lead(lambda: _close(writer, findings, keys, refused, networks))


def _open(turn: Turn, networks: Networks) -> StoreWriter:
    """Take up the store, as the first process of a group, or make ready to add to it."""
    group, fingerprint = turn.group, _fingerprint(networks)
    if not group.writes:
        return StoreWriter(turn.folder, fingerprint, part=part_journal(turn.name, group.rank))
    writer = StoreWriter(turn.folder, fingerprint)
    for number, embedder in networks.embedders.items():
        save_encoder(embedder.encoder, turn.folder / encoder_file(number))
    return writer


def _fingerprint(networks: Networks) -> str:
    """Return 16 hex digits that differ if any byte of a study's file could: another release may read otherwise."""
    specs = " ".join(f"{k} {e.spec.fingerprint} {e.device.type}" for k, e in sorted(networks.embedders.items()))
    return short_hash(" ".join([specs, repr(_execution(networks)), __version__, torch.__version__]))


def _execution(networks: Networks) -> Execution:
    return next(iter(networks.embedders.values())).execution


def _grow(
    writer: StoreWriter, turn: Turn, studies: Sequence[Study], networks: Networks, workers: int, progress: Progress
) -> list[Unused]:
    """Bring studies into the store; return the slices that could not be read."""
    refused: list[Unused] = []

    def write(embedded: EmbeddedStudy) -> None:
        turn.check()
        whole, geometry = not embedded.refused, asdict(embedded.geometry)
        for key, features in zip(_row_keys(embedded.study, networks), embedded.features, strict=False):
            writer.add(key, features, geometry, whole=whole, in_sample=embedded.in_sample)

    for done, embedded in enumerate(write_behind(write, embed_studies(studies, networks, workers=workers)), start=1):
        refused.extend(embedded.refused)
        progress("embedding studies", done, len(studies))
    return refused


def _from(progress: Progress, before: int, stage: str, done: int, total: int) -> None:
    """Report progress of a stage of which so much was there before."""
    progress(stage, before + done, before + total)


def _row_keys(study: Study, networks: Networks) -> list[str]:
    """Return a hash a network that changes when a file of the study is added, removed or written anew."""
    files = repr([(h.sop_uid, h.file_bytes, h.modified_ns) for h in study.slices])
    return [short_hash(f"{number} {files}") for number in networks.of(study)[0]]


def _close(
    writer: StoreWriter, findings: Findings, keys: RowKeys, refused: list[Unused], networks: Networks
) -> ExtractionSummary:
    """Finish the store and sum it up; refuse to call an empty store a result."""
    unused, counts = account(findings, refused)
    if not counts.used:
        rejected = writer.root / REJECTED
        write_bytes(rejected, unused_csv(unused))
        raise nothing_usable(unused, counts, rejected)
    stored = [study for study in findings.studies if writer.has(keys[study.uid][0])]
    specs = {str(number): asdict(e.spec) for number, e in networks.embedders.items()}
    facts = {
        "encoders": specs,
        "final": networks.final,
        "execution": asdict(_execution(networks)),
        "counts": asdict(counts),
    }
    files = [encoder_file(number) for number in networks.embedders]
    writer.close([key for study in stored for key in keys[study.uid]], unused_csv(unused), files, facts)
    in_sample = sum(networks.of(study)[1] for study in stored)
    return ExtractionSummary(out=writer.root, studies=len(stored), counts=counts, in_sample=in_sample)


def embed_studies(studies: Iterable[Study], networks: Networks, *, workers: int) -> Iterator[EmbeddedStudy]:
    """Embed studies one by one, in their order.

    A GPU is kept busy by `workers` threads that read the next ones. On a CPU a reader beside a batch that has all
    cores makes them wait for one another, so there each study is read when its turn has come; where batches have
    a core each, threads read and embed studies side by side, and no core is idle between two of them.
    """
    embedder = next(iter(networks.embedders.values()))
    if embedder.streams > 1:
        yield from read_ahead(partial(_read_and_embed, networks=networks), studies, workers)
        return
    ahead = workers if embedder.device.type == "cuda" else 0
    for study, pixels in read_ahead(partial(_read_beside, spec=embedder.spec), studies, ahead):
        yield _embed(study, *pixels, networks)


def _read_and_embed(study: Study, *, networks: Networks) -> EmbeddedStudy:
    return _embed(study, *read_study(study, next(iter(networks.embedders.values())).spec), networks)


def _read_beside(study: Study, *, spec: EncoderSpec) -> tuple[Study, Pixels]:
    return study, read_study(study, spec)


def _embed(study: Study, hu: Images, kept: list[int], refused: list[Unused], networks: Networks) -> EmbeddedStudy:
    numbers, in_sample = networks.of(study)
    seen = {k: networks.embedders[k](torch.from_numpy(hu)) for k in numbers} if kept else {}
    geometry = describe(study.positions_mm[kept], common_normal(study.slices)) if kept and refused else study.geometry
    return EmbeddedStudy(
        study=study,
        features=tuple(_features(study, kept, number, said) for number, said in seen.items()),
        in_sample=in_sample,
        geometry=geometry,
        refused=tuple(refused),
    )


def _features(study: Study, kept: list[int], number: int, embedded: Embedded) -> StudyFeatures:
    return StudyFeatures(
        study_uid=study.uid,
        patient_key=short_hash(study.patient_id),
        sop_uids=tuple(study.slices[i].sop_uid for i in kept),
        positions_mm=study.positions_mm[kept],
        features=embedded.features.numpy().astype(np.float16),
        logits=None if embedded.logits is None else embedded.logits.numpy(),
        network=number,
    )


def read_study(study: Study, spec: EncoderSpec) -> Pixels:
    """Read the pixels of a study, resampled for the encoder.

    Returns HU (n, S, S) of the slices that could be read, their indices among the study's N, and the
    others with the reason. One bad slice costs itself only.
    """
    images, kept, refused = [], [], []
    for index, header in enumerate(study.slices):
        try:
            hu = read_hounsfield(header)
        except Refused as refusal:
            refused.append(refusal.verdict(header.file, header.frame))
            continue
        images.append(windows.resample(hu, header.spacing_mm, field_mm=spec.field_mm, size=spec.size))
        kept.append(index)
    return np.stack(images) if images else np.empty((0, spec.size, spec.size), np.float32), kept, refused
