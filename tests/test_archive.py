"""An archive is asked with care: credentials, redirections, limits, and what is told of its faults."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import ThreadingHTTPServer

import pytest
from archives import Request, forget_the_user, free_port, serving

from ich_seq import UsageError, archive
from ich_seq.archive import TOKEN, Archive, Fault, checked_url

SECRET = "Haemorrhagicus"


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    """The same for whoever runs the tests."""
    forget_the_user(monkeypatch, tmp_path)


def get(one, **how):
    """Ask for a list, as anybody would."""
    return one.search(one.client.search_for_studies, **how)


def fault_of(url, **how):
    with pytest.raises(Fault) as caught:
        get(Archive(url), **how)
    return caught.value


# ---- URLs and credentials -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "url",
    [
        "pacs.example/dicom-web",
        "ftp://pacs.example",
        "https://",
        "https://:443/x",
        "https://pacs.example:port",
        "https://pacs.example:0",
        "https://pacs.example/x?token=1",
        "https://pacs.example/x#y",
        "https://pacs.example/a b",
        "https://pacs.example/\n",
        "https://pàcs.example/",
        "https://[::1/",
        "",
    ],
)
def test_what_is_no_url_of_an_archive_is_refused(url):
    """With an example of one, and what it may begin with."""
    with pytest.raises(UsageError, match=r"is like https://pacs\.example/dicom-web: http or https"):
        checked_url(url)


@pytest.mark.parametrize("user", ["me:hush", "me", ":hush", "%40:x"])
def test_a_password_in_a_url_is_refused_and_not_repeated(user):
    """Every user of the machine could read it in the list of processes."""
    with pytest.raises(UsageError) as caught:
        checked_url(f"https://{user}@pacs.example/dicom-web")
    assert "netrc" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "me" not in str(caught.value).split()


def test_a_slash_at_the_end_is_no_matter():
    """Paths are put behind it."""
    assert checked_url("https://pacs.example/dicom-web//") == "https://pacs.example/dicom-web"


@pytest.mark.parametrize("kind", ["token", "netrc"])
def test_credentials_go_to_no_other_machine_unencrypted(kind, monkeypatch, tmp_path):
    """To this machine they may, as a tunnel begins here; where none are set, http may be used."""
    assert checked_url("http://pacs.example/dicom-web")
    if kind == "token":
        monkeypatch.setenv(TOKEN, "abc")
    else:
        (tmp_path / "netrc").write_text("machine pacs.example login me password hush\n")
    with pytest.raises(UsageError, match="unencrypted"):
        checked_url("http://pacs.example/dicom-web")
    for url in ("https://pacs.example", "http://127.0.0.1:8042", "http://localhost:8042", "http://[::1]:8042"):
        assert checked_url(url)


def test_a_token_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch):
    """A line feed in it would begin another header."""
    monkeypatch.setenv(TOKEN, "abc\ndef")
    with pytest.raises(UsageError, match="is no token") as caught:
        Archive("https://pacs.example")
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("given", ["token", "netrc", "both", "none"])
def test_a_token_goes_before_a_netrc(given, monkeypatch, tmp_path):
    """And without either nothing is said."""
    if given in ("token", "both"):
        monkeypatch.setenv(TOKEN, "abc")
    if given in ("netrc", "both"):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
    basic = "Basic " + base64.b64encode(b"me:hush").decode()
    with serving(lambda r: r.say_json([])) as (url, seen):
        assert get(Archive(url)) == []
    assert seen[0].headers["Authorization"] == {"none": None, "netrc": basic}.get(given, "Bearer abc")


def test_a_redirection_is_not_followed(monkeypatch):
    """Neither elsewhere nor in place: no request and no credentials reach where it leads."""
    monkeypatch.setenv(TOKEN, "abc")
    with serving(lambda r: r.say_json([])) as (elsewhere, reached):
        for status in (301, 302, 303, 307, 308):
            with serving(lambda r, s=status: r.say(s, Location=f"{elsewhere}/{SECRET}")) as (url, _):
                fault = fault_of(url)
            assert "a redirection, which is not followed" in str(fault)
            assert SECRET not in str(fault)
    assert reached == []


def test_a_proxy_is_not_asked_for_what_is_on_this_machine(monkeypatch):
    """Credentials for a tunnel would leave the machine by it."""
    with serving(lambda r: r.say_json([])) as (proxy, reached), serving(lambda r: r.say_json([])) as (url, seen):
        monkeypatch.setenv("http_proxy", proxy.removesuffix("/dicom-web"))
        assert get(Archive(url)) == []
    assert (len(seen), reached) == (1, [])


# ---- what is told of faults ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "told", "extent", "requests"),
    [
        (401, TOKEN, "archive", 1),
        (403, "ask whoever runs it", "answer", 1),
        (404, "does not have it", "answer", 1),
        (410, "does not have it", "answer", 1),
        (400, "refuses (HTTP 400)", "answer", 1),
        (429, "fails (HTTP 429)", "unsure", 3),
        (500, "fails (HTTP 500)", "unsure", 3),
        (503, "fails (HTTP 503)", "unsure", 3),
        (501, "refuses (HTTP 501)", "answer", 1),
    ],
)
def test_each_status_has_its_sentence_and_what_may_pass_is_asked_again(status, told, extent, requests):
    """Three times in all, whatever Retry-After says; nothing of the answer's own words is repeated."""
    answer = lambda r: r.say(status, f"{SECRET}^Testudo".encode(), "text/plain", Retry_After="86400", Warning=SECRET)  # noqa: E731
    with serving(answer) as (url, seen):
        fault = fault_of(url)
    assert told in str(fault)
    assert url.split("/")[2] in str(fault)
    assert SECRET not in str(fault)
    assert (fault.extent, fault.unknown, fault.exit_code) == (extent, status in (404, 410), 6)
    assert len(seen) == requests


