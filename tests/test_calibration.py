"""From base and sequence model to probabilities: each label its share of the model, then a line through its logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import _TemperatureScaling
from sklearn.metrics import log_loss, roc_auc_score

from ich_seq.calibration import (
    LEAST_STUDIES,
    SHARES,
    Calibration,
    blend,
    choose_shares,
    fit_calibration,
    fit_line,
    gains,
)
from ich_seq.labels import LABELS

K = len(LABELS)
METHODS = ("platt", "temperature", "none")


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


@pytest.mark.slow
@given(rows=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
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


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 5])
def test_a_gain_counts_if_it_is_larger_than_two_standard_errors_over_studies(slices):
    """By hand, study after study: the sum of what each saves against 2 sqrt(B) times the deviation of these sums."""
    base, refined, targets = drawn(40 * slices, 3)
    share = choose_shares(base, refined, targets)
    share[0], refined[:, 1] = 0.25, base[:, 1] + 0.01 * (refined[:, 1] - base[:, 1])
    expected = []
    for k in range(K):
        saved = []
        for b in range(40):
            rows = slice(b * slices, (b + 1) * slices)
            mixed = (1 - share[k]) * base[rows, k] + share[k] * refined[rows, k]
            losses = [
                log_loss(targets[rows, k], expit(x), labels=[0, 1], normalize=False) for x in (base[rows, k], mixed)
            ]
            saved.append(losses[0] - losses[1])
        expected.append(sum(saved) > 2 * np.std(saved, ddof=1) * 40**0.5)
    assert gains(base, blend(base, refined, share), targets, np.full(40, slices)).tolist() == expected
    assert len(set(expected)) == 2


def test_one_study_proves_nothing():
    """Many slices of a single study that a share fits perfectly: the base is kept, as nothing tells it from chance."""
    targets = np.tile(np.array([0, 1], np.uint8)[:, None], (10, K))
    refined = 9 * (2.0 * targets - 1)
    fitted = fit_calibration(np.zeros(refined.shape), refined, targets, np.array([20]), "none")
    assert (fitted.share == 0).all()
    fitted = fit_calibration(np.zeros(refined.shape), refined, targets, np.full(10, 2), "none")
    assert (fitted.share == 1).all()


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


# Lines through the logits


def overlapping(rows: int, seed: int, *, slope: float = 0.4, intercept: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure and too high, and targets drawn from the probabilities of the right ones; (M,) each."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, rows)
    return logits, (rng.uniform(size=rows) < expit(slope * logits + intercept)).astype(np.uint8)


def cost(line: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> float:
    """The log loss of logits on a line, not clipped: its slope, and its intercept if there is one."""
    turned = line[0] * logits + (line[1] if len(line) > 1 else 0)
    return float(np.mean(np.logaddexp(0, turned) - targets * turned))


def likeliest(logits: np.ndarray, targets: np.ndarray, numbers: int) -> np.ndarray:
    """The line of least log loss by scipy's trust region, with gradient and curvature written out."""
    given_each = np.stack([logits, np.ones_like(logits)])[:numbers]

    def gradient(line: np.ndarray) -> np.ndarray:
        return given_each @ (expit(line @ given_each) - targets) / len(targets)

    def curvature(line: np.ndarray) -> np.ndarray:
        p = expit(line @ given_each)
        return (given_each * (p * (1 - p))) @ given_each.T / len(targets)

    start, args = np.eye(2)[0][:numbers], (logits, targets)
    found = minimize(
        lambda line: cost(line, *args),
        start,
        jac=gradient,
        hess=curvature,
        method="trust-exact",
        options={"gtol": 1e-13},
    ).x
    return found - np.linalg.solve(curvature(found), gradient(found))  # a last step of Newton's


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [60, 2000])
def test_platts_line_is_the_one_of_maximum_likelihood(rows, seed):
    """Slope and intercept are scipy's to 1e-6, and near those the targets were drawn with where there are many."""
    logits, targets = overlapping(rows, seed)
    line = fit_line(logits, targets, intercept=True)
    assert line == pytest.approx(likeliest(logits, targets, 2), abs=1e-6)
    if rows == 2000:
        assert line == pytest.approx((0.4, -1.0), abs=0.2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [60, 2000])
