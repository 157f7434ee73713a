"""What runs the encoder: torch as it is, or OpenVINO, which is several times faster on a CPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from queue import Empty, LifoQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ich_seq import ArtefactError, UsageError, windows
from ich_seq.augmentation import move
from ich_seq.config import Extract
from ich_seq.devices import autocast, choose_workers
from ich_seq.encoder import SliceEncoder
from ich_seq.readers import one_core_threads

_PLAIN = ((False, 0.0, 1.0), (True, 0.0, 1.0), (False, 10.0, 1.0), (True, -10.0, 1.0))
VIEWS = _PLAIN + tuple((not mirrored, -angle_deg, 1.08) for mirrored, angle_deg, _ in _PLAIN)
"""Test-time views in the order they are taken: mirrored, turned by degrees, scaled; the first is the slice itself."""

Forward = Callable[[Tensor], Tensor]

OPENVINO_BATCH = 2
"""Slices that OpenVINO computes at once on a core: a pair's activations stay in its cache (docs/experiments.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How embeddings are computed, plain JSON values: all of it can move their last bits, `views` more than that.

    `batch_size` are slices in a forward pass, `views` the versions of a slice whose embeddings are averaged.
    """

    engine: str
    precision: str
    views: int
    batch_size: int

    @classmethod
    def of(cls, chosen: Extract, engine: str | None = None) -> Execution:
        """Take what the settings say, and another engine if one is named."""
        return cls(**chosen.model_dump() | ({"engine": engine} if engine else {}))

    @classmethod
    def from_json(cls, value: dict[str, Any], engine: str | None = None) -> Execution:
        """Read back what `dataclasses.asdict` wrote. Raises TypeError or ValueError for what settings refuse too."""
        made_with = cls(**value)  # a hole is not filled with a default
        return cls.of(Extract.model_validate(asdict(made_with), strict=True), engine)


class Embedded(NamedTuple):
    """The N slices of a study after the encoder: `features` (N, D) and, if it has a head, `logits` (N, K), float32."""

    features: Tensor
    logits: Tensor | None


class Embedder:
    """An encoder made ready to run on a device: studies in, embeddings out.

    `streams` is how many batches are computed at once: OpenVINO gives each a core of its own, so that no core
    waits for another, torch gives one batch all cores. Threads may share an embedder of several streams.
    `batch_size` is that of the execution, but at most OPENVINO_BATCH with OpenVINO.
    """

    def __init__(self, encoder: SliceEncoder, execution: Execution, device: torch.device) -> None:
        self.encoder, self.spec, self.execution, self.device = encoder, encoder.spec, execution, device
        self._forward, self.streams = _engine(encoder, execution, device)
        most = OPENVINO_BATCH if execution.engine == "openvino" else execution.batch_size
        self.batch_size = min(execution.batch_size, most)
        self._map: Callable[[Forward, Iterable[Tensor]], Iterable[Tensor]] = (
            one_core_threads(self.streams, "ich-seq-core").map if self.streams > 1 else map
        )

    @torch.inference_mode()
    def __call__(self, hu: Tensor) -> Embedded:
        """Embed the N sorted slices of one study, (N, S, S) HU on the CPU; the results are on the CPU.

        A study is always cut into the same batches, of even size since a small last one would be slow, so its
        embeddings depend on nothing but itself.
        """
        stacked = windows.with_neighbours(hu, self.spec.neighbours, air_beyond=self.spec.air_beyond)
        count = math.ceil(len(hu) / self.batch_size)
        features = torch.cat(list(self._map(self._mean_over_views, torch.tensor_split(stacked, count))))
        if features.shape[1] != self.spec.dim:
            raise ArtefactError(f"{self.spec.arch} makes embeddings of {features.shape[1]}, not {self.spec.dim}.")
        head = self.encoder.head
        return Embedded(features, None if head is None else head(features.to(self.device)).cpu())

    @torch.inference_mode()
    def _mean_over_views(self, hu: Tensor) -> Tensor:
        return mean_over_views(self._forward, hu, self.execution.views)


def mean_over_views(embed: Forward, hu: Tensor, views: int) -> Tensor:
    """Return the mean embeddings, (M, D), of so many views of slices (M, J, S, S)."""
    seen = [embed(_viewed(hu, *view)) for view in VIEWS[:views]]
    return seen[0] if len(seen) == 1 else torch.stack(seen).mean(dim=0)


def _viewed(hu: Tensor, mirrored: bool, angle_deg: float, scale: float) -> Tensor:
    if mirrored:
        hu = hu.flip(-1)
    return hu if (angle_deg, scale) == (0.0, 1.0) else move(hu, angle_deg=angle_deg, scale=scale)


def _engine(encoder: SliceEncoder, execution: Execution, device: torch.device) -> tuple[Forward, int]:
    """Return what embeds a batch, and how many batches it computes at once."""
    if execution.engine == "openvino":
        return _openvino(encoder, execution, device)
    return _torch(encoder, execution, device), 1


def _torch(encoder: SliceEncoder, execution: Execution, device: torch.device) -> Forward:
    moved = encoder.to(device)

    def forward(hu: Tensor) -> Tensor:
        hu = hu.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else hu
        with autocast(device, execution.precision):
            embedded: Tensor = moved(hu)
        return embedded.cpu()

    return forward


def _openvino(encoder: SliceEncoder, execution: Execution, device: torch.device) -> tuple[Forward, int]:
    if device.type != "cpu":
        raise UsageError(f"--engine openvino runs on the CPU, not on {device}; add --device cpu.")
    side, count = encoder.spec.size, len(encoder.spec.neighbours)
    return compile_openvino(encoder, (count, side, side), execution.precision)


@cache
def _openvino_core() -> Any:
    """Return OpenVINO's one core of this process, which is never closed.

    The CPU plugin of a core gives the thread an alternative signal stack, and going it restores the one before, even if
    that one's core is gone: the next Ctrl-C or SIGTERM would then end in a segmentation fault.
    """
    import openvino

    return openvino.Core()


def compile_openvino(module: nn.Module, shape: tuple[int, int, int], precision: str) -> tuple[Forward, int]:
    """Compile a module for the CPU, for batches of any size of inputs of this shape, float32 in and out.

    Each call computes on one core, so that threads never wait for one another and the result does not depend
    on how many there are; returned too is how many calls are computed at once, by default one a physical
    core. Raises UsageError if OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        remedy = "pip install 'ich-seq[openvino]', or take --engine torch."
        raise UsageError(f"OpenVINO is not installed: {remedy}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that are fixed here
        graph = openvino.convert_model(module, example_input=torch.zeros(2, *shape), input=[-1, *shape])
    cores = choose_workers(None)
    hints = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
        "ENABLE_CPU_PINNING": False,  # each process would take the first cores, and several run on the same ones
    }
    compiled = _openvino_core().compile_model(graph, "CPU", hints)
    idle: LifoQueue[openvino.InferRequest] = LifoQueue()  # each holds activations: as few as do are made

    def forward(batch: Tensor) -> Tensor:
        try:
            request = idle.get_nowait()
        except Empty:
            request = compiled.create_infer_request()
        try:
            return torch.from_numpy(request.infer([batch.numpy()])[0].copy())
        finally:
            idle.put(request)

    return forward, int(compiled.get_property("NUM_STREAMS"))
