"""train-rnn: a feature store and labels into a bundle, judged out of fold."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.baselines import by_position, constant, relative_positions
from ich_seq.bundle import CARD, Calibrations, save_bundle
from ich_seq.calibration import fit_calibration
from ich_seq.cells import valid_steps
from ich_seq.checkpoint import hash_of
from ich_seq.config import Config, Train
from ich_seq.devices import choose_device
from ich_seq.encoder import EncoderSpec, SliceEncoder, load_encoder, with_head
from ich_seq.engines import Execution
from ich_seq.figures import Predicted, Truth, judge
from ich_seq.files import locked_folder, make_folder, remove_folder, sha256_file, short_hash, spare_others
from ich_seq.folded_studies import FoldedStudies, Folds
from ich_seq.labels import LABELS, assign_folds, read_labels
from ich_seq.model import SequenceModel, ensemble_logits
from ich_seq.novelty import Familiar, fit_familiar
from ich_seq.operating_points import OperatingPoints, choose_points
from ich_seq.progress import Progress, silent
from ich_seq.sequence_fitting import EVALUATION_BATCH, Beside, SequenceTask, fit_sequence, given, logits_beside_base
from ich_seq.sequences import LabelledStudy, batches, label_studies
from ich_seq.smoothing import fit_smoothed
from ich_seq.store import MANIFEST, FeatureStore, encoder_file, open_store


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """What a run of train-rnn did: where the bundle lies, what was trained on, and the figures of its card.

    `networks` are the bundle's sequence models; `unchanged` of them are as they started.
    """

    out: Path
    studies: int
    unlabelled: tuple[str, ...]
    duplicate_label_rows: int
    networks: int
    unchanged: int
    figures: dict[str, Any]


def train_rnn(
    features: str | Path,
    labels: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    predictions: str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> TrainingSummary:
    """Train sequence models on a feature store and write the bundle `out`.

    One network a fold, each stopped early on its own fold and trained on the others; a prediction is
    their mean. The figures come from doing the same once more for each fold, without that fold, and
    predicting it. No patient is ever on two sides; yet logits and embeddings of train-cnn that are learnt from come of
    networks that knew the patients judged, as nothing but a CNN for every pair of folds could avoid. A run that
    was killed goes on where it was, and ends with the same bytes. These predictions out of fold are written into the
    folder `predictions`, if one is named, for `evaluate`. Raises UsageError if too few studies have labels, or
    if `out` or `predictions` is the result of another command.
    """
    features, labels, out = Path(features), Path(labels), Path(out)
    spare_others(out, CARD)
    config, processor = config or Config(), choose_device(device)
    if predictions is not None:
        from ich_seq.out_of_fold import check_place  # which knows what predict's tables are, and so of DICOM

        check_place(Path(predictions), out)
    store, truth = open_store(features), read_labels(labels)
    _check_encoders(store)
    _refuse_file(store, config.train)
    studies, unlabelled = label_studies(store, truth)
    _refuse_in_sample(studies, store, config.train)
    _check_made(studies, encoders_of(store))
    data = FoldedStudies(studies, _folds(studies, unlabelled, config.train), config.train.seed)
    with locked_folder(out):
        states = _states_of(out, store, labels, config, processor)
        trainer = Trainer(config, processor, states, _counting(data, config.train, progress))
        tested, said = _predict_out_of_fold(data, trainer)
        if predictions is not None:
            _write(Path(predictions), tested, said, base_name(data))
        figures, points = _judge(data, tested, said, config.train.seed)
        ensemble = fit_ensemble(data, trainer)
        training = _describe(studies, store, config) | {
            "studies_without_labels": len(unlabelled),
            "networks_unchanged": sum(model.silent for model in ensemble.models),
            "duplicate_label_rows": truth.duplicate_rows,
            "labels_sha256": sha256_file(labels),
            "final_encoder": store.manifest.get("final") is not None,
        }
        facts = {"training": training, "figures": figures, "operating_points": points.to_json()}
        _save(out, store, _heads(data, store), ensemble, _familiar(studies, store), facts)
        remove_folder(states)
    return TrainingSummary(
        out=out,
        studies=len(studies),
        unlabelled=tuple(unlabelled),
        duplicate_label_rows=truth.duplicate_rows,
        networks=len(ensemble.models),
        unchanged=training["networks_unchanged"],
        figures=figures,
    )


def _states_of(out: Path, store: FeatureStore, labels: Path, config: Config, device: torch.device) -> Path:
    """Return the folder for states of a run on this input, and remove those of runs on another."""
    options = config.train.model_copy(update={"checkpoint_minutes": 0.0})  # changes no weight
    manifest, settings = sha256_file(store.root / MANIFEST), repr((config.rnn, options))
    what = (manifest, sha256_file(labels), settings, __version__, torch.__version__, device.type)
    states = out / f".training-{short_hash(repr(what))}"
    for other in out.glob(".training-*"):
        if other != states:
            remove_folder(other)
    make_folder(states)
    return states


def _counting(data: FoldedStudies, options: Train, progress: Progress) -> Callable[[], None]:
    """Return what tells `progress` of one more trained network: a fold's in each ensemble, and an ensemble a fold."""
    total, done = len(data.numbers) ** 2 * options.seeds, itertools.count(1)
    return lambda: progress("training sequence models", next(done), total)


