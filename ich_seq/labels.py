"""The six labels: their order, reading them from CSV, and patient-grouped folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ich_seq import UsageError
from ich_seq.files import MAX_HASHED_BYTES, open_file

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
"""K = 6, in this order everywhere: arrays, files, weights."""

SUBTYPES = LABELS[:-1]

ID_COLUMNS = ("image_id", "ID", "Image", "image", "sop_uid", "SOPInstanceUID")
"""Names under which a wide label table may hold the SOP Instance UID."""

MAX_NAMED = 3
"""How many offenders an error message names before it only counts them."""


@dataclass(frozen=True)
class SliceLabels:
    """Labels of M slices.

    `table` is indexed by SOP Instance UID, with the columns LABELS, uint8 0 or 1, rows in the order of
    the file. `duplicate_rows` counts rows that only repeated another (RSNA stage_1_train.csv has 24).
    """

    table: pd.DataFrame
    duplicate_rows: int

    def targets(self, sop_uids: list[str]) -> NDArray[np.uint8]:
        """Return the labels of these slices, (len(sop_uids), K). Raises KeyError if one is unknown."""
        import numpy as np

        return self.table.loc[sop_uids].to_numpy(np.uint8)


def read_labels(path: Path) -> SliceLabels:
    """Read slice labels from a CSV (optionally compressed) in one of two forms.

    Long, as RSNA 2019 has it: columns `ID,Label`, six rows a slice, `ID` = `<SOP>_<subtype>`.
    Wide: a column of `ID_COLUMNS` and the subtypes by name; `any` may be absent and is then their maximum.

    Rows that repeat another are dropped and counted. Refused with UsageError: a file of neither form,
    values other than 0 and 1, two rows that disagree, a slice with less than six labels, `any` = 0
    beside a positive subtype.
    """
    raw = read_table(path, "labels", str)
    raw.columns = raw.columns.str.strip()
    if {"ID", "Label"} <= set(raw.columns):
        return _from_long(raw, path)
    if set(SUBTYPES) <= set(raw.columns):
        return wide_labels(raw, path)
    raise UsageError(
        f"{path} is not a label file: expected the columns ID and Label (RSNA long form) "
        f"or {', '.join(SUBTYPES)} beside one of {', '.join(ID_COLUMNS)}; found {', '.join(raw.columns[:8])}"
        f"{told_by_semicolons(list(raw.columns))}"
    )


def told_by_semicolons(columns: Sequence[str]) -> str:
    """Return what to do about a file whose columns are not separated by commas, nothing if they are."""
    apart = len(columns) == 1 and any(mark in columns[0] for mark in ";\t")
    return ". Its columns are not separated by commas: save it as a CSV with commas" if apart else ""


def read_table(path: Path, what: str, dtype: type[str] | dict[str, type[str]]) -> pd.DataFrame:
    """Read a CSV of somebody's, compressed or not, empty cells as empty text; `what` it is said to hold.

    Refused with UsageError: what cannot be read, has no row, or rows longer than its header.
    """
    import pandas as pd

    table = _read_csv(path, what, dtype)
    if table.empty:
        raise UsageError(f"{path} holds no {what}: there is no row below the header.")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a field too many for a row name
        raise UsageError(f"{path}: the rows have more fields than the header has columns. Mend the file and run again.")
    return table


def read_columns(path: Path, what: str) -> list[str]:
    """Return the names of a CSV's columns without the blanks around them. Raises UsageError if it cannot be read."""
    return [str(column).strip() for column in _read_csv(path, what, str, rows=0).columns]


def _read_csv(path: Path, what: str, dtype: type[str] | dict[str, type[str]], rows: int | None = None) -> pd.DataFrame:
    import lzma
    import tarfile
    import zipfile
    import zlib

    import pandas as pd

    archives = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, ImportError)
    try:
        open_file(path, MAX_HASHED_BYTES).close()  # pandas would wait for a pipe
        return pd.read_csv(path, dtype=dtype, keep_default_na=False, encoding="utf-8-sig", nrows=rows)
    except (OSError, ValueError, *archives) as error:
        raise UsageError(f"Cannot read the {what} {path}: {error}") from error


def _from_long(raw: pd.DataFrame, path: Path) -> SliceLabels:
    import numpy as np
    import pandas as pd

    ids = raw["ID"].str.strip()
    parts = ids.str.rsplit("_", n=1, expand=True)
    if parts.shape[1] != len(("SOP", "subtype")):
        raise UsageError(f"{path}: the IDs are not of the form <SOP>_<subtype>, e.g. {ids.iloc[0]!r}")
    column = pd.Index(LABELS).get_indexer(pd.Index(parts[1]))
    _refuse((parts[0] == "").to_numpy(), ids, f"{path}: no SOP Instance UID in ID")
    _refuse(column < 0, ids, f"{path}: unknown subtype in ID")
    values = _zero_or_one(raw["Label"], ids, path)
    row, sops = pd.factorize(parts[0])
    table = np.full((len(sops), len(LABELS)), 255, np.uint8)
    table[row, column] = values
    _refuse(table[row, column] != values, ids, f"{path}: two rows disagree about")
    _refuse((table == 255).any(axis=1), sops, f"{path}: fewer than six labels for")
    labels = pd.DataFrame(table, index=pd.Index(sops, name="sop_uid"), columns=list(LABELS))
    return _checked(labels, len(raw) - table.size, path)


