"""Statistics of labels against plain loops: prevalence, pairs, runs along z, places."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ich_seq.label_statistics import (
    any_of_groups,
    co_occurrence,
    places,
    positives,
    profile,
    runs,
    shares_of_rows,
    stretches,
)

TARGETS = arrays.arrays(np.uint8, st.tuples(st.integers(0, 40), st.just(6)), elements=st.integers(0, 1))


@given(TARGETS)
def test_pairs_are_those_of_two_loops(targets):
    """Co-occurrence counts row by row, is symmetric, and its diagonal is how often each label is there."""
    pairs = co_occurrence(targets)
    expected = [[sum(int(r[a] and r[b]) for r in targets) for b in range(6)] for a in range(6)]
    assert pairs.tolist() == expected
    assert (pairs == pairs.T).all()
    assert pairs.diagonal().tolist() == positives(targets).tolist()


@given(TARGETS)
def test_shares_of_a_row_go_by_its_own_label(targets):
    """The diagonal is 1 where a label occurs; a label that never does has no shares."""
    pairs = co_occurrence(targets)
    shares = shares_of_rows(pairs)
    for a in range(6):
        if pairs[a, a]:
            assert shares[a].tolist() == pytest.approx((pairs[a] / pairs[a, a]).tolist())
        else:
            assert np.isnan(shares[a]).all()


@given(TARGETS, st.integers(0, 2**32))
def test_a_group_has_what_any_of_its_rows_has(targets, seed):
    """As pandas' groupby has it, whatever the order of the rows; an empty group has nothing."""
    group = np.random.default_rng(seed).integers(0, 5, len(targets))
    found = any_of_groups(targets, group, 5)
    expected = pd.DataFrame(targets).groupby(group).max().reindex(range(5), fill_value=0)
    assert found.tolist() == expected.to_numpy().tolist()


def looped_runs(studies):
    """Runs, gaps and neighbours of studies of 0, 1 and None (not labelled), slice by slice."""
    lengths, gaps, neighbours, agreeing = [], 0, 0, 0
    for study in studies:
        lengths += [len(list(members)) for value, members in itertools.groupby(study) if value == 1]
        gaps += sum(study[i : i + 3] == [1, 0, 1] for i in range(len(study)))
        pairs = [p for p in itertools.pairwise(study) if None not in p]
        neighbours += len(pairs)
        agreeing += sum(a == b for a, b in pairs)
    return lengths, gaps, neighbours, agreeing


@given(st.lists(st.lists(st.sampled_from([0, 1, None]), min_size=1, max_size=12), max_size=6))
def test_runs_are_those_of_a_walk_slice_by_slice(studies):
    """Runs end with their study and at a slice without labels; a gap is 1 0 1, a pair two labelled neighbours."""
    values = [v for study in studies for v in study]
    study = np.repeat(np.arange(len(studies)), [len(s) for s in studies]).astype(np.int64)
    labelled = np.array([v is not None for v in values], bool)
    positive = np.array([v == 1 for v in values], bool)[labelled]
    found = runs(positive, stretches(study, labelled))
    assert (found.lengths.tolist(), found.gaps, found.neighbours, found.agreeing) == looped_runs(studies)


def test_places_run_from_0_at_the_feet_to_1_at_the_head():
    """By millimetres, not by index; one slice, or all at one position, lie nowhere."""
    assert places(np.array([-10.0, -7.5, 10.0])).tolist() == [0, 0.125, 1]
    assert np.isnan(places(np.array([3.0]))).all()
    assert np.isnan(places(np.array([3.0, 3.0]))).all()


@given(TARGETS, st.integers(1, 25), st.integers(0, 2**32))
def test_a_profile_counts_every_placed_slice_once(targets, bins, seed):
    """Against numpy's histogram, slices and positives; NaN is nowhere, 1 is in the last bin."""
    place = np.random.default_rng(seed).choice([0, 0.1, 0.25, 0.5, 0.999, 1, np.nan], len(targets))
    slices, positive = profile(place, targets, bins)
    known = ~np.isnan(place)
    assert slices.sum() == known.sum()
    assert positive.sum(axis=0).tolist() == targets[known].sum(axis=0).tolist()
    inside = np.minimum(np.floor(place[known] * bins), bins - 1)
    assert slices.tolist() == [int((inside == b).sum()) for b in range(bins)]
    assert positive.tolist() == [targets[known][inside == b].sum(axis=0).tolist() for b in range(bins)]
