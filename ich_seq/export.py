"""export: a bundle as ONNX, so that it runs without torch.

    OUT/
        encoder-<k>.onnx    hu (M, J, S, S) -> embeddings (M, D), logits (M, K); windows and normalisation inside
        sequence-<k>.onnx   embeddings (1, T, D), positions_mm (1, T), logits (1, T, K) -> slices (1, T, K) and
                            studies (1, K), logits
        model.json          how slices are made and what is said becomes probabilities; SHA-256 of the files above

All is float32, positions float64. M and T are as large as they need to be. Each graph is run beside the network that
it was made of, on random input, before it is written.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.config import AIR_HU
from ich_seq.contextual import ContextualModel
from ich_seq.encoder import SliceEncoder
from ich_seq.engines import mean_over_views
from ich_seq.files import locked_folder, remove, sha256_bytes, spare_others, write_bytes, write_json
from ich_seq.labels import LABELS
from ich_seq.model import Judge, SequenceModel
from ich_seq.progress import Progress, silent
from ich_seq.weight_library import bundle_folder
from ich_seq.weights import Network

SCHEMA = "ich-seq onnx 2"
RECORD = "model.json"
GRAPH = re.compile(r"(encoder|sequence)-[0-9]+\.onnx")
OPSET = 20
MOST_APART = 1e-4
"""How far a graph may be from its network, as a share of the largest value if that is above 1."""

BATCHES = (1, 2, 3)
LENGTHS = (1, 2, 33, 60)
"""Slices of a batch and of a study that graphs are tried with; beside them one more than a model reads at most."""

LONGEST = 4096
GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""Where ONNX has the gates of torch: reset, update, new come as update, reset, new; input, forget, cell, output as
input, output, forget, cell."""

Arrays = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSummary:
    """What was written, and for each graph how far it was from its network at most."""

    out: Path
    apart: Mapping[str, float]


class SlicesGraph(nn.Module):
    """An encoder as it is exported: HU in, embeddings and slice logits out."""

    def __init__(self, encoder: SliceEncoder, views: int) -> None:
        super().__init__()
        self.encoder, self.views = encoder, views

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (M, D) and logits (M, K) of M slices with their neighbours, (M, J, S, S)."""
        embedded = mean_over_views(self.encoder, hu, self.views)
        return embedded, self.encoder.head(embedded)  # type: ignore[misc]  # an encoder of a bundle has one


class StudyGraph(nn.Module):
    """A sequence model as it is exported: one study in, its logits out; embeddings are rounded as predict does."""

    def __init__(self, model: Judge) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: Tensor, positions_mm: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of slices, (1, T, K), and of the study, (1, K)."""
        lengths = torch.full((1,), embeddings.shape[1], dtype=torch.int64)
        said = self.model.judge(embeddings.half().float(), positions_mm, lengths, logits)
        return said.slices, said.studies


class Recurrence(nn.Module):
    """A bidirectional GRU or LSTM of torch as operators of ONNX, for studies of any length.

    torch's own export of them holds for the length alone that it was made with.
    """

    def __init__(self, rnn: nn.GRU | nn.LSTM) -> None:
        super().__init__()
        self.kind, self.hidden, self.layers = rnn.mode, rnn.hidden_size, rnn.num_layers
        self.options = {"linear_before_reset": 1} if self.kind == "GRU" else {}
        for layer in range(rnn.num_layers):
            for name, tensor in zip("wrb", _operands(rnn, layer), strict=True):
                self.register_buffer(f"{name}{layer}", tensor)

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        """Return the states of both directions, (B, T, 2 x hidden), as the first of what torch's returns."""
        studies, steps = inputs.shape[:2]
        states = inputs.transpose(0, 1)
        for layer in range(self.layers):
            said: Tensor = torch.onnx.ops.symbolic(
                self.kind,
                [states, *(self.get_buffer(f"{name}{layer}") for name in "wrb")],
                {"hidden_size": self.hidden, "direction": "bidirectional", **self.options},
                dtype=torch.float32,
                shape=[steps, 2, studies, self.hidden],
            )
            states = said.transpose(1, 2).reshape(steps, studies, 2 * self.hidden)
        return (states.transpose(0, 1),)


