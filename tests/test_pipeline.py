"""All stages together on phantoms: what comes out, twice, interrupted, damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import ich_seq
from ich_seq.bundle import load_bundle
from ich_seq.cli import cli
from ich_seq.cnn_run import ENCODER, FOLDS, HELD_OUT, FoldResult, fold_folder, folds_csv, save_run, write_fold
from ich_seq.config import load_config
from ich_seq.encoder import SliceEncoder, save_encoder
from ich_seq.files import sha256_file, short_hash
from ich_seq.labels import LABELS
from ich_seq.metrics import CLIP
from ich_seq.phantom import PhantomSet, write_dataset
from ich_seq.store import FeatureStore, StudyFeatures, decode_study, encoder_file, open_store
from ich_seq.studies import find_studies

SETTINGS = ["slices.size=64", "train.folds=3", "train.epochs=4", "rnn.hidden=16", "rnn.projection=16"]
N_STUDIES = 9


def run(*arguments: object) -> str:
    """Run a command in this process; return its stdout, or fail with its stderr."""
    result = CliRunner().invoke(cli, [str(a) for a in (*arguments, "--quiet")])
    assert result.exit_code == 0, result.output
    return result.stdout


def settings() -> list[str]:
    return [word for setting in SETTINGS for word in ("--set", setting)]


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of an artefact by name; the journal and the lock are no part of one."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), n_studies=N_STUDIES, seed=5, matrix=64)


@pytest.fixture(scope="module")
def features(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "store"
    run("extract-features", phantoms.dicom, "--out", out, "--workers", 0, *settings())
    return out


@pytest.fixture(scope="module")
def bundle(phantoms: PhantomSet, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    run("train-rnn", features, "--labels", phantoms.labels, "--out", out, *settings())
    return out


@pytest.fixture(scope="module")
def results(phantoms: PhantomSet, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "results"
    run("predict", phantoms.dicom, "--bundle", bundle, "--out", out, "--workers", 0)
    return out


def test_every_slice_of_every_study_is_in_the_store_in_its_order(phantoms: PhantomSet, features: Path) -> None:
    """Rows carry their SOP UIDs, feet to head, as the phantoms' own record has them."""
    truth = pd.read_csv(phantoms.order)
    stored = {s.study_uid: s for s in open_store(features)}
    assert set(stored) == set(truth["study"])
    for uid, rows in truth.groupby("study", sort=False):
        assert list(stored[str(uid)].sop_uids) == rows["sop"].tolist()
        assert np.allclose(stored[str(uid)].positions_mm, rows["position_mm"], atol=0.01)


