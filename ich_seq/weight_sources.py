"""What weights can be added to the library from: a safetensors file, a folder, or, if asked for, the hub.

Nothing is taken on trust: tensors are fitted to the network that they are said to be of, bundles are loaded, and
pickles are not opened. The hub is asked for "hub:NAME" (a network of timm's) and "hub:ORG/REPO" (a folder) alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
from torch import Tensor

from ich_seq import ArtefactError, UsageError
from ich_seq.bundle import CARD, load_bundle, named_files, read_card
from ich_seq.encoder import HEAD, build_network
from ich_seq.files import read_json
from ich_seq.published import LICENCE, SOURCE, is_published, write_published
from ich_seq.weight_library import (
    BUNDLE,
    ENCODER,
    ENCODER_FILE,
    Entry,
    copy_file,
    library_folder,
    new_entry,
    write_entry,
)
from ich_seq.weights import ask_hub_once, fit, of_other_channels, read_tensors, stems, tensors_of_hub, write_tensors

HUB = "hub:"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
FETCHED = (
    *("config.json", "bundle.json", "checksums.json", "model.safetensors"),
    *(f"{name}.safetensors" for name in ("encoder-*", "rnn-*", "familiar", "classifier/*", "sequence/*")),
)
"""What is fetched of a repository: the files of the folders that are known, and no code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What weights turned out to be: their kind, timm's name of the (first) network, whence, under which licence."""

    kind: str
    arch: str
    source: str
    licence: str | None = None


def add_weights(
    name: str,
    source: str,
    *,
    arch: str | None = None,
    licence: str | None = None,
    notes: str | None = None,
    replace: bool = False,
) -> Entry:
    """Add weights to the library under a name; all of them or nothing.

    `source` is a safetensors file of the network `arch` (a name of timm's), a folder (a bundle; weights published by
    others, see `published`; a model of timm's as the hub has it) or "hub:NAME", "hub:ORG/REPO". Raises UsageError for
    what is none of these, is not there, or has a name that is taken, ArtefactError for weights that do not fit.
    """
    with new_entry(library_folder(), name, replace=replace) as folder:
        taken = _take(source, arch, folder)
        facts = {
            "kind": taken.kind,
            "source": taken.source,
            "arch": taken.arch,
            "licence": licence or taken.licence,
            "notes": notes,
            "added": datetime.now(UTC).date().isoformat(),
        }
        return write_entry(folder, name, facts)


def _take(source: str, arch: str | None, folder: Path) -> Taken:
    """Bring weights into an empty folder, and see that they are what they are said to be."""
    if source.startswith(HUB):
        return _from_hub(source, arch, folder)
    path = Path(source)
    is_folder = os.path.isdir(path)  # noqa: PTH112 - a name that is too long is none
    return _from_folder(path, arch, folder) if is_folder else _from_file(path, arch, folder)


def _from_file(path: Path, arch: str | None, folder: Path) -> Taken:
    if path.suffix.lower() in PICKLES:
        raise UsageError(
            f"{path} is a pickle by its name. Those can run code when they are read, and are never opened here. Where "
            "you trust it, convert it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)."
        )
    if not os.path.lexists(path):
        raise UsageError(
            f"Cannot read {path}: it is not there. Give a safetensors file, a folder, hub:NAME or hub:ORG/REPO."
        )
    if arch is None:
        raise UsageError(f"Say which network {path} holds the weights of: --arch with a name of timm's.")
    target = folder / ENCODER_FILE
    copy_file(path, target)
    try:
        check_fit(arch, read_tensors(target), str(path))
    except ArtefactError as error:  # of the copy, which nobody knows
        raise ArtefactError(str(error).replace(str(target), str(path))) from error
    return Taken(kind=ENCODER, arch=arch, source=str(path.absolute()), licence=None)


