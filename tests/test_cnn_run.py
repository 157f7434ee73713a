"""A run of train-cnn on disk: the network that did not see a patient, and no file but the one that was written."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_seq import ArtefactError, UsageError, __version__, cnn_run
from ich_seq.cnn_run import (
    ENCODER,
    FOLD,
    FOLDS,
    HELD_OUT,
    RUN,
    SCHEMA,
    CnnRun,
    FoldResult,
    claim_folder,
    fold_folder,
    folds_csv,
    load_run,
    load_runs,
    read_fold,
    save_run,
    write_fold,
)
from ich_seq.encoder import SliceEncoder, save_encoder, with_head
from ich_seq.files import sha256_bytes, sha256_file, write_bytes
from ich_seq.labels import LABELS
from ich_seq.reasons import Reason, Unused

K = len(LABELS)
STUDIES = [("1.1", "anna", 0), ("1.2", "bela", 1), ("1.3", "anna", 0), ("1.4", "cora", 2)]
"""Study, patient and fold; the network of fold 2 is never trained."""

REFUSED = Unused("b/x.dcm", Reason.PIXEL_DATA, "Pixel data is cut short: 2 of 4 bytes.", "1.2")


@pytest.fixture(scope="module")
def networks(tiny_encoder) -> dict[int, SliceEncoder]:
    """The encoders of two folds, which differ in their heads."""
    rng = np.random.default_rng(0)
    made = {}
    for fold in (0, 1):
        weight = rng.normal(size=(K, tiny_encoder.spec.dim)).astype(np.float32)
        made[fold] = with_head(tiny_encoder, weight, np.full(K, fold, np.float32))
    return made


@pytest.fixture(scope="module")
def results(networks) -> dict[int, FoldResult]:
    return {
        fold: FoldResult(
            fold=fold,
            spec=replace(network.spec, weights=f"train-cnn, all folds but {fold}"),
            curve=[{"epoch": 1, "learnt_loss": 1 / 3, "watched_loss": 0.1 + 0.2}],
            epoch=1,
            held_out_sha256=sha256_bytes(held_out(fold)),
            refused=(REFUSED,) if fold else (),
        )
        for fold, network in networks.items()
    }


def held_out(fold: int) -> bytes:
    return f"sop_uid,{','.join(LABELS)}\n1.1.{fold},0,0,0,0,0,0\n".encode()


def write_run(root: Path, networks: dict[int, SliceEncoder], results: dict[int, FoldResult]) -> Path:
    """Write the files of a run in the order in which train-cnn does."""
    for fold, network in networks.items():
        folder = fold_folder(root, fold)
        folder.mkdir(parents=True)
        save_encoder(network, folder / ENCODER)
        write_bytes(folder / HELD_OUT, held_out(fold))
        write_fold(root, results[fold])
    write_bytes(root / FOLDS, folds_csv(STUDIES))
    save_run(root, list(results.values()), {"slices": 8, "figures": {"cnn": 0.5}})
    return root


@pytest.fixture
def root(tmp_path, networks, results) -> Path:
    return write_run(tmp_path / "run", networks, results)


# ---- the network that did not see the patient ----


@pytest.mark.parametrize(
    ("patient", "study", "wanted"),
    [
        pytest.param("anna", "1.1", ((0,), False), id="held-out"),
        pytest.param("anna", "9.9", ((0,), False), id="new-study-of-a-known-patient"),
        pytest.param("bela", "1.1", ((1,), False), id="the-patient-counts-first"),
        pytest.param("nobody", "1.2", ((1,), False), id="known-study-of-another-key"),
        pytest.param("nobody", "9.9", ((0, 1), False), id="never-seen"),
        pytest.param("cora", "1.4", ((0, 1), True), id="its-network-was-not-trained"),
        pytest.param("nobody", "1.4", ((0, 1), True), id="its-network-was-not-trained-by-study"),
    ],
)
def test_a_study_goes_to_the_networks_that_did_not_see_its_patient(root, patient, study, wanted):
    """One's own fold; all for a stranger; all, and said to be in sample, where that fold has no network."""
    assert load_run(root).networks_for(patient, study) == wanted


def test_a_run_of_one_fold_tells_every_other_patient_that_it_learnt_from_them(root, results):
    """With the network of fold 1 alone only fold 1 is out of sample."""
    save_run(root, [results[1]], {})
    run = load_run(root)
    said = {study: run.networks_for(patient, study) for study, patient, _ in STUDIES}
    assert said == {"1.1": ((1,), True), "1.2": ((1,), False), "1.3": ((1,), True), "1.4": ((1,), True)}
    assert run.networks_for("nobody", "9.9") == ((1,), False)


