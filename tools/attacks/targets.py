"""What the package reads of its own and of its users, laid out in copies to do harm to, and how that has to end."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attacks.scene import Scene, tree
from attacks.vouching import vouch_bundle, vouch_run, vouch_states, vouch_store
from attacks.zygote import Done, Fault, Zygote
from ich_seq import IchSeqError, OutputError
from ich_seq.bundle import load_bundle
from ich_seq.checkpoint import load_checkpoint
from ich_seq.cnn_run import load_run
from ich_seq.config import load_config
from ich_seq.encoder import build_encoder, load_encoder
from ich_seq.evaluation import _run_of
from ich_seq.results import read_results
from ich_seq.rnn_training import encoders_of
from ich_seq.store import encoder_file, open_store
from ich_seq.study_labels import read_any_labels

CPU = torch.device("cpu")
STUDY_FILE = "?" * 16 + ".safetensors"
LABELS_FILE, SETTINGS_FILE, WEIGHTS_FILE = "labels.csv", "settings.toml", "weights.safetensors"
TINY = ("encoder.arch=test_convnext", "slices.size=32")
EXIT_REFUSED = 2
MOST_S, MOST_MB, MOST_TOLD = 5.0, 1610.0, 2000
"""What a refusal may take: computing time, memory, of which all commands share some 700 MB, and letters."""

PATIENCE_S = 60.0
"""How long is waited for what does not end by itself."""

LIMITS = {"RLIMIT_DATA": 6 << 30}
"""So that a command that asks for all memory there is meets its end, and not the machine's."""


MORE_STOPS = 20
"""Writes, fsyncs and renames after the first at which a command is killed anew, till it leaves a whole state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Something that the package reads: the folder of a scene, or files in a folder of their own.

    `files` are what is read of it (patterns), `read` reads it in this process as a command would (None: only a command
    can), `command` is the command line that reads a copy of it and writes into an output folder. `vouch` makes the
    hashes of a copy right again, None where there are none. Where the copy itself is what a command goes on with,
    `result` is the folder of the scene that it has to become: what is damaged may count as none, and its work is done
    anew. `source` is the file of a scene that is attacked alone. A target that is `stopped_at` some write, fsync or
    rename is what a command left that was killed there, or soon after where a state was half written.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], object] | None = None
    command: Callable[[Scene, Path, Path], list[str]]
    vouch: Callable[[Path], None] | None = None
    result: str = ""
    source: str = ""
    stopped_at: int = 0

    def paths(self, root: Path) -> Iterator[str]:
        """Yield the names of a copy's files that are read, of a pattern only the first."""
        for pattern in self.files:
            yield from (path.relative_to(root).as_posix() for path in sorted(root.glob(pattern))[:1])


def read_store(root: Path) -> object:
    """Read all of a store, as train-rnn does."""
    store = open_store(root)
    features = [np.asarray(study.features) for study in store]
    return features, [load_encoder(spec, root / encoder_file(number)) for number, spec in encoders_of(store).items()]


def read_run(root: Path) -> object:
    """Read all of a run of train-cnn, as extract-features does."""
    run = load_run(root)
    return [run.load(number) for number in run.results]


def read_states(root: Path) -> object:
    """Read the states below a folder; None if one of them counts as none."""
    states = [load_checkpoint(path.parent, path.stem) for path in root.rglob("*-*.json")]
    return None if not states or any(state is None for state in states) else states


def _with(arguments: list[str], old: Path, new: Path) -> list[str]:
    return [str(new) if argument == str(old) else argument for argument in arguments]


def _predict(scene: Scene, copy: Path, out: Path) -> list[str]:
    return [*_with(scene.arguments("predict", out), scene.root / "bundle", copy), "--no-report"]


def _train_rnn(scene: Scene, copy: Path, out: Path) -> list[str]:
    return _with(scene.arguments("train-rnn", out), scene.root / "features", copy)


def _extract(scene: Scene, copy: Path, out: Path) -> list[str]:
    return _with(scene.arguments("extract-features", out), scene.root / "cnn", copy)


def _evaluate(scene: Scene, copy: Path, out: Path) -> list[str]:
    told = ["--predictions", str(copy), "--labels", str(scene.labels), "--resamples", "100", "--quiet"]
    return ["evaluate", *told, "--out", str(out)]


def _labelled(scene: Scene, copy: Path, out: Path) -> list[str]:
    return _with(scene.arguments("train-rnn", out), scene.labels, copy / LABELS_FILE)


def _set(scene: Scene, copy: Path, out: Path) -> list[str]:
    return _with(scene.arguments("train-rnn", out), scene.root / SETTINGS_FILE, copy / SETTINGS_FILE)


def _set_encoder(scene: Scene, copy: Path, out: Path) -> list[str]:
    given = _with(scene.arguments("extract-features", out), scene.root / SETTINGS_FILE, copy / SETTINGS_FILE)
    at = given.index("--cnn")
    return [*given[:at], *given[at + 2 :]]


def _weighed(scene: Scene, copy: Path, out: Path) -> list[str]:
    return [*_set_encoder(scene, scene.root, out), "--set", f"encoder.weights={copy / WEIGHTS_FILE}"]


def _go_on(command: str) -> Callable[[Scene, Path, Path], list[str]]:
    return lambda scene, copy, out: scene.arguments(command, copy)


