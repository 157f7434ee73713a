"""Several processes that train one network, or share out studies, started by `torchrun`; one is a group of one."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from ich_seq import IchSeqError, OutputError, UsageError
from ich_seq.devices import choose_device

Part = TypeVar("Part")
Value = TypeVar("Value")

PATIENCE = timedelta(days=7)
"""How long processes that share out studies wait for the slowest: torchrun notices a dead one, not a clock."""

PEER_MISSED = (
    "Another process of this run has ended or cannot be reached: see what it said. Started again, by torchrun or by "
    "you, train-cnn and extract-features go on where they ended and predict begins anew."
)
OF_GLOO = "gloo/transport"
"""Stands in what gloo says of a connection: the place in its source."""

POLL_S = 0.02
AT_ONCE = 4096
"""Objects that travel in one message: a million headers would not fit into one beside what it is made of."""


@dataclass(frozen=True, slots=True)
class Group:
    """This process among `size` of them; where they train one network, `rank` 0 alone writes files.

    `talk` is what processes that share out studies speak over. Their calls raise OutputError where another process
    has ended, and hear signals while they wait.
    """

    rank: int = 0
    size: int = 1
    talk: dist.ProcessGroup | None = None

    @property
    def writes(self) -> bool:
        """Tell whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Let all processes reach this point."""
        if self.size > 1:
            dist.barrier()

    def _meet(self) -> None:
        """Wait with an ear for signals, which calls into gloo lack: what follows takes no longer than its bytes."""
        with _peers_missed():
            barrier = dist.barrier(self.talk, async_op=True)
            while not barrier.is_completed():
                time.sleep(POLL_S)
            barrier.wait()

    def mean(self, value: float, device: torch.device) -> float:
        """Return the mean over all processes of a number that each holds, the same to each."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total.item()) / self.size

    def share(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def gather(self, part: Part) -> list[Part]:
        """Return what each process holds, in the order of ranks, to every process."""
        if self.size == 1:
            return [part]
        parts: list[Part | None] = [None] * self.size
        if self.talk is None:
            dist.all_gather_object(parts, part)
        else:
            self._meet()
            with _peers_missed():
                dist.all_gather_object(parts, part, self.talk)
        return [p for p in parts if p is not None]

    def agree(self, work: Callable[[], Value]) -> Value:
        """Let each process do some work and return its own result; where one refuses, all do.

        Raises the refusal of the lowest rank in every process, `told` in all but the first, which names the process
        that it is of.
        """
        if self.size == 1:
            return work()
        value, refusal = _attempted(work)
        heard = self.gather((refusal, socket.gethostname()))
        for rank, (refused, host) in enumerate(heard):
            if refused is not None:
                error = refused if rank == 0 else type(refused)(f"Process {rank}, on {host}: {refused}")
                error.told = self.rank > 0
                raise error
        return value  # type: ignore[return-value]  # None only beside a refusal

    def lead(self, work: Callable[[], Value]) -> Value:
        """Let the first process do some work and give its result, or its refusal, to every process."""
        if self.size == 1:
            return work()
        said = [_attempted(work) if self.rank == 0 else (None, None)]
        self._meet()
        with _peers_missed():
            dist.broadcast_object_list(said, 0, self.talk)
        value, refusal = said[0]
        if refusal is not None:
            refusal.told = self.rank > 0
            raise refusal
        return value  # type: ignore[return-value]  # None only beside a refusal

    def same(self, manner: str) -> None:
        """Raise UsageError, in every process, if one would do the work in another manner than the first."""
        first = self.lead(lambda: manner)
        self.agree(lambda: _check_same(manner, first))

    def collect(self, items: Sequence[Part]) -> list[Part]:
        """Bring to the first process what all hold, rank by rank; the others get nothing."""
        if self.size == 1:
            return list(items)
        parts: list[list[Part]] = [[] for _ in range(self.size)]
        for start in range(0, max(self.gather(len(items))), AT_ONCE):
            heard: list[Sequence[Part]] | None = [()] * self.size if self.writes else None
            with _peers_missed():
                dist.gather_object(items[start : start + AT_ONCE], heard, 0, self.talk)
            for part, more in zip(parts, heard or (), strict=False):
                part.extend(more)
        return [item for part in parts for item in part]

    def deal(self, parts: Sequence[Sequence[Part]], at_once: int = AT_ONCE) -> list[Part]:
        """Give each process its part, of those that the first one has; `at_once` items of each travel together."""
        if self.size == 1:
            return list(parts[0])
        dealt: list[Part] = []
        for start in range(0, self.lead(lambda: max(map(len, parts))), at_once):
            mine: list[Sequence[Part]] = [()]
            with _peers_missed():
                some = [part[start : start + at_once] for part in parts] if self.writes else None
                dist.scatter_object_list(mine, some, 0, self.talk)
            dealt.extend(mine[0])
        return dealt


ALONE = Group()


def _check_same(manner: str, first: str) -> None:
    if manner != first:
        raise UsageError(
            "It would make other bytes than the first process. All need the same command, networks, versions of "
            "ich-seq and torch, and kind of processor."
        )


def _attempted(work: Callable[[], Value]) -> tuple[Value | None, IchSeqError | None]:
    """Return what came of some work, or why it was refused."""
    try:
        return work(), None
    except IchSeqError as refusal:
        return None, refusal


@contextmanager
def _peers_missed() -> Iterator[None]:
    """Turn what gloo says of a connection that is closed into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise OutputError(PEER_MISSED) from error


@contextmanager
def joined_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started to train one network: by NCCL on CUDA, by gloo on CPUs.

    Raises OutputError if they do not reach each other, now or while the block runs.
    """
    if _alone():
        yield Group()
        return
    _join("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:  # in the midst of a step of the training, where torch talks by itself
        if not isinstance(error, dist.DistError) and OF_GLOO not in str(error):
            raise
        raise OutputError(PEER_MISSED) from error
    finally:
        dist.destroy_process_group()


@contextmanager
def working_group() -> Iterator[Group]:
    """Join the processes that torchrun started to share out studies: by gloo, as they exchange no tensors of a GPU.

    Raises OutputError if they do not reach each other.
    """
    if _alone():
        yield Group()
        return
    talk = _joined()
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), talk)
    finally:
        dist.destroy_process_group()


