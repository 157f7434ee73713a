"""train-rnn: no patient on two sides, the same bytes every time, and what only neighbours know is learnt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from ich_seq import ArtefactError, UsageError, calibration, operating_points, rnn_training
from ich_seq.baselines import fit_classifier
from ich_seq.bundle import CARD, Calibrations, load_bundle
from ich_seq.calibration import SHARES, Calibration, fit_calibration
from ich_seq.card_page import card_page
from ich_seq.config import Config
from ich_seq.encoder import load_encoder
from ich_seq.figures import Predicted
from ich_seq.files import sha256_file
from ich_seq.folded_studies import FoldedStudies
from ich_seq.labels import LABELS
from ich_seq.metrics import auc, weighted_log_loss
from ich_seq.operating_points import NO_POINTS, choose_points
from ich_seq.rnn_training import (
    Ensemble,
    Trainer,
    base_name,
    encoders_of,
    fit_ensemble,
    predict_ensemble,
    train_rnn,
)
from ich_seq.sequences import LabelledStudy
from ich_seq.smoothing import fit_smoothed
from ich_seq.store import MANIFEST, encoder_file, open_store

K, ANY = len(LABELS), LABELS.index("any")
CPU = torch.device("cpu")
FOLDS = 4
RNN = {"projection": 8, "hidden": 8, "layers": 1, "dropout": 0.1}
CONFIG = Config.model_validate({"rnn": RNN, "train": {"folds": FOLDS, "epochs": 3}})
TRAINER = Trainer(CONFIG, CPU)
SLICES = [1, 12, 3, 7, 5, 2, 9, 4, 11, 6, 8, 10, 3, 5, 12, 1, 7, 6, 4, 9, 11, 8]
UNLABELLED = ("1.2.4", "1.2.17")


class Recorder(FoldedStudies):
    """What train-rnn folds its studies into, kept so that a test can look at it."""

    made: list[FoldedStudies]

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.made.append(self)


@pytest.fixture(scope="module")
def given(labelled_store) -> tuple[Path, Path, dict[str, list[int]]]:
    """A store of 22 studies of 14 patients, a label file without two of them, and the rows of that file."""
    return labelled_store(SLICES, 14, UNLABELLED)


def recorded(store: Path, labels: Path, out: Path, config: Config = CONFIG):
    """Run train-rnn; return its summary, the folds it made, and its progress."""
    told = []
    Recorder.made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnn_training, "FoldedStudies", Recorder)
        summary = train_rnn(store, labels, out, config, device="cpu", progress=lambda *news: told.append(news))
    (data,) = Recorder.made
    return summary, data, told


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """One run of train-rnn on a frozen encoder without a head."""
    store, labels, _ = given
    return recorded(store, labels, tmp_path_factory.mktemp("trained") / "bundle")


def with_logits(study: LabelledStudy, logits: np.ndarray) -> LabelledStudy:
    return replace(study, features=replace(study.features, logits=logits))


def prepared(data: FoldedStudies) -> list[LabelledStudy]:
    """Every study with logits of a base that did not see it."""
    return data.to_learn_from(data.numbers, frozenset())


# A run


def test_a_run_writes_a_bundle_that_says_something(trained, make_study):
    """One model a fold and the store's own network; the bundle loads, and its probabilities are probabilities."""
    summary, _, told = trained
    bundle = load_bundle(summary.out, CPU)
    assert len(bundle.models) == FOLDS
    assert len({tuple(m.correction.weight.flatten().tolist()) for m in bundle.models}) == FOLDS
    slices, study = bundle.predict([make_study("new", 6, logits=True)])
    assert slices.shape == (6, K)
    assert np.isfinite(slices).all()
    assert ((study > 0) & (study < 1)).all()
    every = FOLDS * (FOLDS - 1) + FOLDS  # those to judge by and those of the bundle
    assert told == [("training sequence models", i + 1, every) for i in range(every)]


