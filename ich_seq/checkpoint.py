"""A training's state on disk, from which it goes on exactly where it was: safetensors and JSON, never half-written."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ich_seq import ArtefactError, UsageError
from ich_seq.files import plain_name, read_json, remove, sha256_bytes, write_json
from ich_seq.weights import read_tensors, write_tensors

OWN_HASH = "facts_sha256"
"""The key under which a state's JSON holds the hash of all else in it."""


def save_checkpoint(root: Path, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state as `<name>-<step>.safetensors`, then `<name>.json`, which makes it the one that counts.

    `facts` are JSON values and hold `step`; the hash of the tensors stands beside them, and a hash of
    it all. The state before it is removed last, so that there is one at any moment.
    """
    file = f"{name}-{facts['step']}.safetensors"
    record = facts | {"file": file, "sha256": write_tensors(root / file, tensors)}
    write_json(root / f"{name}.json", record | {OWN_HASH: _hash(record)})
    remove(older for older in root.glob(f"{name}-*.safetensors") if older.name != file)


def load_checkpoint(root: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the last state whole, or None: one that is absent or damaged is none, and the training starts afresh."""
    try:
        facts = read_json(root / f"{name}.json")
        if facts.pop(OWN_HASH) != _hash(facts):
            return None
        return read_tensors(root / plain_name(facts["file"]), facts["sha256"]), facts
    except (AttributeError, OSError, ValueError, KeyError, TypeError, UsageError, ArtefactError):
        return None


@contextmanager
def fitting_state(root: Path, name: str) -> Iterator[None]:
    """Take up a state within; raises ArtefactError for one that is whole and not of this training."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = "is not of this training; remove it and run again."
        raise ArtefactError(f"The state {root / name}.json {told}") from error


def whole_number(value: Any, most: int) -> int:
    """Return a number of steps or epochs from 0 to `most`. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is no number from 0 to {most}")
    return value


def by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a state's tensors, named `<part>/<name>`, by part."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return parts


def same_form(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that have the names, shapes and types of others. Raises ValueError for any that have not."""
    forms = ({name: (tensor.shape, tensor.dtype) for name, tensor in of.items()} for of in (wanted, given))
    if next(forms) != next(forms):
        raise ValueError("tensors of another network")
    return dict(given)


def _hash(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever blanks and order they are written with."""
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def drop_checkpoint(root: Path, name: str) -> None:
    """Remove a state that is not needed any more."""
    remove([root / f"{name}.json", *root.glob(f"{name}-*.safetensors")])


class Deferred:
    """SIGTERM that waits: whether it came, and stretches in which it need not wait."""

    def __init__(self) -> None:
        self._came = False
        self._before = signal.getsignal(signal.SIGTERM)

    def __call__(self) -> bool:
        """Tell whether it came."""
        return self._came

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let SIGTERM end the block at once, for work that a state on disk makes good."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signal.signal(signal.SIGTERM, self._before)
        try:
            if self._came:
                signal.raise_signal(signal.SIGTERM)
            yield
        finally:
            signal.signal(signal.SIGTERM, self.remember)

    def remember(self, number: int, frame: object) -> None:
        """Take the signal, as its handler."""
        self._came = True


@contextmanager
def deferred_sigterm() -> Iterator[Deferred]:
    """Let SIGTERM wait until it is asked for: gives a function that tells whether it came.

    A scheduler that takes a machine back sends it some seconds before it kills. Outside the main thread,
    where Python delivers no signals, nothing changes.
    """
    deferred = Deferred()
    if threading.current_thread() is not threading.main_thread():
        yield deferred
        return
    before = signal.signal(signal.SIGTERM, deferred.remember)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGTERM, before)
    if deferred():  # after the last time it was asked for
        signal.raise_signal(signal.SIGTERM)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors, `<parameter number>.<name>`."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, of in state.items() for name, value in of.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the state that `optimiser_tensors` took. Raises ValueError for what AdamW has not."""
    learnt = [parameter.shape for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value.clone()  # a view of a file's bytes lies where it happens to
    for index, of in state.items():
        moments = {"exp_avg": learnt[index], "exp_avg_sq": learnt[index]}
        if {name: value.shape for name, value in of.items()} != moments | {"step": torch.Size()}:
            raise ValueError("the state of another optimiser")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def hash_of(*numbers: int) -> int:
    """Return a seed made of several numbers, such as a task's and the step's: what is drawn then needs no memory."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
