"""train-cnn and extract-features --cnn: no patient on two sides, the same bytes however often it was broken off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock

from ich_seq import ArtefactError, OutputError, UsageError, cnn_training, figures
from ich_seq.baselines import constant
from ich_seq.bundle import load_bundle
from ich_seq.cli import cli
from ich_seq.cnn_run import CURVES, ENCODER, FOLD, FOLDS, HELD_OUT, RUN, fold_folder, load_run
from ich_seq.cnn_training import CnnSummary, train_cnn
from ich_seq.config import Config, load_config
from ich_seq.distributed import Group
from ich_seq.encoder import SliceEncoder
from ich_seq.extraction import ExtractionSummary, extract_features
from ich_seq.files import sha256_file, short_hash
from ich_seq.labels import LABELS, read_labels
from ich_seq.metrics import weighted_log_loss
from ich_seq.phantom import PhantomSet, write_dataset
from ich_seq.reasons import Reason, Unused
from ich_seq.rnn_training import train_rnn
from ich_seq.store import MANIFEST, FeatureStore, decode_study, open_store
from ich_seq.studies import find_studies

N_FOLDS = 3
SETTINGS = [
    "slices.size=32",
    "encoder.arch=test_efficientnet",
    "encoder.weights=random",
    f"cnn.folds={N_FOLDS}",
    "cnn.epochs=2",
    "cnn.batch_slices=16",
    "cnn.precision=fp32",
]
EVERY = 3
"""Only each third slice of a study is kept, to be quick."""


Damage = Callable[[Path], None]
ELSEWHERE = Unused("elsewhere.dcm", Reason.DECODE, "The pixels cannot be decoded.", "1.2.3")


class KilledError(Exception):
    """What ends a training in the middle of these tests."""


def settings(*more: str) -> Config:
    return load_config(overrides=[*SETTINGS, *more])


def train(phantoms: PhantomSet, out: Path, *more: str, labels: Path | None = None, **given: object) -> CnnSummary:
    given = {"workers": 0, "device": "cpu"} | given
    return train_cnn(phantoms.dicom, labels or phantoms.labels, out, settings(*more), **given)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in (*arguments, "--quiet", "--device", "cpu")])


def command(phantoms: PhantomSet, out: Path, *more: str) -> list[object]:
    chosen = [word for setting in [*SETTINGS, *more] for word in ("--set", setting)]
    return ["train-cnn", phantoms.dicom, "--labels", phantoms.labels, "--out", out, *chosen]


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path; locks are no part of a run."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def held_out(run: Path, fold: int) -> pd.DataFrame:
    return pd.read_csv(fold_folder(run, fold) / HELD_OUT, dtype={"sop_uid": str}).set_index("sop_uid")


def folds_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / FOLDS, dtype={"study_uid": str, "patient_key": str}).set_index("study_uid")


def write_phantoms(folder: Path, n_studies: int, seed: int) -> PhantomSet:
    made = write_dataset(folder, n_studies=n_studies, seed=seed, matrix=64)
    order = pd.read_csv(made.order, dtype=str)
    kept = order[order.groupby("study").cumcount() % EVERY == 0]
    for sop in set(order["sop"]) - set(kept["sop"]):
        (made.dicom / f"{sop}.dcm").unlink()
    kept.to_csv(made.order, index=False)
    labels = pd.read_csv(made.labels, dtype=str)
    labels[labels["ID"].str.rsplit("_", n=1).str[0].isin(kept["sop"])].to_csv(made.labels, index=False)
    return replace(made, n_slices=len(kept), n_files=len(list(made.dicom.iterdir())))


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """How wide the figures' intervals are is no matter here, and they cost more than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    """Twelve studies, some patients with two of them."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), 12, seed=5)


