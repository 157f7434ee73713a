"""Studies in folds: what a base says of a study comes from a classifier that saw neither it nor what is left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from ich_seq import folded_studies
from ich_seq.baselines import fit_classifier
from ich_seq.folded_studies import FoldedStudies
from ich_seq.labels import LABELS, read_labels
from ich_seq.sequences import LabelledStudy, label_studies
from ich_seq.store import open_store

K = len(LABELS)
FOLDS = 4
SLICES = [1, 12, 3, 7, 5, 2, 9, 4, 11, 6, 8, 10, 3, 5, 12, 1, 7, 6, 4, 9]
PATIENTS = 14


@pytest.fixture(scope="module")
def studies(labelled_store) -> list[LabelledStudy]:
    """Twenty studies of fourteen patients as train-rnn has them: embeddings on disk, no logits."""
    store, labels, _ = labelled_store(SLICES, PATIENTS)
    labelled, _ = label_studies(open_store(store), read_labels(labels))
    return labelled


@pytest.fixture(scope="module")
def data(studies) -> FoldedStudies:
    """The studies in four folds; no patient lies in two."""
    return FoldedStudies(studies, folds_of(studies), 0)


def folds_of(studies: list[LabelledStudy]) -> np.ndarray:
    return np.array([int(s.features.patient_key.split()[-1]) % FOLDS for s in studies])


def subsets(numbers: frozenset[int], most: int) -> list[frozenset[int]]:
    return [frozenset(c) for size in range(most + 1) for c in combinations(sorted(numbers), size)]


def rows_of(studies: list[LabelledStudy]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and targets of all slices, laid end to end."""
    return np.concatenate([s.features.features for s in studies]), np.concatenate([s.targets for s in studies])


def with_heads(studies: list[LabelledStudy]) -> list[LabelledStudy]:
    """The studies with logits, as an encoder with a head gives them."""
    rng = np.random.default_rng(0)
    return [
        replace(s, features=replace(s.features, logits=rng.normal(size=(len(s), K)).astype(np.float32)))
        for s in studies
    ]


def test_studies_of_folds_left_out_are_never_learnt_from(data):
    """`of` and `to_learn_from` give all studies of the folds asked for, once, and no patient of any other fold."""
    for without in subsets(data.numbers, FOLDS - 2):
        folds = data.numbers - without
        away = {s.features.patient_key for s, f in zip(data.studies, data.folds, strict=True) if f in without}
        wanted = sorted(s.features.study_uid for s, f in zip(data.studies, data.folds, strict=True) if f in folds)
        for studies in (data.of(folds), data.to_learn_from(folds, without)):
            assert sorted(s.features.study_uid for s in studies) == wanted
            assert not away & {s.features.patient_key for s in studies}


@pytest.mark.slow
def test_base_logits_come_from_a_classifier_that_saw_neither_the_study_nor_the_folds_left_out(data):
    """Refitted by hand on the other patients alone, the classifier gives each study exactly its base logits."""
    fold_of = {s.features.study_uid: f for s, f in zip(data.studies, data.folds.tolist(), strict=True)}
    for without in subsets(data.numbers, 2):
        for study in data.to_learn_from(data.numbers - without, without):
            unseen = without | {fold_of[study.features.study_uid]}
            seen = [s for s, f in zip(data.studies, data.folds, strict=True) if f not in unseen]
            assert study.features.patient_key not in {s.features.patient_key for s in seen}
            by_hand = fit_classifier(*rows_of(seen)).logits(np.asarray(study.features.features))
            assert np.array_equal(study.features.logits, by_hand)


def test_each_classifier_is_fitted_and_applied_once(data, monkeypatch):
    """The sets of folds left out recur in any order, and what was fitted or said for them is kept."""
    fitted = []
    monkeypatch.setattr(folded_studies, "fit_classifier", lambda *rows: fitted.append(1) or fit_classifier(*rows))
    fresh = FoldedStudies(data.studies, data.folds, 0)
    for _ in range(2):
        for fold in fresh.numbers:
            for away in fresh.numbers:
                fresh.to_learn_from(fresh.numbers - {away, fold}, frozenset({away}))
                fresh.to_learn_from(frozenset({fold}), frozenset({away}))
    assert len(fitted) == FOLDS + FOLDS * (FOLDS - 1) // 2
    one, again = (fresh.prepare(0, frozenset({0, 1})) for _ in range(2))
    assert one is again
    assert fresh.classifier(frozenset({1, 0})) is fresh.classifier(frozenset({0, 1}))


