"""train-cnn: a folder of DICOM files and labels into networks that embed slices, one a fold, judged out of fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from scipy.special import expit

from ich_seq import ArtefactError, UsageError
from ich_seq.baselines import by_position, constant
from ich_seq.checkpoint import drop_checkpoint
from ich_seq.cnn_run import (
    CURVES,
    ENCODER,
    FOLDS,
    HELD_OUT,
    NOBODYS,
    PLAN,
    Begun,
    FoldResult,
    begin_at,
    claim_folder,
    fold_folder,
    folds_csv,
    read_fold,
    save_run,
    write_fold,
)
from ich_seq.config import Config
from ich_seq.curves import draw_curves
from ich_seq.devices import choose_device, choose_workers, keep_memory
from ich_seq.distributed import Group, joined_group, local_device
from ich_seq.encoder import EncoderSpec, SliceEncoder, SliceNetwork, build_encoder, load_encoder
from ich_seq.figures import Predicted, Truth, judge
from ich_seq.files import locked_folder, sha256_bytes, sha256_file, short_hash, spare_others, write_bytes
from ich_seq.fitting import Fitted, Log, Task, fit, predict_rows, steps_an_epoch
from ich_seq.inputs import Given, as_paths, check_input
from ich_seq.labels import LABELS, assign_folds, read_labels
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Unused, unused_csv
from ich_seq.samples import LabelledSlices, joined, label_slices
from ich_seq.store import REJECTED
from ich_seq.studies import Counts, Findings, Study, account, find_studies
from ich_seq.tables import csv_table
from ich_seq.weights import tensor_bytes, write_tensors

SECTIONS = ("slices", "encoder", "augment", "cnn")
"""The settings that decide a run; another one makes another run."""

WAIT_S = 900.0
"""How long processes that train folds of one run wait for each other, where they write what is the run's."""

