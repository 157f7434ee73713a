"""Areas and operating points against scikit-learn, in one sample and in every resample."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ich_seq import thresholds
from ich_seq.metrics import Resamples
from ich_seq.thresholds import (
    ABOVE_ALL,
    GROUPS,
    MOST_POINTS,
    OperatingPoint,
    at_sensitivity,
    at_specificity,
    average_precisions,
    roc_areas,
    tally,
    tally_resamples,
)


@st.composite
def scored(draw):
    """Scores with many ties and few, of at least one positive and one negative."""
    rows, levels = draw(st.integers(2, 40)), draw(st.sampled_from([2, 5, 1000]))
    scores = draw(st.lists(st.integers(0, levels), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    assume(0 < sum(targets) < rows)
    return np.array(scores) / levels, np.array(targets, np.uint8)


def best_points(scores: np.ndarray, y: np.ndarray, least: float, weights: np.ndarray | None = None):
    """The highest sensitivity of enough specificity and the other way, of all thresholds there are."""
    alarms, hits, _ = roc_curve(y, scores, drop_intermediate=False, sample_weight=weights)
    enough = 1 - alarms >= least - 1e-9, hits >= least - 1e-9
    return hits[enough[0]].max(), (1 - alarms)[enough[1]].max()


@given(case=scored(), least=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]))
@settings(deadline=None, max_examples=100)
def test_areas_and_points_are_scikit_learns(case, least):
    """ROC area, average precision and both operating points of one sample, whatever the ties."""
    scores, y = case
    counted = tally(scores, y)
    assert roc_areas(counted)[0] == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    assert average_precisions(counted)[0] == pytest.approx(average_precision_score(y, scores), abs=1e-12)
    sensitivity, specificity = best_points(scores, y, least)
    assert at_specificity(counted, least).sensitivity[0] == pytest.approx(sensitivity, abs=1e-12)
    assert at_specificity(counted, least).specificity[0] >= least - 1e-9
    assert at_sensitivity(counted, least).specificity[0] == pytest.approx(specificity, abs=1e-12)
    assert at_sensitivity(counted, least).sensitivity[0] >= least - 1e-9


@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_resamples_are_those_of_each_by_itself(levels):
    """All at once or one by one with scikit-learn's weights: row 0 is the data, the others the resamples."""
    rng = np.random.default_rng(levels)
    patients = rng.integers(0, 60, 500).astype(str)
    y = (rng.random(500) < 0.3).astype(np.uint8)
    scores = np.floor((rng.random(500) + 0.5 * y) * levels) / levels
    resamples = Resamples(patients, resamples=30, seed=1)
    counted = tally_resamples(scores, y, resamples)
    areas, precisions = roc_areas(counted), average_precisions(counted)
    put = at_specificity(counted, 0.95).sensitivity, at_sensitivity(counted, 0.95).specificity
    for r, times in enumerate([np.ones(500), *(w[resamples.index].astype(float) for w in resamples.weights)]):
        seen = times > 0
        assert areas[r] == pytest.approx(roc_auc_score(y[seen], scores[seen], sample_weight=times[seen]), abs=1e-9)
        assert precisions[r] == pytest.approx(
            average_precision_score(y[seen], scores[seen], sample_weight=times[seen]), abs=1e-9
        )
        expected = best_points(scores[seen], y[seen], 0.95, times[seen])
        assert (put[0][r], put[1][r]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("prevalence", [0.004, 0.15])
def test_groups_of_scores_hardly_move_a_figure(prevalence):
    """Of 60,000 scores no more than GROUPS are told apart, rare positives among them nearly all."""
    rng = np.random.default_rng(0)
    y = (rng.random(60_000) < prevalence).astype(np.uint8)
    scores = 1 / (1 + np.exp(-rng.normal(size=60_000) - 2 * y))
    counted, whole = tally_resamples(scores, y, Resamples(np.arange(60_000) % 900, resamples=2)), tally(scores, y)
    assert counted.positives.shape[1] <= GROUPS
    assert counted.positives[0].sum() == y.sum()
    assert counted.negatives[0].sum() == (y == 0).sum()
    assert roc_areas(counted)[0] == pytest.approx(roc_areas(whole)[0], abs=1e-3)
    assert average_precisions(counted)[0] == pytest.approx(average_precisions(whole)[0], abs=1e-2)


def test_without_a_class_there_is_no_figure():
    """No positive or no negative: NaN, not 0 and not an error."""
    scores = np.array([0.1, 0.2, 0.3])
    for y in (np.zeros(3, np.uint8), np.ones(3, np.uint8)):
        counted = tally(scores, y)
        assert np.isnan(roc_areas(counted)).all()
        assert np.isnan(at_specificity(counted, 0.95).sensitivity).all()
        assert np.isnan(at_sensitivity(counted, 0.95).specificity).all()
    assert np.isnan(average_precisions(tally(scores, np.zeros(3, np.uint8)))).all()


def test_predictive_values_follow_bayes():
    """Of 1,000 people, 100 of them bleeding, 80 of 170 alarms are right and 810 of 830 silences."""
    point = OperatingPoint(np.array([0.8, 0.0]), np.array([0.9, 1.0]))
    ppv, npv = point.predictive_values(0.1)
    assert ppv[0] == pytest.approx(80 / 170)
    assert npv[0] == pytest.approx(810 / 830)
    assert np.isnan(ppv[1])  # nobody is called positive
    assert npv[1] == pytest.approx(0.9)


def area(curve: dict[str, list[float]]) -> float:
    """Under the points of a curve, by trapezoids."""
    return float(np.trapezoid(curve["sensitivity"][::-1], 1 - np.array(curve["specificity"][::-1])))


def assert_on_scikit_learns(curve: dict[str, list[float]], scores: np.ndarray, y: np.ndarray) -> None:
    """Every point is what scikit-learn has at that threshold, the ends are there, and it only ever rises."""
    alarms, hits, at = roc_curve(y, scores, drop_intermediate=False)
    expected = {round(t, 6): (h, 1 - a) for t, h, a in zip(at[1:], hits[1:], alarms[1:], strict=True)}
    expected[ABOVE_ALL] = 0.0, 1.0
    found = zip(curve["threshold"], curve["sensitivity"], curve["specificity"], strict=True)
    for threshold, sensitivity, specificity in found:
        assert (sensitivity, specificity) == pytest.approx(expected[threshold], abs=1e-6)
    assert curve["threshold"][0] == round(scores.min(), 6)
    assert curve["threshold"][-1] == ABOVE_ALL
    assert (np.diff(curve["threshold"]) > 0).all()


@given(case=scored())
@settings(deadline=None, max_examples=100)
def test_a_curve_of_few_rows_is_whole(case):
    """All of scikit-learn's points and no other, as JSON; the trapezoids below them are the area, ties and all."""
    scores, y = case
    curve = thresholds.roc_curve(scores, y)
    assert_on_scikit_learns(curve, scores, y)
    assert len(curve["threshold"]) == len(np.unique(scores)) + 1
    assert area(curve) == pytest.approx(roc_auc_score(y, scores), abs=1e-5)
    assert json.loads(json.dumps(curve)) == curve


@pytest.mark.parametrize("prevalence", [0.004, 0.15, 0.9])
def test_a_curve_of_many_rows_is_thinned_evenly(prevalence):
    """Of 60,000 rows points of scikit-learn's curve, no more than MOST_POINTS, none far from the next, and its area."""
    rng = np.random.default_rng(1)
    y = (rng.random(60_000) < prevalence).astype(np.uint8)
    scores = (1 / (1 + np.exp(-rng.normal(size=60_000) - 2 * y))).round(6)
    curve = thresholds.roc_curve(scores, y)
    assert_on_scikit_learns(curve, scores, y)
    assert MOST_POINTS / 2 < len(curve["threshold"]) <= MOST_POINTS
    steps = np.abs(np.diff(curve["sensitivity"])) + np.abs(np.diff(curve["specificity"]))
    assert steps.max() < 3 * 2 / MOST_POINTS + 1 / y.sum()
    assert area(curve) == pytest.approx(roc_auc_score(y, scores), abs=1e-3)


def test_a_curve_of_few_points_and_many_rows_is_whole():
    """31 points are fewer than MOST_POINTS: none is left out, though some lie close together."""
    rng = np.random.default_rng(0)
    scores = rng.choice(30, 5_000, p=np.arange(1, 31) ** 3 / (np.arange(1, 31) ** 3).sum()) / 30
    y = (rng.random(5_000) < 0.3).astype(np.uint8)
    curve = thresholds.roc_curve(scores, y)
    assert len(curve["threshold"]) == len(np.unique(scores)) + 1
    assert area(curve) == pytest.approx(roc_auc_score(y, scores), abs=1e-5)


@pytest.mark.parametrize("positive", [0, 1])
def test_a_curve_needs_both_classes(positive):
    """Without a positive, or without a negative, there is none to draw."""
    assert thresholds.roc_curve(np.array([0.1, 0.5, 0.5]), np.full(3, positive, np.uint8)) is None