def _refuse_file(store: FeatureStore, options: Train) -> None:
    """Refuse features of an encoder that may have been trained on these patients, unless told to take them."""
    weights = next(iter(encoders_of(store).values())).weights
    if "file, sha256" in weights and not options.allow_in_sample:  # train-cnn says too what it started from
        raise UsageError(
            f"The encoder's weights are {weights}, and nothing says that the file was not trained on these patients. "
            "If they were, every figure would be too good. If not, say so: --set train.allow_in_sample=true"
        )


def _refuse_in_sample(studies: Sequence[LabelledStudy], store: FeatureStore, options: Train) -> None:
    """Refuse labelled studies of an encoder that was trained on their patients, unless told to take them."""
    known = _in_sample(studies, store)
    if known and not options.allow_in_sample:
        raise UsageError(
            f"{len(known)} studies were embedded by a network that learnt from their patients, since the one that did "
            "not was not trained. Train all folds (train-cnn --fold all) and extract again, and leave those that only "
            "--also had labels for out of --labels; or take them though every figure will be too good: "
            "--set train.allow_in_sample=true"
        )


def _in_sample(studies: Sequence[LabelledStudy], store: FeatureStore) -> set[str]:
    """Return the UIDs of studies that were embedded by a network which learnt from their patients."""
    return set(store.in_sample()).intersection(study.features.study_uid for study in studies)


