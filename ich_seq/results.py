"""The tables of predict, read back and held against labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq import UsageError
from ich_seq.baselines import by_position, constant, relative_positions
from ich_seq.figures import Predicted, Truth
from ich_seq.labels import LABELS, SliceLabels, assign_folds, read_table
from ich_seq.report import GEOMETRY_COLUMNS, PARTS, SLICES, STUDIES
from ich_seq.study_labels import StudyLabels
from ich_seq.tables import unguarded

MOST_LETTERS = 64
BLEND, ALONE = "blend", "predicted"
BASELINES = ("constant", "position")
BASELINE_FOLDS = 5
LEVELS = ("slices", "studies")
TEXT_COLUMNS = ("study_uid", "sop_uid", "patient", "patient_id", "scanner")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Results:
    """What was predicted: `slices`, a row a slice, and `studies`, a row a study by UID, None if there is no such table.

    Both have six columns a predictor; `predictors` are their prefixes by name, that of the tables' own first.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame | None
    predictors: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Predictions beside the truth, study after study, feet to head.

    `lengths` are the slices of each of the B studies, `uids` their names and `positions_mm` (M,) where slices lie (or
    their rank); `geometry` has a row a study (None: unknown). `flow` counts slices and studies from the tables to what
    is judged; `by_patient` tells whether patients are known. `levels` is what there are labels of: slices and studies,
    or studies alone, and then `truth` has no slices.
    """

    levels: tuple[str, ...]
    predicted: dict[str, Predicted]
    truth: Truth
    uids: tuple[str, ...]
    sop_uids: tuple[str, ...]
    positions_mm: Floats
    lengths: NDArray[np.int64]
    geometry: pd.DataFrame | None
    flow: dict[str, int]
    by_patient: bool


def read_results(path: Path) -> Results:
    """Read slices.csv, or that of a folder, and the studies.csv beside it; a file of another name stands by itself.

    Refused with UsageError: a table without study_uid, sop_uid and the six labels, a slice twice, probabilities
    that are no numbers from 0 to 1, six columns under a name of ours, tables of which one has a study that the other
    has not.
    """
    path = slices_table(path)
    slices = _read(path, ("study_uid", "sop_uid"))
    _refuse(slices["sop_uid"].duplicated(), slices["sop_uid"], f"{path}: more than one row for")
    predictors = _predictors(slices, path)
    beside = path.with_name(STUDIES)
    there = path.name == SLICES and os.path.lexists(beside)  # a link to nothing is no absence
    studies = _read(beside, ("study_uid",)).set_index("study_uid") if there else None
    if studies is not None:
        _refuse(studies.index.duplicated(), studies.index, f"{beside}: more than one row for")
        known = slices["study_uid"].isin(studies.index)
        _refuse(~known, slices["study_uid"], f"{beside} has no row for")
        _refuse(~studies.index.isin(slices["study_uid"]), studies.index, f"{path} has no slice of")
        if missing := set(predictors.values()) - set(_predictors(studies, beside).values()):
            named = ", ".join(f"{prefix}{LABELS[-1]}" for prefix in sorted(missing))
            raise UsageError(f"{beside} lacks six columns such as {named}, which {path} has. Predict again.")
    for table, name in ((slices, path), (studies, beside)):
        if table is not None:
            _check_probabilities(table, predictors, name)
    return Results(slices, studies, predictors)


def slices_table(path: Path) -> Path:
    """Return the table of slices that is meant by a folder of predict, or by the table itself."""
    if path.is_dir() and not (path / SLICES).is_file():
        raise UsageError(f"{path} holds no {SLICES}; give the folder that predict wrote, or a table of slices.")
    return path / SLICES if path.is_dir() else path


def _read(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    text = dict.fromkeys(TEXT_COLUMNS, str)
    table = read_table(path, "predictions", text)
    if missing := [c for c in (*needed, *LABELS) if c not in table.columns]:
        raise UsageError(
            f"{path} is not what predict writes: it lacks {', '.join(missing)}. Give its slices.csv or its folder."
        )
    for column in set(TEXT_COLUMNS) & set(table.columns):
        table[column] = table[column].str.strip().map(unguarded, na_action="ignore")
    for column in {"position_mm", "slices", "rows", "columns", *GEOMETRY_COLUMNS} & set(table.columns):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def _predictors(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """Return the prefix of each predictor that has all six columns, the table's own first."""
    prefixes = dict.fromkeys(c.removesuffix(LABELS[-1]) for c in table.columns if str(c).endswith(f"_{LABELS[-1]}"))
    others = [p for p in prefixes if {f"{p}{label}" for label in LABELS} <= set(table.columns)]
    if taken := {p.removesuffix("_") for p in others} & {BLEND, ALONE, *BASELINES}:
        raise UsageError(
            f"{path}: columns such as {min(taken)}_any have a name that evaluate gives itself; rename the six."
        )
    if odd := [p for p in others if not p.isprintable() or len(p) > MOST_LETTERS]:
        raise UsageError(
            f"{path}: {odd[0][:MOST_LETTERS]!r} is no name of a predictor: up to {MOST_LETTERS} that print."
        )
    own = BLEND if {f"{name}_" for name in PARTS} <= set(others) else ALONE
    return {own: "", **{p.removesuffix("_"): p for p in others}}


