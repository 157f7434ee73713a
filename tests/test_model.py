"""The sequence model: a study alone, batched, shuffled and padded says the same, and its loss is the challenge's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu

from ich_seq.config import Rnn
from ich_seq.labels import LABELS
from ich_seq.metrics import weighted_log_loss
from ich_seq.model import (
    BASE_SCALE,
    POSITION_FEATURES,
    Logits,
    SequenceModel,
    describe_positions,
    ensemble_logits,
    sequence_loss,
    valid_steps,
    weighted_loss,
)

D, HIDDEN, PROJECTION = 16, 8, 8
K = len(LABELS)
KINDS = list(itertools.product([1, 2], [True, False]))
JUNK = [1e9, -1e9, float("nan"), float("inf"), float("-inf")]

lengths_of_studies = st.lists(st.integers(1, 12), min_size=1, max_size=6)
seeds = st.integers(0, 10**6)
quick = settings(deadline=None, max_examples=15)


def settings_of(layers: int, position: bool) -> Rnn:
    return Rnn(projection=PROJECTION, hidden=HIDDEN, layers=layers, position=position, dropout=0.5)


def fresh(layers: int = 2, position: bool = True) -> SequenceModel:
    torch.manual_seed(layers)
    return SequenceModel(D, settings_of(layers, position)).double().eval()


def randomised(layers: int = 2, position: bool = True, seed: int = 7) -> SequenceModel:
    """Give every parameter a random value: the heads of a fresh model are silent and would hide any leak."""
    model, generator = fresh(layers, position), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture(scope="module", params=KINDS, ids=[f"{n}-layers-position-{'on' if p else 'off'}" for n, p in KINDS])
def model(request) -> SequenceModel:
    return randomised(*request.param)


def make_studies(lengths: list[int], seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features (N, D), positions (N,) and base logits (N, K) of each study."""
    rng = np.random.default_rng(seed)
    return [
        (
            torch.from_numpy(rng.normal(size=(n, D))),
            torch.from_numpy(rng.normal(0, 50) + rng.uniform(0, 8, n).cumsum()),
            torch.from_numpy(rng.normal(size=(n, K))),
        )
        for n in lengths
    ]


def padded(rows: list[Tensor], longest: int, filling: float = 0.0) -> Tensor:
    whole = torch.full((len(rows), longest, *rows[0].shape[1:]), filling, dtype=rows[0].dtype)
    for into, row in zip(whole, rows, strict=True):
        into[: len(row)] = row
    return whole