def test_the_counts_add_up(features: Path, phantoms: PhantomSet) -> None:
    """Files seen = used + excluded + rejected, in the manifest as on disk."""
    counts = json.loads((features / "manifest.json").read_text())["counts"]
    assert counts["files"] == phantoms.n_files == len(list(phantoms.dicom.iterdir()))
    assert counts["files"] == counts["used"] + counts["excluded"] + counts["rejected"]
    assert counts["used"] == phantoms.n_slices
    assert len(pd.read_csv(features / "rejected.csv")) == counts["excluded"] + counts["rejected"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_store_is_the_same_for_any_number_of_workers(
    phantoms: PhantomSet, features: Path, tmp_path: Path, workers: int
) -> None:
    """Two runs give identical bytes, however many threads read ahead."""
    run("extract-features", phantoms.dicom, "--out", tmp_path / "again", "--workers", workers, *settings())
    assert tree(tmp_path / "again") == tree(features)


@pytest.mark.slow
def test_openvino_embeds_studies_side_by_side_as_one_by_one(
    phantoms: PhantomSet, tmp_path: Path, cut_frame: Callable[[Path], None]
) -> None:
    """Studies at once on several cores: the order, the bytes, a refused slice and the counts are those of one alone."""
    pytest.importorskip("openvino")
    damaged = Path(shutil.copytree(phantoms.dicom, tmp_path / "in"))
    cut_frame(sorted(damaged.iterdir())[5])
    for workers in (0, 2, 5):
        out = tmp_path / f"{workers}"
        words = ["extract-features", damaged, "--out", out, "--workers", workers, "--engine", "openvino", *settings()]
        outcome = CliRunner().invoke(cli, [*map(str, words), "--quiet"])
        assert outcome.exit_code == 3, outcome.output
    assert tree(tmp_path / "2") == tree(tmp_path / "0")
    assert tree(tmp_path / "5") == tree(tmp_path / "0")
    counts = json.loads((tmp_path / "2" / "manifest.json").read_text())["counts"]
    assert (counts["used"], counts["rejected"]) == (phantoms.n_slices - 1, 1)


@pytest.mark.slow
def test_file_names_and_folders_change_nothing(phantoms: PhantomSet, features: Path, tmp_path: Path) -> None:
    """The same files, renamed without suffix and spread over nested folders, give the same features."""
    for i, path in enumerate(sorted(phantoms.dicom.iterdir(), reverse=True)):
        folder = tmp_path / "in" / f"{i % 7}" / f"{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"IMG{i:05d}")
    run("extract-features", tmp_path / "in", "--out", tmp_path / "out", *settings())
    stored, again = tree(features), tree(tmp_path / "out")
    studies = {name for name in stored if name.endswith(".safetensors")}
    assert studies == {name for name in again if name.endswith(".safetensors")}
    assert all(stored[name] == again[name] for name in studies)


@pytest.mark.slow
def test_a_run_killed_half_way_resumes_to_the_same_bytes(phantoms: PhantomSet, features: Path, tmp_path: Path) -> None:
    """kill -9 at a moment when some studies are done; the second run finishes only the others."""
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "ich_seq.cli",
        "extract-features",
        str(phantoms.dicom),
        "--out",
        str(out),
        *settings(),
    ]
    with subprocess.Popen([*command, "--quiet", "--workers", "0"]) as process:
        journal = out / ".journal.jsonl"
        for _ in range(6000):
            if journal.exists() and journal.read_text().count("\n") >= 2:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = journal.read_text().count("\n")
    assert 2 <= done < N_STUDIES
    assert not (out / "manifest.json").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors") if p.name != encoder_file(0)}
    run("extract-features", phantoms.dicom, "--out", out, *settings())
    assert tree(out) == tree(features)
    unchanged = [name for name, modified in kept.items() if (out / name).stat().st_mtime_ns == modified]
    assert len(unchanged) >= done


@pytest.mark.slow
def test_training_twice_gives_identical_bytes(
    phantoms: PhantomSet, features: Path, bundle: Path, tmp_path: Path
) -> None:
    """Same store, labels and seed: the same bundle, card and weights, to the byte."""
    run("train-rnn", features, "--labels", phantoms.labels, "--out", tmp_path / "again", *settings())
    assert tree(tmp_path / "again") == tree(bundle)


def test_the_card_says_what_the_bundle_is(bundle: Path, phantoms: PhantomSet) -> None:
    """bundle.json is the model card: use, data, settings and figures with their intervals and baselines."""
    card = json.loads((bundle / "bundle.json").read_text())
    assert "not a medical device" in card["intended_use"]
    assert card["labels"] == list(LABELS)
    assert card["training"]["slices"] == phantoms.n_slices
    assert set(card["figures"]) == {"constant", "position", "slice_logistic", "rnn", "blend"}
    assert set(card["figures"]["blend"]["difference_to_slice_logistic"]["slice_auc"]) == set(LABELS)
    assert set(card["figures"]["rnn"]["slice_loss"]) == {"value", "low", "high"}


