"""One network trained: it learns what is there, by its settings, and a killed training ends at the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ich_seq import UsageError
from ich_seq.baselines import constant
from ich_seq.config import Augment, Cnn, Config
from ich_seq.distributed import Group
from ich_seq.encoder import HEAD, SliceEncoder, build_encoder, new_head
from ich_seq.fitting import (
    LOG_EVERY,
    Fitted,
    SliceNetwork,
    Task,
    Training,
    fit,
    hash_of,
    predict_rows,
    steps_an_epoch,
)
from ich_seq.labels import LABELS, read_labels
from ich_seq.metrics import log_loss_of_logits, weighted_log_loss
from ich_seq.reasons import Reason, Unused
from ich_seq.samples import LabelledSlices, label_slices
from ich_seq.studies import find_studies
from ich_seq.weights import tensor_bytes

ROOT = Path(__file__).resolve().parents[1]
BATCH_NORM, LAYER_NORM = "test_efficientnet", "test_convnext"
SIDE, FIELD_MM, STUDIES, SLICES = 32, 128, 10, 8
BRAIN_HU, BLOOD_HU = 32, 80
CALM = Augment(flip=0.5, shift=0.02, scale=0.05, rotate_deg=5, erase=0, window=0.05)
EVERYTHING = {
    "sampling": "balanced",
    "accumulate": 2,
    "dropout": 0.3,
    "ema": 0.9,
    "head_epochs": 0.5,
    "checkpoint_minutes": 0,
}
"""Settings under which a step depends on all that a state has to hold."""

ELSEWHERE = Unused("elsewhere.dcm", Reason.DECODE, "The pixels cannot be decoded.", "1.2.3")


class KilledError(Exception):
    """What ends a training in the middle of these tests."""


def write_bleeds(folder: Path, labels: Path, write_slice: Callable[..., Path]) -> None:
    """Write studies of noisy discs: a bright blob in the upper half is subdural, in the lower half epidural."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    table = ["ID,Label"]
    for study in range(STUDIES):
        for k in range(SLICES):
            hu = np.where(np.hypot(rows - 15.5, columns - 15.5) < 13, BRAIN_HU, -1000) + rng.normal(0, 4, (SIDE, SIDE))
            bleeds = {"subdural": (k + study) % 3 == 0, "epidural": (k + study) % 4 == 1}
            for label, top in (("subdural", 6), ("epidural", 20)):
                if bleeds[label]:
                    row, column = top + rng.integers(-1, 2), rng.integers(9, 17)
                    hu[row : row + 6, column : column + 6] = BLOOD_HU + rng.normal(0, 4, (6, 6))
            sop = f"1.2.{study}.{k}"
            write_slice(
                folder / f"{sop}.dcm",
                stored=np.rint(hu).astype(np.int64) + 1024,
                SOPInstanceUID=sop,
                StudyInstanceUID=f"1.2.{study}",
                SeriesInstanceUID=f"1.2.{study}.0",
                PatientID=f"P{study}",
                ImagePositionPatient=[-125, -125, 5 * k],
                PixelSpacing=[FIELD_MM / SIDE] * 2,
            )
            bleeds["any"] = any(bleeds.values())
            table += [f"{sop}_{label},{int(bleeds.get(label, False))}" for label in LABELS]
    labels.write_text("\n".join(table) + "\n")


@pytest.fixture(scope="module")
def bleeds(tmp_path_factory: pytest.TempPathFactory, write_slice: Callable[..., Path]) -> LabelledSlices:
    """80 slices of ten patients whose two labels any eye can tell."""
    root = tmp_path_factory.mktemp("bleeds")
    (root / "dicom").mkdir()
    write_bleeds(root / "dicom", root / "labels.csv", write_slice)
    slices, without = label_slices(find_studies(root / "dicom").studies, read_labels(root / "labels.csv"))
    assert (len(slices), without) == (STUDIES * SLICES, [])
    return slices


@cache
def _built(arch: str) -> SliceEncoder:
    chosen = {"slices": {"size": SIDE, "field_mm": FIELD_MM}, "encoder": {"arch": arch, "weights": "random"}}
    return build_encoder(Config.model_validate(chosen))


def encoder_of(arch: str = LAYER_NORM) -> SliceEncoder:
    """Give an encoder as it was built; a training changes the one it is given."""
    return deepcopy(_built(arch))


