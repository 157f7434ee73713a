"""The trained artefact: encoder, sequence models and the card that says what they are.

    BUNDLE/
        bundle.json             the model card: intended use, data, settings, figures, SHA-256 of the files below
        encoder-<k>.safetensors   the slice encoders, each with its slice classifier
        rnn-<k>.safetensors       a sequence model a fold; a prediction is the mean of their logits, over encoders too
        familiar.safetensors      what embeddings of the training data are like, to tell a study that is unlike them

A sequence model is of a kind: "correction" is ours (see `model`), "contextual" that of others (see `contextual`), of
whose training data nothing may be known. Keys of a card that are not known are left alone.

Nothing in a bundle is ever executed, and a file whose SHA-256 is not the card's is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import expit

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.calibration import Calibration
from ich_seq.config import Rnn
from ich_seq.contextual import Context, ContextualModel
from ich_seq.encoder import LATER, EncoderSpec, SliceEncoder, load_encoder, save_encoder
from ich_seq.engines import Embedder, Execution
from ich_seq.figures import Predicted
from ich_seq.files import plain_name, remove, sha256_file, write_json
from ich_seq.labels import LABELS
from ich_seq.model import Logits, SequenceModel, ensemble_logits
from ich_seq.novelty import AXES, Familiar
from ich_seq.operating_points import NO_POINTS, OperatingPoints
from ich_seq.sequences import collate
from ich_seq.smoothing import NO_KERNEL, REACH, smooth
from ich_seq.store import StudyFeatures, read_manifest
from ich_seq.weights import build_around, read_tensors, write_tensors

SCHEMA = "ich-seq bundle 7"
BEFORE = ("ich-seq bundle 6", "ich-seq bundle 5", "ich-seq bundle 4")
"""Schemas that are read too; `_as_now` says what they left unsaid."""

Floats = NDArray[np.float64]
Said = tuple[Floats, Floats]
"""Logits of M slices, (M, K), study after study, and of their B studies, (B, K)."""

ROUGHLY = 1e-3
"""How far a product of unit axes may lie off 0 or 1: far beyond what float32 rounds of thousands of numbers."""

CORRECTION, CONTEXTUAL = "correction", "contextual"
MAX_NETWORKS = 10_000
FEW_STUDIES = 10
"""A label that fewer training studies have is hardly learnt, and what was measured of it hangs on single heads: with so
few clusters a bootstrap interval is too narrow (Cameron, Gelbach and Miller 2008). Pages say so beside it."""
LEVELS = ("slices", "studies")
CARD, FAMILIAR = "bundle.json", "familiar.safetensors"
NETWORK_FILE = re.compile(r"((rnn|encoder)-[0-9]+|familiar)\.safetensors")
INTENDED_USE = (
    "Research use only; not a medical device. Ranks non-contrast head CT studies and slices by the "
    "probability of acute intracranial haemorrhage. Not for diagnosis, and not for patients or scanners "
    "unlike those of its training data, which are described below."
)


def encoder_file(number: int) -> str:
    """Return the name of an encoder's file."""
    return f"encoder-{number}.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibrations:
    """How base and sequence model become probabilities, of slices and of studies; the base's slices by a `kernel`."""

    slices: Calibration
    studies: Calibration
    kernel: Floats = field(default_factory=NO_KERNEL.copy)

    def blend(self, base: Said, refined: Said, lengths: NDArray[np.int64]) -> Said:
        """Return the calibrated logits of B studies of these lengths, of what the base and the sequence model say."""
        smoothed = smooth(base[0], lengths, self.kernel)
        return self.slices.logits(smoothed, refined[0]), self.studies.logits(base[1], refined[1])

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain numbers."""
        levels = {name: asdict(getattr(self, name)) for name in LEVELS}
        numbers = {name: {n: x.tolist() for n, x in level.items()} for name, level in levels.items()}
        return numbers | {"kernel": self.kernel.tolist()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A loaded bundle, its networks in eval mode on one device, and its card as plain values and by SHA-256.

    `operating_points` turn study probabilities into words; a bundle that has none leaves all of them undetermined.
    """

    embedders: dict[int, Embedder]
    models: tuple[SequenceModel | ContextualModel, ...]
    calibrations: Calibrations
    familiar: Familiar | None
    card: dict[str, Any]
    card_sha256: str
    name: str
    operating_points: OperatingPoints = NO_POINTS

    @property
    def hardly_learnt(self) -> dict[str, int]:
        """Return how many training studies have a label, for those that fewer than FEW_STUDIES do, as the card says."""
        training = self.card.get("training")
        counts = training.get("positive_studies") if isinstance(training, dict) else None
        told = counts if isinstance(counts, dict) else {}
        return {k: n for k in LABELS if type(n := told.get(k)) is int and n < FEW_STUDIES}

    def predict(self, views: Sequence[StudyFeatures]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the probabilities of one study's slices, (N, K), and of the study, (K,): the blend of `beside`."""
        blend = self.beside(views)["blend"]
        return blend.slices, blend.studies[0]

    def beside(self, views: Sequence[StudyFeatures]) -> dict[str, Predicted]:
        """Return what the slice classifier ("cnn"), the sequence models ("rnn") and their "blend" say of one study.

        `views` are what each of the encoders makes of it; the mean is taken of logits. A study is always
        run by itself, so nothing else in a batch can touch it.
        """
        said = [self._logits(view) for view in views]
        base, refined = (_means([view[which] for view in said]) for which in range(2))
        blend = self.calibrations.blend(base, refined, np.array([len(base[0])]))
        named = {"cnn": base, "rnn": refined, "blend": blend}
        return {name: Predicted(slices=expit(x[0]), studies=expit(x[1])) for name, x in named.items()}

    def novelty(self, views: Sequence[StudyFeatures]) -> float | None:
        """Return how unlike the training data a study is, as `beside` takes it: see `novelty`; None if none knows."""
        if self.familiar is None:
            return None
        return self.familiar.novelty(np.asarray(view.features) for view in views)

    def _logits(self, view: StudyFeatures) -> tuple[Logits, Logits]:
        batch = collate([view]).to(next(self.models[0].parameters()).device)
        if batch.logits is None:
            raise ValueError("the features come from an encoder without a head")
        return ensemble_logits(self.models, batch.features, batch.positions_mm, batch.lengths, batch.logits)


def _means(said: Sequence[Logits]) -> Said:
    """Return the mean of what several encoders lead to, of the slices of one study and of the study."""
    slices, studies = (torch.stack(list(level)).mean(dim=0).cpu().double().numpy() for level in zip(*said, strict=True))
    return slices[0], studies


def save_bundle(
    root: Path,
    *,
    encoders: Sequence[SliceEncoder],
    execution: Execution,
    models: Sequence[SequenceModel | ContextualModel],
    calibrations: Calibrations,
    familiar: Familiar | None,
    facts: dict[str, Any],
    half: bool = False,
) -> None:
    """Write a bundle; the card comes last and makes it whole. `facts` are JSON values for the card.

    `half` writes the networks in half precision, in half the space; they are computed in single precision as others.
    """
    _forget(root)
    specs = []
    for k, encoder in enumerate(encoders):
        sha256 = save_encoder(encoder, root / encoder_file(k), half=half)
        specs.append(replace(encoder.spec, sha256=sha256) if half else encoder.spec)
    rnns = []
    for k, model in enumerate(models):
        file = f"rnn-{k}.safetensors"
        rnns.append({"file": file, "sha256": write_tensors(root / file, model.state_dict(), half=half)})
    kind = CONTEXTUAL if isinstance(models[0], ContextualModel) else CORRECTION
    card = {
        "schema": SCHEMA,
        "version": __version__,
        "intended_use": INTENDED_USE,
        "labels": list(LABELS),
        "encoders": [asdict(spec) | {"file": encoder_file(k)} for k, spec in enumerate(specs)],
        "execution": asdict(execution),
        "rnn": {"kind": kind, "dim": models[0].dim, "config": models[0].config.model_dump(), "files": rnns},
        "calibration": calibrations.as_json(),
        "familiar": None if familiar is None else _write_familiar(root, familiar),
        **facts,
    }
    write_json(root / CARD, card)


def _write_familiar(root: Path, familiar: Familiar) -> dict[str, Any]:
    usual = {name: torch.from_numpy(getattr(familiar, name)) for name in ("mean", "scale", "axes")}
    return {"file": FAMILIAR, "sha256": write_tensors(root / FAMILIAR, usual), "limit": familiar.limit}


def _forget(root: Path) -> None:
    """Make an older bundle in this folder none from here on, and remove its networks or those a kill left."""
    remove([root / CARD])
    remove(path for path in root.glob("*.safetensors") if NETWORK_FILE.fullmatch(path.name))


def read_card(root: Path) -> dict[str, Any]:
    """Read a bundle's card. Raises UsageError if there is no bundle, ArtefactError if the card is damaged."""
    if not (root / CARD).is_file():
        raise UsageError(
            f"{root} is not a bundle: it has no {CARD}. Give the folder that train-rnn wrote, "
            "or the name of a bundle of the library (ich-seq weights list)."
        )
    return read_manifest(root / CARD, SCHEMA, *BEFORE)


def named_files(card: dict[str, Any]) -> list[str]:
    """Return the names of a bundle's files, the card's first. Raises as a card does that says no such thing."""
    entries = [*card["encoders"], *card["rnn"]["files"], *filter(None, [card["familiar"]])]
    return [CARD, *(plain_name(entry["file"]) for entry in entries)]


def load_bundle(root: Path, device: torch.device, engine: str | None = None) -> Bundle:
    """Load a bundle and check it; `engine` stands in for the one that its features were made with.

    Raises UsageError if there is no bundle, ArtefactError if a file is not the card's, if the labels come
    in another order or if the weights do not fit the networks described.
    """
    path, written = root / CARD, read_card(root)
    if written.get("labels") != list(LABELS):
        raise ArtefactError(f"{path}: the labels are {written.get('labels')}, this version has {list(LABELS)}.")
    try:
        card = _as_now(written)
        if not card["rnn"]["files"] or {e["dim"] for e in card["encoders"]} != {card["rnn"]["dim"]}:
            raise ValueError("no sequence model for embeddings of the encoders' width")
        if not isinstance(card["intended_use"], str):
            raise TypeError("an intended use is a sentence")
        for named in (card["rnn"]["files"], card["encoders"]):
            if len({plain_name(entry["file"]) for entry in named}) < len(named) or len(named) > MAX_NETWORKS:
                raise ValueError("networks that are named twice, or more than there can be")
        execution = Execution.from_json(card["execution"], engine)
        encoders = [_encoder(root, described) for described in card["encoders"]]
        if len({replace(e.spec, weights="", sha256="") for e in encoders}) != 1:
            raise ValueError("encoders that are not shown the same slices")
        models = [_model(root, card["rnn"], entry) for entry in card["rnn"]["files"]]
        calibrations = _calibrations(card["calibration"])
        familiar = _familiar(root, card)
        points = OperatingPoints.from_json(card.get("operating_points"))
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError, RuntimeError, ValidationError) as error:
        raise ArtefactError(f"{path} does not describe the files beside it ({error}); train again.") from error
    return Bundle(  # a device without memory is no fault of the bundle
        embedders={k: Embedder(encoder, execution, device) for k, encoder in enumerate(encoders)},
        models=tuple(model.to(device) for model in models),
        calibrations=calibrations,
        familiar=familiar,
        card=written,
        card_sha256=sha256_file(path),
        name=root.resolve().name,
        operating_points=points,
    )


