"""The tables of predict, read back and held against labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq import UsageError
from ich_seq.baselines import by_position, constant, relative_positions
from ich_seq.figures import Predicted, Truth
from ich_seq.labels import LABELS, SliceLabels, assign_folds, read_table
from ich_seq.report import GEOMETRY_COLUMNS, PARTS, SLICES, STUDIES

BLEND, ALONE = "blend", "predicted"
BASELINES = ("constant", "position")
BASELINE_FOLDS = 5
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

    `lengths` are the slices of each of the B studies, `geometry` a row for each (None: unknown). `flow` counts
    slices and studies from the tables to what is judged; `by_patient` tells whether patients are known.
    """

    predicted: dict[str, Predicted]
    truth: Truth
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
    there = path.name == SLICES and beside.exists()
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
    return path / SLICES if path.is_dir() else path


def _read(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    text = {"study_uid": str, "sop_uid": str, "patient": str}
    table = read_table(path, "predictions", text)
    if missing := [c for c in (*needed, *LABELS) if c not in table.columns]:
        raise UsageError(
            f"{path} is not what predict writes: it lacks {', '.join(missing)}. Give its slices.csv or its folder."
        )
    for column in {"study_uid", "sop_uid", "patient"} & set(table.columns):
        table[column] = table[column].str.strip()
    for column in {"position_mm", "slices", *GEOMETRY_COLUMNS} & set(table.columns):
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


def hold(results: Results, labels: SliceLabels) -> Held:
    """Lay predictions beside their labels; studies with an unlabelled slice are left out and counted.

    A study is what any slice of it is; without a table of studies its probability is that of its likeliest slice.
    Raises UsageError if nothing is left.
    """
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
    studies = None if results.studies is None else results.studies.loc[uids.tolist()]
    patients = uids.astype(str)
    by_patient = studies is not None and "patient" in studies.columns and bool((studies["patient"] != "").any())
    if studies is not None and by_patient:  # whom nobody named is a patient of its own
        patients = np.array([p or f"study {uid}" for p, uid in zip(studies["patient"], uids, strict=True)])
    targets = np.split(labels.targets(kept["sop_uid"].tolist()), np.cumsum(lengths)[:-1])
    truth = Truth.of_studies(targets, patients.tolist())
    predicted = {
        name: _predicted(kept, studies, [prefix + label for label in LABELS], lengths)
        for name, prefix in results.predictors.items()
    }
    geometry = studies if studies is not None and {"slices", *GEOMETRY_COLUMNS} <= set(studies.columns) else None
    return Held(
        predicted=predicted | _baselines(kept, truth, lengths),
        truth=truth,
        lengths=lengths,
        geometry=geometry,
        flow=_flow(slices, labelled, labels, len(uids), len(kept)),
        by_patient=by_patient,
    )


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
    n_folds = min(BASELINE_FOLDS, len(np.unique(truth.study_patients)))
    if n_folds == 1:  # nobody is left to learn from
        return {}
    folds = assign_folds(truth.study_patients, truth.studies, n_folds=n_folds, seed=0)
    of_slice = np.repeat(folds, lengths)
    where = _relative(slices, lengths)
    said = {name: np.empty(truth.slices.shape) for name in BASELINES}
    studies = np.empty(truth.studies.shape)
    for fold in range(n_folds):
        new, old = of_slice == fold, of_slice != fold
        said["constant"][new] = constant(truth.slices[old], int(new.sum()))
        said["position"][new] = by_position(where[old], truth.slices[old], where[new])
        studies[folds == fold] = constant(truth.studies[folds != fold], int((folds == fold).sum()))
    return {
        "constant": Predicted(slices=said["constant"], studies=studies),
        "position": Predicted.of_slices(said["position"], lengths.tolist()),
    }


def _relative(slices: pd.DataFrame, lengths: NDArray[np.int64]) -> Floats:
    """Return how far from feet to head each slice lies; rows stand for positions that are unknown."""
    known = "position_mm" in slices.columns
    places = slices["position_mm"].to_numpy(np.float64) if known else np.arange(float(len(slices)))
    parts = np.split(places, np.cumsum(lengths)[:-1])
    return np.concatenate([relative_positions(p if np.isfinite(p).all() else np.arange(float(len(p)))) for p in parts])


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
