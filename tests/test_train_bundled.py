"""The recipe of the bundle in the box, run whole on a few small phantoms in the place of patients."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_bundled

from ich_seq import figures
from ich_seq.bundle import load_bundle, read_card
from ich_seq.evaluation import evaluate
from ich_seq.phantom import write_dataset

TINY = """
[slices]
size = 32
neighbours = [-1, 0, 1]
[encoder]
arch = "test_efficientnet"
weights = "random"
[augment]
noise_hu = 8.0
[cnn]
folds = 3
epochs = 1
batch_slices = 16
precision = "fp32"
[train]
folds = 3
epochs = 2
allow_in_sample = true
"""


@pytest.mark.slow
@pytest.mark.parametrize("copies", [0, 1])
def test_the_recipe_goes_from_dicom_to_a_bundle_in_half_precision(tmp_path, monkeypatch, capsys, copies):
    """One command; run again it ends with the same card; the bundle predicts as the whole one does."""
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    monkeypatch.setattr(train_bundled, "CONFIG", config)
    monkeypatch.setattr(train_bundled, "PHANTOM_MATRIX", 64)
    monkeypatch.setattr(figures, "RESAMPLES", 20)
    patients, out = write_dataset(tmp_path / "patients", n_studies=9, seed=3, matrix=128), tmp_path / "out"
    words = [str(patients.dicom), "--labels", str(patients.labels), "--out", str(out), "--phantoms", "4"]
    words += ["--workers", "0", "--device", "cpu", "--copies", str(copies)]
    monkeypatch.setattr(sys, "argv", ["train_bundled.py", *words])
    train_bundled.main()
    assert "half precision moves probabilities by at most 0.0" in capsys.readouterr().out
    card = read_card(out / "bundle")
    (encoder,) = card["encoders"]
    assert "train-cnn, all patients, from " * (1 + copies) + "file" in encoder["weights"]
    assert card["training"]["patients"] == len({s.split("_")[0] for s in patients_of(out)})
    provenance = card["provenance"]
    assert provenance["sha256_of_inputs"]["dicom"] == train_bundled.sha256_of_files(patients.dicom)
    assert "CC BY 4.0" in provenance["citation"]
    assert ("drawn_bleeds" in provenance) == (copies > 0)
    assert provenance["encoder_settings"]["encoder"]["weights"] == "phantom-cnn/fold-3/encoder.safetensors"
    assert provenance["encoder_figures"]["cnn"]["slice_auc"]["any"]
    first = (out / "bundle" / "bundle.json").read_bytes()
    train_bundled.main()
    assert (out / "bundle" / "bundle.json").read_bytes() == first
    whole, half = (load_bundle(out / name, torch.device("cpu")) for name in ("whole", "bundle"))
    assert whole.operating_points == half.operating_points
    assert np.array_equal(whole.familiar.mean, half.familiar.mean)
    judged = evaluate(out / "out-of-fold", patients.labels, tmp_path / "evaluation", resamples=100)
    assert judged.evaluation["flow"]["studies_judged"] == 9
    loss = judged.evaluation["slices"]["blend"]["weighted_log_loss"]["value"]
    assert loss == pytest.approx(card["figures"]["blend"]["slice_loss"]["value"], abs=1e-4)


def patients_of(out: Path) -> list[str]:
    """The patient keys of a run's folds."""
    return [line.split(",")[1] for line in (out / "cnn" / "folds.csv").read_text().splitlines()[1:]]