def options(**cnn: Any) -> Cnn:
    """Settings for a tiny network, none of them left to chance or time unless asked for."""
    plain: dict[str, Any] = {
        "epochs": 2,
        "batch_slices": 16,
        "head_epochs": 0,
        "dropout": 0,
        "precision": "fp32",
        "learning_rate": 3e-3,
    }
    return Cnn(**plain | cnn)


def task_on(slices: LabelledSlices, arch: str = LAYER_NORM, **given: Any) -> Task:
    """Learn from the first six studies and watch two of the others, unless told otherwise."""
    fields = {f: given.pop(f) for f in list(given) if f in Task.__dataclass_fields__}
    plain: dict[str, Any] = {
        "fold": 0,
        "slices": slices,
        "spec": _built(arch).spec,
        "learn": np.flatnonzero(slices.study < 6),
        "watch": np.flatnonzero((slices.study == 6) | (slices.study == 7)),
        "options": options(**given),
        "augment": CALM,
        "device": torch.device("cpu"),
        "group": Group(),
        "workers": 0,
    }
    given_task = plain | fields
    return Task(**{"natural": given_task["learn"]} | given_task)


def no_log(name: str, value: float, step: int) -> None: ...


def no_progress(done: int, total: int) -> None: ...


def train(task: Task, root: Path, *, log=no_log, progress=no_progress, encoder: SliceEncoder | None = None) -> Fitted:
    root.mkdir(exist_ok=True)
    return fit(task, encoder or encoder_of(task.spec.arch), root, log=log, progress=progress)


def in_bytes(fitted: Fitted) -> tuple[bytes, list[dict[str, float]], int]:
    return tensor_bytes(fitted.tensors), fitted.curve, fitted.epoch


def watched(fitted: Fitted) -> list[float]:
    return [row["watched_loss"] for row in fitted.curve]


def weights_of(encoder: SliceEncoder) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in encoder.network.named_parameters()}


def constants_loss(task: Task) -> float:
    """What the prevalence among the slices learnt from scores on those watched."""
    targets = task.slices.targets
    return weighted_log_loss(constant(targets[task.learn], len(task.watch)), targets[task.watch])


def network_of(task: Task, tensors: dict[str, Tensor]) -> SliceNetwork:
    encoder, head = encoder_of(task.spec.arch), new_head(task.spec.dim)
    encoder.network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(HEAD)})
    head.load_state_dict({k.removeprefix(HEAD): v for k, v in tensors.items() if k.startswith(HEAD)})
    return SliceNetwork(encoder, head, 0.0)


# Learning


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_learns_what_any_eye_can_tell(bleeds, tmp_path, precision):
    """On blobs of blood the loss on patients not learnt from falls below half of what the prevalence scores.

    With this network to 0.06 of it, in both precisions, so that no other rounding moves it above.
    """
    learn = np.flatnonzero((bleeds.study != 6) & (bleeds.study != 7))
    task = task_on(bleeds, BATCH_NORM, learn=learn, epochs=14, precision=precision, ema=0.9)
    fitted = train(task, tmp_path)
    assert watched(fitted)[-1] < 0.5 * constants_loss(task)
    assert watched(fitted)[-1] < watched(fitted)[0]


def test_before_any_step_a_network_says_the_prevalence(bleeds):
    """The head starts at the learnt slices' prevalence, half a case added to each side, whatever it is shown."""
    task = task_on(bleeds)
    targets = bleeds.targets[task.learn]
    logits, known, _ = predict_rows(Training(task, encoder_of()).network, task, task.watch, precision="fp32")
    prevalence = (targets.sum(axis=0) + 0.5) / (len(targets) + 1)
    assert known.all()
    assert np.allclose(1 / (1 + np.exp(-logits)), prevalence, atol=1e-6)
    loss = log_loss_of_logits(logits, bleeds.targets[task.watch])
    assert loss == pytest.approx(constants_loss(task), rel=0.02)