def encoders_of(store: FeatureStore) -> dict[int, EncoderSpec]:
    """Return the specs of the encoders that made a store, by number. Raises ArtefactError for what are none."""
    specs = store.manifest["encoders"]
    try:
        return {int(number): EncoderSpec.from_json(specs[number]) for number in sorted(specs, key=int)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = "does not describe the encoders beside it; extract the features again."
        raise ArtefactError(f"{store.root / MANIFEST} {told}") from error


def bundled_encoders(store: FeatureStore) -> list[int]:
    """Return the numbers of a store's encoders that new patients are embedded by: its final one, or all of them.

    Raises ArtefactError for a final one that is none of them.
    """
    numbers, final = list(encoders_of(store)), store.manifest.get("final")  # which older stores lack
    if final is None:
        return numbers
    if final not in numbers or type(final) is not int:
        raise ArtefactError(f"{store.root / MANIFEST} names a final encoder that is not there; extract again.")
    return [final]


def _check_encoders(store: FeatureStore) -> None:
    """Raise ArtefactError now for encoders, or a record of how they ran, that could not go into the bundle."""
    specs = encoders_of(store)
    bundled_encoders(store)
    for number, spec in specs.items():
        load_encoder(spec, store.root / encoder_file(number))
    if not specs or not store.studies["network"].isin(list(specs)).all():
        raise ArtefactError(f"{store.root} holds embeddings by encoders that it does not hold; extract again.")
    try:
        Execution.from_json(store.manifest["execution"])
        short_hash(store.manifest["fingerprint"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{store.root / MANIFEST} does not say how it was made; extract again.") from error


def _check_made(studies: Sequence[LabelledStudy], encoders: Mapping[int, EncoderSpec]) -> None:
    """Raise ArtefactError for embeddings, or logits, that their encoder cannot have made."""
    for features in (study.features for study in studies):
        made_by = encoders[features.network]
        if features.features.shape[1] != made_by.dim or (features.logits is not None) != made_by.head:
            raise ArtefactError(
                f"Study {features.study_uid} is not as its encoder makes it; extract the features again."
            )


def _folds(studies: Sequence[LabelledStudy], unlabelled: Sequence[str], options: Train) -> Folds:
    if not studies:
        raise UsageError(
            f"None of the {len(unlabelled)} studies has labels for all its slices ({', '.join(unlabelled[:3])} ...); "
            "the IDs of the label file must be the SOP Instance UIDs of these DICOM files."
        )
    patients = np.array([s.features.patient_key for s in studies])
    positive = np.stack([s.targets.max(axis=0) for s in studies])
    return assign_folds(patients, positive, n_folds=options.folds, seed=options.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Models of one base, and how what both say becomes probabilities."""

    models: list[SequenceModel]
    calibrations: Calibrations


@dataclass(frozen=True, slots=True)
class Trainer:
    """What all ensembles of a run are trained with; states go to `root` (None: nowhere), `tell` hears of each model."""

    config: Config
    device: torch.device
    root: Path | None = None
    tell: Callable[[], None] = lambda: None


def fit_ensemble(data: FoldedStudies, trainer: Trainer, *, without: frozenset[int] = frozenset()) -> Ensemble:
    """Train models for each fold but those left out, stopped early on that fold and trained on the others.

    A model for each of `seeds`. They are `calibrated` on the folds that they stopped on, seeds by their mean.
    """
    models: list[SequenceModel] = []
    seen: list[tuple[Beside, Beside]] = []
    for fold in sorted(data.numbers - without):
        trained = [_fit_one(data, trainer, fold, seed, without) for seed in range(trainer.config.train.seeds)]
        held_out = data.to_learn_from(frozenset({fold}), without)
        said = [logits_beside_base(model, held_out, trainer.device) for model in trained]
        seen.append((Beside.mean([s for s, _ in said]), Beside.mean([s for _, s in said])))
        models += trained
    slices, studies = (Beside.joined([part[level] for part in seen]) for level in range(2))
    return Ensemble(models=models, calibrations=calibrated(slices, studies, trainer.config.train.calibration))


def calibrated(slices: Beside, studies: Beside, method: str) -> Calibrations:
    """Fit shares, the kernel where a label has none, and calibration to what was said of studies not learnt from."""
    of_slices, kernel = fit_smoothed(slices.base, slices.refined, slices.targets, slices.lengths, method)
    of_studies = fit_calibration(studies.base, studies.refined, studies.targets, studies.lengths, method)
    return Calibrations(slices=of_slices, studies=of_studies, kernel=kernel)


def _fit_one(data: FoldedStudies, trainer: Trainer, stop: int, seed: int, without: frozenset[int]) -> SequenceModel:
    """Train one model that stops on a fold, on base logits of classifiers that saw neither the study nor `without`."""
    options, held_out = trainer.config.train, frozenset({stop})
    task = SequenceTask(
        name="-".join(["without", *map(str, sorted(without)), "stop", str(stop), "seed", str(seed)]),
        learn=data.to_learn_from(data.numbers - without - held_out, without),
        stop=data.to_learn_from(held_out, without),
        rnn=trainer.config.rnn,
        options=options,
        seed=hash_of(options.seed, stop, seed),
        device=trainer.device,
    )
    model = fit_sequence(task, trainer.root)
    trainer.tell()
    return model


def predict_ensemble(
    ensemble: Ensemble, studies: Sequence[LabelledStudy], device: torch.device
) -> dict[str, Predicted]:
    """Return what the models say ("rnn") and what the bundle will say ("blend") of studies."""
    said: dict[str, list[Predicted]] = {"rnn": [], "blend": []}
    for batch in batches(studies, EVALUATION_BATCH):
        moved = batch.to(device)
        logits = ensemble_logits(
            ensemble.models, moved.features, moved.positions_mm, moved.lengths, given(moved.logits)
        )
        real = valid_steps(batch.lengths, moved.features.shape[1])
        base, refined = ((x.slices.cpu()[real].double().numpy(), x.studies.cpu().double().numpy()) for x in logits)
        blended = ensemble.calibrations.blend(base, refined, batch.lengths.numpy())
        for name, (slices, of_studies) in (("rnn", refined), ("blend", blended)):
            said[name].append(Predicted(slices=expit(slices), studies=expit(of_studies)))
    return {name: Predicted.joined(parts) for name, parts in said.items()}


def _predict_out_of_fold(data: FoldedStudies, trainer: Trainer) -> tuple[list[LabelledStudy], dict[str, Predicted]]:
    """Predict every fold by an ensemble and by baselines that never saw it; return the studies too, in that order."""
    parts: list[dict[str, Predicted]] = []
    tested: list[LabelledStudy] = []
    for fold in sorted(data.numbers):
        away = frozenset({fold})
        test = data.prepare(fold, away)
        ensemble = fit_ensemble(data, trainer, without=away)
        parts.append(_baselines(data, away, test) | predict_ensemble(ensemble, test, trainer.device))
        tested += test
    return tested, {name: Predicted.joined([part[name] for part in parts]) for name in parts[0]}


def _write(root: Path, studies: Sequence[LabelledStudy], said: Mapping[str, Predicted], base: str) -> None:
    from ich_seq.out_of_fold import write_out_of_fold

    with locked_folder(root):
        write_out_of_fold(root, studies, {"blend": said["blend"], "cnn": said[base], "rnn": said["rnn"]})


def _judge(
    data: FoldedStudies, tested: Sequence[LabelledStudy], said: Mapping[str, Predicted], seed: int
) -> tuple[dict[str, Any], OperatingPoints]:
    """Put the figures of what was said out of fold side by side, and choose the operating points of the blend."""
    truth = Truth.of_studies([s.targets for s in tested], [s.features.patient_key for s in tested])
    return judge(said, truth, seed=seed, against=base_name(data)), choose_points(said["blend"].studies, truth.studies)


def base_name(data: FoldedStudies) -> str:
    """Return under which name the base stands among the figures."""
    return "cnn" if data.has_head else "slice_logistic"


def _baselines(data: FoldedStudies, away: frozenset[int], test: Sequence[LabelledStudy]) -> dict[str, Predicted]:
    """Return what knows less: the prevalence (of slices, and of studies), the position, each slice alone.

    For the latter two a study is its likeliest slice.
    """
    train = data.of(data.numbers - away)
    targets, lengths = _stack_targets(train), [len(s) for s in test]
    where, new_where = (
        np.concatenate([relative_positions(s.features.positions_mm) for s in group]) for group in (train, test)
    )
    logits = np.concatenate([s.features.logits for s in test if s.features.logits is not None])
    return {
        "constant": Predicted(
            slices=constant(targets, sum(lengths)),
            studies=constant(np.stack([s.targets.max(axis=0) for s in train]), len(test)),
        ),
        "position": Predicted.of_slices(by_position(where, targets, new_where), lengths),
        base_name(data): Predicted.of_slices(expit(logits.astype(np.float64)), lengths),
    }


def _stack_targets(studies: Sequence[LabelledStudy]) -> NDArray[np.uint8]:
    return np.concatenate([s.targets for s in studies])


def _describe(studies: Sequence[LabelledStudy], store: FeatureStore, config: Config) -> dict[str, Any]:
    """Return what the card says of the training data and the settings."""
    positive = np.stack([s.targets.max(axis=0) for s in studies]).sum(axis=0)
    return {
        "studies": len(studies),
        "patients": len({s.features.patient_key for s in studies}),
        "slices": sum(len(s) for s in studies),
        "positive_slices": dict(zip(LABELS, _stack_targets(studies).sum(axis=0, dtype=int).tolist(), strict=True)),
        "positive_studies": dict(zip(LABELS, positive.astype(int).tolist(), strict=True)),
        "lengths": {str(n): c for n, c in sorted(Counter(len(s) for s in studies).items())},
        "studies_in_sample": len(_in_sample(studies, store)),
        "features_fingerprint": store.manifest["fingerprint"],
        "settings": {"rnn": config.rnn.model_dump(), "train": config.train.model_dump()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def _heads(data: FoldedStudies, store: FeatureStore) -> list[SliceEncoder]:
    """Return the encoders of the bundle, each with a head: its own, or the classifier fitted on all folds."""
    specs = encoders_of(store)
    encoders = [load_encoder(specs[k], store.root / encoder_file(k)) for k in bundled_encoders(store)]
    if data.has_head:
        return encoders
    return [
        with_head(encoder, base.weight, base.bias) for base in [data.classifier(frozenset())] for encoder in encoders
    ]


def _familiar(studies: Sequence[LabelledStudy], store: FeatureStore) -> Familiar:
    """Learn what embeddings are usual, from all studies trained on.

    For the final encoder, which knew them all, that is what the others make of studies that they did not know.
    """
    made: dict[int, list[Any]] = {}
    bundled = bundled_encoders(store)
    for study in studies:
        number = study.features.network if len(bundled) > 1 else bundled[0]
        made.setdefault(number, []).append(study.features.features)
    return fit_familiar(made, bundled)


def _save(
    out: Path,
    store: FeatureStore,
    encoders: Sequence[SliceEncoder],
    ensemble: Ensemble,
    familiar: Familiar,
    facts: dict[str, Any],
) -> None:
    save_bundle(
        out,
        encoders=encoders,
        execution=Execution.from_json(store.manifest["execution"]),
        models=ensemble.models,
        calibrations=ensemble.calibrations,
        familiar=familiar,
        facts=facts,
    )