def test_predictions_have_a_row_for_every_slice_and_study(results: Path, phantoms: PhantomSet) -> None:
    """slices.csv and studies.csv lose nothing, and slices run feet to head."""
    slices, studies = pd.read_csv(results / "slices.csv"), pd.read_csv(results / "studies.csv")
    truth = pd.read_csv(phantoms.order)
    assert set(slices["sop_uid"]) == set(truth["sop"])
    assert len(slices) == len(truth)
    assert set(studies["study_uid"]) == set(truth["study"])
    assert studies["any"].is_monotonic_decreasing
    assert all(group["position_mm"].is_monotonic_increasing for _, group in slices.groupby("study_uid"))
    said = slices.drop(columns=["study_uid", "sop_uid", "position_mm"])
    assert list(said) == [f"{part}{label}" for part in ("", "cnn_", "rnn_") for label in LABELS]
    assert said.to_numpy().min() >= 0
    assert said.to_numpy().max() <= 1


def test_patients_are_numbered_and_not_named(results: Path, phantoms: PhantomSet) -> None:
    """Studies of one patient share a number, others do not: intervals by patient need no more."""
    studies = pd.read_csv(results / "studies.csv").set_index("study_uid")["patient"]
    of = {s.uid: s.patient_id for s in find_studies(phantoms.dicom).studies}
    pairs = {(of[uid], number) for uid, number in studies.items()}
    assert len(pairs) == len({patient for patient, _ in pairs}) == len({number for _, number in pairs})
    assert sorted(studies.unique()) == list(range(1, len(pairs) + 1))


def test_the_submission_is_what_kaggle_takes(results: Path, phantoms: PhantomSet) -> None:
    """Exactly six rows an image, the challenge's IDs, probabilities clipped away from 0 and 1."""
    submission = pd.read_csv(results / "submission.csv")
    assert list(submission.columns) == ["ID", "Label"]
    assert set(submission["ID"]) == set(pd.read_csv(phantoms.labels)["ID"])
    assert submission["ID"].is_unique
    assert len(submission) == 6 * phantoms.n_slices
    assert submission["Label"].between(CLIP, 1 - CLIP).all()


def test_predicting_twice_gives_identical_bytes(
    phantoms: PhantomSet, bundle: Path, results: Path, tmp_path: Path
) -> None:
    """No time, path or order of the machine is in the results."""
    run("predict", phantoms.dicom, "--bundle", bundle, "--out", tmp_path / "again", "--workers", 2)
    assert tree(tmp_path / "again") == tree(results)


def test_a_study_alone_is_predicted_as_among_others(
    phantoms: PhantomSet, bundle: Path, results: Path, tmp_path: Path
) -> None:
    """What else lies in the folder has no part in a study's probabilities."""
    slices = pd.read_csv(results / "slices.csv", dtype=str)
    uid = slices["study_uid"].iloc[0]

    study = next(s for s in find_studies(phantoms.dicom).studies if s.uid == uid)
    (tmp_path / "in").mkdir()
    for header in study.slices:
        shutil.copy(header.path, tmp_path / "in")
    run("predict", tmp_path / "in", "--bundle", bundle, "--out", tmp_path / "out")
    alone = pd.read_csv(tmp_path / "out" / "slices.csv", dtype=str)
    pd.testing.assert_frame_equal(alone, slices[slices["study_uid"] == uid].reset_index(drop=True))


