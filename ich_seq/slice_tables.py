"""Tables in place of DICOM files: the headers of slices, or what is known of studies, as Kaggle's tables have them.

Rows are never repaired by guessing: each is a header, or an `Unused` with a reason, named by its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq import UsageError
from ich_seq.dicom import (
    AXIAL_COSINE,
    MAX_POSITION_MM,
    MAX_RESCALE,
    MAX_SIDE,
    MAX_SPACING_MM,
    MIN_SPACING_MM,
    UNIT_TOLERANCE,
    SliceHeader,
    scanner_name,
)
from ich_seq.labels import (
    ID_COLUMNS,
    LABELS,
    SUBTYPES,
    SliceLabels,
    read_columns,
    read_table,
    told_by_semicolons,
    wide_labels,
)
from ich_seq.reasons import Reason, Unused

STUDY, SERIES, PATIENT = "StudyInstanceUID", "SeriesInstanceUID", "PatientID"
POSITION, ORIENTATION, SPACING = "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"
NO_ID = "(a row without an id)"
SLICE_IDS = ("SOPInstanceUID", *ID_COLUMNS)
"""Beside DICOM keywords, ID may be a row's number."""

UNKNOWN = 0
"""Stands in a header for sizes, bits, spacings and slopes that a table does not tell; none of them can be 0."""

