"""failures: the studies furthest on the wrong side, as a plain loop finds them, and the slice to look at."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.failures import FALSE_ALARM, MISSED, MOST_SHOWN, find_failures
from ich_seq.figures import Predicted, Truth
from ich_seq.labels import LABELS
from ich_seq.results import LEVELS, Held

K = len(LABELS)


def held_of(targets: list[np.ndarray], *, levels: tuple[str, ...] = LEVELS) -> Held:
    """Studies whose slices have these labels, (N, K) each; without slices among the levels only studies have."""
    lengths = np.array([len(t) for t in targets])
    uids = tuple(f"1.{i}" for i in range(len(targets)))
    truth = Truth.of_studies(targets, uids)
    if "slices" not in levels:
        truth = Truth(
            slices=truth.slices[:0], studies=truth.studies, slice_patients=truth.slice_patients[:0],
            study_patients=truth.study_patients,
        )  # fmt: skip
    return Held(
        levels=levels,
        predicted={},
        truth=truth,
        uids=uids,
        sop_uids=tuple(f"{uid}.{i}" for uid, n in zip(uids, lengths, strict=True) for i in range(n)),
        positions_mm=np.concatenate([100 * k + 5.0 * np.arange(n) for k, n in enumerate(lengths)]),
        lengths=lengths,
        geometry=None,
        flow={},
        by_patient=False,
    )


def of_studies(y: np.ndarray, p: np.ndarray) -> tuple[Held, Predicted]:
    """Studies of one slice each, (B, K) labels and probabilities."""
    return held_of(list(y[:, None])), Predicted(slices=p, studies=p)


def worst_by_hand(y: list[int], p: list[float]) -> dict[str, list[int]]:
    """The studies that some study of the other class is on the wrong side of, or level with, the worst first."""
    missed, alarms = [], []
    for i in range(len(y)):
        for j in range(len(y)):
            if y[i] == 1 and y[j] == 0 and p[i] <= p[j] and i not in missed:
                missed.append(i)
            if y[i] == 0 and y[j] == 1 and p[i] >= p[j] and i not in alarms:
                alarms.append(i)
    return {
        MISSED: sorted(missed, key=lambda i: (p[i], i))[:MOST_SHOWN],
        FALSE_ALARM: sorted(alarms, key=lambda i: (-p[i], i))[:MOST_SHOWN],
    }


JUDGED = st.tuples(st.integers(0, 2**K - 1), st.lists(st.integers(0, 4), min_size=K, max_size=K))


@settings(deadline=None, max_examples=100)
@given(studies=st.lists(JUDGED, min_size=1, max_size=12))
def test_the_worst_studies_are_those_of_a_plain_loop(studies):
    """Of each label, in the labels' order: missed before alarms, the worst first, ties as the studies come."""
    y = np.array([[bits >> k & 1 for k in range(K)] for bits, _ in studies], np.uint8)
    p = np.array([row for _, row in studies]) / 4
    found = find_failures(*of_studies(y, p))
    expected = [
        (label, kind, f"1.{i}", p[i, k])
        for k, label in enumerate(LABELS)
        for kind, worst in worst_by_hand(y[:, k].tolist(), p[:, k].tolist()).items()
        for i in worst
    ]
    assert [(f.label, f.kind, f.study_uid, f.probability) for f in found] == expected


@settings(deadline=None, max_examples=50)
@given(
    negative=st.lists(st.floats(0, 0.49), min_size=1, max_size=6),
    positive=st.lists(st.floats(0.5, 1), min_size=1, max_size=6),
)
def test_none_where_all_are_told_apart(negative, positive):
    """Every positive above every negative: nothing failed, however low or high they are."""
    y = np.repeat([[0] * len(negative) + [1] * len(positive)], K, axis=0).T.astype(np.uint8)
    p = np.repeat([negative + positive], K, axis=0).T
    assert find_failures(*of_studies(y, p)) == []


@pytest.mark.parametrize("positive", [0, 1])
def test_none_without_the_other_class(positive):
    """All positive or all negative: there is no wrong side."""
    y = np.full((5, K), positive, np.uint8)
    assert find_failures(*of_studies(y, np.random.default_rng(0).random((5, K)))) == []


