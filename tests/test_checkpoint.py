"""States of a training: bit for bit, whole or none, one at any moment; SIGTERM that waits."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ich_seq import checkpoint
from ich_seq.checkpoint import (
    deferred_sigterm,
    drop_checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from ich_seq.files import sha256_bytes

NAME = "fold-1"


class Killed(Exception):  # noqa: N818 - stands for SIGKILL
    """The process ends here."""


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def state(step: int) -> dict[str, torch.Tensor]:
    """Tensors that no other step has, of several types and shapes."""
    generator = torch.Generator().manual_seed(step)
    return {
        "network/weight": torch.randn(3, 4, generator=generator),
        "network/count": torch.tensor(step),
        "average/half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "optimiser/0.exp_avg": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
    }


def save(root: Path, step: int, name: str = NAME, **more: Any) -> None:
    save_checkpoint(root, name, state(step), {"step": step} | more)


def step_of(root: Path, name: str = NAME) -> int | None:
    """The step of the state on disk, its tensors checked to be that step's."""
    found = load_checkpoint(root, name)
    if found is None:
        return None
    tensors, facts = found
    wanted = state(facts["step"])
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    return int(facts["step"])


# ---- a training goes on ----


def new_training(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """A network with convolution, batch statistics and dropout, and AdamW with two groups, as in training."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3)
    )
    network = nn.Sequential(network, nn.Linear(8, 6)).to(memory_format=torch.channels_last)
    groups = [{"params": list(part.parameters()), "lr": lr} for part, lr in zip(network, (1e-3, 1e-2), strict=True)]
    return network, torch.optim.AdamW(groups, weight_decay=0.02)


def train(network: nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
    """Learn for some steps, each with batch and dropout by its number; the first two steps the head alone."""
    for step in steps:
        network[0].requires_grad_(step >= 2)
        torch.manual_seed(step)
        shown, targets = torch.randn(4, 3, 8, 8), torch.rand(4, 6)
        nn.functional.binary_cross_entropy_with_logits(network(shown), targets).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_a_training_taken_up_goes_on_bit_for_bit(tmp_path, stop):
    """Before the first step, while the head learns alone, and later: what follows are the very same weights."""
    network, optimiser = new_training(0)
    train(network, optimiser, range(stop))
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"optimiser/{k}": v for k, v in optimiser_tensors(optimiser).items()}
    save_checkpoint(tmp_path, NAME, tensors, {"step": stop})
    train(network, optimiser, range(stop, 9))

    again, its_optimiser = new_training(1)
    found = load_checkpoint(tmp_path, NAME)
    assert found is not None
    parts = {
        part: {key.partition("/")[2]: v for key, v in found[0].items() if key.startswith(part)}
        for part in ("network/", "optimiser/")
    }
    again.load_state_dict(parts["network/"])
    restore_optimiser(its_optimiser, parts["optimiser/"])
    train(again, its_optimiser, range(found[1]["step"], 9))

    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    left, right = optimiser_tensors(optimiser), optimiser_tensors(its_optimiser)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_without_the_optimisers_state_the_weights_would_differ():
    """The test above can fail: weights alone do not take a training up."""
    network, optimiser = new_training(0)
    train(network, optimiser, range(5))
    again, its_optimiser = new_training(1)
    again.load_state_dict(network.state_dict())
    train(network, optimiser, range(5, 9))
    train(again, its_optimiser, range(5, 9))
    assert not torch.equal(again.state_dict()["1.weight"], network.state_dict()["1.weight"])


def test_learning_rates_and_decay_are_the_new_optimisers():
    """What a restored optimiser takes from the state are its moments; its settings stay those it was made with."""
    network, optimiser = new_training(0)
    train(network, optimiser, range(3))
    _, other = new_training(1)
    for group in other.param_groups:
        group["lr"] = 0.5
    restore_optimiser(other, optimiser_tensors(optimiser))
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.5]
    assert optimiser_tensors(other).keys() == optimiser_tensors(optimiser).keys()


def test_the_tensors_of_an_optimiser_are_named_by_parameter():
    """AdamW keeps three tensors for each parameter that has learnt, and none for one that has not."""
    network, optimiser = new_training(0)
    assert optimiser_tensors(optimiser) == {}
    train(network, optimiser, range(1))
    head = [4, 5]  # after the four parameters of convolution and batch norm
    assert set(optimiser_tensors(optimiser)) == {
        f"{i}.{name}" for i in head for name in ("step", "exp_avg", "exp_avg_sq")
    }


# ---- on disk ----


def test_tensors_and_facts_come_back(tmp_path):
    """Tensors to the bit, in type and shape; numbers to the last digit."""
    facts = {"step": 7, "loss_sum": 0.1 + 0.2, "curve": [{"epoch": 1, "learnt_loss": 1 / 3}], "refused": []}
    save_checkpoint(tmp_path, NAME, state(7), facts)
    found = load_checkpoint(tmp_path, NAME)
    assert found is not None
    tensors, read = found
    assert {k: v for k, v in read.items() if k in facts} == facts
    for key, value in state(7).items():
        assert tensors[key].dtype == value.dtype
        assert tensors[key].shape == value.shape
        assert torch.equal(tensors[key], value)


# Shows a fault of the package: JSON files cannot be written with a name that is no UTF-8 in them (files.write_json).
def test_a_refused_file_whose_name_is_no_unicode_can_be_in_a_state(tmp_path):
    """A corrupt slice with a Latin-1 name, as the system hands it over, must not end a training."""
    name = b"slice-\xe4.dcm".decode("utf-8", "surrogateescape")
    save(tmp_path, 1, refused=[name])
    found = load_checkpoint(tmp_path, NAME)
    assert found is not None
    assert found[1]["refused"] == [name]


def test_only_the_newest_state_is_left(tmp_path):
    """However many states were written, there is one file of tensors and one of facts, and no other file is touched."""
    for name in ("encoder.safetensors", "held_out.csv", "fold-11-3.safetensors"):
        (tmp_path / name).write_bytes(b"1")
    others = names(tmp_path)
    for step in (1, 2, 10, 9):
        save(tmp_path, step)
        assert names(tmp_path) - others == {f"{NAME}.json", f"{NAME}-{step}.safetensors"}
        assert step_of(tmp_path) == step
    assert others <= names(tmp_path)


def test_tasks_side_by_side_keep_their_own_states(tmp_path):
    """Saving and dropping one leaves those of other names, which begin with the same letters, alone."""
    for name, step in (("fold-1", 3), ("fold-11", 4), ("fold-2", 5), ("fold-1", 6)):
        save(tmp_path, step, name)
    drop_checkpoint(tmp_path, "fold-1")
    assert [step_of(tmp_path, name) for name in ("fold-1", "fold-11", "fold-2")] == [None, 4, 5]
    assert names(tmp_path) == {"fold-11.json", "fold-11-4.safetensors", "fold-2.json", "fold-2-5.safetensors"}


def test_a_dropped_state_is_gone_and_can_be_dropped_twice(tmp_path):
    """Dropping leaves no file, strays of a crash included, and nothing to drop is no error."""
    save(tmp_path, 1)
    (tmp_path / f"{NAME}-2.safetensors").write_bytes(b"stray")
    for _ in range(2):
        drop_checkpoint(tmp_path, NAME)
        assert names(tmp_path) == set()
        assert load_checkpoint(tmp_path, NAME) is None


# ---- torn or altered ----


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_state_with_any_bit_changed_is_none(tmp_path_factory, data):
    """One bit of the tensors' file, wherever it is, and the training starts afresh instead of from wrong numbers."""
    root = tmp_path_factory.mktemp("state")
    save(root, 1)
    path = root / f"{NAME}-1.safetensors"
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    assert load_checkpoint(root, NAME) is None


@pytest.mark.slow
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_facts_with_any_bit_changed_are_none_or_the_same(tmp_path_factory, data):
    """A step, a loss or a curve that is another by one bit is no state; only a changed blank may pass."""
    root = tmp_path_factory.mktemp("state")
    save(root, 1, loss_sum=1.25, curve=[{"epoch": 1, "learnt_loss": 0.7}], refused=["a.dcm"])
    before = load_checkpoint(root, NAME)
    assert before is not None
    path = root / f"{NAME}.json"
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    after = load_checkpoint(root, NAME)
    assert after is None or after[1] == before[1]


def test_facts_that_were_edited_are_no_state(tmp_path):
    """Whatever of them is another, sound as the JSON may be, the training starts afresh instead of at another loss."""
    path = tmp_path / f"{NAME}.json"
    for key, value in {"step": 2, "loss_sum": 0.5, "file": f"{NAME}-2.safetensors", "more": 0}.items():
        save(tmp_path, 1, loss_sum=0.25)
        (tmp_path / f"{NAME}-2.safetensors").write_bytes((tmp_path / f"{NAME}-1.safetensors").read_bytes())
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert load_checkpoint(tmp_path, NAME) is None, key


@pytest.mark.parametrize("which", [f"{NAME}.json", f"{NAME}-1.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, None])
def test_a_torn_or_absent_file_is_no_state(tmp_path, which, share):
    """Either file cut short or removed makes it none, and no error; the next state is whole again."""
    save(tmp_path, 1)
    data = (tmp_path / which).read_bytes()
    (tmp_path / which).unlink()
    if share is not None:
        (tmp_path / which).write_bytes(data[: int(share * len(data))])
    assert load_checkpoint(tmp_path, NAME) is None
    save(tmp_path, 2)
    assert step_of(tmp_path) == 2


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "3", '"file"', "{}", '{"file": 5, "sha256": "0"}', '{"file": "", "sha256": "0"}', '{"file": "x"}'],
)
def test_facts_of_another_shape_are_no_state(tmp_path, text):
    """JSON that is sound but no record of a state is none."""
    save(tmp_path, 1)
    (tmp_path / f"{NAME}.json").write_text(text)
    assert load_checkpoint(tmp_path, NAME) is None


def test_another_states_tensors_under_its_name_are_none(tmp_path):
    """A whole file of tensors that is not the one the facts were written with is refused too."""
    save(tmp_path, 1)
    save(tmp_path, 2, "other")
    (tmp_path / "other-2.safetensors").rename(tmp_path / f"{NAME}-1.safetensors")
    assert load_checkpoint(tmp_path, NAME) is None


def test_a_state_is_read_from_its_own_folder_only(tmp_path):
    """Facts that name a file elsewhere lead nowhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    save(tmp_path / "elsewhere", 1)
    facts = json.loads((tmp_path / "elsewhere" / f"{NAME}.json").read_text())
    del facts[checkpoint.OWN_HASH]
    facts["file"] = f"../elsewhere/{facts['file']}"
    facts[checkpoint.OWN_HASH] = sha256_bytes(json.dumps(facts, sort_keys=True).encode())
    (tmp_path / "here" / f"{NAME}.json").write_text(json.dumps(facts))
    assert load_checkpoint(tmp_path / "here", NAME) is None


# ---- one at any moment ----


@pytest.mark.parametrize(
    ("dies_in", "left"),
    [
        pytest.param("write_tensors", 1, id="before-the-tensors"),
        pytest.param("write_json", 1, id="between-tensors-and-facts"),
        pytest.param("unlink", 2, id="before-the-old-one-goes"),
    ],
)
def test_a_state_is_there_at_any_moment(tmp_path, monkeypatch, dies_in, left):
    """Killed at any point of a save, the last state or the new one is whole on disk, and the next save tidies up."""
    save(tmp_path, 1)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path if dies_in == "unlink" else checkpoint, dies_in, die)
        with pytest.raises(Killed):
            save(tmp_path, 2)
    assert step_of(tmp_path) == left
    save(tmp_path, 3)
    assert step_of(tmp_path) == 3
    assert names(tmp_path) == {f"{NAME}.json", f"{NAME}-3.safetensors"}


def test_a_first_save_that_is_killed_leaves_none(tmp_path, monkeypatch):
    """Tensors without facts are no state."""

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", die)
        with pytest.raises(Killed):
            save(tmp_path, 1)
    assert load_checkpoint(tmp_path, NAME) is None


# ---- SIGTERM ----


@pytest.fixture
def heard():
    """Install a handler of SIGTERM that only counts, and put back what was there."""
    calls: list[int] = []

    def count(number: int, frame: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGTERM, count)
    yield calls, count
    signal.signal(signal.SIGTERM, before)


def test_sigterm_waits_until_it_is_asked_for(heard):
    """A SIGTERM ends nothing within the block, and the function says that it came; what was put off comes after it."""
    calls, _ = heard
    with deferred_sigterm() as came:
        assert not came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came()
        os.kill(os.getpid(), signal.SIGTERM)
        assert came()
        assert calls == []
    assert calls == [signal.SIGTERM]


def test_sigterm_does_not_wait_where_it_need_not(heard):
    """What came before such a stretch comes at its beginning, what comes within at once, and after it all waits."""
    calls, _ = heard
    with deferred_sigterm() as came:
        os.kill(os.getpid(), signal.SIGTERM)
        with came.at_once():
            assert len(calls) == 1
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(calls) == 2
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(calls) == 2


def test_the_handler_before_is_there_again(heard):
    """After the block, however it ends, SIGTERM does what it did before; a later block has not heard of it."""
    calls, count = heard

    def fail() -> None:
        with deferred_sigterm() as came:
            os.kill(os.getpid(), signal.SIGTERM)
            assert came()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGTERM) is count
    os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [signal.SIGTERM]
    with deferred_sigterm() as came:
        assert not came()
    assert signal.getsignal(signal.SIGTERM) is count


@pytest.mark.parametrize("was", [signal.SIG_DFL, signal.SIG_IGN], ids=["default", "ignored"])
def test_the_systems_own_handling_is_there_again(heard, was):
    """Where SIGTERM ended the process or was ignored, it is so again afterwards."""
    signal.signal(signal.SIGTERM, was)
    with deferred_sigterm():
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == was


def test_outside_the_main_thread_nothing_changes(heard):
    """There the block runs, SIGTERM goes where it went before, and nothing is said to have come."""
    calls, count = heard
    seen: list[object] = []

    def work() -> None:
        with deferred_sigterm() as came:
            seen.append(signal.getsignal(signal.SIGTERM))
            inside.set()
            told.wait(10)
            seen.append(came())

    inside, told = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(10)
    os.kill(os.getpid(), signal.SIGTERM)
    told.set()
    thread.join(10)
    assert seen == [count, False]
    assert calls == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is count
