"""Files that are whole, vouched for and do not fit: tensors, studies, indexes, states; and what is no file at all."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from attacks.absurdities import Case
from attacks.mutations import joined, parts
from attacks.targets import SETTINGS_FILE, STUDY_FILE, TARGETS

Arrays = dict[str, NDArray[Any]]


def _first(arrays: Arrays) -> str:
    """Return the largest tensor's name: a matrix that counts."""
    return max(arrays, key=lambda name: arrays[name].size)


def _change(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Arrays], Arrays]:
    """Return what changes the largest tensor."""
    return lambda arrays: arrays | {_first(arrays): np.ascontiguousarray(change(arrays[_first(arrays)]))}


def _spoilt(value: float) -> Callable[[Arrays], Arrays]:
    """Return what puts one value into the largest tensor."""

    def spoil(array: NDArray[Any]) -> NDArray[Any]:
        flat = array.reshape(-1).copy()
        flat[0] = value
        return flat.reshape(array.shape)

    return _change(spoil)


WEIGHTS: Mapping[str, Callable[[Arrays], Arrays]] = {
    "a row more": _change(lambda x: np.concatenate([x, x[:1]])),
    "a row less": _change(lambda x: x[:-1]),
    "an axis more": _change(lambda x: x[None]),
    "one axis": _change(lambda x: x.reshape(-1)),
    "nothing in it": _change(lambda x: x[:0]),
    "a single number": _change(lambda x: x.reshape(-1)[0].reshape(())),
    "float64": _change(lambda x: x.astype(np.float64)),
    "float16": _change(lambda x: x.astype(np.float16)),
    "int64": _change(lambda x: x.astype(np.int64)),
    "a NaN": _spoilt(np.nan),
    "an infinite number": _spoilt(np.inf),
}
"""What the largest tensor of a file of weights is made to be, or to hold."""

TENSORS: Mapping[str, Callable[[Arrays], Arrays]] = {
    "no tensors": lambda arrays: {},
    "a tensor less": lambda arrays: {name: x for name, x in arrays.items() if name != _first(arrays)},
    "a tensor more": lambda arrays: arrays | {"more": np.zeros(3, np.float32)},
    "a tensor renamed": lambda arrays: {("x" if name == _first(arrays) else name): x for name, x in arrays.items()},
    "10,000 tensors more": lambda arrays: arrays | {f"{i}": np.zeros(1, np.float32) for i in range(10_000)},
}
WEIGHT_FILES = (
    ("bundle", "encoder-0.safetensors"),
    ("bundle", "rnn-0.safetensors"),
    ("bundle", "familiar.safetensors"),
    ("features", "network-0.safetensors"),
    ("cnn", "fold-0/encoder.safetensors"),
)


def _rewrite(file: str, change: Callable[[Arrays], Arrays], root: Path) -> None:
    path = sorted(root.glob(file))[0]
    header, _ = parts(path.read_bytes())
    path.write_bytes(save_arrays(change(load_arrays(path.read_bytes())), metadata=header.get("__metadata__")))


def _reword(file: str, change: Callable[[dict[str, Any]], object], root: Path) -> None:
    path = sorted(root.glob(file))[0]
    header, body = parts(path.read_bytes())
    change(header)
    path.write_bytes(joined(header, body))


def _claim(shape: list[int]) -> Callable[[dict[str, Any]], object]:
    """Return what lets the last tensor of a header claim a shape."""
    return lambda header: header[list(header)[-1]].update(shape=shape)


def misfit_weights() -> Iterator[Case]:
    """Yield files of weights that are not those of the network that a record describes."""
    for target, file in WEIGHT_FILES:
        for what, change in (WEIGHTS | TENSORS).items():
            of = "whose largest tensor is, or holds, " if what in WEIGHTS else "with "
            yield Case(target, f"{file} {of}{what}", partial(_rewrite, file, change), vouched=True)
        for shape in ([2**62, 4], [-1], [2**63, 2**63], [0] * 10_000):
            harm = partial(_reword, file, _claim(shape))
            yield Case(target, f"{file} whose last tensor claims a shape of {str(shape)[:40]}", harm, vouched=True)
        harm = partial(_behead, file)
        yield Case(target, f"{file} whose header claims 2**63 bytes", harm, vouched=True)


