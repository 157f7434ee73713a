"""Every figure of a predictor against scikit-learn or a plain formula, and its interval against a slow bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from ich_seq.labels import LABELS
from ich_seq.metrics import CLIP, Resamples, weighted_log_loss
from ich_seq.quality import BINS, Sample, compare, measure, reliability

K = len(LABELS)
FIGURES = {
    "auroc", "average_precision", "log_loss", "brier", "calibration_error",
    "sensitivity_at_95_specificity", "ppv_at_95_specificity", "npv_at_95_specificity",
    "specificity_at_95_sensitivity", "ppv_at_95_sensitivity", "npv_at_95_sensitivity",
}  # fmt: skip


@pytest.fixture
def sample() -> Sample:
    rng = np.random.default_rng(0)
    return Sample(
        targets=(rng.random((400, K)) < 0.3).astype(np.uint8),
        resamples=Resamples(rng.integers(0, 50, 400).astype(str), resamples=40, seed=2),
        prevalence=np.full(K, 0.3),
    )


def said(sample: Sample, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 1 / (1 + np.exp(1.5 - rng.normal(size=sample.targets.shape) - 1.5 * sample.targets))


def calibration_error(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Bin by bin, as the definition has it."""
    total = 0.0
    for b in range(BINS):
        rows = (p >= b / BINS) & ((p < (b + 1) / BINS) | (b == BINS - 1))
        if w[rows].sum():
            total += w[rows].sum() * abs(np.average(p[rows], weights=w[rows]) - np.average(y[rows], weights=w[rows]))
    return total / w.sum()


ORACLES = {
    "auroc": lambda p, y, w: roc_auc_score(y, p, sample_weight=w),
    "average_precision": lambda p, y, w: average_precision_score(y, p, sample_weight=w),
    "log_loss": lambda p, y, w: log_loss(y, np.clip(p, CLIP, 1 - CLIP), sample_weight=w, labels=[0, 1]),
    "brier": lambda p, y, w: brier_score_loss(y, p, sample_weight=w),
    "calibration_error": calibration_error,
}


@pytest.mark.slow
@pytest.mark.parametrize("figure", ORACLES)
def test_figures_and_their_resamples_are_those_of_the_oracle(sample, figure):
    """The data as they are, and each resample by itself with weights: the same numbers, hence the same interval."""
    p = said(sample)
    measured = measure(p, sample)
    for k, label in enumerate(LABELS):
        got, y = measured.labels[label][figure], sample.targets[:, k]
        assert got.value == pytest.approx(ORACLES[figure](p[:, k], y, np.ones(len(y))), abs=1e-9)
        slow = [ORACLES[figure](p[:, k], y, w[sample.resamples.index].astype(float)) for w in sample.resamples.weights]
        np.testing.assert_allclose(got.values, slow, atol=1e-6)


def test_every_figure_is_there_and_in_json(sample):
    """All eleven of each label, with value, low and high in order, and the challenge's loss."""
    p = said(sample)
    found = measure(p, sample).json()
    assert found["weighted_log_loss"]["value"] == pytest.approx(weighted_log_loss(p, sample.targets), abs=1e-6)
    assert list(found["labels"]) == list(LABELS)
    for figures in found["labels"].values():
        assert set(figures) == FIGURES
        assert all(f["low"] < f["high"] for f in figures.values())
        smooth = (figures[name] for name in ("auroc", "average_precision", "log_loss", "brier"))
        assert all(f["low"] < f["value"] < f["high"] for f in smooth)


def test_predictive_values_hold_for_the_prevalence_given(sample):
    """Where bleeds are rarer fewer alarms are right; sensitivity stays."""
    rare = Sample(targets=sample.targets, resamples=sample.resamples, prevalence=np.full(K, 0.01))
    often, seldom = (measure(said(sample), s).labels["any"] for s in (sample, rare))
    assert seldom["ppv_at_95_specificity"].value < 0.5 * often["ppv_at_95_specificity"].value
    assert seldom["npv_at_95_specificity"].value > often["npv_at_95_specificity"].value
    assert seldom["sensitivity_at_95_specificity"].value == often["sensitivity_at_95_specificity"].value


def test_a_difference_is_paired(sample):
    """A predictor less itself is 0 in every resample; one a little better is so for certain, widely as both vary."""
    p = said(sample)
    better = p + 0.05 * (sample.targets - p)
    found = compare({"one": measure(p, sample), "two": measure(better, sample), "same": measure(p, sample)}, "one")
    assert set(found) == {"two - one", "same - one"}
    for figure in found["same - one"]["labels"]["any"].values():
        assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    assert found["two - one"]["weighted_log_loss"]["high"] < 0
    assert found["two - one"]["labels"]["any"]["auroc"]["low"] > 0


def test_a_label_without_a_positive_has_no_areas_but_losses(sample):
    """None where a class is absent; the loss and the Brier score are known all the same."""
    targets = sample.targets.copy()
    targets[:, 0] = 0
    none = Sample(targets=targets, resamples=sample.resamples, prevalence=targets.mean(axis=0))
    found = measure(said(sample), none).json()["labels"][LABELS[0]]
    assert found["auroc"] is found["average_precision"] is found["sensitivity_at_95_specificity"] is None
    assert found["ppv_at_95_sensitivity"] is None
    assert found["log_loss"]["value"] > 0
    assert found["brier"]["value"] > 0


def test_bins_hold_every_row_and_the_ends_too(sample):
    """Rows of 0 and of 1 fall into the first and the last bin; shares are those of the rows in them."""
    p = said(sample)[:, 0]
    p[:5], p[5:9] = 0, 1
    y = sample.targets[:, 0]
    bins = reliability(p, y, sample.resamples)
    assert sum(b["rows"] for b in bins) == len(p)
    assert (bins[0]["from"], bins[-1]["to"]) == (0, 1)
    for b in bins:
        rows = (p >= b["from"]) & ((p < b["to"]) | (b["to"] == 1))
        assert b["rows"] == rows.sum()
        assert b["mean"] == pytest.approx(p[rows].mean(), abs=1e-6)
        assert b["observed"]["value"] == pytest.approx(y[rows].mean(), abs=1e-6)
        assert b["observed"]["low"] <= b["observed"]["value"] <= b["observed"]["high"]