WATCHED = {True: "the fold that stops the training", False: "the fold held out"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnSummary:
    """What a run of train-cnn did: where it lies, what is trained by now, and the figures out of fold."""

    out: Path
    folds: tuple[int, ...]
    final: bool
    studies: int
    slices: int
    also_studies: int
    unlabelled: tuple[str, ...]
    counts: Counts
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Labelled slices, the fold of each of their studies, (B,), and all that was found on the way.

    `judged` (B,) tells the studies of the set from those that are only learnt from, which are in the fold of their
    patient, or NOBODYS.
    """

    slices: LabelledSlices
    folds: NDArray[np.int64]
    judged: NDArray[np.bool_]
    findings: Findings
    unlabelled: tuple[str, ...]
    sha256: dict[str, str]

    def rows(self, *folds: int) -> NDArray[np.int64]:
        """Return the rows of these folds that are judged."""
        return np.flatnonzero((np.isin(self.folds, folds) & self.judged)[self.slices.study])

    @property
    def fold_of_patient(self) -> dict[str, int]:
        """Return the fold of each patient that is judged, by its key."""
        return {short_hash(study.patient_id): fold for study, fold in self._judged()}

    @property
    def fold_of_study(self) -> dict[str, int]:
        """Return the fold of each study that is judged, by its UID."""
        return {study.uid: fold for study, fold in self._judged()}

    def _judged(self) -> Iterator[tuple[Study, int]]:
        studies = zip(self.slices.studies, self.folds.tolist(), self.judged.tolist(), strict=True)
        return ((study, fold) for study, fold, judged in studies if judged)

    def learnable(self, *folds: int) -> NDArray[np.int64]:
        """Return all rows of these folds and of none."""
        return np.flatnonzero(np.isin(self.folds, (*folds, NOBODYS))[self.slices.study])


def train_cnn(
    root: Given,
    labels: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    also: str | Path | None = None,
    begin: str | Path | None = None,
    fold: int | Literal["final"] | None = None,
    device: str = "auto",
    workers: int | None = None,
    tensorboard: bool = False,
    phi: bool = False,
    progress: Progress = silent,
) -> CnnSummary:
    """Train the encoder on labelled slices in `root`, once for each patient fold (or for `fold` alone), into `out`.

    Each network learns from all folds but its own, which it then predicts; the figures are made of
    these predictions. The "final" one learns from all folds and is judged by none: it is for patients that nobody
    saw. Finished folds stay, a broken one goes on at its last state, to the same bytes.
    Studies without labels in `labels` but with some in `also` are learnt from as well, by every network that may see
    their patient; they are not judged, and how frequent a label is they do not tell. With `begin`, a run of the same
    patients in the same folds, each network begins at the one of its own fold there, whatever weights are set; the run
    has to stay until this one is whole, and whom it learnt from besides stands in folds.csv here too.
    rejected.csv names files only where `phi` asks for it, else a hash stands for each.
    Started by torchrun, all processes train each network together; `out` must be one folder for all.
    Raises UsageError if no slice has labels, if there is no such fold, if `out` is a run of other
    settings or data, if `begin` is none that its folds can begin at, or for a final network that is to stop early: it
    has no fold to stop on.
    """
    root, labels, out, config = as_paths(root), Path(labels), Path(out), config or Config()
    workers, folds = choose_workers(workers), _wanted(fold, config)
    check_input(root, out)
    spare_others(out, PLAN)
    keep_memory()
    processor = local_device(choose_device(device))
    with joined_group(processor) as group:
        data = _read(root, labels, out, config, workers, phi, progress)
        data = data if also is None else _with_more(data, labels, Path(also))
        begun = None
        if begin is not None:
            known = data.fold_of_patient, data.fold_of_study
            begun = begin_at(Path(begin), *known, folds, patience=config.cnn.patience)
            data = replace(data, sha256=data.sha256 | {"begun_sha256": begun.sha256})
        spec = _beginning(config, begun, folds[0]).spec
        tasks = [_task(f, data, spec, config, processor, group, workers) for f in folds]
        if group.writes:
            _open(out, data, config, begun, spec)
        group.wait()
        for task in tasks:
            _train_fold(task, data, out, config, begun, tensorboard=tensorboard, progress=progress)
        group.wait()
        return _sum_up(out, data, config, group)


def _read(root: Given, labels: Path, out: Path, config: Config, workers: int, phi: bool, progress: Progress) -> Data:
    findings = find_studies(root, skip=out, workers=workers, hide_names=not phi, progress=progress)
    slices, unlabelled = label_slices(findings.studies, read_labels(labels))
    if not len(slices):
        raise UsageError(
            f"None of the {len(findings.studies)} studies has a labelled slice; "
            "the IDs of the label file must be the SOP Instance UIDs of these DICOM files."
        )
    positive = np.zeros((len(slices.studies), len(LABELS)), np.uint8)
    np.maximum.at(positive, slices.study, slices.targets)
    patients = np.array([short_hash(s.patient_id) for s in slices.studies])
    return Data(
        slices=slices,
        folds=assign_folds(patients, positive, n_folds=config.cnn.folds, seed=config.cnn.seed),
        judged=np.ones(len(slices.studies), bool),
        findings=findings,
        unlabelled=tuple(unlabelled),
        sha256={"labels_sha256": sha256_file(labels)},
    )


def _with_more(data: Data, labels: Path, also: Path) -> Data:
    """Add the studies that have labels in `also` alone, each in the fold of its patient. Raises UsageError for none."""
    rest = set(data.unlabelled)
    more, unlabelled = label_slices([s for s in data.findings.studies if s.uid in rest], read_labels(also))
    if not len(more):
        raise UsageError(
            f"No study has labels in {also} alone: those that {labels} knows are judged, and not only learnt from. "
            "Give the DICOM files of others too, and labels by their SOP Instance UIDs."
        )
    fold_of = data.fold_of_patient  # made of all studies each time that it is asked for
    theirs = [fold_of.get(short_hash(study.patient_id), NOBODYS) for study in more.studies]
    return replace(
        data,
        slices=joined([data.slices, more]),
        folds=np.concatenate([data.folds, np.array(theirs, np.int64)]),
        judged=np.concatenate([data.judged, np.zeros(len(theirs), bool)]),
        unlabelled=tuple(unlabelled),
        sha256=data.sha256 | {"also_sha256": sha256_file(also)},
    )


def _beginning(config: Config, begun: Begun | None, fold: int) -> SliceEncoder:
    """Return the encoder that a fold begins at: what the settings name, or a fold's network of another run."""
    if begun is None:
        return build_encoder(config, drop_path=config.cnn.drop_path)
    weights = {"weights": str(begun.encoder_of(fold))}
    there = config.model_copy(update={"encoder": config.encoder.model_copy(update=weights)})
    encoder = build_encoder(there, drop_path=config.cnn.drop_path)
    encoder.spec = replace(encoder.spec, weights=begun.run.results[fold].spec.weights)
    return encoder


def _open(out: Path, data: Data, config: Config, begun: Begun | None, spec: EncoderSpec) -> None:
    """Make `out` the folder of this run, or go on in it; write who is in which fold.

    Whom only the networks learnt from that these begin at stays on record: they know them too.
    """
    with locked_folder(out, wait_s=WAIT_S):
        rows = {
            study.uid: (study.uid, short_hash(study.patient_id), int(fold))
            for study, fold in zip(data.slices.studies, data.folds, strict=True)
        }
        learnt_before = () if begun is None else begun.run.only_learnt
        table = folds_csv(({uid: (uid, patient, NOBODYS) for uid, patient in learnt_before} | rows).values())
        weights = {"weights_sha256": spec.sha256} if begun is None else {}  # else they are another for each fold
        plan = {"settings": _settings(config)} | weights | data.sha256
        claim_folder(out, plan | {"folds_sha256": sha256_bytes(table), "slices": len(data.slices)})
        write_bytes(out / FOLDS, table)


def _settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide a run; how often a state is written moves no byte of it."""
    sections = config.model_dump(mode="json", include=set(SECTIONS))
    del sections["cnn"]["checkpoint_minutes"]
    return sections


def _wanted(fold: int | Literal["final"] | None, config: Config) -> Sequence[int]:
    if fold == "final":
        if config.cnn.patience:
            raise UsageError("The final network learns from every fold and has none to stop on; set cnn.patience to 0.")
        return [config.cnn.folds]
    if fold is not None and not 0 <= fold < config.cnn.folds:
        raise UsageError(f"There is no fold {fold}: cnn.folds is {config.cnn.folds}, counted from 0.")
    return range(config.cnn.folds) if fold is None else [fold]


def _task(
    fold: int, data: Data, spec: EncoderSpec, config: Config, device: torch.device, group: Group, workers: int
) -> Task:
    """Set a fold aside; with early stopping the next one too, so that the first stays unseen by every decision.

    The final network's is the fold after the last, which nobody is in.
    """
    options = config.cnn
    stop = (fold + 1) % options.folds if options.patience else fold
    learn = [f for f in range(options.folds) if f not in (fold, stop)]
    if not learn:
        raise UsageError("Early stopping sets two folds aside; cnn.folds must be 3 or more, or cnn.patience 0.")
    task = Task(
        fold=fold,
        slices=data.slices,
        spec=spec,
        learn=data.learnable(*learn),
        natural=data.rows(*learn),
        watch=data.rows(stop),
        options=options,
        augment=config.augment,
        device=device,
        group=group,
        workers=workers,
    )
    steps_an_epoch(task)  # refuses what cannot be cut into batches before anything is written
    return task


def _train_fold(
    task: Task,
    data: Data,
    out: Path,
    config: Config,
    begun: Begun | None,
    *,
    tensorboard: bool,
    progress: Progress,
) -> None:
    """Train one fold and predict what it held out, unless that is done; the first process of a group writes."""
    folder = fold_folder(out, task.fold)
    stage = "training the final network" if task.final else f"training fold {task.fold}"
    with locked_folder(folder) if task.group.writes else nullcontext():
        if all(task.group.gather(read_fold(out, task.fold) is not None)):
            if task.group.writes:
                drop_checkpoint(folder, task.name)  # a kill may have come between
            return
        encoder = _beginning(config, begun, task.fold)
        with _log(folder / "tensorboard", wanted=tensorboard and task.group.writes) as log:
            fitted = fit(task, encoder, folder, log=log, progress=lambda done, total: progress(stage, done, total))
        spec = _trained_spec(encoder.spec, task, fitted)
        if task.group.writes:
            write_tensors(folder / ENCODER, fitted.tensors)
        task.group.wait()
        held_out, refused = _predict_held_out(load_encoder(spec, folder / ENCODER), task, data)
        if task.group.writes:
            write_bytes(folder / HELD_OUT, held_out)
            sha256 = sha256_bytes(held_out)
            unread = tuple(sorted(refused.union(fitted.refused), key=lambda u: (u.file, u.frame)))
            write_fold(out, FoldResult(task.fold, spec, fitted.curve, fitted.epoch, sha256, unread))
            drop_checkpoint(folder, task.name)
    task.group.wait()


def _trained_spec(spec: EncoderSpec, task: Task, fitted: Fitted) -> EncoderSpec:
    learnt_from = "all patients" if task.final else f"all folds but {task.fold}"
    return replace(
        spec,
        weights=f"train-cnn, {learnt_from}, from {spec.weights}",
        sha256=sha256_bytes(tensor_bytes(fitted.tensors)),
        head=True,
    )


def _predict_held_out(encoder: SliceEncoder, task: Task, data: Data) -> tuple[bytes, set[Unused]]:
    """Return the logits of the fold held out as CSV, a row a slice that could be read, and those that could not."""
    assert encoder.head is not None
    network = SliceNetwork(encoder, encoder.head, dropout=0.0).to(task.device)
    rows = data.rows(task.fold)
    logits, known, refused = predict_rows(network, task, rows, precision="fp32")
    table = pd.DataFrame(logits[known], columns=list(LABELS))
    table.insert(0, "sop_uid", [data.slices.sop_uid(row) for row in rows[known]])
    return csv_table(table, float_format="%.6f"), refused


@contextmanager
def _log(folder: Path, *, wanted: bool) -> Iterator[Log]:
    if not wanted:
        yield lambda name, value, step: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed: pip install 'ich-seq[tensorboard]'.") from error
    with SummaryWriter(folder) as writer:
        yield writer.add_scalar


def _sum_up(out: Path, data: Data, config: Config, group: Group) -> CnnSummary:
    """Judge the folds that are trained by now, and write what makes the run whole.

    Another process may end at the same time with another fold: the later one has to see both.
    """
    with locked_folder(out, wait_s=WAIT_S) if group.writes else nullcontext():
        results = [r for f in range(config.cnn.folds + 1) if (r := read_fold(out, f)) is not None]
        unused, counts = account(data.findings, tuple({u for r in results for u in r.refused}))
        folds = tuple(r.fold for r in results if r.fold < config.cnn.folds)
        figures = _judge(out, data, folds, config.cnn.seed) if folds else {}
        if group.writes:
            write_bytes(out / REJECTED, unused_csv(unused))
            curves = {r.fold: r.curve for r in results}
            write_bytes(out / CURVES, draw_curves(curves, WATCHED[config.cnn.patience > 0]))
            save_run(out, results, _facts(data, config, counts, figures))
    return CnnSummary(
        out=out,
        folds=folds,
        final=len(folds) < len(results),
        studies=int(data.judged.sum()),
        slices=len(data.rows(*range(config.cnn.folds))),
        also_studies=int((~data.judged).sum()),
        unlabelled=data.unlabelled,
        counts=counts,
        figures=figures,
    )


def _facts(data: Data, config: Config, counts: Counts, figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the run's record says of its data and settings."""
    rows = data.rows(*range(config.cnn.folds))
    judged = [study for study, own in zip(data.slices.studies, data.judged, strict=True) if own]
    positive = data.slices.targets[rows].sum(axis=0, dtype=int)
    besides = {"also_studies": len(data.judged) - len(judged), "also_slices": len(data.slices) - len(rows)}
    return {
        "settings": _settings(config),
        **data.sha256,
        "studies": len(judged),
        "patients": len({study.patient_id for study in judged}),
        "slices": len(rows),
        "positive_slices": dict(zip(LABELS, positive.tolist(), strict=True)),
        **(besides if besides["also_studies"] else {}),
        "studies_without_labels": len(data.unlabelled),
        "counts": asdict(counts),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "figures": figures,
    }


def _read_held_out(path: Path, known: Mapping[str, int]) -> pd.DataFrame:
    """Read what a network said of slices. Raises ArtefactError for another table, though its hash be right."""
    try:
        table = pd.read_csv(path, dtype={"sop_uid": str} | dict.fromkeys(LABELS, np.float64))
        if not table["sop_uid"].isin(list(known)).all() or not np.isfinite(table[list(LABELS)]).all(axis=None):
            raise ValueError("slices that are not of this run, or no numbers")
        return table
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"{path} is not what train-cnn wrote; remove {path.parent} and train the fold again."
        ) from error


