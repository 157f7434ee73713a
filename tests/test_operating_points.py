"""Operating points: what they promise, on the studies they were chosen on, and what they say of others."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_seq.calibration import LEAST_STUDIES
from ich_seq.codes import Verdict
from ich_seq.labels import LABELS
from ich_seq.operating_points import NO_POINTS, SENSITIVITY, SPECIFICITY, OperatingPoints, choose_points

K = len(LABELS)


@st.composite
def judged(draw):
    """Probabilities and labels of 20 to 120 studies, with ties, of predictors from useless to perfect."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    studies, skill = draw(st.integers(20, 120)), draw(st.sampled_from([0, 0.5, 1, 2, 6]))
    targets = (rng.random((studies, K)) < rng.uniform(0.1, 0.9, K)).astype(np.uint8)
    scores = 1 / (1 + np.exp(-rng.normal(skill * (targets - 0.5), 1)))
    return scores.round(draw(st.sampled_from([1, 2, 6]))), targets


def plainly_chosen(scores, targets):
    """The same by trying every score as a threshold."""
    positive, negative = scores[targets > 0], scores[targets == 0]
    if min(len(positive), len(negative)) < LEAST_STUDIES:
        return None, None
    candidates = sorted(set(scores.tolist()))
    specific = [t for t in candidates if 20 * (negative < t).sum() >= 19 * len(negative)]
    sensitive = [t for t in candidates if 20 * (positive >= t).sum() >= 19 * len(positive)]
    above = min(specific, default=None)
    below = max(sensitive) if above is None else min(max(sensitive), above)
    return (below if (scores < below).any() else None), above


@given(judged())
def test_thresholds_are_those_that_trying_all_finds(case):
    """For each label, also where it is rare or all scores are alike."""
    points = choose_points(*case)
    expected = [plainly_chosen(p, t) for p, t in zip(*(x.T for x in case), strict=True)]
    assert [*zip(points.absent_below, points.present_from, strict=True)] == expected


@given(judged())
def test_both_promises_are_kept_where_the_thresholds_were_chosen(case):
    """At most one in twenty with a label is Absent, at most one in twenty without is Present."""
    scores, targets = case
    points = choose_points(scores, targets)
    said = np.array([points.verdicts(row, doubtful=False) for row in scores])
    for k in range(K):
        if (targets[:, k] > 0).any():
            assert (said[targets[:, k] > 0, k] == Verdict.ABSENT).mean() <= 1 - SENSITIVITY + 1e-9
        if (targets[:, k] == 0).any():
            assert (said[targets[:, k] == 0, k] == Verdict.PRESENT).mean() <= 1 - SPECIFICITY + 1e-9


@given(judged())
def test_more_probable_is_never_said_to_be_less(case):
    """Absent, Undetermined, Present, in this order of rising probability; of a doubtful study nothing is Absent."""
    points = choose_points(*case)
    order = [Verdict.ABSENT, Verdict.UNDETERMINED, Verdict.PRESENT]
    steps = [points.verdicts(np.full(K, p), doubtful=False) for p in np.linspace(0, 1, 41)]
    for of_label in zip(*steps, strict=True):
        assert sorted(of_label, key=order.index) == [*of_label]
    careful = [points.verdicts(np.full(K, p), doubtful=True) for p in np.linspace(0, 1, 41)]
    softened = [tuple(Verdict.UNDETERMINED if v == Verdict.ABSENT else v for v in step) for step in steps]
    assert careful == softened


def test_a_predictor_that_parts_the_classes_leaves_nothing_undetermined():
    """Present begins with the lowest of those with the label, or below, and all lower ones are Absent."""
    targets = np.repeat([[0], [1]], 30, axis=0).repeat(K, axis=1).astype(np.uint8)
    points = choose_points(np.linspace(0.1, 0.9, 60)[:, None].repeat(K, axis=1), targets)
    assert points.absent_below == points.present_from
    assert Verdict.UNDETERMINED not in points.verdicts(np.full(K, 0.45), doubtful=False)


@pytest.mark.parametrize("few", [0, 1, LEAST_STUDIES - 1])
@pytest.mark.parametrize("rare", [0, 1])
def test_a_rare_label_is_always_undetermined(few, rare):
    """Of fewer than twenty studies with it, or without it, no threshold is chosen."""
    targets = np.full((60, K), 1 - rare, np.uint8)
    targets[:few] = rare
    assert choose_points(np.random.default_rng(0).random((60, K)), targets) == NO_POINTS


def test_what_is_no_number_is_undetermined():
    """A study without a probability is neither, and thresholds are chosen of numbers only."""
    points = OperatingPoints(absent_below=(0.5,) * K, present_from=(0.6,) * K)
    assert points.verdicts(np.full(K, np.nan), doubtful=False) == (Verdict.UNDETERMINED,) * K
    targets = np.repeat([[0], [1]], 30, axis=0).repeat(K, axis=1).astype(np.uint8)
    assert choose_points(np.full((60, K), np.nan), targets) == NO_POINTS


@given(judged())
def test_a_card_keeps_them(case):
    """As JSON, whatever is null; a card without any leaves all undetermined."""
    points = choose_points(*case)
    assert OperatingPoints.from_json(json.loads(json.dumps(points.to_json(), allow_nan=False))) == points
    assert OperatingPoints.from_json(None) == NO_POINTS


@pytest.mark.parametrize(
    "change",
    [
        {"absent_below": [0.1] * 5},
        {"absent_below": None},
        {"absent_below": "0.1"},
        {"present_from": [1.5] * 6},
        {"present_from": [float("nan")] * 6},
        {"present_from": [True] * 6},
        {"present_from": ["0.5"] * 6},
        {"absent_below": [0.7] * 6, "present_from": [0.6] * 6},
    ],
)
def test_what_are_no_thresholds_is_refused(change):
    """Of a damaged card: too few, no numbers, no probabilities, or both at once."""
    sound = OperatingPoints(absent_below=(0.1,) * K, present_from=(0.6,) * K).to_json()
    with pytest.raises((ValueError, TypeError)):
        OperatingPoints.from_json(sound | change)
