"""Several processes that train one network, started by `torchrun`; one process is a group of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Group:
    """This process among `size` of them; `rank` 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Tell whether this process is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Let all processes reach this point."""
        if self.size > 1:
            dist.barrier()

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
        dist.all_gather_object(parts, part)
        return [p for p in parts if p is not None]


@contextmanager
def joined_group(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started (environment WORLD_SIZE), by NCCL on CUDA, by gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL gathers objects
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Give each of a machine's processes a CUDA device of its own (environment LOCAL_RANK)."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