def _behead(file: str, root: Path) -> None:
    path = root / file
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])


STUDY: Mapping[str, Callable[[Arrays], Arrays]] = {
    "features of float32": lambda a: a | {"features": a["features"].astype(np.float32)},
    "features of another width": lambda a: a | {"features": np.ascontiguousarray(a["features"][:, :-1])},
    "features of three axes": lambda a: a | {"features": a["features"][None]},
    "a NaN in its features": lambda a: a | {"features": np.full_like(a["features"], np.nan)},
    "infinite features": lambda a: a | {"features": np.full_like(a["features"], np.inf)},
    "no slice": lambda a: {name: x[:0] for name, x in a.items()},
    "a slice less in its features": lambda a: a | {"features": a["features"][:-1]},
    "positions of two axes": lambda a: a | {"positions_mm": a["positions_mm"][:, None]},
    "positions of float32": lambda a: a | {"positions_mm": a["positions_mm"].astype(np.float32)},
    "a NaN in its positions": lambda a: a | {"positions_mm": np.full_like(a["positions_mm"], np.nan)},
    "infinite positions": lambda a: a | {"positions_mm": np.full_like(a["positions_mm"], np.inf)},
    "positions from head to feet": lambda a: a | {"positions_mm": a["positions_mm"][::-1].copy()},
    "logits of five labels": lambda a: a | {"logits": np.ascontiguousarray(a["logits"][:, :-1])},
    "logits of int64": lambda a: a | {"logits": a["logits"].astype(np.int64)},
    "a NaN in its logits": lambda a: a | {"logits": np.full_like(a["logits"], np.nan)},
    "no logits": lambda a: {name: x for name, x in a.items() if name != "logits"},
    "no positions": lambda a: {name: x for name, x in a.items() if name != "positions_mm"},
    "another array": lambda a: a | {"more": np.zeros(3, np.float32)},
}


def _of_header(key: str, value: Any, header: dict[str, Any]) -> None:
    said = json.loads(header["__metadata__"]["ich_seq"])
    header["__metadata__"]["ich_seq"] = json.dumps(said | {key: value})


def _deep(header: dict[str, Any]) -> None:
    header["__metadata__"]["ich_seq"] = "[" * 100_000


def misfit_studies() -> Iterator[Case]:
    """Yield files of a study that do not fit its store, or each other."""
    for what, change in STUDY.items():
        yield Case("features", f"a study with {what}", partial(_rewrite, STUDY_FILE, change), vouched=True)
    for key, value in (
        ("study_uid", "another"),
        ("study_uid", None),
        ("patient_key", "another"),
        ("sop_uids", "1" * 32),
        ("sop_uids", [1] * 32),
        ("sop_uids", None),
        ("network", 7),
        ("network", "x"),
    ):
        harm = partial(_reword, STUDY_FILE, partial(_of_header, key, value))
        yield Case("features", f"a study whose {key} is {str(value)[:20]!r}", harm, vouched=True)
    harm = partial(_reword, STUDY_FILE, _deep)
    yield Case("features", "a study whose header holds lists, 100,000 deep", harm, vouched=True)


