"""The process that forks a child for each command that a `zygote` asks for: `python -m attacks.forked`.

It never computes, so that no child inherits threads. A child is the command line as a user has it, up to the
interpreter's end; it may be given a `Fault`.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attacks.events import Events, watch_writes
from attacks.proc import MB_A_KIB
from attacks.zygote import MARK, Fault, Request


def _serve() -> tuple[Path, Request] | None:
    """Fork a child a request; return its folder and request in a child, None at the end in the first process."""
    children: set[int] = set()
    for line in sys.stdin:
        if line.strip():
            pid = os.fork()
            if pid == 0:
                return _asked(line)
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


def _asked(line: str) -> tuple[Path, Request]:
    """Return the folder of a request, where what it prints goes, and the request."""
    folder, told = json.loads(line)
    fault = told.pop("fault")
    return Path(folder), Request(**told, fault=Fault(**fault) if fault else None)


def _say(**answer: float) -> None:
    print(json.dumps(answer), flush=True)


def _become(folder: Path, request: Request) -> None:
    """Make this child the process that was asked for."""
    for number, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        opened = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a battery in the background may ignore some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.update(request.environment)
    tempfile.tempdir = None  # what was imported may have asked for it before TMPDIR was set
    if request.cwd:
        os.chdir(request.cwd)
    for name, value in request.limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if request.fault or request.count:
        watch_writes(Events(folder / "events", request.fault))
    if request.weakness:
        from attacks import weaknesses

        weaknesses.weaken(request.weakness)
    for arguments in request.before:
        _run_before(arguments)
    sys.argv = ["ich-seq", *request.arguments]


def _run_before(arguments: Sequence[str]) -> None:
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

        call = pkgutil.resolve_name(asked[1].call)
        _become(*asked)
        if asked[1].brisk:
            _end_briskly(call)
        call()