def test_every_weight_has_a_place_in_the_optimiser(bleeds):
    """The encoder comes frozen from its builder; a weight that no group holds would never learn."""
    training = Training(task_on(bleeds), encoder_of())
    held = [id(p) for group in training.optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in training.network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("arch", [BATCH_NORM, LAYER_NORM])
def test_the_encoder_rests_while_the_head_learns_alone(bleeds, tmp_path, arch):
    """Not a weight of it moves in the first `head_epochs`; from the step after them on all do."""
    task, encoder = task_on(bleeds, arch, head_epochs=1, epochs=2), encoder_of(arch)
    before, steps = weights_of(encoder), steps_an_epoch(task)
    moved: dict[int, set[str]] = {}

    def look(done: int, total: int) -> None:
        moved[done] = {name for name, p in weights_of(encoder).items() if not torch.equal(p, before[name])}

    fitted = train(task, tmp_path, encoder=encoder, progress=look)
    assert [done for done, names in moved.items() if not names] == list(range(1, steps + 1))
    assert moved[2 * steps] == before.keys()
    assert fitted.tensors[f"{HEAD}weight"].abs().max() > 0


def test_the_head_learns_while_the_encoder_rests(bleeds, tmp_path):
    """A training that is all head leaves the encoder as it was built, and still beats where it started."""
    encoder = encoder_of()
    before = weights_of(encoder)
    fitted = train(task_on(bleeds, head_epochs=2, epochs=2, ema=0), tmp_path, encoder=encoder)
    assert all(torch.equal(fitted.tensors[name], p) for name, p in before.items())
    assert fitted.tensors[f"{HEAD}weight"].abs().max() > 0


@pytest.mark.parametrize("arch", [BATCH_NORM, LAYER_NORM])
def test_lower_layers_learn_more_slowly(bleeds, arch):
    """From the stem to the last layer the full rate rises by 1 / `layer_decay` a layer, up to the head's."""
    training = Training(task_on(bleeds, arch, layer_decay=0.5, learning_rate=1e-2), encoder_of(arch))
    named = {id(p): name for name, p in training.network.encoder.network.named_parameters()}
    full = {}
    for group, (rate, in_head) in zip(training.optimiser.param_groups, training.rates, strict=True):
        assert in_head == (id(group["params"][0]) not in named)
        full |= {named.get(id(p), "head"): rate for p in group["params"]}
    stem, *_, last = named.values()
    in_order = sorted(set(full.values()))
    assert full[stem] == in_order[0] < in_order[-1] == full["head"] == full[last] == 1e-2
    assert np.allclose(np.diff(np.log2(in_order)), 1)


def test_without_layer_decay_all_layers_learn_alike(bleeds):
    """At 1 there is one rate for everything."""
    training = Training(task_on(bleeds, layer_decay=1, learning_rate=1e-2), encoder_of())
    assert {rate for rate, _ in training.rates} == {1e-2}


def test_biases_and_norms_are_not_decayed(bleeds):
    """Weight decay pulls matrices and filters of the encoder only, not what has one dimension."""
    training = Training(task_on(bleeds, weight_decay=0.1), encoder_of())
    decayed = {
        name: group["weight_decay"]
        for group in training.optimiser.param_groups
        for name, p in training.network.encoder.network.named_parameters()
        if any(p is held for held in group["params"])
    }
    assert decayed == {
        name: 0.1 if p.ndim > 1 else 0.0 for name, p in training.network.encoder.network.named_parameters()
    }


@pytest.mark.parametrize("arch", [BATCH_NORM, LAYER_NORM])
def test_without_averaging_the_weights_are_those_of_the_last_step(bleeds, tmp_path, arch):
    """`ema` = 0 returns the network itself, to the byte, buffers and all."""
    encoder = encoder_of(arch)
    fitted = train(task_on(bleeds, arch, ema=0), tmp_path, encoder=encoder)
    raw = {name: t for name, t in fitted.tensors.items() if not name.startswith(HEAD)}
    assert tensor_bytes(raw) == tensor_bytes(encoder.network.state_dict())


def test_an_average_lags_behind_the_weights(bleeds, tmp_path):
    """With `ema` the weights lie between where the training began and where it ended, and were watched so."""
    encoder = encoder_of()
    before = weights_of(encoder)
    task = task_on(bleeds, ema=0.95)
    fitted = train(task, tmp_path, encoder=encoder)
    for name, after in weights_of(encoder).items():
        way, whole = fitted.tensors[name] - before[name], after - before[name]
        assert 0 < float((way * whole).sum() / whole.square().sum()) < 1
    logits, _, _ = predict_rows(network_of(task, fitted.tensors), task, task.watch, precision="fp32")
    assert log_loss_of_logits(logits, bleeds.targets[task.watch]) == pytest.approx(watched(fitted)[-1], rel=1e-5)


# What decides, and what does not


def worsening(slices: LabelledSlices, **given: Any) -> Task:
    """A task whose watched labels are the opposite of what is learnt, so that learning soon does harm."""
    targets = slices.targets.copy()
    turned = np.flatnonzero(slices.study >= 6)
    targets[turned] = 1 - targets[turned]
    return task_on(replace(slices, targets=targets), **given)


def test_a_training_stops_early_and_keeps_its_best_epoch(bleeds, tmp_path):
    """After `patience` epochs without a better watched loss it ends, and returns the weights of the best one."""
    task = worsening(bleeds, epochs=12, patience=2, ema=0)
    fitted = train(task, tmp_path)
    losses = watched(fitted)
    assert len(losses) == fitted.epoch + 2 < 12
    assert losses[fitted.epoch - 1] == min(losses)
    logits, _, _ = predict_rows(network_of(task, fitted.tensors), task, task.watch, precision="fp32")
    loss = log_loss_of_logits(logits, task.slices.targets[task.watch])
    assert loss == pytest.approx(min(losses), rel=1e-5)
    assert loss < losses[-1]


def test_without_patience_the_last_epoch_is_kept(bleeds, tmp_path):
    """The number of epochs is then a setting, not something that the watched fold decides."""
    fitted = train(worsening(bleeds, epochs=3), tmp_path)
    assert fitted.epoch == len(fitted.curve) == 3
    assert watched(fitted)[-1] > min(watched(fitted))


def test_watched_labels_move_no_weight(bleeds, tmp_path):
    """Without early stopping other labels on the watched slices change their losses and not one byte of the weights."""
    one, other = (train(t, tmp_path / str(i)) for i, t in enumerate((task_on(bleeds), worsening(bleeds))))
    assert tensor_bytes(one.tensors) == tensor_bytes(other.tensors)
    assert [r["learnt_loss"] for r in one.curve] == [r["learnt_loss"] for r in other.curve]
    assert watched(one) != watched(other)


@pytest.mark.slow
def test_slices_that_are_neither_learnt_from_nor_watched_have_no_part(bleeds, tmp_path):
    """With early stopping the fold held out is such: its labels change nothing at all."""
    targets = bleeds.targets.copy()
    held_out = bleeds.study >= 8
    targets[held_out] = 1 - targets[held_out]
    tasks = (task_on(s, epochs=3, patience=1) for s in (bleeds, replace(bleeds, targets=targets)))
    one, other = (train(t, tmp_path / str(i)) for i, t in enumerate(tasks))
    assert in_bytes(one) == in_bytes(other)


def test_another_fold_is_another_draw(bleeds):
    """Each task of a run has seeds of its own."""
    seeds = {task_on(bleeds, fold=fold, options=options(seed=seed)).seed for fold in range(10) for seed in range(10)}
    assert len(seeds) == 100


def test_the_number_of_workers_changes_no_byte(bleeds, tmp_path):
    """What reads ahead, and how many of it, has no part in what is learnt."""
    settings = EVERYTHING | {"epochs": 1}
    alone = train(task_on(bleeds, BATCH_NORM, **settings), tmp_path / "0")
    helped = train(task_on(bleeds, BATCH_NORM, workers=2, **settings), tmp_path / "2")
    assert in_bytes(alone) == in_bytes(helped)


def test_on_a_cpu_no_process_is_forked(bleeds, tmp_path, monkeypatch):
    """OpenVINO or OpenMP may run threads by then, and what is forked beside them can hang or crash."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    fitted = train(task_on(bleeds, workers=2, epochs=1), tmp_path)
    assert len(fitted.curve) == 1


PROCESSES = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from ich_seq.config import Augment, Cnn, Config
from ich_seq.distributed import Group
from ich_seq.encoder import build_encoder
from ich_seq.fitting import Task, _keys, _samples, steps_an_epoch
from ich_seq.labels import read_labels
from ich_seq.samples import label_slices
from ich_seq.studies import find_studies
import numpy as np

root = Path(sys.argv[1])
slices, _ = label_slices(find_studies(root / "dicom").studies, read_labels(root / "labels.csv"))
chosen = {"slices": {"size": 32, "field_mm": 128}, "encoder": {"arch": "test_convnext", "weights": "random"}}
task = Task(
    fold=0, slices=slices, spec=build_encoder(Config.model_validate(chosen)).spec, learn=np.arange(64),
    natural=np.arange(64), watch=np.arange(64, 80), options=Cnn(epochs=1, batch_slices=16), augment=Augment(),
    group=Group(), device=torch.device("cpu"), workers=0,
)
made = {}
for device, workers in (("cpu", 0), ("cpu", 2), ("cuda", 2)):
    like = replace(task, device=torch.device(device), workers=workers)
    samples = list(_samples(like, _keys(like, steps_an_epoch(like), 0)))
    made[device, workers] = [torch.cat([getattr(s, name) for s in samples]) for name in ("shown", "targets", "known")]
first, *others = made.values()
print(len(first[0]), [torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True)])
"""


@pytest.mark.slow
def test_processes_and_threads_read_the_same_bytes(bleeds):
    """On a CPU threads read ahead, for a GPU processes do; in a process of its own, as these are forked."""
    root = bleeds.header(0).path.parents[1]
    command = [sys.executable, "-c", PROCESSES, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"64 {[True] * 6}", done.stderr


@pytest.mark.slow
def test_a_batch_in_parts_is_learnt_like_a_whole_one(bleeds, tmp_path):
    """With a LayerNorm network the gradients of the parts add up to those of the batch, but for rounding."""
    whole, parts = (train(task_on(bleeds, accumulate=n), tmp_path / str(n)) for n in (1, 4))
    for one, other in zip(whole.curve, parts.curve, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert watched(whole)[0] != watched(whole)[1]


# States


def until_done(task: Task, root: Path, every: int) -> tuple[Fitted, int]:
    """Train and kill the training again and again after `every` steps, until it ends; count the times it was killed."""
    for killed in range(100):
        calls = []

        def die(*told: object, calls=calls) -> None:
            calls.append(told)
            if len(calls) == every:
                raise KilledError

        try:
            return train(task, root, progress=die), killed
        except KilledError:
            assert (root / "fold-0.json").exists()
    raise AssertionError("never done")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [BATCH_NORM, LAYER_NORM])
def test_a_training_killed_again_and_again_ends_at_the_same_bytes(bleeds, tmp_path, arch):
    """Dropout, averages, drawn slices, parts of batches and the head's own time: all go on where they were."""
    task = task_on(bleeds, arch, **EVERYTHING)
    whole = train(task, tmp_path / "whole")
    broken, killed = until_done(task, tmp_path / "broken", every=2)
    assert killed == 5
    assert in_bytes(broken) == in_bytes(whole)


@pytest.mark.slow
def test_a_training_that_stops_early_is_taken_up_too(bleeds, tmp_path):
    """The best epoch so far and its weights are part of a state."""
    task = worsening(bleeds, epochs=12, patience=2, checkpoint_minutes=0)
    whole = train(task, tmp_path / "whole")
    broken, killed = until_done(task, tmp_path / "broken", every=5)
    assert killed >= 2
    assert in_bytes(broken) == in_bytes(whole)
    assert whole.epoch < len(whole.curve) < 12


def test_a_training_killed_while_it_watches_goes_on_there(bleeds, tmp_path):
    """What was learnt is saved before it is watched: no step is taken again, and the epoch comes once in the curve."""
    task = task_on(bleeds, epochs=2)
    whole = train(task, tmp_path / "whole")

    def die(name: str, value: float, step: int) -> None:
        if name == "loss/watched" and step > steps_an_epoch(task):
            raise KilledError

    with pytest.raises(KilledError):
        train(task, tmp_path / "broken", log=die)
    state = json.loads((tmp_path / "broken" / "fold-0.json").read_text())
    assert (state["step"], len(state["curve"])) == (2 * steps_an_epoch(task), 1)
    steps: list[int] = []
    again = train(task, tmp_path / "broken", progress=lambda done, total: steps.append(done))
    assert steps == []
    assert in_bytes(again) == in_bytes(whole)


def test_sigterm_is_not_put_off_while_a_training_watches(bleeds, tmp_path):
    """That can take minutes; the state from just before is there to go on with."""

    def ended(number: int, frame: object) -> None:
        raise KilledError

    def ask(name: str, value: float, step: int) -> None:
        if name == "loss/learnt":
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        with pytest.raises(KilledError):
            train(task_on(bleeds), tmp_path, log=ask)
    finally:
        signal.signal(signal.SIGTERM, before)
    state = json.loads((tmp_path / "fold-0.json").read_text())
    assert (state["step"], state["curve"]) == (steps_an_epoch(task_on(bleeds)), [])


def test_a_finished_training_is_not_run_again(bleeds, tmp_path):
    """A state at the last step gives the result without a step."""
    whole = train(task_on(bleeds), tmp_path)
    steps = []
    again = train(task_on(bleeds), tmp_path, progress=lambda done, total: steps.append(done))
    assert steps == []
    assert in_bytes(again) == in_bytes(whole)


@pytest.mark.slow
def test_a_damaged_state_is_none(bleeds, tmp_path):
    """A training beside half a state starts afresh, to the same end."""
    whole = train(task_on(bleeds), tmp_path)
    (state,) = tmp_path.glob("fold-0-*.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    steps = []
    again = train(task_on(bleeds), tmp_path, progress=lambda done, total: steps.append(done))
    assert steps[0] == 1
    assert in_bytes(again) == in_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "saved"), [(0, [1, 2, 3, 4, 5, 6]), (60, [3, 6])])
def test_states_come_at_their_interval_and_after_each_epoch(bleeds, tmp_path, monkeypatch, minutes, saved):
    """Every so many minutes, and at the end of an epoch whatever the clock says."""
    states = []
    monkeypatch.setattr("ich_seq.fitting.save_checkpoint", lambda root, name, tensors, facts: states.append(facts))
    task = task_on(bleeds, checkpoint_minutes=minutes)
    train(task, tmp_path)
    assert [s["step"] for s in states] == saved


def test_sigterm_leaves_a_state_and_ends_with_143(bleeds, tmp_path):
    """The step in hand is finished and saved though the interval is long; the old handler is back afterwards."""
    task = task_on(bleeds, **EVERYTHING | {"checkpoint_minutes": 60})
    whole = train(task, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(done: int, total: int) -> None:
        if done == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        train(task, tmp_path / "broken", progress=interrupt)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "broken" / "fold-0.json").read_text())["step"] == 4
    assert in_bytes(train(task, tmp_path / "broken")) == in_bytes(whole)


