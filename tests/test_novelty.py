"""novelty: how far from the training data a study lies, by a plain loop, and what must not decide it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq.novelty import LEAST_SCALE, MOST, STRANGE, Familiar, fit_familiar

D = 16


def usual_studies(seed: int, number: int, *, dim: int = D, shift: float = 0.0) -> list[np.ndarray]:
    """Embeddings of studies of some slices each, their dimensions of different means and spreads."""
    rng, of = np.random.default_rng(seed), np.random.default_rng(99)
    mean, scale = of.normal(0, 3, dim), of.uniform(0.5, 2, dim)
    lengths = rng.integers(5, 40, number)
    return [(mean + scale * (rng.normal(size=(n, dim)) + shift)).astype(np.float16) for n in lengths]


def by_hand(study, mean, scale) -> float:
    """The mean, over slices and dimensions, of the square of how many standard deviations off; at most so much."""
    squares = [
        min(((float(x) - float(m)) / float(s)) ** 2, MOST**2)
        for row in study
        for x, m, s in zip(row, mean, scale, strict=True)
    ]
    return sum(squares) / len(squares)


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-60, 60, width=16), min_size=6, max_size=6),
    means=st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3),
    scales=st.lists(st.floats(0.125, 4, width=32), min_size=3, max_size=3),
    limit=st.floats(0.1, 10),
)
def test_novelty_is_the_mean_capped_square(values, means, scales, limit):
    """Of two slices of three numbers, one by one, in units of the limit."""
    study = np.array(values, np.float16).reshape(2, 3)
    familiar = Familiar(np.array([means], np.float32), np.array([scales], np.float32), limit)
    assert familiar.novelty([study]) == pytest.approx(by_hand(study, means, scales) / limit, rel=1e-5, abs=1e-9)


def test_what_is_usual_is_mean_and_spread_of_all_slices():
    """Slice by slice, not study by study; the limit is the distance that 99 of 100 studies stay below."""
    studies = usual_studies(0, 50)
    familiar = fit_familiar({0: studies}, [0])
    rows = np.concatenate(studies).astype(np.float64)
    assert familiar.mean.shape == familiar.scale.shape == (1, D)
    assert familiar.mean.dtype == familiar.scale.dtype == np.float32
    assert familiar.mean[0] == pytest.approx(rows.mean(axis=0), rel=1e-5, abs=1e-6)
    assert familiar.scale[0] == pytest.approx(rows.std(axis=0), rel=1e-5)
    distances = [by_hand(x, familiar.mean[0], familiar.scale[0]) for x in studies]
    assert familiar.limit == pytest.approx(np.quantile(distances, 0.99), rel=1e-5)


@pytest.mark.parametrize("number", [1, 100, 300])
def test_99_of_100_training_studies_are_within_the_limit(number):
    """Their novelty is at most 1 and that of the others above; of a single one it is 1."""
    studies = usual_studies(1, number)
    familiar = fit_familiar({0: studies}, [0])
    said = sorted(familiar.novelty([x]) for x in studies)
    within = sum(x <= 1 + 1e-9 for x in said)
    assert within >= math.floor(0.99 * (number - 1)) + 1
    assert number - within == (number - 1) // 100 + (number > 1 and (number - 1) % 100 > 0)


def test_a_study_like_the_training_data_is_not_strange_and_a_far_one_is():
    """New draws of the same stay below STRANGE; the same moved by one and a half standard deviations are above."""
    familiar = fit_familiar({0: usual_studies(2, 200)}, [0])
    assert max(familiar.novelty([x]) for x in usual_studies(3, 50)) < STRANGE
    assert min(familiar.novelty([x]) for x in usual_studies(4, 50, shift=1.5)) > STRANGE


def test_farther_is_stranger_up_to_a_bound():
    """Novelty rises with the distance, and no single number can make it more than MOST deviations do."""
    familiar = fit_familiar({0: usual_studies(2, 200)}, [0])
    said = [familiar.novelty(usual_studies(5, 1, shift=shift)) for shift in (0, 1, 2, 4, 8)]
    assert said == sorted(said)
    assert len(set(said)) == len(said)
    endless = familiar.novelty([np.full((3, D), 60_000, np.float16)])
    assert endless == pytest.approx(MOST**2 / familiar.limit, rel=1e-6)
    one_wild = np.repeat(familiar.mean[:1], 4, axis=0)
    one_wild[0, 0] = 60_000
    assert familiar.novelty([one_wild]) == pytest.approx(MOST**2 / (4 * D) / familiar.limit, rel=1e-6)


def test_every_network_has_its_own_usual():
    """Of several the mean is taken, each by what it made of the training data itself."""
    made = {0: usual_studies(6, 30), 3: usual_studies(7, 40, shift=2.0)}
    familiar = fit_familiar(made, [0, 3])
    for k, studies in enumerate(made.values()):
        assert familiar.mean[k] == pytest.approx(np.concatenate(studies).astype(float).mean(axis=0), rel=1e-4, abs=1e-5)
    views = [made[0][0], made[3][0]]
    distances = [by_hand(v, m, s) for v, m, s in zip(views, familiar.mean, familiar.scale, strict=True)]
    assert familiar.novelty(views) == pytest.approx(np.mean(distances) / familiar.limit, rel=1e-5)
    assert familiar.novelty(views[::-1]) > STRANGE


def test_networks_come_in_the_order_asked_for():
    """Whatever the order in which the features came."""
    made = {7: usual_studies(6, 5), 2: usual_studies(7, 5, shift=2.0)}
    one, two = fit_familiar(made, [2, 7]), fit_familiar(dict(sorted(made.items())), [2, 7])
    assert np.array_equal(one.mean, two.mean)
    assert one.mean[0] == pytest.approx(np.concatenate(made[2]).astype(float).mean(axis=0), rel=1e-4, abs=1e-5)


def test_a_network_that_made_none_says_nothing():
    """A fold whose network was not needed: NaN, and left out of the mean wherever it stands."""
    made = usual_studies(8, 30)
    study, nonsense = made[4], np.full((3, D), 50, np.float16)
    alone = fit_familiar({1: made}, [1]).novelty([study])
    for networks in ([0, 1], [1, 0], [0, 1, 2]):
        familiar = fit_familiar({1: made}, networks)
        known = networks.index(1)
        assert np.isfinite(familiar.mean[known]).all()
        assert all(np.isnan(familiar.mean[k]).all() for k in range(len(networks)) if k != known)
        assert familiar.novelty([study if n == 1 else nonsense for n in networks]) == alone


@dataclass
class OnDisk:
    """Rows that are read anew each time they are looked at, as those of a store are."""

    rows: np.ndarray
    reads: int = 0

    def __len__(self) -> int:
        """Tell how many there are without a look."""
        return len(self.rows)

    def __array__(self, dtype=None, copy=None):
        """Read them."""
        self.reads += 1
        return np.asarray(self.rows, dtype)


def test_studies_may_lie_on_the_disk():
    """What is read when looked at gives the same as what is in memory, each study looked at twice."""
    studies = usual_studies(9, 12)
    lying = [OnDisk(x) for x in studies]
    there, here = fit_familiar({0: lying}, [0]), fit_familiar({0: studies}, [0])
    assert np.array_equal(there.mean, here.mean)
    assert np.array_equal(there.scale, here.scale)
    assert there.limit == here.limit
    assert [x.reads for x in lying] == [2] * len(lying)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.0])
def test_a_steady_dimension_does_not_decide_alone(value):
    """A number that is always the same counts as a tenth of the usual spread: nothing divides by 0."""
    studies = usual_studies(10, 100)
    for x in studies:
        x[:, 0] = np.float16(value)
    familiar = fit_familiar({0: studies}, [0])
    spread = np.concatenate(studies).astype(float).std(axis=0)
    assert familiar.scale[0, 0] == pytest.approx(LEAST_SCALE * spread.mean(), rel=1e-4)
    assert familiar.scale[0, 1:] == pytest.approx(spread[1:], rel=1e-4)
    moved = studies[0].copy()
    moved[:, 0] += np.float16(0.25)
    assert np.isfinite(familiar.novelty([moved]))
    assert familiar.novelty([studies[0]]) < familiar.novelty([moved]) < familiar.novelty([studies[0]]) + 2


def test_embeddings_that_are_all_the_same_give_numbers():
    """A network that says the same of everything: what is the same is not new, and nothing is infinite or NaN."""
    studies = [np.full((4, D), 0.5, np.float16)] * 3
    familiar = fit_familiar({0: studies}, [0])
    assert familiar.limit > 0
    assert (familiar.scale > 0).all()
    assert familiar.novelty([studies[0]]) == 0


def test_what_differs_where_all_were_the_same_is_strange_and_finite():
    """Another embedding than the only one that was ever seen is far, and no warning is given."""
    familiar = fit_familiar({0: [np.full((4, D), 0.5, np.float16)] * 3}, [0])
    assert STRANGE < familiar.novelty([np.full((4, D), 0.75, np.float16)]) < np.inf