@pytest.mark.slow
def test_models_that_learnt_nothing_are_counted(trained, given, tmp_path):
    """With a rate that ruins every step each model stays as it started, and summary, card and model say so."""
    summary = train_rnn(given[0], given[1], tmp_path, changed(CONFIG, learning_rate=1e4), device="cpu")
    card = json.loads((tmp_path / "bundle.json").read_text())["training"]
    assert summary.unchanged == card["networks_unchanged"] == summary.networks == FOLDS
    assert all(model.silent for model in load_bundle(tmp_path, CPU).models)
    assert trained[0].unchanged == 0
    assert not any(model.silent for model in load_bundle(trained[0].out, CPU).models)


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(trained, given, tmp_path):
    """Run again into another folder, every file of the bundle is byte for byte the same: weights, figures, card."""
    store, labels, _ = given
    again = train_rnn(store, labels, tmp_path / "again", CONFIG, device="cpu")
    files = {p.name: p.read_bytes() for p in trained[0].out.iterdir() if p.is_file()}
    assert {p.name: p.read_bytes() for p in again.out.iterdir() if p.is_file()} == files
    assert {CARD, "encoder-0.safetensors", *(f"rnn-{k}.safetensors" for k in range(FOLDS))} <= files.keys()


def test_studies_with_a_hole_in_their_labels_are_reported(trained):
    """A study with one unlabelled slice is not trained on; summary and card say so."""
    summary, data, _ = trained
    assert sorted(summary.unlabelled) == sorted(UNLABELLED)
    assert summary.studies == len(SLICES) - 2 == len(data.studies)
    assert not {s.features.study_uid for s in data.studies} & set(UNLABELLED)


def test_the_card_describes_the_data(trained, given):
    """Counts of studies, patients, slices and positives are the files', recounted; hash and settings stand."""
    summary, data, _ = trained
    store, labels, rows = given
    card = json.loads((summary.out / CARD).read_text())["training"]
    used = [s for s in open_store(store) if s.study_uid not in UNLABELLED]
    truth = {s.study_uid: np.array([rows[uid] for uid in s.sop_uids]) for s in used}
    assert (card["studies"], card["patients"], card["slices"]) == (20, 14, sum(len(s.sop_uids) for s in used))
    assert card["studies_without_labels"] == 2
    assert card["positive_slices"] == {
        label: int(sum(t[:, k].sum() for t in truth.values())) for k, label in enumerate(LABELS)
    }
    assert card["positive_studies"] == {
        label: int(sum(t[:, k].max() for t in truth.values())) for k, label in enumerate(LABELS)
    }
    assert sum(card["lengths"].values()) == 20
    assert sum(int(n) * count for n, count in card["lengths"].items()) == card["slices"]
    assert card["labels_sha256"] == sha256_file(labels)
    assert card["settings"]["train"]["epochs"] == 3
    for study in data.studies:
        assert np.array_equal(study.targets, truth[study.features.study_uid])
    text = (summary.out / CARD).read_text()
    assert not [uid for uid in truth if f'"{uid}"' in text]  # what is told of patients are counts


def test_the_figures_are_out_of_fold(trained):
    """Predicting each fold by what never saw it gives the card's figures, for baselines, ensemble and blend."""
    summary, data, _ = trained
    said = {"constant": [], "slice_logistic": [], "rnn": [], "blend": []}
    truth = []
    for fold in range(FOLDS):
        bare = [s for s, f in zip(data.studies, data.folds, strict=True) if f == fold]
        train = [s for s, f in zip(data.studies, data.folds, strict=True) if f != fold]
        features = np.concatenate([s.features.features for s in train])
        targets = np.concatenate([s.targets for s in train])
        classifier = fit_classifier(features, targets)
        test = [with_logits(s, classifier.logits(np.asarray(s.features.features))) for s in bare]
        ensemble = fit_ensemble(FoldedStudies(data.studies, data.folds, 0), TRAINER, without=frozenset({fold}))
        lengths = [len(s) for s in test]
        truth += [s.targets for s in test]
        of_train_studies = np.stack([s.targets.max(axis=0) for s in train])
        said["constant"].append(
            Predicted(
                slices=np.tile(targets.mean(axis=0), (sum(lengths), 1)),
                studies=np.tile(of_train_studies.mean(axis=0), (len(test), 1)),
            )
        )
        logits = np.concatenate([s.features.logits for s in test]).astype(np.float64)
        said["slice_logistic"].append(Predicted.of_slices(expit(logits), lengths))
        for name, predicted in predict_ensemble(ensemble, test, CPU).items():
            said[name].append(predicted)
    assert set(summary.figures) == {"constant", "position", "slice_logistic", "rnn", "blend"}
    of_slices, of_studies = np.concatenate(truth), np.stack([t.max(axis=0) for t in truth])
    for name, parts in said.items():
        whole = Predicted.joined(parts)
        figures = summary.figures[name]
        assert figures["slice_loss"]["value"] == pytest.approx(weighted_log_loss(whole.slices, of_slices), abs=2e-6)
        assert figures["study_loss"]["value"] == pytest.approx(weighted_log_loss(whole.studies, of_studies), abs=2e-6)
    assert json.loads((summary.out / CARD).read_text())["figures"] == summary.figures
    for name, figures in summary.figures.items():
        differences = [entry for entry in figures if entry.startswith("difference")]
        assert differences == ([] if name == "slice_logistic" else ["difference_to_slice_logistic"])


