"""Records that say what cannot be meant: absurd numbers, foreign names, ways out of the folder, JSON that is none."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attacks.targets import SETTINGS_FILE


@dataclass(frozen=True, slots=True)
class Case:
    """One harm done to a copy of a target; `vouched` tells that its records have to vouch for it then."""

    target: str
    what: str
    harm: Callable[[Path], None]
    vouched: bool = False

    def __str__(self) -> str:
        return f"{self.target}: {self.what}"


HUB = ("hf-hub:someone/model", "local-dir:/tmp", "timm/resnet18", "../../resnet18", "", "x" * 10**6)
LARGE = ("vit_gigantic_patch14_224", "convnextv2_huge", "regnety_2560", "eva_giant_patch14_560", "test_convnext.no_tag")
OUT_OF_FOLDER = ("../../x", "/etc/passwd", "..", "", "a/../rnn-0.safetensors", "nul\0", "x" * 5000, None, 7)
MILLION = 10**6

SPEC: Mapping[str, Sequence[Any]] = {
    "arch": (*HUB, *LARGE, None, 7, ["resnet18"]),
    "size": (MILLION, 0, -32, "large", None),
    "field_mm": (1e-300, 1e300, 0.0, -250.0, "wide", None),
    "windows_hu": ([], [[40, 0]] * 3, [[40, -80]] * 3, [[40]], [[1e308, 1e-308]] * 3, [[40.0, 80.0]] * 100_000, None),
    "neighbours": ([], [0] * MILLION, [10**9], [0.5], ["0"], None),
    "mean": ([], ["x"], [1e308] * 3, None),
    "std": ([], [0.0] * 3, [-0.5] * 3, [1e-320] * 3, None),
    "dim": (10**9, 0, -64, "64", None),
    "head": (None, "yes", 7),
}
"""What an encoder's record may be made to say, by field; it stands in three kinds of artefacts."""

