"""One network trained on some slices and watched on others; a state on disk takes it up again exactly.

Nothing random outlives a step: the order of an epoch, the variation of a slice and the network's own
dropout each come from a seed of their own. So a state is weights and numbers, and a run that was
killed goes on to the very bytes of one that was not.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from timm.layers.norm_act import convert_sync_batchnorm
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # timm marks no exports
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ich_seq import UsageError
from ich_seq.baselines import log_odds
from ich_seq.checkpoint import (
    Deferred,
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
from ich_seq.config import Augment, Cnn
from ich_seq.devices import autocast
from ich_seq.distributed import Group
from ich_seq.encoder import EncoderSpec, SliceEncoder, SliceNetwork, encoder_tensors, new_head
from ich_seq.labels import LABELS
from ich_seq.metrics import log_loss_of_logits
from ich_seq.model import weighted_losses
from ich_seq.readers import read_ahead
from ich_seq.reasons import Unused, unused_from_json
from ich_seq.samples import (
    AS_IT_IS,
    Key,
    LabelledSlices,
    Sample,
    SliceDataset,
    collate_samples,
    draw_chances,
    epoch_rows,
    prior_shift,
    share,
)
from ich_seq.schedule import rate

Rows = NDArray[np.int64]
Log = Callable[[str, float, int], None]
"""Called with the name of a quantity, its value and the step, as TensorBoard's add_scalar is."""

LOG_EVERY = 10
"""Steps between two losses in the log."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to train: the rows of `slices` to learn from and to watch, how, and on what.

    `natural` are those of the former whose labels are as frequent as in patients. `fold` numbers the task among its
    like and moves its seeds. The watched rows never move a weight; with `options.patience` they decide when to stop.
    """

    fold: int
    slices: LabelledSlices
    spec: EncoderSpec
    learn: Rows
    natural: Rows
    watch: Rows
    options: Cnn
    augment: Augment
    device: torch.device
    group: Group
    workers: int

    @property
    def final(self) -> bool:
        """Tell whether the network learns from all rows, so that there are none to watch."""
        return not len(self.watch)

    @property
    def dataset(self) -> SliceDataset:
        """Return the slices as the network is to see them."""
        return SliceDataset(self.slices, self.spec, self.augment, self.seed)

    @cached_property
    def chances(self) -> NDArray[np.float64]:
        """Return how often an epoch shows each row learnt from, relative to the others."""
        return draw_chances(self.slices, self.learn, self.options)

    @property
    def name(self) -> str:
        """Return the name of this task's files."""
        return f"fold-{self.fold}"

    @property
    def seed(self) -> int:
        """Return a seed that no other task of the run has."""
        return self.options.seed * 1000 + self.fold


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A trained encoder's tensors, the curve (a row an epoch), the epoch they are of, and slices not read."""

    tensors: dict[str, Tensor]
    curve: list[dict[str, float]]
    epoch: int
    refused: tuple[Unused, ...]


def fit(task: Task, encoder: SliceEncoder, root: Path, *, log: Log, progress: Callable[[int, int], None]) -> Fitted:
    """Train `encoder` and a new head on the task; states go to `root`, and the last one there is taken up.

    AdamW with a rate of its own for each depth of the network (layer decay), warm-up and cosine; the head
    alone for `head_epochs`; a moving average of the weights is what is watched and returned. On SIGTERM
    a last state is written and SystemExit raised. Raises UsageError if there are fewer slices than a
    batch, or if the loss is no number any more.
    """
    training = Training(task, encoder)
    training.restore(root)
    saved = time.monotonic()
    with deferred_sigterm() as stop, closing(_batches(task, training.steps, training.step)) as batches:
        _watch(training, stop, log)  # if that is where the last run was ended
        for parts in batches:
            if training.over:
                break
            training.learn(parts, log)
            progress(training.step, training.steps * task.options.epochs)
            late = time.monotonic() - saved > 60 * task.options.checkpoint_minutes
            # all at the same step, or the others would wait forever
            stopping, late = (task.group.mean(asked, task.device) > 0 for asked in (stop(), late))
            if training.epochs_to_watch or late or stopping:
                training.save(root)
                saved = time.monotonic()
            if stopping:
                raise SystemExit(128 + signal.SIGTERM)
            _watch(training, stop, log)
    return training.result()


