"""The 2D network that turns a slice into an embedding, and the record of exactly which one it is."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ich_seq import ArtefactError, UsageError, windows
from ich_seq.config import Config, Slices
from ich_seq.files import sha256_bytes, short_hash
from ich_seq.labels import LABELS
from ich_seq.weights import build_around, fill, read_tensors, tensor_bytes, write_tensors

HEAD = "slice_head."
"""Prefix of the slice head's tensors in an encoder's file; timm names nothing so."""

LATER = ("air_beyond", "late_pool")
"""What records and fingerprints of before do not hold: where it is False all is as it was then."""

BESIDE = "+"
"""Stands between the names of networks that are side by side in one encoder; timm names nothing so."""

MAX_BESIDE = 16

SHOWN = ("size", "field_mm", "windows_hu", "neighbours", "mean", "std", "air_beyond", "late_pool")
"""What of a record decides what the networks of one encoder are shown."""

MAX_LISTED, MAX_NORM, MIN_STD, MAX_DIM = 256, 1e4, 1e-4, 1 << 16
"""What records keep far away from: the length of a list, values to normalise by, the width of an embedding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """Which network an embedding comes from, and what it is shown: plain JSON values.

    Together with the weights' values, whose SHA-256 it holds, and the `Execution` it decides an embedding.
    `head` tells whether the file holds a slice classifier too. Weights of others may want what ours do not:
    with `air_beyond` slices beyond the ends of a study are air, with `late_pool` the network's own head works
    on each place of the last feature map and the mean is taken of what it says. `arch` is one of timm's names, or
    several with a + between, of an `Ensemble`.
    """

    arch: str
    weights: str
    sha256: str
    size: int
    field_mm: float
    windows_hu: tuple[tuple[float, float], ...]
    neighbours: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dim: int
    head: bool = False
    air_beyond: bool = False
    late_pool: bool = False

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that differ if any embedding could."""
        told = {name: value for name, value in asdict(self).items() if value or name not in LATER}
        return short_hash(json.dumps(told, sort_keys=True))

    @property
    def channels(self) -> int:
        """Return C, the network's input channels."""
        return len(self.windows_hu) * len(self.neighbours)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderSpec:
        """Read back what `dataclasses.asdict` wrote, lists and all. Raises ValueError for what settings refuse too."""
        if any(len(value[name]) > MAX_LISTED for name in ("windows_hu", "neighbours", "mean", "std")):
            raise ValueError("more windows, neighbours or channels than there can be")
        spec = cls(
            **value
            | {
                "windows_hu": tuple((float(level), float(width)) for level, width in value["windows_hu"]),
                "neighbours": tuple(value["neighbours"]),
                "mean": tuple(value["mean"]),
                "std": tuple(value["std"]),
            }
        )
        Slices.model_validate({name: getattr(spec, name) for name in Slices.model_fields}, strict=True)
        texts, numbers = (spec.arch, spec.weights, spec.sha256), (*spec.mean, *spec.std)
        choices = (spec.head, spec.air_beyond, spec.late_pool)
        if not all(type(text) is str for text in texts) or type(spec.dim) is not int:
            raise TypeError("names are texts, dim a number")
        if not all(type(choice) is bool for choice in choices):
            raise TypeError(f"head, {' and '.join(LATER)} are true or false")
        if not all(type(number) in (int, float) and abs(number) < MAX_NORM for number in numbers):
            raise ValueError("mean and std are numbers")
        if not spec.mean or not spec.std or min(spec.std) < MIN_STD or not 0 < spec.dim <= MAX_DIM:
            raise ValueError("mean, std or dim of no network")
        return spec


