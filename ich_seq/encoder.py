"""The 2D network that turns a slice into an embedding, and the record of exactly which one it is."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ich_seq import UsageError, windows
from ich_seq.config import Config
from ich_seq.files import sha256_bytes, short_hash
from ich_seq.weights import fill, read_tensors, tensor_bytes, write_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """All that decides an embedding but the weights' values, whose SHA-256 it holds. Plain JSON values.

    `batch_size`, slices in a forward pass, is part of it since it can move the last bit.
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
    batch_size: int

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits that differ if any embedding could."""
        return short_hash(json.dumps(asdict(self), sort_keys=True))

    @property
    def channels(self) -> int:
        """Return C, the network's input channels."""
        return len(self.windows_hu) * len(self.neighbours)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EncoderSpec:
        """Read back what `dataclasses.asdict` wrote, lists and all."""
        return cls(
            **value
            | {
                "windows_hu": tuple((float(level), float(width)) for level, width in value["windows_hu"]),
                "neighbours": tuple(value["neighbours"]),
                "mean": tuple(value["mean"]),
                "std": tuple(value["std"]),
            }
        )


class SliceEncoder(nn.Module):
    """A timm network without its classifier: HU in, embeddings out; windows and normalisation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.register_buffer("mean", _per_channel(spec.mean, spec.channels), persistent=False)
        self.register_buffer("std", _per_channel(spec.std, spec.channels), persistent=False)

    def forward(self, hu: Tensor) -> Tensor:
        """Embed M slices with their J neighbours, (M, J, S, S) HU, as (M, D) float32."""
        shown = windows.apply(hu, self.spec.windows_hu)
        normalised = (shown - self.mean) / self.std
        embedded: Tensor = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return embedded.flatten(1).float()


def _per_channel(values: tuple[float, ...], channels: int) -> Tensor:
    """Repeat the network's own three values (or one) over C channels, (1, C, 1, 1)."""
    return torch.tensor([values[c % len(values)] for c in range(channels)]).view(1, -1, 1, 1)


def build_encoder(config: Config) -> SliceEncoder:
    """Build the encoder that the settings name, with its weights, in eval mode on the CPU.

    Raises UsageError for a name timm does not know or weights that cannot be had.
    """
    slices, chosen = config.slices, config.encoder
    channels = len(slices.windows_hu) * len(slices.neighbours)
    torch.manual_seed(chosen.seed)
    network = _network(chosen.arch, channels)
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
        batch_size=config.extract.batch_size,
    )
    return _ready(network, spec)


def _network(arch: str, channels: int) -> nn.Module:
    if not timm.is_model(arch):
        near = ", ".join(difflib.get_close_matches(arch, timm.list_models(), n=5))
        raise UsageError(f"timm knows no network {arch!r}{f'; near it are {near}' if near else ''}.")
    network: nn.Module = timm.create_model(arch, pretrained=False, num_classes=0, in_chans=channels)
    return network


def _width(network: nn.Module, arch: str, channels: int, size: int) -> int:
    """Return D as a real forward pass has it; `num_features` lies for some networks."""
    network.eval()
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, channels, size, size)).flatten(1).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{arch} cannot take slices of {size} x {size} ({error}); change slices.size.") from error


def _ready(network: nn.Module, spec: EncoderSpec) -> SliceEncoder:
    encoder = SliceEncoder(network, spec).eval().requires_grad_(False)
    return encoder.to(memory_format=torch.channels_last)


def save_encoder(encoder: SliceEncoder, path: Path) -> None:
    """Write the encoder's weights as safetensors; `spec.sha256` is the file's own."""
    write_tensors(path, encoder.network.state_dict())


def load_encoder(spec: EncoderSpec, path: Path) -> SliceEncoder:
    """Rebuild an encoder from its spec and its weights. Raises ArtefactError if the file is not the one meant."""
    tensors = read_tensors(path, spec.sha256)
    network = _network(spec.arch, spec.channels)
    network.load_state_dict(tensors)
    return _ready(network, spec)


@torch.inference_mode()
def embed(encoder: SliceEncoder, hu: Tensor) -> Tensor:
    """Embed the N sorted slices of one study, (N, S, S) HU on the CPU, as (N, D) float32 on the CPU."""
    device = next(encoder.parameters()).device
    hu = hu.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else hu.to(device)
    stacked = windows.with_neighbours(hu, encoder.spec.neighbours)
    return torch.cat([encoder(part).cpu() for part in torch.split(stacked, encoder.spec.batch_size)])
