"""Every command as a real process in a network namespace of its own, its calls to sockets traced.

None may be connected or sent to but within the machine (AF_UNIX); all must end as usual. Beside it: what is written
below HOME, and that the one setting that wants the network says what to do without.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attacks import Outcome, scaled
from attacks.scene import Scene

TIMEOUT_S = 600
HUB_LIMIT_S = 30.0
DEMO_STUDIES = 8
HUB_FROM, DEMO_FROM = 0.1, 0.5
"""The scales from which on a download is asked for, and the demo run, which takes minutes."""

STRACE = ("strace", "-f", "--seccomp-bpf", "-qq")
CALLS = "connect,sendto,sendmsg,sendmmsg,socket"
CALL = re.compile(r"^\d+ +(?:\[pid +\d+\] +)?(?P<name>\w+)\((?P<rest>.*)$")
FAMILY = re.compile(r"\b(?:sa_family=|socket\()(AF_\w+|\d+)")
END_TO_END = re.compile(r"^\d+<(?P<kind>UNIX[\w-]*|NETLINK|[\w-]+):")
OURS = {"AF_UNIX", "AF_LOCAL"}


@dataclass(frozen=True, slots=True)
class Tools:
    """What puts a command into its namespace, and what traces it; empty where it cannot be used here."""

    apart: tuple[str, ...]
    traced: bool

    @property
    def missing(self) -> str:
        """Return the names of what cannot be used here."""
        names = {"unshare": bool(self.apart), "strace": self.traced}
        return ", ".join(name for name, there in names.items() if not there) or "none"


@dataclass(slots=True)
class Traffic:
    """Sockets that were made, by family, and calls that reached, or would have reached, beyond the machine."""

    sockets: Counter[str] = field(default_factory=Counter)
    beyond: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a process ended, how long it took, and its traffic."""

    code: int
    stderr: str
    seconds: float
    traffic: Traffic


def run(work: Path, *, scene: Scene, scale: float, zygote: object = None, seed: int = 0) -> Outcome:
    """Run the commands cut off from the network, some of them at a small scale.

    They are no forks, as a user's are not: the zygote is not asked. Nothing depends on the seed.
    """
    tools = find_tools()
    home = work / "home"
    home.mkdir(parents=True)
    failures, slowest, traffic = [], 0.0, Traffic()
    commands = _commands(scene, work / "made", scale)
    chosen = dict(list(commands.items())[: scaled(len(commands), min(scale, 1))])
    for name, arguments in chosen.items():
        ended = run_apart(arguments, work / "trace", home, tools)
        failures += [f"{name}: {fault}" for fault in _faults(ended)]
        slowest = max(slowest, ended.seconds)
        traffic.sockets.update(ended.traffic.sockets)
    written = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    hub = _try_hub(scene, work, tools) if scale >= HUB_FROM and tools.apart else None
    if hub is not None:
        failures += [f"encoder.weights=hub: {fault}" for fault in _hub_faults(hub)]
    return Outcome(
        trials=len(chosen) + (hub is not None),
        failures=tuple(failures),
        figures={
            "commands": len(chosen),
            "cannot be used here": tools.missing,
            "sockets by family": ", ".join(f"{k} {n}" for k, n in sorted(traffic.sockets.items())) or "none",
            "slowest command, s": round(slowest, 1),
            "hub without network, s": "not tried" if hub is None else round(hub.seconds, 1),
            "files below HOME": ", ".join(written) or "none",
        },
    )


def find_tools() -> Tools:
    """Try what this machine lets us do: containers often forbid namespaces, or tracing."""
    ways = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))
    apart = next((way for way in ways if shutil.which(way[0]) and _works([*way, "true"])), ())
    traced = shutil.which(STRACE[0]) is not None and _works([*STRACE, "-e", "trace=connect", "true"])
    return Tools(apart, traced)


def _works(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _commands(scene: Scene, made: Path, scale: float) -> dict[str, list[str]]:
    """Return the arguments of every command by its name, the quickest first."""
    labels, said = ["--labels", str(scene.labels)], str(scene.root / "results")
    given = {
        "predict": scene.arguments("predict", made / "predict"),
        "evaluate": ["evaluate", "--predictions", said, *labels, "--resamples", "100", "--bundle",
                     str(scene.root / "bundle"), "--dicom", str(scene.dicom), "--out", str(made / "evaluate")],
        "explore": ["explore", str(scene.dicom), *labels, "--workers", "2", "--out", str(made / "explore")],
        **{name: scene.arguments(name, made / name) for name in ("extract-features", "train-rnn", "train-cnn")},
    }  # fmt: skip
    demo = ["demo", "--studies", str(DEMO_STUDIES), "--device", "cpu", "--out", str(made / "demo")]
    return given | ({"demo": demo} if scale >= DEMO_FROM else {})


def _try_hub(scene: Scene, work: Path, tools: Tools) -> Ended:
    """Run the one command that may ask for the network, in a HOME that holds no weights."""
    arguments = ["extract-features", str(scene.dicom), "--out", str(work / "made" / "hub"), "--device", "cpu"]
    asking = [*arguments, "--set", "encoder.arch=resnet18", "--set", "encoder.weights=hub"]
    (work / "empty home").mkdir()
    return run_apart(asking, work / "trace", work / "empty home", Tools(tools.apart, traced=False))


def run_apart(arguments: Sequence[str], trace: Path, home: Path, tools: Tools, package: str = "ich_seq.cli") -> Ended:
    """Run a command line of Python's `-m` without network, with a HOME of its own, and read what it did to sockets."""
    trace.unlink(missing_ok=True)
    follow = [*STRACE, "-yy", "-e", f"trace={CALLS}", "-o", str(trace)] if tools.traced else []
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "HF_", "TORCH_", "TIMM_"))}
    began = time.monotonic()
    ended = subprocess.run(
        [*tools.apart, *follow, sys.executable, "-m", package, *arguments],
        env=kept | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    seconds = time.monotonic() - began
    return Ended(code=ended.returncode, stderr=ended.stderr, seconds=seconds, traffic=read_trace(lines))


def read_trace(lines: Sequence[str]) -> Traffic:
    """Tell from strace's lines what sockets were made, and which calls went further than to AF_UNIX."""
    traffic = Traffic()
    for line in lines:
        call = CALL.match(line)
        if call is None:
            continue
        named = FAMILY.search(line)
        family = named.group(1) if named else ""
        if call["name"] == "socket":
            traffic.sockets[family or "unknown"] += 1
        elif not _stays(call["rest"], family):
            traffic.beyond.append(line)
    return traffic


def _stays(call: str, family: str) -> bool:
    """Return whether a call stays in the machine: by the address it names, or else by what its socket is of."""
    if family:
        return family in OURS
    socket = END_TO_END.match(call)
    return socket is not None and socket["kind"].startswith("UNIX")


def _faults(ended: Ended) -> Iterator[str]:
    if ended.code != 0:
        yield f"it ended with {ended.code} ({ended.stderr[-200:]!r})"
    yield from (f"it called {line!r:.200}" for line in ended.traffic.beyond[:3])


def _hub_faults(ended: Ended) -> Iterator[str]:
    """Yield what is wrong with the refusal of a download without network."""
    if ended.code != 2:
        yield f"it ended with {ended.code} without network ({ended.stderr[-200:]!r})"
    if ended.seconds > HUB_LIMIT_S:
        yield f"it took {ended.seconds:.0f} s to say so"
    if "encoder.weights" not in ended.stderr or "safetensors" not in ended.stderr:
        yield f"it does not say what to do ({ended.stderr[-200:]!r})"
