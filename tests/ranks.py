"""Processes as torchrun starts them, forked from one that has imported everything: a group is there in moments."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attacks.zygote import Done, Running, Zygote

LONGEST_S = 120.0


def start(zygote: Zygote, commands: Sequence[Sequence[str]], *, restarts: int = 0, **more: str) -> list[Running]:
    """Begin commands, one a rank, with the environment that torchrun gives to a group on one machine, and `more`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(len(commands))
    shared = {
        "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    environments = [more | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(len(commands))]
    return [zygote.start(c, environment=e) for c, e in zip(commands, environments, strict=True)]


def run(zygote: Zygote, command: Sequence[str], size: int) -> list[Done]:
    """Run a command as a group of so many processes."""
    return [zygote.wait(running, LONGEST_S) for running in start(zygote, [command] * size)]


def until(come: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to come about."""
    deadline = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def journalled(out: Path) -> dict[str, str]:
    """Return the file of each study that any journal of a store names, with its hash."""
    rows = {}
    for journal in out.glob(".journal*.jsonl"):
        for line in journal.read_text().splitlines():
            row = json.loads(line)
            rows[row["file"]] = row["sha256"]
    return rows


def processes_of(command: Path) -> dict[str, int]:
    """Return the processes whose command line names a path, by their rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.fsencode(command) in (process / "cmdline").read_bytes():
                words = (process / "environ").read_bytes().split(b"\0")
                found |= {word.decode()[5:]: int(process.name) for word in words if word.startswith(b"RANK=")}
        except OSError:
            continue
    return found