def test_a_damaged_slice_costs_itself_only(phantoms: PhantomSet, bundle: Path, results: Path, tmp_path: Path) -> None:
    """A cut-short file ends with exit code 3 and a line in rejected.csv; every other row is still there."""
    shutil.copytree(phantoms.dicom, tmp_path / "in")
    victim = pd.read_csv(phantoms.order).iloc[10]

    path = next(h.path for s in find_studies(tmp_path / "in").studies for h in s.slices if h.sop_uid == victim["sop"])
    path.write_bytes(path.read_bytes()[:-900])
    result = CliRunner().invoke(
        cli, ["predict", str(tmp_path / "in"), "--bundle", str(bundle), "--out", str(tmp_path / "out"), "--quiet"]
    )
    assert result.exit_code == 3
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected[rejected["fate"] == "rejected"]["file"].tolist() == [short_hash(path.name)]
    assert rejected.loc[rejected["fate"] == "rejected", "study_uid"].tolist() == [victim["study"]]
    studies = pd.read_csv(tmp_path / "out" / "studies.csv")
    assert studies.set_index("study_uid")["lost_slices"].to_dict() == {
        uid: int(uid == victim["study"]) for uid in studies["study_uid"]
    }
    before, after = pd.read_csv(results / "slices.csv"), pd.read_csv(tmp_path / "out" / "slices.csv")
    assert set(before["sop_uid"]) - set(after["sop_uid"]) == {victim["sop"]}
    others = before["study_uid"] != victim["study"]
    pd.testing.assert_frame_equal(
        before[others].reset_index(drop=True), after[after["study_uid"] != victim["study"]].reset_index(drop=True)
    )


@pytest.mark.slow
def test_the_python_calls_do_what_the_commands_do(
    phantoms: PhantomSet, bundle: Path, results: Path, tmp_path: Path
) -> None:
    """`ich_seq.predict` stands beside `ich-seq predict`, with the same bytes."""
    summary = ich_seq.predict(phantoms.dicom, bundle, tmp_path / "out")
    assert summary.studies == N_STUDIES
    assert tree(tmp_path / "out") == tree(results)
    assert ich_seq.extract_features.__module__ == "ich_seq.extraction"


@pytest.mark.slow
def test_features_of_another_encoder_are_not_taken_up(phantoms: PhantomSet, features: Path, tmp_path: Path) -> None:
    """Changing a setting that changes embeddings redoes every study in the folder."""
    shutil.copytree(features, tmp_path / "store")
    ich_seq.extract_features(
        phantoms.dicom,
        tmp_path / "store",
        load_config(overrides=[*SETTINGS, "slices.windows_hu=[[50,100],[80,200],[600,2800]]"]),
    )
    old, new = tree(features), tree(tmp_path / "store")
    names = [n for n in old if n.endswith(".safetensors") and n != encoder_file(0)]
    assert len(names) == N_STUDIES
    assert all(old[name] != new[name] for name in names)


@pytest.mark.slow
def test_no_patient_text_reaches_an_output(phantoms: PhantomSet, bundle: Path, tmp_path: Path) -> None:
    """Name, ID, birth date and hospital of a patient are in no file that any command writes."""
    import pydicom

    canaries = {"PatientName": "CANARY^NAME", "PatientID": "CANARY-ID", "InstitutionName": "CANARY HOSPITAL"}
    (tmp_path / "in").mkdir()
    for path in phantoms.dicom.iterdir():
        with pydicom.config.disable_value_validation():
            dataset = pydicom.dcmread(path)
            for keyword, text in canaries.items():
                setattr(dataset, keyword, text)
            dataset.save_as(tmp_path / "in" / path.name)
    run("extract-features", tmp_path / "in", "--out", tmp_path / "store", *settings())
    run("predict", tmp_path / "in", "--bundle", bundle, "--out", tmp_path / "out")
    for folder in (tmp_path / "store", tmp_path / "out"):
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert not [p.name for p in files if b"CANARY" in p.read_bytes() or "CANARY" in p.name]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as on POSIX")
def test_sigterm_ends_with_143(phantoms: PhantomSet, tmp_path: Path) -> None:
    """A scheduler's polite kill is not taken for a crash, and leaves nothing half-written."""
    command = [sys.executable, "-m", "ich_seq.cli", "extract-features", str(phantoms.dicom), "--quiet", *settings()]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")]) as process:
        for _ in range(6000):
            if (tmp_path / "out" / ".journal.jsonl").exists():
                break
            time.sleep(0.01)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not list((tmp_path / "out").glob("*.partial"))


