"""Studies as sequences: rows stay beside their UIDs, labels and logits, whatever is done to them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ich_seq.labels import LABELS, read_labels
from ich_seq.sequences import (
    POOL,
    THIN_FROM,
    LabelledStudy,
    batches,
    collate,
    collate_labelled,
    label_studies,
    shuffled_batches,
    varied,
)
from ich_seq.store import StudyFeatures, open_store

D, K = 16, len(LABELS)
lengths_of_studies = st.lists(st.integers(1, 12), min_size=1, max_size=6)
quick = settings(deadline=None, max_examples=30)


def numbered(name: str, slices: int, *, base: bool = True) -> LabelledStudy:
    """A study in which every part of row i says i: features, UID, position, labels and base logits."""
    number = np.arange(slices)
    return LabelledStudy(
        features=StudyFeatures(
            study_uid=name,
            patient_key=f"patient of {name}",
            sop_uids=tuple(f"{name}.{i}" for i in number),
            positions_mm=40.0 + 2.5 * number,
            features=np.tile(number[:, None], D).astype(np.float16),
            logits=np.tile(number[:, None], K).astype(np.float32) if base else None,
        ),
        targets=((number[:, None] >> np.arange(K)) & 1).astype(np.uint8),
    )


def numbers_of(study: LabelledStudy) -> list[int]:
    """Return which rows a study holds; fails if its parts disagree about it."""
    numbers = [int(uid.rpartition(".")[2]) for uid in study.features.sop_uids]
    assert {uid.rpartition(".")[0] for uid in study.features.sop_uids} == {study.features.study_uid}
    assert study.features.features[:, 0].tolist() == numbers
    assert (study.features.features == study.features.features[:, :1]).all()
    assert np.abs(study.features.positions_mm).tolist() == [40.0 + 2.5 * i for i in numbers]
    assert [sum(int(bit) << k for k, bit in enumerate(row)) for row in study.targets] == numbers
    if study.features.logits is not None:
        assert (study.features.logits == np.array(numbers, np.float32)[:, None]).all()
        assert study.features.logits.shape == study.targets.shape
    return numbers


def same(a: LabelledStudy, b: LabelledStudy) -> bool:
    return (
        a.features.study_uid == b.features.study_uid
        and numbers_of(a) == numbers_of(b)
        and np.array_equal(a.features.positions_mm, b.features.positions_mm)
    )


# Batches


@given(lengths=lengths_of_studies, logits=st.booleans())
@quick
def test_a_batch_holds_each_study_as_it_was(make_study, lengths, logits):
    """Cut back to its length, every row of a batch is the study bit for bit, in order; the rest is padding of 0."""
    studies = [make_study(f"s{i}", n, dim=D, logits=logits) for i, n in enumerate(lengths)]
    batch = collate(studies)
    assert batch.lengths.tolist() == lengths
    assert batch.features.shape == (len(lengths), max(lengths), D)
    assert batch.positions_mm.shape == (len(lengths), max(lengths))
    for b, study in enumerate(studies):
        n = len(study.features)
        assert np.array_equal(batch.features[b, :n].numpy(), study.features.astype(np.float32))
        assert np.array_equal(batch.positions_mm[b, :n].numpy(), study.positions_mm)
        assert (batch.features[b, n:] == 0).all()
        assert (batch.positions_mm[b, n:] == 0).all()
        if logits:
            assert np.array_equal(batch.logits[b, :n].numpy(), study.logits)
            assert (batch.logits[b, n:] == 0).all()
    assert (batch.logits is not None) == logits
    assert batch.targets is None


@given(lengths=lengths_of_studies)
@quick
def test_labels_and_base_logits_ride_along(lengths):
    """Targets and base logits lie beside the features of the same slice, and are 0 beyond."""
    studies = [numbered(f"s{i}", n) for i, n in enumerate(lengths)]
    batch = collate_labelled(studies)
    assert batch.targets.shape == batch.logits.shape == (len(lengths), max(lengths), K)
    for b, study in enumerate(studies):
        n = len(study)
        assert np.array_equal(batch.features[b, :n].numpy(), study.features.features)
        assert np.array_equal(batch.targets[b, :n].numpy(), study.targets)
        assert np.array_equal(batch.logits[b, :n].numpy(), study.features.logits)
        assert (batch.targets[b, n:] == 0).all()
        assert (batch.logits[b, n:] == 0).all()


def test_the_types_of_a_batch_are_those_the_networks_want():
    """Features, targets and logits are float32, positions float64, lengths int64 on the CPU even after a move."""
    batch = collate_labelled([numbered("a", 3), numbered("b", 1)])
    moved = batch.to(torch.device("meta"))
    for b in (batch, moved):
        assert (b.features.dtype, b.targets.dtype, b.logits.dtype) == (torch.float32,) * 3
        assert b.positions_mm.dtype == torch.float64
        assert b.lengths.dtype == torch.int64
        assert b.lengths.device.type == "cpu"
    tensors = (moved.features, moved.positions_mm, moved.targets, moved.logits)
    assert {t.device.type for t in tensors} == {"meta"}
    bare = collate([numbered("a", 3, base=False).features]).to(torch.device("meta"))
    assert bare.targets is None
    assert bare.logits is None


def test_base_logits_need_all_studies():
    """Where one study has no base logits the batch has none: zeros would pass for logits."""
    mixed = [numbered("a", 3), numbered("b", 2, base=False)]
    for studies in (mixed, mixed[::-1]):
        assert collate_labelled(studies).logits is None
        assert collate([s.features for s in studies]).logits is None


def test_a_batch_does_not_share_memory_with_the_studies():
    """What is done to a batch is not done to the studies, which the next epoch needs."""
    study = numbered("a", 3)
    batch = collate_labelled([study])
    for tensor in (batch.features, batch.positions_mm, batch.targets, batch.logits):
        tensor.fill_(-1)
    assert numbers_of(study) == [0, 1, 2]


@pytest.mark.parametrize("lengths", [[], [0], [3, 0], [0, 3]])
def test_an_empty_batch_or_study_is_refused(lengths):
    """Nothing to say anything about is an error at once, not a NaN later."""
    with pytest.raises(ValueError, match="at least one"):
        collate([numbered("a", n).features for n in lengths])


@given(lengths=st.lists(st.integers(1, 12), max_size=9), size=st.integers(1, 4))
@quick
def test_batches_hold_every_study_once_in_order(lengths, size):
    """Laid end to end the batches are the studies in their order, none larger than asked, all but the last full."""
    cut = list(batches([numbered(f"s{i}", n) for i, n in enumerate(lengths)], size))
    assert [n for batch in cut for n in batch.lengths.tolist()] == lengths
    assert all(len(batch.lengths) == size for batch in cut[:-1])
    assert all(1 <= len(batch.lengths) <= size for batch in cut)


def drawn(lengths, size, seed=0):
    return shuffled_batches(lengths, size, np.random.default_rng(seed))


@given(
    lengths=st.lists(st.integers(1, 60), max_size=200),
    size=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
@example(lengths=[5] * (9 * POOL + 4), size=3, seed=0)  # several pools
@settings(deadline=None, max_examples=60)
def test_shuffled_batches_hold_every_study_once(lengths, size, seed):
    """Every study is in one batch; all are full, but for one where the number is not a multiple of the size."""
    cut = drawn(lengths, size, seed)
    assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))
    left = len(lengths) % size
    assert sorted(map(len, cut)) == [left] * (left > 0) + [size] * (len(lengths) // size)
    assert [batch.tolist() for batch in drawn(lengths, size, seed)] == [batch.tolist() for batch in cut]


def test_shuffled_batches_waste_little_on_padding():
    """Of lengths as in RSNA 2019 a random order pads by a fifth or more; pools pad by a tenth of that."""
    lengths = np.random.default_rng(0).integers(24, 61, 3000)

    def waste(cut):
        return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in cut) / lengths.sum()

    at_random = np.split(np.random.default_rng(1).permutation(3000), range(16, 3000, 16))
    assert waste(at_random) > 0.2
    assert waste(drawn(lengths, 16)) < 0.1 * waste(at_random)


@pytest.mark.parametrize("lengths", [[30] * 400, list(range(1, 401))], ids=["all alike", "all different"])
def test_companions_and_order_change_from_epoch_to_epoch(lengths):
    """In two epochs few pairs of studies share a batch, the short do not come first, and no batch keeps its place."""

    def pairs(cut):
        return {(i, j) for batch in cut for i in batch for j in batch if i < j}

    one, two = drawn(lengths, 4, seed=1), drawn(lengths, 4, seed=2)
    assert len(pairs(one) & pairs(two)) < 0.2 * len(pairs(one))
    longest = np.array([max(lengths[i] for i in batch) for batch in one])
    early, late = longest[:50].mean(), longest[50:].mean()
    assert early == pytest.approx(late, rel=0.3)
    assert sum(a.tolist() == b.tolist() for a, b in zip(one, two, strict=True)) < 5


# Labels


@pytest.fixture(scope="module")
def store_and_labels(make_study, write_store, tmp_path_factory):
    """A store of five studies, and rows of labels (UID, six values) for all their slices, shuffled."""
    root = tmp_path_factory.mktemp("labelled")
    studies = [make_study(f"1.2.{i}", n) for i, n in enumerate([4, 1, 7, 12, 3])]
    return open_store(write_store(root, studies)), random_labels([uid for s in studies for uid in s.sop_uids])


def random_labels(uids: list[str]) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    subtypes = [rng.integers(0, 2, K - 1).tolist() for _ in uids]
    return {uid: [*row, max(row)] for uid, row in zip(uids, subtypes, strict=True)}


def labels_file(path, rows: dict[str, list[int]], seed: int = 0):
    """Write labels in the long form, all lines shuffled, and read them back."""
    lines = [f"{uid}_{label},{value}" for uid, row in rows.items() for label, value in zip(LABELS, row, strict=True)]
    random.Random(seed).shuffle(lines)
    path.write_text("\n".join(["ID,Label", *lines]) + "\n")
    return read_labels(path)


@pytest.mark.parametrize("seed", range(3))
def test_labels_follow_the_slice_and_not_the_line(store_and_labels, tmp_path, seed):
    """However the label file is shuffled, each slice has the labels that the file gives its SOP Instance UID."""
    store, rows = store_and_labels
    labelled, unlabelled = label_studies(store, labels_file(tmp_path / "labels.csv", rows, seed))
    assert unlabelled == []
    assert [s.features.study_uid for s in labelled] == store.studies["study_uid"].tolist()
    for study in labelled:
        assert study.targets.dtype == np.uint8
        assert study.targets.tolist() == [rows[uid] for uid in study.features.sop_uids]
        assert study.features.logits is None
    for study, stored in zip(labelled, store, strict=True):
        assert np.array_equal(np.asarray(study.features.features), np.asarray(stored.features))


def test_a_study_with_one_unlabelled_slice_is_left_out_and_named(store_and_labels, tmp_path):
    """A hole in the truth of a study costs that study, no other, and its UID is told."""
    store, rows = store_and_labels
    holes = {study.sop_uids[-1] for study in store if study.study_uid in ("1.2.1", "1.2.3")}
    kept = {uid: row for uid, row in rows.items() if uid not in holes}
    labelled, unlabelled = label_studies(store, labels_file(tmp_path / "labels.csv", kept))
    assert unlabelled == ["1.2.1", "1.2.3"]
    assert [s.features.study_uid for s in labelled] == ["1.2.0", "1.2.2", "1.2.4"]


def test_a_study_of_several_networks_is_labelled_once(make_study, write_store, headed_encoders, tmp_path):
    """Networks take turns from study to study; each study comes once, with its logits and the labels of its slices."""
    names = [f"1.2.{i}" for i in range(4)]
    views = {(n, k): make_study(n, 3 + i, network=k, logits=True) for i, n in enumerate(names) for k in range(2)}
    store = open_store(write_store(tmp_path / "store", views.values(), encoders=dict(enumerate(headed_encoders))))
    rows = random_labels([uid for name in names for uid in views[name, 0].sop_uids])
    labelled, unlabelled = label_studies(store, labels_file(tmp_path / "labels.csv", rows))
    assert unlabelled == []
    assert [(s.features.study_uid, s.features.network) for s in labelled] == list(zip(names, [0, 1, 0, 1], strict=True))
    for study in labelled:
        view = views[study.features.study_uid, study.features.network]
        assert np.array_equal(study.features.features, view.features)
        assert np.array_equal(study.features.logits, view.logits)
        assert study.targets.tolist() == [rows[uid] for uid in view.sop_uids]
    hole = {uid: row for uid, row in rows.items() if uid != views["1.2.2", 0].sop_uids[0]}
    labelled, unlabelled = label_studies(store, labels_file(tmp_path / "fewer.csv", hole))
    assert unlabelled == ["1.2.2"]
    assert [s.features.network for s in labelled] == [0, 1, 1]  # the others are given by the networks as before


def test_labels_of_other_slices_do_no_harm(store_and_labels, tmp_path):
    """A label file may know more slices than the store."""
    store, rows = store_and_labels
    more = {f"9.9.{i}": [0] * K for i in range(50)} | rows
    labelled, unlabelled = label_studies(store, labels_file(tmp_path / "labels.csv", more))
    assert (len(labelled), unlabelled) == (5, [])


# Variation in training


def studies_of(lengths: list[int]) -> list[LabelledStudy]:
    return [numbered(f"s{i}", n) for i, n in enumerate(lengths)]


def vary(studies, seed=0, *, thin, reverse):
    return varied(studies, np.random.default_rng(seed), thin=thin, reverse=reverse)


long_and_short = st.lists(st.integers(1, 30), min_size=1, max_size=6)
shares = st.sampled_from([0.0, 0.5, 1.0])


@given(lengths=long_and_short, seed=st.integers(0, 1000), thin=shares, reverse=shares)
@settings(deadline=None, max_examples=60)
def test_whatever_is_done_to_a_study_its_rows_stay_whole_and_ascend(lengths, seed, thin, reverse):
    """Studies keep their order, each row its features, UID, labels and logits; positions ascend."""
    studies = studies_of(lengths)
    taken = vary(studies, seed, thin=thin, reverse=reverse)
    assert [s.features.study_uid for s in taken] == [s.features.study_uid for s in studies]
    for study in taken:
        numbers = numbers_of(study)
        assert len(study) == len(numbers) >= 1
        assert (np.diff(study.features.positions_mm) > 0).all()
        assert study.features.patient_key == f"patient of {study.features.study_uid}"
        assert study.features.features.dtype == np.float16
        assert study.features.positions_mm.dtype == np.float64
        assert study.features.logits.dtype == np.float32
    assert [numbers_of(s) for s in studies] == [list(range(n)) for n in lengths]  # the originals are as they were


@given(lengths=long_and_short, seed=st.integers(0, 1000))
@quick
def test_thinning_takes_every_second_slice_of_long_studies(lengths, seed):
    """At probability 1 a study of more than ten keeps its odd or its even slices; shorter ones keep all."""
    for study in vary(studies_of(lengths), seed, thin=1, reverse=0):
        slices = lengths[int(study.features.study_uid[1:])]
        numbers = numbers_of(study)
        if slices > THIN_FROM:
            assert numbers in (list(range(0, slices, 2)), list(range(1, slices, 2)))
        else:
            assert numbers == list(range(slices))


def test_thinning_starts_at_either_slice():
    """Both halves of a study are seen in training, not always the same one."""
    starts = [numbers_of(vary([numbered("s", 20)], seed, thin=1, reverse=0)[0])[0] for seed in range(40)]
    assert {starts.count(0) > 5, starts.count(1) > 5} == {True}


@given(lengths=long_and_short, seed=st.integers(0, 1000))
@quick
def test_reversing_turns_head_and_feet_round(lengths, seed):
    """At probability 1 the head comes first: rows descend, distances between them stay as they were."""
    for study in vary(studies_of(lengths), seed, thin=0, reverse=1):
        slices = lengths[int(study.features.study_uid[1:])]
        assert numbers_of(study) == list(range(slices))[::-1]
        assert np.diff(study.features.positions_mm) == pytest.approx([2.5] * (slices - 1))


@given(lengths=long_and_short, seed=st.integers(0, 1000))
@quick
def test_at_probability_0_nothing_is_done(lengths, seed):
    """With both probabilities at 0 every study comes out as it went in."""
    studies = studies_of(lengths)
    for study in vary(studies, seed, thin=0, reverse=0):
        assert same(study, studies[int(study.features.study_uid[1:])])


def test_a_seed_decides_everything_and_seeds_differ():
    """The same generator gives the same epoch, another gives another; halves and ends both vary."""
    studies = studies_of([20] * 12)

    def epoch(seed):
        return [numbers_of(s) for s in vary(studies, seed, thin=0.5, reverse=0.5)]

    assert epoch(1) == epoch(1)
    assert [len(numbers) for numbers in epoch(1)] != [len(numbers) for numbers in epoch(2)]
    assert [numbers[0] < 2 for numbers in epoch(1)] != [numbers[0] < 2 for numbers in epoch(2)]


def test_probabilities_are_kept():
    """Of many studies about the share asked for is thinned and, independently, reversed."""
    taken = [numbers_of(s) for s in vary(studies_of([12] * 1000), 0, thin=0.3, reverse=0.6)]
    thinned = np.array([len(numbers) == 6 for numbers in taken])
    turned = np.array([numbers[0] > numbers[-1] for numbers in taken])
    assert thinned.mean() == pytest.approx(0.3, abs=0.05)
    assert turned.mean() == pytest.approx(0.6, abs=0.05)
    assert (thinned & turned).mean() == pytest.approx(0.18, abs=0.05)


def test_studies_without_base_logits_are_varied_as_well():
    """Base logits are optional: without them nothing else changes."""
    (study,) = vary([numbered("s", 20, base=False)], thin=1, reverse=1)
    assert study.features.logits is None
    assert len(numbers_of(study)) == 10


def test_studies_on_disk_are_varied_and_put_in_batches_like_those_in_memory(make_study, write_store, tmp_path):
    """Embeddings that lie in a store come out of a variation and a batch as they would if they had been read."""
    studies = [make_study(f"1.2.{i}", n, logits=True) for i, n in enumerate([4, 1, 20, 12, 11])]
    stored = list(open_store(write_store(tmp_path / "store", studies)))

    def batch(studies):
        labelled = [LabelledStudy(features=s, targets=np.ones((len(s.sop_uids), K), np.uint8)) for s in studies]
        return collate_labelled(vary(labelled, 3, thin=0.7, reverse=0.7))

    in_memory, on_disk = batch(studies), batch(stored)
    for name in ("features", "positions_mm", "lengths", "targets", "logits"):
        assert torch.equal(getattr(in_memory, name), getattr(on_disk, name))
    assert in_memory.lengths.tolist() != [4, 1, 20, 12, 11]  # some were thinned
