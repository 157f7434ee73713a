"""Published ways to make slices' probabilities of a study agree, written afresh after their descriptions.

Each peer is `fit(train, stop, seed, budget) -> predict`, `predict(studies) -> a Said a study`. All get the same
features, logits and labels, learn on `train`, choose (an epoch, a window, a number of trees) on `stop`, and never
read the labels of what they predict. A study is its likeliest slice unless the peer has a head for studies.

    cnn       the logits as they are
    smooth    logistic regression on a label's logits of the neighbouring slices
    trees     RSNA 2019, 11th place: gradient boosting on the neighbours' probabilities
    first     RSNA 2019, 1st place: a GRU on embeddings, then convolutions and a GRU on probabilities
    second    RSNA 2019, 2nd place: two LSTMs on embeddings and their differences, with skips
    attention EfficientNetV2-M and BiGRU of 2026: LayerNorm, projection, GRU, heads with attention

Learning rates and sizes are the published ones but where a comment says otherwise; the batch is 16 studies for all,
as there are some hundred studies here and were 20,000 there.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ich_seq.calibration import blend, choose_shares
from ich_seq.cells import valid_steps
from ich_seq.labels import LABELS
from ich_seq.metrics import log_losses, weighted_log_loss
from ich_seq.model import weighted_loss, weighted_losses
from ich_seq.schedule import rate
from ich_seq.sequences import THIN_FROM, LabelledStudy

Floats = NDArray[np.float64]
K = len(LABELS)
CPU = torch.device("cpu")


class Said(NamedTuple):
    """Probabilities of a study's slices, (N, K), and of the study, (K,)."""

    slices: Floats
    study: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What every network may spend: at most `epochs`, ended `patience` after the best on the stop studies."""

    epochs: int = 40
    patience: int = 10
    batch_studies: int = 16
    device: torch.device = CPU


Studies = Sequence[LabelledStudy]
Predict = Callable[[Studies], list[Said]]
Fit = Callable[[Studies, Studies, int, Budget], Predict]


def likeliest(slices: Floats) -> Said:
    """Let a study be its likeliest slice, label by label."""
    return Said(slices, slices.max(axis=0))


def logits_of(study: LabelledStudy) -> Floats:
    """Return the CNN's logits, (N, K) float64. Raises ValueError if the features have none."""
    if study.features.logits is None:
        raise ValueError(f"{study.features.study_uid} has no logits")
    return study.features.logits.astype(np.float64)


def targets_of(studies: Studies) -> NDArray[np.uint8]:
    """Return the labels of all slices, (M, K)."""
    return np.concatenate([s.targets for s in studies])


# The CNN alone


def cnn(train: Studies, stop: Studies, seed: int, budget: Budget) -> Predict:
    """Take each slice as the CNN sees it."""
    return lambda studies: [likeliest(expit(logits_of(s))) for s in studies]


# Smoothing: section 2.3's yardstick of how much neighbours tell

REACHES = (1, 2, 3)


def smooth(train: Studies, stop: Studies, seed: int, budget: Budget) -> Predict:
    """Fit for each label a logistic regression on its logits of 2 r + 1 slices, r the best of 1 to 3 on `stop`.

    A label that is all 0 or all 1 in `train` stays as the CNN has it.
    """
    chosen = [_smoother(train, stop, k) for k in range(K)]

    def predict(study: LabelledStudy) -> Said:
        slices = expit(logits_of(study))
        for k, smoother in enumerate(chosen):
            if smoother is not None:
                reach, model = smoother
                slices[:, k] = model.predict_proba(_window(logits_of(study)[:, k], reach))[:, 1]
        return likeliest(slices)

    return lambda studies: [predict(s) for s in studies]


def _smoother(train: Studies, stop: Studies, k: int) -> tuple[int, LogisticRegression] | None:
    y, stop_y = targets_of(train)[:, k], targets_of(stop)[:, k]
    if y.min() == y.max():
        return None
    fitted = [(r, LogisticRegression(max_iter=1000).fit(_windows(train, k, r), y)) for r in REACHES]
    losses = [log_losses(m.predict_proba(_windows(stop, k, r))[:, 1], stop_y).mean() for r, m in fitted]
    return fitted[int(np.argmin(losses))]


