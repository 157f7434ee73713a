"""One sequence model trained: the same weights every time, however often it was killed and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from scipy.special import expit
from torch import nn

from ich_seq import rnn_training, sequence_fitting
from ich_seq.bundle import load_bundle
from ich_seq.checkpoint import hash_of
from ich_seq.config import Config
from ich_seq.folded_studies import FoldedStudies
from ich_seq.labels import LABELS
from ich_seq.metrics import weighted_log_loss
from ich_seq.model import SequenceModel, sequence_loss
from ich_seq.rnn_training import Trainer, fit_ensemble, predict_ensemble, train_rnn
from ich_seq.schedule import rate
from ich_seq.sequence_fitting import SequenceTask, SequenceTraining, fit_sequence, logits_beside_base
from ich_seq.sequences import THIN_FROM, batches

K = len(LABELS)
CPU = torch.device("cpu")
LEARN, STOP, BATCH = 14, 6, 4
STEPS = -(-LEARN // BATCH)  # of an epoch; the last batch is a small one
RNN = {"projection": 6, "hidden": 4, "layers": 2, "dropout": 0.2}
TRAIN = {"epochs": 4, "batch_studies": BATCH, "learning_rate": 0.02, "checkpoint_minutes": 0.0}
CELLS = ("gru", "lstm", "transformer", "conv")
OPTIONS = {
    **{cell: ({"cell": cell}, {}) for cell in CELLS},
    **{
        f"{cell}, all on": (
            {"cell": cell, "deltas": True, "both_ways": True, "slice_dropout": 0.2, "noise": 0.1, "study_head": "max"},
            {"ema": 0.6, "average_epochs": 2},
        )
        for cell in CELLS
    },
    "ema": ({}, {"ema": 0.9}),
    "averaged epochs": ({}, {"average_epochs": 3}),
    "more epochs averaged than ten": ({}, {"average_epochs": 12, "epochs": 16}),
    "bf16": ({}, {"precision": "bf16"}),
    "no augmentation": ({}, {"thin": 0.0, "reverse": 0.0}),
    "blind": ({"position": False}, {}),
}


def slowly(name: str):
    """A case for the runs that take their time."""
    return pytest.param(name, marks=pytest.mark.slow)


AT_ONCE = ("gru, all on", "transformer, all on", "averaged epochs")
CASES = [name if name in AT_ONCE else slowly(name) for name in OPTIONS]


class Killed(Exception):  # noqa: N818 - stands for SIGKILL
    """The process ends here."""


@pytest.fixture(scope="module")
def studies(told_by_the_slice_below):
    """Studies in which only neighbours know, beside a base that knows nothing; some are long enough to be thinned."""
    rng = np.random.default_rng(0)
    made = [told_by_the_slice_below(f"s{i}", rng, logits=True) for i in range(LEARN + STOP)]
    assert sum(len(s) > THIN_FROM for s in made[:LEARN]) > 2
    return made


@pytest.fixture
def task_of(studies):
    """Make a task of a model's and a training's settings; the first studies are learnt from, the last stop it."""

    def make(rnn=None, train=None, *, seed=7, name="stop-1") -> SequenceTask:
        config = Config.model_validate({"rnn": RNN | (rnn or {}), "train": TRAIN | (train or {})})
        learn, stop = studies[:LEARN], studies[LEARN:]
        return SequenceTask(
            name=name, learn=learn, stop=stop, rnn=config.rnn, options=config.train, seed=seed, device=CPU
        )

    return make


@pytest.fixture
def dying(monkeypatch):
    """Let the training be killed before its n-th step from now on; None lets it live. Gives the steps taken, too."""
    learn = SequenceTraining.learn
    taken: list[int] = []

    def let(die_before: int | None) -> list[int]:
        taken.clear()

        def learn_or_die(self: SequenceTraining, batch: object) -> None:
            if len(taken) == die_before:
                raise Killed
            taken.append(self.step)
            learn(self, batch)

        monkeypatch.setattr(SequenceTraining, "learn", learn_or_die)
        return taken

    return let


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=atol, rtol=1e-5) for k in one)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# The same every time


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES)
def test_two_runs_give_the_same_weights(task_of, options, tmp_path):
    """Whatever was drawn before, with states or without; another seed gives others, and something was learnt."""
    task = task_of(*OPTIONS[options])
    one = fit_sequence(task, None)
    torch.manual_seed(99)
    torch.rand(17)
    assert same(one, fit_sequence(task, tmp_path))
    other = fit_sequence(replace(task, seed=8), None)
    assert not same(one, other)
    assert one.correction.weight.abs().max() > 0
    assert not one.training
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in one.parameters())


@pytest.mark.parametrize("options", CASES)
def test_killed_again_and_again_it_ends_with_the_same_weights(task_of, options, tmp_path, dying):
    """Killed before steps of every place in an epoch and gone on with: no step is taken twice, no bit differs."""
    task = task_of(*OPTIONS[options])
    whole = fit_sequence(task, None)
    steps: list[int] = []
    for lives in (1, 2, STEPS - 3, STEPS, STEPS + 1, 3 * STEPS - 1, None):
        taken = dying(lives)
        try:
            ended = fit_sequence(task, tmp_path)
        except Killed:
            steps += taken
            continue
        steps += taken
        break
    assert steps == list(range(len(steps)))
    assert same(ended, whole)


def test_a_killed_training_of_more_averaged_epochs_than_ten_goes_on_in_their_order(task_of, tmp_path, dying):
    """Twelve epochs' weights in a state are twelve in a row, not in the order of their names as text."""
    task = task_of({}, {"average_epochs": 12, "epochs": 18, "patience": 18})
    whole, taken_up = SequenceTraining(task), SequenceTraining(task)
    for epoch in range(14):
        for batch in whole.batches_to_come():
            whole.learn(batch)
        whole.finish_epoch()
        if epoch == 12:
            whole.save(tmp_path)
            taken_up.restore(tmp_path)
    for batch in taken_up.batches_to_come():
        taken_up.learn(batch)
    taken_up.finish_epoch()
    assert len(whole.recent) == len(taken_up.recent) == 12
    for meant, got in zip(whole.recent, taken_up.recent, strict=True):
        assert all(torch.equal(meant[k], got[k]) for k in meant)


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0.0, 1000.0])
@pytest.mark.parametrize("dies_in", ["finish_epoch", "write_tensors", "write_json"])
def test_killed_outside_a_step_it_ends_with_the_same_weights(task_of, tmp_path, monkeypatch, dies_in, minutes):
    """While the weights are judged, or while a state is written, and with no state at all: the same weights."""
    task = task_of({}, {"ema": 0.5, "average_epochs": 2, "checkpoint_minutes": minutes})
    whole = fit_sequence(task, None)
    home = SequenceTraining if dies_in == "finish_epoch" else sequence_fitting.save_checkpoint.__globals__
    kept = getattr(home, dies_in) if dies_in == "finish_epoch" else home[dies_in]
    calls: list[int] = []

    def die_at_the_third(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return kept(*given, **named)

    with monkeypatch.context() as patch:
        if dies_in == "finish_epoch":
            patch.setattr(SequenceTraining, dies_in, die_at_the_third)
        else:
            patch.setitem(home, dies_in, die_at_the_third)
        try:
            fit_sequence(task, tmp_path)
        except Killed:
            assert len(calls) == 3
        else:
            assert minutes
            assert dies_in != "finish_epoch"  # a state is written at the end alone
    assert same(fit_sequence(task, tmp_path), whole)


# States


def test_a_training_that_is_over_is_not_done_again(task_of, tmp_path, dying):
    """Its state holds the best weights alone, and a second call takes no step."""
    task = task_of({}, {"ema": 0.9})
    whole = fit_sequence(task, tmp_path)
    assert names(tmp_path) == {"stop-1.json", f"stop-1-{4 * STEPS}.safetensors"}
    size = (tmp_path / f"stop-1-{4 * STEPS}.safetensors").stat().st_size
    weights = sum(p.numel() * p.element_size() for p in whole.state_dict().values())
    assert size < weights + 8000
    taken = dying(0)
    assert same(fit_sequence(task, tmp_path), whole)
    assert taken == []


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["a flipped bit", "cut short", "no tensors", "no facts", "text", "another's"])
def test_a_damaged_state_begins_afresh_with_the_same_result(task_of, tmp_path, dying, harm):
    """Whatever happened to a state it is none, and the training starts at its first step."""
    task = task_of()
    dying(6)
    with pytest.raises(Killed):
        fit_sequence(task, tmp_path)
    facts, tensors = tmp_path / "stop-1.json", tmp_path / "stop-1-6.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-9] ^= 1
    {
        "a flipped bit": lambda: tensors.write_bytes(data),
        "cut short": lambda: tensors.write_bytes(data[: len(data) // 2]),
        "no tensors": tensors.unlink,
        "no facts": facts.unlink,
        "text": lambda: facts.write_text("{"),
        "another's": lambda: facts.rename(tmp_path / "stop-2.json"),
    }[harm]()
    taken = dying(None)
    ended = fit_sequence(task, tmp_path)
    assert taken == list(range(4 * STEPS))
    assert same(ended, fit_sequence(task, None))


@pytest.mark.slow
def test_tasks_side_by_side_keep_to_their_own_states(task_of, tmp_path, dying):
    """A task of another name in the same folder begins at its own first step, and neither touches the other's."""
    one, other = task_of(name="stop-1"), task_of(name="stop-2", seed=3)
    for task in (one, other):
        dying(5)
        with pytest.raises(Killed):
            fit_sequence(task, tmp_path)
    for task in (one, other):
        taken = dying(None)
        assert same(fit_sequence(task, tmp_path), fit_sequence(task, None))
        assert taken[0] == 5


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 2, STEPS - 1, STEPS, 4 * STEPS - 1])
def test_sigterm_ends_with_a_state_and_143(task_of, tmp_path, monkeypatch, at):
    """In the middle of a step it waits for its end; the next run goes on there, and no handler is left behind."""
    task = task_of({}, {"ema": 0.9, "checkpoint_minutes": 1000.0})
    before, learn = signal.getsignal(signal.SIGTERM), SequenceTraining.learn

    def learn_and_be_told(self: SequenceTraining, batch: object) -> None:
        if self.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        learn(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceTraining, "learn", learn_and_be_told)
        with pytest.raises(SystemExit) as ended:
            fit_sequence(task, tmp_path)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"stop-1-{at + 1}.safetensors" in names(tmp_path)
    assert same(fit_sequence(task, tmp_path), fit_sequence(task, None))