def test_a_failed_run_leaves_no_older_results(bundle: Path, results: Path, tmp_path: Path) -> None:
    """Who reads studies.csv after a run that found nothing must not get another folder's patients."""
    shutil.copytree(results, tmp_path / "out")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no slice")
    outcome = CliRunner().invoke(
        cli, ["predict", str(tmp_path / "in"), "--bundle", str(bundle), "--out", str(tmp_path / "out"), "--quiet"]
    )
    assert outcome.exit_code == 4
    assert "None of the 1 files is a usable CT slice (other_file 1); see" in outcome.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} <= {"rejected.csv", ".lock"}


@pytest.mark.slow
def test_an_output_inside_the_input_changes_nothing(phantoms: PhantomSet, bundle: Path, tmp_path: Path) -> None:
    """The second run does not see what the first one wrote."""
    shutil.copytree(phantoms.dicom, tmp_path / "in")
    out = tmp_path / "in" / "results"
    run("predict", tmp_path / "in", "--bundle", bundle, "--out", out)
    first = tree(out)
    run("predict", tmp_path / "in", "--bundle", bundle, "--out", out)
    assert tree(out) == first
    assert json.loads(first["run.json"])["counts"]["files"] == phantoms.n_files


@pytest.mark.slow
def test_extracting_into_a_folder_of_others_leaves_their_files(phantoms: PhantomSet, tmp_path: Path) -> None:
    """Files that this package did not write there as features are not its to remove."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.safetensors").write_bytes(b"precious")
    run("extract-features", phantoms.dicom, "--out", tmp_path / "out", *settings())
    assert (tmp_path / "out" / "mine.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("command", ["extract-features", "train-rnn", "predict"])
def test_the_result_of_another_command_is_refused_as_a_folder_and_left_as_it_is(
    phantoms: PhantomSet, features: Path, bundle: Path, tmp_path: Path, command: str
) -> None:
    """Features into a bundle, a bundle into its features, results into their bundle: nothing there changes."""
    given, out = {
        "extract-features": ([phantoms.dicom, *settings()], bundle),
        "train-rnn": ([features, "--labels", phantoms.labels, *settings()], features),
        "predict": ([phantoms.dicom, "--bundle", bundle], bundle),
    }[command]
    shutil.copytree(out, tmp_path / "out")
    refused = CliRunner().invoke(cli, [str(a) for a in (command, *given, "--out", tmp_path / "out", "--quiet")])
    assert refused.exit_code == 2
    assert "choose another --out" in refused.stderr
    assert tree(tmp_path / "out") == tree(out)


@pytest.mark.slow
def test_every_way_to_run_the_encoder_has_its_own_fingerprint(phantoms: PhantomSet, tmp_path: Path) -> None:
    """Engine, precision, views and batch can move an embedding's last bits: each redoes the store, and is on record."""
    pytest.importorskip("openvino")
    one = tmp_path / "in"
    one.mkdir()
    shutil.copy(sorted(phantoms.dicom.iterdir())[0], one)
    tiny = ["slices.size=32", "encoder.arch=test_convnext", "encoder.weights=random"]
    prints = set()
    plain = {"engine": "torch", "precision": "fp32", "views": 1, "batch_size": 8}
    for other in ({}, {"engine": "openvino"}, {"precision": "bf16"}, {"views": 2}, {"batch_size": 31}):
        engine = other.get("engine")
        sets = [f"extract.{name}={value}" for name, value in other.items() if name != "engine"]
        config = load_config(overrides=[*tiny, *sets])
        ich_seq.extract_features(one, tmp_path / "store", config, engine=engine, workers=0)
        manifest = open_store(tmp_path / "store").manifest
        assert manifest["execution"] == plain | other
        assert manifest["fingerprint"] not in prints
        prints.add(manifest["fingerprint"])


# Networks of train-cnn