# Refusals


@pytest.mark.slow
def test_the_operating_points_are_chosen_where_the_figures_are(given, tmp_path, monkeypatch):
    """Of the blend, study by study, out of fold; and the loaded bundle has those of its card."""
    judged = []
    real = rnn_training.judge
    monkeypatch.setattr(rnn_training, "judge", lambda *what, **how: judged.append(what) or real(*what, **how))
    monkeypatch.setattr(operating_points, "LEAST_STUDIES", 3)
    summary = train_rnn(given[0], given[1], tmp_path, changed(CONFIG, epochs=1, folds=3), device="cpu")
    ((predicted, truth),) = judged
    points = load_bundle(summary.out, CPU).operating_points
    assert points == choose_points(predicted["blend"].studies, truth.studies)
    assert any(point is not None for point in points.present_from)
    card = json.loads((summary.out / CARD).read_text())
    assert card["operating_points"] == points.to_json()


def test_a_label_of_few_studies_has_no_operating_point(trained):
    """Of 22 studies none has twenty with it and twenty without."""
    assert load_bundle(trained[0].out, CPU).operating_points == NO_POINTS


def test_labels_of_other_images_are_refused_with_the_first_names(given, write_labels, tmp_path):
    """Where no study has labels the message names the first ones, so that UIDs can be compared, and nothing is made."""
    labels = write_labels(tmp_path / "labels.csv", {f"ID_{i}": [0] * K for i in range(9)})
    with pytest.raises(UsageError, match="SOP Instance UID") as refusal:
        train_rnn(given[0], labels, tmp_path / "out", CONFIG, device="cpu")
    first = open_store(given[0]).studies["study_uid"].tolist()[:3]
    assert all(uid in str(refusal.value) for uid in first)
    assert str(len(SLICES)) in str(refusal.value)
    assert not (tmp_path / "out" / CARD).exists()


@pytest.mark.parametrize("of", ["the store", "a run of train-cnn", "predict"])
def test_results_of_another_command_are_not_written_into(given, tmp_path, of):
    """Neither the store that is learnt from, nor other hours of work; nothing there is changed."""
    if of == "the store":
        store = out = Path(shutil.copytree(given[0], tmp_path / "store"))
    else:
        store, out = given[0], tmp_path / "out"
        out.mkdir()
        (out / {"a run of train-cnn": "plan.json", "predict": "slices.csv"}[of]).write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match="which this command would destroy; choose another --out"):
        train_rnn(store, given[1], out, CONFIG, device="cpu")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("of", ["the bundle", "the store", "predict"])
