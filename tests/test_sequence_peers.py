"""tools/sequence_peers.py and compare_sequence_models.py: one interface, no look at labels, padding or order lost."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import compare_sequence_models as comparison
import numpy as np
import pytest
import sequence_peers as peers
import torch
from click.testing import CliRunner
from scipy.special import expit

from ich_seq.labels import LABELS
from ich_seq.sequences import LabelledStudy

K, ANY = len(LABELS), LABELS.index("any")
BUDGET = peers.Budget(epochs=2, patience=2, batch_studies=8)
SMALL = {
    **peers.PEERS,
    "first": partial(peers.first, scale=0.05),
    "second": partial(peers.second, units=8),
    "attention": partial(peers.attention, scale=0.05),
}
NETWORKS = ("first", "second", "attention")
LENGTHS = [1, 30, 12, 7, 2, 26, 11, 5, 28, 3, 14, 9, 1, 24, 6, 18, 4, 10, 8, 25]


@pytest.fixture(scope="module")
def studies(make_study) -> list[LabelledStudy]:
    """20 studies of 1 to 30 slices whose logits know something of their labels; there is no epidural."""
    rng = np.random.default_rng(0)
    made = []
    for i, n in enumerate(LENGTHS):
        targets = (rng.random((n, K)) < 0.3).astype(np.uint8)
        targets[:, 0] = 0
        targets[:, ANY] = targets[:, :ANY].max(axis=1)
        features = make_study(f"1.{i}", n, dim=16, logits=True)
        logits = (3.0 * targets - 1.5 + rng.normal(size=(n, K))).astype(np.float32)
        made.append(LabelledStudy(features=replace(features, logits=logits), targets=targets))
    return made


@pytest.fixture(scope="module")
def fitted(studies):
    """Every peer, fitted on 12 of the studies and stopped on 4."""
    return {name: fit(studies[:12], studies[12:16], 0, BUDGET) for name, fit in SMALL.items()}


@pytest.mark.parametrize("name", SMALL)
def test_peers_give_probabilities_of_every_slice_and_study(name, fitted, studies):
    """One slice or thirty, alone or together, finite and between 0 and 1."""
    said = fitted[name](studies[12:])
    assert [s.slices.shape for s in said] == [(n, K) for n in LENGTHS[12:]]
    for s in said:
        assert s.study.shape == (K,)
        assert np.isfinite(s.slices).all()
        assert ((s.slices >= 0) & (s.slices <= 1)).all()
        assert ((s.study >= 0) & (s.study <= 1)).all()


@pytest.mark.parametrize("name", SMALL)
def test_peers_never_read_the_labels_of_what_they_predict(name, fitted, studies):
    turned = [LabelledStudy(features=s.features, targets=1 - s.targets) for s in studies[16:]]
    for a, b in zip(fitted[name](studies[16:]), fitted[name](turned), strict=True):
        assert np.array_equal(a.slices, b.slices)


@pytest.mark.parametrize("name", SMALL)
def test_a_study_is_said_the_same_in_any_company(name, fitted, studies):
    """Alone there is no padding, among longer ones there is; it must not matter."""
    together = fitted[name](studies[12:])
    for study, s in zip(studies[12:], together, strict=True):
        (alone,) = fitted[name]([study])
        np.testing.assert_allclose(alone.slices, s.slices, atol=1e-5)
        np.testing.assert_allclose(alone.study, s.study, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_fitting_again_gives_the_same(name, fitted, studies):
    again = SMALL[name](studies[:12], studies[12:16], 0, BUDGET)
    for a, b in zip(fitted[name](studies[16:]), again(studies[16:]), strict=True):
        assert np.array_equal(a.slices, b.slices)


def test_the_cnn_alone_is_its_own_logits(fitted, studies):
    for said, study in zip(fitted["cnn"](studies), studies, strict=True):
        assert np.array_equal(said.slices, expit(study.features.logits.astype(np.float64)))
        assert np.array_equal(said.study, said.slices.max(axis=0))


def test_a_label_never_seen_stays_as_the_cnn_has_it(fitted, studies):
    """Without a positive slice in training, smoothing and trees have nothing to fit."""
    for name in ("smooth", "trees"):
        for said, study in zip(fitted[name](studies[16:]), studies[16:], strict=True):
            assert np.array_equal(said.slices[:, 0], expit(study.features.logits[:, 0].astype(np.float64)))


def test_the_first_place_net_says_the_same_of_a_study_turned_round(fitted, studies):
    """It averages both ways, so the way it is given does not matter."""
    study = studies[15]
    turned = peers.taken(study, np.arange(len(study))[::-1])
    (ahead,), (behind,) = fitted["first"]([study]), fitted["first"]([turned])
    np.testing.assert_allclose(ahead.slices, behind.slices[::-1], atol=1e-6)


def test_deltas_are_those_to_the_slice_below_and_above():
    e = np.array([[1, 10], [3, 20], [8, 40]], np.float16)
    assert peers.deltas(e).tolist() == [[1, 10, 0, 0, -2, -10], [3, 20, 2, 10, -5, -20], [8, 40, 5, 20, 0, 0]]
    assert peers.deltas(e[:1]).tolist() == [[1, 10, 0, 0, 0, 0]]


def test_windows_hold_the_neighbours_and_repeat_the_ends():
    assert peers._window(np.array([1.0, 2.0, 3.0]), 1).tolist() == [[1, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_networks_have_the_published_size():
    """The whole of the 1st place's net has 3.3 to 3.5 million parameters with embeddings of 2048."""
    net = peers.FirstPlace(2048)
    assert 3.2e6 < sum(p.numel() for p in net.parameters()) < 3.6e6