EXECUTION: Mapping[str, Sequence[Any]] = {
    "batch_size": (10**12, 0, -8, "8", 8.5, None),
    "views": (0, 9, 10**9, None),
    "engine": ("onnx", "", None),
    "precision": ("fp8", None),
}
BUNDLE: Mapping[str, Sequence[Any]] = {
    "schema": ("ich-seq bundle 3", "x" * MILLION, None, {}, 4),
    "labels": ([], None, ["any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]),
    "intended_use": (None, 7, {}),
    "rnn": (None, [], {}),
    "rnn.dim": (10**9, 0, -64, "wide", None),
    "rnn.kind": ("other", "contextual", None, {}),
    "rnn.files": ([], None, "rnn-0.safetensors", {}),
    "rnn.files.0.file": OUT_OF_FOLDER,
    "rnn.files.0.sha256": (None, "", 7, "../x"),
    "rnn.config.hidden": (10**9, 50_000, 0, -8, "many", None),
    "rnn.config.layers": (MILLION, 0, -1),
    "rnn.config.projection": (10**9, 0, -8),
    "rnn.config.smoothing": (10**9, -1),
    "rnn.config.dropout": (1e300, -1.0),
    "rnn.config.cell": ("mamba", "", 7),
    "rnn.config.unknown": (1,),
    "encoders": ([], None, {}, [None]),
    "encoders.0.file": OUT_OF_FOLDER,
    "encoders.0.sha256": (None, "", 7),
    "encoders.0.air_beyond": (1, "yes", None),
    "encoders.0.late_pool": (0, "no", None),
    "calibration": (None, {}, {"slices": {}}),
    "calibration.slices.slope": ([0.0] * 6, [-1.0] * 6, [1.0] * 5, ["1"] * 6, [1e308 * 10] * 6, None),
    "calibration.studies.share": ([2.0] * 6, [[0.0]] * 6),
    "calibration.kernel": (
        None,
        [],
        {},
        [[0.1]] * 5,
        [[-0.1]] * 6,
        [["0.1"]] * 6,
        [[1e308 * 10]] * 6,
        [0.1] * 6,
        [[1e308] * 3] * 6,
        [[0.1] * 1000] * 6,
    ),
    "familiar": (None, {}),
    "familiar.file": OUT_OF_FOLDER,
    "familiar.limit": (0.0, -1.0, "near", None),
}
MANIFEST: Mapping[str, Sequence[Any]] = {
    "schema": ("ich-seq features 1", None),
    "files": ({}, None, [], "studies.parquet"),
    "encoders": ({}, None, [], {"first": {}}, {"0": {}}),
    "execution": (None, {}),
}
RUN: Mapping[str, Sequence[Any]] = {
    "schema": ("ich-seq cnn 0", None),
    "trained_folds": ([], ["a", "b", "c"], [0, 0, 0], [-1, -2, -3], [10**30, 1, 2], None),
    "encoders": ([], None, [{}] * 3),
    "folds_sha256": (None, "", 7),
}
SETTINGS: Mapping[str, Sequence[Any]] = {
    "slices.size": (MILLION, 0, -1),
    "slices.field_mm": (1e-300, 1e300),
    "slices.neighbours": ([0] * MILLION, [10**9], []),
    "slices.windows_hu": ([[40, 0]], [[40.0, 80.0]] * 100_000, []),
    "encoder.arch": (*HUB, "test_convnext.no_tag"),
    "encoder.weights": ("/etc/passwd", "/dev/zero", "/", "nowhere.pt"),
    "encoder.seed": (-1, 10**30),
    "rnn.hidden": (10**9, 50_000, -1),
    "rnn.layers": (MILLION, 0),
    "rnn.projection": (10**9, 0),
    "rnn.smoothing": (10**9, -1),
    "train.folds": (10**9, 1),
    "train.epochs": (10**9, 0),
    "train.seeds": (10**9, 0),
    "train.batch_studies": (0, -1),
    "train.learning_rate": (0.0, -1.0),
    "train.unknown": (1,),
}
"""What settings may be made to say: of slices and encoder for extract-features, the others for train-rnn."""


def _names(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... of {len(text)} letters"


def put(record: Any, path: Sequence[str], value: Any) -> None:
    """Write a value into JSON values, by keys and places; * stands for all of a list or of a table."""
    first, rest = path[0], path[1:]
    if first == "*":
        for each in record if isinstance(record, list) else record.values():
            put(each, rest, value)
    elif rest:
        put(record[int(first) if isinstance(record, list) else first], rest, value)
    else:
        record[int(first) if isinstance(record, list) else first] = value


def edit(file: str, path: str, value: Any, root: Path) -> None:
    """Write a value into a JSON file of a copy."""
    record = json.loads((root / file).read_text())
    put(record, path.split("."), value)
    (root / file).write_text(json.dumps(record))


def _values(target: str, file: str, table: Mapping[str, Sequence[Any]], under: str = "") -> Iterator[Case]:
    for path, values in table.items():
        for value in values:
            harm = partial(edit, file, under + path, value)
            yield Case(target, f"{file} says that {under}{path} is {_names(value)}", harm)


def _of_run(path: str, value: Any, root: Path) -> None:
    """Write a value into the records of all networks of a run, which stand in two places."""
    edit("run.json", f"encoders.*.{path}", value, root)
    for file in sorted(root.glob("fold-*/fold.json")):
        edit(str(file.relative_to(root)), f"spec.{path}", value, root)


def absurd_values() -> Iterator[Case]:
    """Yield records that say what cannot be meant."""
    yield from _values("bundle", "bundle.json", BUNDLE)
    yield from _values("bundle", "bundle.json", SPEC, under="encoders.*.")
    yield from _values("bundle", "bundle.json", EXECUTION, under="execution.")
    yield from _values("features", "manifest.json", MANIFEST)
    yield from _values("features", "manifest.json", SPEC, under="encoders.*.")
    yield from _values("features", "manifest.json", EXECUTION, under="execution.")
    yield from _values("cnn", "run.json", RUN)
    for path, values in SPEC.items():
        for value in values:
            yield Case("cnn", f"all records say that {path} is {_names(value)}", partial(_of_run, path, value))
    yield from _many_of_one()
    yield from _foreign_names()


def _repeat(path: str, times: int, root: Path) -> None:
    record = json.loads((root / "bundle.json").read_text())
    held = record["rnn"] if path == "files" else record
    held[path] = held[path][:1] * times
    (root / "bundle.json").write_text(json.dumps(record))


def _many_of_one() -> Iterator[Case]:
    """Yield cards that name one file very often."""
    for path in ("files", "encoders"):
        yield Case("bundle", f"bundle.json names the first of {path} 20,000 times", partial(_repeat, path, 20_000))


def _vouch_for(name: str, root: Path) -> None:
    record = json.loads((root / "manifest.json").read_text())
    record["files"][name] = record["files"].pop("network-0.safetensors")
    (root / "manifest.json").write_text(json.dumps(record))


def _foreign_names() -> Iterator[Case]:
    """Yield manifests that vouch for files elsewhere."""
    for name in ("../features/network-0.safetensors", "/etc/passwd", "..", "nul\0", "x" * 5000, "/dev/zero"):
        yield Case("features", f"manifest.json vouches for {_names(name)}", partial(_vouch_for, name))


def _text(file: str, change: Callable[[str], str | bytes], root: Path) -> None:
    changed = change((root / file).read_text())
    (root / file).write_bytes(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"))


def _with_first(entry: str) -> Callable[[str], str]:
    """Return what puts an entry before all others of a JSON object."""
    return lambda text: text.replace("{", "{" + entry + ",", 1)


TEXTS: Mapping[str, Callable[[str], str | bytes]] = {
    "nothing": lambda text: "",
    "half of it": lambda text: text[: len(text) // 2],
    "lists in lists, 100,000 deep": lambda text: "[" * 100_000,
    "tables in tables, 100,000 deep": lambda text: '{"a":' * 100_000,
    "lists in lists, 100,000 deep, in a field of no use": _with_first(f'"note": {"[" * 100_000}{"]" * 100_000}'),
    "a text of 64 MB in a field of no use": _with_first(f'"note": "{"x" * (64 << 20)}"'),
    "two schemas": _with_first('"schema": "another"'),
    "NaN": _with_first('"note": NaN'),
    "an infinite number": _with_first('"note": -Infinity'),
    "a number beyond all bounds": _with_first('"note": 1e999'),
    "a number of 100,000 digits": _with_first(f'"note": {"9" * 100_000}'),
    "a list": lambda text: f"[{text}]",
    "null": lambda text: "null",
    "a number": lambda text: "7",
    "a text": lambda text: '"schema"',
    "UTF-16": lambda text: text.encode("utf-16"),
    "bytes that are no text": lambda text: b"\xff\xfe\x00" + text.encode(),
    "two records": lambda text: text + text,
}
TOML_TEXTS: Mapping[str, Callable[[str], str | bytes]] = {
    "a setting without its value": lambda text: text[: text.index("=") + 1],
    "lists in lists, 100,000 deep": lambda text: f"note = {'[' * 100_000}",
    "tables in tables, 100,000 deep": lambda text: f"note = {'{a=' * 100_000}",
    "a name of 100,000 parts": lambda text: f"{'a.' * 100_000}a = 1",
    "a text of 64 MB": lambda text: f'note = "{"x" * (64 << 20)}"',
    "no number": lambda text: "slices.field_mm = nan",
    "an infinite number": lambda text: "train.learning_rate = inf",
    "UTF-16": lambda text: text.encode("utf-16"),
    "bytes that are no text": lambda text: b"\xff\xfe\x00" + text.encode(),
}
RECORDS = (
    ("bundle", "bundle.json"),
    ("features", "manifest.json"),
    ("cnn", "run.json"),
    ("cnn", "fold-0/fold.json"),
    ("results", "run.json"),
    ("begun cnn", "plan.json"),
)


def absurd_texts() -> Iterator[Case]:
    """Yield records that are no JSON, or such as no program writes."""
    for target, file in RECORDS:
        for what, change in TEXTS.items():
            if "schemas" in what and target in ("results", "begun cnn"):
                continue  # which have none
            yield Case(target, f"{file} holds {what}", partial(_text, file, change))


def _set(path: str, value: Any, root: Path) -> None:
    settings = tomllib.loads((root / SETTINGS_FILE).read_text())
    section, key = path.split(".")
    settings.setdefault(section, {})[key] = value
    lines = (
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in of.items())
        for section, of in settings.items()
    )
    (root / SETTINGS_FILE).write_text("".join(lines))


def absurd_settings() -> Iterator[Case]:
    """Yield settings that cannot be meant, for the commands for which they count."""
    for path, values in SETTINGS.items():
        target = "encoder settings" if path.startswith(("slices", "encoder")) else "settings"
        for value in values:
            yield Case(target, f"{path} is {_names(value)}", partial(_set, path, value))
    for what, change in TOML_TEXTS.items():
        yield Case("settings", f"{SETTINGS_FILE} holds {what}", partial(_text, SETTINGS_FILE, change))