def test_predictions_are_not_written_among_other_results(given, tmp_path, of):
    """Which is said before anything is trained, and nothing there is changed."""
    place = Path(shutil.copytree(given[0], tmp_path / "store")) if of == "the store" else tmp_path / "out"
    if of == "predict":
        place = tmp_path / "results"
        place.mkdir()
        for name in ("slices.csv", "run.json"):
            (place / name).write_text("{}")
    before = {path.name: path.read_bytes() for path in place.iterdir()} if place.exists() else {}
    with pytest.raises(UsageError, match="choose another"):
        train_rnn(given[0], given[1], tmp_path / "out", CONFIG, predictions=place, device="cpu")
    assert ({path.name: path.read_bytes() for path in place.iterdir()} if place.exists() else {}) == before
    assert not (tmp_path / "out").exists()


def test_too_few_patients_are_refused(make_study, write_store, write_labels, tmp_path):
    """Many studies of three patients make no four folds: refused before any training, with the remedy."""
    studies = [make_study(f"1.2.{i}", 3, patient=f"patient {i % 3}") for i in range(12)]
    rows = {uid: [0, 0, 0, 0, i % 2, i % 2] for s in studies for i, uid in enumerate(s.sop_uids)}
    store, labels = write_store(tmp_path / "store", studies), write_labels(tmp_path / "labels.csv", rows)
    with pytest.raises(UsageError, match="at least 4 patients"):
        train_rnn(store, labels, tmp_path / "out", CONFIG, device="cpu")
    assert not (tmp_path / "out" / CARD).exists()


def test_a_store_whose_encoder_was_changed_is_refused_before_training(given, tmp_path):
    """An encoder that is not the one of the features (a new extraction was begun and cut off) makes no bundle."""
    store = Path(shutil.copytree(given[0], tmp_path / "store"))
    data = bytearray((store / encoder_file(0)).read_bytes())
    data[-1] ^= 1
    (store / encoder_file(0)).write_bytes(data)
    with pytest.raises(ArtefactError, match=encoder_file(0)):
        train_rnn(store, given[1], tmp_path / "out", CONFIG, device="cpu")
    assert not (tmp_path / "out" / CARD).exists()


def changed(config: Config, **train: object) -> Config:
    """Return settings with other ones of the training."""
    return Config.model_validate(config.model_dump() | {"train": config.train.model_dump() | train})


@pytest.mark.slow
def test_an_encoder_of_unknown_training_is_refused_unless_vouched_for(given, tmp_path):
    """Weights from a file may have seen these patients: refused with the setting's name, and run once it is given."""
    store = Path(shutil.copytree(given[0], tmp_path / "store"))
    manifest = json.loads((store / MANIFEST).read_text())
    manifest["encoders"]["0"]["weights"] = f"file, sha256 {'0' * 64}"
    (store / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"--set train\.allow_in_sample=true"):
        train_rnn(store, given[1], tmp_path / "out", CONFIG, device="cpu")
    assert not (tmp_path / "out").exists()
    summary = train_rnn(
        store, given[1], tmp_path / "out", changed(CONFIG, epochs=1, allow_in_sample=True), device="cpu"
    )
    card = load_bundle(summary.out, CPU).card
    assert card["encoders"][0]["weights"] == manifest["encoders"]["0"]["weights"]
    assert card["training"]["settings"]["train"]["allow_in_sample"] is True


# Encoders without a head


def test_a_frozen_encoder_gets_the_fitted_classifier_as_its_head(trained, given, tiny_encoder):
    """The bundle's encoder is the store's network, bit for bit, and the classifier fitted on all studies its head."""
    summary, data, _ = trained
    embedder = load_bundle(summary.out, CPU).embedders[0]
    network = embedder.encoder.network.state_dict()
    assert all(torch.equal(tensor, network[name]) for name, tensor in tiny_encoder.network.state_dict().items())
    classifier = fit_classifier(
        np.concatenate([s.features.features for s in data.studies]),
        np.concatenate([s.targets for s in data.studies]),
    )
    assert np.array_equal(embedder.encoder.head.weight.numpy(), classifier.weight)
    assert np.array_equal(embedder.encoder.head.bias.numpy(), classifier.bias)
    (spec,) = encoders_of(open_store(given[0])).values()
    assert embedder.spec == replace(spec, head=True, sha256=sha256_file(summary.out / "encoder-0.safetensors"))
    assert not spec.head


