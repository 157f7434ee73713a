"""Slices to train the encoder on: which of them an epoch shows, and how each is read and varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ich_seq import windows
from ich_seq.augmentation import erase, vary_scanner, vary_slice, vary_windows
from ich_seq.baselines import log_odds, relative_positions
from ich_seq.config import Augment, Cnn
from ich_seq.dicom import SliceHeader
from ich_seq.encoder import EncoderSpec
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, SliceLabels
from ich_seq.reasons import Refused, Unused
from ich_seq.studies import Study

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabelledSlices:
    """M slices with labels, study after study, feet to head.

    `study` (M,) and `index` (M,) say which slice of `studies` a row is; `targets` is (M, K) uint8.
    """

    studies: tuple[Study, ...]
    study: NDArray[np.int64]
    index: NDArray[np.int64]
    targets: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.targets)

    def header(self, row: int) -> SliceHeader:
        """Return the header of a row."""
        study = self.studies[int(self.study[row])]
        return study.slices[int(self.index[row])]

    def sop_uid(self, row: int) -> str:
        """Return the SOP Instance UID of a row."""
        return self.header(row).sop_uid

    @cached_property
    def relative(self) -> Floats:
        """Return where each slice lies in its study, (M,) from 0 at the feet to 1 at the head."""
        where = [relative_positions(s.positions_mm) for s in self.studies]
        return np.array([where[s][i] for s, i in zip(self.study, self.index, strict=True)])


def joined(parts: Sequence[LabelledSlices]) -> LabelledSlices:
    """Return the slices of several sets, one after the other."""
    starts = np.cumsum([0, *(len(part.studies) for part in parts)])[:-1]
    return LabelledSlices(
        studies=tuple(study for part in parts for study in part.studies),
        study=np.concatenate([part.study + start for part, start in zip(parts, starts, strict=True)]),
        index=np.concatenate([part.index for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
    )


def label_slices(studies: Sequence[Study], labels: SliceLabels) -> tuple[LabelledSlices, list[str]]:
    """Put labels beside the slices of studies; return them and the UIDs of studies without any label.

    Slices without labels serve as neighbours only.
    """
    labelled: list[Study] = []
    without: list[str] = []
    study: list[int] = []
    index: list[int] = []
    sops: list[str] = []
    for candidate in studies:
        known = labels.table.index.get_indexer(pd.Index([h.sop_uid for h in candidate.slices])) >= 0
        if not known.any():
            without.append(candidate.uid)
            continue
        rows = np.flatnonzero(known)
        study += [len(labelled)] * len(rows)
        index += rows.tolist()
        sops += [candidate.slices[i].sop_uid for i in rows]
        labelled.append(candidate)
    targets = labels.targets(sops) if sops else np.zeros((0, len(LABELS)), np.uint8)
    return LabelledSlices(tuple(labelled), np.array(study, np.int64), np.array(index, np.int64), targets), without


def draw_chances(slices: LabelledSlices, rows: NDArray[np.int64], options: Cnn) -> Floats:
    """Return how often an epoch shows each of these rows, relative to the others: positive, of mean 1.

    "all": each once. "centre": a triangle over each study, since bleeds are rare at both ends of a
    head (RSNA 2019, 1st place). "balanced": rarer labels more often, by the square root of their rarity.
    """
    if options.sampling == "centre":
        chances = 1.1 - np.abs(2 * slices.relative[rows] - 1)
        of_study = np.bincount(slices.study[rows], weights=chances)
        chances = chances / of_study[slices.study[rows]]
    elif options.sampling == "balanced":
        chances = _rarity(slices.targets[rows])
    else:
        chances = np.ones(len(rows))
    return np.asarray(chances / chances.mean())


def _rarity(targets: NDArray[np.uint8]) -> Floats:
    """Return 1 / sqrt(frequency) of the rarest label of each row, (M, K) -> (M,); no label at all counts as one."""
    full = np.column_stack([targets, ~targets.any(axis=1)])
    frequency = full.mean(axis=0)
    return np.asarray(np.where(full, 1 / np.sqrt(np.maximum(frequency, 1e-12)), 0).max(axis=1))


def prior_shift(targets: NDArray[np.uint8], chances: Floats, natural: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return by how much sampling rows of `targets` moves each label's log odds from those of `natural` rows, (K,).

    Added to the logits in training (logit adjustment, Menon et al. 2021), it lets the network itself say
    the probabilities of the data as they are.
    """
    as_they_are = log_odds(natural.sum(axis=0, dtype=float), len(natural))
    return np.asarray(log_odds(chances @ targets, chances.sum()) - as_they_are, np.float32)


