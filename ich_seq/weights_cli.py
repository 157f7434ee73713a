"""The commands about weights: the library, and bundles for other programs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ich_seq import UsageError
from ich_seq.commands import Place, finish, open_hub, out_option, reporting, telling
from ich_seq.tables import printable

if TYPE_CHECKING:
    from ich_seq.weight_library import Entry


@click.group()
def weights() -> None:
    """Give weights names: a library in a folder of yours, each file known by its SHA-256.

    What is in it can be named as encoder.weights, and bundles as predict --bundle. It lies in the user's data folder,
    or where the environment's ICH_SEQ_WEIGHTS says.

    \b
    ich-seq weights add ianpan ct-head-hemorrhage-detection
    ich-seq weights add mine resnet50.safetensors --arch resnet50
    """


@weights.command()
@click.argument("name")
@click.argument("source")
@click.option("--arch", metavar="NAME", help="Timm's name of the network, for a safetensors file.")
@click.option("--licence", metavar="TEXT", help="Under which licence they are. [default: what the source says]")
@click.option("--notes", metavar="TEXT", help="What else to know of them.")
@click.option("--replace", is_flag=True, help="Put them in the place of weights of this name.")
@reporting
def add(
    name: str,
    source: str,
    arch: str | None,
    licence: str | None,
    notes: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Add weights under a NAME of small letters, digits, dots, hyphens and underscores.

    SOURCE is a safetensors file, with --arch; a folder: a bundle, the published ianpan/ct-head-hemorrhage-detection, or
    a model of timm's as the hub has it; or, the only one that asks the network, hub:NAME for weights of timm's and
    hub:ORG/REPO for such a folder. Pickles (.pt, .pth, .ckpt, .bin) are refused.
    """
    if source.startswith("hub:"):
        open_hub()
    from ich_seq.weight_sources import add_weights

    entry = add_weights(name, source, arch=arch, licence=licence, notes=notes, replace=replace)
    used = f"predict --bundle {name}" if entry.kind == "bundle" else f'encoder.weights = "{name}"'
    finish(asdict(entry), f"{_line(entry)}\nuse it as: {used}", as_json=as_json)


@weights.command("list")
@reporting
def list_weights(as_json: bool) -> None:
    """Say what the library and the package hold; files are not read (see verify)."""
    from ich_seq import ArtefactError
    from ich_seq.weight_library import SHIPPED, library_folder, names, read_entry

    root = library_folder()
    told: list[dict[str, Any]] = []
    lines = []
    for name in names(root):
        try:
            entry = read_entry(root / name)
        except ArtefactError as error:
            told.append({"name": name, "damaged": [str(error)]})
            lines.append(f"{name}: damaged")
            continue
        told.append(asdict(entry))
        lines.append(_line(entry))
    text = "\n".join(lines) if lines else f"No weights in {printable(str(root))}."
    text += f"\n{SHIPPED}: bundle, comes with ich-seq"
    finish({"library": str(root), "weights": told, "shipped": SHIPPED}, text, as_json=as_json)


@weights.command()
@click.argument("name", required=False)
@reporting
def verify(name: str | None, as_json: bool) -> None:
    """Hash every file again, of NAME or of all; ends with 2 if any is not what was added."""
    from ich_seq.weight_library import absent, damages, library_folder, names

    root = library_folder()
    known = names(root)
    if name is not None and name not in known:
        raise absent(name)
    found = {each: damages(root / each) for each in ([name] if name is not None else known)}
    lines = [f"{each}: {'; '.join(told) if told else 'as it was added'}" for each, told in found.items()]
    text = "\n".join(lines) if lines else f"No weights in {printable(str(root))}."
    finish({"library": str(root), "damaged": found}, text, as_json=as_json)
    if any(found.values()):
        sys.exit(UsageError.exit_code)


@click.command()
@click.argument("bundle", type=Place())
@out_option
@click.option("--onnx", "form", flag_value="onnx", default="onnx", help="As ONNX; the default, and the only form.")
@telling
def export(bundle: Path, out: Path, form: str, as_json: bool, quiet: bool) -> None:
    """Write a bundle in a form that runs without torch.

    BUNDLE is what train-rnn wrote, or a name of the library. Writes the encoders and the sequence models as ONNX, and
    model.json with what lies before, between and after them. Each is run beside its network and refused if it says
    anything else.

    \b
    ich-seq export bundle --out exported
    """
    from ich_seq.export import export as run
    from ich_seq.progress import shown

    with shown(quiet=quiet) as progress:
        summary = run(bundle, out, progress=progress)
    text = "\n".join(f"{name}: within {apart:.1e} of its network" for name, apart in summary.apart.items())
    result = {"out": str(out), "furthest_from_its_network": dict(summary.apart)}
    finish(result, f"{text}\n{len(summary.apart)} networks -> {printable(str(out))}", as_json=as_json)


def _line(entry: Entry) -> str:
    licence = f", {entry.licence}" if entry.licence else ""
    hashed = entry.files["bundle.json" if entry.kind == "bundle" else "encoder.safetensors"]
    return f"{entry.name}: {entry.kind}, {entry.arch}{licence}, added {entry.added}, SHA-256 {hashed}"