# What is told on the way


@pytest.mark.slow
def test_log_and_progress_tell_how_far_it_has_come(bleeds, tmp_path):
    """A loss every few steps, two an epoch, and every step counted."""
    logged, steps = [], []
    task = task_on(bleeds, epochs=4)
    fitted = train(task, tmp_path, log=lambda *news: logged.append(news), progress=lambda *news: steps.append(news))
    per_epoch = steps_an_epoch(task)
    assert (per_epoch, LOG_EVERY) == (3, 10)
    assert steps == [(i + 1, 12) for i in range(12)]
    assert [s for name, _, s in logged if name == "loss/step"] == [LOG_EVERY]
    for name in ("learnt", "watched"):
        told = [(value, step) for what, value, step in logged if what == f"loss/{name}"]
        assert told == [(row[f"{name}_loss"], row["epoch"] * per_epoch) for row in fitted.curve]


# Slices that cannot be read


@pytest.fixture
def damaged(bleeds, tmp_path) -> tuple[LabelledSlices, set[str]]:
    """The same slices with three cut short: two to learn from and one to watch."""
    folder = tmp_path / "damaged"
    shutil.copytree(bleeds.header(0).path.parent, folder)
    victims = {f"1.2.0.{k}.dcm" for k in (2, 5)} | {"1.2.7.3.dcm"}
    studies = find_studies(folder).studies
    for header in (h for s in studies for h in s.slices if h.file in victims):
        header.path.write_bytes(header.path.read_bytes()[:-900])
    row_of = {(s.uid, h.sop_uid): (i, k) for i, s in enumerate(studies) for k, h in enumerate(s.slices)}
    places = [row_of[bleeds.studies[s].uid, bleeds.header(row).sop_uid] for row, s in enumerate(bleeds.study)]
    study, index = (np.array(column) for column in zip(*places, strict=True))
    return replace(bleeds, studies=studies, study=study, index=index), victims


