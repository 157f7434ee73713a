"""Several processes that train one network: they hold the same, learn what one would, and stop together."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import ranks
import torch
import torch.distributed as dist

from ich_seq import OutputError, UsageError, distributed
from ich_seq.cnn_run import CURVES, ENCODER, FOLD, HELD_OUT, RUN, fold_folder
from ich_seq.cnn_training import train_cnn
from ich_seq.config import Config, load_config
from ich_seq.devices import choose_device
from ich_seq.distributed import ALONE, Group, joined_group, local_device, own_device, working_group
from ich_seq.files import short_hash
from ich_seq.phantom import PhantomSet, write_dataset

SETTINGS = [
    "slices.size=32",
    "encoder.arch=test_convnext",
    "encoder.weights=random",
    "cnn.folds=3",
    "cnn.epochs=3",
    "cnn.batch_slices=16",
    "cnn.head_epochs=0.5",
    "cnn.dropout=0",
    "cnn.precision=fp32",
    "cnn.checkpoint_minutes=0",
]
"""A LayerNorm network, which cannot tell in how many parts a batch came."""

MEETING = """
import sys, torch
from torch import nn
from ich_seq.distributed import joined_group
with joined_group(torch.device("cpu")) as group:
    module = nn.BatchNorm1d(3)
    nn.init.constant_(module.weight, group.rank)
    module.running_mean += 5 * group.rank
    group.share(module)
    group.wait()
    heard = group.gather({"rank": group.rank, "writes": group.writes, "none": None})
    same = module.weight.eq(0).all() and module.running_mean.eq(0).all()
    open(f"{sys.argv[1]}/{group.rank}", "w").write(f"{group.size} {bool(same)} {heard}")
print(torch.distributed.is_initialized())
"""


def torchrun(*arguments: object) -> list[str]:
    """Return the command that starts two processes."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*run, *map(str, arguments)]


def train_command(phantoms: PhantomSet, out: Path, *more: str) -> list[object]:
    settings = [word for setting in [*SETTINGS, *more] for word in ("--set", setting)]
    data = [phantoms.dicom, "--labels", phantoms.labels, "--out", out, "--fold", 0, "--device", "cpu"]
    return ["-m", "ich_seq.cli", "train-cnn", *data, *settings]


def settings(*more: str) -> Config:
    return load_config(overrides=[*SETTINGS, *more])


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    return write_dataset(tmp_path_factory.mktemp("phantoms"), n_studies=6, seed=3, matrix=64)


# A group of one


def test_a_group_of_one_talks_to_nobody():
    """Alone it writes, waits for none, keeps its tensors and hears itself."""
    group, module = Group(), torch.nn.Linear(2, 2)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    group.wait()
    group.share(module)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert group.writes
    assert group.gather("heard") == ["heard"]
    assert not Group(1, 2).writes


@pytest.mark.parametrize("world", [None, "1"])
def test_without_torchrun_there_is_one_process(monkeypatch, world):
    """No variable, or a world of one: nothing is joined, so no port is opened."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    with joined_group(torch.device("cpu")) as group:
        assert group == Group(0, 1)
        assert not dist.is_initialized()


@pytest.fixture
def current(monkeypatch) -> list[torch.device]:
    """A machine of two GPUs; gives those that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return chosen


@pytest.mark.parametrize(
    ("name", "rank", "own"),
    [("cpu", "1", "cpu"), ("auto", None, "cuda"), ("cuda:1", None, "cuda:1"), ("auto", "1", "cuda:1")],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch, current, name, rank, own):
    """Under torchrun the local rank numbers the GPU, which is made the current one; a CPU is shared."""
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert own_device(name) == local_device(choose_device(name)) == torch.device(own)
    assert current == ([torch.device(own)] * 2 if rank and own != "cpu" else [])


def test_more_processes_than_gpus_share_studies_and_train_nothing(monkeypatch, current):
    """Those that share out studies take the GPUs in turn, as they exchange no tensors; NCCL needs one for each."""
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert own_device("auto") == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--nproc-per-node 2"):
        local_device(torch.device("cuda"))


def test_alone_a_group_shares_out_to_itself():
    """A group of one does the work, has all that was collected and deals itself its one part."""
    assert ALONE.lead(lambda: "done") == ALONE.agree(lambda: "done") == "done"
    assert ALONE.collect((1, 2)) == ALONE.deal([[1, 2]]) == [1, 2]
    with pytest.raises(UsageError, match="mine"), working_group() as group:
        group.agree(lambda: refuse("mine"))