def _watch(training: Training, stop: Deferred, log: Log) -> None:
    """End an epoch if one is to be ended: on large folds that takes minutes, for which no SIGTERM waits."""
    if training.epochs_to_watch:
        with stop.at_once():
            training.finish_epoch(log)


class Training:
    """The changing side of a task: networks, optimiser, and how far they have come."""

    def __init__(self, task: Task, encoder: SliceEncoder) -> None:
        self.task, self.device = task, task.device
        targets = task.slices.targets
        shift = prior_shift(targets[task.learn], task.chances, targets[task.natural])
        self.shift = torch.from_numpy(shift).to(self.device)
        self.steps = steps_an_epoch(task)
        torch.manual_seed(task.seed)
        network = SliceNetwork(encoder, _head_at_prevalence(encoder.spec.dim, task), task.options.dropout)
        network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if task.group.size > 1 and self.device.type == "cuda":
            network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network: SliceNetwork = network.requires_grad_(True)  # the optimiser takes what learns
        self.average = ModelEmaV3(network, decay=task.options.ema, use_warmup=True)
        self.optimiser, self.rates = _optimiser(network, task.options)
        self.step, self.loss_sum = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0
        self.refused: set[Unused] = set()
        self._wrapped: tuple[bool, nn.Module] | None = None

    @property
    def over(self) -> bool:
        """Tell whether the watched loss has not improved for `patience` epochs."""
        patience = self.task.options.patience
        return patience > 0 and len(self.curve) - self.best_epoch >= patience

    @property
    def epochs_to_watch(self) -> int:
        """Return how many epochs were learnt and not yet watched: 1 or 0."""
        return self.step // self.steps - len(self.curve)

    @property
    def done_with_head(self) -> int:
        """Return the step from which on the whole network learns."""
        return round(self.task.options.head_epochs * self.steps)

    def learn(self, parts: list[Sample], log: Log) -> None:
        """Take one step on a batch, given in parts whose gradients add up."""
        options = self.task.options
        whole = self.step >= self.done_with_head
        self._set_rates()
        model = self._model(whole)
        torch.manual_seed(hash_of(self.task.seed, self.step, self.task.group.rank))
        mine = sum(self._backward(model, part, 1 / len(parts)) for part in parts)
        loss = self.task.group.mean(mine, self.device)
        _finite(loss, self.step)
        nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.network, step=self.step)
        self.loss_sum += loss
        if self.step % LOG_EVERY == 0:
            log("loss/step", loss, self.step)

    def _model(self, whole: bool) -> nn.Module:
        """Return the network in training mode, all of it learning or its head alone, in its wrapping for a group."""
        if self._wrapped is None or self._wrapped[0] != whole:
            self.network.encoder.requires_grad_(whole)
            model: nn.Module = self.network
            if self.task.group.size > 1:
                ids = [self.device] if self.device.type == "cuda" else None
                model = DistributedDataParallel(model, device_ids=ids)
            self._wrapped = whole, model
        self._wrapped[1].train()
        return self._wrapped[1]

    def _set_rates(self) -> None:
        """Set each group's learning rate; the encoder's own warm-up begins when it joins the head."""
        total, warmup, before = self.steps * self.task.options.epochs, self.task.options.warmup, self.done_with_head
        of_head = rate(self.step / total, warmup)
        of_encoder = rate((self.step - before) / max(1, total - before), warmup) if self.step >= before else 0.0
        for group, (full, in_head) in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = full * (of_head if in_head else of_encoder)

    def _backward(self, model: nn.Module, part: Sample, weight: float) -> float:
        """Add a part's gradients, weighted; return its weighted loss. Slices that could not be read have no part."""
        self.refused.update(part.refused)
        shown, targets, known = (t.to(self.device, non_blocking=True) for t in part[:3])
        with autocast(self.device, self.task.options.precision):
            logits = model(shown)
        loss = weight * (weighted_losses(logits + self.shift, targets) * known).sum() / known.sum().clamp_min(1)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def finish_epoch(self, log: Log) -> None:
        """Watch the average of the weights, add a row to the curve, remember the best."""
        task = self.task
        learnt = self.loss_sum / self.steps
        task.group.share(self.average)
        watched = {} if task.final else {"watched_loss": self._watched_loss()}
        self.curve.append({"epoch": len(self.curve) + 1, "learnt_loss": learnt} | watched)
        self.loss_sum = 0.0
        log("loss/learnt", learnt, self.step)
        for loss in watched.values():
            log("loss/watched", loss, self.step)
        if not task.options.patience:
            self.best_epoch = len(self.curve)
        elif not self.best_epoch or watched["watched_loss"] < self.curve[self.best_epoch - 1]["watched_loss"]:
            self.best_epoch = len(self.curve)
            self.best = {k: v.detach().cpu().clone() for k, v in self.average.module.state_dict().items()}

    def _watched_loss(self) -> float:
        task = self.task
        logits, known, refused = predict_rows(self.average.module, task, task.watch, precision=task.options.precision)
        self.refused |= refused
        if not known.any():
            raise UsageError(f"None of the {len(known)} slices to watch in {task.name} could be read; mend them.")
        return _finite(log_loss_of_logits(logits[known], task.slices.targets[task.watch][known]), self.step)

    def save(self, root: Path) -> None:
        """Write the state; in a group the first process does, for all."""
        self.refused = set().union(*self.task.group.gather(self.refused))
        if not self.task.group.writes:
            return
        tensors = {
            f"{part}/{name}": tensor
            for part, of in (
                ("network", self.network.state_dict()),
                ("average", self.average.module.state_dict()),
                ("optimiser", optimiser_tensors(self.optimiser)),
                ("best", self.best),
            )
            for name, tensor in of.items()
        }
        facts = {
            "step": self.step,
            "loss_sum": self.loss_sum,
            "curve": self.curve,
            "best_epoch": self.best_epoch,
            "refused": [asdict(u) for u in sorted(self.refused, key=lambda u: u.file)],
        }
        save_checkpoint(root, self.task.name, tensors, facts)

    def restore(self, root: Path) -> None:
        """Take up the state that is there, if there is a whole one."""
        found = load_checkpoint(root, self.task.name)
        if found is None:
            return
        with fitting_state(root, self.task.name):
            self._take_up(*found)

    def _take_up(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        parts, mine = by_part(tensors), self.network.state_dict()
        self.network.load_state_dict(same_form(mine, parts.pop("network")))
        self.average.module.load_state_dict(same_form(mine, parts.pop("average")))
        restore_optimiser(self.optimiser, parts.pop("optimiser", {}))
        self.best = same_form(mine, parts.pop("best")) if "best" in parts else {}
        self.step = whole_number(facts["step"], self.steps * self.task.options.epochs)
        self.loss_sum = float(facts["loss_sum"])
        TypeAdapter(list[dict[str, float]]).validate_python(facts["curve"], strict=True)
        self.curve = facts["curve"]  # as it was: what is validated has 1.0 for an epoch, and so other bytes
        if self.epochs_to_watch not in ((0,) if self.step % self.steps else (0, 1)):
            raise ValueError("a curve of other epochs")
        if parts:
            raise ValueError("tensors that are no part of a state")
        self.best_epoch = whole_number(facts["best_epoch"], len(self.curve))
        self.refused = {unused_from_json(u) for u in facts["refused"]}

    def result(self) -> Fitted:
        """Return what was learnt: the average of the weights, at its best epoch if the training was to stop early."""
        if self.best:
            self.average.module.load_state_dict(self.best)
        trained = self.average.module
        trained.encoder.head = trained.head
        everywhere = set().union(*self.task.group.gather(self.refused))
        return Fitted(
            tensors={k: v.detach().cpu().contiguous() for k, v in encoder_tensors(trained.encoder).items()},
            curve=self.curve,
            epoch=self.best_epoch,
            refused=tuple(sorted(everywhere, key=lambda u: u.file)),
        )


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise UsageError(f"The loss is {loss} at step {step}; lower cnn.learning_rate or take cnn.precision fp32.")
    return loss


def _head_at_prevalence(dim: int, task: Task) -> nn.Linear:
    """Return a head that says each label's prevalence until it is trained."""
    head = new_head(dim)
    targets = task.slices.targets[task.natural]
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(log_odds(targets.sum(axis=0, dtype=float), len(targets))))
    return head


