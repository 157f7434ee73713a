"""What is explored: studies, slices and labels, from a folder of DICOM files or from a table, in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq import UsageError
from ich_seq.inputs import Given, as_paths, check_input, named
from ich_seq.label_statistics import any_of_groups, places
from ich_seq.labels import LABELS, SliceLabels, read_labels
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Unused
from ich_seq.slice_tables import StudyTable, is_table, read_slice_table, read_study_table, table_kind
from ich_seq.studies import Counts, Findings, Study, account, find_studies, group_studies

LABELS_THEMSELVES = ("labels", "studies")
"""Kinds of tables that hold labels and no slice that could have others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """What was found; `kind` is "dicom", "slices" (a table of them), "labels" (a label file) or "studies".

    `studies` are empty where the kind does not tell geometry; `studies_alone` is there for the last kind only.
    """

    kind: str
    studies: tuple[Study, ...]
    unused: tuple[Unused, ...]
    counts: Counts
    labels: SliceLabels | None
    studies_alone: StudyTable | None = None

    def without(self, refused: Sequence[Unused]) -> Collection:
        """Return the collection without slices that turned out to be unreadable; they are counted as rejected."""
        if not refused:
            return self
        lost = {(u.file, u.frame) for u in refused}
        slices = (h for study in self.studies for h in study.slices)
        studies, _ = group_studies(h for h in slices if (h.file, h.frame) not in lost)
        unused, counts = account(Findings(self.studies, self.unused, self.counts.files), refused)
        return replace(self, studies=tuple(studies), unused=tuple(unused), counts=counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelling:
    """The M slices of B studies, study after study, feet to head, and their labels (M, K), 0 where not `labelled` (M,).

    `study` (M,) is the number of the study in the collection, `place` (M,) where in it the slice lies, from 0 to 1.
    """

    study: NDArray[np.int64]
    place: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    targets: NDArray[np.uint8]
    n_studies: int

    def studies(self) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """Return which studies have a labelled slice, (B,), and what any of their slices has, (B, K)."""
        seen = np.bincount(self.study[self.labelled], minlength=self.n_studies) > 0
        return seen, any_of_groups(self.targets, self.study, self.n_studies)


def collect(
    source: Given,
    labels: Path | None,
    *,
    skip: Path | None = None,
    workers: int = 0,
    hide_names: bool = False,
    progress: Progress = silent,
) -> Collection:
    """Read what there is at `source`, one path or several; `labels` stand in for those of a table of slices.

    With `hide_names` files are known by a hash, as `studies.find_studies` has it.

    Raises UsageError for what is neither a folder of DICOM files nor a table of a known form, for a table among other
    inputs, and for labels of which none belongs to a slice that is there; NothingUsableError for an empty folder.
    """
    paths = as_paths(source)
    check_input(paths)
    tables = [path for path in paths if is_table(path)]
    if tables and len(paths) > 1:
        raise UsageError(f"A table is explored by itself; give {tables[0]} alone.")
    kind = table_kind(paths[0]) if tables else "dicom"
    if labels is not None and kind in LABELS_THEMSELVES:
        raise UsageError(
            f"{paths[0]} holds labels itself and no slices that others could belong to; leave out --labels."
        )
    given = None if labels is None else read_labels(labels)
    if kind == "labels":
        return _of_labels(paths[0])
    if kind == "studies":
        return _of_studies(paths[0])
    if kind == "slices":
        table = read_slice_table(paths[0])
        studies, left_over = group_studies(table.headers)
        unused = sorted([*table.unused, *left_over], key=lambda u: (u.file, u.reason, u.study_uid))
        findings, own = Findings(tuple(studies), tuple(unused), table.n_rows), table.labels
    else:
        findings, own = find_studies(paths, skip=skip, workers=workers, hide_names=hide_names, progress=progress), None
    return _of_slices(kind, paths, findings, own if given is None else given)


def _of_slices(kind: str, source: Given, findings: Findings, labels: SliceLabels | None) -> Collection:
    unused, counts = account(findings, ())
    found = Collection(kind=kind, studies=findings.studies, unused=tuple(unused), counts=counts, labels=labels)
    if labels is not None and findings.studies and not (_rows(found, labels) >= 0).any():
        raise UsageError(f"No label belongs to a slice of {named(source)}: are these the labels of these studies?")
    return found


def _of_labels(source: Path) -> Collection:
    labels = read_labels(source)
    n = len(labels.table)
    counts = Counts(files=n, used=n, excluded=0, rejected=0, reasons={})
    return Collection(kind="labels", studies=(), unused=(), counts=counts, labels=labels)


def _of_studies(source: Path) -> Collection:
    table = read_study_table(source)
    _, counts = account(Findings((), table.unused, table.n_rows), ())
    return Collection(
        kind="studies", studies=(), unused=table.unused, counts=counts, labels=None,
        studies_alone=table,
    )  # fmt: skip


def _rows(found: Collection, labels: SliceLabels) -> NDArray[np.int64]:
    """Return where in the labels' table each slice stands, (M,), -1 where it has none."""
    sop_uids = pd.Index([h.sop_uid for study in found.studies for h in study.slices])
    return np.asarray(labels.table.index.get_indexer(sop_uids), np.int64)


def labelling(found: Collection) -> Labelling | None:
    """Return the labels of the collection's slices, in the order of its studies; None where there are none."""
    if found.labels is None or not found.studies:
        return None
    row = _rows(found, found.labels)
    table = found.labels.table.to_numpy(np.uint8)
    targets = np.zeros((len(row), len(LABELS)), np.uint8)
    targets[row >= 0] = table[row[row >= 0]]
    return Labelling(
        study=np.repeat(np.arange(len(found.studies)), [len(s.slices) for s in found.studies]),
        place=np.concatenate([places(s.positions_mm) for s in found.studies]),
        labelled=row >= 0,
        targets=targets,
        n_studies=len(found.studies),
    )
