"""The challenge's loss and AUC against scikit-learn, and intervals against slow ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from ich_seq.labels import LABELS
from ich_seq.metrics import (
    CLIP,
    LOSS_WEIGHTS,
    Estimate,
    RankedScores,
    Resamples,
    auc,
    bootstrap,
    log_losses,
    weighted_log_loss,
)

RSNA_PREVALENCE = np.array([0.00409, 0.04830, 0.03525, 0.04764, 0.06303, 0.1440])


@st.composite
def predictions(draw, columns=6):
    """Probabilities (from the ends of [0, 1] too), targets, and whole-number weights that are not all 0."""
    rows = draw(st.integers(1, 25))
    values = draw(st.lists(st.floats(0, 1), min_size=rows * columns, max_size=rows * columns))
    targets = draw(st.lists(st.integers(0, 1), min_size=rows * columns, max_size=rows * columns))
    weights = draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows).filter(any))
    shape = (rows, columns)
    return np.reshape(values, shape), np.reshape(targets, shape).astype(np.uint8), np.array(weights, float)


@given(case=predictions())
@settings(deadline=None, max_examples=60)
def test_the_loss_is_sklearns_by_column_with_any_twice(case):
    """The weighted log loss is scikit-learn's log loss of each label, `any` counted twice, divided by 7."""
    p, y, w = case
    clipped = np.clip(p, CLIP, 1 - CLIP)
    for weights in (None, w):
        columns = [log_loss(y[:, k], clipped[:, k], labels=[0, 1], sample_weight=weights) for k in range(len(LABELS))]
        expected = (sum(columns) + columns[LABELS.index("any")]) / 7
        assert weighted_log_loss(p, y, weights) == pytest.approx(expected, rel=1e-9)


def test_the_loss_of_known_predictions():
    """0.5 everywhere scores ln 2; the prevalences of RSNA score 0.2320 on data of that prevalence."""
    y = np.random.default_rng(0).integers(0, 2, (50, 6)).astype(np.uint8)
    assert weighted_log_loss(np.full((50, 6), 0.5), y) == pytest.approx(math.log(2), abs=1e-12)
    assert pytest.approx(0.6931, abs=5e-5) == math.log(2)
    count = 100_000
    y = (np.arange(count)[:, None] < np.round(RSNA_PREVALENCE * count)).astype(np.uint8)
    assert weighted_log_loss(np.tile(RSNA_PREVALENCE, (count, 1)), y) == pytest.approx(0.2320, abs=5e-4)


def test_any_weighs_twice():
    """A mistake in `any` costs twice a mistake in a subtype, and the weights sum to one."""
    assert LOSS_WEIGHTS.tolist() == pytest.approx([2 / 7 if label == "any" else 1 / 7 for label in LABELS])
    good = np.zeros((1, 6))
    cost = [weighted_log_loss(good + 0.5 * np.eye(6)[[k]], np.zeros((1, 6), np.uint8)) for k in range(6)]
    assert np.array(cost) - weighted_log_loss(good, np.zeros((1, 6), np.uint8)) == pytest.approx(
        math.log(2) * LOSS_WEIGHTS, abs=1e-4
    )


def test_a_sure_mistake_costs_a_finite_price():
    """Probabilities of 0 and 1 are clipped, so that one mistake costs ln(1/CLIP) and no more."""
    worst = weighted_log_loss(np.array([[0.0, 1, 0, 1, 0, 1]]), np.array([[1, 0, 1, 0, 1, 0]], np.uint8))
    assert worst == pytest.approx(-math.log(CLIP), rel=1e-9)
    p32 = log_losses(np.array([0, 1, 0.5], np.float32), np.array([1, 0, 1], np.uint8))
    assert p32 == pytest.approx([-math.log(CLIP), -math.log(CLIP), math.log(2)], rel=1e-2)


@given(case=predictions(columns=3))
@settings(deadline=None, max_examples=40)
def test_each_entrys_loss_keeps_its_place(case):
    """The loss of an entry is that of the entry alone, in any number of leading axes."""
    p, y, _ = case
    losses = log_losses(p[None], y[None])[0]
    for at in np.ndindex(p.shape):
        q = min(max(p[at], CLIP), 1 - CLIP)
        assert losses[at] == pytest.approx(-math.log(q if y[at] else 1 - q), rel=1e-9)


@st.composite
def ranked(draw):
    """Scores on a coarse grid, hence many ties, with targets and weights, both classes present."""
    rows = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-3, 3), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0, 7.5]), min_size=rows, max_size=rows))
    return np.array(scores) / 7, np.array(targets, np.uint8), np.array(weights)