class SliceEncoder(nn.Module):
    """A timm network without its classifier: HU in, embeddings out; windows and normalisation inside.

    `head` is the linear classifier that makes slice logits of embeddings, (M, D) -> (M, K); None if the
    network was never trained for these labels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: EncoderSpec, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.network, self.spec, self.head = network, spec, head
        self.register_buffer("mean", _per_channel(spec.mean, spec.channels), persistent=False)
        self.register_buffer("std", _per_channel(spec.std, spec.channels), persistent=False)

    def forward(self, hu: Tensor) -> Tensor:
        """Embed M slices with their J neighbours, (M, J, S, S) HU, as (M, D) float32."""
        return self.embed_shown(windows.apply(hu, self.spec.windows_hu))

    def embed_shown(self, shown: Tensor) -> Tensor:
        """Embed M slices that windows were applied to already, (M, C, S, S) in [0, 1]."""
        return self._flat(self.network(self._normalised(shown)))

    def feature_map(self, shown: Tensor) -> Any:
        """Return the network's last features before they are pooled, of slices as `embed_shown` takes them.

        They are what timm makes of them: mostly a tensor, of a few networks a list.
        """
        network: Any = self.network  # timm's own methods, of which torch's Module knows nothing
        return network.forward_features(self._normalised(shown))

    def pooled(self, seen: Tensor) -> Tensor:
        """Return the embeddings, (M, D), that a feature map leads to."""
        network: Any = self.network
        return self._flat(network.forward_head(seen))

    def _flat(self, embedded: Tensor) -> Tensor:
        """Return what the network says as (M, D) float32. Raises ArtefactError if it has no places to pool late."""
        if not self.spec.late_pool:
            return embedded.flatten(1).float()
        if embedded.ndim != 4:
            raise ArtefactError(f"{self.spec.arch} has no places that a mean could be taken of.")
        return embedded.mean(dim=(2, 3)).float()

    def _normalised(self, shown: Tensor) -> Tensor:
        rows_last = shown.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(-self.mean / self.std, rows_last, 1 / self.std)


class Ensemble(nn.Module):
    """Networks side by side as one of timm's: what they say of a slice, one after the other.

    Their embeddings, (M, D) each, make one of the sum of their widths; so do their feature maps if all are of
    channels first and of the same places, else they stay a list.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.widths = [int(network.num_features) for network in self._timms]
        self.num_features = sum(self.widths)

    def forward(self, shown: Tensor) -> Tensor:
        """Embed M slices, (M, C, S, S), as (M, D)."""
        return torch.cat([network(shown).flatten(1) for network in self.networks], dim=1)

    def forward_features(self, shown: Tensor) -> Tensor | list[Any]:
        """Return the last feature maps, as timm's networks do, (M, D, h, w) if they can be one."""
        maps = [network.forward_features(shown) for network in self._timms]
        alike = all(isinstance(seen, Tensor) and seen.ndim == 4 for seen in maps)
        if not alike or [seen.shape[1] for seen in maps] != self.widths or len({seen.shape[2:] for seen in maps}) > 1:
            return maps
        return torch.cat(maps, dim=1)

    def forward_head(self, seen: Tensor | list[Any]) -> Tensor:
        """Return the embeddings that feature maps lead to."""
        maps = torch.split(seen, self.widths, dim=1) if isinstance(seen, Tensor) else seen
        heads = zip(self._timms, maps, strict=True)
        return torch.cat([network.forward_head(of_its_own).flatten(1) for network, of_its_own in heads], dim=1)

    @property
    def _timms(self) -> list[Any]:
        """Return the networks, with timm's own methods, of which torch's Module knows nothing."""
        return list(self.networks)


class SliceNetwork(nn.Module):
    """An encoder with its head, as it is trained: windowed slices in, logits out."""

    def __init__(self, encoder: SliceEncoder, head: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.encoder, self.head, self.dropout = encoder, head, nn.Dropout(dropout)

    def forward(self, shown: Tensor) -> Tensor:
        """Return the logits of M slices: (M, C, S, S) in [0, 1] -> (M, K) float32."""
        logits: Tensor = self.head(self.dropout(self.encoder.embed_shown(shown)))
        return logits.float()


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """Repeat the network's own three values (or one) over C channels, (1, C, 1, 1)."""
    return torch.tensor([values[c % len(values)] for c in range(channels)]).view(1, -1, 1, 1)


def build_encoder(config: Config, *, drop_path: float = 0.0) -> SliceEncoder:
    """Build the encoder that the settings name, with its weights and no head, in eval mode on the CPU.

    `drop_path` is the rate of stochastic depth in training, for networks that have it. Raises UsageError
    for a name timm does not know or weights that cannot be had.
    """
    slices, chosen = config.slices, config.encoder
    channels = len(slices.windows_hu) * len(slices.neighbours)
    torch.manual_seed(chosen.seed)
    network = build_network(chosen.arch, channels, drop_path)
    source = fill(network, chosen.arch, chosen.weights)
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    spec = EncoderSpec(
        arch=chosen.arch,
        weights=source,
        sha256=sha256_bytes(tensor_bytes(network.state_dict())),
        size=slices.size,
        field_mm=slices.field_mm,
        windows_hu=tuple((float(level), float(width)) for level, width in slices.windows_hu),
        neighbours=slices.neighbours,
        mean=tuple(cfg.get("mean", (0.5,))),
        std=tuple(cfg.get("std", (0.5,))),
        dim=_width(network, chosen.arch, channels, slices.size),
    )
    return _ready(SliceEncoder(network, spec))


def build_network(arch: str, channels: int, drop_path: float = 0.0, *, late_pool: bool = False) -> nn.Module:
    """Return timm's network of this name, without its classifier; with `late_pool` it leaves the places apart.

    Raises UsageError if there is none, or none with stochastic depth; ArtefactError if it cannot leave them apart.
    """
    if not timm.is_model(arch) or ("." in arch and not timm.models.is_model_pretrained(arch)):
        near = ", ".join(difflib.get_close_matches(arch, timm.list_models(), n=5))
        raise UsageError(f"timm knows no network {arch!r}{f'; near it are {near}' if near else ''}.")
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    options |= {"global_pool": ""} if late_pool else {}
    try:
        network: nn.Module = timm.create_model(arch, pretrained=False, num_classes=0, in_chans=channels, **options)
    except (TypeError, AssertionError) as error:
        if late_pool:
            raise ArtefactError(f"{arch} cannot pool after its head.") from error
        raise UsageError(f"{arch} knows no stochastic depth; set cnn.drop_path to 0.") from error
    return network


def _width(network: nn.Module, arch: str, channels: int, size: int) -> int:
    """Return D as a real forward pass has it; `num_features` lies for some networks."""
    network.eval()
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, channels, size, size)).flatten(1).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{arch} cannot take slices of {size} x {size} ({error}); change slices.size.") from error