def test_a_stranger_goes_to_the_final_network_alone(tmp_path, networks, results, monkeypatch):
    """It stands as the fold nobody is in; patients of the run go on to the network that does not know them."""
    last = 1 + max(fold for _, _, fold in STUDIES)
    monkeypatch.setattr(cnn_run, "MAX_FOLDS", last)  # there may be as many folds, and it is one more
    networks = networks | {last: networks[0]}
    final = replace(results[0], fold=last, held_out_sha256=sha256_bytes(held_out(last)))
    run = load_run(write_run(tmp_path / "run", networks, results | {last: final}))
    assert run.final == last
    assert run.networks_for("nobody", "9.9") == ((last,), False)
    assert run.networks_for("anna", "1.1") == ((0,), False)
    assert run.networks_for("cora", "1.4") == ((0, 1, last), True)


def test_a_run_of_folds_alone_has_no_final_network(root):
    """Every trained fold has somebody in it."""
    assert load_run(root).final is None


# ---- runs side by side ----


def of_others(root: Path, rows: list[tuple[str, str, int]], results: dict[int, FoldResult]) -> Path:
    """Make a run one that knew these studies, patients and folds."""
    write_bytes(root / FOLDS, folds_csv(rows))
    save_run(root, list(results.values()), {})
    return root


def test_runs_side_by_side_give_each_folds_networks_together(root, tmp_path, networks, results):
    """A fold's embedding is those of both runs, its logits their mean; who goes to which fold stays as it was."""
    turned = {0: networks[1], 1: networks[0]}
    theirs = {
        fold: replace(results[1 - fold], fold=fold, held_out_sha256=results[fold].held_out_sha256) for fold in turned
    }
    both = load_runs([root, write_run(tmp_path / "other", turned, theirs)])
    hu = torch.zeros(2, 1, 32, 32)
    for fold in (0, 1):
        loaded = both.load(fold)
        alone = [networks[k].head(networks[k](hu)) for k in (0, 1)]
        torch.testing.assert_close(loaded.head(loaded(hu)), (alone[0] + alone[1]) / 2)
        assert loaded.spec.dim == 2 * networks[fold].spec.dim
    for patient, study, _ in [(p, s, f) for s, p, f in STUDIES] + [("nobody", "9.9", 0)]:
        assert both.networks_for(patient, study) == load_run(root).networks_for(patient, study)
    assert load_runs([root]) == load_run(root)


def test_runs_side_by_side_remember_whom_either_learnt_from_besides(root, tmp_path, networks, results):
    """A patient in no fold of one run is known to all of its networks, whatever the other says."""
    other = of_others(write_run(tmp_path / "other", networks, results), [*STUDIES, ("1.5", "dora", -1)], results)
    for roots in ([root, other], [other, root]):
        both = load_runs(roots)
        assert both.networks_for("dora", "1.5") == ((0, 1), True)
        assert both.networks_for("anna", "1.1") == ((0,), False)
        assert both.only_learnt == (("1.5", "dora"),)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([("1.1", "anna", 1), *STUDIES[1:2], ("1.3", "anna", 1), *STUDIES[3:]], id="another-fold"),
        pytest.param(STUDIES[:3], id="a-patient-less"),
        pytest.param([*STUDIES, ("1.5", "dora", 1)], id="a-patient-more"),
        pytest.param([*STUDIES[:3], ("1.4", "cora", -1)], id="learnt-from-besides"),
        pytest.param([*STUDIES[:2], ("1.3", "dora", -1), *STUDIES[3:]], id="a-study-of-somebody-else"),
        pytest.param([*STUDIES[:2], ("1.3", "bela", 1), *STUDIES[3:]], id="a-study-of-another-patient"),
    ],
)
def test_runs_of_other_folds_cannot_be_side_by_side(root, tmp_path, networks, results, rows):
    """One of them could know a patient whom the other holds out."""
    other = of_others(write_run(tmp_path / "other", networks, results), rows, results)
    for roots in ([root, other], [other, root]):
        with pytest.raises(UsageError, match="do not go together"):
            load_runs(roots)


def test_runs_with_other_folds_trained_cannot_be_side_by_side(root, tmp_path, networks, results):
    """A fold needs a network of each."""
    other = write_run(tmp_path / "other", networks, results)
    save_run(other, [results[0]], {})
    with pytest.raises(UsageError, match="one has no network of fold 1 "):
        load_runs([root, other])


