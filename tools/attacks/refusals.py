"""Commands that refuse a hostile text, or write into a folder of that name, and so may repeat it on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.hostile_data import READS, table
from attacks.payloads import Payload
from attacks.scene import Scene
from ich_seq.labels import LABELS, SUBTYPES


def refusals(folder: Path, payload: Payload, scene: Scene) -> dict[str, list[str]]:
    """Write what is needed into a folder; return the arguments of the commands, by the place of the text."""
    folder.mkdir(parents=True)
    return (
        _of_tables(folder, payload, scene)
        | _of_settings(folder, payload, scene)
        | _of_options(folder, payload, scene)
        | _of_artefacts(folder, payload, scene)
    )


def _of_tables(folder: Path, payload: Payload, scene: Scene) -> dict[str, list[str]]:
    """Return commands on label files and predictions that hold the text where it cannot be meant."""
    text, zeros = payload.text, [0] * len(LABELS)
    labels = {
        "an unknown subtype": table(["ID", "Label"], [[f"1.2_{text}", 1]]),
        "a slice with one label": table(["ID", "Label"], [[f"{text}_any", 1]]),
        "an ID of no form": table(["ID", "Label"], [[text.replace("_", ""), 1]]),
        "a label in the long form": table(["ID", "Label"], [["1.2_any", text]]),
        "a label file's column": table([text, "x"], [[1, 2]]),
        "the slice of a label": table(["image_id", *SUBTYPES], [[text, 2, 0, 0, 0, 0]]),
        "a label in the wide form": table(["image_id", *SUBTYPES], [["1.2", text, 0, 0, 0, 0]]),
    }
    heads = ["study_uid", "sop_uid", *LABELS]
    predictions = {
        "a slice twice": table(heads, [["1", text, *zeros], ["1", text, *zeros]]),
        "a probability": table(heads, [["1", "2", *zeros[1:], text]]),
        "a reserved predictor": table([*heads, *(f"blend_{k}" for k in LABELS), text], [["1", "2", *zeros, *zeros, 1]]),
        "a predictor": table([*heads, *(f"{text}_{label}" for label in LABELS)], [["1", "2", *zeros, *zeros]]),
        "a table's column": table([text, "x"], [[1, 2]]),
    }
    studies = {
        "a patient twice": table(["name", *READS], [[text, *3 * zeros], [text, *3 * zeros]]),
        "a read": table(["name", *READS], [["1", *3 * zeros[:-1], text, 0, 0]]),
        "a study twice": table(["study_uid", *LABELS], [[text, *zeros], [text, *zeros]]),
    }
    (folder / "sound.csv").write_bytes(table(heads, [["1", "2", *zeros]]))
    out = ["--out", str(folder / "out")]
    train = ["train-rnn", str(scene.root / "features"), *out, "--labels"]
    judge = ["evaluate", "--predictions", str(folder / "sound.csv"), *out, "--labels"]
    judged = ["evaluate", "--labels", str(scene.labels), *out, "--predictions"]
    explored = table([text, "x"], [[1, 2]])
    return {
        **_each(train, folder, "labels", labels),
        **_each(judged, folder, "predictions", predictions),
        **_each(judge, folder, "reads", studies),
        "a table to explore": ["explore", _put(folder, "table.csv", explored), *out],
    }


def _each(arguments: list[str], folder: Path, name: str, tables: dict[str, bytes]) -> dict[str, list[str]]:
    """Return a command for each of some tables, which come last of its arguments."""
    paths = {place: _put(folder, f"{name}-{k}.csv", data) for k, (place, data) in enumerate(tables.items())}
    return {place: [*arguments, path] for place, path in paths.items()}


def _put(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def _of_settings(folder: Path, payload: Payload, scene: Scene) -> dict[str, list[str]]:
    """Return commands with settings that hold the text."""
    text, quoted = payload.argument, json.dumps(payload.text).encode()
    files = {
        "a settings file": payload.data,
        "a section": b"[" + quoted + b"]\nx = 1\n",
        "a key": b"[slices]\n" + quoted + b" = 1\n",
        "a value": b"[cnn]\nprecision = " + quoted + b"\n",
        "a network": b"[encoder]\narch = " + quoted + b"\n",
        "a file of weights": b"[encoder]\narch = 'test_convnext'\nweights = " + quoted + b"\n",
    }
    given = {
        "--set": text,
        "a key of --set": f"slices.{text}=1",
        "a value of --set": f"cnn.precision={text}",
        "a network of --set": f"encoder.arch={text}",
    }
    command = ["extract-features", str(scene.dicom), "--out", str(folder / "out"), "--device", "cpu"]
    return {
        name: [*command, "--config", _put(folder, f"settings-{k}.toml", data)]
        for k, (name, data) in enumerate(files.items())
    } | {name: [*command, "--set", value] for name, value in given.items()}


def _of_options(folder: Path, payload: Payload, scene: Scene) -> dict[str, list[str]]:
    """Return commands with the text as an option's value, as a path and as a command."""
    text, out = payload.argument, ["--out", str(folder / "out")]
    named = folder / payload.file_name
    named.mkdir()
    (named / f"{payload.file_name}.dcm").write_bytes(b"no DICOM")
    bundle = str(scene.root / "bundle")
    labels = _put(folder, "labels.csv", table(["sop_uid", *LABELS], [["1.2", *[0] * len(LABELS)]]))
    train = ["train-cnn", str(scene.dicom), "--labels", str(scene.labels), *out]
    evaluate = ["evaluate", "--predictions", str(scene.root / "results"), "--labels", str(scene.labels), *out]
    judge = ["evaluate", "--labels", str(scene.labels), *out, "--predictions"]
    return {
        "--device": [*train, f"--device={text}"],
        "--fold": [*train, f"--fold={text}"],
        "--workers": [*train, f"--workers={text}"],
        "--engine": ["predict", str(scene.dicom), "--bundle", bundle, *out, f"--engine={text}"],
        "--prevalence": [*evaluate, f"--prevalence={text}"],
        "a label of --prevalence": [*evaluate, f"--prevalence={text}=0.5"],
        "a command": [text or "x"],
        "an option": ["predict", f"--{text}"],
        "a source that is not there": ["explore", f"{folder}/no/{text}", *out],
        "a bundle that is not there": ["predict", str(scene.dicom), "--bundle", f"{folder}/no/{text}", *out],
        "features that are not there": ["train-rnn", f"{folder}/no/{text}", "--labels", str(scene.labels), *out],
        "labels that are not there": ["explore", str(scene.dicom), "--labels", f"{folder}/no/{text}", *out],
        "predictions that are not there": [*judge, f"{folder}/no/{text}"],
        "a run that is not there": ["extract-features", str(scene.dicom), "--cnn", f"{folder}/no/{text}", *out],
        "settings that are not there": [*train, "--config", f"{folder}/no/{text}"],
        "a source and a result": ["explore", str(named), "--out", str(folder / "results" / payload.file_name)],
        "a result that is made": ["explore", labels, "--out", str(folder / "results" / f"{payload.file_name}.made")],
        "a source that is a file": ["explore", str(named / f"{payload.file_name}.dcm"), *out],
    }


def _of_artefacts(folder: Path, payload: Payload, scene: Scene) -> dict[str, list[str]]:
    """Return commands on bundles and stores whose descriptions hold the text."""
    card = json.loads((scene.root / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    text = payload.text
    cards: dict[str, dict[str, object]] = {
        "a schema": {"schema": text},
        "the labels of a card": card | {"labels": [text]},
        "a file of a card": card | {"familiar": card["familiar"] | {"file": text}},
        "a hash of a card": card | {"familiar": card["familiar"] | {"sha256": text}},
        "a calibration": card | {"calibration": {text: text}},
        "a network of a card": card | {"encoders": [card["encoders"][0] | {"arch": text}]},
    }
    given = {}
    for k, (name, described) in enumerate(cards.items()):
        (folder / f"bundle-{k}").mkdir()
        _put(folder / f"bundle-{k}", "bundle.json", json.dumps(described).encode())
        given[name] = ["predict", str(scene.dicom), "--bundle", str(folder / f"bundle-{k}"), "--device", "cpu"]
    return {name: [*arguments, "--out", str(folder / "out")] for name, arguments in given.items()}