def _check_probabilities(table: pd.DataFrame, predictors: Mapping[str, str], path: Path) -> None:
    for prefix in predictors.values():
        for label in LABELS:
            values = pd.to_numeric(table[prefix + label], errors="coerce")
            bad = ~values.between(0, 1)
            _refuse(bad, "row " + pd.Series(np.arange(len(table)) + 2).astype(str), f"{path}: no probability in")


def _refuse(bad: pd.Series[bool] | NDArray[np.bool_], names: pd.Series[str] | pd.Index[str], what: str) -> None:
    found = np.flatnonzero(bad)
    if len(found):
        named = ", ".join(dict.fromkeys(str(names[i]) for i in found[:3]))
        raise UsageError(f"{what} {named} ({len(found)} in all). Mend the table, or predict again.")


def hold(results: Results, labels: SliceLabels | StudyLabels) -> Held:
    """Lay predictions beside labels of slices, or of studies; what has none is left out and counted.

    Where slices are labelled, a study is what any slice of it is, and one with an unlabelled slice is left out. Without
    a table of studies a study's probability is that of its likeliest slice. Labels of studies are found by Study
    Instance UID, else by `patient_id` of studies.csv, where only one study is of that patient. Raises UsageError if
    nothing is left.
    """
    return _hold_slices(results, labels) if isinstance(labels, SliceLabels) else _hold_studies(results, labels)


def _hold_slices(results: Results, labels: SliceLabels) -> Held:
    slices = results.slices
    known = labels.table.index.get_indexer(pd.Index(slices["sop_uid"])) >= 0
    labelled = pd.Series(known, index=slices.index)  # isin takes five times as long
    whole = labelled.groupby(slices["study_uid"]).transform("all")
    kept = _in_order(slices[whole])
    if kept.empty:
        raise UsageError(
            f"None of the {slices['study_uid'].nunique()} predicted studies has labels for all its slices; "
            "the IDs of the label file must be the SOP Instance UIDs of the predicted slices."
        )
    uids, lengths = _runs(kept["study_uid"].to_numpy())
    patients, by_patient = _patients(results, uids)
    targets = np.split(labels.targets(kept["sop_uid"].tolist()), np.cumsum(lengths)[:-1])
    truth = Truth.of_studies(targets, patients.tolist())
    return Held(
        levels=LEVELS,
        predicted=_all_predicted(results, kept, uids, lengths) | _baselines(kept, truth, lengths),
        truth=truth,
        flow=_flow(slices, labelled, labels, len(uids), len(kept)),
        by_patient=by_patient,
        **_described(results, kept, uids, lengths),
    )


