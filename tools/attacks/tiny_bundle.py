"""A bundle of random weights, made in a second, that looks at all it is given: pixels, order and positions.

A new sequence model adds nothing to what the slice classifier says, so its silent layers are made to speak.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ich_seq.bundle import Calibrations, save_bundle
from ich_seq.calibration import Calibration
from ich_seq.config import Config, Rnn
from ich_seq.encoder import SliceEncoder, build_encoder, with_head
from ich_seq.engines import Execution
from ich_seq.labels import LABELS
from ich_seq.model import SequenceModel
from ich_seq.novelty import Familiar

LOUDNESS = 0.5
"""Standard deviation of the weights that a new sequence model has at 0."""


def tiny_config(seed: int = 0) -> Config:
    """Return the settings of a small encoder that normalises each slice, so that random weights tell them apart."""
    encoder = {"arch": "test_convnext", "weights": "random", "seed": seed}
    return Config.model_validate({"slices": {"size": 32}, "encoder": encoder})


def write_tiny_bundle(root: Path, *, seed: int = 0, views: int = 1) -> Path:
    """Write a bundle of an encoder and a sequence model to a folder; the same seed, the same numbers."""
    root.mkdir(parents=True, exist_ok=True)
    rng, labels = np.random.default_rng(seed), len(LABELS)
    encoder = _encoder(seed, rng)
    dim = encoder.spec.dim
    half = Calibration(share=np.full(labels, 0.5), slope=np.ones(labels), intercept=np.zeros(labels))
    mean, axes = rng.normal(size=(1, dim)).astype(np.float32), np.eye(2, dim, dtype=np.float32)[None]
    usual = Familiar(mean, np.ones((1, dim), np.float32), axes, 1.0)
    save_bundle(
        root,
        encoders=[encoder],
        execution=Execution(engine="torch", precision="fp32", views=views, batch_size=8),
        models=[_sequence_model(dim, seed)],
        calibrations=Calibrations(slices=half, studies=half, kernel=np.tile([0.2, 0.1, 0.05], (labels, 1))),
        familiar=usual,
        facts={"training": {"studies": 1, "patients": 1}},
    )
    return root


def _encoder(seed: int, rng: np.random.Generator) -> SliceEncoder:
    encoder = build_encoder(tiny_config(seed))
    encoder.spec = replace(encoder.spec, weights="random, as for an attack")
    weight = rng.normal(0, 0.2, (len(LABELS), encoder.spec.dim)).astype(np.float32)
    return with_head(encoder, weight, rng.normal(-1, 0.5, len(LABELS)).astype(np.float32))


def _sequence_model(dim: int, seed: int) -> SequenceModel:
    torch.manual_seed(seed)
    model = SequenceModel(dim, Rnn(projection=8, hidden=8)).eval()
    with torch.no_grad():
        for weight in (w for w in model.parameters() if not w.count_nonzero()):
            weight.normal_(0, LOUDNESS)
    return model
