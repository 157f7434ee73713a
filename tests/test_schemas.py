"""The JSON Schemas are those of what commands print and write: nothing is missing in them, and nothing is too much."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import click
import published_weights
import pytest
from archives import serving
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from ich_seq import UsageError
from ich_seq.cli import cli
from ich_seq.published import write_published
from ich_seq.schemas import SCHEMAS, json_schema, main

pytest_plugins = ["grounds"]

RECORDS = {
    "run": "results/run.json",
    "watch-run": "worklist/run.json",
    "model": "exported/model.json",
    "cnn-run": "cnn/run.json",
    "manifest": "features/manifest.json",
    "bundle": "bundle/bundle.json",
    "evaluation": "evaluation/evaluation.json",
    "exploration": "exploration/exploration.json",
}
READ_WITH = {"predict": "results", "train-cnn": "cnn", "extract-features": "features", "train-rnn": "bundle"}


def closed(schema: Any) -> Any:
    """Return a schema that refuses keys that it does not describe."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if inner.get("type") == "object" and isinstance(inner.get("properties"), dict):
        inner.setdefault("additionalProperties", False)
    return inner


def faults(name: str, value: Any) -> list[str]:
    """Return what a closed schema says against a value."""
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message:.200}"
        for error in Draft202012Validator(closed(json_schema(name))).iter_errors(value)
    ]


@pytest.fixture(scope="module")
def written(scene, zygote, tmp_path_factory) -> dict[str, Any]:
    """Run every command but demo on a few studies, one of whose files is bad; give by schema what came of it."""
    out, root = tmp_path_factory.mktemp("written"), scene.root
    (scene.dicom / "bad.dcm").write_text("no DICOM")
    truth = ["--labels", str(scene.labels)]
    made = ["--predictions", str(root / "results"), "--bundle", str(root / "bundle"), "--resamples", "100"]
    looks = {
        "explore": ["explore", str(scene.dicom), *truth, "--workers", "0"],
        "evaluate": ["evaluate", *made, *truth],
    }
    printed = {}
    for name, folder in READ_WITH.items():
        printed[name] = zygote.run([*scene.arguments(name, out / folder), "--json"])
    for name, arguments in looks.items():
        folder = {"explore": "exploration", "evaluate": "evaluation"}[name]
        printed[name] = zygote.run([*arguments, "--out", str(out / folder), "--quiet", "--json"])
    assert {name: done.code for name, done in printed.items()} == {
        "predict": 3, "train-cnn": 3, "extract-features": 3, "explore": 3, "train-rnn": 0, "evaluate": 0,
    }  # fmt: skip
    outputs = {f"{name}-output": json.loads(done.stdout) for name, done in printed.items()}
    outputs |= _of_weights(root / "bundle", out) | {"send-output": _of_sending(out / "sent")}
    watched = zygote.run(
        ["watch", *scene.arguments("predict", out / "worklist")[1:], "--once", "--quiet-time", "0", "--json"]
    )
    outputs["watch-output"] = json.loads(watched.stdout.splitlines()[0])
    (scene.dicom / "bad.dcm").unlink()
    return outputs | {name: json.loads((out / path).read_text()) for name, path in RECORDS.items()}


def _of_weights(bundle: Path, out: Path) -> dict[str, Any]:
    """Add a bundle to a library, list and verify it, and export it."""
    commands = {
        "weights-add": ["weights", "add", "ours", str(bundle)],
        "weights-list": ["weights", "list"],
        "weights-verify": ["weights", "verify"],
        "export": ["export", str(bundle), "--out", str(out / "exported")],
    }
    printed = {}
    for name, arguments in commands.items():
        done = CliRunner().invoke(cli, [*arguments, "--json"], env={"ICH_SEQ_WEIGHTS": str(out / "library")})
        assert done.exit_code == 0, done.output
        printed[f"{name}-output"] = json.loads(done.stdout)
    return printed


def _of_sending(results: Path) -> Any:
    """Send two results to an archive that takes the first."""
    (results / "sr").mkdir(parents=True)
    (results / "run.json").touch()
    for name in "ab":
        (results / "sr" / f"{16 * name}-sr.dcm").write_bytes(b"a report")
    stored = {"00081199": {"vr": "SQ", "Value": [{}]}}
    with serving(lambda request: request.say(403) if request.seen[1:] else request.say_json(stored)) as (url, _):
        done = CliRunner().invoke(cli, ["send", str(results), url, "--json"])
    assert done.exit_code == 6, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one_of_draft_2020_12(name: str) -> None:
    """What validates has to be valid itself, and every object that it describes says what it is."""
    schema = json_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(of.get("description") for of in [schema, *schema.get("$defs", {}).values()])