def test_the_bundle_says_of_new_slices_what_the_classifier_says(trained, make_study):
    """Pixels in, the bundle's logits are the classifier's of the embeddings; where the GRU has no share, so it says."""
    summary, data, _ = trained
    bundle = load_bundle(summary.out, CPU)
    hu = torch.from_numpy(np.random.default_rng(0).normal(40, 60, (5, 32, 32)).astype(np.float32))
    embedded = bundle.embedders[0](hu)
    logits = data.classifier(frozenset()).logits(embedded.features.numpy())
    assert embedded.logits.numpy() == pytest.approx(logits, abs=1e-5)
    features = embedded.features.numpy().astype(np.float16)
    none = Calibration(share=np.zeros(K), slope=np.ones(K), intercept=np.zeros(K))
    study = replace(make_study("new", 5), features=features, logits=embedded.logits.numpy())
    slices, whole = replace(bundle, calibrations=Calibrations(slices=none, studies=none)).predict([study])
    assert slices == pytest.approx(expit(logits.astype(np.float64)), abs=1e-5)
    assert whole == pytest.approx(expit(logits.astype(np.float64).max(axis=0)), abs=1e-5)


# Encoders with heads of their own


@pytest.fixture(scope="module")
def headed(given, make_study, write_store, headed_encoders, tmp_path_factory) -> Path:
    """A store of the same slices by two networks with heads: of the patient's fold, or both for a new patient."""
    studies = []
    for i, study in enumerate(open_store(given[0])):
        for network in (0, 1) if i % 4 == 0 else (i % 2,):
            name, slices, patient = study.study_uid, len(study.sop_uids), study.patient_key
            studies.append(make_study(name, slices, patient=patient, network=network, logits=True))
            assert studies[-1].sop_uids == study.sop_uids
    return write_store(tmp_path_factory.mktemp("headed") / "store", studies, encoders=dict(enumerate(headed_encoders)))


@pytest.fixture(scope="module")
def trained_on_heads(headed, given, tmp_path_factory):
    """One run of train-rnn on a store whose encoders have heads."""
    return recorded(headed, given[1], tmp_path_factory.mktemp("trained") / "bundle")


def test_encoders_with_heads_go_into_the_bundle_as_they_are(trained_on_heads, headed, headed_encoders):
    """Network, head and record of each are those of the store, in their order: nothing is fitted, nothing replaced."""
    summary, _, _ = trained_on_heads
    bundle = load_bundle(summary.out, CPU)
    specs = encoders_of(open_store(headed))
    assert list(bundle.embedders) == list(specs) == [0, 1]
    for k, encoder in enumerate(headed_encoders):
        assert bundle.embedders[k].spec == specs[k] == encoder.spec
        assert (summary.out / f"encoder-{k}.safetensors").read_bytes() == (headed / encoder_file(k)).read_bytes()
    assert len(bundle.models) == FOLDS


@pytest.mark.slow
def test_folds_of_a_cnn_that_were_not_all_trained_are_bundled_in_their_order(
    given, make_study, write_store, headed_encoders, tmp_path
):
    """A store of networks 3 and 10 makes a bundle of encoders 0 and 1: the same networks, the lower number first."""
    encoders = {3: headed_encoders[0], 10: headed_encoders[1]}
    studies = [
        make_study(s.study_uid, len(s.sop_uids), patient=s.patient_key, network=network, logits=True)
        for s in open_store(given[0])
        for network in encoders
    ]
    store = write_store(tmp_path / "store", studies, encoders=encoders)
    summary = train_rnn(store, given[1], tmp_path / "out", changed(CONFIG, epochs=1), device="cpu")
    bundle = load_bundle(summary.out, CPU)
    assert [e.spec for e in bundle.embedders.values()] == [encoder.spec for encoder in headed_encoders]
    for k, encoder in enumerate(headed_encoders):
        loaded = load_encoder(encoder.spec, summary.out / f"encoder-{k}.safetensors")
        assert torch.equal(loaded.head.weight, encoder.head.weight)


