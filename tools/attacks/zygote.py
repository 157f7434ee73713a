"""Commands run thousands of times: a process that has imported everything, `forked`, forks one child for each.

A start costs seconds of imports, a fork some milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parents[1]
MARK = "\0end of a command, "
"""Stands in the output of several commands between two, its exit code behind it on stderr."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is to go wrong at the `at`-th write, fsync, rename or removal (from 1): "kill" (SIGKILL, a write half done)
    or an errno's name, such as "ENOSPC", which all later ones meet too; a full disk lets files be removed.
    """

    kind: str
    at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A command and how it is to be run.

    `count` counts its writes; `limits` are rlimits by name, such as {"RLIMIT_FSIZE": 4096}. `call` is the function that
    finds `arguments` in sys.argv, if it is not the command line's. A `brisk` command ends without taking its modules
    apart, which costs more time than many a command. `weakness` names what of `weaknesses` is done to the package
    first, e.g. "raise_in ich_seq.labels.read_labels", `before` commands that the same process runs first, see
    `Zygote.run_each`.
    """

    arguments: Sequence[str]
    fault: Fault | None = None
    count: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    cwd: str | Path | None = None
    call: str = "ich_seq.cli:main"
    brisk: bool = False
    weakness: str = ""
    before: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended: its exit code as a shell has it (128 + signal), what it printed, how long it took.

    `events` are the writes, fsyncs, renames and removals that it made, where they were counted; a letter of `letters`
    stands for each, those of the module `events`. `cpu_s` is how long it computed, `most_mb` the most memory that it
    held, with what it shares with the process that forked it.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    events: int
    cpu_s: float = 0.0
    most_mb: float = 0.0
    letters: str = ""


@dataclass(slots=True)
class Running:
    """A command that was begun."""

    pid: int
    folder: tempfile.TemporaryDirectory[str]
    began: float = field(default_factory=time.monotonic)


class Zygote:
    """Starts commands; a context manager, since it is a process. All run with `weakness` where they name none."""

    def __init__(self) -> None:
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        path = os.pathsep.join([str(TOOLS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | single | {"PYTHONPATH": path}
        command = [sys.executable, "-m", "attacks.forked"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._ended: dict[int, tuple[int, float, float, float]] = {}
        self.weakness = ""

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.close()
        self._process.wait(timeout=60)
        self._answers.close()

    def start(self, arguments: Sequence[str], **how: Any) -> Running:
        """Begin a command; `how` are the other fields of its `Request`."""
        request = Request(arguments=arguments, **how)
        request = replace(request, weakness=request.weakness or self.weakness)
        folder = tempfile.TemporaryDirectory(prefix="attack-")
        for name in ("stdout", "stderr"):  # a child that is killed at once makes none
            (Path(folder.name) / name).touch()
        self._send(json.dumps([folder.name, asdict(request)], default=str))
        return Running(self._read("pid"), folder)

    def wait(self, running: Running, timeout_s: float = 120) -> Done:
        """Wait for a command's end; one that takes longer is killed and has -1 as its code."""
        overdue = False
        while running.pid not in self._ended:
            if time.monotonic() - running.began > timeout_s and not overdue:
                os.kill(running.pid, signal.SIGKILL)
                overdue = True
            self._send("")
            self._read("asked")
            time.sleep(0.002)
        code, ended, cpu_s, most_mb = self._ended.pop(running.pid)
        with running.folder as folder:
            out, err = ((Path(folder) / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
            events = Path(folder) / "events"
            letters = events.read_text() if events.exists() else ""
        code, seconds = -1 if overdue else code, ended - running.began
        return Done(code, out, err, seconds, len(letters), cpu_s, most_mb, letters)

    def run(self, arguments: Sequence[str], *, timeout_s: float = 120, **how: Any) -> Done:
        """Run a command to its end."""
        return self.wait(self.start(arguments, **how), timeout_s)

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float = 600, **how: Any) -> list[Done]:
        """Run commands one after another in one child, each as if alone but for what those before it have cached.

        So one that ends before it computes costs milliseconds.
        """
        if not commands:
            return []
        whole = self.run(commands[-1], timeout_s=timeout_s, before=commands[:-1], **how)
        out, err = whole.stdout.split(MARK), whole.stderr.split(MARK)
        ends = [text.split("\n", 1) for text in err[1:]]
        told = [err[0], *(text for _, text in ends)]
        codes = [int(end) for end, _ in ends]
        done = [Done(code, printed, said, 0.0, 0) for code, printed, said in zip(codes, out, told, strict=False)]
        return [*done, Done(whole.code, out[-1], told[-1], whole.seconds, whole.events)]

    def _send(self, line: str) -> None:
        """Send a request, or an empty line, which asks for the ends of commands."""
        self._requests.write(line + "\n")
        self._requests.flush()

    def _read(self, kind: str) -> int:
        """Return the next answer of a kind, keeping the ends that are told before it."""
        while True:
            answer = json.loads(self._answers.readline())
            if "ended" in answer:
                code, at, cpu_s, most_mb = (answer[of] for of in ("code", "at", "cpu_s", "most_mb"))
                self._ended[answer["ended"]] = code, at, cpu_s, most_mb
            if kind in answer:
                return int(answer[kind])
