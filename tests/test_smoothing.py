"""The kernel by which a slice hears its neighbours: what it does to a study, and when it is believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss

from ich_seq.calibration import fit_calibration, fit_lines
from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS
from ich_seq.rnn_training import calibrated
from ich_seq.sequence_fitting import Beside
from ich_seq.smoothing import NO_KERNEL, REACH, fit_kernel, fit_smoothed, smooth

K = len(LABELS)
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(np.array)
TRUE_KERNEL = np.array([0.3, 0.1, 0.05])


def drawn(lengths: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of slices, (M, K), and a kernel, (K, R), that is another for each label."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (lengths.sum(), K)), rng.uniform(0, 0.4, (K, REACH))


def slowly(logits: np.ndarray, lengths: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Study after study, slice after slice, label after label, distance after distance."""
    rows, start = [], 0
    for length in lengths:
        study = logits[start : start + length]
        start += length
        for i in range(length):
            row = study[i].copy()
            for k in range(K):
                for r in range(1, kernel.shape[1] + 1):
                    below, above = study[max(i - r, 0), k], study[min(i + r, length - 1), k]
                    row[k] += kernel[k, r - 1] * (below - study[i, k] + above - study[i, k])
            rows.append(row)
    return np.array(rows)


@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_slices_are_moved_as_by_a_slow_loop(lengths, seed):
    """The weighted differences to both sides; a study's ends stand in for what is beyond, no study hears another."""
    logits, kernel = drawn(lengths, seed)
    np.testing.assert_allclose(smooth(logits, lengths, kernel), slowly(logits, lengths, kernel), atol=1e-12)


@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_head_and_feet_are_alike(lengths, seed):
    """A study read from the head comes out as it does from the feet, in reverse."""
    logits, kernel = drawn(lengths, seed)
    back = smooth(logits[::-1], lengths[::-1], kernel)[::-1]
    np.testing.assert_allclose(back, smooth(logits, lengths, kernel), atol=1e-12)


def test_what_is_the_same_all_over_a_study_stays():
    """There is nothing to hear from neighbours that say the same; a study of one slice has none."""
    lengths = np.array([4, 1, 3])
    logits = np.repeat(np.random.default_rng(0).normal(size=(3, K)), lengths, axis=0)
    kernel = drawn(lengths, 1)[1]
    np.testing.assert_array_equal(smooth(logits, lengths, kernel), logits)


@pytest.mark.parametrize("kernel", [NO_KERNEL, np.zeros((K, REACH))])
def test_without_weights_all_stays_to_the_bit(kernel):
    """As bundles have it that do not smooth."""
    lengths = np.array([5, 7])
    logits = drawn(lengths, 2)[0]
    np.testing.assert_array_equal(smooth(logits, lengths, kernel), logits)


