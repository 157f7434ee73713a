"""Studies in patient folds, each with what a slice classifier says of it that did not see its patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ich_seq.baselines import MAX_FIT_SLICES, SliceClassifier, fit_classifier
from ich_seq.sequences import LabelledStudy

Folds = NDArray[np.int64]


class FoldedStudies:
    """Labelled studies and their folds, (B,), with the logits of a base for every set of folds left out.

    The base is the encoder's own head where it has one: it was trained without the study's patient. Else
    it is a classifier fitted here; the same sets recur from network to network, so each is fitted and
    applied once.
    """

    def __init__(self, studies: Sequence[LabelledStudy], folds: Folds, seed: int) -> None:
        self.studies, self.folds, self.seed = studies, folds, seed
        self.numbers = frozenset(int(f) for f in folds)
        self.has_head = all(s.features.logits is not None for s in studies)
        self._classifiers: dict[frozenset[int], SliceClassifier] = {}
        self._prepared: dict[tuple[int, frozenset[int]], list[LabelledStudy]] = {}

    def of(self, folds: frozenset[int]) -> list[LabelledStudy]:
        """Return the studies of these folds, in order."""
        return [s for s, f in zip(self.studies, self.folds.tolist(), strict=True) if f in folds]

    def classifier(self, without: frozenset[int]) -> SliceClassifier:
        """Return the classifier of single slices fitted on all folds but these."""
        if without not in self._classifiers:
            self._classifiers[without] = fit_classifier(*_drawn_rows(self.of(self.numbers - without), self.seed))
        return self._classifiers[without]

    def to_learn_from(self, folds: frozenset[int], without: frozenset[int]) -> list[LabelledStudy]:
        """Return the studies of `folds`, with base logits of classifiers that saw neither their fold nor `without`."""
        return [study for fold in sorted(folds) for study in self.prepare(fold, without | {fold})]

    def prepare(self, fold: int, unseen: frozenset[int]) -> list[LabelledStudy]:
        """Return the studies of a fold with base logits of a classifier that saw none of the folds `unseen`."""
        if self.has_head:
            return self.of(frozenset({fold}))
        if (fold, unseen) not in self._prepared:
            base = self.classifier(unseen)
            self._prepared[fold, unseen] = [
                replace(s, features=replace(s.features, logits=base.logits(np.asarray(s.features.features))))
                for s in self.of(frozenset({fold}))
            ]
        return self._prepared[fold, unseen]


def _drawn_rows(studies: Sequence[LabelledStudy], seed: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return embeddings and targets of all slices, or of MAX_FIT_SLICES of them, drawn at random."""
    ends = np.cumsum([len(s) for s in studies])
    count = int(ends[-1])
    drawn = np.random.default_rng(seed).permutation(count)[:MAX_FIT_SLICES]
    wanted = np.zeros(count, bool)
    wanted[drawn] = True
    parts = [np.flatnonzero(part) for part in np.split(wanted, ends[:-1])]
    features = [np.asarray(s.features.features[part]) for s, part in zip(studies, parts, strict=True) if len(part)]
    targets = [s.targets[part] for s, part in zip(studies, parts, strict=True) if len(part)]
    return np.concatenate(features), np.concatenate(targets)
