"""Weights that others published, as a bundle of ours: `ianpan/ct-head-hemorrhage-detection` (2026, MIT).

    FOLDER/
        config.json                       the slices that it is shown, its widths, how its parts are blended
        classifier/model.safetensors      a timm network of 9 channels and a linear head
        sequence/model.safetensors        the BiGRU of `contextual`
        checksums.json                    if it is there, the SHA-256 of both

What its authors do and what is done here is the same but for three things, of which the card tells: slices are shown
at one physical scale (that of 512 pixels of .488 mm) instead of pixel by pixel, in the order of their positions, and
embeddings are kept in half precision, as they were in its training. Its decoders of segmentations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ich_seq import ArtefactError
from ich_seq.bundle import Calibrations, save_bundle
from ich_seq.calibration import Calibration
from ich_seq.config import AIR_HU
from ich_seq.contextual import Context, ContextualModel
from ich_seq.encoder import HEAD, EncoderSpec, SliceEncoder, encoder_from
from ich_seq.engines import Execution
from ich_seq.files import read_json, sha256_bytes, sha256_file
from ich_seq.labels import LABELS
from ich_seq.weights import build_around, read_tensors, tensor_bytes

CONFIG, CLASSIFIER, SEQUENCE = "config.json", "classifier/model.safetensors", "sequence/model.safetensors"
CHECKSUMS = "checksums.json"
MODEL_TYPE = "ct_head_hemorrhage_detection"
SOURCE = "ianpan/ct-head-hemorrhage-detection (2026)"
LICENCE = "MIT"
FIELD_MM = 250.0
"""512 pixels of .488 mm, the commonest of its training data, which it saw pixel by pixel."""

UNUSED = "mil_pool."
"""Tensors of a head that helped in its training and decides nothing."""

BATCH = 4
"""Slices in a forward pass, its authors' own choice."""

KNOWN_REVISION = "098b7ff"
"""The source revision of which the figures below are told; weights of another are without figures."""

PUBLISHED_FIGURES: dict[str, Any] = {
    "data": "held-out RSNA 2019: 989 patients, 1,450 studies, 50,415 slices; used before to select an earlier release",
    "slice_auc": dict(zip(LABELS, (0.947909, 0.987003, 0.993089, 0.974216, 0.972305, 0.982764), strict=True)),
    "study_auc": dict(zip(LABELS, (0.926238, 0.969060, 0.987287, 0.954478, 0.960236, 0.980402), strict=True)),
}
"""AUROC of the fixed blend, as the authors' model card has it. None of it was measured here."""

INTENDED_USE = (
    "Research use only; not a medical device. Weights that others published and that were not tested here: not "
    "calibrated, without operating points, and nothing tells which studies are unlike their training data (RSNA 2019). "
    "Ranks non-contrast head CT studies and slices by the probability of acute intracranial haemorrhage. Not for "
    "diagnosis."
)
DIFFERENCES = (
    f"A slice is shown as {FIELD_MM:g} mm, whatever its matrix and pixel spacing; the authors show up to 640 pixels as "
    "they are, cropped or padded, and more than that shrunk.",
    "Slices are ordered by position, feet to head; in the training by the names of files.",
    "Embeddings are rounded to half precision before the sequence model, as they were in its training.",
    "The decoders of segmentations are left out.",
)


class _Told(BaseModel):
    """A part of config.json; what else it says is left alone."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Window(_Told):
    center: float
    width: float = Field(gt=0)


class _Range(_Told):
    input_min: Literal[0]
    input_max: Literal[1]
    output_min: float
    output_max: float


class _Input(_Told):
    height: int
    width: int
    adjacent_slices: int = Field(ge=1, le=16)
    channel_order: Literal["slice-major"]
    windows: tuple[_Window, ...]
    normalization: _Range


class _Architecture(_Told):
    slice_classifier: str


class _Config(_Told):
    """What config.json has to say; the choices are those that are done here as the authors do them."""

    model_type: Literal["ct_head_hemorrhage_detection"]
    architecture: _Architecture
    input: _Input
    labels: tuple[str, ...]
    pooled_feature_dimension: int = Field(ge=1, le=4096)
    slice_blend_alphas: tuple[float, ...] = Field(min_length=len(LABELS), max_length=len(LABELS))
    series_blend_alphas: tuple[float, ...] = Field(min_length=len(LABELS), max_length=len(LABELS))
    series_baseline_aggregation: Literal["max_probability"]
    training_max_sequence_length: int = Field(ge=2, le=4096)
    long_series_inference_default: Literal["resample"]
    source_code_revision: str = "not named"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What was published, made ready: networks in eval mode, shares of the blend, and what is to be told of it."""

    encoder: SliceEncoder
    model: ContextualModel
    calibrations: Calibrations
    revision: str
    sha256: dict[str, str]


def is_published(folder: Path) -> bool:
    """Tell whether a folder claims to hold these weights."""
    try:
        return bool(read_json(folder / CONFIG).get("model_type") == MODEL_TYPE)
    except (OSError, ValueError, AttributeError):
        return False


def write_published(folder: Path, out: Path) -> str:
    """Write what a folder holds as a bundle into an empty one; return timm's name of its network.

    Raises ArtefactError for a config.json that asks for what is not done here, and for tensors that do not fit it or
    are not those of checksums.json; UsageError for a file that is not there.
    """
    found = read_published(folder)
    save_bundle(
        out,
        encoders=[found.encoder],
        execution=Execution(engine="torch", precision="fp32", views=1, batch_size=BATCH),
        models=[found.model],
        calibrations=found.calibrations,
        familiar=None,
        facts={"intended_use": INTENDED_USE, "published": _told(found)},
    )
    return found.encoder.spec.arch


