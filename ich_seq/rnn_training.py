"""train-rnn: a feature store and labels into a bundle, judged out of fold."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from ich_seq import UsageError
from ich_seq.baselines import SliceClassifier, by_position, constant, fit_classifier, relative_positions
from ich_seq.bundle import Shares, save_bundle
from ich_seq.calibration import blend, choose_shares
from ich_seq.config import Config, Train
from ich_seq.devices import choose_device
from ich_seq.encoder import EncoderSpec, SliceEncoder, load_encoder, with_head
from ich_seq.engines import Execution
from ich_seq.figures import Predicted, Truth, judge
from ich_seq.files import locked_folder, sha256_file
from ich_seq.labels import LABELS, assign_folds, read_labels
from ich_seq.metrics import weighted_log_loss
from ich_seq.model import SequenceModel, ensemble_logits, sequence_loss, valid_steps
from ich_seq.progress import Progress, silent
from ich_seq.schedule import rate
from ich_seq.sequences import Batch, LabelledStudy, batches, label_studies, varied
from ich_seq.store import FeatureStore, encoder_file, open_store

Part = TypeVar("Part")
Folds = NDArray[np.int64]
Floats = NDArray[np.float64]
Triple = tuple[Floats, Floats, NDArray[np.uint8]]
EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """What a run of train-rnn did: where the bundle lies, what was trained on, and the figures of its card."""

    out: Path
    studies: int
    unlabelled: tuple[str, ...]
    duplicate_label_rows: int
    figures: dict[str, Any]


def train_rnn(
    features: str | Path,
    labels: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    device: str = "auto",
    progress: Progress = silent,
) -> TrainingSummary:
    """Train sequence models on a feature store and write the bundle `out`.

    One network a fold, each stopped early on its own fold and trained on the others; a prediction is
    their mean. The figures come from doing the same once more for each fold, without that fold, and
    predicting it. No patient is ever on two sides. Raises UsageError if too few studies have labels.
    """
    features, labels, out = Path(features), Path(labels), Path(out)
    config, processor = config or Config(), choose_device(device)
    store, truth = open_store(features), read_labels(labels)
    _refuse_in_sample(store, config.train)
    studies, unlabelled = label_studies(store, truth)
    data = FoldedStudies(studies, _folds(studies, unlabelled, config.train), config.train.seed)
    with locked_folder(out):
        figures = _judge(data, config, processor, progress)
        ensemble = fit_ensemble(data, config, processor)
        training = _describe(studies, store, config) | {
            "studies_without_labels": len(unlabelled),
            "duplicate_label_rows": truth.duplicate_rows,
            "labels_sha256": sha256_file(labels),
        }
        _save(out, store, _heads(data, store), ensemble, {"training": training, "figures": figures})
    return TrainingSummary(
        out=out,
        studies=len(studies),
        unlabelled=tuple(unlabelled),
        duplicate_label_rows=truth.duplicate_rows,
        figures=figures,
    )


def _refuse_in_sample(store: FeatureStore, options: Train) -> None:
    """Refuse features of an encoder that was, or may have been, trained on these patients, unless told to take them."""
    if options.allow_in_sample:
        return
    weights = next(iter(encoders_of(store).values())).weights
    if "file, sha256" in weights:  # train-cnn says too what it started from
        raise UsageError(
            f"The encoder's weights are {weights}, and nothing says that the file was not trained on these patients. "
            "If they were, every figure would be too good. If not, say so: --set train.allow_in_sample=true"
        )
    if known := store.in_sample():
        raise UsageError(
            f"{len(known)} studies were embedded by a network that learnt from their patients, since the one that did "
            "not was not trained. Train all folds (train-cnn --fold all) and extract again; or take them though "
            "every figure will be too good: --set train.allow_in_sample=true"
        )


def encoders_of(store: FeatureStore) -> dict[int, EncoderSpec]:
    """Return the specs of the encoders that made a store, by number."""
    specs = store.manifest["encoders"]
    return {int(number): EncoderSpec.from_json(specs[number]) for number in sorted(specs, key=int)}


def _folds(studies: Sequence[LabelledStudy], unlabelled: Sequence[str], options: Train) -> Folds:
    if not studies:
        raise UsageError(
            f"None of the {len(unlabelled)} studies has labels for all its slices ({', '.join(unlabelled[:3])} ...); "
            "the IDs of the label file must be the SOP Instance UIDs of these DICOM files."
        )
    patients = np.array([s.features.patient_key for s in studies])
    positive = np.stack([s.targets.max(axis=0) for s in studies])
    return assign_folds(patients, positive, n_folds=options.folds, seed=options.seed)


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
            seen = self.of(self.numbers - without)
            self._classifiers[without] = fit_classifier(_stack_features(seen), _stack_targets(seen), seed=self.seed)
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
                replace(s, features=replace(s.features, logits=base.logits(s.features.features)))
                for s in self.of(frozenset({fold}))
            ]
        return self._prepared[fold, unseen]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """Models of one base, and the share of them in each label's blend with it."""

    models: list[SequenceModel]
    shares: Shares