@pytest.mark.parametrize("epoch", [1, 4])
def test_sigterm_while_the_weights_are_judged_is_not_lost(task_of, tmp_path, monkeypatch, epoch):
    """After the last epoch there is no step left to wait for; the run ends all the same, with 143 and a state."""
    task = task_of({}, {"checkpoint_minutes": 1000.0})
    finish = SequenceTraining.finish_epoch

    def finish_and_be_told(self: SequenceTraining) -> None:
        finish(self)
        if self.epoch == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceTraining, "finish_epoch", finish_and_be_told)
        with pytest.raises(SystemExit) as ended:
            fit_sequence(task, tmp_path)
    assert ended.value.code == 143
    assert "stop-1.json" in names(tmp_path)
    assert same(fit_sequence(task, tmp_path), fit_sequence(task, None))


# What a training does


def test_a_step_is_adamws_with_warm_up_cosine_and_clipping(task_of):
    """Written out with torch's own scheduler, nothing random: the same weights after two epochs."""
    task = task_of(
        {"dropout": 0.0}, {"thin": 0.0, "reverse": 0.0, "clip_norm": 0.1, "warmup": 0.3, "weight_decay": 0.1}
    )
    training = SequenceTraining(task)
    model = SequenceModel(8, task.rnn)
    model.load_state_dict(training.model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step / (4 * STEPS), 0.3))
    for _ in range(2):
        for batch in training.batches_to_come():
            training.learn(batch)
            optimiser.zero_grad()
            said = model(batch.features, batch.positions_mm, batch.lengths, batch.logits)
            sequence_loss(said, batch.targets, batch.lengths, study_weight=0.25).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimiser.step()
            schedule.step()
        training.finish_epoch()
    assert training.step == 2 * STEPS
    assert close(training.model.state_dict(), model.state_dict())


