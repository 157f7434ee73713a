"""The blend of base and GRU: each label gets the share that costs least, and none of a GRU that does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from ich_seq.calibration import SHARES, blend, choose_shares
from ich_seq.labels import LABELS

K = len(LABELS)


def drawn(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base and refined logits with some skill, each label with its own, and targets; (M, K) each."""
    rng = np.random.default_rng(seed)
    targets = (rng.uniform(size=(rows, K)) < 0.3).astype(np.uint8)
    base, refined = (rng.normal(0, 2, (rows, K)) + rng.normal(0, 2, K) * (2.0 * targets - 1) for _ in range(2))
    return base, refined, targets


def slowly(base: np.ndarray, refined: np.ndarray, targets: np.ndarray) -> list[float]:
    """The share of each label by a loop over labels and shares, with scikit-learn's loss; the first of equals."""
    chosen = []
    for k in range(K):
        best, least = 0.0, np.inf
        for share in SHARES:
            logits = [(1 - share) * b + share * r for b, r in zip(base[:, k], refined[:, k], strict=True)]
            loss = log_loss(targets[:, k], [1 / (1 + np.exp(-x)) for x in logits], labels=[0, 1])
            if loss < least - 1e-12:
                best, least = share, loss
        chosen.append(best if targets[:, k].any() else 0.0)
    return chosen


@given(rows=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_the_shares_are_those_of_a_slow_loop(rows, seed):
    """Label by label, the share of least log loss by scikit-learn, and 0 for a label without positives."""
    base, refined, targets = drawn(rows, seed)
    assert choose_shares(base, refined, targets).tolist() == slowly(base, refined, targets)


def test_every_share_can_be_chosen():
    """Over many labels each share on the list is the best of some: the choice is more than all or nothing."""
    chosen = [share for seed in range(40) for share in choose_shares(*drawn(40, seed))]
    assert set(chosen) == set(SHARES)


def test_a_harmful_gru_gets_no_share_and_a_perfect_one_all():
    """Label by label: where the GRU turns the truth around it has share 0, where it knows all it has share 1."""
    rng = np.random.default_rng(0)
    targets = np.tile(np.array([0, 1, 0, 1], np.uint8)[:, None], (10, K))
    base = rng.normal(0, 0.5, targets.shape) + (2.0 * targets - 1)
    knows = np.arange(K) % 2 == 0
    refined = np.where(knows, 1, -1) * 9 * (2.0 * targets - 1)
    assert choose_shares(base, refined, targets).tolist() == knows.astype(float).tolist()


def test_a_gru_that_adds_nothing_gets_no_share():
    """Of shares that cost the same the least is taken."""
    base, _, targets = drawn(30, 1)
    assert (choose_shares(base, base.copy(), targets) == 0).all()


@pytest.mark.parametrize("label", range(K), ids=LABELS)
def test_a_label_without_positives_keeps_the_base(label):
    """Where all are negative lower logits always pay, but say nothing of the GRU: 0; other labels are untouched."""
    rng = np.random.default_rng(2)
    targets = np.tile(np.array([0, 1, 0, 1], np.uint8)[:, None], (10, K))
    targets[:, label] = 0
    base = rng.normal(size=targets.shape)
    refined = 9 * (2.0 * targets - 1)
    expected = np.ones(K)
    expected[label] = 0
    assert choose_shares(base, refined, targets).tolist() == expected.tolist()


@given(rows=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_blend_runs_from_the_base_to_the_refined(rows, seed):
    """At 0 it is the base to the bit, at 1 the refined, between them on the straight line, label by label."""
    base, refined, _ = drawn(rows, seed)
    assert np.array_equal(blend(base, refined, np.zeros(K)), base)
    np.testing.assert_allclose(blend(base, refined, np.ones(K)), refined, rtol=0, atol=1e-12)
    shares = np.random.default_rng(seed).uniform(size=K)
    blended = blend(base, refined, shares)
    assert blended.shape == (rows, K)
    for i in range(rows):
        for k in range(K):
            assert blended[i, k] == pytest.approx((1 - shares[k]) * base[i, k] + shares[k] * refined[i, k], abs=1e-9)
    np.testing.assert_array_equal(blend(base[0], refined[0], shares), blended[0])