def test_learning_keeps_the_best_epochs_and_ends_when_patience_does(studies):
    """A network that gets no better is given up; the weights come back best first."""
    net = torch.nn.Linear(1, K)
    losses = iter([0.6, 0.4, 0.5, 0.7, 0.8, 0.9])
    told = []

    def say(group):
        told.append(p := next(losses))
        return [peers.likeliest(np.where(s.targets > 0, 1 - p, p)) for s in group]

    recipe = peers.Recipe(
        optimiser=torch.optim.SGD(net.parameters(), lr=0.1),
        loss=lambda group: net(torch.ones(1, 1)).sum(),
        said=say,
        scheduled=lambda done: 1.0,
        keep=2,
    )
    kept = peers.learn(net, recipe, studies[:8], studies[8:12], 0, peers.Budget(epochs=6, patience=3, batch_studies=8))
    assert told == [0.6, 0.4, 0.5, 0.7, 0.8]
    assert kept[0]["bias"][0] > kept[1]["bias"][0]  # the weights fall by the same step each epoch


@pytest.mark.parametrize("order", comparison.ORDERS)
def test_an_order_is_undone_after_predicting(order, studies, fitted):
    """What looks at slices one by one says the same in any order, slice by slice."""
    undone = comparison.in_order(fitted["cnn"], order)(studies)
    for a, b in zip(undone, fitted["cnn"](studies), strict=True):
        assert np.array_equal(a.slices, b.slices)


def test_studies_of_one_length_are_shuffled_differently(studies):
    """One permutation for all could be learnt; labels and features move together, positions are withheld."""
    pair = [
        replace(s, features=replace(s.features, study_uid=uid)) for s, uid in zip([studies[1]] * 2, "ab", strict=True)
    ]
    (a, i), (b, j) = (comparison.arranged(s, "shuffled", testing=True) for s in pair)
    assert i.tolist() != j.tolist()
    assert np.array_equal(a.targets, studies[1].targets[i])
    assert np.array_equal(a.features.features, studies[1].features.features[i])
    assert not b.features.positions_mm.any()


def test_reversed_positions_still_rise(studies):
    turned, _ = comparison.arranged(studies[1], "reversed", testing=True)
    assert (np.diff(turned.features.positions_mm) > 0).all()
    assert np.array_equal(comparison.arranged(studies[1], "reversed", testing=False)[0].targets, studies[1].targets)


@pytest.fixture(scope="module")
def compared(studies, write_store, headed_encoders, tmp_path_factory):
    """The comparison of three models over four folds, by its command."""
    root = tmp_path_factory.mktemp("compared")
    write_store(root / "store", [s.features for s in studies], encoders={0: headed_encoders[0]})
    rows = [
        f"{uid}_{label},{value}"
        for s in studies
        for uid, row in zip(s.features.sop_uids, s.targets.tolist(), strict=True)
        for label, value in zip(LABELS, row, strict=True)
    ]
    (root / "labels.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")

    def run(*options):
        command = [root / "store", "--labels", root / "labels.csv", "--out", root / "out", "--folds", 4, "--epochs", 1]
        small = ["--models", "ours,ours_one,cnn,smooth", "--seeds", 1, "--resamples", 20, "--device", "cpu"]
        return CliRunner().invoke(comparison.main, [str(c) for c in [*command, *small, *options]])

    return root / "out", run, run()


def test_a_comparison_tells_loss_and_auc_of_every_model_and_the_difference(compared, studies):
    out, _, result = compared
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "comparison.json").read_text())
    assert set(figures) == {"ours", "ours_one", "cnn", "smooth"}
    d = figures["cnn"]["slices: ours minus this"]["loss"]
    assert d["value"] == pytest.approx(figures["ours"]["slices"]["loss"] - figures["cnn"]["slices"]["loss"], abs=2e-6)
    assert d["low"] <= d["value"] <= d["high"]
    logits = np.concatenate([s.features.logits for s in studies]).astype(np.float64)
    targets = np.concatenate([s.targets for s in studies])
    assert figures["cnn"]["slices"]["loss"] == pytest.approx(
        comparison.statistics([expit(logits)], targets)["loss"](None), abs=1e-6
    )
    assert figures["cnn"]["slices"]["auc epidural"] is None
    assert "| smooth |" in (out / "comparison.md").read_text()


def test_a_broken_comparison_goes_on_where_it_was(compared, monkeypatch):
    """A prediction that is lost is made again, the others are not touched; other settings need another folder."""
    out, run, _ = compared
    before = {p: p.stat().st_mtime_ns for p in out.glob("*.npz")}
    assert len(before) == 4 * 4
    lost = out / "smooth-seed0-fold2.npz"
    lost.unlink()
    assert run().exit_code == 0
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {lost}
    assert run("--epochs", 2).exit_code == 2
    assert run("--models", "guesses").exit_code == 2
    assert "none of --models" in run("--models", "cnn,smooth").output  # to be held against ours, which is not there
    monkeypatch.setattr(comparison, "__version__", "another")
    assert "made otherwise" in run().output
