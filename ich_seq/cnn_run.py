"""What train-cnn leaves on disk: a network a fold, and which patients each of them never saw.

The final network, if it was trained, learnt from every patient. It stands as that of one fold more, which nobody is in.

RUN/
    run.json       settings, data, figures, SHA-256 of the files below; written last, and anew after each fold
    folds.csv      study_uid, patient_key, fold: the fold whose network did not learn from the study; -1: there is none
    rejected.csv   a row for every file that is no slice of a study, with its reason
    curves.png     losses over the epochs
    fold-<k>/      encoder.safetensors, held_out.csv (logits of fold k), fold.json, states while it trains
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.encoder import EncoderSpec, SliceEncoder, ensemble_of, load_encoder
from ich_seq.files import read_json, read_whole, sha256_bytes, sha256_file, write_json
from ich_seq.reasons import Unused, unused_from_json
from ich_seq.store import read_manifest
from ich_seq.tables import csv_rows

SCHEMA = "ich-seq cnn 1"
PLAN = "plan.json"
FOLDS_HEAD = ["study_uid", "patient_key", "fold"]
NOBODYS = -1
"""The fold of studies that are only learnt from, of patients in no fold: every network may know them."""

MAX_FOLDS = 1000
"""The most that cnn.folds may be; the final network stands as one more."""

RUN, FOLDS, FOLD, ENCODER, HELD_OUT, CURVES = (
    "run.json",
    "folds.csv",
    "fold.json",
    "encoder.safetensors",
    "held_out.csv",
    "curves.png",
)


@dataclass(frozen=True, slots=True)
class FoldResult:
    """One trained network: its fold, its spec, the losses of each epoch, the epoch kept, and slices not read."""

    fold: int
    spec: EncoderSpec
    curve: list[dict[str, float]]
    epoch: int
    held_out_sha256: str
    refused: tuple[Unused, ...]

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FoldResult:
        """Read back what `dataclasses.asdict` wrote."""
        refused = tuple(unused_from_json(u) for u in value["refused"])
        TypeAdapter(list[dict[str, float]]).validate_python(value["curve"], strict=True)
        return cls(**value | {"spec": EncoderSpec.from_json(value["spec"]), "refused": refused})


@dataclass(frozen=True, kw_only=True, slots=True)
class CnnRun:
    """A run opened for reading: its trained networks by fold, and the fold of every patient and study it knew."""

    root: Path
    results: dict[int, FoldResult]
    fold_of_patient: dict[str, int]
    fold_of_study: dict[str, int]
    only_learnt: tuple[tuple[str, str], ...] = ()
    """Study and patient of those in no fold."""

    beside: tuple[CnnRun, ...] = ()
    """Runs of the same patients in the same folds, whose networks embed together with these."""

    @property
    def final(self) -> int | None:
        """Return the number of the network that learnt from every patient; None if it was not trained."""
        after_the_last = 1 + max(self.fold_of_patient.values(), default=-2)
        return after_the_last if after_the_last in self.results else None

    def networks_for(self, patient_key: str, study_uid: str) -> tuple[tuple[int, ...], bool]:
        """Return the networks that are to embed a study, and whether they learnt from its patient.

        The one that did not see the patient; for a patient that none of them saw the final one, or all of them if
        there is none; all, and True, where the network that did not see the patient was not trained, or is not there
        as the patient is in no fold.
        """
        fold = self.fold_of_patient.get(patient_key, self.fold_of_study.get(study_uid))
        if fold is None:
            return tuple(self.results) if self.final is None else (self.final,), False
        return ((fold,), False) if fold in self.results else (tuple(self.results), True)

    def load(self, number: int) -> SliceEncoder:
        """Load a fold's network, its bytes checked, as one with those of the runs beside."""
        own = load_encoder(self.results[number].spec, fold_folder(self.root, number) / ENCODER)
        return ensemble_of([own, *(run.load(number) for run in self.beside)])

    def judged(self) -> dict[str, int]:
        """Return the fold of each patient who is in one."""
        return {patient: fold for patient, fold in self.fold_of_patient.items() if fold != NOBODYS}


def fold_folder(root: Path, fold: int) -> Path:
    """Return the folder of a fold."""
    return root / f"fold-{fold}"


def write_fold(root: Path, result: FoldResult) -> None:
    """Write what makes a fold's folder whole."""
    write_json(fold_folder(root, result.fold) / FOLD, asdict(result))


def read_fold(root: Path, fold: int) -> FoldResult | None:
    """Read a trained fold; None if it is absent or one of its files is not the one that was written."""
    folder = fold_folder(root, fold)
    try:
        result = FoldResult.from_json(read_json(folder / FOLD))
        whole = (
            result.fold == fold
            and sha256_file(folder / ENCODER) == result.spec.sha256
            and sha256_file(folder / HELD_OUT) == result.held_out_sha256
        )
        return result if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def folds_csv(rows: Iterable[tuple[str, str, int]]) -> bytes:
    """Return `folds.csv` of (study_uid, patient_key, fold)."""
    return csv_rows([FOLDS_HEAD, *sorted(rows)])


def save_run(root: Path, results: Sequence[FoldResult], facts: dict[str, Any]) -> None:
    """Write `run.json`, which makes the run whole as far as it is trained. `facts` are JSON values."""
    write_json(
        root / RUN,
        {
            "schema": SCHEMA,
            "version": __version__,
            "trained_folds": [r.fold for r in results],
            "encoders": [asdict(r.spec) for r in results],
            "folds_sha256": sha256_file(root / FOLDS),
            **facts,
        },
    )


