"""Labels of whole studies: CQ500's reads, or a table with a row a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ich_seq import UsageError
from ich_seq.labels import ID_COLUMNS, LABELS, SUBTYPES, SliceLabels, read_columns, read_labels, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

READERS = ("R1", "R2", "R3")
READS = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"), strict=True))
"""How CQ500's reads.csv calls the labels (Chilamkurthy et al., Lancet 2018), each once a reader: R1:ICH, R2:ICH ..."""

NAME_COLUMNS = ("study_uid", "StudyInstanceUID", "patient_id", "PatientID")
"""Names under which a table of studies may say whose a row is."""


@dataclass(frozen=True)
class StudyLabels:
    """Labels of studies: `table`, columns LABELS, uint8 0 or 1, indexed by Study Instance UID or Patient ID."""

    table: pd.DataFrame


def read_any_labels(path: Path) -> SliceLabels | StudyLabels:
    """Read labels of slices (see `read_labels`), or of studies in one of two forms, as the columns tell.

    CQ500's reads.csv: `name` (its Patient ID) and three readers' columns; what two of three see is there, and `any` is
    their ICH. Or a row a study: one of NAME_COLUMNS and the subtypes, `any` may be absent and is then their maximum.

    Refused with UsageError: what `read_labels` refuses, a missing reader's column, values other than 0 and 1, a name
    twice or none, in the second form `any` = 0 beside a positive subtype. (Readers may disagree so.)
    """
    columns = read_columns(path, "labels")
    if f"{READERS[0]}:{READS['any']}" in columns:
        return _majority(path, columns)
    of_slices = any(c in columns for c in ID_COLUMNS)
    if not of_slices and set(SUBTYPES) <= set(columns) and (named := [c for c in NAME_COLUMNS if c in columns]):
        return _of_rows(path, named[0])
    return read_labels(path)


def _majority(path: Path, columns: list[str]) -> StudyLabels:
    wanted = [f"{reader}:{read}" for reader in READERS for read in READS.values()]
    if missing := [c for c in ("name", *wanted) if c not in columns]:
        raise UsageError(f"{path} looks like CQ500's reads.csv but lacks {', '.join(missing)}. Take the original file.")
    table = read_table(path, "reads", str)
    table.columns = table.columns.str.strip()
    votes = sum(_bits(table[[f"{reader}:{read}" for read in READS.values()]], path).astype(int) for reader in READERS)
    return _named(table["name"], np.asarray(votes >= len(READERS) / 2, np.uint8), path)


def _of_rows(path: Path, name: str) -> StudyLabels:
    table = read_table(path, "labels", str)
    table.columns = table.columns.str.strip()
    subtypes = _bits(table[list(SUBTYPES)], path)
    positive = _bits(table[["any"]], path)[:, 0] if "any" in table.columns else subtypes.max(axis=1)
    if (contradicts := positive < subtypes.max(axis=1)).any():
        row = int(contradicts.argmax()) + 2
        raise UsageError(f"{path}: 'any' is 0 beside a positive subtype in row {row}. Mend the file and run again.")
    return _named(table[name], np.column_stack([subtypes, positive]), path)


def _bits(values: pd.DataFrame, path: Path) -> NDArray[np.uint8]:
    """Return zeros and ones, (B, L)."""
    text = values.apply(lambda column: column.str.strip().str.removesuffix(".0"))
    bad = ~text.isin(["0", "1"])
    if bad.to_numpy().any():
        row, column = np.argwhere(bad.to_numpy())[0]
        raise UsageError(f"{path}: {values.columns[column]} in row {row + 2} is neither 0 nor 1. Mend the file.")
    return np.asarray(text == "1", np.uint8)


def _named(names: pd.Series[str], bits: NDArray[np.uint8], path: Path) -> StudyLabels:
    index = pd.Index(names.str.strip(), name="name")
    if (index == "").any():
        raise UsageError(f"{path}: labels of nobody in row {int((index == '').argmax()) + 2}. Mend the file.")
    if index.has_duplicates:
        again = int(index.duplicated().argmax())
        first = int((index == index[again]).argmax())  # rows are told: the name may be a Patient ID
        raise UsageError(f"{path}: rows {first + 2} and {again + 2} are of the same name. Mend the file.")
    return StudyLabels(pd.DataFrame(bits, index=index, columns=list(LABELS)))
