"""Which processor the networks run on, and how."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from ich_seq import UsageError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt, from its malloc.h."""


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device; auto takes CUDA where there is any.

    Raises UsageError for any other name and for a CUDA device that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = name.partition(":")
    if not re.fullmatch("cpu|cuda(:(0|[1-9][0-9]*))?", name):
        raise UsageError(f"--device {name} is none of auto, cpu, cuda, cuda:N.")
    if kind == "cuda" and int(index or 0) >= count:
        raise UsageError(f"--device {name}: torch sees {count} CUDA devices here; take --device cpu.")
    return torch.device(name)


def keep_memory() -> None:
    """Let this process keep the memory it frees, for the next activations.

    glibc gives blocks of more than 32 MB back to the kernel at once, and each forward pass pays for
    the pages again: ImageNet lite0 made 25 slices a second with that and 83 without (2 cores, fp32).
    Other C libraries are left as they are.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Give the context in which torch computes in "fp32" or, where it is safe, in "bf16"."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def choose_workers(wanted: int | None) -> int:
    """Return how many workers were asked for, or for None one for each core that this process may use.

    The processes that torchrun started on one machine (environment LOCAL_WORLD_SIZE) share its cores.
    """
    if wanted is not None:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