def printing_json(command: click.Command, name: str = "") -> Iterator[str]:
    """Yield the names of commands that have --json, those of groups joined to their commands'."""
    if isinstance(command, click.Group):
        for own, inner in command.commands.items():
            yield from printing_json(inner, f"{name}-{own}" if name else own)
    elif any("--json" in parameter.opts for parameter in command.params):
        yield name


def test_every_command_has_a_schema_of_what_it_prints() -> None:
    """A new command without one is found out."""
    assert {name.removesuffix("-output") for name in SCHEMAS if name.endswith("-output")} == set(printing_json(cli))


@pytest.mark.slow
def test_what_commands_print_and_write_is_as_described(written: dict[str, Any]) -> None:
    """Every command's --json and every record, of a small run: no key is wrong, absent or undescribed."""
    assert {name: faults(name, value) for name, value in written.items()} == {name: [] for name in written}
    assert set(written) == set(SCHEMAS) - {"demo-output"}
    assert written["predict-output"]["reasons"] == {"not_dicom": 1}


@pytest.mark.slow
def test_a_record_that_lacks_a_key_or_has_a_strange_one_is_told(written: dict[str, Any]) -> None:
    """The schemas can fail: each required key is missed, each unknown one is seen, each type is looked at."""
    for name, value in written.items():
        for key in json_schema(name)["required"]:
            assert faults(name, {k: v for k, v in value.items() if k != key}), (name, key)
            assert faults(name, value | {key: [{}]}), (name, key)
        assert faults(name, value | {"strange": 1}), name
    card = deepcopy(written["bundle"])
    card["figures"]["blend"]["slice_loss"]["low"] = "0.5"
    assert faults("bundle", card) == ["figures/blend/slice_loss/low: '0.5' is not of type 'number'"]


@pytest.mark.slow
def test_what_tables_tell_is_as_described_too(tmp_path: Path) -> None:
    """A label file by itself, and labels of studies alone: sections that are absent, and a shorter flow."""
    import ich_seq

    labels = tmp_path / "labels.csv"
    subtypes = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]
    rows = [[f"slice-{i}", *(int(i % (k + 2) == 0) for k in range(5))] for i in range(12)]
    labels.write_text("\n".join(",".join(map(str, row)) for row in [["ID", *subtypes], *rows]))
    explored = ich_seq.explore(labels, tmp_path / "explored").exploration
    assert faults("exploration", json.loads(json.dumps(explored))) == []
    assert "geometry" in explored["absent"]

    predictions, studies = tmp_path / "predictions.csv", tmp_path / "studies.csv"
    said = [[f"study-{i % 6}", f"slice-{i}", *[round(0.05 + 0.07 * i, 3)] * 6] for i in range(12)]
    head = ["study_uid", "sop_uid", *subtypes, "any"]
    predictions.write_text("\n".join(",".join(map(str, row)) for row in [head, *said]))
    truth = [[f"study-{i}", *(int(i % (k + 2) == 0) for k in range(5))] for i in range(6)]
    studies.write_text("\n".join(",".join(map(str, row)) for row in [["study_uid", *subtypes], *truth]))
    judged = ich_seq.evaluate(predictions, studies, tmp_path / "judged", resamples=100).evaluation
    assert faults("evaluation", json.loads(json.dumps(judged))) == []
    assert judged["levels"] == ["studies"]
    assert judged["files"] == {}


@pytest.mark.slow
def test_what_the_demo_prints_is_as_described(tmp_path: Path) -> None:
    """The demo too, though it takes a while."""
    options = ["--studies", "8", "--device", "cpu", "--workers", "0", "--quiet", "--json"]
    done = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "demo"), *options])
    assert done.exit_code == 0, done.output
    assert faults("demo-output", json.loads(done.stdout)) == []


def test_the_card_of_weights_that_others_published_is_as_described(tmp_path: Path) -> None:
    """Another kind of sequence models, nothing familiar and no training; figures of its authors, or of nobody."""
    given = published_weights.write(
        tmp_path / "given", arch="test_convnext", size=32, hidden=4, projection=6, attention=3
    )
    (tmp_path / "bundle").mkdir()
    write_published(given, tmp_path / "bundle")
    card = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert card["published"]["figures_of_its_authors"]
    assert faults("bundle", card) == []
    card["published"]["figures_of_its_authors"] = None
    assert faults("bundle", card) == []
    assert faults("bundle", card | {"rnn": card["rnn"] | {"kind": "correction"}})


def test_schemas_are_printed_by_name() -> None:
    """`python -m ich_seq.schemas` lists them and prints one; another name is refused with those that there are."""
    assert main([]).splitlines() == list(SCHEMAS)
    assert json.loads(main(["bundle"])) == json_schema("bundle")
    with pytest.raises(UsageError, match="no schema nonsense; known are run, watch-run"):
        json_schema("nonsense")