def told_by_neighbours(seed: int, studies: int = 60, mean: float = -0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, targets drawn from what they are after TRUE_KERNEL, and the lengths of the studies."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 40, studies)
    logits = rng.normal(mean, 2, (lengths.sum(), K))
    truth = smooth(logits, lengths, np.tile(TRUE_KERNEL, (K, 1)))
    return logits, (rng.uniform(size=truth.shape) < expit(truth)).astype(np.uint8), lengths


def test_the_kernel_that_made_the_labels_is_found():
    """Within a few hundredths, the same for all labels."""
    kernel = fit_kernel(*told_by_neighbours(0))
    np.testing.assert_allclose(kernel, np.tile(TRUE_KERNEL, (K, 1)), atol=0.03)
    assert (kernel == kernel[0]).all()


def test_no_other_kernel_has_less_loss():
    """By scikit-learn's log loss, `any` counting twice, against a step along each weight and many at random."""
    logits, targets, lengths = told_by_neighbours(1)

    def loss(weights: np.ndarray) -> float:
        p = expit(slowly(logits, lengths, np.tile(weights, (K, 1))))
        return sum(w * log_loss(targets[:, k], p[:, k]) for k, w in enumerate(LOSS_WEIGHTS))

    found = fit_kernel(logits, targets, lengths)[0]
    rng = np.random.default_rng(0)
    steps = [*(s * np.eye(REACH)[r] for r in range(REACH) for s in (-0.01, 0.01)), *rng.normal(0, 0.01, (3, REACH))]
    assert all(loss(found) < loss(found + step) for step in steps)


def test_a_label_that_loses_by_it_keeps_its_slices():
    """Five labels that neighbours tell of, and one whose neighbours say the opposite."""
    logits, targets, lengths = told_by_neighbours(2)
    against = smooth(logits, lengths, np.tile(-TRUE_KERNEL, (K, 1)))[:, 1]
    targets[:, 1] = np.random.default_rng(3).uniform(size=len(against)) < expit(against)
    kernel = fit_kernel(logits, targets, lengths)
    assert (kernel[1] == 0).all()
    assert (np.delete(kernel, 1, axis=0) > 0).any(axis=1).all()


def test_chance_is_hardly_ever_believed():
    """Of labels that slices tell by themselves, few studies show a sure gain in one of thirty draws at most."""
    taken = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(20, 40, 30)
        logits = rng.normal(-1, 2, (lengths.sum(), K))
        targets = (rng.uniform(size=logits.shape) < expit(logits)).astype(np.uint8)
        taken += fit_kernel(logits, targets, lengths).any()
    assert taken <= 1


def test_the_kernel_is_for_labels_that_the_model_has_no_share_in():
    """A model that knows two labels and is too sure of the others: a share there, else the kernel, lines on both."""
    logits, targets, lengths = told_by_neighbours(5, studies=200, mean=-4.5)
    logits[:, 0] *= 2  # too sure, so that it needs a line
    refined = 3 * logits
    refined[:, [2, 5]] = 3.0 * (2.0 * targets[:, [2, 5]] - 1)
    fitted, kernel = fit_smoothed(logits, refined, targets, lengths, "platt")
    assert (fitted.share > 0).tolist() == [False, False, True, False, False, True]
    assert (kernel[[2, 5]] == 0).all()
    np.testing.assert_array_equal(kernel[[0, 1, 3, 4]], fit_kernel(logits, targets, lengths)[[0, 1, 3, 4]])
    said = (1 - fitted.share) * slowly(logits, lengths, kernel) + fitted.share * refined
    slope, intercept = fit_lines(said, targets, lengths, "platt")
    assert slope[0] < 0.8
    np.testing.assert_allclose(fitted.slope, slope, rtol=1e-6)
    np.testing.assert_allclose(fitted.intercept, intercept, atol=1e-6)


@pytest.mark.parametrize("class_of_all", [0, 1])
def test_a_label_that_never_changes_proves_nothing(class_of_all):
    """Averaging takes loss off it in every study, which tells of no bleed: there is no kernel."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(20, 40, 60)
        logits = rng.normal(-1, 2, (lengths.sum(), K))
        targets = (rng.uniform(size=logits.shape) < expit(logits)).astype(np.uint8)
        targets[:, 3:5] = class_of_all
        assert (fit_kernel(logits, targets, lengths) == 0).all()


def test_what_an_ensemble_is_calibrated_by_holds_the_kernel():
    """Of slices; studies, which are said of apart, have the calibration of their own."""
    logits, targets, lengths = told_by_neighbours(7)
    starts = np.cumsum(lengths) - lengths
    of_studies, labels = (np.maximum.reduceat(x, starts) for x in (logits, targets))
    slices = Beside(base=logits, refined=3 * logits, targets=targets, lengths=lengths)
    studies = Beside(base=of_studies, refined=-of_studies, targets=labels, lengths=np.ones_like(lengths))
    fitted = calibrated(slices, studies, "platt")
    expected, kernel = fit_smoothed(logits, 3 * logits, targets, lengths, "platt")
    assert kernel.any()
    assert np.array_equal(fitted.kernel, kernel)
    assert np.array_equal(fitted.slices.slope, expected.slope)
    alone = fit_calibration(of_studies, -of_studies, labels, np.ones_like(lengths), "platt")
    assert np.array_equal(fitted.studies.share, alone.share)


def test_one_study_proves_no_kernel():
    """Many slices of a single patient are one observation."""
    logits, targets, lengths = told_by_neighbours(4)
    assert fit_kernel(logits, targets, lengths).any()
    assert not fit_kernel(logits, targets, np.array([lengths.sum()])).any()