def loss_by_hand(weights: dict[str, torch.Tensor], task: SequenceTask, logits_alone) -> float:
    """The loss that stops the training, study by study."""
    model = SequenceModel(8, task.rnn)
    model.load_state_dict(weights)
    of_slices, of_studies = logits_alone(model.eval(), task.stop)
    loss = [weighted_log_loss(expit(refined), targets) for _, refined, targets in (of_slices, of_studies)]
    return loss[0] + task.options.study_loss * loss[1]


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("average_epochs", [1, 2, 3, 50])
def test_what_is_judged_is_the_average_of_the_weights_averaged_over_epochs(task_of, logits_alone, ema, average_epochs):
    """By hand from the weights after every step: the moving average, its mean over epochs' ends, the best of all."""
    task = task_of({}, {"ema": ema, "average_epochs": average_epochs, "epochs": 6})
    training = SequenceTraining(task)
    candidates = [{k: v.clone() for k, v in training.model.state_dict().items()}]
    ends: list[dict[str, torch.Tensor]] = []
    average: dict[str, torch.Tensor] = {}
    for _ in range(6):
        for batch in training.batches_to_come():
            training.learn(batch)
            t, now = training.step - 1, training.model.state_dict()
            decay = min(ema, 1 - (1 + t) ** (-2 / 3)) if t > 0 else 0.0  # ramps up, as timm's does
            last = average or now
            average = {k: decay * last[k] + (1 - decay) * v for k, v in now.items()}
        ends.append(average)
        used = ends[-average_epochs:]
        candidates.append({k: sum(w[k] for w in used) / len(used) for k in average})
        before = {k: v.clone() for k, v in training.model.state_dict().items()}
        training.finish_epoch()
        assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())  # learning goes on there
        assert close(training.average.module.state_dict(), average)
    losses = [loss_by_hand(c, task, logits_alone) for c in candidates]
    best = int(np.argmin(losses))
    assert training.best_epoch == best > 0
    assert training.best_loss == pytest.approx(losses[best], abs=1e-6)
    assert close(training.best, candidates[best])
    assert close(training.result().state_dict(), candidates[best])


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best"),
    [
        ([0.9, 0.8, 0.7, 0.6], 2, 4, 4),
        ([0.9, 0.95, 0.9, 0.5], 2, 3, 1),  # as good as the best is no better
        ([1.1, 1.2, 0.1, 0.1], 2, 2, 0),  # it begins with what the base says
        ([1.1, 0.9, 1.0, 0.8], 2, 4, 4),
        ([1.1, 0.9, 1.0, 0.8], 1, 1, 0),
        ([float("nan"), float("nan"), float("nan"), float("nan")], 3, 3, 0),
    ],
)
def test_it_stops_when_patience_ends_and_gives_back_the_best(task_of, monkeypatch, losses, patience, epochs, best):
    """`patience` epochs after the best; what comes back are the weights at the end of that epoch."""
    said = iter([1.0, *losses])
    ends = []
    finish = SequenceTraining.finish_epoch
    monkeypatch.setattr(SequenceTraining, "_watched", lambda _: next(said))

    def finish_and_keep(self: SequenceTraining) -> None:
        ends.append({k: v.clone() for k, v in self.model.state_dict().items()})
        finish(self)

    monkeypatch.setattr(SequenceTraining, "finish_epoch", finish_and_keep)
    task = task_of({}, {"patience": patience})
    begun = {k: v.clone() for k, v in SequenceTraining(replace(task)).model.state_dict().items()}
    said = iter([1.0, *losses])
    model = fit_sequence(task, None)
    assert len(ends) == epochs
    expected = [begun, *ends][best]
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())