def refuse(text: str) -> None:
    raise UsageError(text)


@pytest.fixture
def joining(monkeypatch) -> list[object]:
    """The second of two processes, that meets nobody; gives how it joined and that it left."""
    done: list[object] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(distributed, "_meeting", lambda *_: "this start")
    monkeypatch.setattr(dist, "init_process_group", lambda by, store, **_: done.append((by, type(store).__name__)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    return done


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_a_group_is_joined_and_left_whatever_happens(joining, device, backend):
    """By what suits its device, under the name of this start."""
    joined = []
    with suppress(ZeroDivisionError), joined_group(torch.device(device)) as group:
        joined.append(group)
        raise ZeroDivisionError
    assert joined == [Group(1, 2)]
    assert joining == [(backend, "PrefixStore"), "left"]


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:544] Connection closed by peer"), OutputError),
        (dist.DistBackendError("NCCL error: remote process exited"), OutputError),
        (RuntimeError("shapes do not fit"), RuntimeError),
    ],
)
def test_a_training_that_lost_a_process_is_no_bug_of_ours(joining, said, raised):
    """What torch says in the midst of a step becomes a sentence with the remedy; any other error stays what it is."""
    with pytest.raises(raised) as told, joined_group(torch.device("cpu")):
        raise said
    assert raised is RuntimeError or "train-cnn and extract-features go on" in str(told.value)
    assert joining[-1] == "left"


# Several processes

SHARING = """
import os, sys
import ich_seq.distributed
from ich_seq import UsageError
from ich_seq.distributed import working_group
def refuse(text):
    raise UsageError(text)
def told(call, work):
    try:
        return call(work)
    except UsageError as error:
        return str(error).replace(os.uname().nodename, "here"), error.told
ich_seq.distributed.AT_ONCE = 3
rank = 0
for other in (1, 2):  # forked, as torch takes seconds to import
    if rank == 0 and os.fork() == 0:
        rank = other
os.environ["RANK"] = str(rank)
with working_group() as group:
    parts = [[f"for {r}.{i}" for i in range(5 - 2 * r)] for r in range(3)] if rank == 0 else []
    heard = [
        group.collect([f"{rank}.{i}" for i in range(4 * rank)]),
        group.deal(parts, 2),
        told(group.lead, lambda: f"by {rank}"),
        told(group.agree, lambda: rank),
        told(group.lead, lambda: refuse(f"of {rank}")),
        told(group.agree, lambda: refuse(f"of {rank}") if rank else None),
    ]
open(f"{sys.argv[1]}/{rank}", "w").write(repr(heard))
sys.exit(any(os.wait()[1] for _ in (1, 2)) if rank == 0 else 0)
"""