def test_a_run_beside_itself_is_refused(root):
    """It would say what it says by itself, for twice the time."""
    for roots in ([root, root], [root, root.parent / "x" / ".." / root.name]):
        with pytest.raises(UsageError, match="twice"):
            load_runs(roots)


# ---- what is written comes back ----


def test_a_run_comes_back_as_it_was_written(root, results):
    """Results to the last digit, with specs and refused files of the right types, and the fold of all it knew."""
    run = load_run(root)
    assert isinstance(run, CnnRun)
    assert run.root == root
    assert run.results == results
    assert run.results[1].refused[0].fate == "rejected"
    assert run.results[1].spec.fingerprint == results[1].spec.fingerprint
    assert run.fold_of_patient == {"anna": 0, "bela": 1, "cora": 2}
    assert run.fold_of_study == {"1.1": 0, "1.2": 1, "1.3": 0, "1.4": 2}


def test_the_record_says_what_made_the_run(root, results):
    """Schema, version, trained folds, encoders, the hash of the folds, and the facts that were given."""
    record = json.loads((root / RUN).read_text())
    assert (record["schema"], record["version"]) == (SCHEMA, __version__)
    assert record["trained_folds"] == [0, 1]
    assert [e["sha256"] for e in record["encoders"]] == [sha256_file(root / f"fold-{f}" / ENCODER) for f in (0, 1)]
    assert record["folds_sha256"] == sha256_file(root / FOLDS)
    assert (record["slices"], record["figures"]) == (8, {"cnn": 0.5})


def test_loading_gives_each_folds_network_with_its_head(root, networks, results):
    """Embeddings and logits are those of the network that was saved, for each fold its own, ready to predict."""
    run = load_run(root)
    hu = torch.from_numpy(np.random.default_rng(0).uniform(-1000, 1000, (2, 1, 32, 32)).astype(np.float32))
    logits = []
    for fold, network in networks.items():
        loaded = run.load(fold)
        assert loaded.head is not None
        assert loaded.spec == results[fold].spec
        assert not loaded.training
        assert torch.equal(loaded(hu), network(hu))
        assert torch.equal(loaded.head(loaded(hu)), network.head(network(hu)))
        logits.append(loaded.head(loaded(hu)))
    assert not torch.equal(*logits)


def test_a_fold_that_is_not_there_is_none(root):
    """A fold that was never trained, or whose training was broken off, is no fold."""
    assert read_fold(root, 2) is None
    assert read_fold(root, 0) is not None
    (root / "fold-0" / FOLD).unlink()
    assert read_fold(root, 0) is None


# Shows a fault of the package: JSON files cannot be written with a name that is no UTF-8 in them (files.write_json).
def test_a_refused_file_whose_name_is_no_unicode_can_be_recorded(root, results):
    """A corrupt slice with a Latin-1 name, as the system hands it over, must not end a fold that is trained."""
    name = b"slice-\xe4.dcm".decode("utf-8", "surrogateescape")
    odd = replace(results[0], refused=(replace(REFUSED, file=name),))
    write_fold(root, odd)
    assert read_fold(root, 0) == odd


def test_the_table_of_folds_does_not_depend_on_order_and_can_be_read_by_any_reader():
    """Rows sorted by study, and names that hold commas and quotes come back as they are."""
    rows = [*STUDIES, ('1,"5', "d", 1)]
    table = folds_csv(rows)
    assert folds_csv(reversed(rows)) == table
    read = list(csv.reader(io.StringIO(table.decode(), newline="")))
    assert read == [["study_uid", "patient_key", "fold"], *([s, p, str(f)] for s, p, f in sorted(rows))]


# ---- changed files ----


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("harm", [change, shorten, Path.unlink], ids=["changed", "shortened", "gone"])
@pytest.mark.parametrize("name", [f"fold-1/{ENCODER}", f"fold-1/{HELD_OUT}", FOLDS])
def test_a_file_that_is_not_the_one_written_is_refused(root, name, harm):
    """The run as a whole is, and the message names the fold or file and what to do.

    `gone-folds.csv` shows a fault of the package: it ends in a FileNotFoundError.
    """
    harm(root / name)
    with pytest.raises(ArtefactError, match=r"train.*again") as refusal:
        load_run(root)
    assert str(root / (name if name == FOLDS else "fold-1")) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"fold": 1}', '{"spec": [], "refused": []}'])
def test_a_damaged_record_of_a_fold_is_refused(root, text):
    """A fold.json that is torn or something else makes the fold none, and the run one that was changed."""
    (root / "fold-1" / FOLD).write_text(text)
    assert read_fold(root, 1) is None
    with pytest.raises(ArtefactError, match="fold-1"):
        load_run(root)