def test_training_that_only_does_harm_leaves_the_base(task_of):
    """With a senseless learning rate the model returned is the one it began with: what its knowing base says."""
    task = task_of({}, {"learning_rate": 100.0, "warmup": 0.0})
    learn, stop = (
        [replace(s, features=replace(s.features, logits=3 - 6 * (1 - s.targets.astype(np.float32)))) for s in of]
        for of in (task.learn, task.stop)
    )
    slices, whole = logits_beside_base(fit_sequence(replace(task, learn=learn, stop=stop), None), stop, CPU)
    assert np.array_equal(slices.refined, slices.base)
    assert (np.sign(slices.base) == 2.0 * slices.targets - 1).all()
    assert np.isfinite(whole.refined).all()


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("study_loss", [0.0, 0.25])
def test_the_loss_to_stop_by_counts_every_slice_and_every_study_once(
    task_of, monkeypatch, logits_alone, batch, study_loss
):
    """Whatever the batches: the metric of all slices laid end to end plus the studies' by their share."""
    task = task_of({}, {"study_loss": study_loss})
    training = SequenceTraining(task)
    with torch.no_grad():
        training.model.correction.weight.normal_()
        training.model.study_bias += torch.linspace(-1, 1, K)
    monkeypatch.setattr(sequence_fitting, "EVALUATION_BATCH", batch)
    expected = loss_by_hand(training.model.state_dict(), task, logits_alone)
    assert training._watched() == pytest.approx(expected, abs=1e-6)


