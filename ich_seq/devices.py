"""Which processor the networks run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ich_seq import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device; auto takes CUDA where there is any.

    Raises UsageError for any other name and for a CUDA device that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    kind, _, index = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (index and not index.isdigit())):
        raise UsageError(f"--device {name} is none of auto, cpu, cuda, cuda:N.")
    if kind == "cuda" and int(index or 0) >= count:
        raise UsageError(f"--device {name}: torch sees {count} CUDA devices here; take --device cpu.")
    return torch.device(name)
