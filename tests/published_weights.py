"""Weights in the layout of ianpan/ct-head-hemorrhage-detection, random, and its arithmetic written down a second time.

From the description alone: nothing of the package is used but the order of the labels.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

LABELS = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]
SLICE_ALPHAS = [0.75, 0.75, 0.75, 0.75, 0.75, 1.0]
SERIES_ALPHAS = [0.5, 0.25, 0.5, 1.0, 0.5, 0.5]
WINDOWS = [("brain", 40, 80), ("subdural", 80, 200), ("bone", 600, 2800)]


def config(arch: str, size: int, dim: int) -> dict:
    return {
        "model_type": "ct_head_hemorrhage_detection",
        "architecture": {"slice_classifier": arch, "segmentation_folds": 5},
        "input": {
            "height": size,
            "width": size,
            "large_image_resize_threshold": 640,
            "adjacent_slices": 3,
            "channel_order": "slice-major",
            "windows": [{"name": name, "center": center, "width": width} for name, center, width in WINDOWS],
            "normalization": {"input_min": 0.0, "input_max": 1.0, "output_min": -1.0, "output_max": 1.0},
        },
        "labels": LABELS,
        "pooled_feature_dimension": dim,
        "slice_blend_alphas": SLICE_ALPHAS,
        "series_blend_alphas": SERIES_ALPHAS,
        "series_baseline_aggregation": "max_probability",
        "training_max_sequence_length": 64,
        "long_series_inference_default": "resample",
        "source_code_revision": "098b7ff",
    }


def write(root: Path, *, arch: str, size: int, hidden: int = 256, projection: int = 512, attention: int = 128) -> Path:
    """Write a folder as it is published, of random numbers: the same arguments, the same numbers."""
    torch.manual_seed(0)
    network = timm.create_model(arch, pretrained=False, num_classes=0, global_pool="", in_chans=9).eval()
    dim = network.num_features
    linear = nn.Linear(dim, 6)
    for name, value in network.named_buffers():  # statistics of batches that say something
        if "running" in name:
            value.uniform_(0.5, 1.5) if "var" in name else value.normal_(0, 0.1)
    nn.init.normal_(linear.weight, 0, 1.5)  # loud enough that slices and places tell
    gru = nn.GRU(projection + 1, hidden, 2, batch_first=True, bidirectional=True)
    parts = {
        "input_norm": nn.LayerNorm(dim),
        "projection": nn.Linear(dim, projection),
        "projection_norm": nn.LayerNorm(projection),
        "sequence": gru,
        "slice_head": nn.Linear(2 * hidden, 6),
    }
    sequence = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for pool, width in (("sequence_pool", 2 * hidden), ("mil_pool", projection)):
        for layer, shape in (("0", (attention, width)), ("2", (6, attention))):
            sequence[f"{pool}.attention.{layer}.weight"] = torch.randn(shape) * 0.2
            sequence[f"{pool}.attention.{layer}.bias"] = torch.randn(shape[0]) * 0.2
        sequence[f"{pool}.classifier_weight"] = torch.randn(6, width) * 0.3
        sequence[f"{pool}.classifier_bias"] = torch.randn(6) * 0.3
    classifier = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    classifier |= {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
    for name, tensors in (("classifier", classifier), ("sequence", sequence)):
        (root / name).mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, root / name / "model.safetensors")
    (root / "config.json").write_text(json.dumps(config(arch, size, dim)))
    return root


def windowed(image: np.ndarray | None, size: int) -> np.ndarray:
    """Three windows of a slice in HU, each in [0, 1]; a slice that is not there is all zero."""
    if image is None:
        return np.zeros((3, size, size), np.float32)
    shown = [np.clip((image - (center - width / 2)) / width, 0, 1) for _, center, width in WINDOWS]
    return np.stack(shown).astype(np.float32)


def slabs(volume: np.ndarray) -> np.ndarray:
    """The input of nine channels of each slice: of the one before, itself and the one after, the three windows."""
    count, size = len(volume), volume.shape[1]
    beside = [[volume[j] if 0 <= j < count else None for j in (i - 1, i, i + 1)] for i in range(count)]
    return np.stack([np.concatenate([windowed(image, size) for image in slices]) for slices in beside])


@torch.no_grad()
def classify(root: Path, nine: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled features and the logits of slices."""
    told = json.loads((root / "config.json").read_text())
    tensors = load_file(root / "classifier" / "model.safetensors")
    name = told["architecture"]["slice_classifier"]
    network = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", in_chans=9).eval()
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")})
    maps = torch.cat([network(torch.from_numpy(one[None]) * 2 - 1) for one in nine])
    features = functional.adaptive_avg_pool2d(maps, 1).flatten(1)
    return features, features @ tensors["linear.weight"].T + tensors["linear.bias"]