def _alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def _join(backend: str) -> None:
    """Join the processes of this start, and of no start before it. Raises OutputError if they cannot be reached."""
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        fresh = dist.PrefixStore(_meeting(store, rank, size), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)
    except Exception as error:  # whatever sockets and stores raise
        raise OutputError(f"The processes that torchrun started do not reach each other: {error}") from error


def _joined() -> dist.ProcessGroup:
    """Join by a thread of its own, as nothing interrupts one that waits for others to join."""
    joined: list[dist.ProcessGroup] = []
    failures: list[OutputError] = []

    def join() -> None:
        try:
            _join("gloo")
            joined.append(cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=PATIENCE)))  # of all
        except OutputError as failure:
            failures.append(failure)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    while joining.is_alive():
        joining.join(POLL_S)
    for failure in failures:
        raise failure
    return joined[0]


def _meeting(store: Any, rank: int, size: int) -> str:
    """Return a name that only the processes of this start know: torchrun's store still has addresses of those before.

    Each says that it is here by a number of its own; the first answers with the name and the numbers it has read, until
    all have found theirs.
    """
    own = secrets.token_hex(8)
    here, there, welcome = "ich-seq/here/{}", "ich-seq/there/{}/{}", "ich-seq/welcome"
    if rank > 0:
        store.set(here.format(rank), own)
        while f"{rank}:{own}" not in (said := store.get(welcome).decode().split()):
            time.sleep(POLL_S)
        store.set(there.format(said[0], rank), "")
        return str(said[0])
    while not store.check([there.format(own, other) for other in range(1, size)]):
        numbers = {other: here.format(other) for other in range(1, size) if store.check([here.format(other)])}
        store.set(welcome, " ".join([own, *(f"{other}:{store.get(key).decode()}" for other, key in numbers.items())]))
        time.sleep(POLL_S)
    return own


def own_device(name: str) -> torch.device:
    """Return the device of a process that shares out studies; of more of them than GPUs several share one.

    Raises UsageError as `choose_device` does.
    """
    return local_device(choose_device(name), shared=True)


def local_device(device: torch.device, *, shared: bool = False) -> torch.device:
    """Give each process that torchrun started on a machine (environment LOCAL_RANK) a GPU of its own, or in turn one.

    It becomes the process's current one: there NCCL gathers objects, and the first holds no context for the others.
    Raises UsageError if there are fewer GPUs than processes, unless they may be `shared`.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if rank >= count and not shared:
        raise UsageError(
            f"torchrun started more processes than the {count} GPUs here: --nproc-per-node {count}, or --device cpu."
        )
    own = torch.device("cuda", rank % count)
    torch.cuda.set_device(own)
    return own