def new_head(dim: int) -> nn.Linear:
    """Return a linear slice head, (M, D) -> (M, K)."""
    return nn.Linear(dim, len(LABELS))


def with_head(encoder: SliceEncoder, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> SliceEncoder:
    """Return an encoder with a head of these weights, (K, D) and (K,); its spec vouches for the whole."""
    head = new_head(encoder.spec.dim)
    head.weight.data, head.bias.data = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
    headed = SliceEncoder(encoder.network, encoder.spec, head)
    headed.spec = replace(encoder.spec, head=True, sha256=sha256_bytes(tensor_bytes(encoder_tensors(headed))))
    return _ready(headed)


def ensemble_of(encoders: Sequence[SliceEncoder]) -> SliceEncoder:
    """Return encoders with heads as one: their embeddings side by side, and the mean of their logits.

    One by itself stays as it is. Raises UsageError if they are shown different slices, have no heads, pool late, or
    are more than MAX_BESIDE.
    """
    first, *others = (encoder.spec for encoder in encoders)
    if not others:
        return encoders[0]
    specs = (first, *others)
    if differing := [name for name in SHOWN if len({getattr(spec, name) for spec in specs}) > 1]:
        raise UsageError(
            f"Networks side by side have to be shown the same, but differ in {', '.join(differing)}: "
            "train them with the same [slices], of architectures that timm normalises alike (mean, std)."
        )
    heads = [encoder.head for encoder in encoders if encoder.head is not None]
    if len(heads) < len(specs) or first.late_pool or len(specs) > MAX_BESIDE:
        raise UsageError(f"Networks side by side, {MAX_BESIDE} at most, pool early and have a slice classifier each.")
    joint = replace(
        first,
        arch=BESIDE.join(spec.arch for spec in specs),
        weights="; ".join(spec.weights for spec in specs),
        dim=sum(spec.dim for spec in specs),
    )
    weight = torch.cat([head.weight for head in heads], dim=1) / len(heads)
    bias = torch.stack([head.bias for head in heads]).mean(dim=0)
    network = Ensemble([encoder.network for encoder in encoders])
    return with_head(SliceEncoder(network, joint), weight.detach().numpy(), bias.detach().numpy())


def _ready(encoder: SliceEncoder) -> SliceEncoder:
    return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def encoder_tensors(encoder: SliceEncoder) -> dict[str, Tensor]:
    """Return the tensors of an encoder's file: the network's under timm's names, the head's under `HEAD`."""
    head = {} if encoder.head is None else encoder.head.state_dict()
    return encoder.network.state_dict() | {HEAD + name: tensor for name, tensor in head.items()}


def save_encoder(encoder: SliceEncoder, path: Path, *, half: bool = False) -> str:
    """Write the encoder's weights as safetensors, in half precision if so asked; return the file's SHA-256."""
    return write_tensors(path, encoder_tensors(encoder), half=half)


def load_encoder(spec: EncoderSpec, path: Path) -> SliceEncoder:
    """Rebuild an encoder from its spec and its weights. Raises ArtefactError if the file is not the one meant."""
    return encoder_from(spec, read_tensors(path, spec.sha256), path)


def encoder_from(spec: EncoderSpec, tensors: Mapping[str, Tensor], path: Path) -> SliceEncoder:
    """Build an encoder of the tensors of its file (see `encoder_tensors`). Raises ArtefactError if they do not fit."""
    named = {
        f"head.{name.removeprefix(HEAD)}" if name.startswith(HEAD) else f"network.{name}": tensor
        for name, tensor in tensors.items()
    }
    return _ready(build_around(lambda: _empty(spec), named, path))


def _empty(spec: EncoderSpec) -> SliceEncoder:
    """Return the encoder of a spec with weights that mean nothing."""
    archs = spec.arch.split(BESIDE)
    if len(archs) > (1 if spec.late_pool else MAX_BESIDE):
        raise ArtefactError(f"{spec.arch:.80} are more networks than can be side by side.")
    networks = [build_network(arch, spec.channels, late_pool=spec.late_pool) for arch in archs]
    network = networks[0] if len(networks) == 1 else Ensemble(networks)
    return SliceEncoder(network, spec, new_head(spec.dim) if spec.head else None)