def _windows(studies: Studies, k: int, reach: int) -> Floats:
    return np.concatenate([_window(logits_of(s)[:, k], reach) for s in studies])


def _window(values: Floats, reach: int) -> Floats:
    """Return the values from -reach to reach of each slice, (N,) -> (N, 2 reach + 1), those at the ends repeated."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)


# 11th place

TREE_REACH, ROUNDS, TREE_RATE, LEAF = 11, 200, 0.05, 50
"""The reach is published; the rest is for some hundred studies: few and large leaves."""


def trees(train: Studies, stop: Studies, seed: int, budget: Budget) -> Predict:
    """Boost trees for each label on `tree_inputs`, as many rounds as are best on `stop`.

    A label that is all 0 or all 1 in `train` stays as the CNN has it.
    """
    chosen = [_boosted(train, stop, k, seed) for k in range(K)]

    def predict(study: LabelledStudy) -> Said:
        slices = expit(logits_of(study))
        for k, boosted in enumerate(chosen):
            if boosted is not None:
                slices[:, k] = _staged(boosted[1], tree_inputs(study, k), boosted[0])
        return likeliest(slices)

    return lambda studies: [predict(s) for s in studies]


def tree_inputs(study: LabelledStudy, k: int) -> Floats:
    """Return (N, any): the label's probabilities of 11 slices either way, all labels' own and mean ones, rank, N.

    Beyond the ends there is nothing (NaN).
    """
    p = expit(logits_of(study))
    beyond = np.full(TREE_REACH, np.nan)
    near = np.lib.stride_tricks.sliding_window_view(np.concatenate([beyond, p[:, k], beyond]), 2 * TREE_REACH + 1)
    count = len(p)
    rank = np.arange(count) / max(count - 1, 1)
    return np.column_stack([near, p, np.tile(p.mean(axis=0), (count, 1)), rank, np.full(count, count)])


def _boosted(train: Studies, stop: Studies, k: int, seed: int) -> tuple[int, HistGradientBoostingClassifier] | None:
    y, stop_y = targets_of(train)[:, k], targets_of(stop)[:, k]
    if y.min() == y.max():
        return None
    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS, learning_rate=TREE_RATE, min_samples_leaf=LEAF, early_stopping=False, random_state=seed
    ).fit(np.concatenate([tree_inputs(s, k) for s in train]), y)
    staged = model.staged_predict_proba(np.concatenate([tree_inputs(s, k) for s in stop]))
    return int(np.argmin([log_losses(p[:, 1], stop_y).mean() for p in staged])), model


def _staged(model: HistGradientBoostingClassifier, inputs: Floats, stage: int) -> Floats:
    return np.asarray(next(islice(model.staged_predict_proba(inputs), stage, None))[:, 1])


# How networks are trained

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a network learns: its optimiser, the loss of a batch of studies, what it says of studies.

    `scheduled` gives the share of the learning rate when a share of the budget's steps is done; `vary` changes the
    studies of an epoch. The weights of the `keep` best epochs are kept.
    """

    optimiser: torch.optim.Optimizer
    loss: Callable[[Studies], Tensor]
    said: Predict
    scheduled: Callable[[float], float]
    vary: Callable[[LabelledStudy, np.random.Generator], LabelledStudy] = lambda study, rng: study
    keep: int = 1


def learn(net: nn.Module, recipe: Recipe, train: Studies, stop: Studies, seed: int, budget: Budget) -> list[Weights]:
    """Train a network; return its weights after the epochs of least slice loss on `stop`, the best first."""
    rng = np.random.default_rng(seed)
    total = budget.epochs * math.ceil(len(train) / budget.batch_studies)
    schedule = torch.optim.lr_scheduler.LambdaLR(recipe.optimiser, lambda step: recipe.scheduled(step / total))
    best: list[tuple[float, int, Weights]] = []
    for epoch in range(budget.epochs):
        net.train()
        for batch in _shuffled(train, recipe, rng, budget.batch_studies):
            _step(net, recipe, batch)
            schedule.step()
        net.eval()
        loss = weighted_log_loss(np.concatenate([s.slices for s in recipe.said(stop)]), targets_of(stop))
        best = sorted([*best, (loss, epoch, copy.deepcopy(net.state_dict()))], key=lambda b: b[:2])[: recipe.keep]
        if epoch - best[0][1] >= budget.patience:
            break
    return [weights for _, _, weights in best]