def test_the_studies_given_are_not_changed(data, studies):
    """Base logits are put beside copies: what was given has none, and its embeddings still lie on disk."""
    data.to_learn_from(data.numbers, frozenset())
    assert data.studies is studies
    assert all(s.features.logits is None for s in studies)
    for study in data.prepare(0, frozenset({0})):
        assert study.features.logits.shape == (len(study), K)
        assert not isinstance(study.features.features, np.ndarray)


def test_embeddings_on_disk_and_in_memory_give_the_same_classifier(data):
    """Where the rows lie makes no difference to a bit."""
    in_memory = [
        replace(s, features=replace(s.features, features=np.asarray(s.features.features))) for s in data.studies
    ]
    for without in subsets(data.numbers, 1):
        one, other = (FoldedStudies(of, data.folds, 0).classifier(without) for of in (data.studies, in_memory))
        assert np.array_equal(one.weight, other.weight)
        assert np.array_equal(one.bias, other.bias)


# Encoders with heads


def test_where_encoders_have_heads_no_classifier_is_fitted(data, monkeypatch):
    """Every study comes with the logits it was given, whatever is left out: it is the very same object."""
    monkeypatch.setattr(folded_studies, "fit_classifier", lambda *_: pytest.fail("a classifier was fitted"))
    headed = FoldedStudies(with_heads(data.studies), data.folds, 0)
    assert headed.has_head
    for without in subsets(data.numbers, 2):
        for study in headed.to_learn_from(data.numbers - without, without):
            assert any(study is s for s in headed.studies)


def test_where_one_study_has_no_logits_a_classifier_is_fitted(data):
    """A base is one for all studies: logits of some are not mixed with a classifier's of the others."""
    mixed = FoldedStudies([data.studies[0], *with_heads(data.studies[1:])], data.folds, 0)
    assert not mixed.has_head
    fold = int(data.folds[1])
    logits = mixed.classifier(frozenset({fold})).logits
    for study in mixed.prepare(fold, frozenset({fold})):
        assert np.array_equal(study.features.logits, logits(np.asarray(study.features.features)))


# More slices than a classifier is fitted on


def drawn(monkeypatch, data: FoldedStudies, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a classifier of all folds is fitted on, of which there may be `most`."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(folded_studies, "MAX_FIT_SLICES", most)
        patch.setattr(folded_studies, "fit_classifier", lambda *rows: seen.append(rows))
        FoldedStudies(data.studies, data.folds, seed).classifier(frozenset())
    ((features, targets),) = seen
    return features, targets


@pytest.mark.parametrize("most", [1, 2, 40, sum(SLICES) - 1, sum(SLICES), sum(SLICES) + 1])
def test_of_many_slices_some_are_drawn_each_once_and_with_its_own_targets(data, monkeypatch, most):
    """At most so many rows, in the order of the studies, each beside the labels of its own slice."""
    features, targets = drawn(monkeypatch, data, most, 0)
    every, truth = rows_of(data.studies)
    where = [int(np.flatnonzero((every == row).all(axis=1))[0]) for row in features]
    assert len(where) == min(most, sum(SLICES))
    assert where == sorted(set(where))
    assert np.array_equal(targets, truth[where])


def test_which_slices_are_drawn_depends_on_the_seed_alone(data, monkeypatch):
    """The same seed draws the same, another one others, and over seeds every slice has its turn."""
    every, _ = rows_of(data.studies)
    sets = []
    for seed in (0, 0, *range(1, 12)):
        features, _ = drawn(monkeypatch, data, 60, seed)
        sets.append(frozenset(int(np.flatnonzero((every == row).all(axis=1))[0]) for row in features))
    assert sets[0] == sets[1]
    assert len(set(sets)) == 12
    assert frozenset().union(*sets) == set(range(len(every)))


def test_only_rows_that_were_drawn_are_read_from_disk(data, monkeypatch):
    """A study of which no slice was drawn is not read at all."""
    read = []
    rows_on_disk = type(data.studies[0].features.features)
    kept = rows_on_disk.__array__
    monkeypatch.setattr(rows_on_disk, "__array__", lambda self, *a, **b: read.append(len(self)) or kept(self, *a, **b))
    drawn(monkeypatch, data, 3, 0)
    assert sum(read) == 3
    assert 0 not in read
