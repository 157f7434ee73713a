"""The same head told otherwise must get the same probabilities: nobody knows the right ones, but that much is known.

Small phantom studies are predicted, changed in a way that leaves the head as it is, and predicted again, by a bundle
of random weights that looks at all it is given. How far apart the two may be stands with each relation of RELATIONS.
ALTERATIONS are changes that do not leave the head as it is: they must be seen, or the bundle would prove nothing.
"""

from __future__ import annotations

import itertools
import math
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from attacks import Figures, Outcome, scaled
from attacks.alterations import ALTERATIONS, Alteration
from attacks.relations import RELATIONS, Relation, Said, apart, values_apart
from attacks.tiny_bundle import write_tiny_bundle
from attacks.tiny_studies import tiny_study
from ich_seq import prediction
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.figures import Predicted
from ich_seq.phantom import write_study
from ich_seq.report import SLICES
from ich_seq.store import StudyFeatures

RUNS = 2000
ALTERED_IN = 4
"""One study in so many is altered as well."""


@dataclass(frozen=True, kw_only=True)
class Listening(Bundle):
    """A loaded bundle that remembers what it said of each study, to the last bit."""

    heard: dict[str, Said] = field(default_factory=dict)

    def beside(self, views: Sequence[StudyFeatures]) -> dict[str, Predicted]:
        """Say what a bundle says."""
        said = super().beside(views)
        first, strange = views[0], self.novelty(views)
        parts = [np.vstack([said[name].slices, said[name].studies]) for name in ("cnn", "rnn", "blend")]
        self.heard[first.study_uid] = Said(
            sop_uids=first.sop_uids,
            positions_mm=first.positions_mm - first.positions_mm[0],
            values=np.stack(parts),
            novelty=strange / (1 + strange),
        )
        return said


def run(work: Path, *, scale: float, seed: int = 0, relations: Sequence[Relation] = RELATIONS) -> Outcome:
    """Predict studies before and after each change, study by study, until there are as many runs as are asked for."""
    several = {1} | {relation.views for relation in relations}
    bundles = {views: listening(work / f"bundle of {views}", seed, views) for views in several}
    found: dict[str, list[float]] = defaultdict(list)
    failures: list[str] = []
    for index in itertools.count():
        if sum(len(found[relation.name]) for relation in relations) >= scaled(RUNS, scale):
            break
        with _study(work, index, seed) as study:
            for name, difference, told in _tried(study, bundles, relations, alter=index % ALTERED_IN == 0):
                found[name].append(difference)
                failures += [f"{name}, study {index}, seed {seed}: {told}"] if told else []
    return Outcome(sum(map(len, found.values())), tuple(failures), _figures(index, found, relations))


def listening(root: Path, seed: int, views: int) -> Listening:
    """Write a bundle of random weights and load it."""
    loaded = load_bundle(write_tiny_bundle(root, seed=seed, views=views), torch.device("cpu"))
    return Listening(**{each.name: getattr(loaded, each.name) for each in fields(loaded)})


@dataclass(frozen=True, slots=True)
class _Study:
    """A study as it was written: its UID, its number of slices, its folder, and what changes draw their numbers of."""

    uid: str
    slices: int
    folder: Path
    key: tuple[int, int]


@contextmanager
def _study(work: Path, index: int, seed: int) -> Iterator[_Study]:
    drawn, folder = tiny_study(index, seed), work / f"study {index}"
    folder.mkdir(parents=True)
    write_study(drawn, folder)
    yield _Study(drawn.study_uid, len(drawn.sop_uids), folder, (seed, index))
    for left in work.glob(f"{folder.name}*"):
        shutil.rmtree(left)


def _tried(
    study: _Study, bundles: Mapping[int, Listening], relations: Sequence[Relation], *, alter: bool
) -> Iterator[tuple[str, float, str]]:
    """Yield the name of each change of a study, how far apart what was said is, and what is wrong, if anything."""
    before = {views: tell(study.folder, bundle, study.uid) for views, bundle in bundles.items()}
    most = max(relation.tolerance for relation in relations)
    for change in (*relations, *(ALTERATIONS if alter else ())):
        if study.slices < change.least_slices:
            continue
        views = change.views if isinstance(change, Relation) else 1
        try:
            after = _after(study, change, bundles[views])
        except Exception as error:  # whatever it is, before the change there was a prediction
            yield change.name, math.nan, f"{type(error).__name__}: {error}"
            continue
        if isinstance(change, Relation):
            difference = change.compare(before[views], after)
            yield change.name, difference, _wrong(change, difference, before[views], after)
        else:
            difference = values_apart(before[views], after)
            yield change.name, difference, _unseen(difference, most)


def _after(study: _Study, how: Relation | Alteration, bundle: Listening) -> Said:
    """Return what is said of a study after a change of a copy of its files."""
    rng = np.random.default_rng([*study.key, zlib.crc32(how.name.encode())])
    copy = study.folder.with_name(f"{study.folder.name}, changed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(study.folder, copy)
    how.change(copy, rng)
    with how.around(rng):
        return tell(copy, bundle, study.uid)


def tell(folder: Path, bundle: Listening, uid: str) -> Said:
    """Predict a folder and return what is said of a study; of the only one, if it has another UID by now."""
    out = folder.with_name(f"{folder.name}, results")
    bundle.heard.clear()
    with patch.object(prediction, "load_bundle", lambda *given: bundle):
        counts = prediction.predict(folder, folder, out, report=False, device="cpu", workers=0).counts
    if counts.files != counts.used + counts.excluded + counts.rejected:
        raise ArithmeticError(f"{counts} do not add up")
    (said,) = [said for study, said in bundle.heard.items() if study == uid or len(bundle.heard) == 1]
    lines = (out / SLICES).read_text().splitlines()
    return replace(said, rows=tuple(line for line in lines if line.startswith(f"{uid},")))


def _wrong(relation: Relation, difference: float, before: Said, after: Said) -> str:
    """Return what is wrong with two predictions as a sentence, or nothing."""
    if not difference <= relation.tolerance:
        return f"what is said differs by {difference:.3g}, not by {relation.tolerance:g} at most"
    if relation.compare is apart and relation.tolerance == 0 and before.rows != after.rows:
        return "its rows in slices.csv are not the same"
    return ""


def _unseen(difference: float, most: float) -> str:
    """Return that an alteration was not seen as a sentence, or nothing if it was."""
    return "" if difference > most else f"is not seen: what is said differs by {difference:.3g}, as relations may"


def _figures(studies: int, found: Mapping[str, Sequence[float]], relations: Sequence[Relation]) -> Figures:
    """Return runs and largest difference of each relation, and the smallest of each alteration."""
    exact = [len(found[relation.name]) for relation in relations if not relation.tolerance]
    total = sum(len(found[relation.name]) for relation in relations)
    figures: Figures = {"studies": studies, "runs": total, "runs that must be equal to the bit": sum(exact)}
    for relation in relations:
        runs = found[relation.name]
        figures[f"{relation.name}: runs"] = len(runs)
        figures[f"{relation.name}: largest difference"] = float(f"{max(runs, default=0):.2g}")
    for alteration in ALTERATIONS:
        figures[f"{alteration.name}: smallest difference"] = float(f"{min(found[alteration.name], default=0):.2g}")
    return figures