TABLE_FORMS = (
    f"a row a slice with an id (one of {', '.join(ID_COLUMNS)}), {STUDY}, {POSITION} and {ORIENTATION} (as one column "
    f"or numbered, _1 _2 _3); a label file (ID,Label, or an id and {', '.join(SUBTYPES)}); or a row a study with "
    f"{STUDY} and these labels"
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceTable:
    """A table of slices: each of `n_rows` is one of `headers` or of `unused`; `labels` where it holds any."""

    headers: tuple[SliceHeader, ...]
    unused: tuple[Unused, ...]
    n_rows: int
    labels: SliceLabels | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTable:
    """A table of B studies, sorted by UID, their patients, (B,), and labels, (B, K); other rows are `unused`."""

    uids: tuple[str, ...]
    patients: tuple[str, ...]
    targets: NDArray[np.uint8]
    unused: tuple[Unused, ...]
    n_rows: int


class Where(NamedTuple):
    """Where M slices lie: corners (M, 3) mm, direction cosines (M, 6), pixel spacing (M, 2) mm; NaN where not told."""

    corner: Floats
    cosines: Floats
    spacing: Floats


def is_table(path: Path) -> bool:
    """Return whether a file calls itself a CSV, compressed or not."""
    return path.is_file() and ".csv" in (suffix.lower() for suffix in path.suffixes)


def table_kind(path: Path) -> str:
    """Return what a CSV holds, by its columns: "slices", "labels" or "studies". Raises UsageError for anything else."""
    columns = pd.Index(read_columns(path, "table"))
    named, labelled = _id_column(columns), set(SUBTYPES) <= set(columns)
    if named and STUDY in columns and _columns_of(POSITION, 3, columns) and _columns_of(ORIENTATION, 6, columns):
        return "slices"
    if {"ID", "Label"} <= set(columns) or (named and labelled):
        return "labels"
    if STUDY in columns and labelled:
        return "studies"
    raise UsageError(
        f"{path} is no table that can be explored: expected {TABLE_FORMS}. Found {', '.join(columns[:8])}"
        f"{told_by_semicolons(list(columns))}"
    )


def read_slice_table(path: Path) -> SliceTable:
    """Read a table of slices with DICOM keywords as columns; what it does not tell is UNKNOWN in the headers.

    Raises UsageError if it cannot be read, or for labels that `labels.read_labels` would refuse; rows whose label
    cells are all empty are unlabelled.
    """
    table = _read(path, "slices")
    table = _in_order(table.assign(_id=table[_id_column(table.columns)].str.removesuffix(".dcm")), "_id")
    where = Where(_vectors(table, POSITION, 3), _vectors(table, ORIENTATION, 6), _vectors(table, SPACING, 2))
    unused = _unusable(table, where)
    sound = np.array([u is None for u in unused])
    good = table[sound]
    return SliceTable(
        headers=tuple(_headers(good, Where(*(values[sound] for values in where)))),
        unused=tuple(u for u in unused if u is not None),
        n_rows=len(table),
        labels=_labels_of(good, path) if set(SUBTYPES) <= set(table.columns) else None,
    )


def read_study_table(path: Path) -> StudyTable:
    """Read a table of studies and their labels. A row without study or labels, or one in conflict, is not used.

    `any` may be absent and is then the maximum of the subtypes. Raises UsageError if it cannot be read.
    """
    table = _in_order(_read(path, "studies"), STUDY)
    given, targets = _given_labels(table)
    patients = table[PATIENT] if PATIENT in table.columns else pd.Series("", index=table.index)
    row = pd.DataFrame({"patient": patients} | {k: targets[:, i] for i, k in enumerate(LABELS)}).assign(
        uid=table[STUDY]
    )
    sound = given & (targets[:, -1] >= targets[:, :-1].max(axis=1))
    usable_rows = row[sound]  # what another row lacks takes nothing from a sound one
    both = usable_rows.drop_duplicates()["uid"].duplicated(keep=False)
    copy, clash = (x.reindex(row.index, fill_value=False) for x in (usable_rows.duplicated(), both))
    unused: list[Unused] = []
    kept = np.zeros(len(row), bool)
    for i, (uid, usable, copied, clashes) in enumerate(zip(row["uid"], sound, copy, clash, strict=True)):
        reason = _fate_of_study(uid, usable, copied, clashes)
        kept[i] = reason is None
        if reason is not None:
            unused.append(Unused(uid or NO_ID, *reason, uid))
    uids = row["uid"][kept]
    return StudyTable(
        uids=tuple(uids),
        patients=tuple(p or f"study {u}" for p, u in zip(row["patient"][kept], uids, strict=True)),
        targets=targets[kept],
        unused=tuple(unused),
        n_rows=len(row),
    )


def _fate_of_study(uid: str, usable: bool, copied: bool, clashes: bool) -> tuple[Reason, str] | None:
    if not uid:
        return Reason.MISSING_TAG, f"The row has no {STUDY}."
    if not usable:
        return Reason.MISSING_TAG, "The labels are not all 0 or 1, or `any` is 0 beside a positive subtype."
    if copied:
        return Reason.DUPLICATE, "A copy of another row of this study."
    if clashes:
        return Reason.SOP_CONFLICT, "Rows of this study differ in patient or labels; keep the right one."
    return None


def _read(path: Path, what: str) -> pd.DataFrame:
    """Read a table as text, blanks around names and values taken off."""
    table = read_table(path, what, str)
    table.columns = table.columns.str.strip()
    table = table.loc[:, ~table.columns.duplicated()]
    return pd.DataFrame({name: table[name].str.strip() for name in table.columns})


def _in_order(table: pd.DataFrame, key: str) -> pd.DataFrame:
    """Sort rows by a column, those that share its value by all others: the file's own order means nothing."""
    shared = table[key].duplicated(keep=False)
    rest = table[shared].sort_values(list(dict.fromkeys([key, *sorted(table.columns)])))
    return pd.concat([table[~shared], rest]).sort_values(key, kind="stable", ignore_index=True)


def _id_column(columns: pd.Index[str]) -> str:
    return next((c for c in SLICE_IDS if c in columns), "")


def _columns_of(keyword: str, values: int, columns: pd.Index[str]) -> list[str]:
    """Return the columns of a value of many: numbered from 1 or 0, fastai's way, or one for all; else none."""
    ways = (
        [f"{keyword}_{i}" for i in range(1, values + 1)],
        [f"{keyword}_{i}" for i in range(values)],
        [keyword, *(f"{keyword}{i}" for i in range(1, values))],
        [keyword],
    )
    return next((way for way in ways if set(way) <= set(columns)), [])


def _vectors(table: pd.DataFrame, keyword: str, values: int) -> Floats:
    """Return a value of many as (M, values), NaN where it is no number or not of so many."""
    names = _columns_of(keyword, values, table.columns)
    if not names:
        return np.full((len(table), values), np.nan)
    text = table[names] if len(names) > 1 else _split(table[names[0]], values)
    return np.column_stack([_numbers(text[name]) for name in text.columns])


def _split(text: pd.Series[str], values: int) -> pd.DataFrame:
    r"""Split such texts as ['-125', '-140', '41.4'] and -125\-140\41.4 into columns; one of another count is empty."""
    parts = text.str.replace(r"[\[\]()'\"]", "", regex=True).str.strip().str.split(r"[\\,;\s]+", regex=True)
    return pd.DataFrame([p if len(p) == values else [""] * values for p in parts], columns=range(values), dtype=str)


def _numbers(text: pd.Series[str]) -> Floats:
    return np.asarray(pd.to_numeric(text, errors="coerce"), np.float64)


def _scalars(table: pd.DataFrame, keyword: str) -> Floats:
    """Return a value as (M,), NaN where there is none."""
    return _numbers(table[keyword]) if keyword in table.columns else np.full(len(table), np.nan)


def _unusable(table: pd.DataFrame, where: Where) -> list[Unused | None]:
    """Return for each row why it is no slice, or None: the first rule it breaks, as `dicom.read_header` has them."""
    rules = _rules(table, where)
    broken = np.column_stack([mask for mask, _, _ in rules])
    first = np.where(broken.any(axis=1), broken.argmax(axis=1), -1)
    return [
        None if rule < 0 else Unused(id_ or NO_ID, rules[rule][1], rules[rule][2], study)
        for rule, id_, study in zip(first, table["_id"], table[STUDY], strict=True)
    ]


def _rules(table: pd.DataFrame, where: Where) -> list[tuple[Mask, Reason, str]]:
    corner, cosines, spacing = where
    row, column = cosines[:, :3], cosines[:, 3:]
    with np.errstate(invalid="ignore", over="ignore"):  # infinite cosines are refused below
        products = np.column_stack([(row**2).sum(1) - 1, (column**2).sum(1) - 1, (row * column).sum(1)])
        along_body = row[:, 0] * column[:, 1] - row[:, 1] * column[:, 0]
    far = ~(np.abs(corner).max(axis=1) <= MAX_POSITION_MM)
    said = table[_columns_of(SPACING, 2, table.columns)] != ""
    wide = (
        (spacing < MIN_SPACING_MM)
        | (spacing > MAX_SPACING_MM)
        | (np.isnan(spacing) & said.any(axis=1).to_numpy()[:, None])
    )
    return [
        ((table["_id"] == "").to_numpy(), Reason.MISSING_TAG, "The row has no SOP Instance UID."),
        ((table[STUDY] == "").to_numpy(), Reason.MISSING_TAG, f"The row has no {STUDY}."),
        (far, Reason.GEOMETRY, "Image Position (Patient) is no three numbers, or outside of any scanner."),
        (~(np.abs(products).max(axis=1) <= UNIT_TOLERANCE), Reason.GEOMETRY,
         "Image Orientation (Patient) is not a pair of unit vectors at a right angle."),
        (~(np.abs(along_body) >= AXIAL_COSINE), Reason.NOT_AXIAL,
         "The slice is turned more than 45 degrees from axial."),
        (wide.any(axis=1), Reason.GEOMETRY,
         f"Pixel Spacing is no head CT's ({MIN_SPACING_MM} to {MAX_SPACING_MM} mm)."),
    ]  # fmt: skip


def _headers(table: pd.DataFrame, where: Where) -> list[SliceHeader]:
    """Return the headers of rows that break no rule."""
    text = {name: _texts(table, name) for name in (SERIES, PATIENT, "Manufacturer", "ManufacturerModelName")}
    whole = {
        name: _whole(table, name)
        for name in ("Rows", "Columns", "BitsStored", "PixelRepresentation", "AcquisitionNumber", "InstanceNumber")
    }
    slope, intercept = _rescale(table)
    corner, cosines = where.corner.tolist(), where.cosines.tolist()
    spacing = np.nan_to_num(where.spacing, nan=UNKNOWN).tolist()
    known = np.isin(_scalars(table, "PixelRepresentation"), (0, 1))  # else a sign would be guessed
    bits = [b if k else UNKNOWN for b, k in zip(whole["BitsStored"], known, strict=True)]
    return [
        SliceHeader(
            path=Path(), file=id_, patient_id=text[PATIENT][i], study_uid=study, series_uid=text[SERIES][i],
            sop_uid=id_, transfer_syntax="", image_type=(), acquisition=whole["AcquisitionNumber"][i],
            instance=whole["InstanceNumber"][i], position_mm=tuple(corner[i]), orientation=tuple(cosines[i]),
            rows=whole["Rows"][i], columns=whole["Columns"][i], spacing_mm=tuple(spacing[i]), bits_stored=bits[i],
            signed=whole["PixelRepresentation"][i] == 1, padding=None, slope=slope[i], intercept=intercept[i],
            pixel_offset=-1, file_bytes=0, modified_ns=0,
            scanner=scanner_name(text["Manufacturer"][i], text["ManufacturerModelName"][i]),
        )
        for i, (id_, study) in enumerate(zip(table["_id"], table[STUDY], strict=True))
    ]  # fmt: skip


def _texts(table: pd.DataFrame, keyword: str) -> Sequence[str]:
    return table[keyword].tolist() if keyword in table.columns else [""] * len(table)


def _whole(table: pd.DataFrame, keyword: str) -> list[int]:
    """Return a whole number a row, UNKNOWN where there is none or an absurd one."""
    values = _scalars(table, keyword)
    sound = (np.abs(values) <= max(MAX_SIDE, MAX_RESCALE)) & (values == np.rint(values))
    return [int(v) for v in np.where(sound, values, UNKNOWN)]


def _rescale(table: pd.DataFrame) -> tuple[list[float], list[float]]:
    """Return slope and intercept, both UNKNOWN where either is."""
    both = np.column_stack([_scalars(table, "RescaleSlope"), _scalars(table, "RescaleIntercept")])
    both[~(np.abs(both).max(axis=1) <= MAX_RESCALE)] = UNKNOWN
    return both[:, 0].tolist(), both[:, 1].tolist()


def _given_labels(table: pd.DataFrame) -> tuple[Mask, NDArray[np.uint8]]:
    """Return which rows have all labels, 0 or 1, and these, (M, K), 0 where there are none."""
    names = [name for name in LABELS if name in table.columns]
    text = table[names].apply(lambda column: column.str.removesuffix(".0"))
    given = text.isin(["0", "1"]).all(axis=1).to_numpy()
    values = (text == "1").to_numpy().astype(np.uint8) * given[:, None]
    return given, values if len(names) == len(LABELS) else np.column_stack([values, values.max(axis=1)])


def _labels_of(table: pd.DataFrame, path: Path) -> SliceLabels | None:
    """Return the labels that stand in a table of slices, None if all are empty."""
    empty = (table[[name for name in LABELS if name in table.columns]] == "").all(axis=1)
    return None if empty.all() else wide_labels(table[~empty].reset_index(drop=True), path, SLICE_IDS)
