"""subgroups: studies in the groups that pandas finds, and the figures of a group as scikit-learn has them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from ich_seq.labels import LABELS
from ich_seq.metrics import Resamples
from ich_seq.quality import Sample
from ich_seq.report import GEOMETRY_COLUMNS, MACHINE_COLUMNS
from ich_seq.subgroups import (
    MOST_MATRICES,
    MOST_SCANNERS,
    NOT_NAMED,
    OTHERS,
    groups_of,
    judge_subgroups,
    spread,
)

B, K = 160, len(LABELS)
SCANNERS = [f"maker {i}" for i in range(11)] + [""]
BY_QUERY = {
    ("slices", "under 30"): "slices <= 29",
    ("slices", "30 to 40"): "slices >= 30 and slices <= 40",
    ("slices", "over 40"): "slices >= 41",
    ("spacing", "up to 3 mm"): "not spacing_mm > 3",
    ("spacing", "over 3 mm"): "spacing_mm > 3",
    ("step", "one"): "zones == 1",
    ("step", "changes"): "zones >= 2",
    ("gantry tilt", "under 1 degree"): "tilt_deg > -1 and tilt_deg < 1",
    ("gantry tilt", "1 degree or more"): "tilt_deg <= -1 or tilt_deg >= 1",
    ("gaps", "none"): "gaps == 0",
    ("gaps", "some"): "gaps >= 1",
    ("repeated positions", "none"): "duplicates == 0",
    ("repeated positions", "some"): "duplicates >= 1",
}
"""What each group is, in the words of another program."""


def table(seed: int = 0, studies: int = B) -> pd.DataFrame:
    """What studies.csv says of so many studies, borders of groups among the values."""
    rng = np.random.default_rng(seed)
    shares = np.arange(len(SCANNERS), 0, -1) ** 2.0
    return pd.DataFrame(
        {
            "slices": rng.choice([20, 29, 30, 31, 39, 40, 41, 60], studies),
            "spacing_mm": rng.choice([0.0, 2.5, 3.0, 3.001, 5.0], studies),
            "min_spacing_mm": 2.5,
            "max_spacing_mm": rng.choice([5.0, 7.5, 155.0], studies),
            "zones": rng.integers(1, 4, studies),
            "gaps": rng.integers(0, 2, studies),
            "duplicates": rng.integers(0, 3, studies),
            "tilt_deg": rng.choice([-18.0, -1.0, -0.999, 0.0, 0.999, 1.0, 30.0], studies),
            "rows": rng.choice([512, 512, 512, 256, 768], studies),
            "columns": rng.choice([512, 512, 512, 640], studies),
            "scanner": rng.choice(SCANNERS, studies, p=shares / shares.sum()),
        },
        index=[f"1.2.{i}" for i in range(studies)],
    )


def test_groups_are_those_of_pandas():
    """Of slices, spacing, step, tilt, gaps and repeated positions, to the border, each study in one group of a kind."""
    studies = table()
    assert {*GEOMETRY_COLUMNS, *MACHINE_COLUMNS} <= set(studies.columns)
    found = {(kind, name): marks for kind, groups in groups_of(studies).items() for name, marks in groups.items()}
    assert [pair for pair in found if pair[0] not in ("matrix", "scanner")] == list(BY_QUERY)
    for pair, query in BY_QUERY.items():
        expected = studies.index.isin(studies.query(query).index)
        assert 0 < expected.sum() < B, pair
        assert np.array_equal(np.asarray(found[pair], bool), expected), pair


def commonest(names: list[str], most: int) -> dict[str, list[bool]]:
    """The most frequent names, ties by name, and what is left over, counted by hand."""
    ranked = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    own = [name for name, _ in ranked[:most]]
    marks = {name: [n == name for n in names] for name in own}
    return marks | ({OTHERS: [n not in own for n in names]} if len(ranked) > most else {})


@pytest.mark.parametrize("seed", range(3))
def test_matrices_and_scanners_go_by_how_many_studies_they_have(seed):
    """The commonest by themselves, the others together; a scanner that the header does not name is a group too."""
    studies = table(seed)
    found = groups_of(studies)
    matrices = [f"{rows} x {columns}" for rows, columns in studies[["rows", "columns"]].itertuples(index=False)]
    scanners = [name or NOT_NAMED for name in studies["scanner"]]
    for kind, names, most in (("matrix", matrices, MOST_MATRICES), ("scanner", scanners, MOST_SCANNERS)):
        expected = commonest(names, most)
        assert list(found[kind]) == list(expected)
        assert OTHERS in found[kind]
        for name, marks in expected.items():
            assert np.asarray(found[kind][name]).tolist() == marks, (kind, name)


@settings(deadline=None, max_examples=40)
@given(names=st.lists(st.sampled_from(SCANNERS), min_size=1, max_size=40))
def test_every_study_is_in_one_group_of_scanners(names):
    """However many there are; others only where there are more than MOST_SCANNERS."""
    marks = groups_of(table(studies=len(names)).assign(scanner=names))["scanner"]
    assert np.sum([np.asarray(m, int) for m in marks.values()], axis=0).tolist() == [1] * len(names)
    assert (OTHERS in marks) == (len(set(names)) > MOST_SCANNERS)
    assert (NOT_NAMED in marks or OTHERS in marks) if "" in names else NOT_NAMED not in marks


def test_numbers_of_a_table_read_back_make_the_same_matrices():
    """As floats, as a table with a hole has them, a matrix is still written without a point."""
    studies = table().astype({"rows": float, "columns": float})
    assert list(groups_of(studies)["matrix"]) == list(groups_of(table())["matrix"])
    assert all("." not in name for name in groups_of(studies)["matrix"])


def test_a_scanner_may_be_called_what_the_others_are():
    """No study falls between the groups, whatever a header says."""
    names = [f"maker {i}" for i in range(MOST_SCANNERS + 1)] + [OTHERS] * 3
    marks = groups_of(table(studies=len(names)).assign(scanner=names))["scanner"]
    assert np.sum([np.asarray(m, int) for m in marks.values()], axis=0).tolist() == [1] * len(names)


def test_a_matrix_that_is_not_known_is_not_named():
    """As a scanner: an emptied cell is no number of rows."""
    assert NOT_NAMED in groups_of(table(studies=3).assign(rows=[512, np.nan, 512], columns=512))["matrix"]


@pytest.mark.parametrize("missing", MACHINE_COLUMNS)
def test_tables_of_before_have_no_groups_of_machines(missing):
    """One of the three columns lacks: neither matrix nor scanner, all else as ever."""
    found = groups_of(table().drop(columns=missing))
    assert list(found) == list(dict.fromkeys(kind for kind, _ in BY_QUERY))


def sample_of(studies: pd.DataFrame, seed: int = 1) -> tuple[np.ndarray, Sample]:
    """Probabilities of any haemorrhage that tell something, and what they are held against."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((len(studies), K)) < 0.3).astype(np.uint8)
    said = 1 / (1 + np.exp(1 - 2.0 * targets[:, -1] + rng.normal(size=len(studies))))
    patients = np.array([f"patient {i % 90}" for i in range(len(studies))])
    resamples = Resamples(patients, resamples=50, seed=0)
    return said, Sample(targets=targets, resamples=resamples, prevalence=targets.mean(axis=0))