def batched(studies, *, filling: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, positions, base = zip(*studies, strict=True)
    longest = max(map(len, features)) + extra
    return (
        padded(list(features), longest, filling),
        padded(list(positions), longest, filling),
        torch.tensor([len(f) for f in features]),
        padded(list(base), longest, filling),
    )


def say(model: SequenceModel, studies, **padding) -> list[tuple[Tensor, Tensor]]:
    """Return each study's slice logits (N, K) and study logits (K,), from one batch."""
    features, positions, lengths, base = batched(studies, **padding)
    with torch.no_grad():
        logits = model(features, positions, lengths, base)
    assert logits.slices.shape == (*features.shape[:2], K)
    assert logits.studies.shape == (len(studies), K)
    return [(s[:n], whole) for s, whole, n in zip(logits.slices, logits.studies, lengths, strict=True)]


def assert_same(said, expected, tolerance: float = 1e-6) -> None:
    for (slices, study), (slices_expected, study_expected) in zip(said, expected, strict=True):
        torch.testing.assert_close(slices, slices_expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(study, study_expected, atol=tolerance, rtol=0)


# A study says the same wherever it stands


@given(lengths=lengths_of_studies, seed=seeds, data=st.data())
@quick
def test_a_study_says_the_same_alone_in_any_batch_and_in_any_order(model, lengths, seed, data):
    """Neither the other studies of a batch, nor their number, nor the order move a study's logits."""
    studies = make_studies(lengths, seed)
    alone = [say(model, [study])[0] for study in studies]
    order = data.draw(st.permutations(range(len(studies))))
    assert_same(say(model, studies), alone)
    assert_same(say(model, [studies[i] for i in order]), [alone[i] for i in order])


def test_it_says_the_same_in_single_precision(model):
    """In float32, in which studies are really run, batches change nothing beyond rounding."""
    single = SequenceModel(D, model.config).eval()
    single.load_state_dict(model.state_dict())
    studies = [(f.float(), p, b.float()) for f, p, b in make_studies([5, 1, 12, 3], 0)]
    assert_same(say(single, studies), [say(single, [study])[0] for study in studies], 1e-5)


@pytest.mark.parametrize("filling", JUNK)
def test_what_the_padding_holds_changes_nothing(model, filling):
    """Huge numbers, NaN and infinities in the padding of features, positions and base logits are never read."""
    studies = make_studies([4, 1, 9], 3)
    clean = say(model, studies)
    assert_same(say(model, studies, filling=filling, extra=3), clean, 1e-12)
    assert all(torch.isfinite(slices).all() and torch.isfinite(study).all() for slices, study in clean)


@pytest.mark.parametrize("filling", [0.0, *JUNK])
def test_no_gradient_reaches_the_padding(model, filling):
    """Padding is no way back: gradients there are exactly 0, and the parameters' are those without any junk."""
    studies = make_studies([4, 1, 9], 4)
    targets = [torch.from_numpy(np.random.default_rng(n).integers(0, 2, (n, K))).double() for n in (4, 1, 9)]

    def gradients(filling):
        features, positions, lengths, base = batched(studies, filling=filling, extra=2)
        features.requires_grad_(True)
        base.requires_grad_(True)
        model.zero_grad()
        said = model(features, positions, lengths, base)
        sequence_loss(said, padded(targets, 11, filling), lengths, study_weight=1.0).backward()
        of_parameters = [p.grad.clone() for p in model.parameters()]
        return features.grad, base.grad, of_parameters, valid_steps(lengths, 11)

    of_features, of_base, of_parameters, real = gradients(filling)
    for gradient in (of_features, of_base):
        assert (gradient[~real] == 0).all()
        assert (gradient[real].abs().sum(dim=-1) > 0).all()
    for got, clean in zip(of_parameters, gradients(0.0)[2], strict=True):
        torch.testing.assert_close(got, clean, atol=1e-12, rtol=0)


def test_a_study_of_one_slice_says_of_itself_what_its_slice_says(model):
    """N = 1 works, alone and among others, and the study's logits are its only slice's and the studies' bias."""
    studies = make_studies([1, 7, 1], 5)
    for said in (say(model, [studies[0]]), say(model, studies)):
        slices, study = said[0]
        assert torch.isfinite(slices).all()
        torch.testing.assert_close(slices[0] + model.study_bias, study)
    assert (model.study_bias.abs() > 1e-3).all()


@pytest.mark.parametrize("lengths", [[3, 0], [0, 0], [5, 3], [-1, 3], [3], [3, 3, 3], [[3], [3]]], ids=str)
def test_lengths_that_do_not_fit_are_refused(lengths):
    """An empty study, one longer than its row, or another number of lengths is refused, not guessed at."""
    with pytest.raises(ValueError, match="lengths"):
        fresh()(
            torch.zeros(2, 4, D).double(),
            torch.zeros(2, 4).double(),
            torch.tensor(lengths),
            torch.zeros(2, 4, K).double(),
        )


# What the network makes of a study


def test_every_slice_knows_of_every_other(model):
    """Changing features or base logits of any slice moves the logits of all others, up and down, and the study's."""
    ((features, positions, base),) = make_studies([6], 6)

    def logits(x, b):
        said = model(x[None], positions[None], torch.tensor([6]), b[None])
        return said.slices[0], said.studies[0]

    of_slices, of_study = torch.autograd.functional.jacobian(logits, (features, base))
    for by_part in of_slices:
        assert (by_part.abs().sum(dim=(1, 3)) > 1e-9).all()  # (slice that speaks, slice that changed)
    for by_part in of_study:
        assert (by_part.abs().sum(dim=(0, 2)) > 1e-9).all()


def test_one_study_never_knows_of_another(model):
    """The derivative of a study's logits by another study's features and base logits is exactly 0."""
    features, positions, lengths, base = batched(make_studies([6, 3], 6))
    features.requires_grad_(True)
    base.requires_grad_(True)
    said = model(features, positions, lengths, base)
    (said.slices[0].sum() + said.studies[0].sum()).backward()
    for part in (features, base):
        assert (part.grad[1] == 0).all()
        assert (part.grad[0] != 0).all()


@pytest.mark.parametrize(("layers", "position"), KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_model_says_exactly_what_its_base_says(layers, position, training):
    """Before training the GRU adds nothing: slice logits are the base's to the bit, dropout or not."""
    model = fresh(layers, position).train(training)
    features, positions, lengths, base = batched(make_studies([5, 2, 9], 1))
    said = model(features, positions, lengths, base)
    real = valid_steps(lengths, 9)
    assert torch.equal(said.slices[real], base[real])
    for b, n in enumerate(lengths.tolist()):
        share = base[b, :n].softmax(dim=0)
        torch.testing.assert_close(said.studies[b], (share * base[b, :n]).sum(dim=0))


def test_base_logits_are_input_to_both_the_sum_and_the_gru(model):
    """Base logits raised by 1 move every logit, and not by 1 alone: the GRU has read them too."""
    ((features, positions, base),) = make_studies([6], 2)
    ((said, _),) = say(model, [(features, positions, base)])
    ((other, _),) = say(model, [(features, positions, base + 1)])
    assert ((other - said).abs() > 1e-6).all()
    assert ((other - said - 1).abs() > 1e-6).all()  # more than the sum has changed


def test_training_moves_every_parameter():
    """No part of the model is frozen: the base is not in it, only what it says comes in."""
    model = randomised()
    features, positions, lengths, base = batched(make_studies([6, 3], 6))
    said = model(features, positions, lengths, base)
    (said.slices[0].sum() + said.studies.sum()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert not [n for n in model.state_dict() if "base" in n]


def plainly(model: SequenceModel, features: Tensor, positions: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Say it for one study without batch, padding or packing, from the description of the network."""
    projected = model.project_norm(gelu(model.project(model.norm(features))))
    inputs = [projected, base * BASE_SCALE]
    if model.config.position:
        inputs.append(torch.from_numpy(positions_by_loop(positions.numpy())))
    context = model.gru(torch.cat(inputs, dim=1)[None])[0][0]
    seen = torch.cat([context, projected], dim=1)
    slices = base + model.correction(seen)
    weight = torch.exp(slices + model.attention(seen))
    return slices, (weight * slices).sum(dim=0) / weight.sum(dim=0) + model.study_bias


@given(lengths=lengths_of_studies, seed=seeds)
@quick
def test_a_batch_says_what_a_plain_network_says_of_each_study(model, lengths, seed):
    """Without batch, mask or packing, step by step, each study comes to the same logits."""
    studies = make_studies(lengths, seed)
    with torch.no_grad():
        expected = [plainly(model, *study) for study in studies]
    assert_same(say(model, studies), expected)


@given(lengths=lengths_of_studies, seed=seeds, filling=st.sampled_from([0.0, *JUNK]), extra=st.integers(0, 3))
@quick
def test_an_ensemble_says_what_a_loop_over_studies_and_models_says(model, lengths, seed, filling, extra):
    """Base: as given, a study its likeliest slice; refined: the mean of the models on each study alone."""
    models = [model, *(randomised(model.config.layers, model.config.position, seed) for seed in (8, 9))]
    studies = make_studies(lengths, seed)
    base, refined = ensemble_logits(models, *batched(studies, filling=filling, extra=extra))
    for logits in (base, refined):
        assert logits.slices.shape == (len(studies), max(lengths) + extra, K)
        assert logits.studies.shape == (len(studies), K)
    for b, (own, places, by_base) in enumerate(studies):
        n = len(own)
        with torch.no_grad():
            said = [one(own[None], places[None], torch.tensor([n]), by_base[None]) for one in models]
        likeliest = [max(by_base[i, k].item() for i in range(n)) for k in range(K)]
        assert_same([(base.slices[b, :n], base.studies[b])], [(by_base, torch.tensor(likeliest).double())])
        mean_slices = sum(logits.slices[0] for logits in said) / 3
        mean_study = sum(logits.studies[0] for logits in said) / 3
        assert_same([(refined.slices[b, :n], refined.studies[b])], [(mean_slices, mean_study)])
        assert (said[0].slices - said[1].slices).abs().max() > 1e-3  # models that differ


def mirrored(model: SequenceModel) -> SequenceModel:
    """Return the model with the GRU's two directions exchanged, wherever their outputs go."""
    twin = SequenceModel(D, model.config).double().eval()
    hidden = torch.cat([torch.arange(HIDDEN, 2 * HIDDEN), torch.arange(HIDDEN)])
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("gru."):
            name = name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"  # noqa: PLW2901
        turned = tensor.clone()
        of_context = name in ("correction.weight", "attention.weight")
        if of_context or (name.startswith("gru.weight_ih") and "_l0" not in name):
            turned[:, : 2 * HIDDEN] = tensor[:, hidden]
        state[name] = turned
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("layers", [1, 2])
def test_without_positions_head_and_feet_are_a_matter_of_direction_only(layers):
    """A reversed study, positions withheld, gets its logits reversed by the network with exchanged directions."""
    model = randomised(layers, position=False)
    (study,) = make_studies([7], 8)
    turned = tuple(part.flip(0) for part in study)
    ((slices, whole),) = say(model, [study])
    ((slices_turned, whole_turned),) = say(mirrored(model), [turned])
    torch.testing.assert_close(slices_turned.flip(0), slices)
    torch.testing.assert_close(whole_turned, whole)
    ((unmirrored, _),) = say(model, [turned])
    assert ((unmirrored.flip(0) - slices).abs() > 1e-6).all()  # the order of slices is seen


def test_a_second_layer_has_weights_of_its_own():
    """Two layers have as many more parameters as a GRU's second layer has, and no two share memory."""
    one, two = fresh(1), fresh(2)
    count = [sum(p.numel() for p in m.parameters()) for m in (one, two)]
    assert count[1] - count[0] == 2 * (3 * HIDDEN * 2 * HIDDEN + 3 * HIDDEN * HIDDEN + 2 * 3 * HIDDEN)
    assert len({p.data_ptr() for p in two.parameters()}) == len(list(two.parameters()))
    assert two.gru.weight_ih_l0.shape[1] == PROJECTION + K + POSITION_FEATURES


def test_dropout_is_off_once_the_model_judges():
    """In eval mode the same study says the same twice; in training it does not."""
    model, studies = randomised(), make_studies([6], 2)
    assert_same(say(model, studies), say(model, studies), 0)
    model.train()
    with pytest.raises(AssertionError):
        assert_same(say(model, studies), say(model, studies))


# Positions


def positions_by_loop(mm: np.ndarray) -> np.ndarray:
    rows = []
    for i, here in enumerate(mm):
        span = mm[-1] - mm[0]
        along = (here - mm[0]) / span * 2 - 1 if span > 0 else 0.0
        below = (here - mm[i - 1]) / 5 if i > 0 else 0.0
        above = (mm[i + 1] - here) / 5 if i + 1 < len(mm) else 0.0
        rows.append([along, below, above])
    return np.array(rows)


@given(
    steps=st.lists(st.lists(st.sampled_from([0, 0.625, 2.5, 5, 17.3]), max_size=11), min_size=1, max_size=4),
    start=st.floats(-1000, 1000),
    filling=st.sampled_from(JUNK),
)
@settings(deadline=None, max_examples=60)
def test_positions_are_told_as_a_plain_loop_tells_them(steps, start, filling):
    """Place along the study from -1 to 1, steps below and above in 5 mm; 0 at the ends, in padding, for one slice."""
    studies = [start + np.cumsum([0.0, *s]) for s in steps]
    lengths = torch.tensor([len(s) for s in studies])
    told = describe_positions(padded([torch.from_numpy(s) for s in studies], 13, filling), lengths)
    assert told.shape == (len(studies), 13, POSITION_FEATURES)
    assert told.dtype == torch.float32
    for row, mm in zip(told.numpy(), studies, strict=True):
        np.testing.assert_allclose(row[: len(mm)], positions_by_loop(mm), atol=1e-5)
        assert (row[len(mm) :] == 0).all()


def test_a_single_slice_has_no_place_and_no_steps():
    """In a study of one all three features are 0, and so they are where all slices lie at one place."""
    assert (describe_positions(torch.tensor([[812.5]]).double(), torch.tensor([1])) == 0).all()
    assert (describe_positions(torch.tensor([[7.0, 7.0, 7.0]]).double(), torch.tensor([3])) == 0).all()


def test_only_a_model_with_positions_reads_them(model):
    """Where positions are off NaN does no harm; where they are on other steps matter, a shifted table does not."""
    ((features, positions, base),) = make_studies([6], 9)
    said = say(model, [(features, positions, base)])
    if not model.config.position:
        assert_same(say(model, [(features, torch.full_like(positions, torch.nan), base)]), said, 0)
        return
    assert_same(say(model, [(features, positions + 731.25, base)]), said, 1e-5)
    ((wider, _),) = say(model, [(features, positions * 2, base)])
    assert ((wider - said[0][0]).abs() > 1e-6).all()


@given(lengths=lengths_of_studies, extra=st.integers(0, 3))
@quick
def test_the_mask_is_true_for_the_first_slices(lengths, extra):
    """The one mask ever made, in plain Python."""
    longest = max(lengths) + extra
    expected = [[i < n for i in range(longest)] for n in lengths]
    assert valid_steps(torch.tensor(lengths), longest).tolist() == expected


# The loss


def drawn(lengths: list[int], seed: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Slice logits and targets of each study, and study logits."""
    rng = np.random.default_rng(seed)
    slices = [rng.uniform(-9, 9, (n, K)) for n in lengths]
    targets = [rng.integers(0, 2, (n, K)).astype(np.uint8) for n in lengths]
    return slices, targets, rng.uniform(-9, 9, (len(lengths), K))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@given(count=st.integers(1, 20), seed=seeds)
@quick
def test_the_loss_is_the_challenges_metric(count, seed):
    """Logits cost what their probabilities cost by the metric, and by a loop in which `any` counts twice."""
    (logits,), (targets,), _ = drawn([count], seed)
    loss = weighted_loss(torch.from_numpy(logits), torch.from_numpy(targets).double())
    assert float(loss) == pytest.approx(weighted_log_loss(sigmoid(logits), targets), abs=1e-9)
    total = 0.0
    for row, truth in zip(sigmoid(logits), targets, strict=True):
        for k, label in enumerate(LABELS):
            total -= (2 if label == "any" else 1) / 7 * np.log(row[k] if truth[k] else 1 - row[k])
    assert float(loss) == pytest.approx(total / count)


def test_a_very_sure_mistake_costs_a_finite_price():
    """Logits far beyond the metric's clip still give finite loss and gradient, so training survives them."""
    logits = torch.full((1, K), -300.0, requires_grad=True)
    loss = weighted_loss(logits, torch.ones(1, K))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(300)
    assert torch.isfinite(logits.grad).all()


@given(
    lengths=lengths_of_studies,
    seed=seeds,
    filling=st.sampled_from([0.0, *JUNK]),
    study_weight=st.sampled_from([0.0, 0.25, 1.0]),
)
@quick
def test_the_loss_of_a_batch_counts_real_slices_once_and_studies_by_their_maximum(lengths, seed, filling, study_weight):
    """Metric of the slices laid end to end, plus that of the studies, positive where any slice is; no padding."""
    slices, targets, studies = drawn(lengths, seed)
    batch = Logits(padded([torch.from_numpy(s) for s in slices], 13, filling), torch.from_numpy(studies))
    truth = padded([torch.from_numpy(t).double() for t in targets], 13, filling)
    loss = sequence_loss(batch, truth, torch.tensor(lengths), study_weight=study_weight)
    of_slices = weighted_log_loss(sigmoid(np.concatenate(slices)), np.concatenate(targets))
    likeliest = np.array([[max(t[:, k]) for k in range(K)] for t in targets], np.uint8)
    of_studies = weighted_log_loss(sigmoid(studies), likeliest)
    assert float(loss) == pytest.approx(of_slices + study_weight * of_studies, abs=1e-9)


def test_a_model_can_learn():
    """A few steps down the loss's gradient lower it for every kind of network: all is connected."""
    for layers, position in KINDS:
        model = fresh(layers, position)
        features, positions, lengths, base = batched(make_studies([5, 8], 3))
        targets = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 8, K))).double()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(25):
            optimiser.zero_grad()
            loss = sequence_loss(model(features, positions, lengths, base), targets, lengths, study_weight=0.25)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0]