def fit_ensemble(
    data: FoldedStudies, config: Config, device: torch.device, *, without: frozenset[int] = frozenset()
) -> Ensemble:
    """Train one model for each fold but those left out, stopped early on that fold and trained on the others.

    The shares of the blend are chosen on the folds that the models stopped on.
    """
    models: list[SequenceModel] = []
    seen: list[tuple[Triple, Triple]] = []
    for fold in sorted(data.numbers - without):
        models.append(fit_model(data, config, device, stop=fold, without=without))
        seen += _logits_beside_base(models[-1], data.to_learn_from(frozenset({fold}), without), device)
    slices, studies = (choose_shares(*_joined(seen, level)) for level in range(2))
    return Ensemble(models=models, shares=Shares(slices, studies))


@torch.inference_mode()
def _logits_beside_base(
    model: SequenceModel, studies: Sequence[LabelledStudy], device: torch.device
) -> list[tuple[Triple, Triple]]:
    """Return, batch by batch, base logits, the model's logits and targets, of slices (M, K) and of studies (B, K)."""
    model.eval()
    seen = []
    for batch in batches(studies, EVALUATION_BATCH):
        moved = batch.to(device)
        base, targets = _given(moved.logits), _given(moved.targets)
        said = model(moved.features, moved.positions_mm, batch.lengths, base)
        real = valid_steps(batch.lengths, base.shape[1], device)
        of_studies = [torch.where(real[..., None], t, -torch.inf).amax(dim=1) for t in (base, targets)]
        seen.append(
            (
                _arrays(base[real], said.slices[real], targets[real]),
                _arrays(of_studies[0], said.studies, of_studies[1]),
            )
        )
    return seen


def _arrays(base: Tensor, refined: Tensor, targets: Tensor) -> Triple:
    return base.cpu().double().numpy(), refined.cpu().double().numpy(), targets.cpu().numpy().astype(np.uint8)


def _joined(seen: Sequence[tuple[Triple, Triple]], level: int) -> Triple:
    base, refined, targets = zip(*(part[level] for part in seen), strict=True)
    return np.concatenate(base), np.concatenate(refined), np.concatenate(targets)


def _given(part: Part | None) -> Part:
    if part is None:
        raise ValueError("what is learnt from needs targets and base logits")
    return part


def fit_model(
    data: FoldedStudies, config: Config, device: torch.device, *, stop: int, without: frozenset[int]
) -> SequenceModel:
    """Train one sequence model; return it as it was at its best on the fold `stop`.

    The GRU learns to correct logits of a base that did not see the study, as it will on new patients. AdamW with linear
    warm-up and cosine decay, ended `patience` epochs after the best. Same data, same seed: same weights.
    """
    options, held_out = config.train, frozenset({stop})
    torch.manual_seed(options.seed + stop)
    rng = np.random.default_rng(options.seed + stop)
    train = data.to_learn_from(data.numbers - without - held_out, without)
    stop_on = data.to_learn_from(held_out, without)
    model = SequenceModel(data.studies[0].features.features.shape[1], config.rnn).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    total = options.epochs * math.ceil(len(train) / options.batch_studies)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step / total, options.warmup))
    best, best_loss, best_epoch = _weights(model), _loss(model, stop_on, options, device), 0
    for epoch in range(1, options.epochs + 1):
        for batch in batches(varied(train, rng, thin=options.thin, reverse=options.reverse), options.batch_studies):
            _step(model, optimiser, batch.to(device), options)
            schedule.step()
        loss = _loss(model, stop_on, options, device)
        if loss < best_loss:
            best, best_loss, best_epoch = _weights(model), loss, epoch
        elif epoch - best_epoch >= options.patience:
            break
    model.load_state_dict(best)
    return model.eval()