def read_published(folder: Path) -> Published:
    """Read and check the published weights. Raises as `write_published` does."""
    config, hashes = _config(folder / CONFIG), _hashes(folder)
    encoder = _encoder(folder, config, hashes[CLASSIFIER])
    model = _model(folder / SEQUENCE, config, hashes[SEQUENCE])
    shares = Calibrations(slices=_share(config.slice_blend_alphas), studies=_share(config.series_blend_alphas))
    return Published(
        encoder=encoder, model=model, calibrations=shares, revision=config.source_code_revision, sha256=hashes
    )


def _told(found: Published) -> dict[str, Any]:
    """Return what the card says of weights that were not trained here."""
    return {
        "source": SOURCE,
        "licence": LICENCE,
        "revision": found.revision,
        "sha256": found.sha256,
        "training_data": "RSNA 2019, stage 2; 16,910 patients, as its authors say",
        "figures_of_its_authors": PUBLISHED_FIGURES if found.revision == KNOWN_REVISION else None,
        "differences": list(DIFFERENCES),
    }


def _config(path: Path) -> _Config:
    try:
        config = _Config.model_validate(read_json(path))
        if config.labels != LABELS:
            raise ValueError(f"the labels are {list(config.labels)}")
        if config.input.height != config.input.width or not config.input.adjacent_slices % 2:
            raise ValueError("slices that are not square, or as many on one side as on the other")
        if min(window.center - window.width / 2 for window in config.input.windows) < AIR_HU:
            raise ValueError(f"a window that tells air ({AIR_HU} HU) from nothing")
        if not all(0 <= share <= 1 for share in (*config.slice_blend_alphas, *config.series_blend_alphas)):
            raise ValueError("alphas lie in 0..1")
        return config
    except (OSError, ValueError, ValidationError) as error:
        raise _not_taken_over(path, error) from error


def _not_taken_over(config: Path, why: Exception) -> ArtefactError:
    return ArtefactError(f"{config} does not describe a model that can be taken over: {why}")


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of both files. Raises ArtefactError if the folder's own list has others."""
    try:
        hashes = {name: sha256_file(folder / name) for name in (CLASSIFIER, SEQUENCE)}
        listed = {e["path"]: e["sha256"] for e in read_json(folder / CHECKSUMS)} if _has_list(folder) else {}
    except OSError as error:
        raise ArtefactError(f"Cannot read {error.filename or folder}: {error.strerror}; fetch it again.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ArtefactError(f"{folder / CHECKSUMS} is no list of SHA-256; fetch it again.") from error
    for name, sha256 in hashes.items():
        if listed.get(name, sha256) != sha256:
            raise ArtefactError(f"{folder / name} is not the file of {CHECKSUMS} (SHA-256 differs); fetch it again.")
    return hashes


def _has_list(folder: Path) -> bool:
    return (folder / CHECKSUMS).exists()


def _encoder(folder: Path, config: _Config, sha256: str) -> SliceEncoder:
    path = folder / CLASSIFIER
    tensors = {_our_name(name): tensor.float() if tensor.is_floating_point() else tensor
               for name, tensor in read_tensors(path, sha256).items()}  # fmt: skip
    weights = {
        "weights": f"{SOURCE}, {CLASSIFIER}, SHA-256 {sha256}",
        "sha256": sha256_bytes(tensor_bytes(tensors)),
    }
    try:
        spec = EncoderSpec.from_json(_shown(config) | weights)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise _not_taken_over(folder / CONFIG, error) from error
    return encoder_from(spec, tensors, path)


def _shown(config: _Config) -> dict[str, Any]:
    """Return of an encoder's record what the network is and what it is shown."""
    shown, reach = config.input, config.input.adjacent_slices // 2
    span = shown.normalization.output_max - shown.normalization.output_min
    return {
        "arch": config.architecture.slice_classifier,
        "size": shown.height,
        "field_mm": FIELD_MM,
        "windows_hu": [(window.center, window.width) for window in shown.windows],
        "neighbours": list(range(-reach, reach + 1)),
        "mean": [-shown.normalization.output_min / span],
        "std": [1 / span],
        "dim": config.pooled_feature_dimension,
        "head": True,
        "air_beyond": True,
        "late_pool": True,
    }


def _our_name(theirs: str) -> str:
    """Return the name of a classifier's tensor in an encoder's file."""
    if theirs.startswith("linear."):
        return HEAD + theirs.removeprefix("linear.")
    return theirs.removeprefix("backbone.")


def _model(path: Path, config: _Config, sha256: str) -> ContextualModel:
    tensors = {name: t.float() for name, t in read_tensors(path, sha256).items() if not name.startswith(UNUSED)}
    try:
        context = _widths(tensors, config.training_max_sequence_length)
    except (KeyError, IndexError, ValidationError) as error:
        raise ArtefactError(f"{path} does not hold the sequence model that it should ({error}).") from error
    dim = config.pooled_feature_dimension
    return build_around(lambda: ContextualModel(dim, context), tensors, path).eval().requires_grad_(False)


def _widths(tensors: dict[str, Tensor], longest: int) -> Context:
    """Return the widths of the network that these are the tensors of."""
    layers = sum(name.startswith("sequence.weight_hh_l") and not name.endswith("_reverse") for name in tensors)
    return Context(
        projection=tensors["projection.weight"].shape[0],
        hidden=tensors["sequence.weight_hh_l0"].shape[1],
        layers=layers,
        attention=tensors["sequence_pool.attention.0.weight"].shape[0],
        longest=longest,
    )


def _share(alphas: tuple[float, ...]) -> Calibration:
    """Return a blend at these shares and nothing more: the weights come without calibration."""
    share = np.array(alphas, np.float64)
    return Calibration(share=share, slope=np.ones_like(share), intercept=np.zeros_like(share))