def _operands(rnn: nn.GRU | nn.LSTM, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what an ONNX operator takes of a layer: weights of inputs and of states, and both biases."""

    def both(name: str) -> list[Tensor]:
        tensors = [getattr(rnn, f"{name}_l{layer}{direction}").detach() for direction in ("", "_reverse")]
        order = GATES[rnn.mode]
        return [torch.cat([tensor.chunk(len(order))[gate] for gate in order]) for tensor in tensors]

    biases = zip(both("bias_ih"), both("bias_hh"), strict=True)
    return torch.stack(both("weight_ih")), torch.stack(both("weight_hh")), torch.stack([torch.cat(b) for b in biases])


def with_recurrence(model: Network) -> Network:
    """Return a copy of a model in which ONNX operators stand for recurrent networks."""
    changed = copy.deepcopy(model)
    for name, part in list(changed.named_modules()):
        if isinstance(part, nn.GRU | nn.LSTM):
            above, _, own = name.rpartition(".")
            setattr(changed.get_submodule(above), own, Recurrence(part))
    return changed


def export(bundle: str | Path, out: str | Path, *, progress: Progress = silent) -> ExportSummary:
    """Write a bundle, or one of the library by its name, as ONNX into the folder `out`, in place of an older export.

    The same bundle gives the same bytes with the same libraries. Raises UsageError if there is no bundle or ONNX is not
    installed, ArtefactError for a damaged bundle or a network that cannot be exported or comes out as another,
    OutputError if `out` cannot be written.
    """
    _need_onnx()
    out = Path(out)
    spare_others(out, RECORD)
    loaded = load_bundle(bundle_folder(Path(bundle)), torch.device("cpu"), "torch")
    with locked_folder(out):
        remove([out / RECORD])
        remove(path for path in out.glob("*.onnx") if GRAPH.fullmatch(path.name))
        files, apart = {}, {}
        networks = [*_graphs(loaded)]
        for done, (name, make) in enumerate(networks, start=1):
            data, apart[name] = make()
            files[name] = sha256_bytes(data)
            write_bytes(out / name, data)
            progress("exporting networks", done, len(networks))
        write_json(out / RECORD, describe(loaded, files, apart))
    return ExportSummary(out=out, apart=apart)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401 - to see that it is there
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"ONNX is not installed ({error.name}): pip install 'ich-seq[onnx]'.") from error


def _graphs(bundle: Bundle) -> list[tuple[str, Callable[[], tuple[bytes, float]]]]:
    """Return for each file of an export its name, and what makes its bytes and tells how far off they are."""
    encoders = [
        (f"encoder-{k}.onnx", partial(encoder_graph, embedder.encoder, embedder.execution.views))
        for k, embedder in bundle.embedders.items()
    ]
    return [*encoders, *((f"sequence-{k}.onnx", partial(sequence_graph, m)) for k, m in enumerate(bundle.models))]


def encoder_graph(encoder: SliceEncoder, views: int = 1) -> tuple[bytes, float]:
    """Return an encoder as ONNX and how far it is from the network. Raises ArtefactError if it cannot be had."""
    graph, rng = SlicesGraph(encoder, views).eval(), np.random.default_rng(0)
    shape = (len(encoder.spec.neighbours), encoder.spec.size, encoder.spec.size)
    tried = [(torch.from_numpy(rng.normal(40, 300, (m, *shape)).astype(np.float32)),) for m in BATCHES]
    what = f"the encoder {encoder.spec.arch}"
    data = graph_bytes(graph, {"hu": (tried[1][0], 0)}, ("embeddings", "logits"), what)
    return data, check_parity(data, graph, tried, what)


def sequence_graph(model: SequenceModel | ContextualModel) -> tuple[bytes, float]:
    """Return a sequence model as ONNX and how far it is from it. Raises ArtefactError if it cannot be had."""
    beyond = (model.config.longest + 1,) if isinstance(model, ContextualModel) else ()
    rng, what = np.random.default_rng(0), f"the sequence model ({model.config.cell})"
    tried = [_random_study(n, model.dim, rng) for n in (*LENGTHS, *beyond)]
    named = dict(zip(("embeddings", "positions_mm", "logits"), ((x, 1) for x in tried[2]), strict=True))
    data = graph_bytes(StudyGraph(with_recurrence(model)).eval(), named, ("slices", "studies"), what)
    return data, check_parity(data, StudyGraph(model).eval(), tried, what)


def _random_study(slices: int, dim: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    embeddings, logits = rng.normal(size=(1, slices, dim)), rng.normal(-1, 3, (1, slices, len(LABELS)))
    positions_mm = rng.uniform(0, 9, (1, slices)).cumsum(axis=1)
    return torch.from_numpy(embeddings).float(), torch.from_numpy(positions_mm), torch.from_numpy(logits).float()


@torch.no_grad()
def graph_bytes(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, int]], outputs: tuple[str, ...], what: str
) -> bytes:
    """Return a module as an ONNX graph, each input given by an example and the axis along which it may grow.

    Equal modules give equal bytes: where they were made, and of which lines of code, is not told. Raises ArtefactError,
    naming `what` it is, if there is no such graph.
    """
    grows = torch.export.Dim("n", min=1, max=LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about its own workings
            program = torch.onnx.export(
                module,
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                dynamic_shapes=tuple({axis: grows} for _, axis in inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
        return _plain_bytes(program)
    except Exception as error:  # of whichever part of the exporter
        raise ArtefactError(
            f"{what[0].upper() + what[1:]} cannot be exported as ONNX ({type(error).__name__}: {error!s:.300})."
        ) from error


def _plain_bytes(program: Any) -> bytes:
    """Return a graph without what its exporter notes of code and places."""
    model = program.model_proto
    model.doc_string, model.graph.doc_string = "", ""
    told = [model, model.graph, *model.functions, *model.graph.node, *model.graph.value_info]
    for part in (*told, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@torch.inference_mode()
def check_parity(data: bytes, module: nn.Module, tried: Sequence[Arrays], what: str) -> float:
    """Return how far a graph is from a module at most, over these inputs. Raises ArtefactError if that is too far."""
    session, most = _session(data), 0.0
    names = [given.name for given in session.get_inputs()]
    for inputs in tried:
        told = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        for got, expected in zip(told, module(*inputs), strict=True):
            scale = max(1.0, float(expected.abs().max()))
            apart = float(np.abs(got - expected.numpy()).max()) / scale
            if got.shape != expected.shape or not apart <= MOST_APART:
                raise ArtefactError(
                    f"{what[0].upper() + what[1:]} came out as another one: {apart:.2g} apart on {tuple(got.shape)}; "
                    f"{MOST_APART:g} is the most. Nothing vouches for it, and it is not exported."
                )
            most = max(most, apart)
    return most


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of its warnings none is ours to mend
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def describe(bundle: Bundle, files: Mapping[str, str], apart: Mapping[str, float]) -> dict[str, Any]:
    """Return what model.json says: all that is not in the graphs."""
    spec = next(iter(bundle.embedders.values())).spec
    sure = bundle.models[0].most_sure
    return {
        "schema": SCHEMA,
        "version": __version__,
        "bundle_card_sha256": bundle.card_sha256,
        "intended_use": bundle.card["intended_use"],
        "labels": list(LABELS),
        "slices": {
            "size": spec.size,
            "field_mm": spec.field_mm,
            "air_hu": AIR_HU,
            "neighbours": list(spec.neighbours),
            "beyond_the_ends": "air" if spec.air_beyond else "the first or last slice",
            "windows_hu_inside": [list(window) for window in spec.windows_hu],
        },
        "encoders": [name for name in files if name.startswith("encoder")],
        "sequence_models": [name for name in files if name.startswith("sequence")],
        "largest_logit_of_a_study_by_its_slices": None if np.isinf(sure) else sure,
        "calibration": bundle.calibrations.as_json(),
        "files": dict(files),
        "furthest_from_its_network": {name: float(f"{most:.1e}") for name, most in apart.items()},
    }