def test_slices_that_cannot_be_read_are_reported_and_training_goes_on(damaged, tmp_path):
    """Each is named once with its reason, and the losses are of the others."""
    slices, victims = damaged
    learn = np.flatnonzero([int(slices.sop_uid(row).split(".")[2]) < 6 for row in range(len(slices))])
    watch = np.flatnonzero([slices.sop_uid(row).startswith("1.2.7.") for row in range(len(slices))])
    task = task_on(slices, learn=learn, watch=watch, ema=0)
    fitted = train(task, tmp_path / "out")
    assert {u.file for u in fitted.refused} == victims
    assert len(fitted.refused) == len(victims)
    assert {u.reason for u in fitted.refused} == {Reason.CHANGED}
    logits, known, refused = predict_rows(network_of(task, fitted.tensors), task, watch, precision="fp32")
    assert [slices.header(row).file for row in watch[~known]] == [u.file for u in refused] == ["1.2.7.3.dcm"]
    loss = log_loss_of_logits(logits[known], slices.targets[watch][known])
    assert loss == pytest.approx(watched(fitted)[-1], rel=1e-5)


@pytest.mark.slow
def test_refused_slices_outlive_a_kill(damaged, tmp_path):
    """What the first half could not read is still named when the second half alone would not have met it."""
    slices, victims = damaged
    task = task_on(slices, learn=np.arange(len(slices)), watch=np.arange(8, 16), checkpoint_minutes=0, epochs=1)
    whole = train(task, tmp_path / "whole")
    broken, _ = until_done(task, tmp_path / "broken", every=2)
    assert broken.refused == whole.refused
    assert {u.file for u in whole.refused} == victims