def test_both_sides_are_laid_side_by_side(task_of, studies, logits_alone):
    """Base, model and truth of slices and of studies, in the order of the studies: by hand, study by study."""
    model = fit_sequence(task_of(), None)
    for got, by_hand in zip(logits_beside_base(model, studies, CPU), logits_alone(model, studies), strict=True):
        for one, other in zip((got.base, got.refined, got.targets), by_hand, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        assert got.targets.dtype == np.uint8


# What is shown


def marked(studies, numbers: Iterator[int]):
    """The studies, each with its number for features and logits, so that it is known in a batch."""
    return [
        replace(
            s,
            features=replace(
                s.features,
                features=np.full_like(s.features.features, number),
                logits=np.full_like(s.features.logits, number),
            ),
        )
        for s, number in zip(studies, numbers, strict=False)
    ]


def shown_in(training: SequenceTraining, epochs: int) -> list[list[list[tuple[int, np.ndarray]]]]:
    """Epoch by epoch and batch by batch the numbers of studies shown and their positions."""
    seen = []
    for _ in range(epochs):
        of_epoch = []
        for batch in training.batches_to_come():
            numbers = batch.features[:, 0, 0].int().tolist()
            lengths = batch.lengths.tolist()
            assert batch.logits[:, 0, 0].int().tolist() == numbers
            of_epoch.append([(i, p[:n].numpy()) for i, p, n in zip(numbers, batch.positions_mm, lengths, strict=True)])
            training.step += 1
        training.epoch += 1
        seen.append(of_epoch)
    return seen


@pytest.mark.parametrize("size", [1, 3, 4, 14, 50])
def test_an_epoch_shows_every_study_once_in_other_company_each_time(task_of, studies, size):
    """Like lengths lie together, but none is left out or shown twice, and batches differ from epoch to epoch."""
    task = task_of({}, {"batch_studies": size})
    training = SequenceTraining(replace(task, learn=marked(studies, iter(range(LEARN)))[:LEARN]))
    epochs = shown_in(training, 5)
    for of_epoch in epochs:
        assert sorted(i for batch in of_epoch for i, _ in batch) == list(range(LEARN))
        assert len(of_epoch) == training.steps == -(-LEARN // size)
        assert all(len(batch) <= size for batch in of_epoch)
    orders = {tuple(tuple(i for i, _ in batch) for batch in of_epoch) for of_epoch in epochs}
    assert len(orders) == 5 if size < LEARN else orders


@pytest.mark.parametrize(("thin", "reverse"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)])
def test_studies_are_thinned_and_reversed_as_asked(task_of, studies, thin, reverse):
    """Known by their positions: every second slice of a long study, and head and feet exchanged."""
    task = task_of({}, {"thin": thin, "reverse": reverse})
    training = SequenceTraining(replace(task, learn=marked(studies, iter(range(LEARN)))[:LEARN]))
    thinned, turned = [], []
    for number, places in (shown for epoch in shown_in(training, 6) for batch in epoch for shown in batch):
        whole = studies[number].features.positions_mm
        is_turned = bool(len(places) > 1 and not np.isin(places, whole).all())
        up = -places[::-1] if is_turned else places
        takes = [whole, whole[::2], whole[1::2]]
        taken = [len(up) == len(t) and np.array_equal(up, t) for t in takes]
        assert any(taken)
        thinned += [not taken[0]] if len(whole) > THIN_FROM else []
        assert len(whole) > THIN_FROM or taken[0]
        turned.append(is_turned)
    for seen, asked in ((thinned, thin), (turned, reverse)):
        assert {0.0: not any(seen), 1.0: all(seen), 0.5: 0.2 < np.mean(seen) < 0.8}[asked]


def test_dropout_of_a_step_depends_on_task_and_step_alone(task_of, monkeypatch):
    """Each step seeds torch anew with a number of its own."""
    seeds = []
    manual_seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or manual_seed(seed))
    for seed in (7, 8):
        fit_sequence(task_of(seed=seed), None)
    assert len(seeds) == 2 * (4 * STEPS + 1)  # one before, for the weights to begin with
    drawn = seeds[1 : 4 * STEPS + 1]
    assert drawn == [hash_of(7, step) for step in range(4 * STEPS)]
    assert len(set(drawn) | set(seeds[4 * STEPS + 2 :])) == 8 * STEPS