def test_a_temperature_is_that_of_scikit_learn(rows, seed):
    """The slope is the inverse temperature of scikit-learn's calibration, which doubles binary logits, and scipy's."""
    logits, targets = overlapping(rows, seed, intercept=0.0)
    slope, intercept = fit_line(logits, targets, intercept=False)
    assert intercept == 0
    assert slope == pytest.approx(2 * _TemperatureScaling().fit(logits, targets).beta_, abs=1e-6)
    assert [slope] == pytest.approx(likeliest(logits, targets, 1), abs=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_line_that_would_turn_the_order_round_is_not_taken(intercept, sign):
    """Where higher logits are seen on negatives the logits stay as they are, and on positives they do not."""
    logits, targets = overlapping(300, 0)
    line = fit_line(sign * logits, targets, intercept=intercept)
    assert line == (1.0, 0.0) if sign < 0 else line[0] > 0
    assert sign < 0 or line != (1.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, -1.1])
def test_logits_that_all_are_one_stay_as_they_are(method, value):
    """A label of which base and model say the same of everything has no line: no warning, and no change."""
    base, refined, targets, lengths = studies_drawn(0)
    base[:, 1] = refined[:, 1] = value
    fitted = fit_calibration(base, refined, targets, lengths, method)
    assert (fitted.share[1], fitted.slope[1], fitted.intercept[1]) == (0.0, 1.0, 0.0)
    assert method == "none" or (np.delete(fitted.slope, 1) != 1).sum() > 1


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("gap", [0.01, 1.0, 20.0])
def test_logits_that_part_the_classes_give_finite_numbers(intercept, gap):
    """A label told without an error has no likeliest line; what comes out still orders slices and loses nothing."""
    targets = (np.arange(100) % 2).astype(np.uint8)
    logits = np.random.default_rng(0).uniform(0.5, 1.5, 100) * gap * np.where(targets, 1, -1)
    line = np.array(fit_line(logits, targets, intercept=intercept))
    assert np.isfinite(line).all()
    assert line[0] > 0
    assert cost(line, logits, targets) <= cost(np.array([1.0, 0.0]), logits, targets) + 1e-12


# The whole calibration