def test_a_fault_that_passes_is_none():
    """The second answer is as good as a first one."""
    with serving(lambda r: r.say_json([]) if len(r.seen) > 1 else r.say(503)) as (url, seen):
        assert get(Archive(url)) == []
    assert len(seen) == 2


def test_an_archive_that_is_not_there_is_told_of():
    """In the system's words."""
    fault = fault_of(f"http://127.0.0.1:{free_port()}/dicom-web")
    assert "cannot be reached (Connection refused)" in str(fault)
    assert fault.extent == "archive"


def test_a_name_that_nobody_knows_is_told_of(monkeypatch):
    """As the resolver says."""

    def resolve(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    fault = fault_of("http://pacs.invalid/dicom-web")
    assert "pacs.invalid cannot be reached (Name or service not known)" in str(fault)


def test_a_connection_that_breaks_is_told_of():
    """Before there was an answer, after the headers, and in the midst of a list."""

    def half(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b'[{"')

    for answer in (lambda r: None, half):
        with serving(answer) as (url, seen):
            fault = fault_of(url)
        assert "breaks off" in str(fault)
        assert fault.extent == "unsure"
        assert len(seen) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"<html>Haemorrhagicus</html>",
        b'"Haemorrhagicus"',
        b"7",
        b"null",
        b"[" * 100_000,
        b"[" + b"9" * 5000 + b"]",
    ],
    ids=lambda b: b[:9].decode() or "nothing",
)
def test_what_is_no_list_is_told_of(body):
    """Of nothing at all a list is made: it is how archives say that there is nothing."""
    with serving(lambda r: r.say(200, body)) as (url, _):
        if not body:
            assert get(Archive(url)) == []
            return
        fault = fault_of(url)
    assert "answers with no list" in str(fault)
    assert SECRET not in str(fault)


