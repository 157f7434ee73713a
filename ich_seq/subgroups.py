"""Groups of studies by how and on what they were taken, and how well each is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq.quality import Sample, of_labels
from ich_seq.report import MACHINE_COLUMNS

FIGURES = ("auroc", "sensitivity_at_95_specificity", "specificity_at_95_sensitivity", "log_loss")
MOST_SCANNERS = 8
"""So many scanners are a group each, those of most studies; all others are one."""

MOST_MATRICES = 4
OTHERS, NOT_NAMED = "(others)", "(not named)"
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}

Groups = Mapping[str, Any]
BY_GEOMETRY: dict[str, Callable[[pd.DataFrame], Groups]] = {
    "slices": lambda g: {
        "under 30": g["slices"] < 30, "30 to 40": g["slices"].between(30, 40), "over 40": g["slices"] > 40,
    },
    "spacing": lambda g: {
        "up to 3 mm": g["spacing_mm"] <= 3, "over 3 mm": g["spacing_mm"] > 3,
    },
    "step": lambda g: {"one": g["zones"] <= 1, "changes": g["zones"] > 1},
    "gantry tilt": lambda g: {"under 1 degree": g["tilt_deg"].abs() < 1, "1 degree or more": g["tilt_deg"].abs() >= 1},
    "gaps": lambda g: {"none": g["gaps"] == 0, "some": g["gaps"] > 0},
    "repeated positions": lambda g: {"none": g["duplicates"] == 0, "some": g["duplicates"] > 0},
}  # fmt: skip
"""By what the studies.csv of predict says of a study."""


def groups_of(studies: pd.DataFrame) -> dict[str, Groups]:
    """Return marks of the B studies by kind of group and group; matrix and scanner where the table has them."""
    found = {name: of(studies) for name, of in BY_GEOMETRY.items()}
    if set(MACHINE_COLUMNS) <= set(studies.columns):
        found["matrix"] = _commonest(_matrices(studies), MOST_MATRICES)
        found["scanner"] = _commonest(studies["scanner"].replace("", NOT_NAMED), MOST_SCANNERS)
    return found


def _matrices(studies: pd.DataFrame) -> pd.Series[str]:
    sizes = studies["rows"].map("{:.0f}".format) + " x " + studies["columns"].map("{:.0f}".format)
    return sizes.where(studies[["rows", "columns"]].notna().all(axis=1), NOT_NAMED)


def _commonest(names: pd.Series[str], most: int) -> dict[str, NDArray[np.bool_]]:
    """Return marks for each of the commonest names, and for all others together if there are any."""
    counts = sorted(names.value_counts().items(), key=lambda item: (-item[1], str(item[0])))
    known = [str(name) for name, _ in counts if name != OTHERS][:most]
    marks = {name: (names == name).to_numpy() for name in known}
    others = ~names.isin(known).to_numpy()
    return marks | ({OTHERS: others} if others.any() else {})


def judge_subgroups(said: NDArray[np.float64], studies: pd.DataFrame, sample: Sample) -> dict[str, Any]:
    """Return how many studies each group has and, if any, their figures of any haemorrhage, (B,) probabilities."""
    return {
        name: {group: _of_group(said, np.asarray(marks, bool), sample) for group, marks in groups.items()}
        for name, groups in groups_of(studies).items()
    }


def _of_group(said: NDArray[np.float64], chosen: NDArray[np.bool_], sample: Sample) -> dict[str, Any]:
    y = sample.targets[chosen, -1]
    counts = {"studies": int(chosen.sum()), "positive": int(y.sum())}
    if not counts["studies"]:
        return counts
    part = Sample(targets=y[:, None], resamples=sample.resamples.of(chosen), prevalence=sample.prevalence[-1:])
    (figures,) = of_labels(said[chosen, None], part)
    return counts | {name: figures[name].json() for name in FIGURES}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def spread(studies: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Return for each number that describes a study how it spreads over the studies, None where no study has it."""
    columns = ("slices", "spacing_mm", "max_spacing_mm", "tilt_deg")
    shares = list(QUANTILES.values())
    return {
        column: dict(zip(QUANTILES, map(_known, studies[column].quantile(shares).round(4)), strict=True))
        for column in columns
    }
