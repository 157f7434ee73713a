"""What runs the encoder changes how fast an embedding comes, not which one it is."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ich_seq import UsageError, engines
from ich_seq.config import Config, Extract
from ich_seq.encoder import SliceEncoder, build_encoder, with_head
from ich_seq.engines import VIEWS, Embedder, Execution, compile_openvino

CPU = torch.device("cpu")
PLAIN = Execution(engine="torch", precision="fp32", views=1, batch_size=4)
TOLERANCE = 0.01
"""Relative error of an embedding that an engine may make: what is promised."""


def build(arch: str = "test_efficientnet", weights: str = "random", size: int = 64, **slices) -> SliceEncoder:
    chosen = {"slices": {"size": size, **slices}, "encoder": {"arch": arch, "weights": weights}}
    return build_encoder(Config.model_validate(chosen))


def head(slices: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """HU of N slices: a skull, brain and bleeds of random place."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    radius = np.hypot(x / 0.8, y)
    drawn = []
    for _ in range(slices):
        a, b = rng.uniform(-0.4, 0.4, 2)
        bleed = 40 * (np.hypot(x - a, y - b) < rng.uniform(0.05, 0.3))
        hu = np.where(radius < 0.8, 35 + bleed, np.where(radius < 0.9, 1200, -1000))
        drawn.append(hu + rng.normal(0, 5, hu.shape))
    return torch.from_numpy(np.stack(drawn).astype(np.float32))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "weights", "slices"),
    [
        ("tf_efficientnet_lite0", "imagenet", {}),
        ("tf_efficientnet_lite0", "imagenet", {"neighbours": [-1, 0, 1]}),
        ("test_convnext", "random", {"windows_hu": [[40, 80]]}),
    ],
)
def test_openvino_gives_the_embeddings_of_torch(arch, weights, slices):
    """The same study through both engines: far within the promised 1 %, whatever the windows and neighbours."""
    pytest.importorskip("openvino")
    encoder, hu = build(arch, weights, **slices), head(7)
    torch_s = Embedder(encoder, PLAIN, CPU)(hu).features
    openvino_s = Embedder(encoder, replace(PLAIN, engine="openvino"), CPU)(hu).features
    assert torch_s.std() > 0
    assert openvino_s.dtype == torch.float32
    assert relative_error(openvino_s, torch_s) < TOLERANCE / 100