def _hold_studies(results: Results, labels: StudyLabels) -> Held:
    slices = _in_order(results.slices)
    uids, lengths = _runs(slices["study_uid"].to_numpy())
    rows, shared = _rows_of(results, labels, uids)
    if not (rows >= 0).any():
        raise UsageError(
            f"None of the {len(uids)} predicted studies has a label. A label file names studies by Study Instance UID "
            "or Patient ID; the latter are in studies.csv after predict --phi."
        )
    kept = slices[np.repeat(rows >= 0, lengths)]
    uids, lengths, n_predicted = uids[rows >= 0], lengths[rows >= 0], len(uids)
    patients, by_patient = _patients(results, uids)
    nothing = np.empty((0, len(LABELS)))
    targets = labels.table.iloc[rows[rows >= 0]].to_numpy(np.uint8)
    truth = Truth(
        slices=nothing.astype(np.uint8), studies=targets, slice_patients=patients[:0], study_patients=patients
    )
    return Held(
        levels=LEVELS[1:],
        predicted=_all_predicted(results, kept, uids, lengths) | _study_baselines(truth),
        truth=truth,
        flow={
            "studies_labelled": len(labels.table),
            "studies_labelled_not_predicted": len(labels.table) - len(uids) - len(set(shared)),
            "studies_predicted": n_predicted,
            "studies_of_shared_patient_ids": len(shared),
            "studies_left_out": n_predicted - len(uids),
            "studies_judged": len(uids),
        },
        by_patient=by_patient,
        **_described(results, kept, uids, lengths),
    )


def _rows_of(results: Results, labels: StudyLabels, uids: NDArray[np.object_]) -> tuple[NDArray[np.int64], list[int]]:
    """Return for each study the row of its label, -1 where there is none or a patient's other study may be meant.

    Returned too are the rows that may mean several studies, once for each.
    """
    shared: list[int] = []
    rows = labels.table.index.get_indexer(pd.Index(uids)).astype(np.int64)
    if results.studies is not None and "patient_id" in results.studies.columns:
        named = results.studies.loc[uids.tolist(), "patient_id"]
        by_patient = labels.table.index.get_indexer(pd.Index(named))
        by_patient[np.isin(by_patient, rows) | (rows >= 0)] = -1
        several = named.duplicated(keep=False).to_numpy() & (by_patient >= 0)
        shared = by_patient[several].tolist()
        by_patient[several] = -1
        rows = np.where(rows < 0, by_patient, rows)
    return rows, shared


def _patients(results: Results, uids: NDArray[np.object_]) -> tuple[NDArray[np.str_], bool]:
    """Return each study's patient, and whether the tables tell; whom nobody named is a patient of its own."""
    studies = results.studies
    if studies is None or "patient" not in studies.columns or (studies.loc[uids.tolist(), "patient"] == "").all():
        return uids.astype(str), False
    named = zip(studies.loc[uids.tolist(), "patient"], uids, strict=True)
    return np.array([p or f"study {uid}" for p, uid in named]), True


def _all_predicted(
    results: Results, slices: pd.DataFrame, uids: NDArray[np.object_], lengths: NDArray[np.int64]
) -> dict[str, Predicted]:
    studies = None if results.studies is None else results.studies.loc[uids.tolist()]
    return {
        name: _predicted(slices, studies, [prefix + label for label in LABELS], lengths)
        for name, prefix in results.predictors.items()
    }


def _described(
    results: Results, slices: pd.DataFrame, uids: NDArray[np.object_], lengths: NDArray[np.int64]
) -> dict[str, Any]:
    """Return what is known of studies besides predictions and labels: names, places, geometry."""
    studies = results.studies
    known = studies is not None and {"slices", *GEOMETRY_COLUMNS} <= set(studies.columns)
    return {
        "uids": tuple(map(str, uids)),
        "sop_uids": tuple(slices["sop_uid"]),
        "positions_mm": _places(slices, lengths),
        "lengths": lengths,
        "geometry": studies.loc[uids.tolist()] if studies is not None and known else None,
    }


def _in_order(slices: pd.DataFrame) -> pd.DataFrame:
    """Return slices study by study, as the studies come, feet to head where positions are known."""
    order = pd.factorize(slices["study_uid"])[0]
    keys = [slices["position_mm"].to_numpy(float), order] if "position_mm" in slices.columns else [order]
    return slices.iloc[np.lexsort(keys)]


