"""The bundle in the box: it is small, says whence it comes, and is what predicts where no other is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from ich_seq import UsageError, weight_library
from ich_seq.bundle import CARD, load_bundle, named_files, read_card
from ich_seq.cli import cli
from ich_seq.files import sha256_file
from ich_seq.labels import LABELS
from ich_seq.novelty import STRANGE
from ich_seq.phantom import write_dataset
from ich_seq.prediction import predict
from ich_seq.weight_library import SHIPPED, bundle_folder, checked_name, shipped_folder

DATA = Path(__file__).parents[2] / "shared" / "data"
MOST_BYTES, MOST_ENCODER_BYTES = 16 << 20, 8 << 20


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in (*words, "--quiet", "--device", "cpu")])


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One drawn head."""
    return write_dataset(tmp_path_factory.mktemp("head"), n_studies=1, seed=1, matrix=128).dicom


@pytest.fixture(scope="module")
def predicted(head: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What predict does when no bundle is named."""
    out = tmp_path_factory.mktemp("results") / "out"
    return run("predict", head, "--out", out), out


def test_it_is_whole_small_and_in_half_precision():
    """16 MB in all, 8 MB of it the encoder; the folder holds what the card names and nothing else."""
    folder, card = shipped_folder(), read_card(shipped_folder())
    assert sorted(path.name for path in folder.iterdir()) == sorted(named_files(card))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES
    (encoder,) = card["encoders"]
    assert (folder / encoder["file"]).stat().st_size <= MOST_ENCODER_BYTES
    for file in [encoder["file"], *(entry["file"] for entry in card["rnn"]["files"])]:
        kinds = {tensor.dtype for tensor in load_file(folder / file).values() if tensor.ndim > 1}
        assert kinds == {torch.float16}
    load_bundle(folder, torch.device("cpu"))


def test_its_card_says_whence_it_comes_and_what_it_is_not():
    """Data and how to cite them, licences, inputs by their hashes, figures with intervals; no medical device."""
    card = read_card(shipped_folder())
    assert "not a medical device" in card["intended_use"]
    provenance = card["provenance"]
    assert "CC BY 4.0" in provenance["citation"]
    assert "10.3390/data5010014" in provenance["citation"]
    assert provenance["sha256_of_inputs"]["labels"] == card["training"]["labels_sha256"]
    assert (card["training"]["patients"], card["training"]["slices"]) == (62, 1876)
    for name in ("constant", "position", "cnn", "rnn", "blend"):
        auc = card["figures"][name]["slice_auc"]["any"]
        assert auc["low"] < auc["value"] < auc["high"]
    assert (
        card["figures"]["blend"]["slice_auc"]["any"]["value"] > card["figures"]["position"]["slice_auc"]["any"]["high"]
    )


def test_the_recipe_is_the_one_its_card_names():
    """The settings in configs/bundled.toml are, byte for byte, those it was trained with."""
    recipe = Path(__file__).parents[1] / "configs" / "bundled.toml"
    assert sha256_file(recipe) == read_card(shipped_folder())["provenance"]["sha256_of_inputs"]["recipe"]


def test_predict_takes_it_where_no_bundle_is_named_and_says_so(predicted, head, tmp_path):
    """On stderr; the tables are those of the same bundle named by its folder."""
    done, out = predicted
    assert done.exit_code == 0, done.output
    assert "62 patients of one hospital" in done.stderr
    assert "Research use only" in done.stderr
    few = load_bundle(shipped_folder(), torch.device("cpu")).hardly_learnt
    assert [label for label in LABELS if label in done.stderr.lower()] == list(few)
    assert json.loads((out / "run.json").read_text())["card_sha256"] == sha256_file(shipped_folder() / CARD)
    assert json.loads((out / "run.json").read_text())["bundle"] == SHIPPED
    named = run("predict", head, "--bundle", shipped_folder(), "--out", tmp_path / "named")
    assert "62 patients" not in named.stderr
    for table in ("slices.csv", "studies.csv"):
        assert (tmp_path / "named" / table).read_bytes() == (out / table).read_bytes()


@pytest.mark.parametrize("option", ["--studies", "--seed"])
def test_what_draws_studies_is_refused_beside_real_ones(option, tmp_path):
    """It would do nothing."""
    done = run("demo", "--real", tmp_path, option, "9", "--out", tmp_path / "demo")
    assert done.exit_code == 2
    assert "with --real none are drawn" in done.stderr


def test_demo_real_reads_a_study_out(head, tmp_path):
    """Each label's probability, and where the report lies; a folder that holds something is left alone."""
    done = run("demo", "--real", head, "--out", tmp_path / "demo")
    assert done.exit_code == 0, done.output
    (row,) = pd.read_csv(tmp_path / "demo" / "studies.csv").to_dict("records")
    assert all(f"{label} {row[label]:.2f}" in done.stdout for label in LABELS)
    assert "report.html" in done.stdout
    assert run("demo", "--real", head, "--out", tmp_path / "demo").exit_code == 5


def test_its_name_is_taken_but_a_folder_of_that_name_goes_before(tmp_path, monkeypatch):
    """No entry of the library can hide it; what lies where the user is, is what the user means."""
    with pytest.raises(UsageError, match="comes with ich-seq"):
        checked_name(SHIPPED)
    monkeypatch.chdir(tmp_path)
    assert bundle_folder(Path(SHIPPED)) == shipped_folder()
    (tmp_path / SHIPPED).mkdir()
    (tmp_path / SHIPPED / CARD).touch()
    assert bundle_folder(Path(SHIPPED)) == Path(SHIPPED)


@pytest.mark.slow
def test_a_folder_of_its_name_that_is_no_bundle_is_told_from_it(tmp_path, monkeypatch, head):
    """As where the data lie in a folder called so: predict says why, and demo --real shows what is in the box."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHIPPED).mkdir()
    done = run("predict", head, "--out", "results")
    assert (done.exit_code, "hides the one that comes with ich-seq" in done.stderr) == (2, True)
    done = run("demo", "--real", head)
    assert done.exit_code == 0, done.output
    assert "62 patients of one hospital" in done.stderr


def test_an_installation_without_it_says_so(tmp_path, monkeypatch):
    """Instead of a traceback."""
    monkeypatch.setattr(weight_library, "__file__", str(tmp_path / "weight_library.py"))
    with pytest.raises(UsageError, match="lacks its bundle"):
        bundle_folder(Path(SHIPPED))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
def test_a_real_head_of_another_scanner_is_no_stranger(tmp_path):
    """A tilted GE series: every slice has finite probabilities, and the study is not called unlike."""
    summary = predict(DATA / "ge_head_tilt", SHIPPED, tmp_path / "out", device="cpu", report=False)
    assert summary.counts.used == 28
    (row,) = pd.read_csv(tmp_path / "out" / "studies.csv").to_dict("records")
    assert np.isfinite([row[label] for label in LABELS]).all()
    assert row["novelty"] < STRANGE
