"""Bundles as ONNX: graphs that say what their networks say, or none; and the page that shows how to run them."""

from __future__ import annotations

import ast
import builtins
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import published_weights as published
import pytest
import torch
from attacks.tiny_bundle import write_tiny_bundle
from onnx import TensorProto, helper
from torch import nn

from ich_seq import ArtefactError, UsageError
from ich_seq.bundle import load_bundle
from ich_seq.config import Rnn
from ich_seq.contextual import Context, ContextualModel
from ich_seq.encoder import EncoderSpec, SliceEncoder, build_network, new_head
from ich_seq.export import (
    MOST_APART,
    check_parity,
    describe,
    encoder_graph,
    export,
    graph_bytes,
    sequence_graph,
)
from ich_seq.files import sha256_file
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS
from ich_seq.model import SequenceModel
from ich_seq.phantom import write_dataset
from ich_seq.prediction import predict
from ich_seq.published import write_published
from ich_seq.studies import find_studies

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "export.md").read_text()
CPU = torch.device("cpu")


def loud(model: nn.Module) -> nn.Module:
    """The model with random numbers everywhere, so that all of it shows in what it says."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def adding_graph(amount: float) -> bytes:
    """A graph that adds a number to what it is given."""
    shape = ["n", 3]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "amount"], ["y"])],
        "adding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("amount", TensorProto.FLOAT, [1], [amount])],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString()


class Adding(nn.Module):
    """What adds one."""

    def forward(self, x):
        """Return the sum, the only output."""
        return (x + 1,)


def test_a_graph_that_says_something_else_is_refused():
    """From 1e-4 of the largest value on, or of other shapes, or where it says no number."""
    tried = [(torch.linspace(-1, 1, 3 * n).reshape(n, 3),) for n in (1, 5)]
    assert check_parity(adding_graph(1), Adding(), tried, "it") == 0
    assert 0 < check_parity(adding_graph(1 + MOST_APART / 2), Adding(), tried, "it") < MOST_APART
    for amount in (1 + 3 * MOST_APART, np.nan):
        with pytest.raises(ArtefactError, match="another one"):
            check_parity(adding_graph(amount), Adding(), tried, "it")


def test_without_onnx_the_remedy_is_told(monkeypatch, tmp_path):
    """Before anything is read or written."""
    plain = builtins.__import__

    def without(name, *rest, **named):
        if name == "onnxruntime":
            raise ModuleNotFoundError(name="onnxruntime")
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'ich-seq\[onnx\]'"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_command_is_spared(tmp_path):
    """And nothing is exported of what is no bundle."""
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UsageError, match="feature store"):
        export(tmp_path / "bundle", tmp_path)
    with pytest.raises(UsageError, match="not a bundle"):
        export(tmp_path / "bundle", tmp_path / "out")


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_by_name():
    """Whatever the exporter stumbles over."""

    class Odd(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x  # which way, no graph can tell

    with pytest.raises(ArtefactError, match=r"^The odd network cannot be exported as ONNX"):
        graph_bytes(Odd(), {"x": (torch.zeros(2, 3), 0)}, ("y",), "the odd network")


def test_the_record_says_all_that_is_not_in_the_graphs(tmp_path):
    """Of a bundle of ours and of one of others."""
    ours = load_bundle(write_tiny_bundle(tmp_path / "ours"), CPU)
    told = describe(ours, {"encoder-0.onnx": "a", "sequence-0.onnx": "b"}, {"encoder-0.onnx": 1.23e-7})
    assert told["labels"] == list(LABELS)
    assert told["slices"]["beyond_the_ends"] == "the first or last slice"
    assert told["largest_logit_of_a_study_by_its_slices"] is None
    assert (told["encoders"], told["sequence_models"]) == (["encoder-0.onnx"], ["sequence-0.onnx"])
    assert told["calibration"] == ours.card["calibration"]
    assert told["furthest_from_its_network"] == {"encoder-0.onnx": 1.2e-7}
    given = published.write(tmp_path / "given", arch="test_convnext", size=32, hidden=4, projection=6, attention=3)
    (tmp_path / "theirs").mkdir()
    write_published(given, tmp_path / "theirs")
    told = describe(load_bundle(tmp_path / "theirs", CPU), {}, {})
    assert told["slices"]["beyond_the_ends"] == "air"
    assert told["largest_logit_of_a_study_by_its_slices"] == pytest.approx(np.log(1e6), abs=1e-5)


MODELS = {
    "gru": lambda: SequenceModel(12, Rnn(projection=8, hidden=8, layers=2, both_ways=True, deltas=True)),
    "lstm": lambda: SequenceModel(12, Rnn(projection=8, hidden=8, cell="lstm", study_head="max", smoothing=0)),
    "transformer": lambda: SequenceModel(12, Rnn(projection=8, hidden=8, layers=2, cell="transformer")),
    "conv": lambda: SequenceModel(12, Rnn(projection=8, hidden=8, layers=3, cell="conv", position=False)),
    "contextual": lambda: ContextualModel(12, Context(projection=8, hidden=8, layers=2, attention=4, longest=64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_cell_comes_out_as_it_is(name):
    """For studies of any length, checked here beyond those that the export itself tries; the same bytes each time."""
    import onnxruntime

    torch.manual_seed(0)
    model = loud(MODELS[name]())
    data, apart = sequence_graph(model)
    assert apart < 1e-5
    assert b"ich_seq/" not in data
    session = onnxruntime.InferenceSession(data)
    rng = np.random.default_rng(7)
    for n in (1, 5, 64, 90, 300):
        given = {
            "embeddings": rng.normal(size=(1, n, 12)).astype(np.float32),
            "positions_mm": rng.uniform(0, 5, (1, n)).cumsum(axis=1),
            "logits": rng.normal(-1, 3, (1, n, 6)).astype(np.float32),
        }
        slices, studies = session.run(["slices", "studies"], given)
        rounded, places, logits = map(torch.from_numpy, given.values())
        said = model.judge(rounded.half().float(), places, torch.tensor([n]), logits)
        assert np.abs(slices - said.slices.numpy()).max() < 1e-4
        assert np.abs(studies - said.studies.numpy()).max() < 1e-4
    if name == "gru":
        assert sequence_graph(model)[0] == data


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tf_efficientnet_lite0", "test_vit"])
def test_encoders_of_other_families_come_out_as_they_are(arch):
    """A network of convolutions and one of tokens, two views of each slice, any number of slices at once."""
    size = {"tf_efficientnet_lite0": 64, "test_vit": 160}[arch]
    torch.manual_seed(0)
    network = build_network(arch, 6).eval()
    dim = network(torch.zeros(1, 6, size, size)).shape[1]
    spec = EncoderSpec(
        arch=arch, weights="random", sha256="", size=size, field_mm=250.0, windows_hu=((40.0, 80.0), (80.0, 200.0)),
        neighbours=(-1, 0, 1), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), dim=dim, head=True,
    )  # fmt: skip
    encoder = SliceEncoder(network, spec, new_head(dim)).eval().requires_grad_(False)
    _, apart = encoder_graph(encoder, views=2)
    assert apart < 1e-5


def example() -> dict:
    """The names that the page's Python defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/export.md", "exec"), names)
    return names