def wide_labels(raw: pd.DataFrame, path: Path, id_columns: Sequence[str] = ID_COLUMNS) -> SliceLabels:
    """Return the labels of a table of texts with a row a slice, as `read_labels` has them; refused is what it refuses.

    The first of `id_columns` that is there names the slices.
    """
    import pandas as pd

    name = next((c for c in id_columns if c in raw.columns), None)
    if name is None:
        raise UsageError(f"{path}: no column holds the SOP Instance UID; name it one of {', '.join(ID_COLUMNS)}")
    ids = raw[name].str.strip().str.removesuffix(".dcm")
    _refuse((ids == "").to_numpy(), "row " + (raw.index + 1).astype(str), f"{path}: no SOP Instance UID in")
    labels = pd.DataFrame({s: _zero_or_one(raw[s], ids, path) for s in SUBTYPES})
    given = _zero_or_one(raw["any"], ids, path) if "any" in raw.columns else labels.max(axis=1).to_numpy()
    labels["any"] = given
    labels.insert(0, "sop_uid", ids)
    distinct = labels.drop_duplicates()
    _refuse(distinct["sop_uid"].duplicated().to_numpy(), distinct["sop_uid"], f"{path}: two rows disagree about")
    return _checked(distinct.set_index("sop_uid"), len(labels) - len(distinct), path)


def _zero_or_one(values: pd.Series[str], ids: pd.Series[str], path: Path) -> NDArray[np.uint8]:
    """Return (M,) uint8; "1", "1.0" and blanks around them are accepted, all else is refused."""
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(values)  # millions of rows hold two texts
    text = pd.Series(distinct, dtype=str).str.strip().str.removesuffix(".0")
    _refuse(~text.isin(["0", "1"]).to_numpy()[codes], ids, f"{path}: the label is neither 0 nor 1 for")
    return (text == "1").to_numpy().astype(np.uint8)[codes]


def _checked(labels: pd.DataFrame, duplicate_rows: int, path: Path) -> SliceLabels:
    contradiction = labels["any"] < labels[list(SUBTYPES)].max(axis=1)
    _refuse(contradiction.to_numpy(), labels.index, f"{path}: 'any' is 0 beside a positive subtype for")
    return SliceLabels(labels, duplicate_rows)


def _refuse(bad: NDArray[np.bool_], ids: pd.Series[str] | pd.Index[str], what: str) -> None:
    if not bad.any():
        return
    named = [str(i) for i in ids[bad][:MAX_NAMED]]
    more = f" and {int(bad.sum()) - len(named)} more" if bad.sum() > len(named) else ""
    raise UsageError(f"{what} {', '.join(named)}{more}. Mend the file and run again.")


def assign_folds(
    patients: NDArray[np.str_], targets: NDArray[np.uint8], *, n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each study, (B,) in 0..n_folds-1: a patient is in one fold only.

    `patients` is (B,) patient keys, `targets` (B, K) study labels. Each patient goes by its rarest
    positive label (patients without any form a stratum too), and the strata are spread evenly over
    the folds. The result does not depend on the order of the studies. Raises UsageError if there are fewer patients
    than folds.
    """
    import numpy as np

    unique, index = np.unique(patients, return_inverse=True)
    if len(unique) < n_folds:
        raise UsageError(
            f"{n_folds} patient-disjoint folds need at least {n_folds} patients; the set has {len(unique)}. "
            "Add patients or lower train.folds."
        )
    positive = np.zeros((len(unique), targets.shape[1]), bool)
    np.logical_or.at(positive, index, targets > 0)
    fold_of_patient = _spread(_rarest_label(positive), n_folds, np.random.default_rng(seed))
    return fold_of_patient[index]


def _rarest_label(positive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each patient, (P, K) -> (P,), the rank of its rarest positive label; K where it has none."""
    import numpy as np

    by_rarity = np.argsort(positive.sum(axis=0), kind="stable")
    ranked = np.concatenate([positive[:, by_rarity], np.ones((len(positive), 1), bool)], axis=1)
    return np.asarray(ranked.argmax(axis=1))


def _spread(stratum: NDArray[np.int64], n_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deal shuffled patients out fold by fold, stratum after stratum, so that every count differs by at most one."""
    import numpy as np

    shuffled = rng.permutation(len(stratum))
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold = np.empty(len(stratum), np.int64)
    fold[dealt] = np.arange(len(stratum)) % n_folds
    return fold
