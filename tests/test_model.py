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

from ich_seq.cells import valid_steps
from ich_seq.config import Rnn
from ich_seq.labels import LABELS
from ich_seq.metrics import weighted_log_loss
from ich_seq.model import (
    BASE_SCALE,
    POSITION_FEATURES,
    Logits,
    SequenceModel,
    describe_positions,
    differences,
    ensemble_logits,
    sequence_loss,
    weighted_loss,
)

D, HIDDEN, PROJECTION = 16, 8, 8
K = len(LABELS)

# Every two options meet in every combination, and so do layers, positions and differences.
KINDS = [
    {
        "cell": ("gru", "lstm", "transformer", "conv")[2 * a + b],
        "layers": 1 + c,
        "position": bool(d),
        "deltas": bool(a ^ c ^ d),
        "study_head": ("attention", "max")[b ^ c ^ d],
        "both_ways": bool(a ^ b ^ c),
    }
    for a, b, c, d in itertools.product([0, 1], repeat=4)
]


def name_of(kind: dict[str, object]) -> str:
    switches = [name for name in ("position", "deltas", "both_ways") if kind[name]]
    return "-".join([str(kind["cell"]), str(kind["layers"]), str(kind["study_head"]), *switches])


JUNK = [1e9, -1e9, float("nan"), float("inf"), float("-inf")]

lengths_of_studies = st.lists(st.integers(1, 12), min_size=1, max_size=6)
seeds = st.integers(0, 10**6)
quick = settings(deadline=None, max_examples=6)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)


def settings_of(**options) -> Rnn:
    return Rnn(**{"projection": PROJECTION, "hidden": HIDDEN, "dropout": 0.5} | options)


def fresh(**options) -> SequenceModel:
    torch.manual_seed(3)
    return SequenceModel(D, settings_of(**options)).double().eval()