# A whole run of train-rnn

SLICES = [3, 12, 1, 7, 5, 11, 2, 9, 6, 4, 8, 12, 3, 5, 2, 6]
FOLDS = 3
NETWORKS = FOLDS * (FOLDS - 1) + FOLDS


@pytest.fixture(scope="module")
def given(labelled_store) -> tuple[Path, Path]:
    """A store of sixteen studies of twelve patients, and its labels."""
    return labelled_store(SLICES, 12)[:2]


def settings(rnn: dict[str, object] | None = None, **train: object) -> Config:
    few = {"folds": FOLDS, "epochs": 2, "batch_studies": BATCH, "checkpoint_minutes": 0.0}
    return Config.model_validate({"rnn": RNN | (rnn or {}), "train": few | train})


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a bundle and what is in them; a folder among them is an error."""
    assert not [p for p in folder.iterdir() if p.is_dir()]
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith(".lock")}


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two bundles: files, and of networks the tensors and by how much at the most."""
    ours, theirs = contents(a), contents(b)
    told = [f"{name} in one alone" for name in ours.keys() ^ theirs.keys()]
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            both = [load(of[name]) if name.endswith(".safetensors") else {} for of in (ours, theirs)]
            parts = [f"{k} {float((t - both[1][k]).abs().max()):.1e}" for k, t in both[0].items() if k in both[1]]
            told.append(f"{name}: {', '.join(parts)} ({torch.get_num_threads()} threads)")
    return told


@pytest.fixture(scope="module")
def unbroken(given, tmp_path_factory) -> Path:
    """The bundle of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("unbroken") / "bundle"
    train_rnn(*given, out, settings(), device="cpu")
    return out


def killed_runs(given: tuple[Path, Path], outs: tuple[Path, Path], config: Config, shares: Sequence[float]) -> int:
    """Run train-rnn unbroken, then in processes sent SIGKILL after shares of its time until one ends; how many died.

    The processes are forks of a fresh one, so that the imports are paid for once.
    """
    script = """
import json, os, signal, sys, time
from pathlib import Path
import sklearn.linear_model, torch
from ich_seq.config import Config
from ich_seq.rnn_training import train_rnn
torch.set_num_threads(1)
store, labels, unbroken, broken, config, shares = sys.argv[1:]