def _shuffled(studies: Studies, recipe: Recipe, rng: np.random.Generator, size: int) -> Iterator[list[LabelledStudy]]:
    order = rng.permutation(len(studies))
    for start in range(0, len(order), size):
        yield [recipe.vary(studies[i], rng) for i in order[start : start + size]]


CLIP_NORM = 1.0
"""Nobody published one; without, a network could be lost to one batch and the comparison to chance."""


def _step(net: nn.Module, recipe: Recipe, batch: Studies) -> None:
    recipe.optimiser.zero_grad()
    recipe.loss(batch).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
    recipe.optimiser.step()


def averaged(net: nn.Module, said: Predict, kept: Sequence[Weights]) -> Predict:
    """Return the mean of what a network says with each of these weights."""

    def predict(studies: Studies) -> list[Said]:
        rounds = []
        for weights in kept:
            net.load_state_dict(weights)
            net.eval()
            rounds.append(said(studies))
        return [
            Said(np.mean([s.slices for s in of_study], axis=0), np.mean([s.study for s in of_study], axis=0))
            for of_study in zip(*rounds, strict=True)
        ]

    return predict


def padded(rows: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Pad studies, (N, any) each, with zeros on the right: (B, T, any) float32."""
    return pad_sequence([torch.tensor(r, dtype=torch.float32) for r in rows], batch_first=True).to(device)


def lengths_of(studies: Studies) -> Tensor:
    """Return the numbers of slices, (B,) int64 on the CPU."""
    return torch.tensor([len(s) for s in studies])


def run_packed(rnn: nn.RNNBase, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Run a recurrent network over studies, (B, T, any), that it never sees the padding of."""
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    out: Tensor = pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.shape[1])[0]
    return out


def in_batches(studies: Studies, say: Callable[[Studies], list[Said]], size: int = 64) -> list[Said]:
    """Ask about some studies at a time."""
    return [said for start in range(0, len(studies), size) for said in say(studies[start : start + size])]


# 1st place

CROP = 24
FIRST_RATE = 3e-4


