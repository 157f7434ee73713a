"""One sequence model trained on some studies and stopped by others; a state on disk takes it up again exactly.

Nothing random outlives a step, as in `fitting`: the order of an epoch and the dropout of a step each come
from a seed of their own, so a run that was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ich_seq.cells import valid_steps
from ich_seq.checkpoint import (
    by_part,
    deferred_sigterm,
    fitting_state,
    hash_of,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    same_form,
    save_checkpoint,
    whole_number,
)
from ich_seq.config import Rnn, Train
from ich_seq.devices import autocast
from ich_seq.metrics import weighted_log_loss
from ich_seq.model import SequenceModel, sequence_loss
from ich_seq.schedule import rate
from ich_seq.sequences import Batch, LabelledStudy, batches, collate_labelled, shuffled_batches, varied

Floats = NDArray[np.float64]
Weights = dict[str, Tensor]
EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTask:
    """What to train: the studies to learn from and those to stop by, the model, how, and on what.

    All studies carry base logits of a classifier that did not see them. `name` is that of the state's
    files; like tasks of other seeds differ in what is drawn.
    """

    name: str
    learn: Sequence[LabelledStudy]
    stop: Sequence[LabelledStudy]
    rnn: Rnn
    options: Train
    seed: int
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What the base and a model say of the same rows, slices (M, K) or studies (B, K), in logits, and the truth.

    `lengths` (B,) are the rows of each study.
    """

    base: Floats
    refined: Floats
    targets: NDArray[np.uint8]
    lengths: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Beside]) -> Beside:
        """Return the rows of several groups, one after the other."""
        return cls(
            base=np.concatenate([p.base for p in parts]),
            refined=np.concatenate([p.refined for p in parts]),
            targets=np.concatenate([p.targets for p in parts]),
            lengths=np.concatenate([p.lengths for p in parts]),
        )

    @classmethod
    def mean(cls, parts: Sequence[Beside]) -> Beside:
        """Return the mean of what several models of one base say of the same rows."""
        return replace(parts[0], refined=np.mean([p.refined for p in parts], axis=0))


def fit_sequence(task: SequenceTask, root: Path | None) -> SequenceModel:
    """Train one sequence model; return it as it was at its best on the studies to stop by.

    AdamW with linear warm-up and cosine decay, ended `patience` epochs after the best. What is judged and
    returned is a moving average of the weights (`ema`), averaged again over the ends of the last
    `average_epochs`. States go to `root`, and the last one there is taken up; on SIGTERM one is written
    and SystemExit raised. Same data, same seed: same weights.
    """
    training = SequenceTraining(task)
    training.restore(root)
    saved = time.monotonic()
    with deferred_sigterm() as asked_to_stop:
        while not training.over:
            for batch in training.batches_to_come():
                training.learn(batch)
                late = time.monotonic() - saved > 60 * task.options.checkpoint_minutes
                if root is not None and (late or asked_to_stop()):
                    training.save(root)
                    saved = time.monotonic()
                if asked_to_stop():
                    raise SystemExit(128 + signal.SIGTERM)
            training.finish_epoch()
        if root is not None:
            training.save(root)
        if asked_to_stop():
            raise SystemExit(128 + signal.SIGTERM)
    return training.result()


