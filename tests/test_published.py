"""Weights of others: what the imported bundle says is what they say, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import published_weights as published
import pytest
import torch
from safetensors.torch import load_file, save_file

from ich_seq import ArtefactError
from ich_seq.bundle import load_bundle
from ich_seq.card_page import card_page
from ich_seq.checklist import answers_of_card
from ich_seq.contextual import Context, ContextualModel
from ich_seq.evaluation import evaluate
from ich_seq.files import sha256_file
from ich_seq.phantom import write_dataset
from ich_seq.prediction import predict
from ich_seq.published import is_published, read_published, write_published
from ich_seq.store import StudyFeatures

SMALL = {"arch": "test_convnext", "hidden": 8, "projection": 12, "attention": 5}
SIZE = 256
CPU = torch.device("cpu")
PARTS = {"": "slices", "cnn_": "cnn slices", "rnn_": "rnn slices"}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A folder in the published layout, of a small network."""
    return published.write(tmp_path_factory.mktemp("ianpan"), size=SIZE, **SMALL)


@pytest.fixture(scope="module")
def bundle(given, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imported")
    assert write_published(given, root) == SMALL["arch"]
    return root


@pytest.fixture
def copy(given, tmp_path) -> Path:
    return Path(shutil.copytree(given, tmp_path / "copy"))


def volume(count: int, size: int) -> np.ndarray:
    """Slices (N, S, S) of whole HU that fill all three windows, each with a brightness and a structure of its own."""
    rng = np.random.default_rng(count)
    smooth = rng.normal(30, 60, (count, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    bright = rng.uniform(-300, 900, (count, 1, 1)) * (rng.uniform(size=(count, size, size)) < 0.2)
    return np.round(smooth + bright).clip(-1000, 1900)


def write_series(folder: Path, hu: np.ndarray, write_slice) -> Path:
    """Write a volume as DICOM at the scale that the published model saw pixel by pixel: 250 mm over its side."""
    folder.mkdir()
    for i, image in enumerate(hu):
        write_slice(
            folder / f"{len(hu) - i}.dcm",
            stored=(image + 1024).astype(np.int64),
            SOPInstanceUID=f"1.2.{i}",
            meta_sop=f"1.2.{i}",
            ImagePositionPatient=[-125, -125, 5 * i],
            PixelSpacing=[250 / image.shape[0]] * 2,
            InstanceNumber=i + 1,
        )
    return folder


def check(given: Path, bundle: Path, hu: np.ndarray, folder: Path, write_slice) -> pd.DataFrame:
    """Predict a volume by the imported bundle and hold it against the second implementation; return studies.csv."""
    expected = published.predict(given, hu)
    predict(write_series(folder / "dicom", hu, write_slice), bundle, folder / "out", workers=0, report=True)
    slices, studies = (pd.read_csv(folder / "out" / name) for name in ("slices.csv", "studies.csv"))
    assert slices.sop_uid.tolist() == [f"1.2.{i}" for i in range(len(hu))]
    for prefix, name in PARTS.items():
        columns = [prefix + label for label in published.LABELS]
        assert np.abs(slices[columns].to_numpy() - expected[name]).max() < 1e-5, name
        assert np.abs(studies[columns].to_numpy()[0] - expected[name.replace("slices", "series")]).max() < 1e-5, name
    assert np.ptp(expected["slices"], axis=0).min() > 1e-3  # the slices differ, so that their order tells
    return studies


def test_the_imported_bundle_says_what_the_published_model_says(given, bundle, tmp_path, write_slice):
    """From DICOM files to tables, slices and study, of the CNN, the BiGRU and their blend."""
    studies = check(given, bundle, volume(5, SIZE), tmp_path, write_slice)
    assert studies.novelty.isna().all()
    page = next((tmp_path / "out" / "report").glob("[0-9a-f]*.html")).read_text()
    assert "not known to this bundle" in page
    assert "unlike the training data" not in page


def test_a_study_of_one_slice(given, bundle, tmp_path, write_slice):
    """Air lies on both sides of it."""
    expected = published.predict(given, volume(1, SIZE))
    predict(write_series(tmp_path / "dicom", volume(1, SIZE), write_slice), bundle, tmp_path / "out", workers=0)
    said = pd.read_csv(tmp_path / "out" / "slices.csv")[published.LABELS].to_numpy()
    assert np.abs(said - expected["slices"]).max() < 1e-5


@pytest.mark.slow
def test_the_published_network_itself_at_its_own_size(tmp_path, write_slice):
    """MaxViT-Tiny at 512 pixels, all widths as published."""
    given = published.write(tmp_path / "ianpan", arch="maxvit_tiny_tf_512.in1k", size=512)
    (tmp_path / "bundle").mkdir()
    write_published(given, tmp_path / "bundle")
    check(given, tmp_path / "bundle", volume(3, 512), tmp_path, write_slice)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 66, 100, 127, 128, 129, 300])
def test_long_series_are_read_at_64_slices_and_every_slice_is_given_the_nearest(given, count):
    """As the authors do, of any number of slices."""
    features = torch.from_numpy(np.random.default_rng(count).normal(size=(count, 64)).astype(np.float32))
    slices, series = published.read_in_context(given, features)
    said = read_published(given).model(features[None], torch.zeros(1, count), torch.tensor([count]), torch.zeros(1))
    assert torch.allclose(said.slices[0], slices, atol=1e-5)
    assert torch.allclose(said.studies[0], series, atol=1e-5)


def test_a_study_is_the_same_alone_and_in_any_batch(given):
    """Whatever the others' lengths, longer than 64 or not, and whatever the padding holds."""
    model, lengths = read_published(given).model, torch.tensor([3, 90, 64, 1])
    features = torch.randn(4, 90, 64, generator=torch.Generator().manual_seed(0))
    for i, n in enumerate(lengths.tolist()):
        features[i, n:] = 1e9
    together = model(features, torch.zeros(4, 90), lengths, torch.zeros(1))
    for i, n in enumerate(lengths.tolist()):
        alone = model(features[i : i + 1, :n], torch.zeros(1, n), lengths[i : i + 1], torch.zeros(1))
        assert torch.allclose(together.slices[i, :n], alone.slices[0], atol=1e-5)
        assert torch.allclose(together.studies[i], alone.studies[0], atol=1e-5)


def test_lengths_that_do_not_fit_are_refused():
    """As our own model refuses them."""
    model = ContextualModel(4, Context(projection=3, hidden=2, layers=1, attention=2, longest=64))
    with pytest.raises(ValueError, match="do not fit"):
        model(torch.zeros(1, 3, 4), torch.zeros(1, 3), torch.tensor([4]), torch.zeros(1, 3, 6))


def test_a_slice_classifier_is_never_surer_of_a_study_than_its_authors_let_it(bundle):
    """Beyond a probability of 1 - 1e-6 logits of studies are cut, those of slices are not."""
    logits = np.full((2, 6), -40, np.float32)
    logits[1, :3] = 40
    view = StudyFeatures(
        study_uid="1", patient_key="1", sop_uids=("1", "2"), positions_mm=np.array([0.0, 5.0]),
        features=np.zeros((2, 64), np.float16), logits=logits, network=0,
    )  # fmt: skip
    said = load_bundle(bundle, CPU).beside([view])["cnn"]
    assert said.studies[0] == pytest.approx([1 - 1e-6] * 3 + [1e-6] * 3, rel=1e-3)
    assert said.slices.max() == 1


def test_the_card_says_whose_figures_they_are(bundle, given):
    """Nobody may take what others published for what was measured here."""
    card = json.loads((bundle / "bundle.json").read_text())
    assert card["rnn"]["kind"] == "contextual"
    assert card["familiar"] is None
    assert card["published"]["licence"] == "MIT"
    assert card["published"]["sha256"]["classifier/model.safetensors"] == sha256_file(
        given / "classifier" / "model.safetensors"
    )
    assert card["calibration"]["kernel"] == [[]] * 6
    for level in ("slices", "studies"):
        calibration = card["calibration"][level]
        assert calibration["slope"] == [1.0] * 6
        assert calibration["intercept"] == [0.0] * 6
    page = card_page(card).decode()
    assert "None of it" not in page
    assert "None of them was measured here" in page
    assert "0.9828" in page or "0.983" in page
    answers = answers_of_card(card)
    assert "others trained" in answers[23]
    assert 32 not in answers


@pytest.mark.slow
def test_evaluate_takes_the_bundle_and_does_not_say_what_it_learnt_from(bundle, tmp_path):
    """Nobody here knows with which label file it was trained."""
    drawn = write_dataset(tmp_path, n_studies=2, matrix=64)
    predict(drawn.dicom, bundle, tmp_path / "out", workers=0, report=False)
    summary = evaluate(tmp_path / "out", drawn.labels, tmp_path / "evaluation", bundle=bundle, resamples=100)
    assert summary.evaluation["bundle"]["made_the_predictions"] is True
    assert summary.evaluation["bundle"]["trained_on_these_labels"] is None
    assert "None of them was measured here" in (tmp_path / "evaluation" / "card.html").read_text()


def test_weights_of_another_revision_come_without_figures(copy, tmp_path):
    """The figures are of one revision's weights."""
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(told | {"source_code_revision": "1234567"}))
    (tmp_path / "bundle").mkdir()
    write_published(copy, tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert card["published"]["figures_of_its_authors"] is None
    assert "None are known of these weights" in card_page(card).decode()


def test_two_imports_give_the_same_bytes(given, bundle, tmp_path):
    """Nothing of the day or the place goes into a bundle."""
    (tmp_path / "again").mkdir()
    write_published(given, tmp_path / "again")
    for path in bundle.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": published.LABELS[::-1]},
        {"input": {"channel_order": "window-major"}},
        {"input": {"height": 128}},
        {"input": {"adjacent_slices": 2}},
        {"input": {"adjacent_slices": 5}},
        {"input": {"windows": [{"center": 0, "width": 4000}]}},
        {"series_blend_alphas": [0.5] * 5},
        {"slice_blend_alphas": [1.5] * 6},
        {"series_baseline_aggregation": "mean"},
        {"pooled_feature_dimension": 65},
        {"long_series_inference_default": "full"},
        {"input": {"height": 16, "width": 16}},
        {"input": {"windows": [{"center": 40, "width": 0.5}]}},
        {"input": {"normalization": {"input_min": 0, "input_max": 1, "output_min": 1, "output_max": 1}}},
        {"input": {"normalization": {"input_min": 0, "input_max": 1, "output_min": 0, "output_max": 1e9}}},
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(copy, change, tmp_path):
    """What is not done as the authors do it must not pass for it."""
    told = json.loads((copy / "config.json").read_text())
    for key, value in change.items():
        told[key] = told[key] | value if isinstance(value, dict) else value
    (copy / "config.json").write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match=r"config\.json|fit"):
        write_published(copy, tmp_path)