def test_the_base_of_heads_stands_as_cnn_among_the_figures(trained_on_heads):
    """Its figures are those of the store's logits, a study its likeliest slice; the others' differences are to it."""
    summary, data, _ = trained_on_heads
    assert base_name(data) == "cnn"
    assert set(summary.figures) == {"constant", "position", "cnn", "rnn", "blend"}
    assert json.loads((summary.out / CARD).read_text())["figures"] == summary.figures
    said = expit(np.concatenate([s.features.logits for s in data.studies]).astype(np.float64))
    whole = expit(np.stack([s.features.logits.max(axis=0) for s in data.studies]).astype(np.float64))
    of_slices = weighted_log_loss(said, np.concatenate([s.targets for s in data.studies]))
    of_studies = weighted_log_loss(whole, np.stack([s.targets.max(axis=0) for s in data.studies]))
    assert summary.figures["cnn"]["slice_loss"]["value"] == pytest.approx(of_slices, abs=2e-6)
    assert summary.figures["cnn"]["study_loss"]["value"] == pytest.approx(of_studies, abs=2e-6)
    for name, figures in summary.figures.items():
        differences = [entry for entry in figures if entry.startswith("difference")]
        assert differences == ([] if name == "cnn" else ["difference_to_cnn"])


def test_the_figures_on_heads_are_out_of_fold(trained_on_heads):
    """Predicting each fold by an ensemble that never saw it gives the card's figures of ensemble and blend."""
    summary, data, _ = trained_on_heads
    parts, truth = {"rnn": [], "blend": []}, []
    for fold in range(FOLDS):
        away = frozenset({fold})
        test = [s for s, f in zip(data.studies, data.folds, strict=True) if f == fold]
        ensemble = fit_ensemble(FoldedStudies(data.studies, data.folds, 0), TRAINER, without=away)
        truth += [s.targets for s in test]
        for name, predicted in predict_ensemble(ensemble, test, CPU).items():
            parts[name].append(predicted)
    for name, predicted in parts.items():
        said = Predicted.joined(predicted).slices
        value = weighted_log_loss(said, np.concatenate(truth))
        assert summary.figures[name]["slice_loss"]["value"] == pytest.approx(value, abs=2e-6)


@pytest.mark.slow
def test_training_on_heads_twice_gives_the_same_bytes(trained_on_heads, headed, given, tmp_path):
    """Networks take the same turns every time: every file of the bundle is byte for byte the same."""
    again = train_rnn(headed, given[1], tmp_path / "again", CONFIG, device="cpu")
    files = {p.name: p.read_bytes() for p in trained_on_heads[0].out.iterdir() if p.is_file()}
    assert {p.name: p.read_bytes() for p in again.out.iterdir() if p.is_file()} == files


@pytest.mark.slow
def test_studies_known_to_their_network_are_refused_unless_allowed(
    headed, given, write_store, headed_encoders, tmp_path
):
    """One in-sample study is enough: refused with their number and both remedies, and taken once that is allowed."""
    rows = list(open_store(headed))
    known = [rows[3].study_uid, rows[5].study_uid]
    store = write_store(tmp_path / "store", rows, encoders=dict(enumerate(headed_encoders)), in_sample=known)
    with pytest.raises(UsageError, match="2 studies were embedded by a network that learnt from") as refusal:
        train_rnn(store, given[1], tmp_path / "out", CONFIG, device="cpu")
    for remedy in ("train-cnn --fold all", "--set train.allow_in_sample=true"):
        assert remedy in str(refusal.value)
    assert not (tmp_path / "out").exists()
    summary, data, _ = recorded(store, given[1], tmp_path / "out", changed(CONFIG, epochs=1, allow_in_sample=True))
    assert set(known) <= {s.features.study_uid for s in data.studies}
    card = load_bundle(summary.out, CPU).card
    assert card["training"]["settings"]["train"]["allow_in_sample"] is True
    assert card["training"]["studies_in_sample"] == 2
    assert "All figures are too good" in card_page(card).decode()


# No patient on two sides