class Beside(Group):
    """A group in which another process could not read a slice of its share."""

    def gather(self, part):
        """Let the other one be heard."""
        return [part, {ELSEWHERE}] if isinstance(part, set) else [part]


def test_a_state_names_what_the_other_processes_could_not_read(bleeds, tmp_path):
    """The first process writes for all; what only the others met would be lost with them."""
    Training(task_on(bleeds, group=Beside()), encoder_of()).save(tmp_path)
    taken_up = Training(task_on(bleeds), encoder_of())
    taken_up.restore(tmp_path)
    assert taken_up.refused == {ELSEWHERE}


def test_a_result_names_what_the_other_processes_could_not_read(bleeds):
    """Also what they met after the last state."""
    assert Training(task_on(bleeds, group=Beside()), encoder_of()).result().refused == (ELSEWHERE,)


@dataclass(frozen=True)
class Recorded(Group):
    """One of two processes that are run after each other: each is heard by the later one."""

    parts: list[Any] = field(default_factory=list)

    def gather(self, part):
        """Hear the earlier ones; the first of them hears nothing in the place of the others."""
        self.parts.append(part)
        nothing = np.zeros((0, len(LABELS))), np.zeros(0, bool), set()
        return [self.parts[r] if r < len(self.parts) else nothing for r in range(self.size)]