class SequenceTraining:
    """The changing side of a task: weights, their averages, the optimiser, and how far they have come."""

    def __init__(self, task: SequenceTask) -> None:
        self.task = task
        torch.manual_seed(task.seed)
        model = SequenceModel(task.learn[0].features.features.shape[1], task.rnn)
        self.model: SequenceModel = model.to(task.device)
        self.average = ModelEmaV3(self.model, decay=task.options.ema, use_warmup=True)
        self.optimiser = torch.optim.AdamW(model.parameters(), weight_decay=task.options.weight_decay)
        self.steps = math.ceil(len(task.learn) / task.options.batch_studies)
        self.step, self.epoch, self.best_epoch = 0, 0, 0
        self.recent: list[Weights] = []
        self.best, self.best_loss = _copy(self.model), self._watched()

    @property
    def over(self) -> bool:
        """Tell whether all epochs are done or the last `patience` of them brought nothing."""
        return self.epoch >= self.task.options.epochs or self.epoch - self.best_epoch >= self.task.options.patience

    def batches_to_come(self) -> Iterator[Batch]:
        """Yield what is left of this epoch's batches; the studies are read as they come."""
        rng = np.random.default_rng([self.task.seed, self.epoch])
        options = self.task.options
        shown = varied(self.task.learn, rng, thin=options.thin, reverse=options.reverse)
        chosen = shuffled_batches([len(s) for s in shown], options.batch_studies, rng)
        for numbers in chosen[self.step - self.epoch * self.steps :]:
            yield collate_labelled([shown[i] for i in numbers]).to(self.task.device)

    def learn(self, batch: Batch) -> None:
        """Take one step."""
        options = self.task.options
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate * rate(self.step / (self.steps * options.epochs), options.warmup)
        torch.manual_seed(hash_of(self.task.seed, self.step))
        self.model.train()
        self.optimiser.zero_grad()
        _batch_loss(self.model, batch, options, self.task.device).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_norm)
        self.optimiser.step()
        self.step += 1
        self.average.update(self.model, step=self.step)

    def finish_epoch(self) -> None:
        """Judge the average of the weights, remember the best."""
        self.epoch += 1
        self.recent = [*self.recent, _copy(self.average.module)][-self.task.options.average_epochs :]
        candidate = {k: torch.stack([w[k] for w in self.recent]).mean(dim=0) for k in self.recent[0]}
        learning = _copy(self.model)
        self.model.load_state_dict(candidate)
        loss = self._watched()
        self.model.load_state_dict(learning)
        if loss < self.best_loss:
            self.best, self.best_loss, self.best_epoch = candidate, loss, self.epoch

    def _watched(self) -> float:
        """Return the loss of all studies to stop by: each slice counts once, each study once, whatever the batches."""
        slices, studies = logits_beside_base(self.model, self.task.stop, self.task.device)
        of_slices, of_studies = (weighted_log_loss(expit(x.refined), x.targets) for x in (slices, studies))
        return of_slices + self.task.options.study_loss * of_studies

    def save(self, root: Path) -> None:
        """Write the state; of a training that is over only what it ended with."""
        going_on = (
            {"best": self.best}
            if self.over
            else {
                "model": self.model.state_dict(),
                "average": self.average.module.state_dict(),
                "optimiser": optimiser_tensors(self.optimiser),
                "best": self.best,
                **{f"recent-{i}": weights for i, weights in enumerate(self.recent)},
            }
        )
        tensors = {f"{part}/{name}": tensor for part, of in going_on.items() for name, tensor in of.items()}
        facts = {"step": self.step, "epoch": self.epoch, "best_epoch": self.best_epoch, "best_loss": self.best_loss}
        save_checkpoint(root, self.task.name, tensors, facts)

    def restore(self, root: Path | None) -> None:
        """Take up the state that is there, if there is a whole one."""
        found = load_checkpoint(root, self.task.name) if root is not None else None
        if found is None or root is None:
            return
        with fitting_state(root, self.task.name):
            self._take_up(*found)

    def _take_up(self, tensors: Weights, facts: dict[str, Any]) -> None:
        parts, mine = by_part(tensors), self.model.state_dict()
        self.epoch = whole_number(facts["epoch"], self.task.options.epochs)
        self.step = self.epoch * self.steps + whole_number(facts["step"] - self.epoch * self.steps, self.steps)
        self.best, self.best_epoch = same_form(mine, parts.pop("best")), whole_number(facts["best_epoch"], self.epoch)
        self.best_loss = float(facts["best_loss"])
        if not self.over:
            self.model.load_state_dict(same_form(mine, parts.pop("model")))
            self.average.module.load_state_dict(same_form(mine, parts.pop("average")))
            restore_optimiser(self.optimiser, parts.pop("optimiser", {}))
            self.recent = [same_form(mine, parts.pop(f"recent-{i}")) for i in range(len(parts))]
        if parts:
            raise ValueError("tensors that are no part of a state")

    def result(self) -> SequenceModel:
        """Return the model at its best, ready to judge."""
        self.model.load_state_dict(self.best)
        return self.model.eval()


def _copy(model: nn.Module) -> Weights:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _batch_loss(model: SequenceModel, batch: Batch, options: Train, device: torch.device) -> Tensor:
    with autocast(device, options.precision):
        logits = model(batch.features, batch.positions_mm, batch.lengths, given(batch.logits))
        return sequence_loss(logits, given(batch.targets), batch.lengths, study_weight=options.study_loss)


def given(part: Tensor | None) -> Tensor:
    """Return what must be there to learn from: targets or base logits. Raises ValueError if they are not."""
    if part is None:
        raise ValueError("what is learnt from needs targets and base logits")
    return part


@torch.inference_mode()
def logits_beside_base(
    model: SequenceModel, studies: Sequence[LabelledStudy], device: torch.device
) -> tuple[Beside, Beside]:
    """Return what the base, the model and the truth say of the studies' slices, (M, K), and of them, (B, K)."""
    model.eval()
    seen = []
    for batch in batches(studies, EVALUATION_BATCH):
        moved = batch.to(device)
        base, targets = given(moved.logits), given(moved.targets)
        said = model.judge(moved.features, moved.positions_mm, batch.lengths, base)
        real = valid_steps(batch.lengths, base.shape[1], device)
        of_studies = [torch.where(real[..., None], t, -torch.inf).amax(dim=1) for t in (base, targets)]
        seen.append(
            (
                _beside(base[real], said.slices[real], targets[real], batch.lengths),
                _beside(of_studies[0], said.studies, of_studies[1], torch.ones_like(batch.lengths)),
            )
        )
    slices, studies_beside = zip(*seen, strict=True)
    return Beside.joined(slices), Beside.joined(studies_beside)


def _beside(base: Tensor, refined: Tensor, targets: Tensor, lengths: Tensor) -> Beside:
    return Beside(
        base=base.cpu().double().numpy(),
        refined=refined.cpu().double().numpy(),
        targets=targets.cpu().numpy().astype(np.uint8),
        lengths=lengths.numpy(),
    )