def test_a_compressed_answer_is_not_inflated():
    """It was not asked for, and a thousand bytes could become a million."""
    with serving(lambda r: r.say(200, b"\x1f\x8b", Content_Encoding="gzip")) as (url, seen):
        assert "a compressed answer" in str(fault_of(url))
    assert seen[0].headers["Accept-Encoding"] == "identity"


def test_a_list_without_end_is_not_read_to_its_end(monkeypatch):
    """No more than the limit is held."""
    monkeypatch.setattr(archive, "MAX_ANSWER_BYTES", 1 << 20)
    with serving(lambda r: r.say_endlessly(b"[" * 65536)) as (url, _):
        assert "more than 1048576 bytes" in str(fault_of(url))


def hang(request):
    request.server.ended.wait()


def trickle(request):
    request.say_endlessly(b"[", pause_s=0.02)


def trickle_headers(request):
    """A header letter by letter: each is in time, and all of them never."""
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    try:
        while not request.server.ended.wait(0.02):
            request.wfile.write(b"x")
    except OSError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("answer", [hang, trickle, trickle_headers])
def test_an_archive_that_makes_us_wait_is_not_waited_for(answer, monkeypatch):
    """Silent, or so slow that it might as well be; it is not asked again."""
    monkeypatch.setattr(archive, "SILENCE_S", 0.4)
    began = time.monotonic()
    with serving(answer) as (url, seen):
        fault = fault_of(url)
    assert "does not get on" in str(fault) or "breaks off" in str(fault)
    assert fault.extent == "unsure"
    assert time.monotonic() - began < 10
    assert len(seen) <= 3


def test_a_lost_archive_is_not_asked_any_more():
    """The first fault that concerns all is the last question."""
    with serving(lambda r: r.say(401)) as (url, seen):
        one = Archive(url)
        for told in ("wants other credentials", "Not asked for any more: The archive at"):
            with pytest.raises(Fault, match=told):
                get(one)
    assert len(seen) == 1


def test_one_success_forgives_the_faults_before_it():
    """Three unsure faults in a row mean that it is lost; two, and two more after a success, do not."""
    now = [200]
    with serving(lambda r: r.say_json([], now[0])) as (url, seen):
        one, outcomes = Archive(url), []
        for now[0] in (500, 500, 200, 500, 500, 404, 500, 500, 500, 200):
            try:
                outcomes.append(get(one))
            except Fault as fault:
                outcomes.append("lost" if "Not asked" in str(fault) else fault.status)
    assert outcomes == [500, 500, [], 500, 500, 404, 500, 500, 500, "lost"]
    assert len(seen) == 3 * 7 + 2


def test_its_warnings_are_not_printed(capfd):
    """dicomweb-client logs what a server says in the header Warning."""
    with serving(lambda r: r.say(200, b"[]", Warning=f"299 {SECRET}")) as (url, _):
        assert get(Archive(url)) == []
    assert SECRET not in "".join(capfd.readouterr())


# ---- TLS ----------------------------------------------------------------------------------------
@pytest.fixture
def https(tmp_path):
    """A server with a certificate that it signed itself; gives its URL and the certificate's file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    kind = type("Handler", (Request,), {"answer": staticmethod(lambda r: r.say_json([])), "seen": [], "read": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # who does not trust us hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"https://localhost:{server.server_port}/dicom-web", certificate
    server.shutdown()
    server.server_close()


def test_a_certificate_of_nobody_we_trust_is_refused_until_it_is_named(https, monkeypatch):
    """With the remedy, which works."""
    url, certificate = https
    fault = fault_of(url)
    assert "self-signed certificate" in str(fault)
    assert "REQUESTS_CA_BUNDLE" in str(fault)
    assert fault.extent == "archive"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert get(Archive(url)) == []


def test_a_certificate_of_another_host_is_refused(https, monkeypatch):
    """Trusted as it is, it was made for localhost."""
    url, certificate = https
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert "not valid for '127.0.0.1'" in str(fault_of(url.replace("localhost", "127.0.0.1")))