@pytest.mark.parametrize("name", ["classifier", "sequence"])
@pytest.mark.parametrize("change", ["drop", "add", "shape", "nan"])
def test_tensors_that_do_not_fit_are_refused(copy, name, change, tmp_path):
    """Tensor by tensor: none may lack, be too many, of another shape or no number."""
    path = copy / name / "model.safetensors"
    tensors = load_file(path)
    last = max(key for key in tensors if not key.startswith("mil_pool"))
    if change == "drop":
        del tensors[last]
    elif change == "add":
        tensors["more"] = torch.zeros(2)
    else:
        tensors[last] = torch.zeros(3, 3) if change == "shape" else tensors[last] * torch.nan
    save_file(tensors, path)
    with pytest.raises(ArtefactError, match="fit"):
        write_published(copy, tmp_path)


def test_a_file_that_the_folder_s_own_list_does_not_vouch_for_is_refused(copy, tmp_path):
    """The authors publish SHA-256 with the weights; where the list is there it is held to."""
    files = [copy / name / "model.safetensors" for name in ("classifier", "sequence")]
    listed = [{"path": str(path.relative_to(copy)), "sha256": sha256_file(path)} for path in files]
    (copy / "checksums.json").write_text(json.dumps(listed))
    (tmp_path / "bundle").mkdir()
    write_published(copy, tmp_path / "bundle")
    listed[1]["sha256"] = "0" * 64
    (copy / "checksums.json").write_text(json.dumps(listed))
    with pytest.raises(ArtefactError, match="SHA-256 differs"):
        write_published(copy, tmp_path / "bundle")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "other"}'])
def test_other_folders_are_not_taken_for_it(tmp_path, text):
    """Only a config.json that names this model does."""
    assert not is_published(tmp_path)
    (tmp_path / "config.json").write_text(text)
    assert not is_published(tmp_path)