def _step(model: SequenceModel, optimiser: torch.optim.Optimizer, batch: Batch, options: Train) -> None:
    model.train()
    optimiser.zero_grad()
    _batch_loss(model, batch, options).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
    optimiser.step()


def _batch_loss(model: SequenceModel, batch: Batch, options: Train) -> Tensor:
    logits = model(batch.features, batch.positions_mm, batch.lengths, _given(batch.logits))
    return sequence_loss(logits, _given(batch.targets), batch.lengths, study_weight=options.study_loss)


def _loss(model: SequenceModel, studies: Sequence[LabelledStudy], options: Train, device: torch.device) -> float:
    """Return the loss of all studies: each slice counts once, each study once, whatever the batches."""
    seen = _logits_beside_base(model, studies, device)
    of_slices, of_studies = (
        weighted_log_loss(expit(refined), targets) for _, refined, targets in (_joined(seen, 0), _joined(seen, 1))
    )
    return of_slices + options.study_loss * of_studies


def _weights(model: SequenceModel) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def predict_ensemble(
    ensemble: Ensemble, studies: Sequence[LabelledStudy], device: torch.device
) -> dict[str, Predicted]:
    """Return what the models say ("rnn") and what the bundle will say ("blend") of studies."""
    said: dict[str, list[Predicted]] = {"rnn": [], "blend": []}
    for batch in batches(studies, EVALUATION_BATCH):
        moved = batch.to(device)
        logits = ensemble_logits(
            ensemble.models, moved.features, moved.positions_mm, moved.lengths, _given(moved.logits)
        )
        real = valid_steps(batch.lengths, moved.features.shape[1])
        base, refined = ((x.slices.cpu()[real].double().numpy(), x.studies.cpu().double().numpy()) for x in logits)
        blended = [blend(b, r, share) for b, r, share in zip(base, refined, ensemble.shares, strict=True)]
        for name, (slices, of_studies) in (("rnn", refined), ("blend", blended)):
            said[name].append(Predicted(slices=expit(slices), studies=expit(of_studies)))
    return {name: Predicted.joined(parts) for name, parts in said.items()}


def _judge(data: FoldedStudies, config: Config, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Predict every fold by an ensemble and by baselines that never saw it, and put the figures side by side."""
    parts: list[dict[str, Predicted]] = []
    tested: list[LabelledStudy] = []
    for fold in sorted(data.numbers):
        away = frozenset({fold})
        test = data.prepare(fold, away)
        ensemble = fit_ensemble(data, config, device, without=away)
        parts.append(_baselines(data, away, test) | predict_ensemble(ensemble, test, device))
        tested += test
        progress("judging out of fold", len(parts), len(data.numbers))
    predicted = {name: Predicted.joined([part[name] for part in parts]) for name in parts[0]}
    truth = Truth.of_studies([s.targets for s in tested], [s.features.patient_key for s in tested])
    return judge(predicted, truth, seed=config.train.seed, against=base_name(data))


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
    logits = np.concatenate([_given(s.features.logits) for s in test])
    return {
        "constant": Predicted(
            slices=constant(targets, sum(lengths)),
            studies=constant(np.stack([s.targets.max(axis=0) for s in train]), len(test)),
        ),
        "position": Predicted.of_slices(by_position(where, targets, new_where), lengths),
        base_name(data): Predicted.of_slices(expit(logits.astype(np.float64)), lengths),
    }


def _stack_features(studies: Sequence[LabelledStudy]) -> NDArray[np.float16]:
    return np.concatenate([s.features.features for s in studies])


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
        "features_fingerprint": store.manifest["fingerprint"],
        "settings": {"rnn": config.rnn.model_dump(), "train": config.train.model_dump()},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def _heads(data: FoldedStudies, store: FeatureStore) -> list[SliceEncoder]:
    """Return the store's encoders, each with a head: its own, or the classifier fitted on all folds."""
    encoders = [load_encoder(spec, store.root / encoder_file(k)) for k, spec in encoders_of(store).items()]
    if data.has_head:
        return encoders
    return [
        with_head(encoder, base.weight, base.bias) for base in [data.classifier(frozenset())] for encoder in encoders
    ]


def _save(
    out: Path, store: FeatureStore, encoders: Sequence[SliceEncoder], ensemble: Ensemble, facts: dict[str, Any]
) -> None:
    save_bundle(
        out,
        encoders=encoders,
        execution=Execution(**store.manifest["execution"]),
        models=ensemble.models,
        shares=ensemble.shares,
        facts=facts,
    )