def load_run(root: Path) -> CnnRun:
    """Open a run. Raises UsageError if there is none, ArtefactError if a file is not the one it vouches for."""
    path = root / RUN
    if not path.is_file():
        raise UsageError(f"{root} is not a run of train-cnn: it has no {RUN}. Let train-cnn finish a fold there first.")
    run = read_manifest(path, SCHEMA)
    try:
        specs = {int(k): EncoderSpec.from_json(s) for k, s in zip(run["trained_folds"], run["encoders"], strict=True)}
        folds_sha256 = run["folds_sha256"]
        if not specs or len(specs) < len(run["encoders"]) or not set(specs) <= set(range(MAX_FOLDS + 1)):
            raise ValueError("folds that are none, or named twice")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{path} cannot be read; train again.") from error
    results = {}
    for fold, spec in specs.items():
        result = read_fold(root, fold)
        if result is None or result.spec != spec:
            raise ArtefactError(f"{fold_folder(root, fold)} was changed since it was written; train the fold again.")
        results[fold] = result
    rows = _read_folds(root / FOLDS, folds_sha256)
    return CnnRun(
        root=root,
        results=results,
        fold_of_patient={patient: fold for _, patient, fold in rows},
        fold_of_study={study: fold for study, _, fold in rows},
        only_learnt=tuple((study, patient) for study, patient, fold in rows if fold == NOBODYS),
    )


def load_runs(roots: Sequence[Path]) -> CnnRun:
    """Open runs whose networks are to embed together, each fold's with one another, as one run.

    Raises, besides what `load_run` does, UsageError if patients, their folds or the folds trained are not the same.
    """
    if len({root.resolve() for root in roots}) < len(roots):
        raise UsageError(f"A run beside itself says nothing more: {', '.join(map(str, roots))} name one twice.")
    first, *others = (load_run(root) for root in roots)
    for run in others:
        named = f"{run.root} and {first.root} do not go together"
        if run.judged() != first.judged() or _told_apart(run.fold_of_study, first.fold_of_study):
            raise UsageError(
                f"{named}: their patients or folds differ, so that one could know whom the other never saw; train both "
                "on the same labels, cnn.folds and cnn.seed."
            )
        if lacking := set(run.results) ^ set(first.results):
            raise UsageError(
                f"{named}: one has no network of fold {', '.join(map(str, sorted(lacking)))} (the last is the final "
                "one), the other has; train it there too, with train-cnn --fold."
            )
        first = replace(
            first,
            fold_of_patient=run.fold_of_patient | first.fold_of_patient,
            fold_of_study=run.fold_of_study | first.fold_of_study,
            only_learnt=tuple(dict.fromkeys(first.only_learnt + run.only_learnt)),
        )
    return replace(first, beside=tuple(others))


def _told_apart(here: Mapping[str, int], there: Mapping[str, int]) -> bool:
    """Tell whether a study is in another fold there, as where its Patient ID was changed in between."""
    return any(there.get(study, fold) != fold for study, fold in here.items())


@dataclass(frozen=True, slots=True)
class Begun:
    """A run whose networks another begins at, each fold at its own, and the SHA-256 of what it was begun with."""

    run: CnnRun
    sha256: str

    def encoder_of(self, fold: int) -> Path:
        """Return the file of a fold's network."""
        return fold_folder(self.run.root, fold) / ENCODER


def begin_at(
    root: Path,
    fold_of_patient: Mapping[str, int],
    fold_of_study: Mapping[str, int],
    folds: Sequence[int],
    *,
    patience: int,
) -> Begun:
    """Open the run that these folds begin at; told are the folds of patients and studies that are judged here.

    Raises UsageError if a fold has no network there, if patients or their folds are others, so that a network could
    know whom it is judged by, or if it stops early (`patience`) on a fold that its beginning learnt from; ArtefactError
    if a file of the run is damaged.
    """
    run = load_run(root)
    try:
        plan = read_json(root / PLAN)
        stops, sha256 = plan["settings"]["cnn"]["patience"] > 0, sha256_file(root / PLAN)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{root / PLAN} cannot be read; train again.") from error
    if missing := [str(fold) for fold in folds if fold not in run.results]:
        raise UsageError(f"{root} has no network of fold {', '.join(missing)} to begin at; train it there first.")
    if run.judged() != fold_of_patient or _told_apart(run.fold_of_study, fold_of_study):
        raise UsageError(
            f"In {root} the patients, or their folds, are others, so its networks may know some that are held out "
            "here; begin at a run of the same labels, cnn.folds and cnn.seed."
        )
    if patience and not stops:
        raise UsageError(
            f"The networks of {root} learnt from the folds that these would stop on; set cnn.patience to 0, or begin "
            "at a run that has it."
        )
    return Begun(run, sha256)


def _read_folds(path: Path, sha256: Any) -> list[tuple[str, str, int]]:
    """Return the rows of `folds.csv`. Raises ArtefactError if its bytes are others, or it is another table."""
    try:
        table = read_whole(path)
        if sha256_bytes(table) != sha256:
            raise ArtefactError(f"{path} was changed since it was written; train again.")
        head, *rows = csv.reader(io.StringIO(table.decode()))
        if head != FOLDS_HEAD:
            raise ValueError("other columns")
        return [(study, patient, int(fold)) for study, patient, fold in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArtefactError(f"{path} cannot be read; train again.") from error


def claim_folder(root: Path, plan: dict[str, Any]) -> None:
    """Make a folder the run of this plan (JSON values: settings and data), or go on in it.

    Raises UsageError if it is the run of another plan: its folds would not be comparable.
    """
    path = root / PLAN
    if path.exists():
        try:
            begun = read_json(path)
        except (OSError, ValueError):
            begun = None
        if begun != plan:
            raise UsageError(
                f"{root} was begun with other settings, data or labels, --also and --begin among them; "
                "choose another --out."
            )
        return
    write_json(path, plan)
