"""Hostile text wherever text from outside enters, and a look at every place where text comes out again.

It enters by DICOM elements that are read and such that are not, file and folder names, label files, tables,
predictions, bundles' cards, settings and arguments. It comes out on pages, in CSV, JSON and file names, and on the
terminal.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attacks import Outcome, hostile_data, scaled
from attacks.payloads import FORGED, PAYLOADS, Payload
from attacks.refusals import refusals
from attacks.scene import Scene
from attacks.sinks import end_faults, folder_faults
from attacks.zygote import Done, Zygote

SETTINGS = ("cnn.batch_slices=4", "train.epochs=2")
A_PAGE = 8
"""So many scanners, and of each kind so many failures, a page of evaluate names."""

LISTED = 20
"""So many values of a header field explore lists."""

LEAST_PAYLOADS, LEAST_REFUSED = 6, 2
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A command that is to end as usual: what it is, its arguments, where it writes, how many files it is given."""

    name: str
    arguments: tuple[str, ...]
    out: Path
    files: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where the attack is made, on what, and with which texts; those in a text file must be `sound`."""

    work: Path
    scene: Scene
    payloads: tuple[Payload, ...]

    @property
    def sound(self) -> tuple[Payload, ...]:
        """Return the payloads that a text file may hold."""
        return tuple(payload for payload in self.payloads if payload.sound)


def run(work: Path, *, scene: Scene, zygote: Zygote, scale: float, seed: int = 0) -> Outcome:
    """Put texts into every place, and look at all that comes of it."""
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(PAYLOADS)), scaled(len(PAYLOADS), scale, LEAST_PAYLOADS)))
    ground = Ground(work=work, scene=scene, payloads=tuple(PAYLOADS[k] for k in chosen))
    (work / "cwd").mkdir(parents=True)
    kinds = _kinds(ground)
    steps = [step for kind in kinds[: scaled(len(kinds), scale)] for step in kind()]
    failures, longest = [], 0
    for step in steps:
        done = zygote.run(step.arguments, timeout_s=TIMEOUT_S, cwd=work / "cwd")
        failures += [f"{step.name}: {fault}" for fault in _faults(step, done)]
        longest = max(longest, len(done.stdout), len(done.stderr))
    refused = list(_refused(ground, zygote, scale, rng))
    failures += [f"{name}: {fault}" for name, done in refused for fault in end_faults(done)]
    failures += _strays(work)
    texts = [text for _, done in refused for text in (done.stdout, done.stderr)]
    return Outcome(
        trials=len(steps) + len(refused),
        failures=tuple(failures),
        figures={
            "payloads": len(ground.payloads),
            "commands on hostile input": len(steps),
            "refused texts": len(refused),
            "pages": sum(1 for _ in work.rglob("*.html")),
            "tables": sum(path.suffix in (".csv", ".json", ".jsonl") for s in steps for path in s.out.rglob("*")),
            "longest message, letters": max([longest, *map(len, texts)]),
        },
    )


def _faults(step: Step, done: Done) -> Iterator[str]:
    """Yield what is wrong with a command on hostile input."""
    yield from end_faults(done)
    if done.code == 2:
        yield f"it was refused: {done.stderr!r:.200}"
    yield from folder_faults(step.out)
    yield from _miscounted(step)


def _miscounted(step: Step) -> Iterator[str]:
    """Yield tables of predict that have another number of rows than there were files and studies."""
    if not step.files or not (step.out / "run.json").is_file():
        return
    run = json.loads((step.out / "run.json").read_text(encoding="utf-8"))
    counts = run["counts"]
    if counts["files"] != step.files:
        yield f"{counts['files']} files counted of {step.files}"
    expected = {"studies.csv": run.get("studies"), "rejected.csv": counts["excluded"] + counts["rejected"]}
    for name, wanted in expected.items():
        if wanted is not None and (step.out / name).is_file():
            with (step.out / name).open(newline="", encoding="utf-8", errors="replace") as file:
                rows = sum(1 for _ in csv.reader(file)) - 1
            if rows != wanted:
                yield f"{name} has {rows} rows for {wanted}"


def _strays(work: Path) -> list[str]:
    """Return what was written where nothing was to be: a path in a text was followed."""
    ours = {work / "hostile", work / "refused"}
    found = [path for path in work.parent.rglob(f"*{FORGED}*") if not ours & {*path.parents}]
    return [f"a file was written to {str(path)!a}" for path in [*found, *(work / "cwd").iterdir()]]


def _kinds(ground: Ground) -> list[Callable[[], list[Step]]]:
    """Return what makes input and the commands on it; what comes later may need what came before."""
    tree = partial(_on_tree, ground)
    evaluations = [partial(_evaluations, ground, part) for part in _parts(ground.sound, A_PAGE)]
    tables = [partial(_slice_tables, ground, part) for part in _parts(ground.sound, LISTED)]
    first, *others = evaluations
    return [
        partial(tree, "predict"),
        first,
        tables[0],
        partial(_cards, ground),
        partial(tree, "explore"),
        partial(tree, "predict --phi"),
        partial(tree, "train-cnn"),
        partial(tree, "extract-features"),
        partial(tree, "train-rnn"),
        partial(tree, "evaluate"),
        partial(_other_tables, ground),
        *others,
        *tables[1:],
    ]


def _parts(payloads: Sequence[Payload], size: int) -> list[tuple[int, Sequence[Payload]]]:
    return [(start, payloads[start : start + size]) for start in range(0, len(payloads), size)]


def _on_tree(ground: Ground, command: str) -> list[Step]:
    """Return a command on a folder of DICOM files that are hostile by content and by name."""
    root, made = ground.work / "hostile" / "tree", ground.work / "made"
    labels = ground.work / "hostile" / "tree-labels.csv"
    if not root.exists():
        hostile_data.write_tree(root, ground.payloads)
        hostile_data.write_tree_labels(labels, len(ground.payloads))
    bundle, config = str(ground.scene.root / "bundle"), ["--config", str(ground.scene.root / "settings.toml")]
    config += [part for setting in SETTINGS for part in ("--set", setting)]
    labelled = ["--labels", str(labels)]
    given = {
        "predict": [str(root), "--bundle", bundle, "--device", "cpu"],
        "predict --phi": [str(root), "--bundle", bundle, "--device", "cpu", "--no-report"],
        "explore": [str(root), *labelled],
        "train-cnn": [str(root), *labelled, *config, "--device", "cpu"],
        "extract-features": [str(root), "--cnn", str(ground.scene.root / "cnn"), *config, "--device", "cpu"],
        "train-rnn": [str(made / "extract-features"), *labelled, *config, "--device", "cpu"],
        "evaluate": ["--predictions", str(made / "predict"), *labelled, "--dicom", str(root), "--resamples", "100"],
    }[command]
    workers = [] if command in ("train-rnn", "evaluate") else ["--workers", "0"]
    out = made / command.replace(" ", "")
    name, *flags = command.split(" ")
    files = sum(len(names) for _, _, names in os.walk(root))
    arguments = (name, *given, *flags, *workers, "--out", str(out))
    return [Step(name=f"{command} on hostile files", arguments=arguments, out=out, files=files)]


def _slice_tables(ground: Ground, part: tuple[int, Sequence[Payload]]) -> list[Step]:
    """Return explore on a table of slices."""
    start, payloads = part
    data = hostile_data.slice_table(payloads)
    return [_explore(ground, f"slices-{start}", data)]


def _other_tables(ground: Ground) -> list[Step]:
    """Return explore on a table of studies, and on a label file."""
    return [
        _explore(ground, "studies", hostile_data.study_table(ground.sound)),
        _explore(ground, "labels", hostile_data.label_table(ground.sound)),
    ]


def _explore(ground: Ground, name: str, data: bytes) -> Step:
    source, out = ground.work / "hostile" / f"{name}.csv", ground.work / "made" / f"explore-{name}"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(data)
    return Step(name=f"explore on hostile {name}", arguments=("explore", str(source), "--out", str(out)), out=out)


def _evaluations(ground: Ground, part: tuple[int, Sequence[Payload]]) -> list[Step]:
    """Return evaluate on predictions and labels, of slices and of studies."""
    start, payloads = part
    folder = ground.work / "hostile" / f"results-{start}"
    hostile_data.write_results(folder, payloads)
    steps = []
    for labels in ("labels.csv", "reads.csv") if start == 0 else ("labels.csv",):
        out = ground.work / "made" / f"evaluate-{start}-{labels}"
        arguments = (
            "evaluate", "--predictions", str(folder), "--labels", str(folder / labels), "--out", str(out),
            "--resamples", "100",
        )  # fmt: skip
        steps.append(Step(name=f"evaluate on hostile results {start} and {labels}", arguments=arguments, out=out))
    return steps


def _cards(ground: Ground) -> list[Step]:
    """Return predict by a bundle whose card is hostile, and evaluate on what that says."""
    bundle, made = ground.work / "hostile" / "bundle", ground.work / "made"
    bundle.parent.mkdir(exist_ok=True)
    hostile_data.write_bundle(ground.scene.root / "bundle", bundle, ground.payloads)
    said, judged = made / "predict-card", made / "evaluate-card"
    predict = _replaced(ground.scene.arguments("predict", said), "--bundle", str(bundle))
    evaluate = (
        "evaluate", "--predictions", str(said), "--labels", str(ground.scene.labels), "--bundle", str(bundle),
        "--out", str(judged), "--resamples", "100",
    )  # fmt: skip
    return [
        Step(name="predict by a hostile card", arguments=tuple(predict), out=said),
        Step(name="evaluate with a hostile card", arguments=evaluate, out=judged),
    ]


def _replaced(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """Return arguments with another value of an option."""
    at = arguments.index(option) + 1
    return [*arguments[:at], value, *arguments[at + 1 :]]


def _refused(ground: Ground, zygote: Zygote, scale: float, rng: random.Random) -> Iterator[tuple[str, Done]]:
    """Yield how commands ended that refuse a text, by place and text; those of a text run in one process."""
    for number, payload in enumerate(rng.sample(ground.payloads, scaled(len(PAYLOADS), scale, LEAST_REFUSED))):
        named = refusals(ground.work / "refused" / str(number), payload, ground.scene)
        done = zygote.run_each(list(named.values()), cwd=ground.work / "cwd", timeout_s=TIMEOUT_S)
        yield from ((f"{place}, {payload.name}", how) for place, how in zip(named, done, strict=False))