def test_a_tie_tells_nothing_apart():
    """A positive and a negative of the same probability are both on the wrong side."""
    y, p = np.zeros((3, K), np.uint8), np.full((3, K), 0.5)
    y[0] = 1
    p[2] = 0.1
    found = find_failures(*of_studies(y, p))
    assert [(f.kind, f.study_uid) for f in found] == [(MISSED, "1.0"), (FALSE_ALARM, "1.1")] * K


def test_no_more_than_a_few_of_a_kind():
    """Of many ties the first, MOST_SHOWN of either kind and label."""
    y = np.tile((np.arange(20) % 2)[:, None], K).astype(np.uint8)
    found = find_failures(*of_studies(y, np.full((20, K), 0.5)))
    assert [f.study_uid for f in found[: 2 * MOST_SHOWN]] == ["1.1", "1.3", "1.5", "1.0", "1.2", "1.4"]
    assert len(found) == 2 * MOST_SHOWN * K


def random_case(seed: int, *, levels: tuple[str, ...] = LEVELS) -> tuple[Held, Predicted]:
    """Twenty studies of some slices each, judged at random."""
    rng = np.random.default_rng(seed)
    targets = [(rng.random((n, K)) < 0.15).astype(np.uint8) for n in rng.integers(1, 12, 20)]
    held = held_of(targets, levels=levels)
    said = rng.random((int(held.lengths.sum()), K))
    return held, Predicted.of_slices(said, held.lengths.tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [LEVELS, ("studies",)])
def test_a_failure_comes_with_its_own_slices(seed, levels):
    """Places, probabilities and, where slices are labelled, the truth of just this study and label, feet to head."""
    held, said = random_case(seed, levels=levels)
    found = find_failures(held, said)
    assert {f.kind for f in found} == {MISSED, FALSE_ALARM}
    starts = np.cumsum([0, *held.lengths])
    for failure in found:
        i, k = held.uids.index(failure.study_uid), LABELS.index(failure.label)
        rows = slice(starts[i], starts[i + 1])
        assert held.truth.studies[i, k] == (failure.kind == MISSED)
        assert failure.probability == said.studies[i, k]
        assert np.array_equal(failure.positions_mm, held.positions_mm[rows])
        assert np.array_equal(failure.slice_probabilities, said.slices[rows, k])
        if levels == LEVELS:
            assert np.array_equal(failure.slice_truth, held.truth.slices[rows, k])
        else:
            assert failure.slice_truth is None


@pytest.mark.parametrize("seed", range(5))
def test_the_slice_to_look_at_of_a_missed_finding_is_its_middle_one(seed):
    """It is positive, and as many positive slices lie below it as above, or one more below."""
    held, said = random_case(seed)
    for failure in find_failures(held, said):
        if failure.kind == MISSED:
            number = int(failure.sop_uid.removeprefix(f"{failure.study_uid}."))
            assert failure.slice_truth[number] == 1
            below, above = failure.slice_truth[:number].sum(), failure.slice_truth[number + 1 :].sum()
            assert int(below) - int(above) in (0, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [LEVELS, ("studies",)])
def test_the_slice_to_look_at_is_else_the_likeliest(seed, levels):
    """Of a false alarm, and of a missed finding that nobody located: the slice that says most."""
    held, said = random_case(seed, levels=levels)
    looked = [f for f in find_failures(held, said) if f.kind == FALSE_ALARM or levels != LEVELS]
    assert looked
    for failure in looked:
        number = int(failure.sop_uid.removeprefix(f"{failure.study_uid}."))
        assert failure.slice_probabilities[number] == failure.slice_probabilities.max()


def test_what_names_a_failure_is_json():
    """Label, kind, study and slice by UID, and the probability as a number of six decimals."""
    held, said = random_case(0)
    for failure in find_failures(held, said):
        found = json.loads(json.dumps(failure.json()))
        assert found == {
            "label": failure.label,
            "kind": failure.kind,
            "study_uid": failure.study_uid,
            "sop_uid": failure.sop_uid,
            "probability": round(failure.probability, 6),
        }
