"""novelty: how far a study lies off what is usual, by a plain loop, and what must not decide it alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from ich_seq.novelty import AXES, LEAST_SCALE, MOST, STRANGE, Familiar, fit_familiar

D = 48
WAYS = 6
"""The directions in which the embeddings below vary: less than AXES, as those of a network trained on few labels do."""


def usual_studies(seed: int, number: int, *, dim: int = D, shift: float = 0.0, along: float = 1.0) -> list[np.ndarray]:
    """Embeddings of studies of some slices each: `along` WAYS much, in all others little, `shift` is off them."""
    rng, of = np.random.default_rng(seed), np.random.default_rng(99)
    mean, scale = of.normal(0, 3, dim), of.uniform(0.5, 2, dim)
    axes = np.linalg.qr(of.normal(size=(dim, dim)))[0]
    lengths = rng.integers(5, 40, number)
    studies = []
    for n in lengths:
        far = 0.15 * rng.normal(size=(n, dim))
        far[:, :WAYS] = along * 3 * rng.normal(size=(n, WAYS))
        far[:, WAYS:] += shift
        studies.append((mean + scale * (far @ axes.T)).astype(np.float16))
    return studies


def unit(rows) -> list[list[float]]:
    """Rows at length 1."""
    lengths = [math.sqrt(sum(float(x) ** 2 for x in row)) for row in rows]
    return [[float(x) / (length or 1.0) for x in row] for row, length in zip(rows, lengths, strict=True)]


def by_hand(study, mean, scale, axes) -> float:
    """The mean over slices and dimensions of the capped squared distance that no axis takes, number by number."""
    beside = []
    for row in unit(study):
        off = [max(-MOST, min(MOST, (x - float(m)) / float(s))) for x, m, s in zip(row, mean, scale, strict=True)]
        along = [sum(float(a) * x for a, x in zip(axis, off, strict=True)) for axis in axes]
        beside.append(max(0.0, sum(x * x for x in off) - sum(a * a for a in along)) / len(off))
    return sum(beside) / len(beside)


@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(-60, 60, width=16), min_size=8, max_size=8),
    means=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
    scales=st.lists(st.floats(0.125, 4, width=32), min_size=4, max_size=4),
    limit=st.floats(0.1, 10),
    turn=st.integers(0, 100),
)
def test_novelty_is_the_distance_off_the_axes(values, means, scales, limit, turn):
    """Of two slices of four numbers and two axes, one by one, in units of the limit."""
    study = np.array(values, np.float16).reshape(2, 4)
    axes = np.linalg.qr(np.random.default_rng(turn).normal(size=(4, 4)))[0][:2].astype(np.float32)
    familiar = Familiar(np.array([means], np.float32), np.array([scales], np.float32), axes[None], limit)
    assert familiar.novelty([study]) == pytest.approx(by_hand(study, means, scales, axes) / limit, rel=1e-4, abs=1e-3)


def test_what_is_usual_is_mean_and_spread_of_all_slices_and_their_principal_axes():
    """Slice by slice, not study by study; scikit-learn finds the same axes; 99 of 100 studies stay below the limit."""
    studies = usual_studies(0, 50)
    familiar = fit_familiar({0: studies}, [0])
    rows = np.array(unit(np.concatenate(studies)))
    assert familiar.mean.shape == familiar.scale.shape == (1, D)
    assert familiar.axes.shape == (1, AXES, D)
    assert familiar.mean.dtype == familiar.scale.dtype == familiar.axes.dtype == np.float32
    assert familiar.mean[0] == pytest.approx(rows.mean(axis=0), rel=1e-5, abs=1e-6)
    assert familiar.scale[0] == pytest.approx(rows.std(axis=0), rel=1e-5)
    theirs = PCA(WAYS).fit(((rows - rows.mean(axis=0)) / rows.std(axis=0)).clip(-MOST, MOST)).components_
    assert np.linalg.norm(familiar.axes[0] @ theirs.T, axis=0) == pytest.approx(np.ones(WAYS), abs=1e-3)
    assert familiar.axes[0] @ familiar.axes[0].T == pytest.approx(np.eye(AXES), abs=1e-5)
    distances = [by_hand(x, familiar.mean[0], familiar.scale[0], familiar.axes[0]) for x in studies]
    assert familiar.limit == pytest.approx(np.quantile(distances, 0.99), rel=1e-4)


@pytest.mark.parametrize("number", [1, 100, 300])
def test_99_of_100_training_studies_are_within_the_limit(number):
    """Their novelty is at most 1 and that of the others above; of a single one it is 1."""
    studies = usual_studies(1, number)
    familiar = fit_familiar({0: studies}, [0])
    said = sorted(familiar.novelty([x]) for x in studies)
    within = sum(x <= 1 + 1e-9 for x in said)
    assert within >= math.floor(0.99 * (number - 1)) + 1
    assert number - within == (number - 1) // 100 + (number > 1 and (number - 1) % 100 > 0)


def test_a_study_like_the_training_data_is_not_strange_and_one_off_its_axes_is():
    """New draws of the same stay below STRANGE; those that differ in ways that none did are above."""
    familiar = fit_familiar({0: usual_studies(2, 200)}, [0])
    assert max(familiar.novelty([x]) for x in usual_studies(3, 50)) < STRANGE
    assert min(familiar.novelty([x]) for x in usual_studies(4, 50, shift=1.5)) > STRANGE


def test_a_study_that_differs_as_others_do_is_not_strange_however_much():
    """A head full of blood lies far out on the axes that blood has, and is a head all the same."""
    familiar = fit_familiar({0: usual_studies(2, 200)}, [0])
    assert max(familiar.novelty([x]) for x in usual_studies(4, 50, along=1.5)) < STRANGE


@settings(deadline=None, max_examples=20)
@given(strength=st.floats(0.01, 100), seed=st.integers(0, 100))
def test_how_strong_embeddings_are_does_not_matter(strength, seed):
    """The same at another length is as new."""
    familiar = fit_familiar({0: usual_studies(2, 20)}, [0])
    study = usual_studies(seed, 1, shift=0.5)[0].astype(np.float64)
    assert familiar.novelty([strength * study]) == pytest.approx(familiar.novelty([study]), rel=1e-9)


def test_farther_off_the_axes_is_stranger_up_to_a_bound():
    """Novelty rises with what is off them, and no single number can make it more than MOST deviations do."""
    familiar = fit_familiar({0: usual_studies(2, 200)}, [0])
    said = [familiar.novelty(usual_studies(5, 1, shift=shift)) for shift in (0, 0.5, 1, 2, 4)]
    assert said == sorted(said)
    assert len(set(said)) == len(said)
    endless = np.full((3, D), 60_000, np.float16)
    one_wild = np.repeat(familiar.mean[:1], 4, axis=0)
    one_wild[0, 0] = 60_000
    for wild in (endless, one_wild):
        distance = by_hand(wild, familiar.mean[0], familiar.scale[0], familiar.axes[0])
        assert familiar.novelty([wild]) == pytest.approx(distance / familiar.limit, rel=1e-4)
        assert distance <= MOST**2


def test_every_network_has_its_own_usual():
    """Of several the mean is taken, each by what it made of the training data itself."""
    made = {0: usual_studies(6, 30), 3: usual_studies(7, 40, shift=2.0)}
    familiar = fit_familiar(made, [0, 3])
    for k, studies in enumerate(made.values()):
        assert familiar.mean[k] == pytest.approx(np.mean(unit(np.concatenate(studies)), axis=0), rel=1e-4, abs=1e-5)
    views = [made[0][0], made[3][0]]
    usual = zip(views, familiar.mean, familiar.scale, familiar.axes, strict=True)
    distances = [by_hand(*of) for of in usual]
    assert familiar.novelty(views) == pytest.approx(np.mean(distances) / familiar.limit, rel=1e-4)
    assert familiar.novelty(views[::-1]) > STRANGE


def test_networks_come_in_the_order_asked_for():
    """Whatever the order in which the features came."""
    made = {7: usual_studies(6, 5), 2: usual_studies(7, 5, shift=2.0)}
    one, two = fit_familiar(made, [2, 7]), fit_familiar(dict(sorted(made.items())), [2, 7])
    assert np.array_equal(one.mean, two.mean)
    assert one.mean[0] == pytest.approx(np.mean(unit(np.concatenate(made[2])), axis=0), rel=1e-4, abs=1e-5)


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
    """What is read when looked at gives the same as what is in memory, each study looked at three times."""
    studies = usual_studies(9, 12)
    lying = [OnDisk(x) for x in studies]
    there, here = fit_familiar({0: lying}, [0]), fit_familiar({0: studies}, [0])
    assert np.array_equal(there.mean, here.mean)
    assert np.array_equal(there.scale, here.scale)
    assert np.array_equal(there.axes, here.axes)
    assert there.limit == here.limit
    assert [x.reads for x in lying] == [3] * len(lying)


def test_a_steady_dimension_does_not_decide_alone():
    """A number that is always 0 counts as a tenth of the usual spread: nothing divides by 0."""
    studies = usual_studies(10, 100)
    for x in studies:
        x[:, 0] = 0
    familiar = fit_familiar({0: studies}, [0])
    spread = np.std(unit(np.concatenate(studies)), axis=0)
    assert familiar.scale[0, 0] == pytest.approx(LEAST_SCALE * spread.mean(), rel=1e-4)
    assert familiar.scale[0, 1:] == pytest.approx(spread[1:], rel=1e-4)
    moved = studies[0].copy()
    moved[:, 0] += np.float16(0.25)
    assert np.isfinite(familiar.novelty([moved]))
    before, after = (familiar.novelty([x]) * familiar.limit for x in (studies[0], moved))
    assert before < after < before + 0.2


def test_embeddings_that_are_all_the_same_give_numbers():
    """A network that says the same of everything: what is the same is not new, and nothing is infinite or NaN."""
    studies = [np.full((4, D), 0.5, np.float16)] * 3
    familiar = fit_familiar({0: studies}, [0])
    assert familiar.limit > 0
    assert (familiar.scale > 0).all()
    assert familiar.novelty([studies[0]]) <= 1


def test_few_slices_have_few_axes():
    """One for ten slices: as many axes as slices would take all there is, and everything else would be strange."""
    studies = usual_studies(1, 2)
    few = fit_familiar({0: [x[:6] for x in studies]}, [0])
    assert few.axes.any(axis=2).sum() == 1
    assert few.axes.shape == (1, AXES, D)
    assert max(few.novelty([x]) for x in usual_studies(3, 20)) < 20


def test_what_differs_where_all_were_the_same_is_strange_and_finite():
    """Another embedding than the only one that was ever seen is far, and no warning is given."""
    familiar = fit_familiar({0: [np.full((4, D), 0.5, np.float16)] * 3}, [0])
    other = np.full((4, D), 0.5, np.float16)
    other[:, 0] = 0.75
    assert STRANGE < familiar.novelty([other]) < np.inf
