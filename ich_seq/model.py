"""The sequence model: what a slice classifier says, corrected by a cell that has read the study both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gelu

from ich_seq.cells import build_cell, valid_steps
from ich_seq.config import Rnn
from ich_seq.labels import LABELS
from ich_seq.metrics import LOSS_WEIGHTS

POSITION_FEATURES = 3
STEP_SCALE_MM = 5.0
"""The usual slice step of a head CT; steps are given to the network in units of it."""

BASE_SCALE = 0.5
"""Brings the base logits, of which most lie between -6 and 2, nearer to the unit scale of the other inputs."""


class Logits(NamedTuple):
    """What the model says: `slices` (B, T, K), of which rows past a study's length mean nothing; `studies` (B, K)."""

    slices: Tensor
    studies: Tensor


class Judge(Protocol):
    """What says more of a study than its slices by themselves do: ours, or a model of others."""

    most_sure: float
    """The largest logit, to either side, of what the slices by themselves say of a study."""

    def judge(self, features: Tensor, positions_mm: Tensor, lengths: Tensor, base_logits: Tensor) -> Logits:
        """Return the logits of B studies: see `SequenceModel.forward`."""


class SequenceModel(nn.Module):
    """What a classifier of single slices says, corrected by a cell that has read the neighbours.

    The cell adds to the classifier's logits and starts from adding nothing. A study's logits are the same
    alone, in any batch, in any order and whatever the padding holds.
    """

    most_sure = torch.inf

    def __init__(self, dim: int, config: Rnn) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        labels, seen = len(LABELS), config.projection * (3 if config.deltas else 1)
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, config.projection)
        self.project_norm = nn.LayerNorm(config.projection)
        self.dropout = nn.Dropout(config.dropout)
        self.cell = build_cell(seen + labels + POSITION_FEATURES * config.position, config)
        width = self.cell.width + config.projection
        self.correction = _silent_linear(width, labels)
        self.smoothing = _silent_linear(2 * config.smoothing * labels, labels) if config.smoothing else None
        self.attention = _silent_linear(width, labels) if config.study_head == "attention" else None
        self.study_bias = nn.Parameter(torch.zeros(labels))

    @property
    def silent(self) -> bool:
        """Tell whether it adds nothing to the classifier's logits, as at the start."""
        heads = [self.correction, *([] if self.smoothing is None else [self.smoothing])]
        return not any(p.count_nonzero() for head in heads for p in head.parameters())

    def forward(self, features: Tensor, positions_mm: Tensor, lengths: Tensor, base_logits: Tensor) -> Logits:
        """Return the logits of B studies: features (B, T, D), positions_mm (B, T), lengths (B,) on the CPU.

        `base_logits` (B, T, K) are what the slice classifier says; in training, one that did not see the
        study. Refuses (ValueError) lengths of another number, below 1 or beyond T.
        """
        if not torch.compiler.is_exporting():  # a graph has no values to look at
            check_lengths(lengths, features)
        real = valid_steps(lengths, features.shape[1], features.device)[..., None]
        base = torch.where(real, base_logits, 0)
        projected = self._project(torch.where(real, features, 0))
        context = self.cell(self._describe(projected, base, positions_mm, lengths, real), lengths)
        seen = self.dropout(torch.cat([context, projected], dim=-1))
        slices = base + self.correction(seen)
        if self.smoothing is not None:
            slices = slices + self.smoothing(beside(base, lengths, self.config.smoothing))
        return Logits(slices, self._of_study(slices, seen, real))

    def _project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project_norm(self.dropout(gelu(self.project(self.dropout(self.norm(features))))))
        if self.training and self.config.noise:
            projected = projected + self.config.noise * torch.randn_like(projected)
        return projected

    def _describe(self, projected: Tensor, base: Tensor, positions_mm: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        """Return what the cell is given of each slice; in training some slices are blank to the cell."""
        given = torch.cat([projected, base * BASE_SCALE], dim=-1)
        if self.training and self.config.slice_dropout:
            given = given * (torch.rand_like(given[..., :1]) >= self.config.slice_dropout)
        inputs = [given]
        if self.config.deltas:
            inputs += differences(given[..., : self.config.projection], real)
        if self.config.position:
            inputs.append(describe_positions(positions_mm, lengths).to(given.dtype))
        return torch.cat(inputs, dim=-1)

    def _of_study(self, slices: Tensor, seen: Tensor, real: Tensor) -> Tensor:
        """Return the logits of the studies, (B, K): of slices, weighed by attention or the largest."""
        if self.attention is None:
            return torch.where(real, slices, -torch.inf).amax(dim=1) + self.study_bias
        share = torch.where(real, slices + self.attention(seen), -torch.inf).softmax(dim=1)
        return (share * slices).sum(dim=1) + self.study_bias

    def judge(self, features: Tensor, positions_mm: Tensor, lengths: Tensor, base_logits: Tensor) -> Logits:
        """Return what is said of studies in use: `forward`, or the mean with the study read head and feet exchanged."""
        said: Logits = self(features, positions_mm, lengths, base_logits)
        if not self.config.both_ways:
            return said
        turned = [turn_round(x, lengths) for x in (features, -positions_mm[..., None], base_logits)]
        back: Logits = self(turned[0], turned[1][..., 0], lengths, turned[2])
        return Logits((said.slices + turn_round(back.slices, lengths)) / 2, (said.studies + back.studies) / 2)


def check_lengths(lengths: Tensor, features: Tensor) -> None:
    """Raise ValueError for lengths (B,) that do not fit features (B, T, D)."""
    if lengths.shape != features.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > features.shape[1]:
        raise ValueError(f"lengths {lengths.tolist()} do not fit features of shape {tuple(features.shape)}")


def beside(base: Tensor, lengths: Tensor, reach: int) -> Tensor:
    """Return what the slices up to `reach` away say more than a slice itself, (B, T, K) -> (B, T, 2 x reach x K).

    A study's first and last slice stand in for those beyond its ends.
    """
    step = torch.arange(base.shape[1], device=base.device)
    last = (lengths.to(base.device) - 1)[:, None]
    offsets = [o for o in range(-reach, reach + 1) if o]
    near = [torch.minimum((step + o).clamp_min(0).expand(len(base), -1), last) for o in offsets]
    return torch.cat([base.gather(1, i[..., None].expand_as(base)) - base for i in near], dim=-1)


def differences(rows: Tensor, real: Tensor) -> list[Tensor]:
    """Return each row less the one before and less the one after, (B, T, W) twice; 0 at a study's ends and beyond.

    RSNA 2019, 2nd place.
    """
    steps = rows.diff(dim=1)
    both = real[:, 1:] & real[:, :-1]
    steps = torch.where(both, steps, 0)
    return [nn.functional.pad(steps, (0, 0, 1, 0)), nn.functional.pad(-steps, (0, 0, 0, 1))]


def turn_round(rows: Tensor, lengths: Tensor) -> Tensor:
    """Return the rows of each study in reverse order, (B, T, W); padding stays where it is."""
    step = torch.arange(rows.shape[1], device=rows.device)
    count = lengths.to(rows.device)[:, None]
    index = torch.where(step < count, count - 1 - step, step)
    return rows.gather(1, index[..., None].expand_as(rows))


@torch.inference_mode()
def ensemble_logits(
    models: Sequence[Judge], features: Tensor, positions_mm: Tensor, lengths: Tensor, base: Tensor
) -> tuple[Logits, Logits]:
    """Return what the base says, (B, T, K), a study being its likeliest slice, and the mean of the models."""
    real = valid_steps(lengths, features.shape[1], features.device)[..., None]
    said = [model.judge(features, positions_mm, lengths, base) for model in models]
    refined = Logits(
        torch.stack([logits.slices for logits in said]).mean(dim=0),
        torch.stack([logits.studies for logits in said]).mean(dim=0),
    )
    likeliest = torch.where(real, base, -torch.inf).amax(dim=1)
    return Logits(base, likeliest.clamp(-models[0].most_sure, models[0].most_sure)), refined


def _silent_linear(width: int, labels: int) -> nn.Linear:
    """Return a linear layer that says 0 until it is trained."""
    layer = nn.Linear(width, labels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def describe_positions(positions_mm: Tensor, lengths: Tensor) -> Tensor:
    """Return what the network is told of positions (B, T) mm: (B, T, 3) float32.

    How far along its study a slice lies, -1 at the feet to 1 at the head (0 in a study of one), and the
    steps to the slice below and above in units of 5 mm (0 at the ends). Padding comes out as 0.
    """
    last = (lengths.to(positions_mm.device) - 1)[:, None]
    index = torch.arange(positions_mm.shape[1], device=positions_mm.device)
    low, high = positions_mm[:, :1], positions_mm.gather(1, last)
    span = high - low
    along = torch.where(span > 0, 2 * (positions_mm - low) / span.clamp_min(1e-9) - 1, 0)
    step = positions_mm.diff(dim=1) / STEP_SCALE_MM
    below = nn.functional.pad(step, (1, 0))
    above = torch.where(index < last, nn.functional.pad(step, (0, 1)), 0)
    described = torch.stack([along, below, above], dim=-1)
    return torch.where((index <= last)[..., None], described, 0).float()


def weighted_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the challenge's loss of each of M slices or studies, (M, K) logits and float targets: (M,)."""
    weights = torch.as_tensor(LOSS_WEIGHTS, dtype=logits.dtype, device=logits.device)
    return binary_cross_entropy_with_logits(logits, targets, reduction="none") @ weights


def weighted_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `weighted_losses`, a scalar."""
    return weighted_losses(logits, targets).mean()


def sequence_loss(logits: Logits, targets: Tensor, lengths: Tensor, *, study_weight: float) -> Tensor:
    """Return the loss of a batch: that of its real slices, each counting once, plus that of its studies.

    `targets` is (B, T, K); a study is positive where any of its slices is. `study_weight` is the
    studies' share. Padding has no part in it.
    """
    real = valid_steps(lengths, targets.shape[1], targets.device)
    of_slices = weighted_loss(logits.slices[real], targets[real])
    of_studies = weighted_loss(logits.studies, torch.where(real[..., None], targets, 0).amax(dim=1))
    return of_slices + study_weight * of_studies