@given(case=ranked())
@settings(deadline=None, max_examples=150)
def test_auc_is_sklearns_with_ties_and_weights(case):
    """The AUC is scikit-learn's, with many ties, with and without weights, and sorted once or anew."""
    scores, y, w = case
    assume(len(set(y.tolist())) == 2)
    assert auc(scores, y) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    both = len(set(y[w > 0].tolist())) == 2
    once = RankedScores(scores, y)
    for _ in range(2):
        if both:
            assert once.auc(w) == pytest.approx(roc_auc_score(y, scores, sample_weight=w), abs=1e-12)
        else:
            assert math.isnan(once.auc(w))
        assert once.auc() == auc(scores, y)
    assert auc(scores, y, w) == pytest.approx(once.auc(w), nan_ok=True)


@given(case=ranked(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_whole_weights_are_repeated_rows(case, data):
    """A weight of n is the row n times over, for AUC and loss alike: the bootstrap rests on it."""
    scores, y, _ = case
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y)).filter(any)))
    again = np.repeat(np.arange(len(y)), counts)
    assert auc(scores, y, counts.astype(float)) == pytest.approx(auc(scores[again], y[again]), abs=1e-12, nan_ok=True)
    p, t = np.tile(np.abs(scores)[:, None], 6), np.tile(y[:, None], 6)
    assert weighted_log_loss(p, t, counts.astype(float)) == pytest.approx(weighted_log_loss(p[again], t[again]))


@pytest.mark.parametrize("targets", [[], [0], [1], [0, 0, 0], [1, 1]])
def test_auc_without_both_classes_is_nan(targets):
    """With one class or no rows there is no AUC; a made-up 0.5 would be taken for a result."""
    y = np.array(targets, np.uint8)
    assert math.isnan(auc(np.linspace(0, 1, len(y)), y))
    assert math.isnan(auc(np.linspace(0, 1, len(y)), y, np.ones(len(y))))


def test_auc_of_scores_that_are_no_numbers_is_nan():
    """A network that diverged has no AUC; sorting NaN to the end would give it one, by the order of the rows."""
    assert math.isnan(auc(np.full(4, np.nan), np.array([0, 0, 1, 1], np.uint8)))
    assert math.isnan(auc(np.array([0.1, 0.2, np.nan, 0.4]), np.array([0, 0, 1, 1], np.uint8)))