def _as_now(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card in the words of this schema.

    What was familiar in 6 was another measure: `_familiar` knows nothing of it, so no study of these is ever Absent. In
    5 slices were not smoothed; in 4 all sequence models were ours as well, and encoders had no choices.
    """
    if card["schema"] == SCHEMA:
        return card
    if card["schema"] == BEFORE[0]:
        return card
    card = card | {"calibration": card["calibration"] | {"kernel": NO_KERNEL.tolist()}}
    if card["schema"] == BEFORE[1]:
        return card
    encoders = [dict.fromkeys(LATER, False) | described for described in card["encoders"]]
    return card | {"encoders": encoders, "rnn": {"kind": CORRECTION} | card["rnn"]}


def _encoder(root: Path, described: dict[str, Any]) -> SliceEncoder:
    _vouched(described["sha256"])
    spec = EncoderSpec.from_json({k: v for k, v in described.items() if k != "file"})
    if unsaid := asdict(spec).keys() - described.keys():
        raise ValueError(f"an encoder of which is not said: {', '.join(sorted(unsaid))}")
    if not spec.head:
        raise ValueError("an encoder without a slice classifier")
    return load_encoder(spec, root / plain_name(described["file"]))


def _calibrations(described: dict[str, Any]) -> Calibrations:
    if described.keys() != {*LEVELS, "kernel"}:
        raise ValueError(f"calibrations are of slices, of studies and a kernel, not of {', '.join(described)}")
    levels = {name: _calibration(described[name]) for name in LEVELS}
    away = [_numbers(list(weights)) for weights in zip(*described["kernel"], strict=True)]
    kernel = np.stack(away, axis=1) if away else NO_KERNEL
    if len(described["kernel"]) != len(LABELS) or len(away) > REACH or ((kernel < 0) | (kernel > 1)).any():
        raise ValueError(f"a kernel has {REACH} weights in 0..1 at most for each label")
    return Calibrations(**levels, kernel=kernel)


def _calibration(described: dict[str, list[float]]) -> Calibration:
    calibration = Calibration(**{name: _numbers(values) for name, values in described.items()})
    if not ((calibration.share >= 0) & (calibration.share <= 1) & (calibration.slope > 0)).all():
        raise ValueError(f"{described} is no calibration: shares lie in 0..1, slopes above 0")
    return calibration


def _familiar(root: Path, card: dict[str, Any]) -> Familiar | None:
    described, encoders = card["familiar"], card["encoders"]
    if described is None and _kind(card["rnn"]) == CONTEXTUAL:  # what is ours always knows
        return None
    tensors = read_tensors(root / plain_name(described["file"]), _vouched(described["sha256"]))
    if card["schema"] != SCHEMA:
        return None
    limit, shape = described["limit"], (len(encoders), encoders[0]["dim"])
    mean, scale, axes = (tensors.pop(name).numpy() for name in ("mean", "scale", "axes"))
    shaped = mean.shape == scale.shape == shape and axes.ndim == 3 and (axes.shape[0], axes.shape[2]) == shape
    shaped = shaped and axes.shape[1] <= AXES  # as many as anybody wants would multiply to more than there is memory
    if tensors or not shaped or any(x.dtype != np.float32 for x in (mean, scale, axes)):
        raise ValueError("what is familiar is not described for these encoders")
    rows = np.concatenate([mean[:, None], scale[:, None], axes], axis=1)
    known = [row for row in rows if not np.isnan(row).all()]
    if not known or not np.isfinite(known).all():
        raise ValueError("what is familiar is made of numbers")
    if type(limit) is not float or not 0 < limit < np.inf or (scale <= 0).any():
        raise ValueError("a limit and scales of what is familiar lie above 0")
    if not all(_orthonormal(of_one) for of_one in axes if np.isfinite(of_one).all()):
        raise ValueError("axes of what is familiar are at right angles and of length 1, or 0")
    return Familiar(mean, scale, axes, limit)


def _orthonormal(axes: NDArray[np.float32]) -> bool:
    """Tell whether rows, (R, D), are of length 1, or 0, and at right angles, as float32 has it."""
    exact = axes.astype(np.float64)
    products = exact @ exact.T
    return bool(np.allclose(products, np.diag(products.diagonal().round().clip(0, 1)), atol=ROUGHLY))


def _numbers(values: list[float]) -> NDArray[np.float64]:
    if not all(type(value) is float for value in values):
        raise TypeError("a calibration is made of numbers")
    numbers = np.array(values, np.float64)
    if numbers.shape != (len(LABELS),) or not np.isfinite(numbers).all():
        raise ValueError(f"{values} are no numbers of six labels")
    return numbers


def _vouched(value: Any) -> str:
    """Return a SHA-256 of a card; a card without one vouches for nothing."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no SHA-256")
    return value


def _model(root: Path, described: dict[str, Any], entry: dict[str, str]) -> SequenceModel | ContextualModel:
    path, dim, config = root / plain_name(entry["file"]), described["dim"], described["config"]
    tensors = read_tensors(path, _vouched(entry["sha256"]))
    if _kind(described) == CONTEXTUAL:
        context = Context.model_validate(config)
        return build_around(lambda: ContextualModel(dim, context), tensors, path).eval().requires_grad_(False)
    rnn = Rnn.model_validate(config)
    return build_around(lambda: SequenceModel(dim, rnn), tensors, path).eval().requires_grad_(False)


def _kind(described: dict[str, Any]) -> str:
    kind = described["kind"]
    if kind not in (CORRECTION, CONTEXTUAL):
        raise ValueError(f"sequence models of the kind {kind!r:.80}")
    return str(kind)
