"""Which processor, precision and memory: names that are meant and names that are not, on machines with and without."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ich_seq import UsageError
from ich_seq.devices import autocast, choose_device, choose_workers, keep_memory

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cuda(monkeypatch):
    """Say how many CUDA devices torch sees."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


# ---- the processor ----


@pytest.mark.parametrize(
    ("name", "count", "wanted"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("auto", 8, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 8, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:7", 8, "cuda:7"),
        ("cuda:11", 12, "cuda:11"),
    ],
)
def test_a_name_becomes_the_device_it_means(cuda, name, count, wanted):
    """auto takes CUDA where there is any; every other name is taken at its word."""
    cuda(count)
    assert choose_device(name) == torch.device(wanted)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:99", 8)])
def test_a_cuda_device_that_is_not_there_is_refused(cuda, name, count):
    """The message says how many there are and what to take instead; nothing is replaced in silence."""
    cuda(count)
    with pytest.raises(UsageError, match=rf"--device {name}: torch sees {count} CUDA devices.*--device cpu"):
        choose_device(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpu",
        "CPU",
        "cpu:0",
        "mps",
        "cuda:x",
        "cuda:-1",
        "cuda:0:1",
        "auto:0",
        " cpu",
        # These three show a fault of the package: with a CUDA device they end in torch's RuntimeError or a ValueError.
        "cuda:",
        "cuda:01",
        "cuda:\u00b2",
    ],
)
@pytest.mark.parametrize("count", [0, 2])
def test_any_other_name_is_refused_with_the_names_there_are(cuda, name, count):
    """A name that is none of the four forms is a UsageError on machines with CUDA and without."""
    cuda(count)
    with pytest.raises(UsageError, match="none of auto, cpu, cuda, cuda:N"):
        choose_device(name)


# ---- precision ----


@pytest.mark.parametrize(("precision", "wanted"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_compute_in_the_precision_that_is_asked_for(precision, wanted):
    """Within the context a matrix product is of that type; after it, of float32 again, and weights never change."""
    layer = torch.nn.Linear(4, 4)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.ones(2, 4)).dtype == wanted
    assert layer(torch.ones(2, 4)).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_what_is_not_safe_in_bf16_stays_in_fp32():
    """A loss within the bf16 context is computed in float32."""
    with autocast(torch.device("cpu"), "bf16"):
        product = torch.ones(2, 4) @ torch.ones(4, 4)
        assert product.dtype == torch.bfloat16
        assert torch.nn.functional.mse_loss(product, torch.ones(2, 4)).dtype == torch.float32


# ---- cores ----


def test_workers_are_the_cores_this_process_may_use(monkeypatch):
    """A container or taskset that allows three of many cores gets three workers."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert choose_workers(None) == 3


@pytest.mark.parametrize(("processes", "wanted"), [("1", 5), ("2", 2), ("8", 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, processes, wanted):
    """Under torchrun each takes its part, at least one; an asked-for number stands for each of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert choose_workers(None) == wanted
    assert choose_workers(3) == 3


@pytest.mark.parametrize(("cores", "wanted"), [(8, 8), (None, 1)])
def test_workers_where_the_system_knows_no_affinity(monkeypatch, cores, wanted):
    """Elsewhere it is the number of cores, and one where not even that is known."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert choose_workers(None) == wanted


@pytest.mark.parametrize("wanted", [0, 1, 7])
def test_workers_that_are_asked_for_are_taken(wanted):
    """None at all is a number too, and more than there are cores is no mistake."""
    assert choose_workers(wanted) == wanted


# ---- memory ----

MEGABYTES = """
import sys
from pathlib import Path
from ich_seq.devices import keep_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
if sys.argv[1] == "keep":
    keep_memory()
before = resident()
block = bytearray(b"x") * 2**26
held = resident() - before
del block
block = bytearray(b"x") * 2**27
del block  # nothing lies above it
print(held, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("what", ["keep", "leave"])
def test_freed_memory_is_kept_for_the_next_block(what):
    """Blocks of 64 and 128 MB, used and freed, stay with the process after `keep_memory`, and without go back."""
    try:
        ctypes.CDLL("libc.so.6").mallopt  # noqa: B018
    except (OSError, AttributeError):
        pytest.skip("this C library is not glibc")
    command = [sys.executable, "-c", MEGABYTES, what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held, left = map(float, done.stdout.split())
    assert held > 60
    assert left > 120 if what == "keep" else left < 10


def test_other_c_libraries_are_left_as_they_are(monkeypatch):
    """Where there is no glibc, or one without mallopt, nothing happens and nothing is raised."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    asked = []
    for library in (absent, lambda name: asked.append(name) or object()):
        monkeypatch.setattr(ctypes, "CDLL", library)
        keep_memory()
    assert asked == ["libc.so.6"]