def studies_drawn(
    seed: int, *, studies: int = 120, slices: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Base and refined logits and targets of slices, (M, K), and how many slices each study has, (B,)."""
    base, refined, targets = drawn(studies * slices, seed)
    rng = np.random.default_rng([seed, 1])
    targets &= np.repeat(rng.uniform(size=(studies, K)) < 0.5, slices, axis=0)
    return base, refined, targets, np.full(studies, slices)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_each_label_gets_its_share_and_then_its_line_through_the_blend(method, seed):
    """Shares are those chosen alone; lines are fitted to each label's blend, and each is taken if it surely gains."""
    base, refined, targets, lengths = studies_drawn(seed)
    fitted = fit_calibration(base, refined, targets, lengths, method)
    share = choose_shares(base, refined, targets)
    sure = gains(base, blend(base, refined, share), targets, lengths)
    assert fitted.share.tolist() == np.where(sure, share, 0).tolist()
    assert fitted.share.any()
    for k in range(K):
        logits = (1 - fitted.share[k]) * base[:, k] + fitted.share[k] * refined[:, k]
        line = np.array([1.0, 0.0])
        if method != "none":
            by_hand = likeliest(logits, targets[:, k], 2 if method == "platt" else 1)
            turned = by_hand[0] * logits + (by_hand[1] if method == "platt" else 0)
            gain = gains(logits[:, None], turned[:, None], targets[:, [k]], lengths)
            line[: len(by_hand)] = by_hand if by_hand[0] > 0 and gain else line[: len(by_hand)]
        assert (fitted.slope[k], fitted.intercept[k]) == pytest.approx(tuple(line), abs=1e-6)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_logits_that_are_honest_mostly_stay_as_they_are(method):
    """Targets are drawn from the logits themselves: a line is then taken about as rarely as its rule says."""
    taken = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        logits = rng.normal(-0.5, 1.5, (240, K))
        targets = (rng.uniform(size=logits.shape) < expit(logits)).astype(np.uint8)
        fitted = fit_calibration(logits, logits, targets, np.full(60, 4), method)
        taken.append((fitted.slope != 1) | (fitted.intercept != 0))
    assert np.mean(taken) < 0.1


@given(rows=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_calibrated_logits_are_the_blend_on_its_line(rows, seed):
    """Written out entry by entry: slope x blend + intercept, of slices (M, K) and of one study (K,) alike."""
    base, refined, _ = drawn(rows, seed)
    rng = np.random.default_rng(seed)
    c = Calibration(share=rng.uniform(size=K), slope=rng.uniform(0.1, 3, K), intercept=rng.normal(size=K))
    got = c.logits(base, refined)
    for i in range(rows):
        for k in range(K):
            blended = (1 - c.share[k]) * base[i, k] + c.share[k] * refined[i, k]
            assert got[i, k] == pytest.approx(c.slope[k] * blended + c.intercept[k], abs=1e-9)
    np.testing.assert_array_equal(c.logits(base[0], refined[0]), got[0])


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("count", [0, LEAST_STUDIES - 1, LEAST_STUDIES])
def test_a_label_of_few_studies_is_left_as_it_is(method, side, count):
    """Of positive or negative studies LEAST_STUDIES are needed, however many slices they have; other labels are not."""
    base, refined, targets, lengths = studies_drawn(0)
    rare = np.zeros((120, 4), bool)
    rare[:count, :3] = True  # three slices of each
    targets[:, 2] = (rare if side == "positive" else ~rare.any(axis=1, keepdims=True) | rare).ravel()
    if side == "negative":
        targets[: 4 * count, 2] = 0
    fitted = fit_calibration(base, refined, targets, lengths, method)
    whole = fit_calibration(*studies_drawn(0), method)
    for name in ("share", "slope", "intercept"):
        assert np.array_equal(np.delete(getattr(fitted, name), 2), np.delete(getattr(whole, name), 2))
    line = np.array([fitted.slope[2], fitted.intercept[2]])
    logits = blend(base, refined, fitted.share)[:, 2]
    expected = [1.0, 0.0]
    if count >= LEAST_STUDIES:
        by_hand = likeliest(logits, targets[:, 2], 2 if method == "platt" else 1)
        expected = [*by_hand, 0.0][:2] if by_hand[0] > 0 else expected
    assert line == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_calibration_never_changes_the_order_and_never_costs_more(method, seed):
    """Label by label on the rows fitted: the AUC of the blend to the bit, and a log loss no worse than the blend's."""
    base, refined, targets, lengths = studies_drawn(seed)
    base[:, 3] -= 9 * (2.0 * targets[:, 3] - 1)  # one that is wrong and sure of it
    refined[:, 3] = base[:, 3]
    fitted = fit_calibration(base, refined, targets, lengths, method)
    before, after = blend(base, refined, fitted.share), fitted.logits(base, refined)
    assert (fitted.slope > 0).all()
    for k in range(K):
        assert np.array_equal(np.argsort(before[:, k], kind="stable"), np.argsort(after[:, k], kind="stable"))
        assert roc_auc_score(targets[:, k], after[:, k]) == roc_auc_score(targets[:, k], before[:, k])
        none = np.array([1.0, 0.0])
        assert cost(none, after[:, k], targets[:, k]) <= cost(none, before[:, k], targets[:, k]) + 1e-12
    assert (fitted.slope[3], fitted.intercept[3]) == (1.0, 0.0)


def test_calibration_makes_an_overconfident_model_honest():
    """Of logits five times too large the probabilities come out near the rates, on rows that were not fitted."""
    rng = np.random.default_rng(0)
    honest = rng.normal(-1, 1.5, (4000, K))
    targets = (rng.uniform(size=honest.shape) < expit(honest)).astype(np.uint8)
    sure = 5 * honest + 2
    fitted = fit_calibration(sure[:2000], sure[:2000], targets[:2000], np.ones(2000, int), "platt")
    said = fitted.logits(sure[2000:], sure[2000:])
    assert np.abs(said - honest[2000:]).mean() < 0.2
    assert cost(np.ones(1), said, targets[2000:]) < cost(np.ones(1), sure[2000:], targets[2000:]) - 0.3