def _optimiser(network: SliceNetwork, options: Cnn) -> tuple[torch.optim.AdamW, list[tuple[float, bool]]]:
    """Return AdamW and, for each of its groups, the full learning rate and whether it is the head's."""
    groups = [
        (g["params"], g["weight_decay"], options.learning_rate * g["lr_scale"], False)
        for g in param_groups_layer_decay(
            network.encoder.network, weight_decay=options.weight_decay, layer_decay=options.layer_decay
        )
    ]
    groups.append((list(network.head.parameters()), options.weight_decay, options.learning_rate, True))
    optimiser = torch.optim.AdamW([{"params": p, "weight_decay": decay, "lr": lr} for p, decay, lr, _ in groups])
    return optimiser, [(lr, in_head) for _, _, lr, in_head in groups]


def steps_an_epoch(task: Task) -> int:
    """Return the steps of an epoch. Raises UsageError if there is no whole batch, or it cannot be shared out."""
    options, parts = task.options, task.group.size * task.options.accumulate
    if options.batch_slices % parts:
        raise UsageError(
            f"cnn.batch_slices {options.batch_slices} is no multiple of {task.group.size} processes x "
            f"cnn.accumulate {options.accumulate}; choose one that is."
        )
    steps = len(_epoch(task, 0)) // options.batch_slices
    if not steps:
        raise UsageError(f"Fold {task.fold} has fewer slices to learn from than cnn.batch_slices; lower that.")
    return steps