def write_run(root: Path, encoders: dict[int, SliceEncoder], folds: list[tuple[str, str, int]]) -> Path:
    """Write a run as train-cnn leaves it: networks by fold, and (study, patient, fold) of those they know."""
    results = []
    for fold, encoder in encoders.items():
        folder = fold_folder(root, fold)
        folder.mkdir(parents=True)
        save_encoder(encoder, folder / ENCODER)
        (folder / HELD_OUT).write_text("sop_uid\n")
        results.append(FoldResult(fold, encoder.spec, [], 0, sha256_file(folder / HELD_OUT), ()))
        write_fold(root, results[-1])
    (root / FOLDS).write_bytes(folds_csv(folds))
    save_run(root, results, {})
    return root


@pytest.fixture(scope="module")
def known(features: Path) -> list[tuple[str, str, int]]:
    """Study, patient and fold of the studies of all patients but the first."""
    table = open_store(features).studies
    patients = sorted(set(table["patient_key"]))
    fold_of = {patient: i % 2 for i, patient in enumerate(patients[1:])}
    rows = zip(table["study_uid"], table["patient_key"], strict=True)
    return [(study, patient, fold_of[patient]) for study, patient in rows if patient in fold_of]


@pytest.fixture(scope="module")
def by_folds(phantoms, headed_encoders, known, tmp_path_factory) -> Path:
    """A store made by the networks of a run whose folds are all trained."""
    root = tmp_path_factory.mktemp("cnn")
    write_run(root / "run", dict(enumerate(headed_encoders)), known)
    run("extract-features", phantoms.dicom, "--cnn", root / "run", "--out", root / "store", "--workers", 0)
    return root / "store"


