"""What train-rnn said of studies whose patients its networks did not know, as tables that evaluate reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ich_seq import UsageError
from ich_seq.figures import Predicted
from ich_seq.files import spare_others, write_bytes
from ich_seq.labels import LABELS
from ich_seq.report import DECIMALS, PARTS, RUN, SLICES, STUDIES
from ich_seq.sequences import LabelledStudy
from ich_seq.tables import csv_table

PREFIXES = {"blend": ""} | {name: f"{name}_" for name in PARTS}
"""A table's own columns are the blend's; those of its parts stand beside them, as predict writes them."""


def check_place(root: Path, out: Path) -> None:
    """Raise UsageError for a folder that is to hold the bundle too, or that has another command's results."""
    if root.resolve() == out.resolve() or (root / RUN).exists():
        raise UsageError(f"{root} is for other results; choose another folder for --predictions.")
    spare_others(root, SLICES)


def write_out_of_fold(root: Path, studies: Sequence[LabelledStudy], said: Mapping[str, Predicted]) -> None:
    """Write slices.csv and studies.csv of what was said of studies: by name the blend and its parts.

    Patients are numbered. Raises OutputError if the folder cannot be written.
    """
    uids = [s.features.study_uid for s in studies]
    slices = pd.DataFrame(
        {
            "study_uid": np.repeat(uids, [len(s) for s in studies]),
            "sop_uid": [sop for s in studies for sop in s.features.sop_uids],
            "position_mm": np.concatenate([s.features.positions_mm for s in studies]),
        }
    )
    patients = pd.factorize(np.array([s.features.patient_key for s in studies]))[0] + 1
    of_studies = pd.DataFrame({"study_uid": uids, "patient": patients})
    for name, table, level in ((SLICES, slices, "slices"), (STUDIES, of_studies, "studies")):
        columns = {
            f"{prefix}{label}": getattr(said[part], level)[:, k]
            for part, prefix in PREFIXES.items()
            for k, label in enumerate(LABELS)
        }
        write_bytes(root / name, csv_table(table.assign(**columns), float_format=f"%.{DECIMALS}f"))