def epoch_rows(
    slices: LabelledSlices, rows: NDArray[np.int64], chances: Floats, options: Cnn, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the rows of one epoch in their order: every row once, or as many drawn by their chances.

    "centre" draws `study_slices` a study, "balanced" as many as there are rows.
    """
    if options.sampling == "all":
        return rng.permutation(rows)
    drawn = len(rows)
    if options.sampling == "centre":
        drawn = options.study_slices * len(np.unique(slices.study[rows]))
    return rng.choice(rows, size=drawn, p=chances / chances.sum())


class Sample(NamedTuple):
    """M slices for the network: `shown` (M, C, S, S) in [0, 1], `targets` (M, K) float32, `known` (M,) bool.

    A slice that could not be read is not `known`; it stands in `refused`, as do neighbours that could not.
    """

    shown: Tensor
    targets: Tensor
    known: Tensor
    refused: tuple[Unused, ...]


Key = tuple[int, int, int]
"""Epoch, place in the epoch, row: all that decides how a slice is drawn."""

AS_IT_IS = -1
"""The epoch of a slice that is not varied."""


class SliceDataset(Dataset[Sample]):
    """Reads slices with their neighbours from DICOM, resampled, windowed and, in training, varied."""

    def __init__(self, slices: LabelledSlices, spec: EncoderSpec, augment: Augment, seed: int) -> None:
        if spec.neighbours != tuple(-offset for offset in reversed(spec.neighbours)):
            augment = augment.model_copy(update={"turn": 0.0})  # in reverse the slice itself would change its place
        self.slices, self.spec, self.augment, self.seed = slices, spec, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        """Return one slice as a `Sample` of M = 1."""
        epoch, place, row = key
        targets = torch.from_numpy(self.slices.targets[row : row + 1].astype(np.float32))
        try:
            hu, refused = read_sample(self.slices, row, self.spec)
        except Refused as refusal:
            side = self.spec.size
            nothing = torch.zeros(1, self.spec.channels, side, side)
            header = self.slices.header(row)
            verdict = refusal.verdict(header.file, header.frame)
            return Sample(nothing, targets, torch.tensor([False]), (verdict,))
        rng = None if epoch == AS_IT_IS else np.random.default_rng([self.seed, epoch, place + 1])
        return Sample(self._show(torch.from_numpy(hu), rng)[None], targets, torch.tensor([True]), refused)

    def _show(self, hu: Tensor, rng: np.random.Generator | None) -> Tensor:
        """Window a slice as it is, or varied by a generator."""
        if rng is None:
            return windows.apply(hu[None], self.spec.windows_hu)[0]
        moved = vary_slice(hu, self.augment, rng)
        moved = vary_scanner(moved, self.augment, rng, pixel_mm=self.spec.field_mm / self.spec.size)
        shown = windows.apply(moved[None], vary_windows(self.spec.windows_hu, self.augment, rng))[0]
        return erase(shown, self.augment, rng)


def read_sample(slices: LabelledSlices, row: int, spec: EncoderSpec) -> tuple[NDArray[np.float32], tuple[Unused, ...]]:
    """Read a slice and its neighbours, (J, S, S) HU. Raises Refused if the slice itself cannot be read.

    The study's first and last slice stand in for those beyond its ends, the slice itself for a
    neighbour that cannot be read; such neighbours are returned with their reasons.
    """
    study, centre = slices.studies[slices.study[row]], int(slices.index[row])
    read, refused = {centre: _read(study, centre, spec)}, []
    places = [min(max(centre + offset, 0), len(study.slices) - 1) for offset in spec.neighbours]
    for place in places:
        if place not in read:
            try:
                read[place] = _read(study, place, spec)
            except Refused as refusal:
                read[place] = read[centre]
                refused.append(refusal.verdict(study.slices[place].file, study.slices[place].frame))
    return np.stack([read[place] for place in places]), tuple(refused)


def _read(study: Study, index: int, spec: EncoderSpec) -> NDArray[np.float32]:
    header = study.slices[index]
    return windows.resample(read_hounsfield(header), header.spacing_mm, field_mm=spec.field_mm, size=spec.size)


def collate_samples(samples: Sequence[Sample]) -> Sample:
    """Join samples into one of all their slices."""
    return Sample(
        torch.cat([s.shown for s in samples]),
        torch.cat([s.targets for s in samples]),
        torch.cat([s.known for s in samples]),
        tuple(refused for s in samples for refused in s.refused),
    )


def share(keys: Sequence[Key], part: int, parts: int) -> list[Key]:
    """Return this part's share of a batch: every `parts`-th key, so that all the shares together are the batch."""
    return list(keys[part::parts])