def test_all_processes_know_which_slices_none_of_them_could_read(damaged):
    """Two that share the rows say of each what one alone says, those of the second among them, and name all refused."""
    slices, victims = damaged
    rows = np.arange(len(slices))
    network = Training(task_on(slices), encoder_of()).network
    torch.nn.init.normal_(network.head.weight)
    logits, known, refused = predict_rows(network, task_on(slices), rows, precision="fp32")
    parts: list[Any] = []
    with suppress(ValueError):  # the first one is alone yet
        predict_rows(network, task_on(slices, group=Recorded(0, 2, parts=parts)), rows, precision="fp32")
    group = Recorded(1, 2, parts=parts)
    together, known_together, refused_together = predict_rows(
        network, task_on(slices, group=group), rows, precision="fp32"
    )
    assert known_together.tolist() == known.tolist()
    assert np.allclose(together, logits, atol=1e-5)
    assert {u.file for u in refused_together} == {u.file for u in refused} == victims
    assert 0 < len(parts[1][2]) <= len(victims)


def test_a_part_without_any_slice_that_can_be_read_is_no_accident(damaged, tmp_path):
    """A batch of nothing gives a loss of nothing, not a division by zero."""
    slices, victims = damaged
    lost = np.flatnonzero([slices.header(row).file in victims for row in range(len(slices))])
    found = np.setdiff1d(np.arange(len(slices)), lost)[:8]
    fitted = train(task_on(slices, learn=lost, watch=found, batch_slices=1, epochs=1), tmp_path / "out")
    assert fitted.curve[0]["learnt_loss"] == 0
    assert np.isfinite(fitted.curve[0]["watched_loss"])
    assert all(t.isfinite().all() for t in fitted.tensors.values())