def test_an_estimate_prints_as_in_the_reports():
    """A figure prints with three decimals and its interval."""
    assert str(Estimate(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"


# ---- bootstrap ----


def clustered(patients: int, slices: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices of a patient share their luck, in score and in truth: (M,) keys, scores, targets."""
    rng = np.random.default_rng(seed)
    keys = np.repeat([f"p{i}" for i in range(patients)], slices)
    luck = np.repeat(rng.normal(size=patients), slices)
    y = (luck + 0.3 * rng.normal(size=len(keys)) > 0.3).astype(np.uint8)
    scores = 0.6 * luck + np.repeat(rng.normal(size=patients), slices) + 0.3 * rng.normal(size=len(keys))
    order = rng.permutation(len(keys))  # a patient's rows need not stand together
    return keys[order], scores[order], y[order]


def test_whole_patients_are_drawn():
    """Each resample draws as many patients as there are, each with all its rows or none."""
    keys = np.array(["b", "a", "b", "c", "a", "b"])
    seen = []

    def spy(weights):
        seen.append(weights)
        return 0.0

    bootstrap(spy, keys, resamples=200, seed=1)
    drawn = np.array([w for w in seen if w is not None])
    assert sum(w is None for w in seen) == 1
    assert drawn.shape == (200, len(keys))
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 0] == drawn[:, 5]).all()
    assert (drawn[:, 1] == drawn[:, 4]).all()
    per_patient = drawn[:, [1, 0, 3]]
    assert (per_patient.sum(axis=1) == 3).all()
    assert (per_patient == per_patient.round()).all()
    assert per_patient.mean(axis=0) == pytest.approx(1, abs=0.2)
    assert (per_patient == 0).mean() == pytest.approx((2 / 3) ** 3, abs=0.06)


@pytest.mark.slow
def test_the_interval_is_that_of_a_slow_bootstrap():
    """A plain loop that joins the rows of patients drawn by a generator of its own gives the same interval."""
    keys, scores, y = clustered(40, 8, seed=0)
    once = RankedScores(scores, y)
    fast = bootstrap(once.auc, keys, resamples=2000, seed=0)
    rows_of = [np.flatnonzero(keys == key) for key in dict.fromkeys(keys.tolist())]
    rng = np.random.default_rng(99)
    slow = []
    for _ in range(1200):
        rows = np.concatenate([rows_of[i] for i in rng.integers(len(rows_of), size=len(rows_of))])
        slow.append(roc_auc_score(y[rows], scores[rows]))
    width = fast.high - fast.low
    assert fast.value == pytest.approx(roc_auc_score(y, scores))
    assert [fast.low, fast.high] == pytest.approx(np.percentile(slow, [2.5, 97.5]).tolist(), abs=0.1 * width)


def test_a_seed_makes_the_interval_repeatable():
    """The same seed gives the same figures to the last bit; another seed gives others."""
    keys, scores, y = clustered(20, 5, seed=1)
    statistic = RankedScores(scores, y).auc
    one, again, other = (bootstrap(statistic, keys, resamples=100, seed=s) for s in (3, 3, 4))
    assert one == again
    assert one != other
    assert one.value == other.value


def test_patients_order_and_names_do_not_matter():
    """Rows in another order, with their keys, give the same interval: identity is not row order."""
    keys, scores, y = clustered(20, 5, seed=1)
    order = np.random.default_rng(0).permutation(len(keys))
    one = bootstrap(RankedScores(scores, y).auc, keys, resamples=100)
    two = bootstrap(RankedScores(scores[order], y[order]).auc, keys[order], resamples=100)
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high), abs=1e-12)


def test_clustered_rows_give_a_wider_interval_than_independent_ones():
    """Taking the slices of a patient for independent would make the interval less than two thirds as wide."""
    keys, scores, y = clustered(40, 10, seed=2)
    statistic = RankedScores(scores, y).auc
    honest = bootstrap(statistic, keys, resamples=400)
    naive = bootstrap(statistic, np.arange(len(keys)).astype(str), resamples=400)
    assert honest.value == naive.value
    assert honest.high - honest.low > 1.5 * (naive.high - naive.low)


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """In 300 simulated data sets of 40 patients the interval of a mean holds the true mean in 90 to 98 of 100."""
    rng = np.random.default_rng(5)
    held = 0
    for seed in range(300):
        keys = np.repeat(np.arange(40).astype(str), rng.integers(1, 6, 40))
        values = rng.normal(size=40)[keys.astype(int)] + 0.5 * rng.normal(size=len(keys))
        interval = bootstrap(mean_of(values), keys, resamples=200, seed=seed)
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def mean_of(values):
    return lambda weights: float(np.average(values, weights=weights))


def test_a_difference_is_paired():
    """The difference of two nearly equal models has a far narrower interval than either model."""
    keys, scores, y = clustered(40, 8, seed=3)
    one, two = RankedScores(scores, y), RankedScores(scores + 0.01 * np.random.default_rng(0).normal(size=len(y)), y)
    alone = bootstrap(one.auc, keys, resamples=300)
    difference = bootstrap(lambda w: two.auc(w) - one.auc(w), keys, resamples=300)
    assert difference.low <= difference.value <= difference.high
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)
    same = bootstrap(lambda w: one.auc(w) - one.auc(w), keys, resamples=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_resamples_without_a_class_do_not_count():
    """With one positive patient a third of the resamples have no AUC; the others still give an interval."""
    keys = np.array(["a", "b", "c", "d"])
    y = np.array([1, 0, 0, 0], np.uint8)
    interval = bootstrap(RankedScores(np.array([0.5, 0.4, 0.6, 0.1]), y).auc, keys, resamples=300)
    assert 0 <= interval.low < interval.value < interval.high <= 1
    hopeless = bootstrap(RankedScores(np.zeros(4), np.zeros(4, np.uint8)).auc, keys, resamples=20)
    assert math.isnan(hopeless.value)
    assert math.isnan(hopeless.low)
    assert math.isnan(hopeless.high)


@pytest.mark.parametrize("levels", [3, 40, 10**6])
@pytest.mark.parametrize("prevalence", [0.01, 0.4])
def test_means_and_aucs_of_all_resamples_at_once_are_those_of_each_by_itself(levels, prevalence, monkeypatch):
    """With many ties and few, a class absent from some resamples, and however few numbers are held at once."""
    rng = np.random.default_rng(levels)
    patients = rng.integers(0, 40, 300).astype(str)
    y = (rng.random(300) < prevalence).astype(np.uint8)
    scores = np.floor((rng.random(300) + 0.3 * y) * levels) / levels
    drawn, once = Resamples(patients, resamples=60, seed=1), RankedScores(scores, y)
    weights = [w[drawn.index].astype(float) for w in drawn.weights]
    expected = np.array([once.auc(w) for w in weights])
    np.testing.assert_allclose(drawn.aucs(scores, y), expected, atol=1e-12)
    np.testing.assert_allclose(drawn.means(scores), [np.average(scores, weights=w) for w in weights], atol=1e-9)
    monkeypatch.setattr("ich_seq.metrics.CHUNK_NUMBERS", 1)
    np.testing.assert_allclose(drawn.aucs(scores, y), expected, atol=1e-12)


def test_resampled_aucs_of_no_positives_or_no_numbers_are_none():
    """Without a positive, or with a score that is NaN, there is no AUC in any resample."""
    drawn = Resamples(np.array(["a", "b", "c"]), resamples=5)
    assert np.isnan(drawn.aucs(np.array([0.1, 0.2, 0.3]), np.zeros(3, np.uint8))).all()
    assert np.isnan(drawn.aucs(np.array([0.1, np.nan, 0.3]), np.array([0, 1, 0], np.uint8))).all()
