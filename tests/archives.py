"""Archives for tests: Debian's Orthanc with its DICOMweb plugin, and a server that does whatever it is told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
import requests

from ich_seq import archive
from ich_seq.archive import TOKEN

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
READY_S = 60.0
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
BOUNDARY = "boundary of the test"


def forget_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave no credentials or proxies of whoever runs the tests, and let no attempt wait for the one before."""
    for name in (TOKEN, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(archive, "PAUSES_S", (0.0, 0.0))


# ---- Orthanc ------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@contextmanager
def orthanc(root: Path, **settings: object) -> Iterator[str]:
    """Run Orthanc with its storage below a folder; gives the URL of its DICOMweb service."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("no Orthanc with DICOMweb here (Debian: apt-get install orthanc orthanc-dicomweb)")
    port = free_port()
    chosen = {
        "StorageDirectory": str(root / "storage"),
        "IndexDirectory": str(root / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (root / "orthanc.json").write_text(json.dumps(chosen | settings))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([program, str(root / "orthanc.json")], stdout=log, stderr=log, cwd=root)
    try:
        _await(process, port, root / "log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.kill()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/system", timeout=5):
                return
        except OSError as error:
            if getattr(error, "code", None) == 401:
                return
            time.sleep(0.05)
    raise RuntimeError(f"Orthanc did not start: {log.read_text(errors='replace')[-500:]}")


def put(url: str, *paths: Path) -> None:
    """Store files by STOW-RS, without a line of ours."""
    for path in paths:
        head = {"Content-Type": f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'}
        assert requests.post(f"{url}/studies", data=multipart([path.read_bytes()]), headers=head, timeout=60).ok


def multipart(parts: list[bytes], *, end: bytes = b"--\r\n") -> bytes:
    mark = f"--{BOUNDARY}".encode()
    return (
        b"".join(mark + b"\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts) + mark + end
    )


# ---- a server that does whatever it is told -----------------------------------------------------
Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """A request to the server, which an `Answer` answers."""

    protocol_version = "HTTP/1.1"
    answer: Answer
    seen: list[Request]
    read: bool

    def do_GET(self) -> None:
        """Note the request and answer it."""
        self.seen.append(self)
        self.left = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(self.left) if self.read else b""
        self.close_connection = True
        type(self).answer(self)

    do_POST = do_GET  # noqa: N815 - http.server asks for that name

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def say(self, status: int, body: bytes = b"", kind: str = "application/dicom+json", **headers: str) -> None:
        """Answer with a body."""
        self.send_response(status)
        said = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        for name, value in said.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def say_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON."""
        self.say(status, json.dumps(value).encode())

    def say_parts(self, *parts: bytes, **how: bytes) -> None:
        """Answer with instances."""
        self.say(200, multipart(list(parts), **how), MULTIPART)

    def say_endlessly(self, piece: bytes, pause_s: float = 0, kind: str = "application/dicom+json") -> None:
        """Answer until the other side has had enough."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        try:
            while not self.server.ended.wait(pause_s):
                self.wfile.write(piece)
        except OSError:
            pass

    @property
    def is_search(self) -> bool:
        """Return whether it asks for a list."""
        return "multipart" not in self.headers.get("Accept", "") and self.command == "GET"


MULTIPART = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'


@contextmanager
def serving(answer: Answer, *, read: bool = True) -> Iterator[tuple[str, list[Request]]]:
    """Run the server on a loopback port; gives its URL and the requests that it saw, with their bodies if `read`."""
    seen: list[Request] = []
    kind = type("Handler", (Request,), {"answer": staticmethod(answer), "seen": seen, "read": read})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads, server.ended = True, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", seen
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
