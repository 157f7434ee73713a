"""The figures on a card: point values by other means, intervals that respect patients and pairs."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from ich_seq.figures import Predicted, Truth, judge, table
from ich_seq.labels import LABELS
from ich_seq.metrics import Estimate, weighted_log_loss

K = len(LABELS)
ANY = LABELS.index("any")


def truth_of(lengths: list[int], seed: int, *, absent: int | None = None, studies_a_patient: int = 1) -> Truth:
    rng = np.random.default_rng(seed)
    slices = (rng.uniform(size=(sum(lengths), K)) < 0.3).astype(np.uint8)
    if absent is not None:
        slices[:, absent] = 0
    slices[:, ANY] = slices[:, :ANY].max(axis=1)
    patients = np.array([f"p{i // studies_a_patient}" for i in range(len(lengths))])
    starts = np.cumsum([0, *lengths])
    return Truth(
        slices=slices,
        studies=np.stack([slices[a:b].max(axis=0) for a, b in pairwise(starts)]),
        slice_patients=np.repeat(patients, lengths),
        study_patients=patients,
    )


def predictions(truth: Truth, lengths: list[int], seed: int, skill: float = 1.0) -> Predicted:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=truth.slices.shape) - 1 + skill * truth.slices
    return Predicted.of_slices(1 / (1 + np.exp(-logits)), lengths)


LENGTHS = [int(n) for n in np.random.default_rng(9).integers(1, 13, 40)]


@pytest.fixture(scope="module")
def truth() -> Truth:
    return truth_of(LENGTHS, 0, absent=0, studies_a_patient=2)


@pytest.fixture(scope="module")
def predicted(truth) -> dict[str, Predicted]:
    """Three predictors; the last two are all but the same."""
    good = predictions(truth, LENGTHS, 2)
    noise = np.random.default_rng(3).normal(0, 0.002, good.slices.shape)
    twin = Predicted.of_slices(np.clip(good.slices + noise, 0.001, 0.999), LENGTHS)
    return {"poor": predictions(truth, LENGTHS, 1, 0.2), "good": good, "twin": twin}


@pytest.fixture(scope="module")
def figures(predicted, truth) -> dict:
    return judge(predicted, truth, seed=0, against="good")


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_a_study_is_its_likeliest_slice_label_by_label(lengths, seed):
    """In plain loops: the largest probability of each label among the study's own slices."""
    slices = np.random.default_rng(seed).uniform(size=(sum(lengths), K))
    predicted = Predicted.of_slices(slices, lengths)
    start = 0
    for study, n in zip(predicted.studies, lengths, strict=True):
        assert study.tolist() == [max(slices[i, k] for i in range(start, start + n)) for k in range(K)]
        start += n
    assert np.array_equal(predicted.slices, slices)
    assert predicted.studies.shape == (len(lengths), K)


@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=8), data=st.data())
@settings(deadline=None, max_examples=20)
def test_joined_groups_are_the_whole(lengths, data):
    """Predicted in two groups and joined, studies are as if predicted together."""
    cut = data.draw(st.integers(1, len(lengths) - 1))
    slices = np.random.default_rng(0).uniform(size=(sum(lengths), K))
    at = sum(lengths[:cut])
    joined = Predicted.joined(
        [Predicted.of_slices(slices[:at], lengths[:cut]), Predicted.of_slices(slices[at:], lengths[cut:])]
    )
    whole = Predicted.of_slices(slices, lengths)
    assert np.array_equal(joined.slices, whole.slices)
    assert np.array_equal(joined.studies, whole.studies)


@pytest.mark.parametrize("level", ["slice", "study"])
def test_point_figures_are_those_of_other_libraries(figures, predicted, truth, level):
    """Losses equal scikit-learn's log loss with `any` twice, AUCs equal scikit-learn's, for every predictor."""
    for name, p in predicted.items():
        said, y = (p.slices, truth.slices) if level == "slice" else (p.studies, truth.studies)
        loss = figures[name][f"{level}_loss"]["value"]
        by_sklearn = [log_loss(y[:, k], said[:, k], labels=[0, 1]) for k in range(K)]
        assert loss == pytest.approx(np.average(by_sklearn, weights=[1, 1, 1, 1, 1, 2]), abs=1e-6)
        assert loss == pytest.approx(weighted_log_loss(said, y), abs=1e-6)
        assert list(figures[name][f"{level}_auc"]) == list(LABELS)
        for k, label in enumerate(LABELS):
            found = figures[name][f"{level}_auc"][label]
            if 0 < y[:, k].sum() < len(y):
                assert found["value"] == pytest.approx(roc_auc_score(y[:, k], said[:, k]), abs=1e-6)
            else:
                assert found is None


def test_a_label_without_cases_has_no_auc(figures):
    """Where a class is absent there is no AUC: None, not a number and not NaN; its loss still counts."""
    for entry in figures.values():
        assert entry["slice_auc"]["epidural"] is None
        assert entry["study_auc"]["epidural"] is None
        assert entry["slice_auc"]["subdural"]["value"] > 0
    json.dumps(figures, allow_nan=False)


def test_a_class_absent_the_other_way_has_no_auc_either():
    """A label that every row carries has no AUC."""
    lengths = [2] * 6
    truth = truth_of(lengths, 0)
    truth.slices[:, ANY] = 1
    truth.studies[:, ANY] = 1
    entry = judge({"a": predictions(truth, lengths, 1)}, truth, seed=0)["a"]
    assert entry["slice_auc"]["any"] is None
    assert entry["study_auc"]["any"] is None