TARGETS = (
    Target(
        name="bundle",
        files=("bundle.json", "encoder-0.safetensors", "rnn-0.safetensors", "familiar.safetensors"),
        read=lambda root: load_bundle(root, CPU),
        command=_predict,
        vouch=vouch_bundle,
    ),
    Target(
        name="features",
        files=("manifest.json", "studies.parquet", "network-0.safetensors", STUDY_FILE),
        read=read_store,
        command=_train_rnn,
        vouch=vouch_store,
    ),
    Target(
        name="cnn",
        files=("run.json", "folds.csv", "fold-0/fold.json", "fold-0/encoder.safetensors"),
        read=read_run,
        command=_extract,
        vouch=vouch_run,
    ),
    Target(
        name="results",
        files=("slices.csv", "studies.csv", "run.json"),
        read=lambda root: (read_results(root), _run_of(root / "slices.csv")),
        command=_evaluate,
    ),
    Target(
        name="labels",
        files=(LABELS_FILE,),
        source=LABELS_FILE,
        read=lambda root: read_any_labels(root / LABELS_FILE),
        command=_labelled,
    ),
    Target(
        name="settings",
        files=(SETTINGS_FILE,),
        source=SETTINGS_FILE,
        read=lambda root: load_config(root / SETTINGS_FILE),
        command=_set,
    ),
    Target(
        name="encoder settings",
        files=(SETTINGS_FILE,),
        source=SETTINGS_FILE,
        read=lambda root: load_config(root / SETTINGS_FILE),
        command=_set_encoder,
    ),
    Target(
        name="weights",
        files=(WEIGHTS_FILE,),
        source="cnn/fold-0/encoder.safetensors",
        read=lambda root: build_encoder(load_config(None, [f"encoder.weights={root / WEIGHTS_FILE}", *TINY])),
        command=_weighed,
    ),
    Target(
        name="begun cnn",
        files=("plan.json", "fold-0/fold.json", "fold-0/held_out.csv"),
        command=_go_on("train-cnn"),
        vouch=vouch_run,
        result="cnn",
    ),
    Target(
        name="states of cnn",
        files=("fold-?/fold-?.json", "fold-?/fold-?-*.safetensors"),
        read=read_states,
        command=_go_on("train-cnn"),
        vouch=vouch_states,
        result="cnn",
        stopped_at=98,
    ),
    Target(
        name="states of rnn",
        files=(".training-*/*.json", ".training-*/*.safetensors"),
        read=read_states,
        command=_go_on("train-rnn"),
        vouch=vouch_states,
        result="bundle",
        stopped_at=200,
    ),
    Target(
        name="begun features",
        files=(".journal.jsonl",),
        command=_go_on("extract-features"),
        result="features",
    ),
)


def prepare(root: Path, scene: Scene, zygote: Zygote, targets: Sequence[Target] = TARGETS) -> None:
    """Lay targets below `root`, as the package left them; states are of runs that were killed half-way."""
    for target in targets:
        made = root / target.name
        if target.source:
            made.mkdir(parents=True)
            shutil.copy(scene.root / target.source, made / target.files[0])
        elif target.stopped_at:
            for at in range(target.stopped_at, target.stopped_at + MORE_STOPS):
                shutil.rmtree(made, ignore_errors=True)
                zygote.run(target.command(scene, made, made), fault=Fault("kill", at))
                if _is_there(target, made):
                    break
        else:
            shutil.copytree(scene.root / (target.result or target.name), made)
        if not _is_there(target, made):
            raise RuntimeError(f"{target.name} is not there to be attacked")


def _is_there(target: Target, made: Path) -> bool:
    """Tell whether there is a file of every pattern, and the package reads them."""
    whole = len(list(target.paths(made))) == len(target.files)
    return whole and (target.read is None or attempt(target, made) == "read")


def fresh(prepared: Path, work: Path, target: Target) -> Path:
    """Return a copy of a target to do harm to; the one before it is gone."""
    copy = work / target.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(prepared / target.name, copy)
    return copy


def attempt(target: Target, copy: Path) -> str:
    """Read a copy in this process: "refused", "read", "counts as none", or how the package failed, with the place."""
    try:
        return "counts as none" if target.read is None or target.read(copy) is None else "read"
    except IchSeqError as refusal:
        return "refused" if refusal.exit_code == EXIT_REFUSED else f"ended with {refusal.exit_code}"
    except Exception as problem:
        last = traceback.extract_tb(problem.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in last if "ich_seq" in f.filename]
        return f"failed with {type(problem).__name__} at {ours[-1] if ours else '?'}"


def run_on(target: Target, copy: Path, scene: Scene, zygote: Zygote) -> tuple[str, Done]:
    """Run the command that reads a copy; return "refused", "done anew", or what is wrong with its end."""
    out = copy.with_name(f"{copy.name} out")
    shutil.rmtree(out, ignore_errors=True)
    done = zygote.run(target.command(scene, copy, out), timeout_s=PATIENCE_S, limits=LIMITS)
    if done.code in (0, 3):
        anew = target.result and tree(copy) == tree(scene.root / target.result)
        return "done anew" if anew else f"was accepted: ended with {done.code}", done
    in_the_way = done.code == OutputError.exit_code and "Is a directory" in done.stderr  # where a file is to be written
    return "refused" if in_the_way and "Traceback" not in done.stderr else judge_refusal(done), done


def judge_refusal(done: Done) -> str:
    """Return "refused" for a command that ended soon, in bounds, with 2 and a sentence; else what it did."""
    told = done.stderr.strip()
    if done.code != EXIT_REFUSED or "Traceback" in told or not told:
        last = told.splitlines()[-1][:300] if told else ""
        return f"ended with {done.code} after {done.seconds:.1f} s, at last: {last!r}"
    if len(told) > MOST_TOLD:
        return f"said {len(told)} letters: {told[:100]!r} ..."
    if done.cpu_s > MOST_S or done.most_mb > MOST_MB:
        return f"was refused only after {done.cpu_s:.1f} s and {done.most_mb:.0f} MB"
    return "refused"