def test_a_patient_is_in_one_fold(trained):
    """However many studies a patient has, they all lie in one fold; every fold has some."""
    _, data, _ = trained
    fold_of: dict[str, set[int]] = {}
    for study, fold in zip(data.studies, data.folds.tolist(), strict=True):
        fold_of.setdefault(study.features.patient_key, set()).add(fold)
    assert len(fold_of) == 14 < len(data.studies)
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert set().union(*fold_of.values()) == set(range(FOLDS)) == data.numbers


def test_a_fold_left_out_has_no_way_into_the_weights(trained):
    """Other features and labels in the fold left out change no bit of a model; in any other fold they do."""
    _, data, _ = trained

    def weights(poisoned: int | None) -> list[torch.Tensor]:
        studies = [
            replace(
                study,
                targets=1 - study.targets,
                features=replace(study.features, features=-3 * np.asarray(study.features.features)),
            )
            if fold == poisoned
            else study
            for study, fold in zip(data.studies, data.folds.tolist(), strict=True)
        ]
        model = rnn_training._fit_one(FoldedStudies(studies, data.folds, 0), TRAINER, 1, 0, frozenset({0}))
        return list(model.state_dict().values())

    clean = weights(None)
    assert all(torch.equal(a, b) for a, b in zip(weights(0), clean, strict=True))
    for fold in (1, 2):
        assert not all(torch.equal(a, b) for a, b in zip(weights(fold), clean, strict=True))


# Learning


def test_a_study_is_predicted_the_same_in_any_company(trained):
    """An ensemble's probabilities of a study do not depend on the studies predicted with it."""
    _, data, _ = trained
    ensemble = fit_ensemble(data, TRAINER, without=frozenset({0}))
    studies = prepared(data)
    whole = predict_ensemble(ensemble, studies, CPU)
    parts = [predict_ensemble(ensemble, [study], CPU) for study in studies]
    for name in ("rnn", "blend"):
        alone = Predicted.joined([part[name] for part in parts])
        assert whole[name].slices == pytest.approx(alone.slices, abs=1e-5)
        assert whole[name].studies == pytest.approx(alone.studies, abs=1e-5)


def test_a_blend_is_what_the_bundle_says(trained):
    """Predicted by the ensemble in one batch or by the bundle study by study, probabilities are the same."""
    summary, data, _ = trained
    bundle = load_bundle(summary.out, CPU)
    along = Calibration(share=np.linspace(0, 1, K), slope=np.linspace(0.3, 2, K), intercept=np.linspace(-1, 1, K))
    back = Calibration(share=along.share[::-1], slope=along.slope[::-1], intercept=along.intercept[::-1])
    kernel = np.outer(np.linspace(0, 1, K), [0.2, 0.1, 0.05])
    ensemble = Ensemble(
        models=list(bundle.models), calibrations=Calibrations(slices=along, studies=back, kernel=kernel)
    )
    studies = prepared(data)
    said = predict_ensemble(ensemble, studies, CPU)["blend"]
    by_bundle = [replace(bundle, calibrations=ensemble.calibrations).predict([study.features]) for study in studies]
    assert said.slices == pytest.approx(np.concatenate([slices for slices, _ in by_bundle]), abs=1e-5)
    assert said.studies == pytest.approx(np.stack([study for _, study in by_bundle]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "method"), [(1, "platt"), (2, "temperature")])