@pytest.mark.slow
def test_openvino_takes_batches_of_any_size():
    """Studies are of every length, and the last batch of each is smaller."""
    pytest.importorskip("openvino")
    encoder, hu = build(), head(9)
    run, _ = compile_openvino(encoder, (1, hu.shape[-1], hu.shape[-1]), "fp32")
    whole = run(hu[:, None])
    for batch_size in (1, 2, 4, 9):
        parts = [run(part[:, None]) for part in hu.split(batch_size)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_openvino_takes_pairs_of_slices_at_most():
    """A batch that suits a GPU would drive its activations out of a core's cache; smaller ones are left alone."""
    pytest.importorskip("openvino")
    encoder, hu = build(), head(9)
    one, two, many = (Embedder(encoder, replace(PLAIN, engine="openvino", batch_size=n), CPU) for n in (1, 2, 64))
    assert (one.batch_size, two.batch_size, many.batch_size) == (1, 2, 2)
    assert torch.equal(many(hu).features, two(hu).features)
    assert Embedder(encoder, replace(PLAIN, batch_size=64), CPU).batch_size == 64


@pytest.mark.slow
def test_openvino_leaves_it_to_the_system_which_cores_it_computes_on():
    """Pinned threads of several processes would all lie on the first cores: two ranks would share one."""
    pytest.importorskip("openvino")
    code = """
import contextlib, os, threading, torch
from ich_seq.engines import compile_openvino
net = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3))
run, _ = compile_openvino(net, (1, 64, 64), "fp32")
run(torch.zeros(2, 1, 64, 64))
allowed, bound = os.sched_getaffinity(0), set()
busy = threading.Thread(target=lambda: [run(torch.zeros(2, 1, 64, 64)) for _ in range(100)])
busy.start()
while busy.is_alive():
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            bound |= {thread} if os.sched_getaffinity(int(thread)) != allowed else set()
print(len(bound))
"""
    if not Path("/proc/self/task").exists() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs Linux and two cores")
    environment = os.environ | {"LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "0"


def test_openvino_results_outlive_the_next_batch():
    """The engine's output buffer is its own; what was returned before must not change."""
    pytest.importorskip("openvino")
    run, _ = compile_openvino(torch.nn.Flatten(), (1, 2, 2), "fp32")
    first = run(torch.ones(1, 1, 2, 2))
    kept = first.clone()
    run(torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(first, kept)


@pytest.mark.slow
def test_openvino_asked_by_many_threads_at_once_answers_each_as_if_alone():
    """More threads than streams, studies of other lengths: each gets the bytes that it gets with nobody beside it."""
    pytest.importorskip("openvino")
    embedder = Embedder(build(), replace(PLAIN, engine="openvino"), CPU)
    studies = [head(3 + seed % 5, seed=seed) for seed in range(12)]
    alone = [embedder(study).features for study in studies]
    with ThreadPoolExecutor(4) as threads:
        together = [embedded.features for embedded in threads.map(embedder, studies)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.slow
def test_openvino_gives_the_same_bytes_on_any_number_of_cores(monkeypatch):
    """A study is computed on one core; how many others there are changes nothing."""
    pytest.importorskip("openvino")
    encoder, hu, seen = build(), head(9), []
    here = engines.choose_workers(None)
    for cores in (1, 2):
        monkeypatch.setattr(engines, "choose_workers", lambda wanted, cores=cores: cores)
        embedder = Embedder(encoder, replace(PLAIN, engine="openvino"), CPU)
        assert embedder.streams == min(cores, here)
        seen.append(embedder(hu).features)
    assert torch.equal(*seen)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_half_precision_is_close_and_not_the_same(engine):
    """bf16 is another computation, so it must be asked for; it stays in the neighbourhood."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    encoder, hu = build("tf_efficientnet_lite0", "imagenet"), head(4)
    exact = Embedder(encoder, PLAIN, CPU)(hu).features
    rough = Embedder(encoder, replace(PLAIN, engine=engine, precision="bf16"), CPU)(hu).features
    assert rough.dtype == torch.float32
    assert relative_error(rough, exact) < 0.3


def test_the_first_view_is_the_slice_itself_and_eight_are_distinct():
    """One view is no augmentation, and no view counts twice."""
    assert VIEWS[0] == (False, 0.0, 1.0)
    assert len(set(VIEWS)) == len(VIEWS) == Extract.model_fields["views"].metadata[1].le


def test_two_views_do_not_know_left_from_right():
    """The mean over a slice and its mirror image is the same for the mirror image; a single view is not."""
    encoder, hu = build(), head(3)
    for views, same in ((1, False), (2, True)):
        embedder = Embedder(encoder, replace(PLAIN, views=views), CPU)
        assert torch.allclose(embedder(hu).features, embedder(hu.flip(-1)).features, atol=1e-4) is same


def test_views_are_averaged_in_feature_space():
    """Two views: the mean of what each gives alone."""
    encoder, hu = build(), head(5)
    alone = Embedder(encoder, PLAIN, CPU)
    both = Embedder(encoder, replace(PLAIN, views=2), CPU)(hu).features
    torch.testing.assert_close(both, (alone(hu).features + alone(hu.flip(-1)).features) / 2)


@pytest.mark.slow
def test_all_eight_views_work_on_every_engine():
    """Views are made before the engine, so both average the same ones."""
    pytest.importorskip("openvino")
    encoder, hu = build(neighbours=[-1, 0, 1]), head(3)
    eight = replace(PLAIN, views=8)
    torch_s = Embedder(encoder, eight, CPU)(hu).features
    openvino_s = Embedder(encoder, replace(eight, engine="openvino"), CPU)(hu).features
    assert relative_error(openvino_s, torch_s) < TOLERANCE / 10
    assert relative_error(torch_s, Embedder(encoder, PLAIN, CPU)(hu).features) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_logits_are_the_head_s_of_the_mean_embedding(engine):
    """Whatever the engine, the head is applied in float32 to the embeddings it returned."""
    if engine == "openvino":
        pytest.importorskip("openvino")
    rng = np.random.default_rng(0)
    bare = build()
    weight, bias = rng.normal(size=(6, bare.spec.dim)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    embedded = Embedder(with_head(bare, weight, bias), replace(PLAIN, engine=engine, views=2), CPU)(head(3))
    expected = embedded.features.numpy().astype(np.float64) @ weight.T.astype(np.float64) + bias
    np.testing.assert_allclose(embedded.logits.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert Embedder(bare, PLAIN, CPU)(head(1)).logits is None


SIGNAL = """
import gc, os, signal, torch
from ich_seq.engines import compile_openvino
first, _ = compile_openvino(torch.nn.Flatten(), (1, 2, 2), "fp32")
second, _ = compile_openvino(torch.nn.Flatten(), (1, 2, 2), "fp32")
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


@pytest.mark.slow
def test_a_signal_after_the_last_openvino_network_is_gone_is_heard():
    """The engine moves the signal stack; were it freed with the network, Ctrl-C would be a segmentation fault."""
    pytest.importorskip("openvino")
    done = subprocess.run([sys.executable, "-c", SIGNAL], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\nalive\n"), done.stderr


def test_openvino_that_is_not_installed_says_how_to_get_it(monkeypatch):
    """An extra that is absent ends in its name, not in a traceback."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'ich-seq\[openvino\]'"):
        Embedder(build(), replace(PLAIN, engine="openvino"), CPU)


def test_openvino_does_not_run_on_cuda():
    """Two settings that exclude each other are refused before anything is read."""
    with pytest.raises(UsageError, match="add --device cpu"):
        Embedder(build(), replace(PLAIN, engine="openvino"), torch.device("cuda"))


def test_settings_decide_the_execution_and_an_engine_named_wins():
    """The command's --engine stands in for the setting; everything else is the settings'."""
    chosen = Extract(engine="openvino", precision="bf16", views=3, batch_size=5)
    assert Execution.of(chosen) == Execution(engine="openvino", precision="bf16", views=3, batch_size=5)
    assert Execution.of(chosen, "torch") == Execution(engine="torch", precision="bf16", views=3, batch_size=5)
