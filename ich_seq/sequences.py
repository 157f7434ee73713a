"""Studies as sequences: features beside labels, and batches whose padding means nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from ich_seq.labels import SliceLabels
from ich_seq.store import FeatureStore, RowsOnDisk, StudyFeatures

THIN_FROM = 10
"""Studies of no more slices are never thinned."""

POOL = 32
"""Batches whose studies are sorted by length together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledStudy:
    """A study with the labels of its slices, `targets` (N, K) uint8, in the order of its features.

    In training `features.logits` are what a classifier of single slices says that did not see the study.
    """

    features: StudyFeatures
    targets: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B studies padded to the longest: features (B, T, D) float32, positions_mm (B, T) float64,
    lengths (B,) int64 on the CPU, targets and logits (B, T, K) float32 or None. Rows from a study's
    length on are padding, and nothing reads them.
    """

    features: Tensor
    positions_mm: Tensor
    lengths: Tensor
    targets: Tensor | None = None
    logits: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move all but the lengths to a device."""
        return Batch(
            features=self.features.to(device),
            positions_mm=self.positions_mm.to(device),
            lengths=self.lengths,
            targets=None if self.targets is None else self.targets.to(device),
            logits=None if self.logits is None else self.logits.to(device),
        )


def label_studies(store: FeatureStore, labels: SliceLabels) -> tuple[list[LabelledStudy], list[str]]:
    """Put labels beside the features of a store.

    Returns the studies whose every slice has labels, and the UIDs of the others: a study with holes in
    its truth is not trained on.
    """
    known = labels.table.index
    labelled, unlabelled = [], []
    for study in store:
        if (known.get_indexer(pd.Index(study.sop_uids)) < 0).any():
            unlabelled.append(study.study_uid)
            continue
        labelled.append(LabelledStudy(features=study, targets=labels.targets(list(study.sop_uids))))
    return labelled, unlabelled


def collate(studies: Sequence[StudyFeatures]) -> Batch:
    """Pad studies with zeros on the right into one batch, in their order; logits only where all studies have them.

    Refuses an empty study (ValueError).
    """
    lengths = torch.tensor([len(s.features) for s in studies], dtype=torch.int64)
    if not len(studies) or int(lengths.min()) == 0:
        raise ValueError("a batch holds at least one study, a study at least one slice")
    logits = [s.logits for s in studies if s.logits is not None]
    return Batch(
        features=_padded([s.features for s in studies], torch.float32),
        positions_mm=_padded([s.positions_mm for s in studies], torch.float64),
        lengths=lengths,
        logits=_padded(logits, torch.float32) if len(logits) == len(studies) else None,
    )


def collate_labelled(studies: Sequence[LabelledStudy]) -> Batch:
    """Like `collate`, with targets."""
    batch = collate([s.features for s in studies])
    return replace(batch, targets=_padded([s.targets for s in studies], torch.float32))


def _padded(rows: Sequence[NDArray[Any] | RowsOnDisk], dtype: torch.dtype) -> Tensor:
    tensors = [torch.tensor(np.asarray(row), dtype=dtype) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def batches(studies: Sequence[LabelledStudy], size: int) -> Iterator[Batch]:
    """Yield all studies in their order, in batches of `size`."""
    for start in range(0, len(studies), size):
        yield collate_labelled(studies[start : start + size])


def shuffled_batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the numbers of all studies in batches of `size`, at random, but like lengths together: padding is waste.

    Studies are sorted within random pools of POOL batches, so that companions change from epoch to epoch.
    """
    order, pool = rng.permutation(len(lengths)), POOL * size
    by_length = np.asarray(lengths)
    together = [part[np.argsort(by_length[part], kind="stable")] for part in _cut(order, pool)]
    cut = [batch for part in together for batch in _cut(part, size)]
    return [cut[i] for i in rng.permutation(len(cut))]


def _cut(items: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def varied(
    studies: Sequence[LabelledStudy], rng: np.random.Generator, *, thin: float, reverse: float
) -> list[LabelledStudy]:
    """Return the studies in their order and, each with these probabilities, thinned and reversed.

    Thinning takes every second slice of a study of more than THIN_FROM, as a scanner set to twice the
    step would have; reversing turns head and feet round. Both are the RSNA 2019 winners'.
    """
    return [_vary(study, rng, thin, reverse) for study in studies]


def _vary(study: LabelledStudy, rng: np.random.Generator, thin: float, reverse: float) -> LabelledStudy:
    index = np.arange(len(study))
    sign = 1
    if len(study) > THIN_FROM and rng.random() < thin:
        index = index[rng.integers(2) :: 2]
    if rng.random() < reverse:
        index, sign = index[::-1], -1
    if sign == 1 and len(index) == len(study):
        return study
    features = study.features
    taken = replace(
        features,
        sop_uids=tuple(features.sop_uids[i] for i in index),
        positions_mm=sign * features.positions_mm[index],
        features=features.features[index],
        logits=None if features.logits is None else features.logits[index],
    )
    return LabelledStudy(features=taken, targets=study.targets[index])