def test_nothing_readable_to_watch_is_refused(damaged, tmp_path):
    """A loss of no slices is no number; the sentence says what is wrong."""
    slices, victims = damaged
    lost = np.flatnonzero([slices.header(row).file in victims for row in range(len(slices))])
    found = np.setdiff1d(np.arange(len(slices)), lost)
    with pytest.raises(UsageError, match="None of the 3 slices"):
        train(task_on(slices, learn=found, watch=lost, epochs=1), tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_slices", [5, 16])
def test_rows_are_predicted_in_their_order(damaged, workers, batch_slices):
    """Whatever the batches and whoever reads, the row asked for is the row that answers."""
    slices, victims = damaged
    task = task_on(slices, batch_slices=batch_slices, workers=workers)
    network = Training(task, encoder_of()).network
    torch.nn.init.normal_(network.head.weight)
    rows = np.random.default_rng(0).permutation(len(slices))[:37]
    logits, known, refused = predict_rows(network, task, rows, precision="fp32")
    one_by_one = [predict_rows(network, task_on(slices), rows[i : i + 1], precision="fp32") for i in range(len(rows))]
    assert known.tolist() == [bool(k[0]) for _, k, _ in one_by_one]
    assert {u.file for u in refused} == victims & {slices.header(row).file for row in rows}
    assert np.allclose(logits[known], np.concatenate([said for said, k, _ in one_by_one if k[0]]), atol=1e-5)


# Refusals


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loss_that_is_no_number_ends_with_the_remedy(bleeds, tmp_path, epochs):
    """Also where only the last step made it so: no network of NaN is ever returned."""
    learn = np.arange(16) if epochs == 1 else np.arange(48)
    task = task_on(bleeds, learn=learn, learning_rate=1e30, epochs=epochs)
    with np.errstate(all="ignore"), pytest.raises(UsageError, match=r"lower cnn\.learning_rate"):
        train(task, tmp_path)


def test_fewer_slices_than_a_batch_are_refused(bleeds, tmp_path):
    """An epoch without a step would train nothing and say that it was done."""
    with pytest.raises(UsageError, match=r"Fold 0 has fewer slices .* cnn.batch_slices; lower that"):
        train(task_on(bleeds, batch_slices=49), tmp_path)
    assert steps_an_epoch(task_on(bleeds, batch_slices=48)) == 1


@pytest.mark.parametrize(("size", "accumulate"), [(1, 3), (2, 4), (3, 1)])
def test_a_batch_that_cannot_be_shared_out_is_refused(bleeds, size, accumulate):
    """Each process and each part must get as many slices; the sentence names both numbers."""
    task = task_on(bleeds, group=Group(0, size), accumulate=accumulate, batch_slices=20)
    with pytest.raises(UsageError, match=rf"20 is no multiple of {size} processes x cnn.accumulate {accumulate}"):
        steps_an_epoch(task)


@pytest.mark.parametrize(("sampling", "steps"), [("all", 3), ("balanced", 3), ("centre", 1)])
def test_an_epoch_is_as_long_as_its_sampling_says(bleeds, sampling, steps):
    """All slices, as many drawn, or `study_slices` a study; what fills no batch is left for another epoch."""
    assert steps_an_epoch(task_on(bleeds, sampling=sampling, study_slices=4)) == steps


# Small things


def test_the_loss_of_logits_is_the_challenges_and_survives_any_logit():
    """It equals the metric where that does not clip, and stays finite where a probability would be 0 or 1."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 3, (50, 6)), rng.integers(0, 2, (50, 6)).astype(np.uint8)
    assert log_loss_of_logits(logits, targets) == pytest.approx(weighted_log_loss(1 / (1 + np.exp(-logits)), targets))
    wrong = np.where(targets, -1000.0, 1000.0)
    assert log_loss_of_logits(wrong, targets) == pytest.approx(1000)


def test_a_hash_of_numbers_depends_on_each_and_on_their_order():
    """Steps, ranks and tasks that shared a seed would drop out the same units."""
    made = [hash_of(*numbers) for numbers in ((1, 2, 3), (1, 3, 2), (2, 2, 3), (1, 2, 4), (1, 2, 3))]
    assert len(set(made)) == 4
    assert made[0] == made[-1]