class FirstPlace(nn.Module):
    """The winners' sequence network for one CNN: (B, L, D) features and (B, L, K) probabilities, two logits each.

    Their inputs to the second part are the CNNs' mean probability, each CNN's, the differences between CNNs, and
    the step to the next slice; of one CNN there are its probability and the step.
    """

    def __init__(self, dim: int, *, hidden: int = 96, wide: int = 512, narrow: int = 128, conv: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Dropout1d(0.5), *_squeezed(dim, wide), *_squeezed(wide, narrow))
        self.slice_head = nn.Conv1d(narrow, K, 1)
        self.gru = nn.GRU(narrow, hidden, 2, batch_first=True, bidirectional=True)
        self.gru_head = nn.Linear(2 * hidden, K)
        self.convolved = nn.Sequential(
            *_along(3, 2 * conv, 5, 1), *_along(2 * conv, conv, 3, 2), *_along(conv, conv, 3, 4),
            *_along(conv, conv, 3, 2),
        )  # fmt: skip
        self.conv_head = nn.Conv2d(conv, 1, (3, 1), padding=(1, 0))
        self.second_gru = nn.GRU(conv * K, hidden, 2, batch_first=True, bidirectional=True)
        self.second_head = nn.Linear(2 * hidden, K)

    def forward(self, features: Tensor, probabilities: Tensor, steps_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the first part and of the whole, (B, L, K) each; `steps_mm` is (B, L)."""
        reduced = self.reduce(features.transpose(1, 2))
        first = self.slice_head(reduced).transpose(1, 2) + self.gru_head(self.gru(reduced.transpose(1, 2))[0])
        seen = torch.stack([probabilities, steps_mm[..., None].expand_as(probabilities), first.sigmoid()], dim=1)
        convolved = self.convolved(seen)
        by_slice = convolved.permute(0, 2, 1, 3).flatten(2)
        whole = self.conv_head(convolved).squeeze(1) + self.second_head(self.second_gru(by_slice)[0])
        return first, whole


def _squeezed(dim: int, out: int) -> list[nn.Module]:
    return [nn.Conv1d(dim, out, 1, bias=False), nn.BatchNorm1d(out), nn.ReLU(), nn.Dropout1d(0.5)]


def _along(dim: int, out: int, kernel: int, dilation: int) -> list[nn.Module]:
    """Convolve along the slices only; the labels are a second axis and share weights."""
    padding = (dilation * (kernel // 2), 0)
    return [
        nn.Conv2d(dim, out, (kernel, 1), padding=padding, dilation=(dilation, 1)),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]


def first(train: Studies, stop: Studies, seed: int, budget: Budget, *, scale: float = 1.0) -> Predict:
    """Fit the 1st place's network; `scale` narrows it. A prediction is the mean of a study and the same reversed."""
    torch.manual_seed(seed)
    sizes = {
        name: max(4, int(scale * n)) for name, n in (("hidden", 96), ("wide", 512), ("narrow", 128), ("conv", 256))
    }
    net = FirstPlace(train[0].features.features.shape[1], **sizes).to(budget.device)

    def loss(studies: Studies) -> Tensor:
        """Return the loss of both parts. Theirs counted the padding; it is left out here, which can only help."""
        targets = padded([s.targets for s in studies], budget.device)
        real = valid_steps(lengths_of(studies), targets.shape[1], budget.device)
        return torch.stack([weighted_loss(o[real], targets[real]) for o in net(*_first_inputs(studies, budget))]).sum()

    recipe = Recipe(
        optimiser=torch.optim.Adam(net.parameters(), lr=FIRST_RATE),
        loss=loss,
        said=lambda studies: _first_said(net, studies, budget),
        scheduled=lambda done: 0.1 ** (int(done >= 0.5) + int(done >= 0.75)),  # after 20 and 30 epochs of 40
        vary=_first_varied,
    )
    return averaged(net, recipe.said, learn(net, recipe, train, stop, seed, budget))


def _first_inputs(studies: Studies, budget: Budget) -> tuple[Tensor, Tensor, Tensor]:
    features = padded([s.features.features for s in studies], budget.device)
    probabilities = padded([expit(logits_of(s)) for s in studies], budget.device)
    steps = padded([_steps(s.features.positions_mm) for s in studies], budget.device)
    return features, probabilities, steps


def _steps(positions_mm: Floats) -> Floats:
    """Return the mm to the next slice, (N,), the last one repeated; 0 of a single slice."""
    steps = np.abs(np.diff(positions_mm))
    return np.append(steps, steps[-1] if len(steps) else 0.0)


def _first_varied(study: LabelledStudy, rng: np.random.Generator) -> LabelledStudy:
    """Take every second slice of half of the studies, crop to CROP, turn half of them round."""
    index = np.arange(len(study))
    if len(index) > THIN_FROM and rng.random() < 0.5:
        index = index[rng.integers(2) :: 2]
    start = rng.integers(max(len(index) - CROP, 0) + 1)
    index = index[start : start + CROP]
    return taken(study, index[::-1] if rng.random() < 0.5 else index)


def taken(study: LabelledStudy, index: NDArray[np.int64]) -> LabelledStudy:
    """Return a study of these slices of it, in this order."""
    f = study.features
    part = replace(
        f,
        sop_uids=tuple(f.sop_uids[i] for i in index),
        positions_mm=f.positions_mm[index],
        features=f.features[index],
        logits=logits_of(study)[index].astype(np.float32),
    )
    return LabelledStudy(features=part, targets=study.targets[index])


@torch.inference_mode()
def _first_said(net: FirstPlace, studies: Studies, budget: Budget) -> list[Said]:
    """Predict studies of one length together, as the network would read padding."""
    by_length = defaultdict(list)
    for i, study in enumerate(studies):
        by_length[len(study)].append(i)
    said: dict[int, Said] = {}
    for group in by_length.values():
        forward = [studies[i] for i in group]
        back = [taken(s, np.arange(len(s))[::-1]) for s in forward]
        ahead, behind = (
            net(*_first_inputs(way, budget))[1].sigmoid().double().cpu().numpy() for way in (forward, back)
        )
        said |= {i: likeliest((a + b[::-1]) / 2) for i, a, b in zip(group, ahead, behind, strict=True)}
    return [said[i] for i in range(len(studies))]


# 2nd place

SECOND_UNITS = 128
"""Theirs has 2048 units a direction, 268 million parameters, for embeddings of 2048 numbers."""

SECOND_RATE = 1e-3
"""Theirs is 1e-5, for the wide network and 20,000 studies; this is what a narrow one needs to learn in 40 epochs."""

SECOND_DECAY = 0.95
SECOND_BAG = 4
"""They averaged the last 4, later 12, epochs; here the best 4 on the stop studies."""


class SecondPlace(nn.Module):
    """Two LSTMs, a skip over each and one of the embeddings, summed: (B, T, 3 D) -> logits (B, T, K).

    The skip of the embeddings is the embedding twice where the width allows, as theirs; else a projection.
    """

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.dim, width = dim, 2 * units
        self.lstm1 = nn.LSTM(3 * dim, units, batch_first=True, bidirectional=True)
        self.lstm2 = nn.LSTM(width, units, batch_first=True, bidirectional=True)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.skip = nn.Identity() if units == dim else nn.Linear(2 * dim, width)
        self.head = nn.Linear(width, K)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits of packed studies."""
        h1 = run_packed(self.lstm1, inputs, lengths)
        h2 = run_packed(self.lstm2, h1, lengths)
        own = inputs[..., : self.dim]
        skipped = self.skip(torch.cat([own, own], dim=-1))
        logits: Tensor = self.head(h1 + h2 + self.linear1(h1).relu() + self.linear2(h2).relu() + skipped)
        return logits


def deltas(features: NDArray[np.float16]) -> NDArray[np.float32]:
    """Put beside embeddings what sets them off from the slice below and above, 0 at the ends: (N, D) -> (N, 3 D)."""
    e = features.astype(np.float32)
    step = np.diff(e, axis=0)
    none = np.zeros_like(e[:1])
    return np.concatenate([e, np.concatenate([none, step]), np.concatenate([-step, none])], axis=1)


def second(train: Studies, stop: Studies, seed: int, budget: Budget, *, units: int = SECOND_UNITS) -> Predict:
    """Fit the 2nd place's network."""
    torch.manual_seed(seed)
    net = SecondPlace(train[0].features.features.shape[1], units).to(budget.device)

    def logits(studies: Studies) -> Tensor:
        inputs = padded([deltas(s.features.features) for s in studies], budget.device)
        return net(inputs, lengths_of(studies))  # type: ignore[no-any-return]

    def loss(studies: Studies) -> Tensor:
        said, targets = logits(studies), padded([s.targets for s in studies], budget.device)
        real = valid_steps(lengths_of(studies), targets.shape[1], budget.device)
        return weighted_loss(said[real], targets[real])

    @torch.inference_mode()
    def say(studies: Studies) -> list[Said]:
        said = logits(studies).sigmoid().double().cpu().numpy()
        return [likeliest(rows[: len(s)]) for rows, s in zip(said, studies, strict=True)]

    recipe = Recipe(
        optimiser=torch.optim.Adam(net.parameters(), lr=SECOND_RATE),
        loss=loss,
        said=lambda studies: in_batches(studies, say),
        scheduled=lambda done: SECOND_DECAY ** int(done * budget.epochs),
        keep=SECOND_BAG,
    )
    return averaged(net, recipe.said, learn(net, recipe, train, stop, seed, budget))


# LayerNorm, projection, GRU, attention

ATTENTION_RATE, ATTENTION_DECAY, ATTENTION_WARMUP = 3e-4, 1e-2, 0.05
SERIES_SHARE, INSTANCE_SHARE = 0.25, 0.1
"""What the loss of the study head, and of the one that sees slices before the GRU, count beside that of slices."""


class ClassAttention(nn.Module):
    """A logit a label of the slices that the label attends to: (B, T, W) -> (B, K)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, K))
        self.weight = nn.Parameter(torch.randn(K, width) / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(K))

    def forward(self, rows: Tensor, real: Tensor) -> Tensor:
        """Return the logits; `real` (B, T) is False on padding."""
        share = torch.where(real[..., None], self.attend(rows), -torch.inf).softmax(dim=1)
        attended = torch.einsum("btk,btw->bkw", share, torch.where(real[..., None], rows, 0))
        return (attended * self.weight).sum(dim=-1) + self.bias


class AttentionNet(nn.Module):
    """Projected embeddings and the relative index through a GRU; heads for slices, the study, and before the GRU."""

    def __init__(self, dim: int, *, width: int = 512, hidden: int = 256, inner: int = 128) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width), nn.GELU(), nn.LayerNorm(width))
        self.dropout = nn.Dropout(0.05)
        self.gru = nn.GRU(width + 1, hidden, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.slice_head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * hidden, K))
        self.series = ClassAttention(2 * hidden, inner)
        self.instance = ClassAttention(width, inner)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of slices (B, T, K), of studies (B, K), and of studies before the GRU (B, K)."""
        projected = self.dropout(self._disturbed(self.project(features)))
        last = (lengths - 1).clamp_min(1).to(features.device)[:, None]
        index = (torch.arange(features.shape[1], device=features.device) / last)[..., None]
        context = run_packed(self.gru, torch.cat([projected, index], dim=-1), lengths)
        real = valid_steps(lengths, features.shape[1], features.device)
        return self.slice_head(context), self.series(context, real), self.instance(projected, real)

    def _disturbed(self, rows: Tensor) -> Tensor:
        """In training add noise of 0.02 and drop 2 % of the slices whole."""
        if not self.training:
            return rows
        kept = torch.rand(rows.shape[:2], device=rows.device) >= 0.02
        return (rows + 0.02 * torch.randn_like(rows)) * kept[..., None]


def attention(train: Studies, stop: Studies, seed: int, budget: Budget, *, scale: float = 1.0) -> Predict:
    """Fit the network; its slices are blended with the CNN's logits, label by label, as is best on `stop`."""
    torch.manual_seed(seed)
    sizes = {name: max(4, int(scale * n)) for name, n in (("width", 512), ("hidden", 256), ("inner", 128))}
    net = AttentionNet(train[0].features.features.shape[1], **sizes).to(budget.device)

    @torch.inference_mode()
    def raw(studies: Studies) -> list[Said]:
        lengths = lengths_of(studies)
        slices, series, _ = net(padded([s.features.features for s in studies], budget.device), lengths)
        rows, whole = slices.double().cpu().numpy(), series.double().cpu().numpy()
        return [Said(expit(r[:n]), expit(w)) for r, w, n in zip(rows, whole, lengths.tolist(), strict=True)]

    optimiser = torch.optim.AdamW(net.parameters(), lr=ATTENTION_RATE, weight_decay=ATTENTION_DECAY)
    recipe = Recipe(
        optimiser=optimiser,
        loss=lambda studies: _attention_loss(net, studies, budget),
        said=lambda studies: in_batches(studies, raw),
        scheduled=lambda done: rate(done, ATTENTION_WARMUP),
    )
    fitted = averaged(net, recipe.said, learn(net, recipe, train, stop, seed, budget))
    base = np.concatenate([logits_of(s) for s in stop])
    refined = np.concatenate([log_odds_of(s.slices) for s in fitted(stop)])
    share = choose_shares(base, refined, targets_of(stop))
    return lambda studies: [
        Said(expit(blend(logits_of(s), log_odds_of(said.slices), share)), said.study)
        for s, said in zip(studies, fitted(studies), strict=True)
    ]


def _attention_loss(net: AttentionNet, studies: Studies, budget: Budget) -> Tensor:
    """Return the loss: of slices meaned within a study first, then of both heads of studies."""
    lengths = lengths_of(studies)
    slices, series, instance = net(padded([s.features.features for s in studies], budget.device), lengths)
    targets = padded([s.targets for s in studies], budget.device)
    of_study = targets.amax(dim=1)
    real = valid_steps(lengths, targets.shape[1], budget.device)
    losses = torch.where(real, weighted_losses(slices.flatten(0, 1), targets.flatten(0, 1)).view(real.shape), 0)
    of_slices = (losses.sum(dim=1) / lengths.to(losses.device)).mean()
    return (
        of_slices + SERIES_SHARE * weighted_loss(series, of_study) + INSTANCE_SHARE * weighted_loss(instance, of_study)
    )


def log_odds_of(probabilities: Floats) -> Floats:
    """Return logits, kept within what float64 holds apart from 0 and 1."""
    p = probabilities.clip(1e-12, 1 - 1e-12)
    return np.asarray(np.log(p / (1 - p)))


PEERS: dict[str, Fit] = {
    "cnn": cnn,
    "smooth": smooth,
    "trees": trees,
    "first": first,
    "second": second,
    "attention": attention,
}