def randomised(*, seed: int = 7, **options) -> SequenceModel:
    """Give every parameter a random value: the heads of a fresh model are silent and would hide any leak."""
    model, generator = fresh(**options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.fixture(scope="module", params=KINDS, ids=name_of)
def model(request) -> SequenceModel:
    return randomised(**request.param)


Study = tuple[Tensor, Tensor, Tensor]


def make_studies(lengths: list[int], seed: int) -> list[Study]:
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
        logits = model.judge(features, positions, lengths, base)
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


def test_what_the_padding_holds_changes_nothing(model):
    """Huge numbers, NaN and infinities in the padding of features, positions and base logits are never read."""
    studies = make_studies([4, 1, 9], 3)
    clean = say(model, studies)
    assert all(torch.isfinite(slices).all() and torch.isfinite(study).all() for slices, study in clean)
    for filling in JUNK:
        assert_same(say(model, studies, filling=filling, extra=3), clean, 1e-12)


def test_no_gradient_reaches_the_padding(model):
    """Padding is no way back: gradients there are exactly 0, and the parameters' are those without any junk."""
    studies = make_studies([4, 1, 9], 4)
    targets = [torch.from_numpy(np.random.default_rng(n).integers(0, 2, (n, K))).double() for n in (4, 1, 9)]
    clean = None
    for filling in (0.0, *JUNK):
        features, positions, lengths, base = batched(studies, filling=filling, extra=2)
        features.requires_grad_(True)
        base.requires_grad_(True)
        model.zero_grad()
        said = model.judge(features, positions, lengths, base)
        sequence_loss(said, padded(targets, 11, filling), lengths, study_weight=1.0).backward()
        real = valid_steps(lengths, 11)
        for gradient in (features.grad, base.grad):
            assert (gradient[~real] == 0).all()
            assert (gradient[real].abs().sum(dim=-1) > 0).all()
        of_parameters = [p.grad.clone() for p in model.parameters()]
        clean = clean or of_parameters
        for got, expected in zip(of_parameters, clean, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


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


def reach_of(config: Rnn) -> int:
    """Return how many slices up and down the cell and, if it is given them, the differences reach."""
    return 2 * (2**config.layers - 1) + config.deltas if config.cell == "conv" else 12


@pytest.mark.slow
def test_a_slice_knows_of_every_other_or_of_those_within_reach(model):
    """Changing features or base logits of a slice moves the logits of all whom the cell tells of it, and the study's.

    Base logits have no differences, so what a convolution knows of them ends one slice nearer; smoothing reaches 3.
    """
    ((features, positions, base),) = make_studies([12], 6)

    def logits(x, b):
        said = model.judge(x[None], positions[None], torch.tensor([12]), b[None])
        return said.slices[0], said.studies[0]

    of_slices, of_study = torch.autograd.functional.jacobian(logits, (features, base))
    apart = (torch.arange(12)[:, None] - torch.arange(12)).abs()
    reach = reach_of(model.config)
    for by_part, far in zip(of_slices, (reach, max(reach - (reach % 2), model.config.smoothing)), strict=True):
        told = by_part.abs().sum(dim=(1, 3))  # (slice that speaks, slice that changed)
        assert torch.equal(told > 0, apart <= far)
    for by_part in of_study:
        heard = by_part.abs().sum(dim=(0, 2)) > 0
        assert heard.all() if reach >= 12 or model.attention is not None else heard.any()


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_a_fresh_model_says_exactly_what_its_base_says(kind, training):
    """Before training the cell adds nothing: slice logits are the base's to the bit, dropouts and noise or not."""
    model = fresh(**kind, slice_dropout=0.3, noise=0.5).train(training)
    features, positions, lengths, base = batched(make_studies([5, 2, 9], 1))
    said = model.judge(features, positions, lengths, base)
    real = valid_steps(lengths, 9)
    assert torch.equal(said.slices[real], base[real])
    for b, n in enumerate(lengths.tolist()):
        own = base[b, :n]
        whole = own.amax(dim=0) if kind["study_head"] == "max" else (own.softmax(dim=0) * own).sum(dim=0)
        torch.testing.assert_close(said.studies[b], whole)


@every_kind
def test_training_moves_every_parameter(kind):
    """No part of the model is frozen: the base is not in it, only what it says comes in.

    A share of attention knows no bias, which would be the same for all slices.
    """
    model = randomised(**kind).train()
    features, positions, lengths, base = batched(make_studies([6, 9], 6))
    said = model(features, positions, lengths, base)
    (said.slices[0].square().sum() + said.studies.square().sum()).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12]
    assert set(still) <= {"attention.bias"}
    assert not [n for n in model.state_dict() if "base" in n]


def plainly(model: SequenceModel, features: Tensor, positions: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Say it for one study without batch, padding or mask, from the description of the network."""
    projected = model.project_norm(gelu(model.project(model.norm(features))))
    inputs = [projected, base * BASE_SCALE]
    if model.config.deltas:
        inputs += differences_by_loop(projected)
    if model.config.position:
        inputs.append(torch.from_numpy(positions_by_loop(positions.numpy())))
    context = model.cell(torch.cat(inputs, dim=1)[None], torch.tensor([len(base)]))[0]
    seen = torch.cat([context, projected], dim=1)
    slices = base + model.correction(seen)
    if model.smoothing is not None:
        slices = slices + model.smoothing(beside_by_loop(base, model.config.smoothing))
    if model.config.study_head == "max":
        return slices, torch.stack([max(column) for column in slices.T]) + model.study_bias
    weight = torch.exp(slices + model.attention(seen))
    return slices, (weight * slices).sum(dim=0) / weight.sum(dim=0) + model.study_bias


def beside_by_loop(base: Tensor, reach: int) -> Tensor:
    """What the logits of the slices around say more than those of the slice itself, the ends standing in."""
    rows = []
    for i in range(len(base)):
        near = [min(max(i + o, 0), len(base) - 1) for o in (*range(-reach, 0), *range(1, reach + 1))]
        rows.append(torch.cat([base[j] - base[i] for j in near]))
    return torch.stack(rows)


def plainly_judged(model: SequenceModel, study: Study) -> tuple[Tensor, Tensor]:
    """Say it plainly, and of the study turned round as well if it is to be read both ways."""
    slices, whole = plainly(model, *study)
    if not model.config.both_ways:
        return slices, whole
    slices_back, whole_back = plainly(model, *turned(study))
    both = [(slices[i] + slices_back[len(slices) - 1 - i]) / 2 for i in range(len(slices))]
    return torch.stack(both), (whole + whole_back) / 2


def turned(study: Study) -> Study:
    """Exchange head and feet: the highest slice comes first and lies lowest."""
    features, positions, base = study
    return features.flip(0), -positions.flip(0), base.flip(0)


@given(lengths=lengths_of_studies, seed=seeds)
@quick
def test_a_batch_says_what_a_plain_network_says_of_each_study(model, lengths, seed):
    """Without batch or mask, step by step, and turned round if both ways are asked for: the same logits."""
    studies = make_studies(lengths, seed)
    with torch.no_grad():
        expected = [plainly_judged(model, study) for study in studies]
    assert_same(say(model, studies), expected)


def test_read_both_ways_head_and_feet_are_all_one(model):
    """A study turned round gets its logits turned round and the same logits as a whole; read one way it does not."""
    studies = make_studies([7, 1, 4], 8)
    back = [(slices.flip(0), whole) for slices, whole in say(model, [turned(s) for s in studies])]
    if model.config.both_ways:
        assert_same(back, say(model, studies), 1e-9)
    elif model.config.cell != "transformer" or model.config.deltas or model.config.position:
        assert ((back[0][0] - say(model, studies)[0][0]).abs() > 1e-6).any()


@pytest.mark.slow
@given(lengths=lengths_of_studies, seed=seeds, filling=st.sampled_from([0.0, *JUNK]), extra=st.integers(0, 3))
@quick
def test_an_ensemble_says_what_a_loop_over_studies_and_models_says(model, lengths, seed, filling, extra):
    """Base: as given, a study its likeliest slice; refined: the mean of what the models judge of each study alone."""
    models = [model, *(randomised(seed=seed, **model.config.model_dump()) for seed in (8, 9))]
    studies = make_studies(lengths, seed)
    base, refined = ensemble_logits(models, *batched(studies, filling=filling, extra=extra))
    for logits in (base, refined):
        assert logits.slices.shape == (len(studies), max(lengths) + extra, K)
        assert logits.studies.shape == (len(studies), K)
    for b, (own, places, by_base) in enumerate(studies):
        n = len(own)
        with torch.no_grad():
            said = [one.judge(own[None], places[None], torch.tensor([n]), by_base[None]) for one in models]
        likeliest = [max(by_base[i, k].item() for i in range(n)) for k in range(K)]
        assert_same([(base.slices[b, :n], base.studies[b])], [(by_base, torch.tensor(likeliest).double())])
        mean_slices = sum(logits.slices[0] for logits in said) / 3
        mean_study = sum(logits.studies[0] for logits in said) / 3
        assert_same([(refined.slices[b, :n], refined.studies[b])], [(mean_slices, mean_study)])
        assert (said[0].slices - said[1].slices).abs().max() > 1e-3  # models that differ


@pytest.mark.parametrize(("deltas", "position"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_cell_is_given_what_is_asked_for_and_no_more(deltas, position):
    """Embedding and base logits, and with them differences and positions; a second layer is as large as a GRU's."""
    one, two = (fresh(layers=n, deltas=deltas, position=position) for n in (1, 2))
    width = PROJECTION * (3 if deltas else 1) + K + (POSITION_FEATURES if position else 0)
    assert two.cell.rnn.weight_ih_l0.shape[1] == width
    count = [sum(p.numel() for p in m.parameters()) for m in (one, two)]
    assert count[1] - count[0] == 2 * (3 * HIDDEN * 2 * HIDDEN + 3 * HIDDEN * HIDDEN + 2 * 3 * HIDDEN)


# What is done in training alone


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"slice_dropout": 0.5}, {"noise": 0.5}], ids=str)
@pytest.mark.parametrize("cell", ["gru", "transformer"])
def test_what_is_random_is_off_once_the_model_judges(cell, option):
    """In eval mode a study says what it says without the option; in training it says something else each time."""
    chosen = {"cell": cell, "both_ways": True, "dropout": 0.0}
    model, studies = randomised(**chosen | option), make_studies([6, 3], 2)
    assert_same(say(model, studies), say(randomised(**chosen), studies), 0)
    model.train()
    with pytest.raises(AssertionError):
        assert_same(say(model, studies), say(model, studies))
    plain = randomised(**chosen).train()
    assert_same(say(plain, studies), say(plain, studies), 0)