@pytest.mark.slow
def test_processes_share_out_and_refuse_together(tmp_path):
    """What all hold comes to the first, in messages of three; parts come from it; any refusal is everybody's."""
    (tmp_path / "share.py").write_text(SHARING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = environment() | {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [sys.executable, str(tmp_path / "share.py"), str(tmp_path)]
    subprocess.run(words, env=shared, check=True, timeout=120)
    for rank in range(3):
        collected, dealt, *others = ast.literal_eval((tmp_path / str(rank)).read_text())
        assert collected == ([f"{r}.{i}" for r in range(3) for i in range(4 * r)] if rank == 0 else [])
        assert dealt == [f"for {rank}.{i}" for i in range(5 - 2 * rank)]
        assert others == ["by 0", rank, ("of 0", rank > 0), ("Process 1, on here: of 1", rank > 0)]


@pytest.mark.slow
def test_two_processes_hold_the_same_after_they_met(tmp_path):
    """The first one's tensors, buffers too, and everybody's words in the order of ranks; None is a word."""
    (tmp_path / "meet.py").write_text(MEETING)
    command = torchrun(tmp_path / "meet.py", tmp_path)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    heard = [{"rank": rank, "writes": rank == 0, "none": None} for rank in (0, 1)]
    assert {(tmp_path / rank).read_text() for rank in "01"} == {f"2 True {heard}"}
    assert done.stdout.count("False") == 2  # two processes share the pipe, and a line may begin within another


@pytest.fixture(scope="module")
def alone(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold trained by one process."""
    out = tmp_path_factory.mktemp("alone") / "cnn"
    train_cnn(phantoms.dicom, phantoms.labels, out, load_config(overrides=SETTINGS), fold=0, device="cpu", workers=0)
    return out


@pytest.fixture(scope="module")
def together(
    phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess]:
    """The same fold trained by two."""
    out = tmp_path_factory.mktemp("together") / "cnn"
    command = torchrun(*train_command(phantoms, out), "--workers", 1, "--json", "--quiet")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done


def fold_of(out: Path) -> dict:
    return json.loads((fold_folder(out, 0) / FOLD).read_text())


@pytest.mark.slow
def test_two_processes_learn_what_one_would(alone, together):
    """Each epoch's learnt and watched loss is the same but for rounding, the head's own time among it."""
    one, two = fold_of(alone)["curve"], fold_of(together[0])["curve"]
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert one[0]["watched_loss"] != pytest.approx(one[1]["watched_loss"], rel=1e-4)


@pytest.mark.slow
def test_only_the_first_process_speaks_and_writes(alone, together):
    """One JSON result on stdout, and the files of a run by one process, no more and no less."""
    out, done = together
    assert json.loads(done.stdout)["folds"] == [0]
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {str(p.relative_to(alone)) for p in alone.rglob("*") if p.is_file()}
    assert {RUN, CURVES, f"fold-0/{ENCODER}", f"fold-0/{HELD_OUT}"} < files


@pytest.mark.slow
def test_two_processes_terminated_together_go_on_to_the_same_bytes(phantoms, together, tmp_path):
    """torchrun hands SIGTERM to both and their workers; both finish one step, and their state is of both."""
    out = tmp_path / "cnn"
    command = torchrun(*train_command(phantoms, out), "--workers", 1, "--json")
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        state = fold_folder(out, 0) / "fold-0.json"
        for _ in range(12000):
            if state.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode != 0
    assert said.count("Traceback") == said.count("SignalException: Process") == 1, said  # torchrun's own
    left = json.loads(state.read_text())
    assert left["loss_sum"] > 0
    assert len(left["curve"]) < 3
    done = subprocess.run([*command, "--quiet"], env=environment(), capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    whole = fold_folder(together[0], 0)
    for name in (ENCODER, HELD_OUT, FOLD):
        assert (fold_folder(out, 0) / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_torchrun_starts_a_training_again_that_lost_a_process(phantoms, together, tmp_path):
    """--max-restarts 2: one is killed at work, and the next group, which meets anew, goes on to the same bytes."""
    out = tmp_path / "cnn"
    command = torchrun("--max-restarts", 2, *train_command(phantoms, out), "--workers", 0, "--quiet")
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        ranks.until((fold_folder(out, 0) / "fold-0.json").exists, 120)
        os.kill(ranks.processes_of(out)["1"], signal.SIGKILL)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert "bug" not in said
    whole = fold_folder(together[0], 0)
    for name in (ENCODER, HELD_OUT, FOLD):
        assert (fold_folder(out, 0) / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_what_either_process_could_not_read_is_rejected_and_torchrun_is_content(phantoms, tmp_path, cut_frame):
    """Two slices side by side in the fold held out, which only its prediction meets, one slice a process."""
    shutil.copytree(phantoms.dicom, tmp_path / "dicom")
    more = ["cnn.patience=1", "cnn.epochs=1"]
    train_cnn(phantoms.dicom, phantoms.labels, tmp_path / "sound", settings(*more), fold=0, device="cpu", workers=0)
    victims = [f"{sop}.dcm" for sop in pd.read_csv(fold_folder(tmp_path / "sound", 0) / HELD_OUT)["sop_uid"][4:6]]
    for name in victims:
        cut_frame(tmp_path / "dicom" / name)
    out = tmp_path / "cnn"
    command = torchrun(*train_command(replace(phantoms, dicom=tmp_path / "dicom"), out, *more), "--json", "--quiet")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stderr
    assert "2 rejected (" in done.stderr
    told = json.loads(done.stdout)
    assert told["reasons"]["decode"] == told["rejected"] == 2
    assert told["files"] == told["used"] + told["excluded"] + 2 == phantoms.n_files
    listed = pd.read_csv(out / "rejected.csv", dtype=str).query("fate == 'rejected'")
    assert sorted(listed["file"]) == sorted(map(short_hash, victims))
    assert json.loads((out / RUN).read_text())["counts"]["rejected"] == 2


@pytest.mark.slow
def test_a_batch_that_two_cannot_share_ends_both_with_the_sentence(phantoms, tmp_path):
    """The refusal reaches the terminal, and nothing is left behind that would refuse the mended settings."""
    out = tmp_path / "cnn"
    command = torchrun(*train_command(phantoms, out, "cnn.batch_slices=15"), "--quiet")
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "cnn.batch_slices 15 is no multiple of 2 processes" in done.stderr
    assert not (out / "plan.json").exists()