def _judge(out: Path, data: Data, folds: Sequence[int], seed: int) -> dict[str, Any]:
    """Put what the networks say of the folds they held out beside what knows less."""
    slices = data.slices
    row_of = {slices.sop_uid(row): row for row in range(len(slices))}
    tables = {f: _read_held_out(fold_folder(out, f) / HELD_OUT, row_of) for f in folds}
    predicted: dict[str, list[Predicted]] = {"constant": [], "position": [], "cnn": []}
    targets, patients = [], []
    for fold, table in tables.items():
        rows = np.array([row_of[sop] for sop in table["sop_uid"]], np.int64)
        others = data.rows(*(f for f in range(int(data.folds.max()) + 1) if f != fold))
        lengths = np.bincount(slices.study[rows])
        lengths = lengths[lengths > 0].tolist()
        said = {
            "constant": constant(slices.targets[others], len(rows)),
            "position": by_position(slices.relative[others], slices.targets[others], slices.relative[rows]),
            "cnn": expit(table[list(LABELS)].to_numpy(np.float64)),
        }
        for name, probabilities in said.items():
            predicted[name].append(Predicted.of_slices(probabilities, lengths))
        targets += np.split(slices.targets[rows], np.cumsum(lengths)[:-1])
        patients += [short_hash(slices.studies[s].patient_id) for s in dict.fromkeys(slices.study[rows].tolist())]
    joined = {name: Predicted.joined(parts) for name, parts in predicted.items()}
    return judge(joined, Truth.of_studies(targets, patients), seed=seed, against="position")