def test_the_example_needs_numpy_and_onnxruntime_alone():
    """Whoever runs it has no torch, and nothing of ours."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    }
    assert imported == {"hashlib", "json", "pathlib", "numpy", "onnxruntime"}


def check_example(bundle: Path, tmp_path: Path) -> None:
    """Export a bundle, run it by the page's example on phantoms, and hold that against predict."""
    apart = export(bundle, tmp_path / "exported").apart
    assert max(apart.values()) < 1e-5
    told = json.loads((tmp_path / "exported" / "model.json").read_text())
    for name, sha256 in told["files"].items():
        assert sha256_file(tmp_path / "exported" / name) == sha256
        assert onnx.load(tmp_path / "exported" / name).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    drawn = write_dataset(tmp_path / "drawn", n_studies=2, matrix=64)
    predict(drawn.dicom, bundle, tmp_path / "out", workers=0, report=False)
    slices, studies = (pd.read_csv(tmp_path / "out" / name) for name in ("slices.csv", "studies.csv"))
    run = example()["predict"]
    found = find_studies(drawn.dicom, workers=0).studies
    assert len(found) == 2
    for study in found:
        hu = [read_hounsfield(header) for header in study.slices]
        of_slices, of_study = run(tmp_path / "exported", hu, study.slices[0].spacing_mm, study.positions_mm)
        expected = slices[slices.study_uid == study.uid]
        assert expected.sop_uid.tolist() == [h.sop_uid for h in study.slices]
        assert np.abs(of_slices - expected[list(LABELS)].to_numpy()).max() < 1e-4
        assert np.abs(of_study - studies[studies.study_uid == study.uid][list(LABELS)].to_numpy()[0]).max() < 1e-4
    (tmp_path / "exported" / "sequence-0.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="changed"):
        example()["load"](tmp_path / "exported")


@pytest.mark.slow
def test_the_example_says_what_predict_says(tmp_path):
    """Slices and studies of a bundle of ours, two views a slice; a second export gives the same bytes."""
    bundle = write_tiny_bundle(tmp_path / "bundle", views=2)
    check_example(bundle, tmp_path)
    before = (tmp_path / "exported" / "encoder-0.onnx").read_bytes()
    shutil.copy(tmp_path / "exported" / "encoder-0.onnx", tmp_path / "exported" / "encoder-7.onnx")
    export(bundle, tmp_path / "exported")
    assert (tmp_path / "exported" / "encoder-0.onnx").read_bytes() == before
    assert not (tmp_path / "exported" / "encoder-7.onnx").exists()


@pytest.mark.slow
def test_the_example_runs_published_weights(tmp_path):
    """Air beyond the ends, another order of pooling, and a BiGRU beside the slices."""
    given = published.write(tmp_path / "given", arch="test_convnext", size=64, hidden=8, projection=12, attention=5)
    (tmp_path / "bundle").mkdir()
    write_published(given, tmp_path / "bundle")
    check_example(tmp_path / "bundle", tmp_path)
