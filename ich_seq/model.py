"""The sequence model: a bidirectional GRU over the slices of a study, packed so that padding is never seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, gelu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


class SequenceModel(nn.Module):
    """What a classifier of single slices says, corrected by a bidirectional GRU that has read the neighbours.

    The GRU adds to the classifier's logits and starts from adding nothing. A study's logits are the same
    alone, in any batch, in any order and whatever the padding holds.
    """

    def __init__(self, dim: int, config: Rnn) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        labels, width = len(LABELS), 2 * config.hidden + config.projection
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, config.projection)
        self.project_norm = nn.LayerNorm(config.projection)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.projection + labels + POSITION_FEATURES * config.position,
            config.hidden,
            config.layers,
            batch_first=True,
            bidirectional=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.correction = _silent_linear(width, labels)
        self.attention = _silent_linear(width, labels)
        self.study_bias = nn.Parameter(torch.zeros(labels))

    def forward(self, features: Tensor, positions_mm: Tensor, lengths: Tensor, base_logits: Tensor) -> Logits:
        """Return the logits of B studies: features (B, T, D), positions_mm (B, T), lengths (B,) on the CPU.

        `base_logits` (B, T, K) are what the slice classifier says; in training, one that did not see the
        study. Refuses (ValueError) lengths of another number, below 1 or beyond T.
        """
        longest = features.shape[1]
        if lengths.shape != features.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > longest:
            raise ValueError(f"lengths {lengths.tolist()} do not fit features of shape {tuple(features.shape)}")
        real = valid_steps(lengths, longest, features.device)[..., None]
        features = torch.where(real, features, 0)
        base = torch.where(real, base_logits, 0)
        projected = self._project(features)
        inputs = [projected, base * BASE_SCALE]
        if self.config.position:
            inputs.append(describe_positions(positions_mm, lengths))
        seen = self.dropout(torch.cat([self._run(torch.cat(inputs, dim=-1), lengths, longest), projected], dim=-1))
        slices = base + self.correction(seen)
        share = torch.where(real, slices + self.attention(seen), -torch.inf).softmax(dim=1)
        return Logits(slices, (share * slices).sum(dim=1) + self.study_bias)

    def _project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project_norm(self.dropout(gelu(self.project(self.dropout(self.norm(features))))))
        return projected

    def _run(self, inputs: Tensor, lengths: Tensor, longest: int) -> Tensor:
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        context, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)
        return context


@torch.inference_mode()
def ensemble_logits(
    models: Sequence[SequenceModel], features: Tensor, positions_mm: Tensor, lengths: Tensor, base: Tensor
) -> tuple[Logits, Logits]:
    """Return what the base says, (B, T, K), a study being its likeliest slice, and the mean of the models."""
    real = valid_steps(lengths, features.shape[1], features.device)[..., None]
    said = [model(features, positions_mm, lengths, base) for model in models]
    refined = Logits(
        torch.stack([logits.slices for logits in said]).mean(dim=0),
        torch.stack([logits.studies for logits in said]).mean(dim=0),
    )
    return Logits(base, torch.where(real, base, -torch.inf).amax(dim=1)), refined


def _silent_linear(width: int, labels: int) -> nn.Linear:
    """Return a linear layer that says 0 until it is trained."""
    layer = nn.Linear(width, labels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def valid_steps(lengths: Tensor, longest: int, device: torch.device | None = None) -> Tensor:
    """Return (B, T) bool, True where a real slice is: the only mask ever made, and made of `lengths`."""
    steps = torch.arange(longest, device=device or lengths.device)
    return steps < lengths.to(steps.device)[:, None]


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