INDEX: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "no rows": lambda t: t[:0],
    "no columns": lambda t: t[[]],
    "other columns": lambda t: t.rename(columns=str.upper),
    "a row twice": lambda t: pd.concat([t, t[:1]]),
    "a million rows": lambda t: pd.concat([t[:1]] * 10**6),
    "names of files that are numbers": lambda t: t.assign(file=7),
    "names of files that are lists": lambda t: t.assign(file=[["x"]] * len(t)),
    "no names of files": lambda t: t.assign(file=None),
    "absolute names of files": lambda t: t.assign(file="/etc/passwd"),
    "names of files outside": lambda t: t.assign(file="../features/" + t["file"]),
    "one file for all studies": lambda t: t.assign(file=t["file"].iloc[0], sha256=t["sha256"].iloc[0]),
    "no studies": lambda t: t.assign(study_uid=None),
    "one study": lambda t: t.assign(study_uid=t["study_uid"].iloc[0]),
    "studies exchanged": lambda t: t.assign(study_uid=t["study_uid"].to_numpy()[::-1]),
    "patients exchanged": lambda t: t.assign(patient_key=[f"{i:016x}" for i in range(len(t))]),
    "texts for in_sample": lambda t: t.assign(in_sample="False"),
    "other numbers of slices": lambda t: t.assign(slices=t["slices"] + 1),
    "networks that are not there": lambda t: t.assign(network=7),
}


def _reindex(change: Callable[[pd.DataFrame], pd.DataFrame], root: Path) -> None:
    path = root / "studies.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def misfit_indexes() -> Iterator[Case]:
    """Yield indexes of a store that are not those of its files."""
    for what, change in INDEX.items():
        yield Case("features", f"studies.parquet with {what}", partial(_reindex, change), vouched=True)


STATES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "states of cnn": ("fold-?/fold-?-*.safetensors", ("step", "best_epoch", "loss_sum", "curve", "refused")),
    "states of rnn": (".training-*/*.safetensors", ("step", "epoch", "best_epoch", "best_loss")),
}
NO_STATE = {
    "step": (-1, 10**9, "x", None),
    "epoch": (-1, 10**9, "x", None),
    "curve": ("x", [None]),
    "refused": ("x", [7]),
}


def _restate(key: str, value: Any, root: Path) -> None:
    for path in root.rglob("*-*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def misfit_states() -> Iterator[Case]:
    """Yield states of trainings that do not fit the training."""
    for target, (file, keys) in STATES.items():
        yield Case(target, "a tensor of a row more", partial(_rewrite, file, WEIGHTS["a row more"]), vouched=True)
        for what in ("no tensors", "a tensor less", "a tensor more"):
            yield Case(target, f"a state with {what}", partial(_rewrite, file, TENSORS[what]), vouched=True)
        for key in keys:
            for value in NO_STATE.get(key, ("x", None)):
                yield Case(target, f"a state whose {key} is {value!r}", partial(_restate, key, value), vouched=True)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to.format(name=path.name))


KINDS: Mapping[str, Callable[[Path], None]] = {
    "a pipe": _fifo,
    "a folder": Path.mkdir,
    "a link to /dev/zero": _link("/dev/zero"),
    "a link to /etc/passwd": _link("/etc/passwd"),
    "a link to itself": _link("{name}"),
    "a link to nothing": _link("nowhere"),
    "a socket": _socket,
    "a file of 8 TB with nothing in it": lambda path: (path.touch(), os.truncate(path, 8 << 40)),  # type: ignore[func-returns-value]
    "an empty file": Path.touch,
}
FOR_RESULTS = ("a pipe", "a folder", "a link to /dev/zero")
"""What stands in where each trial is a training done anew."""


def _replace(file: str, make: Callable[[Path], object], root: Path) -> None:
    path = root / file
    path.unlink()
    make(path)


def other_kinds(prepared: Path) -> Iterator[Case]:
    """Yield, for every file that is read of what is prepared, what is no file, or none that can be meant."""
    for target in (target for target in TARGETS if (prepared / target.name).exists()):
        for file in target.paths(prepared / target.name):
            for what, make in KINDS.items():
                if target.result and what not in FOR_RESULTS:
                    continue
                if what == "an empty file" and file == SETTINGS_FILE:
                    continue  # no settings are the settings as they are
                yield Case(target.name, f"{file} is {what}", partial(_replace, file, make))