def test_every_interval_holds_its_figure(figures):
    """Value, low and high stand for every figure, in order."""
    for entry in figures.values():
        for estimate in (entry["slice_loss"], entry["study_loss"], *entry["slice_auc"].values()):
            if estimate is not None:
                assert estimate["low"] < estimate["value"] < estimate["high"]


def test_differences_are_each_other_predictor_minus_the_one_named(figures, predicted, truth):
    """Every predictor but the one named is compared with it, label by label, and the sign says what is better."""
    assert {name: [k for k in entry if k.startswith("difference_to_")] for name, entry in figures.items()} == {
        "poor": ["difference_to_good"],
        "good": [],
        "twin": ["difference_to_good"],
    }
    for name in ("poor", "twin"):
        difference = figures[name]["difference_to_good"]
        assert difference.keys() == {"slice_loss", "slice_auc"}
        losses = [weighted_log_loss(predicted[p].slices, truth.slices) for p in (name, "good")]
        assert difference["slice_loss"]["value"] == pytest.approx(losses[0] - losses[1], abs=2e-6)
        assert list(difference["slice_auc"]) == list(LABELS)
        assert difference["slice_auc"]["epidural"] is None
        for k, label in enumerate(LABELS):
            if label != "epidural":
                aucs = [roc_auc_score(truth.slices[:, k], predicted[p].slices[:, k]) for p in (name, "good")]
                assert difference["slice_auc"][label]["value"] == pytest.approx(aucs[0] - aucs[1], abs=2e-6)
    assert figures["poor"]["difference_to_good"]["slice_loss"]["low"] > 0
    assert figures["poor"]["difference_to_good"]["slice_auc"]["any"]["high"] < 0


def test_nothing_is_compared_unasked(figures, predicted, truth):
    """Without a predictor to compare with there are no differences, and all other figures are the same."""
    alone = judge(predicted, truth, seed=0)
    assert alone == {name: {k: v for k, v in f.items() if k != "difference_to_good"} for name, f in figures.items()}


def test_the_table_shows_any_with_intervals_and_every_label(figures):
    """Two blocks, a row a predictor in each: `any` with its intervals, then the slices' AUC of each label."""
    entries = figures | {"slice_logistic": figures["good"]}
    summary, by_label = (
        [re.split(r"\s{2,}", line.rstrip()) for line in block.split("\n")] for block in table(entries).split("\n\n")
    )
    assert summary[0] == ["", "slice AUC(any)", "study AUC(any)", "slice log loss", "study log loss"]
    assert by_label[0] == ["slice AUC", *LABELS]
    names = [name.replace("_", " ") for name in entries]
    assert [row[0] for row in summary[1:]] == [row[0] for row in by_label[1:]] == names
    for row, labels, entry in zip(summary[1:], by_label[1:], entries.values(), strict=True):
        chosen = (entry["slice_auc"]["any"], entry["study_auc"]["any"], entry["slice_loss"], entry["study_loss"])
        assert row[1:] == [str(Estimate(**figure)) for figure in chosen]
        aucs = [entry["slice_auc"][label] for label in LABELS]
        assert labels[1:] == ["-" if auc is None else f"{auc['value']:.3f}" for auc in aucs]
        assert labels[1 + LABELS.index("epidural")] == "-"


def width(estimate: dict[str, float]) -> float:
    return estimate["high"] - estimate["low"]


def test_a_paired_difference_is_sharper_than_two_figures_apart(figures):
    """Predictors all but equal differ by little on the same patients, however uncertain each of them is by itself."""
    difference = figures["twin"]["difference_to_good"]
    twin, good = figures["twin"], figures["good"]
    pairs = [(difference["slice_loss"], twin["slice_loss"], good["slice_loss"])]
    pairs += [
        (difference["slice_auc"][label], twin["slice_auc"][label], good["slice_auc"][label])
        for label in LABELS
        if label != "epidural"
    ]
    for paired, one, other in pairs:
        assert 0 < width(paired) < np.hypot(width(one), width(other)) / 5


def test_slices_of_one_patient_are_no_independent_evidence():
    """Every slice told five times over leaves the intervals as they were: patients are drawn, not rows."""
    lengths = [3] * 12
    once = truth_of(lengths, 4)
    predicted = predictions(once, lengths, 5)
    rows = np.repeat(np.arange(36).reshape(12, 3), 5, axis=0).reshape(12, 15).ravel()
    often = Truth(
        slices=once.slices[rows],
        studies=once.studies,
        slice_patients=once.slice_patients[rows],
        study_patients=once.study_patients,
    )
    again = Predicted(slices=predicted.slices[rows], studies=predicted.studies)
    a, b = judge({"a": predicted}, once, seed=0)["a"], judge({"a": again}, often, seed=0)["a"]
    assert a["slice_loss"] == pytest.approx(b["slice_loss"], abs=2e-6)
    assert a["slice_auc"]["any"] == pytest.approx(b["slice_auc"]["any"], abs=2e-6)


def test_the_seed_decides_the_intervals(predicted, truth, figures):
    """The same seed gives the same figures to the last digit; another moves intervals and no value."""
    only = {"good": predicted["good"]}
    assert judge(only, truth, seed=0)["good"] == figures["good"]
    other = judge(only, truth, seed=1)["good"]
    assert other["slice_loss"]["value"] == figures["good"]["slice_loss"]["value"]
    assert other["slice_loss"] != figures["good"]["slice_loss"]