def given_to_cell(model: SequenceModel, studies: list[Study]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the cell is given of all real slices: of the slice itself (M, P + K), its differences, the rest."""
    heard = []
    hook = model.cell.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    features, positions, lengths, base = batched(studies)
    torch.manual_seed(0)
    with torch.no_grad():
        model(features, positions, lengths, base)
    hook.remove()
    rows = heard[0][valid_steps(lengths, features.shape[1])]
    own = PROJECTION + K
    return rows[:, :own], rows[:, own : own + 2 * PROJECTION], rows[:, own + 2 * PROJECTION :]


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_some_slices_are_blank_to_the_cell_in_training(share):
    """That share of slices, embedding and base logits together, is 0; others are untouched, and so is the place.

    Differences are those of the rows as given, so that they do not tell of a blank one.
    """
    model = randomised(dropout=0.0, slice_dropout=share, deltas=True)
    studies = make_studies([40] * 50, 3)
    before, _, places_before = given_to_cell(model, studies)
    rows, steps, places = given_to_cell(model.train(), studies)
    blank = (rows == 0).all(dim=1)
    assert blank.double().mean() == pytest.approx(share, abs=0.04)
    assert torch.equal(rows[~blank], before[~blank])
    assert torch.equal(places, places_before)
    by_study = zip(rows[:, :PROJECTION].split(40), steps.split(40), strict=True)
    assert all(torch.equal(torch.cat(differences_by_loop(own), dim=1), told) for own, told in by_study)


def test_noise_is_added_to_embeddings_in_training():
    """Normal noise of this deviation, on the projected embedding alone, another for each number."""
    model = randomised(dropout=0.0, noise=0.3, deltas=True)
    studies = make_studies([40] * 50, 4)
    before, _, places_before = given_to_cell(model, studies)
    rows, _, places = given_to_cell(model.train(), studies)
    added = (rows - before)[:, :PROJECTION]
    assert added.std() == pytest.approx(0.3, rel=0.05)
    assert added.mean() == pytest.approx(0, abs=0.01)
    assert torch.corrcoef(added.T).fill_diagonal_(0).abs().max() < 0.1
    assert torch.equal(rows[:, PROJECTION:], before[:, PROJECTION:])
    assert torch.equal(places, places_before)


# Differences


def differences_by_loop(rows: Tensor) -> list[Tensor]:
    nothing, last = torch.zeros_like(rows[0]), len(rows) - 1
    before = [rows[i] - rows[i - 1] if i > 0 else nothing for i in range(len(rows))]
    after = [rows[i] - rows[i + 1] if i < last else nothing for i in range(len(rows))]
    return [torch.stack(before), torch.stack(after)]


@given(lengths=lengths_of_studies, seed=seeds, filling=st.sampled_from([0.0, *JUNK]), extra=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_differences_are_those_of_a_plain_loop(lengths, seed, filling, extra):
    """Less the slice before, less the slice after; 0 at both ends, beyond them and in a study of one."""
    studies = make_studies(lengths, seed)
    features, _, counts, _ = batched(studies, filling=filling, extra=extra)
    told = differences(features, valid_steps(counts, features.shape[1])[..., None])
    for b, (own, _, _) in enumerate(studies):
        for part, expected in zip(told, differences_by_loop(own), strict=True):
            assert torch.equal(part[b, : len(own)], expected)
            assert (part[b, len(own) :] == 0).all()


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


@pytest.mark.slow
@every_kind
def test_a_model_can_learn(kind):
    """A few steps down the loss's gradient lower it for every kind of network: all is connected."""
    model = fresh(**kind)
    features, positions, lengths, base = batched(make_studies([5, 8], 3))
    targets = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (2, 8, K))).double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = sequence_loss(model(features, positions, lengths, base), targets, lengths, study_weight=0.25)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
