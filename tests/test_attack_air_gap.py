"""The air gap: the package needs no network, and a program that does is found out."""

from __future__ import annotations

import pytest
from attacks import air_gap
from attacks.air_gap import Ended, Tools, Traffic, find_tools, read_trace, run_apart

pytest_plugins = ["grounds"]

CALLS_HOME = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        with socket.socket(socket.AF_INET, kind) as calling:
            calling.connect(("192.0.2.1", 9))
            calling.send(b"home")
    except OSError:
        pass
here, there = socket.socketpair()
here.send(b"this stays")
"""


@pytest.fixture(scope="module")
def tools() -> Tools:
    """What can be used here; without any of it there is nothing to test."""
    found = find_tools()
    if not found.apart or not found.traced:
        pytest.skip(f"cannot be used here: {found.missing}")
    return found


@pytest.mark.slow
def test_the_attack_finds_nothing_on_some_commands_and_the_hub(tmp_path, scene, tools):
    """Two commands, and a download that is refused."""
    outcome = air_gap.run(tmp_path, scene=scene, scale=0.3)
    assert outcome.failures == ()
    assert outcome.trials == 3


@pytest.mark.slow
def test_a_command_stays_in_the_machine(tmp_path, scene, tools):
    """A real process, cut off and traced; nothing is written below HOME."""
    outcome = air_gap.run(tmp_path, scene=scene, scale=0.01)
    assert outcome.failures == ()
    assert outcome.figures["commands"] == 1
    assert outcome.figures["files below HOME"] == "none"


@pytest.mark.slow
def test_an_archive_that_is_asked_for_is_all_that_is_called(tmp_path, scene, tools):
    """Every call is to its address; it cannot be reached here, and the command says so."""
    asked = ["predict", "--dicomweb", "http://127.0.0.1:9/dicom-web", "--study", "1.2.3", "--device", "cpu"]
    more = ["--bundle", str(scene.root / "bundle"), "--out", str(tmp_path / "out")]
    ended = run_apart([*asked, *more], tmp_path / "trace", tmp_path, tools)
    assert ended.code == 6
    assert "The archive at 127.0.0.1:9 cannot be reached" in ended.stderr
    assert ended.traffic.beyond
    assert all("127.0.0.1" in call and "htons(9)" in call for call in ended.traffic.beyond)


def test_a_program_that_calls_home_is_found_out(tmp_path, monkeypatch, tools):
    """The control: connections and what is sent by them; what stays in the machine is no fault."""
    (tmp_path / "calls_home.py").write_text(CALLS_HOME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run_apart([], tmp_path / "trace", tmp_path, tools, package="calls_home")
    assert ended.code == 0
    assert len(ended.traffic.beyond) >= 2
    assert all("192.0.2.1" in call or "send" in call for call in ended.traffic.beyond)
    assert ended.traffic.sockets == {"AF_INET": 2}
    assert [*air_gap._faults(ended)]


def test_a_process_apart_reaches_nothing(tmp_path, monkeypatch, tools):
    """The namespace has no route: connecting fails at once."""
    (tmp_path / "asks.py").write_text("import socket; socket.create_connection(('192.0.2.1', 9), 60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ended = run_apart([], tmp_path / "trace", tmp_path, tools, package="asks")
    assert "Network is unreachable" in ended.stderr


LINES = {
    "a name service": (
        '7 connect(3<UNIX-STREAM:[1]>, {sa_family=AF_UNIX, sun_path="/run/nscd"}, 110) = -1 ENOENT',
        True,
    ),
    "a pair": ('7 sendto(3<UNIX-STREAM:[1->2]>, "x", 1, 0, NULL, 0) = 1', True),
    "a message in a pair": ("7 sendmsg(3<UNIX-DGRAM:[1]>, {msg_name=NULL}, 0) = 1", True),
    "a connection": ("7 connect(3<TCP:[1]>, {sa_family=AF_INET, sin_port=htons(443)}, 16) = 0", False),
    "a connection by IPv6": ("7 connect(3<TCPv6:[1]>, {sa_family=AF_INET6}, 28 <unfinished ...>", False),
    "a question to a name server": ('7 sendto(3<UDP:[1]>, "x", 1, 0, {sa_family=AF_INET}, 16) = 1', False),
    "connected before": ('7 sendto(3<TCP:[1.2.3.4:5->6.7.8.9:443]>, "x", 1, 0, NULL, 0) = 1', False),
    "a question to the kernel": ('7 sendto(3<NETLINK:[ROUTE:1]>, "x", 1, 0, {sa_family=AF_NETLINK}, 12) = 1', False),
    "many messages": ("7 sendmmsg(3<UDP:[1]>, [{msg_hdr={msg_name=NULL}}], 2, 0) = 2", False),
    "a socket alone": ("7 socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE) = 3<NETLINK:[ROUTE:7]>", True),
    "a signal": ("7 --- SIGCHLD {si_signo=SIGCHLD} ---", True),
    "an end": ("7 <... connect resumed>) = 0", True),
}


@pytest.mark.parametrize(("line", "stays"), LINES.values(), ids=LINES)
def test_a_line_of_the_trace_is_understood(line, stays):
    """By the address or, without one, by the socket."""
    assert (not read_trace([line]).beyond) == stays


def test_sockets_are_counted_by_family():
    """Those that are made, whatever becomes of them."""
    lines = [
        "1 socket(AF_UNIX, SOCK_STREAM, 0) = 3",
        "1 socket(AF_INET, SOCK_DGRAM, 0) = 4",
        "2 socket(AF_INET, 1, 0) = 5",
    ]
    assert read_trace(lines).sockets == {"AF_UNIX": 1, "AF_INET": 2}


@pytest.mark.parametrize(
    ("code", "seconds", "stderr", "faults"),
    [
        (2, 5.0, "Give a safetensors file as encoder.weights.", 0),
        (1, 5.0, "Give a safetensors file as encoder.weights.", 1),
        (2, 90.0, "Give a safetensors file as encoder.weights.", 1),
        (2, 5.0, "No network.", 1),
    ],
)
def test_a_refusal_of_the_hub_is_judged(code, seconds, stderr, faults):
    """By its code, its time and its remedy."""
    assert len([*air_gap._hub_faults(Ended(code=code, stderr=stderr, seconds=seconds, traffic=Traffic()))]) == faults
