"""On a GPU comes out what comes out on the CPU, but for rounding; skipped where torch sees no CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from test_fitting import FIELD_MM, write_bleeds
from torch import Tensor

from ich_seq.cnn_run import load_run
from ich_seq.cnn_training import train_cnn
from ich_seq.config import Config, load_config
from ich_seq.encoder import SliceEncoder, build_encoder
from ich_seq.engines import Embedder, Execution
from ich_seq.extraction import extract_features
from ich_seq.labels import LABELS
from ich_seq.prediction import predict
from ich_seq.rnn_training import train_rnn
from ich_seq.store import open_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = [
    "slices.size=32",
    f"slices.field_mm={FIELD_MM}",
    "slices.neighbours=[-1,0,1]",
    "encoder.arch=test_efficientnet",
    "encoder.weights=random",
    "augment.erase=0",
    "augment.rotate_deg=5",
    "cnn.folds=3",
    "cnn.epochs=6",
    "cnn.batch_slices=8",
    "cnn.learning_rate=3e-3",
    "cnn.head_epochs=0",
    "cnn.dropout=0",
    "cnn.precision=fp32",
    "train.folds=3",
    "train.epochs=3",
]
"""Under which bleeds are learnt in seconds, and rounding moves losses by no more than 1 %: bf16 on a CPU does so."""

PLAIN = Execution(engine="torch", precision="fp32", views=2, batch_size=8)


def settings(*more: str) -> Config:
    return load_config(overrides=[*SETTINGS, *more])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max())


@pytest.fixture(scope="module")
def bleeds(tmp_path_factory: pytest.TempPathFactory, write_slice: Callable[..., Path]) -> Path:
    """Discs with bright blobs, whose two labels any eye can tell."""
    root = tmp_path_factory.mktemp("bleeds")
    (root / "dicom").mkdir()
    write_bleeds(root / "dicom", root / "labels.csv", write_slice)
    return root


def train(bleeds: Path, out: Path, device: str, *more: str) -> Path:
    train_cnn(bleeds / "dicom", bleeds / "labels.csv", out, settings(*more), device=device, workers=2)
    return out


def learnt(run: Path) -> NDArray[np.float64]:
    """The losses of the slices learnt from, (folds, epochs)."""
    return np.array([[epoch["learnt_loss"] for epoch in r.curve] for r in load_run(run).results.values()])


@pytest.fixture(scope="module")
def here(bleeds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks as the CPU trains them."""
    return train(bleeds, tmp_path_factory.mktemp("here") / "run", "cpu")


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
    if precision == "bf16":  # or it was not computed in it
        assert relative_error(there, here) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_stage_learns_what_it_learns_on_the_cpu(bleeds, here, tmp_path, precision):
    """Same slices, order and variations: losses that fall by far are the same within 5 %, and not the very same."""
    there = learnt(train(bleeds, tmp_path / "run", "cuda", f"cnn.precision={precision}"))
    assert learnt(here).shape == (3, 6)
    assert (learnt(here)[:, -1] < 0.7 * learnt(here)[:, 0]).all()
    assert there == pytest.approx(learnt(here), rel=0.05)
    assert (there != learnt(here)).any()


def test_features_bundle_and_predictions_are_as_on_the_cpu(bleeds, here, tmp_path):
    """The networks of one run, all that follows on either processor: the same probabilities within .02."""
    said = {}
    for device in ("cpu", "cuda"):
        features, bundle, out = (tmp_path / f"{what}-{device}" for what in ("features", "bundle", "out"))
        extract_features(bleeds / "dicom", features, settings(), cnn=here, device=device, workers=2)
        train_rnn(features, bleeds / "labels.csv", bundle, settings(), device=device)
        predict(bleeds / "dicom", bundle, out, device=device, workers=2, report=False)
        said[device] = pd.read_csv(out / "slices.csv")[list(LABELS)].to_numpy(), open_store(features)
    (ours, store), (theirs, other) = said.values()
    assert np.abs(ours - theirs).max() < 0.02
    assert np.ptp(ours, axis=0).max() > 0.1
    for one, two in zip(store, other, strict=True):
        same, embedded = (torch.from_numpy(np.asarray(study.features, np.float32)) for study in (one, two))
        assert relative_error(embedded, same) < 0.01