def _epoch(task: Task, epoch: int) -> Rows:
    rng = np.random.default_rng([task.seed, epoch])
    return epoch_rows(task.slices, task.learn, task.chances, task.options, rng)


def _batches(task: Task, steps: int, done: int) -> Generator[list[Sample], None, None]:
    """Yield this process's share of every batch that is still to come, in `accumulate` parts."""
    with closing(_samples(task, _keys(task, steps, done))) as samples:
        while parts := [part for _, part in zip(range(task.options.accumulate), samples, strict=False)]:
            yield parts


def _keys(task: Task, steps: int, done: int) -> Iterator[list[Key]]:
    options, group = task.options, task.group
    for epoch in range(done // steps, options.epochs):
        keys = [(epoch, place, int(row)) for place, row in enumerate(_epoch(task, epoch))]
        for step in range(done % steps if epoch == done // steps else 0, steps):
            batch = keys[step * options.batch_slices : (step + 1) * options.batch_slices]
            for part in range(options.accumulate):
                yield share(batch, part * group.size + group.rank, options.accumulate * group.size)


def _samples(task: Task, batches: Iterator[list[Key]]) -> Generator[Sample, None, None]:
    """Read batches ahead, in their order: on a CPU by threads, for a GPU by processes.

    A GPU asks for more slices than threads give that share Python's lock with what feeds it. The forked
    readers run on one thread each and touch neither GPU nor OpenVINO, which works on CPUs alone.
    """
    dataset = task.dataset
    if task.device.type == "cuda":
        yield from _loader(dataset, batches, task.workers)
    else:
        yield from read_ahead(lambda keys: collate_samples([dataset[key] for key in keys]), batches, task.workers)


def _loader(dataset: SliceDataset, batches: Iterator[list[Key]], workers: int) -> DataLoader[Sample]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_samples,
        worker_init_fn=_outlive_sigterm,
        multiprocessing_context="fork" if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _outlive_sigterm(worker: int) -> None:
    """Let a reading process finish the step for which its parent, which gets the signal too, still needs it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@torch.inference_mode()
def predict_rows(
    network: nn.Module, task: Task, rows: Rows, *, precision: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_], set[Unused]]:
    """Return the logits of rows as they are, (M, K), which of them could be read, (M,), and the slices that could not.

    In a group each process takes its share and all get the whole.
    """
    network.eval()
    mine = share([(AS_IT_IS, 0, int(row)) for row in rows], task.group.rank, task.group.size)
    size = task.options.batch_slices
    logits, known = [np.zeros((0, len(LABELS)))], [np.zeros(0, bool)]
    refused: set[Unused] = set()
    keys = (mine[i : i + size] for i in range(0, len(mine), size))
    with closing(_samples(task, keys)) as samples:
        for sample in samples:
            with autocast(task.device, precision):
                said = network(sample.shown.to(task.device, non_blocking=True))
            logits.append(said.cpu().double().numpy())
            known.append(sample.known.numpy())
            refused.update(sample.refused)
    everyone = task.group.gather((np.concatenate(logits), np.concatenate(known), refused))
    all_logits, all_known = np.zeros((len(rows), len(LABELS))), np.zeros(len(rows), bool)
    for rank, (part, part_known, _) in enumerate(everyone):
        all_logits[rank :: task.group.size], all_known[rank :: task.group.size] = part, part_known
    return all_logits, all_known, set().union(*(r for _, _, r in everyone))