def check_fit(arch: str, tensors: dict[str, Tensor], what: str) -> None:
    """Fit tensors to timm's network, one by one; only those of a classifier may be left over.

    The network is built for as many channels as its first convolution has. Raises UsageError for a network that timm
    does not know, ArtefactError, naming `what` they are, if any tensor is absent, unknown, misshapen or no number.
    """
    with torch.device("meta"):
        plain = build_network(arch, 3)
    stem = stems(plain)[0]
    given, wanted = tensors.get(stem), plain.state_dict()[stem]
    network = build_network(arch, given.shape[1] if given is not None and of_other_channels(given, wanted) else 3)
    known, classifiers = network.state_dict().keys(), _classifiers(arch)
    if unknown := [name for name in tensors if name not in known and not name.startswith(classifiers)]:
        raise ArtefactError(
            f"{what} does not fit {arch}: {len(unknown)} tensors are unknown, such as {unknown[0]:.80}."
        )
    fit(network, dict(tensors), what)


def _classifiers(arch: str) -> tuple[str, ...]:
    """Return how the names of tensors begin that are of a classifier: timm's, or ours."""
    cfg = timm.get_pretrained_cfg(arch)
    named = (cfg.classifier if cfg else None) or ()
    return (HEAD, *(f"{name}." for name in ([named] if isinstance(named, str) else named)))


def _from_folder(path: Path, arch: str | None, folder: Path) -> Taken:
    if (path / CARD).is_file():
        return _copy_bundle(path, folder)
    if is_published(path):
        return Taken(kind=BUNDLE, arch=write_published(path, folder), source=SOURCE, licence=LICENCE)
    named = arch or _arch_of_hub(path)
    if named is None or not (path / "model.safetensors").is_file():
        raise UsageError(
            f"{path} is no folder of weights that is known: a bundle has bundle.json, published weights have "
            "config.json with classifier/ and sequence/, a model of timm's has config.json and model.safetensors."
        )
    taken = _from_file(path / "model.safetensors", named, folder)
    return Taken(kind=ENCODER, arch=named, source=taken.source, licence=_licence_of_timm(named))


def _copy_bundle(path: Path, folder: Path) -> Taken:
    card = read_card(path)
    try:
        files, arch = named_files(card), str(card["encoders"][0]["arch"])
        licence = card.get("published", {}).get("licence")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path / CARD} does not describe the files beside it ({error}).") from error
    for name in files:
        copy_file(path / name, folder / name)
    load_bundle(folder, torch.device("cpu"), "torch")
    return Taken(kind=BUNDLE, arch=arch, source=str(path.absolute()), licence=licence)


def _arch_of_hub(folder: Path) -> str | None:
    """Return the network that a folder of the hub says it is of, if it does."""
    try:
        arch = read_json(folder / "config.json").get("architecture")
    except (OSError, ValueError, AttributeError):
        return None
    return arch if isinstance(arch, str) else None


def _licence_of_timm(arch: str) -> str | None:
    cfg = timm.get_pretrained_cfg(arch)
    return cfg.license if cfg else None


def _from_hub(source: str, arch: str | None, folder: Path) -> Taken:
    wanted = source.removeprefix(HUB)
    if "/" not in wanted:
        tensors = tensors_of_hub(wanted)
        write_tensors(folder / ENCODER_FILE, tensors)
        check_fit(wanted, tensors, source)
        return Taken(kind=ENCODER, arch=wanted, source=source, licence=_licence_of_timm(wanted))
    fetched = _fetched(wanted)
    taken = _from_folder(fetched, arch, folder)
    return Taken(kind=taken.kind, arch=taken.arch, source=f"{source}@{fetched.name}", licence=taken.licence)


def _fetched(repository: str) -> Path:
    """Return the folder of a repository of the hub, in its client's cache, named by its commit. Raises UsageError."""
    from huggingface_hub import snapshot_download

    ask_hub_once()
    try:
        return Path(snapshot_download(repository, allow_patterns=list(FETCHED)))
    except Exception as error:  # whatever the hub's client or the network raise
        raise UsageError(
            f"The hub's {repository} could not be had ({type(error).__name__}: {error}). Offline, fetch it elsewhere "
            "and give its folder."
        ) from error