def test_the_calibration_is_fitted_where_the_models_stopped(learnable, logits_alone, monkeypatch, seeds, method):
    """Models on the fold they stopped on, the mean of seeds, beside a base that did not see it: all rows together."""
    data, config = learnable
    without = frozenset({0})
    given = []
    monkeypatch.setattr(calibration, "LEAST_STUDIES", 5)
    for fit in (fit_smoothed, fit_calibration):
        monkeypatch.setattr(rnn_training, fit.__name__, lambda *rows, fit=fit: given.append(rows) or fit(*rows))
    trainer = Trainer(changed(config, seeds=seeds, calibration=method, epochs=12), CPU)
    ensemble = fit_ensemble(data, trainer, without=without)
    assert len(ensemble.models) == (FOLDS - 1) * seeds
    assert len({tuple(m.correction.weight.flatten().tolist()) for m in ensemble.models}) == len(ensemble.models)
    parts = [
        [
            logits_alone(model, data.to_learn_from(frozenset({fold}), without))
            for model in ensemble.models[i * seeds : (i + 1) * seeds]
        ]
        for i, fold in enumerate((1, 2, 3))
    ]
    held_out = [s for fold in (1, 2, 3) for s in data.to_learn_from(frozenset({fold}), without)]
    lengths = [np.array([len(s) for s in held_out]), np.ones(len(held_out), int)]
    for level, fitted in enumerate((ensemble.calibrations.slices, ensemble.calibrations.studies)):
        base, targets = (np.concatenate([of[0][level][i] for of in parts]) for i in (0, 2))
        refined = np.concatenate([np.mean([one[level][1] for one in of], axis=0) for of in parts])
        *rows, used = given[level]
        for row, by_hand in zip(rows, (base, refined, targets, lengths[level]), strict=True):
            np.testing.assert_allclose(row, by_hand, atol=1e-4)
        assert used == method
        expected = fit_calibration(base, refined, targets, lengths[level], method)
        if level == 0:
            expected, weights = fit_smoothed(base, refined, targets, lengths[level], method)
            assert ensemble.calibrations.kernel == pytest.approx(weights, abs=1e-4)
        for name in ("share", "slope", "intercept"):
            assert getattr(fitted, name) == pytest.approx(getattr(expected, name), rel=1e-2, abs=1e-3)
        assert set(fitted.share.tolist()) <= set(SHARES)
    assert (ensemble.calibrations.slices.slope[ANY], ensemble.calibrations.studies.slope[ANY]) != (1.0, 1.0)
    assert ensemble.calibrations.slices.slope[ANY] != ensemble.calibrations.studies.slope[ANY]
    told = [LABELS.index("subdural"), ANY]
    of_slices = ensemble.calibrations.slices
    assert (of_slices.share[told] > 0.5).all()  # the GRU knows what slices alone do not
    assert (np.delete(of_slices.share, told) == 0).all()  # no positives, nothing to choose by


def test_the_bundle_is_calibrated_as_the_ensemble_of_all_folds_is(trained):
    """The numbers on the card are those fitted with all folds' models, to the last digit."""
    summary, data, _ = trained
    expected = fit_ensemble(data, TRAINER).calibrations
    assert load_bundle(summary.out, CPU).calibrations.as_json() == expected.as_json()


@pytest.fixture(scope="module")
def learnable(told_by_the_slice_below) -> tuple[FoldedStudies, Config]:
    """Studies in which only neighbours know, and settings that let a small GRU learn from them."""
    rng = np.random.default_rng(0)
    studies = [told_by_the_slice_below(f"s{i}", rng, bleeding=i // FOLDS % 3 > 0) for i in range(40)]
    data = FoldedStudies(studies, np.arange(40) % FOLDS, 0)
    train = {"folds": FOLDS, "epochs": 20, "batch_studies": 8, "learning_rate": 0.02, "thin": 0.0, "reverse": 0.0}
    return data, Config.model_validate({"rnn": RNN | {"dropout": 0.0}, "train": train})


@pytest.mark.slow
def test_what_only_neighbours_know_is_learnt(learnable):
    """A sign that the slice below carries is found by the GRU on patients it never saw; slices alone find nothing."""
    data, config = learnable
    by_rnn, by_blend, by_slice, truth = [], [], [], []
    for fold in (0, 1):
        away = frozenset({fold})
        test = data.prepare(fold, away)
        said = predict_ensemble(fit_ensemble(data, Trainer(config, CPU), without=away), test, CPU)
        by_rnn.append(said["rnn"].slices)
        by_blend.append(said["blend"].slices)
        by_slice.append(data.classifier(away).logits(np.concatenate([s.features.features for s in test])))
        truth.append(np.concatenate([s.targets for s in test]))
    y = np.concatenate(truth)[:, ANY]
    assert auc(np.concatenate(by_rnn)[:, ANY], y) > 0.9
    assert auc(np.concatenate(by_blend)[:, ANY], y) > 0.9
    assert abs(auc(np.concatenate(by_slice)[:, ANY].astype(np.float64), y) - 0.5) < 0.15