def _runs(uids: NDArray[np.object_]) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return each study's UID and how many rows it has, of rows that lie study by study."""
    starts = np.flatnonzero(np.concatenate([[True], uids[1:] != uids[:-1]]))
    return uids[starts], np.diff(np.append(starts, len(uids)))


def _predicted(
    slices: pd.DataFrame, studies: pd.DataFrame | None, columns: list[str], lengths: NDArray[np.int64]
) -> Predicted:
    of_slices = slices[columns].to_numpy(np.float64)
    if studies is None:
        return Predicted.of_slices(of_slices, lengths.tolist())
    return Predicted(slices=of_slices, studies=studies[columns].to_numpy(np.float64))


def _baselines(slices: pd.DataFrame, truth: Truth, lengths: NDArray[np.int64]) -> dict[str, Predicted]:
    """Return what the prevalence and the position alone say, each patient's by the others (in folds)."""
    folds = _deal(truth)
    if folds is None:
        return {}
    of_slice = np.repeat(folds, lengths)
    where = _relative(slices, lengths)
    said = {name: np.empty(truth.slices.shape) for name in BASELINES}
    for fold in np.unique(folds):
        new, old = of_slice == fold, of_slice != fold
        said["constant"][new] = constant(truth.slices[old], int(new.sum()))
        said["position"][new] = by_position(where[old], truth.slices[old], where[new])
    return {
        "constant": Predicted(slices=said["constant"], studies=_constant_studies(truth, folds)),
        "position": Predicted.of_slices(said["position"], lengths.tolist()),
    }


def _study_baselines(truth: Truth) -> dict[str, Predicted]:
    """Return what the prevalence of studies alone says, where there are no labels of slices."""
    folds = _deal(truth)
    if folds is None:
        return {}
    return {"constant": Predicted(slices=np.empty((0, len(LABELS))), studies=_constant_studies(truth, folds))}


def _deal(truth: Truth) -> NDArray[np.int64] | None:
    """Return the fold of each study, by patient, None for a single patient: nobody is left to learn from."""
    n_folds = min(BASELINE_FOLDS, len(np.unique(truth.study_patients)))
    return None if n_folds == 1 else assign_folds(truth.study_patients, truth.studies, n_folds=n_folds, seed=0)


def _constant_studies(truth: Truth, folds: NDArray[np.int64]) -> Floats:
    """Return the prevalence of each study's other folds, (B, K)."""
    said = np.empty(truth.studies.shape)
    for fold in np.unique(folds):
        said[folds == fold] = constant(truth.studies[folds != fold], int((folds == fold).sum()))
    return said


def _relative(slices: pd.DataFrame, lengths: NDArray[np.int64]) -> Floats:
    """Return how far from feet to head each slice lies."""
    parts = np.split(_places(slices, lengths), np.cumsum(lengths)[:-1])
    return np.concatenate([relative_positions(p) for p in parts])


def _places(slices: pd.DataFrame, lengths: NDArray[np.int64]) -> Floats:
    """Return where slices lie, mm; their rank in a study stands for positions that are unknown."""
    ranks = [np.arange(float(n)) for n in lengths]
    if "position_mm" not in slices.columns:
        return np.concatenate(ranks)
    parts = np.split(slices["position_mm"].to_numpy(np.float64), np.cumsum(lengths)[:-1])
    return np.concatenate([p if np.isfinite(p).all() else r for p, r in zip(parts, ranks, strict=True)])


def _flow(
    slices: pd.DataFrame, labelled: pd.Series[bool], labels: SliceLabels, studies: int, kept: int
) -> dict[str, int]:
    """Count slices and studies on their way; slices_predicted = judged + unlabelled + of studies left out."""
    return {
        "slices_labelled": len(labels.table),
        "slices_labelled_not_predicted": len(labels.table) - int(labelled.sum()),
        "slices_predicted": len(slices),
        "slices_unlabelled": int((~labelled).sum()),
        "slices_of_studies_left_out": int(labelled.sum()) - kept,
        "slices_judged": kept,
        "studies_predicted": int(slices["study_uid"].nunique()),
        "studies_left_out": int(slices["study_uid"].nunique()) - studies,
        "studies_judged": studies,
    }
