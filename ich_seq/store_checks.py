"""What a feature store has to be beyond its hashes, which whoever writes into it can write too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich_seq import ArtefactError
from ich_seq.files import plain_name
from ich_seq.labels import LABELS

if TYPE_CHECKING:
    from ich_seq.store import StudyFeatures

TEXTS, NUMBERS, FLAGS = ("study_uid", "patient_key", "file", "sha256"), ("network", "slices"), ("in_sample",)
JOURNALLED: dict[str, type] = (
    dict.fromkeys(("key", "fingerprint", *TEXTS), str)
    | dict.fromkeys(("bytes", *NUMBERS), int)
    | dict.fromkeys(("whole", *FLAGS), bool)
)
"""Types of what a row of the journal holds: all of a row of the index, and more."""


def read_index(data: bytes, path: Path, *, most_rows: int) -> pd.DataFrame:
    """Return a store's index of its bytes. Raises ArtefactError for any other table.

    `most_rows` is how many files of studies there are: a few bytes of Parquet can claim rows without end.
    """
    try:
        parquet = pq.ParquetFile(io.BytesIO(data))
        if parquet.metadata.num_rows > most_rows:
            raise ValueError("more rows than files")
        table = parquet.read()
        _check_columns(table.schema)
        index: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        _check_rows(index)
    except Exception as error:  # whatever Arrow and pandas raise: their formats have many ends
        raise ArtefactError(f"{path} is no index of this store ({error}); extract the features again.") from error
    return index


def _check_columns(schema: pa.Schema) -> None:
    wanted = (
        *((name, (pa.types.is_string, pa.types.is_large_string)) for name in TEXTS),
        *((name, (pa.types.is_integer,)) for name in NUMBERS),
        *((name, (pa.types.is_boolean,)) for name in FLAGS),
    )
    for name, kinds in wanted:
        if not any(kind(schema.field(name).type) for kind in kinds):
            raise ValueError(f"{name} is of type {schema.field(name).type}")


def _check_rows(index: pd.DataFrame) -> None:
    if index.empty or index[[*TEXTS, *NUMBERS, *FLAGS]].isna().to_numpy().any():
        raise ValueError("no rows, or rows with holes")
    for name in index["file"]:
        plain_name(name)
    if index["file"].duplicated().any() or index[["study_uid", "network"]].duplicated().any():
        raise ValueError("one file or study twice")


def check_journalled(row: dict[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError for a row that this store has not journalled."""
    for name, kind in JOURNALLED.items():
        if type(row[name]) is not kind:
            raise TypeError(f"{name} is {row[name]!r}")


def check_study(study: StudyFeatures, row: pd.Series[Any], path: Path) -> None:
    """Raise ArtefactError for a study that is not the row's, or that no encoder could have made.

    That is one with arrays of other shapes or types, what is no number, or slices without order or names.
    """
    names = (study.study_uid, study.patient_key, *study.sop_uids)
    there = (study.study_uid, study.patient_key, study.network, len(study.sop_uids))
    if type(study.network) is not int or not all(type(name) is str for name in names):
        raise ArtefactError(f"{path}: names are no texts, or a network has no number; extract the features again.")
    if there != tuple(row[["study_uid", "patient_key", "network", "slices"]]) or not study.sop_uids:
        raise ArtefactError(f"{path} holds another study than the index says; extract the features again.")
    if wrong := [name for name, sound in _sound(study).items() if not sound]:
        raise ArtefactError(f"{path}: {', '.join(wrong)} are not valid; extract the features again.")


def _sound(study: StudyFeatures) -> dict[str, bool]:
    """Tell of each part of a study whether it can be meant."""
    rows, logits, positions_mm = len(study.sop_uids), study.logits, study.positions_mm
    return {
        "slices": len(set(study.sop_uids)) == rows,
        "positions": _is(positions_mm, np.float64, (rows,)) and not (np.diff(positions_mm) < 0).any(),
        "features": _is(study.features, np.float16, (rows, study.features.shape[-1])),
        "logits": logits is None or _is(logits, np.float32, (rows, len(LABELS))),
    }


def _is(array: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    return bool(array.dtype == dtype and array.shape == shape and np.isfinite(array).all())
