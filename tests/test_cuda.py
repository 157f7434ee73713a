"""On a GPU comes out what comes out on the CPU, but for rounding; skipped where torch sees no CUDA device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ich_seq.cnn_run import load_run
from ich_seq.cnn_training import CnnSummary, train_cnn
from ich_seq.config import Config, load_config
from ich_seq.encoder import SliceEncoder, build_encoder
from ich_seq.engines import Embedder, Execution
from ich_seq.extraction import extract_features
from ich_seq.labels import LABELS
from ich_seq.phantom import PhantomSet, write_dataset
from ich_seq.prediction import predict
from ich_seq.rnn_training import train_rnn
from ich_seq.store import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = [
    "slices.size=64",
    "slices.neighbours=[-1,0,1]",
    "encoder.arch=test_efficientnet",
    "encoder.weights=random",
    "cnn.folds=3",
    "cnn.epochs=2",
    "cnn.batch_slices=16",
    "cnn.precision=fp32",
    "train.folds=3",
    "train.epochs=3",
]
FAST = ["cnn.epochs=4", "cnn.learning_rate=1e-2"]
"""Settings under which probabilities differ from slice to slice, and losses by what rounding does to them."""

PLAIN = Execution(engine="torch", precision="fp32", views=2, batch_size=8)


def settings(*more: str) -> Config:
    return load_config(overrides=[*SETTINGS, *more])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), n_studies=9, seed=3, matrix=128)


def train(phantoms: PhantomSet, out: Path, device: str, config: Config) -> CnnSummary:
    return train_cnn(phantoms.dicom, phantoms.labels, out, config, device=device, workers=2)


def losses(run: Path) -> list[float]:
    """The losses of all epochs of all folds."""
    curves = [result.curve for result in load_run(run).results.values()]
    return [epoch[name] for curve in curves for epoch in curve for name in ("learnt_loss", "watched_loss")]


@pytest.fixture(scope="module")
def runs(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same networks trained on either processor."""
    root = tmp_path_factory.mktemp("runs")
    for device in ("cpu", "cuda"):
        train(phantoms, root / device, device, settings())
    return {device: root / device for device in ("cpu", "cuda")}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.005), ("bf16", 0.05)])
@pytest.mark.parametrize("arch", ["test_efficientnet", "test_convnext"])
def test_a_slice_is_embedded_as_on_the_cpu(arch, precision, tolerance):
    """TF32 in convolutions is allowed, as torch has it."""
    encoder: SliceEncoder = build_encoder(settings(f"encoder.arch={arch}"))
    hu = torch.from_numpy(np.random.default_rng(0).uniform(-100, 200, (21, 64, 64)).astype(np.float32))
    there = Embedder(encoder, replace(PLAIN, precision=precision), CUDA)(hu).features
    here = Embedder(encoder.to(CPU), PLAIN, CPU)(hu).features
    assert there.device == CPU
    assert relative_error(there, here) < tolerance


def test_the_first_stage_learns_as_on_the_cpu(runs):
    """Same slices, order and variations: the losses of each epoch are the same within a few percent."""
    here, there = (np.array(losses(runs[device])) for device in ("cpu", "cuda"))
    assert len(here) == 3 * 2 * 2
    assert there == pytest.approx(here, rel=0.05)


def test_the_first_stage_learns_in_bf16(phantoms, tmp_path, runs):
    """Autocast moves losses by no more than a few percent."""
    train(phantoms, tmp_path / "bf16", "cuda", settings("cnn.precision=bf16"))
    assert losses(tmp_path / "bf16") == pytest.approx(losses(runs["cpu"]), rel=0.1)


def test_features_bundle_and_predictions_are_as_on_the_cpu(phantoms, tmp_path):
    """The networks of one run, all that follows on either processor: the same probabilities within .02."""
    train(phantoms, tmp_path / "run", "cpu", settings(*FAST))
    said = {}
    for device in ("cpu", "cuda"):
        features, bundle, out = (tmp_path / f"{what}-{device}" for what in ("features", "bundle", "out"))
        extract_features(phantoms.dicom, features, settings(), cnn=tmp_path / "run", device=device, workers=2)
        train_rnn(features, phantoms.labels, bundle, settings(), device=device)
        predict(phantoms.dicom, bundle, out, device=device, workers=2, report=False)
        said[device] = pd.read_csv(out / "slices.csv")[list(LABELS)].to_numpy(), open_store(features)
    (here, store), (there, other) = said.values()
    assert np.abs(here - there).max() < 0.02
    assert np.ptp(here, axis=0).max() > 0.1
    for ours, theirs in zip(other, store, strict=True):
        one, two = (torch.from_numpy(np.asarray(study.features, np.float32)) for study in (ours, theirs))
        assert relative_error(one, two) < 0.01
