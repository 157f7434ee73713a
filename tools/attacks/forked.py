"""Commands run thousands of times: a process that has imported everything forks one child for each.

A start costs seconds of imports, a fork some milliseconds. The first process never computes, so that no child inherits
threads. A child is the command line as a user has it, up to the interpreter's end; it may be given a `Fault`.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from attacks.events import Events, watch_writes
from attacks.proc import MB_A_KIB

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
        self._ended: dict[int, tuple[int, float, float, float]] = {}
        self.weakness = ""

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait(timeout=60)
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def start(
        self,
        arguments: Sequence[str],
        *,
        fault: Fault | None = None,
        count: bool = False,
        environment: dict[str, str] | None = None,
        limits: dict[str, int] | None = None,
        cwd: Path | None = None,
        call: str = "ich_seq.cli:main",
        brisk: bool = False,
        weakness: str = "",
        before: Sequence[Sequence[str]] = (),
    ) -> Running:
        """Begin a command. `count` counts its writes; `limits` are rlimits by name, such as {"RLIMIT_FSIZE": 4096}.

        `call` is the function that finds `arguments` in sys.argv, if it is not the command line's. A `brisk` command
        ends without taking its modules apart, which costs more time than many a command. `weakness` names what of
        `weaknesses` is done to the package first, e.g. "raise_in ich_seq.labels.read_labels", `before` commands that
        the same process runs first, see `run_each`.
        """
        folder = tempfile.TemporaryDirectory(prefix="attack-")
        for name in ("stdout", "stderr"):  # a child that is killed at once makes none
            (Path(folder.name) / name).touch()
        request = {
            "arguments": list(arguments),
            "fault": asdict(fault) if fault else None,
            "count": count,
            "environment": environment or {},
            "limits": limits or {},
            "cwd": str(cwd) if cwd else None,
            "brisk": brisk,
            "weakness": weakness or self.weakness,
            "before": [list(others) for others in before],
            "folder": folder.name,
            "call": call,
        }
        pipe = self._pipe(self._process.stdin)
        pipe.write(json.dumps(request) + "\n")
        pipe.flush()
        return Running(self._read("pid"), folder)

    def wait(self, running: Running, timeout_s: float = 120) -> Done:
        """Wait for a command's end; one that takes longer is killed and has -1 as its code."""
        overdue = False
        while running.pid not in self._ended:
            if time.monotonic() - running.began > timeout_s and not overdue:
                os.kill(running.pid, signal.SIGKILL)
                overdue = True
            self._ask_for_ends()
            time.sleep(0.002)
        code, ended, *used = self._ended.pop(running.pid)
        with running.folder as folder:
            text = {name: (Path(folder) / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr")}
            events = Path(folder) / "events"
            letters = events.read_text() if events.exists() else ""
        code, seconds = -1 if overdue else code, ended - running.began
        return Done(code, text["stdout"], text["stderr"], seconds, len(letters), *used, letters)

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
        done = [Done(code, *texts, 0.0, 0) for code, *texts in zip(codes, out, told, strict=False)]
        return [*done, Done(whole.code, out[-1], told[-1], whole.seconds, whole.events)]

    def _read(self, kind: str) -> int:
        while True:
            answer = json.loads(self._pipe(self._process.stdout).readline())
            if "ended" in answer:
                self._ended[answer["ended"]] = tuple(answer[of] for of in ("code", "at", "cpu_s", "most_mb"))
            if kind in answer:
                return int(answer[kind])

    def _ask_for_ends(self) -> None:
        pipe = self._pipe(self._process.stdin)
        pipe.write("\n")
        pipe.flush()
        self._read("asked")


# ---- the process that forks


def _serve() -> dict[str, Any] | None:
    """Fork a child a request; return its request in a child, None at the end in the first process."""
    children: set[int] = set()
    for line in sys.stdin:
        if line.strip():
            request: dict[str, Any] = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return request
            children.add(pid)
            _say(pid=pid)
            continue
        for pid in list(children):
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                children.remove(pid)
                code = os.waitstatus_to_exitcode(status)
                used = {"cpu_s": usage.ru_utime + usage.ru_stime, "most_mb": usage.ru_maxrss * MB_A_KIB}
                _say(ended=pid, code=code if code >= 0 else 128 - code, at=time.monotonic(), **used)
        _say(asked=1)
    return None


def _say(**answer: float) -> None:
    print(json.dumps(answer), flush=True)


def _become(request: dict[str, Any]) -> None:
    """Make this child the process that was asked for."""
    import resource

    folder = Path(request["folder"])
    for number, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a battery in the background may ignore some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # what was imported may have asked for it before TMPDIR was set
    if request["cwd"]:
        os.chdir(request["cwd"])
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if request["fault"] or request["count"]:
        watch_writes(Events(folder / "events", request["fault"]))
    if request["weakness"]:
        from attacks import weaknesses

        weaknesses.weaken(request["weakness"])
    for arguments in request["before"]:
        _run_before(arguments)
    sys.argv = ["ich-seq", *request["arguments"]]


def _run_before(arguments: list[str]) -> None:
    """Run a command that is not the last of this process."""
    from ich_seq.cli import main

    sys.argv = ["ich-seq", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.write(MARK)
    sys.stderr.write(f"{MARK}{code if isinstance(code, int) else 1}\n")
    sys.stdout.flush()
    sys.stderr.flush()


def _end_briskly(main: Callable[[], None]) -> None:
    """Run a command and end as Python does: join threads, call what waits for the exit, flush; but then just end."""
    code = None
    try:
        main()
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code
    threading._shutdown()  # type: ignore[attr-defined]  # what Python itself calls, under no other name
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _import_all() -> None:
    """Import what the commands import, and compute nothing."""
    import gc
    import importlib
    import pkgutil

    import ich_seq

    for module in pkgutil.iter_modules(ich_seq.__path__):
        importlib.import_module(f"ich_seq.{module.name}")
    for name in (
        "pandas.io.parquet",
        "pyarrow.parquet",
        "pyarrow.dataset",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_svg",
        "PIL.JpegImagePlugin",
        "PIL.PngImagePlugin",
        "libjpeg",
        "openjpeg",
        "sklearn.linear_model",
        "scipy.optimize",
    ):
        importlib.import_module(name)
    gc.freeze()  # or each child would touch every object at its end, and so copy all memory


if __name__ == "__main__":
    _import_all()
    asked = _serve()
    if asked is not None:
        import pkgutil

        call = pkgutil.resolve_name(asked["call"])
        _become(asked)
        if asked["brisk"]:
            _end_briskly(call)
        call()
