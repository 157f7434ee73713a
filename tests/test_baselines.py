"""What a sequence model has to beat: the three baselines, on data where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from ich_seq.baselines import (
    MAX_FIT_SLICES,
    POSITION_BINS,
    RIDGE,
    by_position,
    constant,
    fit_classifier,
    relative_positions,
)
from ich_seq.labels import LABELS
from ich_seq.metrics import auc, weighted_log_loss

K = len(LABELS)
ANY = LABELS.index("any")


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def bleeding_midway(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative positions, and labels that are positive mostly in the middle of the head."""
    rng = rng_of(seed)
    relative = rng.uniform(0, 1, count)
    chance = 0.02 + 0.5 * np.exp(-(((relative - 0.5) / 0.15) ** 2))
    return relative, (rng.uniform(size=(count, K)) < chance[:, None]).astype(np.uint8)


def embedded(count: int, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings at an odd scale whose first dimension carries the labels."""
    rng = rng_of(seed)
    features = rng.normal(size=(count, dimensions))
    y = (features[:, :1] + 0.5 * rng.normal(size=(count, K)) > 0.5).astype(np.uint8)
    return (features * 30 + 100).astype(np.float32), y


def test_the_constant_is_the_training_prevalence():
    """Every new slice gets the share of positives of each label."""
    y = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 1]], np.uint8)
    assert constant(y, 3).tolist() == [[0.5, 0, 0, 1, 0, 1]] * 3
    assert constant(y, 0).shape == (0, K)


@given(seed=st.integers(0, 1000), count=st.integers(2, 60))
@settings(deadline=None, max_examples=30)
def test_no_constant_beats_the_prevalence(seed, count):
    """On its own training labels no other constant has a lower loss: the baseline is the best of its kind."""
    rng = rng_of(seed)
    y = rng.integers(0, 2, (count, K)).astype(np.uint8)
    other = np.tile(rng.uniform(size=K), (count, 1))
    assert weighted_log_loss(constant(y, count), y) <= weighted_log_loss(other, y) + 1e-4  # the clip's share


@given(start=st.floats(-500, 500), steps=st.lists(st.sampled_from([0.0, 0.625, 2.5, 5.0]), max_size=11))
@settings(deadline=None, max_examples=30)
def test_relative_positions_run_from_feet_to_head(start, steps):
    """The first slice lies at 0, the last at 1, the others in proportion; all at 0.5 where they share one place."""
    mm = start + np.cumsum([0.0, *steps])
    told = relative_positions(mm)
    if mm[-1] == mm[0]:
        assert told.tolist() == [0.5] * len(mm)
    else:
        assert told == pytest.approx([(x - mm[0]) / (mm[-1] - mm[0]) for x in mm])
        assert (told[0], told[-1]) == (0, 1)


@given(seed=st.integers(0, 1000), count=st.integers(1, 80), new=st.integers(0, 30))
@settings(deadline=None, max_examples=40)
def test_position_is_a_smoothed_prevalence_by_bin(seed, count, new):
    """In plain loops: the share of positives in the same twentieth of the head, with one average slice added."""
    rng = rng_of(seed)
    relative, asked = rng.uniform(0, 1, count), rng.uniform(0, 1, new)
    relative[0], asked[:1] = 1.0, 0.0  # both ends of the head belong to a bin
    y = rng.integers(0, 2, (count, K)).astype(np.uint8)
    predicted = by_position(relative, y, asked)
    assert predicted.shape == (new, K)
    for row, position in zip(predicted, asked, strict=True):
        same = [t for r, t in zip(relative, y, strict=True) if bin_of(r) == bin_of(position)]
        for k in range(K):
            assert row[k] == pytest.approx((sum(int(t[k]) for t in same) + y[:, k].mean()) / (len(same) + 1))


def bin_of(position: float) -> int:
    return min(int(position * POSITION_BINS), POSITION_BINS - 1)


def test_position_beats_chance_where_bleeds_are_in_the_middle():
    """Bleeds planted midway up the head are found by position alone, in slices not seen, and better than by chance."""
    relative, y = bleeding_midway(3000, 0)
    new, truth = bleeding_midway(1500, 1)
    predicted = by_position(relative, y, new)
    assert predicted.min() >= 0
    assert predicted.max() <= 1
    assert auc(predicted[:, ANY], truth[:, ANY]) > 0.8
    assert weighted_log_loss(predicted, truth) < 0.9 * weighted_log_loss(constant(y, len(truth)), truth)


def test_position_finds_nothing_where_there_is_nothing():
    """With labels that ignore position the baseline scores as chance does, on slices it has not seen."""
    rng = rng_of(3)
    y, truth = rng.integers(0, 2, (2, 3000, K)).astype(np.uint8)
    predicted = by_position(rng.uniform(size=3000), y, rng.uniform(size=3000))
    assert [auc(predicted[:, k], truth[:, k]) for k in range(K)] == pytest.approx([0.5] * K, abs=0.04)


@pytest.mark.parametrize("cut", [1, 37, 99])
def test_new_rows_do_not_know_of_each_other(cut):
    """A new slice's prediction rests on the training rows alone: the other new slices change nothing."""
    relative, y = bleeding_midway(300, 0)
    new = bleeding_midway(100, 1)[0]
    whole = by_position(relative, y, new)
    parts = [by_position(relative, y, new[:cut]), by_position(relative, y, new[cut:])]
    assert np.concatenate(parts).tolist() == whole.tolist()
    classifier = fit_classifier(*embedded(300, 8, 0))
    features = embedded(100, 8, 1)[0] * 3  # another scale than in training: it must not be standardised anew
    whole = classifier.logits(features)
    assert np.concatenate([classifier.logits(features[:cut]), classifier.logits(features[cut:])]) == pytest.approx(
        whole, rel=1e-4, abs=1e-4
    )


def test_the_classifier_is_a_ridge_logistic_regression():
    """A general optimiser on the penalised log loss of standardised embeddings ends at the same logits."""
    features, y = embedded(120, 5, 0)
    new, _ = embedded(30, 5, 1)
    logits = fit_classifier(features, y).logits(new)
    centre, scale = features.mean(axis=0), features.std(axis=0)
    x, x_new = (features - centre) / scale, (new - centre) / scale
    for k in range(K):
        sign = 2.0 * y[:, k] - 1

        def penalised(wb, sign=sign):
            return RIDGE * np.logaddexp(0, -sign * (x @ wb[:-1] + wb[-1])).sum() + wb[:-1] @ wb[:-1] / 2

        wb = minimize(penalised, np.zeros(6), tol=1e-12).x
        assert logits[:, k] == pytest.approx(x_new @ wb[:-1] + wb[-1], abs=0.02)


def test_the_classifier_finds_a_planted_signal():
    """Labels that one of 40 dimensions carries are found in slices not seen, and the logits are honest enough."""
    features, y = embedded(1500, 40, 0)
    new, truth = embedded(800, 40, 1)
    logits = fit_classifier(features, y).logits(new)
    assert logits.shape == (800, K)
    assert logits.dtype == np.float32
    assert min(auc(logits[:, k], truth[:, k]) for k in range(K)) > 0.85
    assert weighted_log_loss(expit(logits), truth) < weighted_log_loss(constant(y, 800), truth)


def test_the_classifier_learns_nothing_from_noise():
    """Labels that have nothing to do with the embedding are predicted no better than by chance."""
    features, _ = embedded(1500, 20, 0)
    new, _ = embedded(1500, 20, 1)
    y, truth = rng_of(5).integers(0, 2, (2, 1500, K)).astype(np.uint8)
    logits = fit_classifier(features, y).logits(new)
    assert [auc(logits[:, k], truth[:, k]) for k in range(K)] == pytest.approx([0.5] * K, abs=0.06)


def test_the_units_of_the_embedding_do_not_matter():
    """Another offset and scale of each dimension, in training and after, leave the logits as they were."""
    features, y = embedded(300, 6, 0)
    new, _ = embedded(50, 6, 1)
    offset, scale = np.linspace(-3, 3, 6, dtype=np.float32), np.logspace(-2, 2, 6, dtype=np.float32)
    plain = fit_classifier(features, y).logits(new)
    moved = fit_classifier(features * scale + offset, y).logits(new * scale + offset)
    assert moved == pytest.approx(plain, abs=1e-2)


def test_half_precision_embeddings_are_fitted_as_well():
    """Embeddings in float16, as a store may hold them, neither overflow nor lose the signal."""
    features, y = embedded(600, 6, 0)
    new, truth = embedded(400, 6, 1)
    logits = fit_classifier(features.astype(np.float16), y).logits(new.astype(np.float16))
    assert logits == pytest.approx(fit_classifier(features, y).logits(new), abs=0.05)
    assert auc(logits[:, ANY], truth[:, ANY]) > 0.85


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_one_class_gets_its_log_odds(value):
    """A label never (or always) positive in training is predicted as such, half a case added; the others are fitted."""
    features, y = embedded(200, 6, 0)
    y[:, 0] = value
    classifier = fit_classifier(features, y)
    logits = classifier.logits(features)
    assert (classifier.weight[0] == 0).all()
    assert expit(logits[:, 0]) == pytest.approx((200 * value + 0.5) / 201, rel=1e-4)
    assert auc(logits[:, 1], y[:, 1]) > 0.8
    assert (by_position(rng_of(0).uniform(size=200), y, np.linspace(0, 1, 50))[:, 0] == value).all()


def test_a_dimension_that_never_changes_does_no_harm():
    """A dead unit of the encoder gives no NaN, and no weight, though it cannot be standardised."""
    features, y = embedded(200, 6, 0)
    features[:, 3] = 7
    classifier = fit_classifier(features, y)
    assert np.isfinite(classifier.weight).all()
    assert np.isfinite(classifier.bias).all()
    assert (classifier.weight[:, 3] == 0).all()


def test_the_same_rows_give_the_same_classifier_in_any_order():
    """Nothing is drawn within a fit: all rows count, and neither their order nor a second run changes a thing."""
    features, y = embedded(400, 6, 0)
    order = rng_of(1).permutation(400)
    one, again, mixed = (
        fit_classifier(features, y),
        fit_classifier(features, y),
        fit_classifier(features[order], y[order]),
    )
    assert (one.weight == again.weight).all()
    assert (one.bias == again.bias).all()
    assert mixed.logits(features) == pytest.approx(one.logits(features), abs=1e-2)
    assert (fit_classifier(features[:200], y[:200]).weight != one.weight).all()


def test_the_limit_is_high_enough_for_a_hospital():
    """A few hundred studies are fitted whole: sampling is for sets like RSNA's."""
    assert MAX_FIT_SLICES >= 400 * 35