# Shows a fault of the package: the encoders in run.json are not compared with those in the folders, so that a network
# could be taken for the one that did not see a patient although it learnt from them.
def test_folders_that_changed_places_are_refused(root):
    """Each folder is whole, but its network learnt from the very patients it would embed as unseen."""
    (root / "fold-0").rename(root / "between")
    (root / "fold-1").rename(root / "fold-0")
    (root / "between").rename(root / "fold-1")
    with pytest.raises(ArtefactError, match=r"fold-[01]"):
        load_run(root)


# Shows the same fault.
def test_a_fold_of_another_run_is_refused(root, tmp_path, networks, results):
    """A folder copied from a run that was trained otherwise is whole, yet not the one that run.json vouches for."""
    swapped = {0: networks[1], 1: networks[0]}
    others = {f: replace(results[f], spec=swapped[f].spec) for f in swapped}
    other = write_run(tmp_path / "other", swapped, others)
    shutil.rmtree(root / "fold-0")
    shutil.copytree(other / "fold-0", root / "fold-0")
    with pytest.raises(ArtefactError, match="fold-0"):
        load_run(root)


def test_a_network_changed_after_opening_is_refused(root):
    """The bytes are checked when they are loaded, not only when the run is opened."""
    run = load_run(root)
    change(root / "fold-1" / ENCODER)
    assert run.load(0).head is not None
    with pytest.raises(ArtefactError, match=ENCODER):
        run.load(1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"schema": "ich-seq features 2"}',
        json.dumps({"schema": SCHEMA}),  # shows a fault of the package: it ends in a KeyError
    ],
)
def test_a_record_that_is_damaged_or_of_something_else_is_refused(root, text):
    """A run.json that is torn, or of another artefact, is an ArtefactError that names it."""
    (root / RUN).write_text(text)
    with pytest.raises(ArtefactError, match=RUN):
        load_run(root)


def test_a_folder_without_a_record_is_no_run(root):
    """It is named, with the command that would make it one."""
    (root / RUN).unlink()
    with pytest.raises(UsageError, match="train-cnn") as refusal:
        load_run(root)
    assert str(root) in str(refusal.value)


# ---- one plan a folder ----

PLAN = {"settings": {"cnn": {"epochs": 8, "learning_rate": 1e-3}}, "labels_sha256": "0", "slices": 8}


def test_a_folder_is_claimed_once_and_gone_on_in(tmp_path):
    """The first claim writes the plan; the same plan again, its keys in any order, changes no byte."""
    claim_folder(tmp_path, PLAN)
    written = (tmp_path / "plan.json").read_bytes()
    assert json.loads(written) == PLAN
    claim_folder(tmp_path, dict(reversed(PLAN.items())))
    assert (tmp_path / "plan.json").read_bytes() == written


@pytest.mark.parametrize(
    "change_of",
    [
        {"settings": {"cnn": {"epochs": 9, "learning_rate": 1e-3}}},
        {"settings": {"cnn": {"epochs": 8, "learning_rate": 1.0000001e-3}}},
        {"labels_sha256": "1"},
        {"slices": 9},
        {"more": None},
    ],
    ids=["settings", "a-digit", "labels", "data", "a-key"],
)
def test_the_folder_of_another_plan_is_refused_with_the_remedy(tmp_path, change_of):
    """Any difference is a UsageError that names the folder and says to choose another; the plan there stays."""
    claim_folder(tmp_path, PLAN)
    with pytest.raises(UsageError, match="choose another --out") as refusal:
        claim_folder(tmp_path, PLAN | change_of)
    assert str(tmp_path) in str(refusal.value)
    claim_folder(tmp_path, PLAN)


# Shows a fault of the package: a damaged plan ends in a JSONDecodeError or a UnicodeDecodeError.
@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe"])
def test_a_folder_whose_plan_is_damaged_is_refused_too(tmp_path, data):
    """It cannot be told to be this run, so it is not gone on in; the remedy is the same."""
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises((UsageError, ArtefactError), match="choose another --out"):
        claim_folder(tmp_path, PLAN)
    assert (tmp_path / "plan.json").read_bytes() == data


def test_a_trained_folds_record_is_plain_json(root, results):
    """What stands in fold.json is the result's own fields, for tools of other languages."""
    record = json.loads((root / "fold-1" / FOLD).read_text())
    assert record == json.loads(json.dumps(asdict(results[1])))
    assert record["refused"][0]["reason"] == "pixel_data"