@torch.no_grad()
def read_in_context(root: Path, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The contextual logits of a series' slices and of the series, from its features (N, D)."""
    t = load_file(root / "sequence" / "model.safetensors")
    length = len(features)
    taken = np.arange(length) if length <= 64 else np.rint(np.linspace(0, length - 1, 64)).astype(int)
    x = features[torch.from_numpy(taken)]
    x = functional.layer_norm(x, x.shape[1:], t["input_norm.weight"], t["input_norm.bias"])
    x = functional.gelu(x @ t["projection.weight"].T + t["projection.bias"])
    x = functional.layer_norm(x, x.shape[1:], t["projection_norm.weight"], t["projection_norm.bias"])
    along = torch.from_numpy(taken).float() / max(length - 1, 1)
    hidden = t["sequence.weight_hh_l0"].shape[1]
    gru = nn.GRU(x.shape[1] + 1, hidden, 2, batch_first=True, bidirectional=True)
    gru.load_state_dict({k.removeprefix("sequence."): v for k, v in t.items() if k.startswith("sequence.")})
    context = gru(torch.cat([x, along[:, None]], dim=1)[None])[0][0]
    slices = context @ t["slice_head.weight"].T + t["slice_head.bias"]
    first, second = (f"sequence_pool.attention.{layer}" for layer in "02")
    scores = torch.tanh(context @ t[f"{first}.weight"].T + t[f"{first}.bias"])
    weights = (scores @ t[f"{second}.weight"].T + t[f"{second}.bias"]).softmax(dim=0)
    pooled = torch.einsum("tc,th->ch", weights, context)
    series = (pooled * t["sequence_pool.classifier_weight"]).sum(1) + t["sequence_pool.classifier_bias"]
    back = [min(range(len(taken)), key=lambda j, i=i: (abs(taken[j] - i), j)) for i in range(length)]
    return slices[back], series


def blended(base: torch.Tensor, slices: torch.Tensor, series: torch.Tensor) -> dict[str, np.ndarray]:
    """What is said of a series: by its slices alone, in context and blended, of slices and of the series."""
    alone = base.sigmoid().amax(0).clamp(1e-6, 1 - 1e-6)
    of_slices, of_series = torch.tensor(SLICE_ALPHAS), torch.tensor(SERIES_ALPHAS)
    said = {
        "cnn slices": base.sigmoid(),
        "cnn series": alone,
        "rnn slices": slices.sigmoid(),
        "rnn series": series.sigmoid(),
        "slices": ((1 - of_slices) * base + of_slices * slices).sigmoid(),
        "series": ((1 - of_series) * torch.logit(alone) + of_series * series).sigmoid(),
    }
    return {name: value.numpy() for name, value in said.items()}


def predict(root: Path, volume: np.ndarray) -> dict[str, np.ndarray]:
    """All of it, for a volume (N, S, S) in HU, feet to head; embeddings kept in half precision, as in its training."""
    features, base = classify(root, slabs(volume))
    return blended(base, *read_in_context(root, features.half().float()))
