"""Who does which study: each exactly one process, none much more than another, whatever the order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.sharding import shares

works = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 60), max_size=60)
sizes = st.integers(1, 9)
quick = settings(deadline=None, max_examples=100)


@given(works, sizes)
@quick
def test_each_study_is_of_exactly_one_process(weights, size):
    """Nothing is lost and nothing is done twice, with more processes than studies too."""
    dealt = shares(weights, size)
    assert len(dealt) == size
    assert sorted(name for share in dealt for name in share) == sorted(weights)


@given(works, sizes)
@quick
def test_no_share_is_heavier_than_another_by_more_than_the_longest_study(weights, size):
    """Shares are balanced by slices, not by studies."""
    loads = [sum(weights[name] for name in share) for share in shares(weights, size)]
    assert max(loads) - min(loads) <= max(weights.values(), default=0)


@given(works, sizes, st.randoms(use_true_random=False))
@quick
def test_shares_do_not_depend_on_the_order_and_keep_it(weights, size, chance: random.Random):
    """Shuffled studies go to the same processes, each of which has them in the order that was given."""
    names = list(weights)
    chance.shuffle(names)
    shuffled = {name: weights[name] for name in names}
    for share, other in zip(shares(weights, size), shares(shuffled, size), strict=True):
        assert set(share) == set(other)
        assert share == [name for name in weights if name in share]
        assert other == [name for name in names if name in other]


def test_a_long_study_is_balanced_by_short_ones():
    """One of 60 slices stands against six of 10."""
    weights = {"long": 60} | {f"short {i}": 10 for i in range(6)}
    assert shares(weights, 2) == [["long"], [f"short {i}" for i in range(6)]]


@pytest.mark.parametrize("size", [1, 4])
def test_nothing_to_do_is_shared_by_all(size):
    assert shares({}, size) == [[] for _ in range(size)]