@pytest.fixture(scope="module")
def trained(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> CnnSummary:
    """All folds, in one go."""
    return train(phantoms, tmp_path_factory.mktemp("trained") / "cnn")


@pytest.fixture(scope="module")
def one_fold(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which only fold 0 was trained."""
    out = tmp_path_factory.mktemp("one-fold") / "cnn"
    train(phantoms, out, fold=0)
    return out


@pytest.fixture(scope="module")
def features(phantoms: PhantomSet, trained: CnnSummary, tmp_path_factory: pytest.TempPathFactory) -> ExtractionSummary:
    """The training studies embedded by the networks trained on them."""
    out = tmp_path_factory.mktemp("features") / "store"
    return extract_features(phantoms.dicom, out, settings(), cnn=trained.out, device="cpu", workers=0)


# A run


def test_every_labelled_slice_is_predicted_once_by_the_network_that_did_not_learn_from_it(phantoms, trained):
    """The held-out files of all folds together are the labelled slices, each in the fold of its study."""
    tables = {fold: held_out(trained.out, fold) for fold in range(N_FOLDS)}
    predicted = [sop for table in tables.values() for sop in table.index]
    assert sorted(predicted) == sorted(read_labels(phantoms.labels).table.index)
    study_of = pd.read_csv(phantoms.order, dtype=str).set_index("sop")["study"]
    folds = folds_of(trained.out)["fold"]
    assert all((folds[study_of[table.index]] == fold).all() for fold, table in tables.items())
    assert all(np.isfinite(table.to_numpy()).all() for table in tables.values())


def test_no_patient_straddles_folds(phantoms, trained):
    """folds.csv names every study once, and both studies of a patient in one fold."""
    table = folds_of(trained.out)
    studies = find_studies(phantoms.dicom).studies
    assert sorted(table.index) == sorted(s.uid for s in studies)
    assert table["patient_key"].to_dict() == {s.uid: short_hash(s.patient_id) for s in studies}
    assert table["patient_key"].nunique() < len(table)
    assert (table.groupby("patient_key")["fold"].nunique() == 1).all()
    assert set(table["fold"]) == set(range(N_FOLDS))


def test_networks_learn_from_all_folds_but_their_own(trained, phantoms, monkeypatch):
    """Rows learnt from, watched and held out are whole folds; with early stopping yet another fold is watched."""
    seen = []
    monkeypatch.setattr(cnn_training, "_train_fold", lambda task, data, *_, **__: seen.append((task, data)))
    monkeypatch.setattr(cnn_training, "_sum_up", lambda *_: None)
    monkeypatch.setattr(cnn_training, "_open", lambda *_: None)
    for patience in (0, 2):
        train(phantoms, trained.out, f"cnn.patience={patience}")
    for task, data in seen:
        folds = data.folds[data.slices.study]
        own, stop = task.fold, (task.fold + 1) % N_FOLDS if task.options.patience else task.fold
        assert set(folds[task.watch]) == {stop}
        assert set(folds[task.learn]) == set(range(N_FOLDS)) - {own, stop}
        assert len(task.learn) == (~np.isin(folds, [own, stop])).sum()
    assert [task.fold for task, _ in seen] == [0, 1, 2] * 2


@pytest.fixture(scope="module")
def split(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Labels of eight studies, labels of three more in another file, one left without; patient by study."""
    studies = find_studies(phantoms.dicom).studies
    patients = {study.uid: study.patient_id for study in studies}
    twice = [uid for uid in patients if list(patients.values()).count(patients[uid]) > 1]
    also = [twice[0], *(uid for uid in patients if uid not in twice)][:3]  # one whose patient is judged, two of nobody
    judged = [uid for uid in patients if uid not in also][:8]
    rows, folder = pd.read_csv(phantoms.labels, dtype=str), tmp_path_factory.mktemp("split")
    for name, uids in (("judged", judged), ("also", also)):
        sops = {header.sop_uid for study in studies if study.uid in uids for header in study.slices}
        rows[rows["ID"].str.rsplit("_", n=1).str[0].isin(sops)].to_csv(folder / f"{name}.csv", index=False)
    assert twice[1] in judged
    return folder / "judged.csv", folder / "also.csv", patients


def test_what_is_only_learnt_from_is_learnt_from_by_those_who_may(phantoms, split, tmp_path, monkeypatch):
    """By all networks but the one that is held against its patient; it is watched by none and tells no frequency."""
    judged, also, patients = split
    seen = []
    monkeypatch.setattr(cnn_training, "_train_fold", lambda task, data, *_, **__: seen.append((task, data)))
    monkeypatch.setattr(cnn_training, "_sum_up", lambda *_: None)
    train(phantoms, tmp_path / "cnn", labels=judged, also=also)
    own, more = (set(read_labels(path).table.index) for path in (judged, also))
    fold_of = folds_of(tmp_path / "cnn")["fold"]
    nobodys = set(fold_of.index[fold_of == -1])
    assert len(nobodys) == 2
    assert not {patients[uid] for uid in nobodys} & {patients[uid] for uid in fold_of.index if uid not in nobodys}
    for task, data in seen:
        learnt, watched, natural = (
            {data.slices.sop_uid(row) for row in rows} for rows in (task.learn, task.watch, task.natural)
        )
        held_out = {patients[uid] for uid in fold_of.index[fold_of == task.fold]}
        may = {
            data.slices.sop_uid(row)
            for row in range(len(data.slices))
            if data.slices.studies[data.slices.study[row]].patient_id not in held_out
        }
        assert learnt == may
        assert learnt & more
        assert natural == learnt & own
        assert watched == own - may
    learnt_by_all = set.intersection(*({d.slices.sop_uid(r) for r in t.learn} for t, d in seen))
    assert learnt_by_all < more  # those of nobody, and not the one whose patient is judged


def test_what_is_only_learnt_from_is_not_judged_and_stands_on_record(phantoms, split, trained, tmp_path):
    """Held-out files and figures are of the labels proper; networks differ from those without, and know the rest."""
    judged, also, _ = split
    summary = train(phantoms, tmp_path / "with", labels=judged, also=also)
    without = train(phantoms, tmp_path / "without", labels=judged)
    predicted = [sop for fold in range(N_FOLDS) for sop in held_out(summary.out, fold).index]
    assert sorted(predicted) == sorted(read_labels(judged).table.index)
    record, plain = (json.loads((s.out / RUN).read_text()) for s in (summary, without))
    for name in ("studies", "patients", "slices", "positive_slices", "labels_sha256"):
        assert record[name] == plain[name]
    assert (record["also_studies"], record["also_slices"]) == (3, len(read_labels(also).table))
    assert record["also_sha256"] == sha256_file(also)
    assert (summary.studies, summary.also_studies) == (without.studies, 3) == (8, 3)
    assert (len(summary.unlabelled), len(without.unlabelled), without.also_studies) == (1, 4, 0)
    assert not any(name.startswith("also") for name in plain)
    assert [s["sha256"] for s in record["encoders"]] != [s["sha256"] for s in plain["encoders"]]
    assert folds_of(without.out)["fold"].to_dict().items() <= folds_of(summary.out)["fold"].to_dict().items()
    with pytest.raises(UsageError, match="other settings, data or labels"):
        train(phantoms, without.out, labels=judged, also=also)


def test_labels_that_no_other_study_has_are_refused(phantoms, tmp_path):
    """Labels of --also are for studies that --labels does not know."""
    with pytest.raises(UsageError, match=r"No study has labels in .*labels\.csv alone"):
        train(phantoms, tmp_path / "cnn", also=phantoms.labels)


def test_each_fold_begins_at_its_own_network(phantoms, trained, tmp_path, monkeypatch):
    """The encoder that is trained is, tensor by tensor, the other run's of that fold; its record says so."""
    seen = []

    def stop(task: object, encoder: SliceEncoder, *_: object, **__: object) -> None:
        seen.append((encoder.spec.weights, {k: v.clone() for k, v in encoder.network.state_dict().items()}))
        raise KilledError

    monkeypatch.setattr(cnn_training, "fit", stop)
    for fold in range(N_FOLDS):
        with pytest.raises(KilledError):
            train(phantoms, tmp_path / "cnn", begin=trained.out, fold=fold)
    for fold, (weights, tensors) in enumerate(seen):
        assert weights == f"train-cnn, all folds but {fold}, from random"
        before = load_run(trained.out).load(fold).network.state_dict()
        assert all(torch.equal(tensors[name], before[name]) for name in before)


def of_changed_patient(run: Path, copy: Path) -> Path:
    """Copy a run to one that only learnt from a study, as its Patient ID was another then."""
    shutil.copytree(run, copy)
    table = pd.read_csv(copy / FOLDS, dtype=str)
    second = table["patient_key"].duplicated().idxmax()
    table.loc[second, ["patient_key", "fold"]] = ["somebody else", "-1"]
    table.to_csv(copy / FOLDS, index=False)
    record = json.loads((copy / RUN).read_text()) | {"folds_sha256": sha256_file(copy / FOLDS)}
    (copy / RUN).write_text(json.dumps(record))
    return copy


def test_networks_that_knew_who_is_held_out_are_not_begun_at(phantoms, trained, one_fold, split, tmp_path):
    """Other folds or patients, a fold that was not trained, what is no run: refused before anything is written."""
    with pytest.raises(UsageError, match="the patients, or their folds, are others"):
        train(phantoms, tmp_path / "cnn", "cnn.seed=3", begin=trained.out)
    with pytest.raises(UsageError, match="the patients, or their folds, are others"):
        train(phantoms, tmp_path / "cnn", begin=trained.out, labels=split[0])
    with pytest.raises(UsageError, match="the patients, or their folds, are others"):
        train(phantoms, tmp_path / "cnn", begin=of_changed_patient(trained.out, tmp_path / "changed"))
    with pytest.raises(UsageError, match=r"learnt from the folds that these would stop on; set cnn\.patience to 0"):
        train(phantoms, tmp_path / "cnn", "cnn.patience=1", begin=trained.out)
    with pytest.raises(UsageError, match="no network of fold 1, 2 to begin at"):
        train(phantoms, tmp_path / "cnn", begin=one_fold)
    with pytest.raises(UsageError, match="is not a run of train-cnn"):
        train(phantoms, tmp_path / "cnn", begin=phantoms.dicom)
    assert not (tmp_path / "cnn").exists()
    broken = shutil.copytree(trained.out, tmp_path / "broken")
    (broken / "plan.json").unlink()
    with pytest.raises(ArtefactError, match=r"plan\.json cannot be read; train again"):
        train(phantoms, tmp_path / "cnn", begin=broken)


@pytest.mark.slow
def test_whom_a_beginning_learnt_from_is_not_forgotten(phantoms, split, tmp_path):
    """A run that begins at one with --also marks its studies as known, though it was not given their labels."""
    judged, also, _ = split
    first = train(phantoms, tmp_path / "first", "cnn.epochs=1", labels=judged, also=also)
    second = train(phantoms, tmp_path / "second", "cnn.epochs=1", labels=judged, begin=first.out)
    record = json.loads((second.out / RUN).read_text())
    assert record["begun_sha256"] == sha256_file(first.out / "plan.json")
    assert (
        record["encoders"][0]["weights"] == "train-cnn, all folds but 0, from train-cnn, all folds but 0, from random"
    )
    known, later = (folds_of(run.out)["fold"] for run in (first, second))
    assert (later == -1).sum() == (known == -1).sum() == 2
    assert later.to_dict().items() <= known.to_dict().items()
    marked = []
    for run in (first, second):
        store = tmp_path / f"features of {run.out.name}"
        extract_features(phantoms.dicom, store, settings(), cnn=run.out, device="cpu", workers=0)
        marked.append(open_store(store).in_sample())
    assert marked[0] == marked[1] == sorted(known.index[known == -1])


def test_the_record_says_what_the_run_is(phantoms, trained):
    """run.json: data, settings, encoders and figures, and nothing of the machine or the day."""
    record = json.loads((trained.out / RUN).read_text())
    labels = read_labels(phantoms.labels).table
    assert record["trained_folds"] == list(range(N_FOLDS)) == list(trained.folds)
    assert record["slices"] == len(labels) == trained.slices
    assert record["positive_slices"] == labels.sum().to_dict()
    assert (record["studies"], trained.studies) == (phantoms.n_studies,) * 2
    assert record["labels_sha256"] == sha256_file(phantoms.labels)
    assert record["settings"]["cnn"]["batch_slices"] == 16
    assert "rnn" not in record["settings"]
    assert [spec["weights"] for spec in record["encoders"]] == [
        f"train-cnn, all folds but {fold}, from random" for fold in range(N_FOLDS)
    ]
    for fold, spec in enumerate(record["encoders"]):
        assert spec["sha256"] == sha256_file(fold_folder(trained.out, fold) / ENCODER)
    assert len({spec["sha256"] for spec in record["encoders"]}) == N_FOLDS
    assert str(trained.out.parent) not in (trained.out / RUN).read_text()


def test_the_figures_are_those_of_the_held_out_slices(phantoms, trained):
    """Loss of the networks and of the prevalence among the other folds, made anew from the files."""
    labels = read_labels(phantoms.labels).table
    tables = [held_out(trained.out, fold) for fold in range(N_FOLDS)]
    targets = [labels.loc[t.index].to_numpy(np.uint8) for t in tables]
    said = np.concatenate([1 / (1 + np.exp(-t.to_numpy())) for t in tables])
    others = [np.concatenate([t for k, t in enumerate(targets) if k != fold]) for fold in range(N_FOLDS)]
    least = np.concatenate([constant(o, len(t)) for o, t in zip(others, targets, strict=True)])
    judged = trained.figures
    assert set(judged) == {"constant", "position", "cnn"}
    loss = weighted_log_loss(said, np.concatenate(targets))
    assert judged["cnn"]["slice_loss"]["value"] == pytest.approx(loss, abs=1e-5)
    loss = weighted_log_loss(least, np.concatenate(targets))
    assert judged["constant"]["slice_loss"]["value"] == pytest.approx(loss, abs=1e-5)
    assert set(judged["cnn"]["difference_to_position"]["slice_auc"]) == set(LABELS)


def test_nothing_in_a_run_names_a_patient(phantoms, trained, features):
    """No Patient ID is in a file or file name, of the run or of a store made by it."""
    patients = {str(pydicom.dcmread(p, stop_before_pixels=True).PatientID) for p in phantoms.dicom.iterdir()}
    assert len(patients) > N_FOLDS
    for folder in (trained.out, features.out):
        found = tree(folder)
        assert len(found) > 5
        assert not [name for name, data in found.items() for p in patients if p.encode() in data or p in name]


def test_a_finished_run_leaves_no_states(trained):
    """Each fold's folder holds the network, what it said and its record, and no weights besides."""
    for fold in range(N_FOLDS):
        names = {p.name for p in fold_folder(trained.out, fold).iterdir()} - {".lock"}
        assert names == {ENCODER, HELD_OUT, FOLD}
    names = {p.name for p in trained.out.iterdir() if p.is_file()} - {".lock"}
    assert names == {RUN, FOLDS, CURVES, "plan.json", "rejected.csv"}


def test_finished_folds_are_not_trained_again(phantoms, trained, monkeypatch):
    """A second run takes no step and leaves every byte as it was."""
    before = tree(trained.out)
    monkeypatch.setattr(cnn_training, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = train(phantoms, trained.out)
    assert tree(trained.out) == before
    assert again.figures == trained.figures


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [ENCODER, HELD_OUT, FOLD])
def test_a_fold_whose_files_were_changed_is_trained_again(phantoms, trained, tmp_path, damaged):
    """To the bytes that were there before; the other folds stay."""
    out = tmp_path / "cnn"
    shutil.copytree(trained.out, out)
    path = fold_folder(out, 1) / damaged
    path.write_bytes(path.read_bytes()[:-10])
    stages: set[str] = set()
    train(phantoms, out, progress=lambda stage, done, total: stages.add(stage))
    assert {s for s in stages if s.startswith("training")} == {"training fold 1"}
    assert tree(out) == tree(trained.out)


@pytest.mark.slow
def test_one_fold_and_then_all_is_the_same_as_all(phantoms, trained, one_fold, tmp_path):
    """Whichever fold comes first, the run ends at the same bytes."""
    out = tmp_path / "cnn"
    shutil.copytree(one_fold, out)
    part = json.loads((out / RUN).read_text())
    assert part["trained_folds"] == [0]
    assert not fold_folder(out, 1).exists()
    train(phantoms, out, fold=2)
    assert json.loads((out / RUN).read_text())["trained_folds"] == [0, 2]
    train(phantoms, out)
    assert tree(out) == tree(trained.out)


@pytest.mark.slow
def test_a_run_killed_in_every_fold_ends_at_the_same_bytes_with_any_workers(phantoms, trained, tmp_path):
    """Broken off again and again, taken up with two workers and with none: encoders, logits and record are the same."""
    out, killed = tmp_path / "cnn", 0
    for attempt in range(50):
        steps = []

        def die(stage: str, done: int, total: int, steps=steps) -> None:
            if stage.startswith("training"):
                steps.append(stage)
                if len(steps) == 7:
                    raise KilledError

        try:
            train(phantoms, out, workers=2 * (attempt % 2), progress=die)
            break
        except KilledError:
            killed += 1
    assert killed >= N_FOLDS
    assert tree(out) == tree(trained.out)


@pytest.mark.slow
def test_how_often_a_state_is_written_is_no_part_of_a_run(phantoms, one_fold, tmp_path):
    """Who is killed for the second time may ask for more states, and goes on to the same bytes."""
    out = tmp_path / "cnn"

    def die(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("training fold 0", 7):
            raise KilledError

    with pytest.raises(KilledError):
        train(phantoms, out, fold=0, progress=die)
    train(phantoms, out, "cnn.checkpoint_minutes=0", fold=0)
    assert tree(out) == tree(one_fold)


@pytest.mark.slow
def test_two_processes_that_end_together_both_sum_up(phantoms, trained, one_fold, tmp_path, monkeypatch):
    """Hours of training are not lost to a lock, and who comes second counts what the first one trained."""
    out = tmp_path / "cnn"
    shutil.copytree(one_fold, out)
    other = FileLock(out / ".lock", thread_local=False)

    def end_beside_another(*_: object, **__: object) -> None:
        shutil.copytree(fold_folder(trained.out, 1), fold_folder(out, 1))
        other.acquire()
        threading.Timer(0.5, end_the_other).start()

    def end_the_other() -> None:
        shutil.copytree(fold_folder(trained.out, 2), fold_folder(out, 2))
        other.release()

    monkeypatch.setattr(cnn_training, "_train_fold", end_beside_another)
    assert train(phantoms, out, fold=1).folds == (0, 1, 2)
    assert tree(out) == tree(trained.out)


def test_a_run_that_another_process_never_lets_go_of_is_told_in_the_end(phantoms, trained, tmp_path, monkeypatch):
    """Not at once, and with the words that nothing is lost by coming back."""
    out = tmp_path / "cnn"
    shutil.copytree(trained.out, out)
    monkeypatch.setattr(cnn_training, "WAIT_S", 0.2)
    with (
        FileLock(out / ".lock"),
        pytest.raises(OutputError, match=r"has been writing to .* for 0\.2 s; run the same command again later"),
    ):
        train(phantoms, out)


def start(phantoms: PhantomSet, out: Path) -> Iterator[subprocess.Popen]:
    """Yield a training of fold 0 by a process group of its own, as soon as it has a state."""
    words = [sys.executable, "-m", "ich_seq.cli", *command(phantoms, out, "cnn.checkpoint_minutes=0"), "--quiet"]
    words += ["--fold", 0, "--workers", 2, "--device", "cpu"]
    threads = str(torch.get_num_threads())  # as many as go on with it here: sums of other parts differ in the last bit
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    with subprocess.Popen([str(w) for w in words], env=environment, start_new_session=True) as process:
        for _ in range(12000):
            if (fold_folder(out, 0) / "fold-0.json").exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        yield process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_process_that_is_killed_goes_on_to_the_same_bytes(phantoms, one_fold, tmp_path, number, code):
    """A scheduler signals the workers too: a polite one gets 143 and a state, a rude one at least the last state."""
    out = tmp_path / "cnn"
    for process in start(phantoms, out):
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == code
    assert (fold_folder(out, 0) / "fold-0.json").exists()
    assert not (out / RUN).exists()
    steps = []
    train(
        phantoms,
        out,
        "cnn.checkpoint_minutes=0",
        fold=0,
        progress=lambda stage, done, total: steps.append(done) if stage.startswith("training") else None,
    )
    assert steps[0] > 1
    assert {name: tree(out)[name] for name in tree(one_fold) if name.startswith("fold-0/")} == {
        name: data for name, data in tree(one_fold).items() if name.startswith("fold-0/")
    }


def test_labels_of_the_fold_held_out_change_no_byte_of_its_network(phantoms, trained, one_fold, tmp_path):
    """Its encoder and what it says stay the same to the byte; only the figures know the labels."""
    table = read_labels(phantoms.labels).table
    order = pd.read_csv(phantoms.order, dtype=str).set_index("sop")
    folds = folds_of(trained.out)["fold"]
    held = order.loc[table.index, "study"].map(folds) == 0
    most = table.groupby(order.loc[table.index, "study"].to_numpy()).transform("max")
    table = table.where(~held, most)  # every slice what its study is, so that the folds stay
    assert (table != read_labels(phantoms.labels).table).any(axis=None)
    table.rename_axis("ID").to_csv(tmp_path / "other.csv")
    out = tmp_path / "cnn"
    summary = train(phantoms, out, labels=tmp_path / "other.csv", fold=0)
    assert (out / FOLDS).read_bytes() == (one_fold / FOLDS).read_bytes()
    for name in (ENCODER, HELD_OUT):
        assert (fold_folder(out, 0) / name).read_bytes() == (fold_folder(one_fold, 0) / name).read_bytes()
    before = json.loads((one_fold / RUN).read_text())["figures"]["cnn"]
    assert summary.figures["cnn"]["slice_loss"] != before["slice_loss"]


def test_a_run_that_stops_early_keeps_the_fold_held_out_out_of_it(phantoms, tmp_path):
    """With `patience` the next fold is watched and the curve says so; the fold held out is predicted all the same."""
    summary = train(phantoms, tmp_path / "cnn", "cnn.patience=1", fold=2)
    record = json.loads((fold_folder(summary.out, 2) / FOLD).read_text())
    losses = [row["watched_loss"] for row in record["curve"]]
    assert record["epoch"] == 1 + int(np.argmin(losses))
    studies = folds_of(summary.out).query("fold == 2").index
    order = pd.read_csv(phantoms.order, dtype=str).set_index("sop")["study"]
    assert set(order[held_out(summary.out, 2).index]) == set(studies)


def test_unlabelled_studies_are_named_and_left_out(phantoms, tmp_path):
    """A study without any label is in no fold and no count of slices learnt from."""
    order = pd.read_csv(phantoms.order, dtype=str).set_index("sop")["study"]
    lines = phantoms.labels.read_text().splitlines()
    without = order.iloc[0]
    kept = [line for line in lines[1:] if order[line.rsplit("_", 1)[0]] != without]
    (tmp_path / "labels.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    summary = train(phantoms, tmp_path / "cnn", "cnn.epochs=1", labels=tmp_path / "labels.csv", fold=0)
    assert summary.unlabelled == (without,)
    assert (summary.studies, summary.slices) == (11, len(kept) // len(LABELS))
    assert without not in folds_of(summary.out).index


# Damaged files


@pytest.fixture(scope="module")
def damaged(
    phantoms: PhantomSet, trained: CnnSummary, tmp_path_factory: pytest.TempPathFactory, cut_frame: Damage
) -> tuple:
    """The same files with a frame of fold 0 cut, a file of fold 1 cut short, and one that is no slice."""
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(phantoms.dicom, root / "dicom")
    broken, short = held_out(trained.out, 0).index[4], held_out(trained.out, 1).index[4]
    cut_frame(root / "dicom" / f"{broken}.dcm")
    path = root / "dicom" / f"{short}.dcm"
    path.write_bytes(path.read_bytes()[:-900])
    (root / "dicom" / "notes.txt").write_text("no slice")
    return replace(phantoms, dicom=root / "dicom"), broken, short


def check_account(summary: CnnSummary, n_files: int) -> None:
    """Every file is used or a row of rejected.csv, and the record says so."""
    counts, listed = summary.counts, pd.read_csv(summary.out / "rejected.csv", dtype=str)
    assert (counts.files, counts.used + counts.excluded + counts.rejected) == (n_files, n_files)
    assert (listed["fate"] == "rejected").sum() == counts.rejected
    assert listed["file"].is_unique
    assert len(listed) == n_files - counts.used
    assert json.loads((summary.out / RUN).read_text())["counts"] == asdict(counts)


def test_a_damaged_slice_costs_itself_only(damaged, trained, tmp_path):
    """Exit code 3, each reason in rejected.csv, counts that add up, and every other slice predicted."""
    phantoms, broken, short = damaged
    out = tmp_path / "cnn"
    result = run(*command(phantoms, out), "--json", "--workers", 0)
    assert result.exit_code == 3
    told = json.loads(result.stdout)
    assert told["files"] == phantoms.n_files + 1
    assert told["files"] == told["used"] + told["excluded"] + told["rejected"]
    assert (told["excluded"], told["rejected"]) == (1, 2)
    assert told["reasons"] == {"decode": 1, "other_file": 1, "pixel_data": 1}
    listed = pd.read_csv(out / "rejected.csv", dtype=str).set_index("file")
    assert sorted(listed.index) == sorted(map(short_hash, [f"{broken}.dcm", f"{short}.dcm", "notes.txt"]))
    for fold, (victim, reason) in enumerate(((broken, "decode"), (short, "pixel_data"))):
        row = listed.loc[short_hash(f"{victim}.dcm")]
        assert (row["fate"], row["reason"]) == ("rejected", reason)
        assert row["study_uid"] in folds_of(out).query(f"fold == {fold}").index
        assert set(held_out(trained.out, fold).index) - set(held_out(out, fold).index) == {victim}
    assert json.loads((out / RUN).read_text())["counts"]["rejected"] == 2
    assert "rejected.csv lists each" in result.stderr


def test_a_slice_that_only_the_fold_held_out_has_is_reported_too(damaged, tmp_path):
    """With early stopping no training and no watching meets the fold held out; its prediction does."""
    phantoms, broken, _ = damaged
    summary = train(phantoms, tmp_path / "cnn", "cnn.patience=1", "cnn.epochs=1", fold=0)
    assert summary.counts.rejected == 2
    assert f"{short_hash(f'{broken}.dcm')},rejected,decode" in (tmp_path / "cnn" / "rejected.csv").read_text()
    check_account(summary, phantoms.n_files + 1)


class Beside(Group):
    """A group in which another process could not read a slice of its share."""

    def gather(self, part):
        """Let the other one be heard, where slices are named."""
        return [part, {ELSEWHERE}] if isinstance(part, set) else [part]


def test_a_slice_that_only_another_process_met_is_reported_too(phantoms, tmp_path, monkeypatch):
    """The first process alone writes rejected.csv; what it did not read itself must reach it."""
    monkeypatch.setattr(cnn_training, "joined_group", lambda device: nullcontext(Beside()))
    summary = train(phantoms, tmp_path / "cnn", "cnn.epochs=1", fold=0)
    assert summary.counts.reasons == {"decode": 1}
    assert "elsewhere.dcm,rejected,decode" in (tmp_path / "cnn" / "rejected.csv").read_text()
    check_account(summary, phantoms.n_files)


def test_a_neighbour_without_labels_that_cannot_be_read_is_reported(phantoms, tmp_path, cut_frame):
    """It is learnt from by nobody, but shown beside two slices that are: rejected once, and not counted as used."""
    order = pd.read_csv(phantoms.order, dtype=str)
    middle = order[order["study"] == order["study"].iloc[0]]["sop"].iloc[3]
    shutil.copytree(phantoms.dicom, tmp_path / "dicom")
    cut_frame(tmp_path / "dicom" / f"{middle}.dcm")
    labels = pd.read_csv(phantoms.labels, dtype=str)
    labels[labels["ID"].str.rsplit("_", n=1).str[0] != middle].to_csv(tmp_path / "labels.csv", index=False)
    some = replace(phantoms, dicom=tmp_path / "dicom")
    out = tmp_path / "cnn"
    more = ["cnn.epochs=1", "slices.neighbours=[-1, 0, 1]"]
    summary = train(some, out, *more, labels=tmp_path / "labels.csv", fold=0)
    assert summary.counts.reasons == {"decode": 1}
    assert f"{short_hash(f'{middle}.dcm')},rejected,decode" in (out / "rejected.csv").read_text()
    check_account(summary, phantoms.n_files)


# The command


def test_the_command_prints_one_result(phantoms, trained, tmp_path):
    """As JSON on stdout, with the figures; as a table without --json; exit code 0."""
    out = tmp_path / "cnn"
    shutil.copytree(trained.out, out)
    result = run(*command(phantoms, out), "--json", "--workers", 0)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["out"], told["folds"], told["studies"]) == (str(out), [0, 1, 2], phantoms.n_studies)
    assert told["figures"] == trained.figures
    result = run(*command(phantoms, out), "--fold", 1, "--workers", 0)
    assert "slice AUC(any)" in result.stdout
    assert result.stdout.endswith(f"folds 0, 1, 2 of 3 -> {out}\n")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--fold", "3"], "There is no fold 3: cnn.folds is 3, counted from 0."),
        (["--fold", "-1"], "--fold is a fold's number, from 0, all or final"),
        (["--set", "cnn.batch_slices=5000"], "fewer slices to learn from than cnn.batch_slices; lower that"),
        (["--set", "cnn.accumulate=5"], "cnn.batch_slices 16 is no multiple of 1 processes x cnn.accumulate 5"),
        (["--set", "cnn.patience=2", "--set", "cnn.folds=2"], "cnn.folds must be 3 or more, or cnn.patience 0"),
        (["--set", "cnn.folds=40"], "40 patient-disjoint folds need at least 40 patients"),
        (["--set", "cnn.drop_path=0.1", "--set", "encoder.arch=vgg11"], "vgg11 knows no stochastic depth"),
        (["--set", "encoder.arch=resnet999"], "timm knows no network 'resnet999'"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_claims_no_folder(phantoms, tmp_path, more, sentence):
    """A sentence with the remedy, exit code 2, and the mended settings may go to the same --out."""
    out = tmp_path / "cnn"
    result = run(*command(phantoms, out), *more, "--workers", 0)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert not (out / "plan.json").exists()


def test_a_fold_that_there_is_not_is_refused_before_any_file_is_read(phantoms, tmp_path, monkeypatch):
    """Headers of a large data set take minutes; a slip of the finger is told at once."""
    monkeypatch.setattr(cnn_training, "find_studies", lambda *_, **__: pytest.fail("read first"))
    with pytest.raises(UsageError, match=r"There is no fold 9: cnn\.folds is 3, counted from 0"):
        train(phantoms, tmp_path / "cnn", fold=9)


def test_labels_of_other_slices_are_refused(phantoms, tmp_path):
    """No slice with a label: the sentence says what the IDs must be."""
    (tmp_path / "labels.csv").write_text("ID,Label\n" + "".join(f"ID_0_{label},0\n" for label in LABELS))
    with pytest.raises(UsageError, match=r"None of the 12 studies has a labelled slice; the IDs .* must be the SOP"):
        train(phantoms, tmp_path / "cnn", labels=tmp_path / "labels.csv")
    assert not (tmp_path / "cnn").exists()


@pytest.mark.parametrize("setting", ["cnn.epochs=3", "cnn.seed=1", "slices.size=48", "augment.flip=0"])
def test_other_settings_in_the_same_folder_are_refused(phantoms, trained, setting):
    """Folds trained otherwise would not be comparable; nothing of the run is touched."""
    before = tree(trained.out)
    with pytest.raises(UsageError, match=r"was begun with other settings, data or labels"):
        train(phantoms, trained.out, setting)
    assert tree(trained.out) == before


def test_other_labels_in_the_same_folder_are_refused(phantoms, trained, tmp_path):
    """Also where they say the same in other bytes: what was trained on must be told by its hash."""
    (tmp_path / "labels.csv").write_text(phantoms.labels.read_text() + "\n")
    with pytest.raises(UsageError, match="other settings, data or labels"):
        train(phantoms, trained.out, labels=tmp_path / "labels.csv")


def test_other_data_in_the_same_folder_are_refused(phantoms, trained, tmp_path):
    """A study less is another run."""
    shutil.copytree(phantoms.dicom, tmp_path / "dicom")
    for header in find_studies(tmp_path / "dicom").studies[0].slices:
        header.path.unlink()
    fewer = replace(phantoms, dicom=tmp_path / "dicom")
    with pytest.raises(UsageError, match="other settings, data or labels"):
        train(fewer, trained.out)


def test_a_diverging_training_ends_with_the_remedy(phantoms, tmp_path):
    """Exit code 2 and a sentence, and no fold that passes for trained."""
    out = tmp_path / "cnn"
    with np.errstate(all="ignore"):
        result = run(*command(phantoms, out, "cnn.learning_rate=1e30"), "--fold", 0, "--workers", 0)
    assert result.exit_code == 2
    assert "lower cnn.learning_rate" in result.stderr
    assert not (fold_folder(out, 0) / FOLD).exists()
    assert not (out / RUN).exists()


def test_a_fold_that_another_process_trains_is_left_to_it(phantoms, one_fold, tmp_path):
    """One process a fold; the others may go on side by side."""
    out = tmp_path / "cnn"
    shutil.copytree(one_fold, out)
    fold_folder(out, 1).mkdir()
    with FileLock(fold_folder(out, 1) / ".lock"), pytest.raises(OutputError, match="Another process is writing"):
        train(phantoms, out, fold=1)


def test_reduced_precision_trains_too(phantoms, tmp_path):
    """bf16 gives finite losses near those of fp32, and held-out logits of full precision."""
    summary = train(phantoms, tmp_path / "cnn", "cnn.precision=bf16", "cnn.epochs=1", fold=0)
    (row,) = json.loads((fold_folder(summary.out, 0) / FOLD).read_text())["curve"]
    assert 0 < row["learnt_loss"] < 1
    assert 0 < row["watched_loss"] < 1
    logits = held_out(summary.out, 0).to_numpy()
    assert np.isfinite(logits).all()
    assert (np.abs(logits * 2**8 % 1 - 0.5) < 0.4).any()  # bfloat16 has eight bits


# TensorBoard


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_tensorboard_writes_only_if_asked(phantoms, tmp_path, wanted):
    """Event files with the losses lie in the fold's folder, or nowhere."""
    out = tmp_path / "cnn"
    train(phantoms, out, "cnn.epochs=1", fold=0, tensorboard=wanted)
    events = list(out.rglob("events.out.tfevents.*"))
    assert [p.parent for p in events] == ([fold_folder(out, 0) / "tensorboard"] if wanted else [])
    if wanted:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(events[0]))
        read.Reload()
        (row,) = json.loads((fold_folder(out, 0) / FOLD).read_text())["curve"]
        for name in ("learnt", "watched"):
            (event,) = read.Scalars(f"loss/{name}")
            assert event.value == pytest.approx(row[f"{name}_loss"], rel=1e-5)


def test_tensorboard_that_is_not_installed_ends_with_the_remedy(phantoms, tmp_path, monkeypatch):
    """Before anything is trained, with the words to install it."""
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard" or n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'ich-seq\[tensorboard\]'"):
        train(phantoms, tmp_path / "cnn", fold=0, tensorboard=True)
    assert not list(fold_folder(tmp_path / "cnn", 0).glob("*.safetensors"))


# extract-features --cnn


def by_network(store: FeatureStore) -> dict[tuple[str, int], object]:
    files = store.studies["file"]
    studies = [decode_study((store.root / f).read_bytes(), store.root / f) for f in files]
    return {(s.study_uid, s.network): s for s in studies}


def test_training_studies_are_embedded_by_the_network_of_their_own_fold(trained, features):
    """One row a study, by the network that did not learn from it; none is in-sample."""
    store = open_store(features.out)
    table = store.studies.set_index("study_uid")
    assert table["network"].to_dict() == folds_of(trained.out)["fold"].to_dict()
    assert store.in_sample() == []
    assert (features.in_sample, features.studies) == (0, 12)
    assert {k: spec["sha256"] for k, spec in store.manifest["encoders"].items()} == {
        str(k): sha256_file(fold_folder(trained.out, k) / ENCODER) for k in range(N_FOLDS)
    }


def test_stored_logits_are_those_held_out(trained, features):
    """Features are rounded to float16 after the head has seen them, so logits agree to float32 and six decimals."""
    store = open_store(features.out)
    for fold in range(N_FOLDS):
        table = held_out(trained.out, fold)
        rows = {sop: row for s in store if s.network == fold for sop, row in zip(s.sop_uids, s.logits, strict=True)}
        stored = np.stack([rows[sop] for sop in table.index])
        assert stored.dtype == np.float32
        assert np.allclose(stored, table.to_numpy(), rtol=0, atol=1e-5)
        assert table.to_numpy().std(axis=0).min() > 1e-4


def test_networks_of_two_runs_embed_side_by_side(phantoms, trained, features, tmp_path):
    """Given twice, --cnn puts the embeddings of each fold's networks one after the other and takes the mean of logits;
    a sequence model learns from the store, and its bundle predicts."""
    other = train(phantoms, tmp_path / "other", "augment.flip=0").out
    out, chosen = tmp_path / "store", [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["--cnn", trained.out, "--cnn", other, "--out", out, "--workers", 0]
    assert run("extract-features", phantoms.dicom, *words, *chosen).exit_code == 0
    alone = extract_features(phantoms.dicom, tmp_path / "alone", settings(), cnn=other, device="cpu", workers=0)
    both, one, two = (by_network(open_store(store)) for store in (out, features.out, alone.out))
    assert both.keys() == one.keys() == two.keys()
    for key, study in both.items():
        assert np.array_equal(study.features, np.concatenate([one[key].features, two[key].features], axis=1))
        assert np.allclose(study.logits, (one[key].logits + two[key].logits) / 2, atol=1e-5)
        assert not np.allclose(one[key].logits, two[key].logits, atol=1e-4)
    assert run("train-rnn", out, "--labels", phantoms.labels, "--out", tmp_path / "bundle", *chosen).exit_code == 0
    result = run("predict", phantoms.dicom, "--bundle", tmp_path / "bundle", "--out", tmp_path / "results", "--report")
    assert result.exit_code == 0, result.output


def test_patients_no_network_has_seen_are_embedded_by_all(trained, tmp_path):
    """A row a network, with other features each; reading takes one of them a study."""
    strangers = write_phantoms(tmp_path / "strangers", 3, seed=77)
    summary = extract_features(
        strangers.dicom, tmp_path / "store", settings(), cnn=trained.out, device="cpu", workers=0
    )
    store = open_store(summary.out)
    assert (summary.studies, summary.in_sample, len(store.studies)) == (3, 0, 9)
    assert sorted(store.studies["network"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    pieces = by_network(store)
    for uid in store.studies["study_uid"].unique():
        assert not np.array_equal(pieces[uid, 0].features, pieces[uid, 1].features)
        assert pieces[uid, 0].sop_uids == pieces[uid, 2].sop_uids
    assert sorted(s.network for s in store) == [0, 1, 2]


def test_another_study_of_a_known_patient_goes_by_the_patient(phantoms, trained, tmp_path):
    """A study that the run has never seen, of a patient that it has, goes to the network of the patient's fold."""
    known = find_studies(phantoms.dicom).studies[0]
    (tmp_path / "later").mkdir()
    for header in known.slices:
        with pydicom.config.disable_value_validation():
            dataset = pydicom.dcmread(header.path)
            dataset.StudyInstanceUID = "1.2.3"
            dataset.SOPInstanceUID = f"1.2.3.{header.sop_uid[3:12]}"
            dataset.save_as(tmp_path / "later" / header.file)
    out = tmp_path / "store"
    extract_features(tmp_path / "later", out, settings(), cnn=trained.out, device="cpu", workers=0)
    (row,) = open_store(out).studies.itertuples()
    assert (row.study_uid, row.network) == ("1.2.3", folds_of(trained.out).loc[known.uid, "fold"])


def test_a_run_with_one_fold_marks_the_others_and_training_refuses_them(phantoms, one_fold, tmp_path):
    """The command warns, the index says which studies, and train-rnn will not make figures of them."""
    out = tmp_path / "store"
    result = run("extract-features", phantoms.dicom, "--cnn", one_fold, "--out", out, "--json", "--workers", 0)
    folds = folds_of(one_fold)["fold"]
    others = sorted(folds.index[folds != 0])
    assert result.exit_code == 0
    assert f"{len(others)} studies could only be embedded by a network that learnt from their patients" in result.stderr
    store = open_store(out)
    assert store.in_sample() == others
    assert set(store.studies["network"]) == {0}
    refusal = run("train-rnn", out, "--labels", phantoms.labels, "--out", tmp_path / "bundle")
    assert refusal.exit_code == 2
    assert f"{len(others)} studies were embedded by a network that learnt from their patients" in refusal.stderr
    assert "train-cnn --fold all" in refusal.stderr
    assert not (tmp_path / "bundle").exists()


def test_extracting_twice_gives_identical_bytes(phantoms, trained, features, tmp_path):
    """Neither workers nor a second run in the same folder change anything."""
    out = tmp_path / "store"
    shutil.copytree(features.out, out)
    before = tree(out)
    extract_features(phantoms.dicom, out, settings(), cnn=trained.out, device="cpu", workers=0)
    assert tree(out) == before
    extract_features(phantoms.dicom, tmp_path / "new", settings(), cnn=trained.out, device="cpu", workers=2)
    assert tree(tmp_path / "new") == before


def test_features_of_a_run_that_grew_are_made_anew(phantoms, one_fold, trained, features, tmp_path):
    """After the other folds were trained, the same command mends a store that was in-sample."""
    out = tmp_path / "store"
    extract_features(phantoms.dicom, out, settings(), cnn=one_fold, device="cpu", workers=0)
    assert open_store(out).in_sample()
    extract_features(phantoms.dicom, out, settings(), cnn=trained.out, device="cpu", workers=0)
    assert tree(out) == tree(features.out)


def test_what_is_no_run_is_refused(tmp_path, phantoms):
    """The sentence says which command makes one, and ends with exit code 2."""
    result = run("extract-features", phantoms.dicom, "--cnn", tmp_path, "--out", tmp_path / "store")
    assert result.exit_code == 2
    assert "is not a run of train-cnn" in result.stderr


@pytest.mark.parametrize("name", [f"fold-1/{ENCODER}", f"fold-1/{HELD_OUT}", FOLDS])
def test_a_run_that_was_changed_is_refused(phantoms, trained, tmp_path, name):
    """Weights, logits and folds are vouched for by their hashes: which patient a network saw must not be edited."""
    out = tmp_path / "cnn"
    shutil.copytree(trained.out, out)
    (out / name).write_bytes((out / name).read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtefactError, match="changed since"):
        extract_features(phantoms.dicom, tmp_path / "store", settings(), cnn=out, device="cpu", workers=0)
    assert not (tmp_path / "store").exists()


# ---- the final network ----


@pytest.fixture(scope="module")
def with_final(phantoms, trained, tmp_path_factory) -> tuple[Path, CnnSummary]:
    """The run of all folds, and the final network added to it."""
    out = tmp_path_factory.mktemp("final") / "cnn"
    shutil.copytree(trained.out, out)
    return out, train(phantoms, out, fold="final")


def test_the_final_network_learns_from_every_patient_and_leaves_the_folds_as_they_are(with_final, trained, phantoms):
    """Its rows are all rows, it watches none; figures and files of the folds do not change."""
    out, summary = with_final
    assert summary.final
    assert not trained.final
    assert (summary.folds, summary.figures) == (trained.folds, trained.figures)
    before, after = tree(trained.out), tree(out)
    added = f"{fold_folder(out, N_FOLDS).name}/"
    assert {name for name in after if after[name] != before.get(name)} - {RUN, CURVES} == {
        name for name in after if name.startswith(added)
    }
    (fold,) = [json.loads(after[name]) for name in after if name == f"{added}{FOLD}"]
    assert [sorted(row) for row in fold["curve"]] == [["epoch", "learnt_loss"]] * 2
    assert "all patients" in fold["spec"]["weights"]
    assert len(held_out(out, N_FOLDS)) == 0
    seen: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cnn_training, "fit", lambda task, *a, **k: seen.append(task) or (_ for _ in ()).throw(KilledError)
        )
        with pytest.raises(KilledError):
            train(phantoms, out.parent / "again", fold="final")
    assert sorted(seen[0].learn) == list(range(summary.slices))
    assert len(seen[0].watch) == 0


@pytest.mark.slow
def test_the_final_network_alone_is_a_run_without_figures(phantoms, tmp_path):
    """So an encoder can be begun on other data; the command says where it is, and judges nothing."""
    done = run(*command(phantoms, tmp_path / "cnn"), "--fold", "final", "--workers", 0)
    assert done.exit_code == 0, done.output
    assert "the final network ->" in done.stdout
    assert "AUC" not in done.stdout
    summary = extract_features(
        phantoms.dicom, tmp_path / "store", settings(), cnn=tmp_path / "cnn", device="cpu", workers=0
    )
    assert summary.in_sample == summary.studies


def test_a_final_network_that_is_to_stop_early_is_refused(phantoms, tmp_path):
    """It has no fold to stop on, and what it watched would be what it learnt."""
    with pytest.raises(UsageError, match="none to stop on"):
        train(phantoms, tmp_path / "cnn", "cnn.patience=2", fold="final")


@pytest.mark.slow
def test_a_bundle_of_a_run_with_a_final_network_holds_it_alone(with_final, phantoms, tmp_path):
    """Training studies are embedded by the networks of their folds as before; the bundle has the final one."""
    out, _ = with_final
    features = extract_features(phantoms.dicom, tmp_path / "store", settings(), cnn=out, device="cpu", workers=0)
    store = open_store(features.out)
    assert store.studies.set_index("study_uid")["network"].to_dict() == folds_of(out)["fold"].to_dict()
    assert store.manifest["final"] == N_FOLDS
    assert features.in_sample == 0
    train_rnn(features.out, phantoms.labels, tmp_path / "bundle", settings("train.folds=3", "train.epochs=1"))
    bundle = load_bundle(tmp_path / "bundle", torch.device("cpu"))
    (embedder,) = bundle.embedders.values()
    assert embedder.spec.sha256 == sha256_file(fold_folder(out, N_FOLDS) / ENCODER)
    assert bundle.card["training"]["final_encoder"]
    assert bundle.familiar is not None
    assert bundle.familiar.mean.shape == (1, embedder.spec.dim)
    rows = np.concatenate([np.asarray(study.features, np.float64) for study in store])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(bundle.familiar.mean[0], rows.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("named", [N_FOLDS + 1, -1, True, "0", 1.0, [0]])
def test_a_store_that_names_a_final_encoder_it_does_not_hold_is_refused(features, phantoms, tmp_path, named):
    """Before anything is trained."""
    root = tmp_path / "store"
    shutil.copytree(features.out, root)
    manifest = json.loads((root / MANIFEST).read_text())
    (root / MANIFEST).write_text(json.dumps(manifest | {"final": named}))
    with pytest.raises(ArtefactError, match="final encoder that is not there"):
        train_rnn(root, phantoms.labels, tmp_path / "bundle", settings("train.folds=3"))