def test_figures_of_a_group_are_scikit_learns():
    """AUROC, both operating points and log loss of any haemorrhage, among the group's studies alone."""
    studies = table()
    said, sample = sample_of(studies)
    judged = judge_subgroups(said, studies, sample)
    assert list(judged) == [*dict.fromkeys(kind for kind, _ in BY_QUERY), "matrix", "scanner"]
    compared = 0
    for (kind, name), query in BY_QUERY.items():
        chosen = studies.index.isin(studies.query(query).index)
        y, p, figures = sample.targets[chosen, -1], said[chosen], judged[kind][name]
        assert (figures["studies"], figures["positive"]) == (chosen.sum(), y.sum())
        alarms, hits, _ = roc_curve(y, p, drop_intermediate=False)
        expected = {
            "auroc": roc_auc_score(y, p),
            "sensitivity_at_95_specificity": hits[1 - alarms >= 0.95 - 1e-9].max(),
            "specificity_at_95_sensitivity": (1 - alarms)[hits >= 0.95 - 1e-9].max(),
            "log_loss": log_loss(y, p, labels=[0, 1]),
        }
        assert set(figures) == {"studies", "positive", *expected}
        for figure, value in expected.items():
            assert figures[figure]["value"] == pytest.approx(value, abs=1e-6), (kind, name, figure)
            assert figures[figure]["low"] <= figures[figure]["value"] <= figures[figure]["high"]
            compared += 1
    assert compared == 4 * len(BY_QUERY)


def test_the_studies_of_a_kind_add_up_and_so_do_the_positives():
    """Groups share nobody and lose nobody."""
    studies = table(3)
    said, sample = sample_of(studies)
    for kind, groups in judge_subgroups(said, studies, sample).items():
        assert sum(g["studies"] for g in groups.values()) == B, kind
        assert sum(g["positive"] for g in groups.values()) == sample.targets[:, -1].sum(), kind


def test_what_a_group_cannot_tell_is_left_open():
    """Without a study there are counts only, without a positive no AUROC but a log loss."""
    studies = table(studies=6).assign(slices=[20, 20, 20, 50, 50, 50])
    said, sample = sample_of(studies)
    sample.targets[:, -1] = [0, 0, 0, 0, 1, 0]
    judged = judge_subgroups(said, studies, sample)["slices"]
    assert judged["30 to 40"] == {"studies": 0, "positive": 0}
    assert judged["under 30"]["studies"] == 3
    assert judged["under 30"]["auroc"] is None
    assert judged["under 30"]["specificity_at_95_sensitivity"] is None
    expected = log_loss([0] * 3, said[:3], labels=[0, 1])
    assert judged["under 30"]["log_loss"]["value"] == pytest.approx(expected, abs=1e-6)
    assert judged["over 40"]["auroc"]["value"] == roc_auc_score([0, 1, 0], said[3:])


def test_the_spread_is_numpys():
    """Least, quantiles and most of each number."""
    studies = table()
    found = spread(studies)
    assert list(found) == ["slices", "spacing_mm", "max_spacing_mm", "tilt_deg"]
    for column, values in found.items():
        expected = np.quantile(studies[column].to_numpy(float), [0, 0.05, 0.5, 0.95, 1])
        assert list(values) == ["least", "5 %", "median", "95 %", "most"]
        assert list(values.values()) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_number_that_no_study_has_is_left_open():
    """An empty column spreads over nothing, which JSON can say; what some studies have spreads over those."""
    found = spread(table(studies=4).assign(tilt_deg=np.nan, spacing_mm=[np.nan, 2.0, 4.0, np.nan]))
    assert found["tilt_deg"] == dict.fromkeys(["least", "5 %", "median", "95 %", "most"])
    assert (found["spacing_mm"]["least"], found["spacing_mm"]["median"]) == (2.0, 3.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
