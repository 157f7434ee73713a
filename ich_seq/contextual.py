"""A sequence model of others: slices read in context by a BiGRU, beside the slice classifier and not on top of it.

The network of `ianpan/ct-head-hemorrhage-detection` (2026, MIT): it sees embeddings and the number of a slice alone,
neither millimetres nor what the slice classifier says; the blend with that follows (see `calibration`). Its tensors
have the names that they have there. The second pooling head of its training ("mil_pool") decides nothing and is left
out. Written anew from its description, to use published weights; it is not trained here.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import gelu

from ich_seq.cells import read_packed, valid_steps
from ich_seq.config import Section
from ich_seq.labels import LABELS
from ich_seq.model import Logits, check_lengths

SURE = math.log((1 - 1e-6) / 1e-6)
"""The logit of a probability of 1 - 1e-6, beyond which its authors let no slice classifier be sure of a study."""


class Context(Section):
    """The widths of the network, and the longest study that it was trained on, in slices."""

    cell: Literal["gru"] = "gru"
    projection: int = Field(ge=1, le=4096)
    hidden: int = Field(ge=1, le=4096)
    layers: int = Field(ge=1, le=16)
    attention: int = Field(ge=1, le=4096)
    longest: int = Field(ge=2, le=4096)


class ClassAttention(nn.Module):
    """Each label weighs the slices in its own way, and judges what it then sees."""

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        labels = len(LABELS)
        self.attention = nn.Sequential(nn.Linear(width, attention), nn.Tanh(), nn.Linear(attention, labels))
        self.classifier_weight = nn.Parameter(torch.zeros(labels, width))
        self.classifier_bias = nn.Parameter(torch.zeros(labels))

    def forward(self, context: Tensor, real: Tensor) -> Tensor:
        """Return the logits of studies, (B, K), of (B, T, W), of which those are slices that are `real` (B, T, 1)."""
        share = torch.where(real, self.attention(context), -torch.inf).softmax(dim=1)
        seen = share.transpose(1, 2) @ torch.where(real, context, 0)
        return (seen * self.classifier_weight).sum(dim=-1) + self.classifier_bias


class ContextualModel(nn.Module):
    """Embeddings read both ways by a packed GRU; a linear head for slices, attention for studies.

    Of a study longer than `longest` so many slices are read, evenly spaced, and every other slice is given what the
    nearest of them is, as its authors do. What is said of a study is the same alone and in any batch.
    """

    most_sure = SURE

    def __init__(self, dim: int, config: Context) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.input_norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, config.projection)
        self.projection_norm = nn.LayerNorm(config.projection)
        self.sequence = nn.GRU(
            config.projection + 1, config.hidden, config.layers, batch_first=True, bidirectional=True
        )
        self.slice_head = nn.Linear(2 * config.hidden, len(LABELS))
        self.sequence_pool = ClassAttention(2 * config.hidden, config.attention)

    def forward(self, features: Tensor, positions_mm: Tensor, lengths: Tensor, base_logits: Tensor) -> Logits:
        """Return the logits of B studies: features (B, T, D), lengths (B,) on the CPU; the rest is not looked at."""
        if not torch.compiler.is_exporting():
            check_lengths(lengths, features)
        taken, count = sampled(lengths, features.shape[1], self.config.longest)
        taken, places = taken.to(features.device), lengths.to(features.device)[:, None]
        seen = features.gather(1, taken[..., None].expand(-1, -1, features.shape[2]))
        along = taken / (places - 1).clamp_min(1)
        inputs = torch.cat([self._project(seen), along[..., None].to(seen.dtype)], dim=-1)
        context = read_packed(self.sequence, inputs, count)
        real = valid_steps(count, taken.shape[1], features.device)[..., None]
        slices = self.slice_head(context)
        back = nearest(taken, real[..., 0], features.shape[1])
        said = slices.gather(1, back[..., None].expand(-1, -1, slices.shape[2]))
        return Logits(said, self.sequence_pool(context, real))

    judge = forward

    def _project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.projection_norm(gelu(self.projection(self.input_norm(features))))
        return projected


def sampled(lengths: Tensor, rows: int, longest: int) -> tuple[Tensor, Tensor]:
    """Return which of the T `rows` are read, (B, R), and how many, (B,): all of a study, or `longest` evenly spaced.

    The first and the last are among them; between whole numbers the nearest is taken. Padding repeats the last.
    """
    count = lengths.clamp_max(longest)
    step = torch.arange(torch.sym_min(rows, longest), device=lengths.device)
    gaps = (count - 1).clamp_min(1)[:, None]
    # k (n - 1) / (r - 1), rounded in whole numbers; of 64 slices read none would lie midway between two
    places = (2 * step * (lengths - 1)[:, None] + gaps) // (2 * gaps)
    return torch.minimum(places, (lengths - 1)[:, None]), count


def nearest(taken: Tensor, real: Tensor, longest: int) -> Tensor:
    """Return for each of T slices which of those read, (B, R), lies nearest, (B, T); of two as near the lower."""
    step = torch.arange(longest, device=taken.device)
    apart = (step[None, :, None] - taken[:, None, :]).abs()
    return torch.where(real[:, None, :], apart, torch.iinfo(apart.dtype).max).argmin(dim=2)