@pytest.fixture(scope="module")
def bundle_of_two(phantoms: PhantomSet, by_folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "of two"
    run("train-rnn", by_folds, "--labels", phantoms.labels, "--out", out, *settings())
    return out


def rows_of(store: FeatureStore) -> dict[tuple[str, int], StudyFeatures]:
    """Read every row of a store, by study and network."""
    return {
        (row.study_uid, row.network): decode_study((store.root / row.file).read_bytes(), store.root / row.file)
        for row in store.studies.itertuples()
    }


def test_a_study_is_embedded_by_the_network_that_did_not_learn_from_its_patient(
    by_folds: Path, features: Path, known, headed_encoders
) -> None:
    """Known patients by their fold's network alone, an unknown one by all; no row is in-sample, each has its logits."""
    store, plain = open_store(by_folds), {s.study_uid: s for s in open_store(features)}
    fold_of = {study: fold for study, _, fold in known}
    expected = {(uid, fold) for uid in plain for fold in ([fold_of[uid]] if uid in fold_of else [0, 1])}
    found = rows_of(store)
    assert found.keys() == expected
    assert 0 < len(plain) - len(fold_of) < len(plain) == len(store)
    assert store.in_sample() == []
    for (uid, network), study in found.items():
        assert (study.study_uid, study.network) == (uid, network)
        assert study.sop_uids == plain[uid].sop_uids
        head = headed_encoders[network].head
        by_hand = study.features.astype(np.float32) @ head.weight.numpy().T + head.bias.numpy()
        assert study.logits == pytest.approx(by_hand, abs=0.02)  # of embeddings before they were halved
        assert study.logits.dtype == np.float32
    for number, encoder in enumerate(headed_encoders):
        assert sha256_file(by_folds / encoder_file(number)) == encoder.spec.sha256


@pytest.mark.slow
def test_a_network_that_is_not_there_yet_makes_in_sample_rows_that_training_refuses(
    phantoms: PhantomSet, headed_encoders, known, tmp_path: Path
) -> None:
    """With one fold of two trained the other fold's studies are marked, counted on stderr, and refused by train-rnn."""
    write_run(tmp_path / "run", {0: headed_encoders[0]}, known)
    arguments = ["extract-features", phantoms.dicom, "--cnn", tmp_path / "run", "--out", tmp_path / "store", "--quiet"]
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    marked = sorted(study for study, _, fold in known if fold == 1)
    assert f"{len(marked)} studies could only be embedded by a network that learnt" in result.stderr
    store = open_store(tmp_path / "store")
    assert store.in_sample() == marked
    assert set(store.studies["network"]) == {0}
    assert len(store) == N_STUDIES
    train = ["train-rnn", tmp_path / "store", "--labels", phantoms.labels, "--out", tmp_path / "out", "--quiet"]
    refused = CliRunner().invoke(cli, [str(a) for a in (*train, *settings())])
    assert refused.exit_code == 2
    assert "train.allow_in_sample=true" in refused.stderr
    run(*train[:-1], *settings(), "--set", "train.allow_in_sample=true", "--set", "train.epochs=1")
    assert json.loads((tmp_path / "out" / "bundle.json").read_text())["training"]["studies"] == N_STUDIES


@pytest.mark.slow
def test_a_store_of_a_run_is_the_same_for_any_number_of_workers_and_taken_up(
    phantoms: PhantomSet, by_folds: Path, headed_encoders, known, tmp_path: Path
) -> None:
    """Two networks or one a study: two runs give identical bytes, and a second run into the folder changes nothing."""
    write_run(tmp_path / "run", dict(enumerate(headed_encoders)), known)
    for workers in (2, 0):
        run(
            "extract-features", phantoms.dicom, "--cnn", tmp_path / "run", "--out", tmp_path / "s", "--workers", workers
        )
        assert tree(tmp_path / "s") == tree(by_folds)


@pytest.mark.slow
def test_new_studies_are_predicted_by_the_mean_of_all_networks(
    phantoms: PhantomSet, bundle_of_two: Path, headed_encoders, tmp_path: Path
) -> None:
    """`predict` says of each study what the bundle says of both networks' rows, made by a run that knows nobody."""
    import torch

    write_run(tmp_path / "run", dict(enumerate(headed_encoders)), [])
    run("extract-features", phantoms.dicom, "--cnn", tmp_path / "run", "--out", tmp_path / "store")
    run("predict", phantoms.dicom, "--bundle", bundle_of_two, "--out", tmp_path / "out", "--workers", 0)
    rows, loaded = rows_of(open_store(tmp_path / "store")), load_bundle(bundle_of_two, torch.device("cpu"))
    assert len(rows) == 2 * N_STUDIES
    slices = pd.read_csv(tmp_path / "out" / "slices.csv", dtype={"sop_uid": str, "study_uid": str})
    studies = pd.read_csv(tmp_path / "out" / "studies.csv", dtype={"study_uid": str}).set_index("study_uid")
    for uid, group in slices.groupby("study_uid"):
        views = [rows[str(uid), network] for network in range(2)]
        of_slices, of_study = loaded.predict(views)
        assert group["sop_uid"].tolist() == list(views[0].sop_uids)
        assert group[list(LABELS)].to_numpy() == pytest.approx(of_slices, abs=2e-5)
        assert studies.loc[str(uid), list(LABELS)].to_numpy(float) == pytest.approx(of_study, abs=2e-5)
        assert np.abs(loaded.predict(views[:1])[0] - of_slices).max() > 1e-3  # the second network has a say


@pytest.mark.slow
def test_another_engine_predicts_nearly_the_same_and_is_on_record(
    phantoms: PhantomSet, bundle_of_two: Path, tmp_path: Path
) -> None:
    """`--engine openvino` moves probabilities by rounding only, and run.json tells which one ran."""
    pytest.importorskip("openvino")
    said = []
    for engine in ("torch", "openvino"):
        out = tmp_path / engine
        run("predict", phantoms.dicom, "--bundle", bundle_of_two, "--out", out, "--engine", engine, "--workers", 0)
        assert json.loads((out / "run.json").read_text())["execution"]["engine"] == engine
        said.append(pd.read_csv(out / "slices.csv"))
    assert said[0]["sop_uid"].tolist() == said[1]["sop_uid"].tolist()
    assert said[0][list(LABELS)].to_numpy() == pytest.approx(said[1][list(LABELS)].to_numpy(), abs=1e-3)