def run(out, wait):
    pid = os.fork()
    if not pid:
        if wait is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, wait)
        train_rnn(store, labels, out, Config.model_validate_json(config), device="cpu")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code

began = time.perf_counter()
assert run(unbroken, None) == 0
whole = time.perf_counter() - began
died = 0
for share in json.loads(shares) + [None]:
    if run(broken, share and share * whole) == 0:
        break
    died += 1
print(died)
"""
    paths = [str(p) for p in (*given, *outs)]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths, config.model_dump_json(), json.dumps(shares)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_killed_at_random_times_ends_with_the_same_bytes(given, tmp_path, seed):
    """SIGKILL, wherever it strikes, again and again: the bundle is the unbroken run's, and no state is left.

    Both run in processes of one thread, as the last bits are those of the number of threads.
    """
    rng = np.random.default_rng(seed)
    outs = (tmp_path / "unbroken", tmp_path / "out")
    died = killed_runs(given, outs, settings(), rng.uniform(0.05, 0.5, 5).tolist())
    assert died > 0
    assert differences(tmp_path / "out", tmp_path / "unbroken") == []


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"ema": 0.9, "average_epochs": 2}, {"seeds": 2}], ids=["averages", "seeds"])
def test_a_run_killed_every_few_steps_ends_with_the_same_bytes_and_takes_no_step_twice(given, tmp_path, dying, option):
    """Nothing that was learnt is lost, be it of a network that was done or of the one at hand."""
    config = settings(**option)
    taken = dying(None)
    train_rnn(*given, tmp_path / "whole", config, device="cpu")
    in_all, in_parts = len(taken), 0
    runs = 0
    for runs in range(1, in_all):  # noqa: B007 - counted
        taken = dying(11)
        try:
            train_rnn(*given, tmp_path / "out", config, device="cpu")
        except Killed:
            in_parts += len(taken)
            assert len([p for p in (tmp_path / "out").iterdir() if p.name.startswith(".training-")]) == 1
            continue
        in_parts += len(taken)
        break
    assert runs > 2
    assert in_parts == in_all
    assert differences(tmp_path / "out", tmp_path / "whole") == []


@pytest.mark.slow
@pytest.mark.parametrize("other", ["settings", "labels", "store"])
def test_states_of_another_run_are_not_taken_up_and_are_removed(given, tmp_path, dying, other):
    """Other labels, settings or features in the same folder: states of the former go, and the end is the same."""
    store, labels = given
    out, config = tmp_path / "out", settings()
    dying(20)
    with pytest.raises(Killed):
        train_rnn(store, labels, out, config, device="cpu")
    (before,) = [p for p in out.iterdir() if p.name.startswith(".training-")]
    if other == "labels":
        labels = tmp_path / "labels.csv"
        rows = given[1].read_text().split("\n")
        labels.write_text("\n".join([rows[0], *rows[7:13], *rows[1:7], *rows[13:]]))  # another order, another file
    if other == "settings":
        config = settings(seed=5)
    if other == "store":
        store = Path(shutil.copytree(store, tmp_path / "store"))
        (store / "manifest.json").write_text((store / "manifest.json").read_text() + "\n")
    dying(20)
    with pytest.raises(Killed):
        train_rnn(store, labels, out, config, device="cpu")
    (now,) = [p for p in out.iterdir() if p.name.startswith(".training-")]
    assert now != before
    dying(None)
    train_rnn(store, labels, out, config, device="cpu")
    train_rnn(store, labels, tmp_path / "fresh", config, device="cpu")
    assert differences(out, tmp_path / "fresh") == []


@pytest.mark.slow
def test_states_of_networks_that_are_done_stay_until_the_run_is(given, tmp_path, monkeypatch):
    """Near the end of a run the state of every network is there, so that none is trained again after a kill."""
    seen: list[set[str]] = []

    def save_and_look(out: Path, *rest: object) -> None:
        (states,) = [p for p in out.iterdir() if p.name.startswith(".training-")]
        seen.append(names(states))
        raise Killed

    monkeypatch.setattr(rnn_training, "_save", save_and_look)
    with pytest.raises(Killed):
        train_rnn(*given, tmp_path / "out", settings(), device="cpu")
    assert len([n for n in seen[0] if n.endswith(".json")]) == NETWORKS
    assert len([n for n in seen[0] if n.endswith(".safetensors")]) == NETWORKS


@pytest.mark.slow
def test_sigterm_ends_a_run_that_can_be_gone_on_with(given, unbroken, tmp_path, monkeypatch):
    """143 from wherever it is; the next run ends with the bytes of one that nothing disturbed."""
    learn, taken = SequenceTraining.learn, []

    def learn_and_be_told(self: SequenceTraining, batch: object) -> None:
        taken.append(1)
        if len(taken) == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        learn(self, batch)

    monkeypatch.setattr(SequenceTraining, "learn", learn_and_be_told)
    with pytest.raises(SystemExit) as ended:
        train_rnn(*given, tmp_path / "out", settings(), device="cpu")
    assert ended.value.code == 143
    assert len(taken) == 17
    train_rnn(*given, tmp_path / "out", settings(), device="cpu")
    assert differences(tmp_path / "out", unbroken) == []


WHOLE = {
    **{name: OPTIONS[name] for name in OPTIONS if name != "more epochs averaged than ten"},
    "seeds": ({}, {"seeds": 2}),
    "temperature": ({}, {"calibration": "temperature"}),
    "no calibration": ({}, {"calibration": "none"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", WHOLE)
def test_every_option_makes_a_bundle_that_says_what_its_ensemble_does(given, tmp_path, monkeypatch, options):
    """From train-rnn to a loaded bundle: as many networks and news as there should be, and the ensemble's word."""
    rnn, train = WHOLE[options]
    config = settings(rnn, **{**train, "epochs": 1, "learning_rate": 0.02})
    made: list[FoldedStudies] = []
    monkeypatch.setattr(rnn_training, "FoldedStudies", lambda *given: made.append(FoldedStudies(*given)) or made[-1])
    monkeypatch.setattr("ich_seq.calibration.LEAST_STUDIES", 3)
    told: list[tuple[int, int]] = []
    out = tmp_path / "out"
    train_rnn(*given, out, config, device="cpu", progress=lambda _, done, total: told.append((done, total)))
    (data,) = made
    seeds = config.train.seeds
    assert told == [(i + 1, NETWORKS * seeds) for i in range(NETWORKS * seeds)]
    bundle = load_bundle(out, CPU)
    ensemble = fit_ensemble(data, Trainer(config, CPU))
    assert len(bundle.models) == len(ensemble.models) == FOLDS * seeds
    assert all(same(one, other) for one, other in zip(bundle.models, ensemble.models, strict=True))
    assert all(model.config == config.rnn for model in bundle.models)
    for level in (bundle.calibrations.slices, bundle.calibrations.studies):
        assert (level.intercept == 0).all() or config.train.calibration == "platt"
        assert (level.slope == 1).all() or config.train.calibration != "none"
    studies = data.to_learn_from(data.numbers, frozenset())
    said = predict_ensemble(ensemble, studies, CPU)["blend"]
    by_bundle = [bundle.predict([study.features]) for study in studies]
    assert said.slices == pytest.approx(np.concatenate([slices for slices, _ in by_bundle]), abs=1e-5)
    assert said.studies == pytest.approx(np.stack([study for _, study in by_bundle]), abs=1e-5)
    assert ((said.slices > 0) & (said.slices < 1)).all()


@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_learns_about_the_same(task_of, studies, cell):
    """bf16 gives a finite loss and gradients, other weights than fp32, in fp32, and nearly its first loss."""
    batch = next(batches(studies[:LEARN], LEARN))
    losses = {}
    for precision in ("fp32", "bf16"):
        task = task_of({"cell": cell, "dropout": 0.0}, {"precision": precision})
        training = SequenceTraining(task)
        with torch.no_grad():
            training.model.correction.weight.fill_(0.3)
        losses[precision] = sequence_fitting._batch_loss(training.model.eval(), batch, task.options, CPU).item()
        training.learn(batch)
        assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in training.model.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]
