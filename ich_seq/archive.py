"""One DICOMweb archive, asked with care: it may be slow, wrong or hostile.

No answer makes us wait without end or fills the memory, no redirection leads a request or its credentials elsewhere,
and nothing that an archive writes is shown to anybody: it may hold text of patients.

    archive   nothing else can be had of it: no connection, no trusted certificate, no valid credentials
    unsure    it may be so: silence, HTTP 5xx, a message cut short; three in a row are taken for it
    answer    about what was asked for alone
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from ich_seq import ArchiveError, UsageError
from ich_seq.multipart import MultipartError
from ich_seq.patience import Advance, Stalled, patiently

try:
    import requests
    from dicomweb_client import DICOMwebClient
    from requests.adapters import HTTPAdapter
    from requests.auth import AuthBase
    from requests.utils import get_netrc_auth
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
except ImportError as error:
    raise UsageError("DICOMweb needs dicomweb-client, which is not installed: pip install 'ich-seq[pacs]'.") from error

TOKEN = "ICH_SEQ_DICOMWEB_TOKEN"
"""The environment variable of a bearer token; names and passwords stand in the user's netrc."""

CONNECT_S = 10.0
SILENCE_S = 60.0
"""An archive may take so long to begin, or between two bytes."""

LEAST_BYTES = 1 << 16
"""Of an answer, in each SILENCE_S: a modem was faster; only what ends within the time may be shorter."""

PAUSES_S = (1.0, 4.0)
"""Before it is asked once more, and for the last time, after a fault that may pass."""

UNSURE_IN_A_ROW = 3
MAX_ANSWER_BYTES = 1 << 25
"""Of a list: ten thousand studies with all that an archive likes to tell of them."""

CHUNK_BYTES = 1 << 16

UNAUTHORISED, FORBIDDEN, NOT_FOUND, GONE, TOO_MANY, NOT_IMPLEMENTED = 401, 403, 404, 410, 429, 501
Extent = Literal["archive", "unsure", "answer"]
Result = TypeVar("Result")

logging.getLogger("dicomweb_client").addHandler(logging.NullHandler())  # else its warnings quote the archive on stderr


class Fault(ArchiveError):  # noqa: N818 - a verdict on an exchange
    """What an archive did not do. `extent` says what else is not to be had of it, `passing` that it may be asked again.

    `status` is that of HTTP, 0 where there was none.
    """

    def __init__(self, told: str, *, extent: Extent, passing: bool = False, status: int = 0) -> None:
        super().__init__(told)
        self.extent, self.passing, self.status = extent, passing, status

    @property
    def unknown(self) -> bool:
        """Return whether the archive says that there is no such thing."""
        return self.status in (NOT_FOUND, GONE)


class Unusable(requests.RequestException):
    """An answer that is not taken; the text says why, in words of ours."""


class Archive:
    """A DICOMweb service at a URL that `checked_url` takes; `session` is for requests, `client` for searches.

    Both are to be used within `ask` alone.
    """

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        self.host = urlsplit(self.url).netloc
        self.session = _session()
        self.client = DICOMwebClient(self.url, session=self.session, permissive_uid=True)  # RSNA's UIDs are none
        self.client.set_http_retry_params(retry=False)  # its own would take a signal for a fault and go on
        self._lost, self._unsure = "", 0

    def ask(self, work: Callable[[Advance], Result]) -> Result:
        """Return what an exchange returns, tried again if a fault may pass.

        `work` is given what it calls with the number of bytes that came. Raises Fault for whatever goes wrong, without
        asking if the archive is lost.
        """
        if self._lost:
            raise Fault(f"Not asked for any more: {self._lost}", extent="archive")
        pauses = iter(PAUSES_S)
        while True:
            try:
                result = self._ask_once(work)
            except Fault as fault:
                pause = next(pauses, None)
                if pause is None or not fault.passing:
                    self._judge(fault)
                    raise
                time.sleep(pause)
            else:
                self._unsure = 0
                return result

    def _judge(self, fault: Fault) -> None:
        self._unsure = self._unsure + 1 if fault.extent == "unsure" else 0
        if fault.extent == "archive" or self._unsure >= UNSURE_IN_A_ROW:
            self._lost = str(fault)

    def _ask_once(self, work: Callable[[Advance], Result]) -> Result:
        try:
            return patiently(work, least=LEAST_BYTES, every_s=SILENCE_S)
        except Stalled:
            raise self.fault(f"does not get on: less than {LEAST_BYTES} bytes in {SILENCE_S:g} s", "unsure") from None
        except MultipartError as error:
            raise self.fault(f"answers with what is not to be used: {error}", "unsure", passing=True) from None
        except requests.RequestException as error:
            if isinstance(error, requests.HTTPError) and error.response is not None:
                raise self._status_fault(error.response.status_code) from None
            raise self._broken(error) from None

    def fault(self, told: str, extent: Extent = "answer", *, passing: bool = False, status: int = 0) -> Fault:
        """Return what to raise for something that this archive did."""
        told = f"The archive at {self.host} {told}."
        return Fault(told, extent=extent, passing=passing, status=status)

    def _status_fault(self, status: int) -> Fault:
        say = functools.partial(self.fault, status=status)
        if status == UNAUTHORISED:
            remedy = f"set {TOKEN} to a valid token, or put name and password into ~/.netrc"
            return say(f"wants other credentials (HTTP 401); {remedy}", "archive")
        if status == FORBIDDEN:
            return say("does not allow it (HTTP 403); ask whoever runs it to allow this account")
        if status in (NOT_FOUND, GONE):
            return say(f"does not have it (HTTP {status}); look at the URL, and at the UID")
        if status == TOO_MANY or (status >= 500 and status != NOT_IMPLEMENTED):
            return say(f"fails (HTTP {status})", "unsure", passing=True)
        return say(f"refuses (HTTP {status})")

    def _broken(self, error: requests.RequestException) -> Fault:
        """Return what is told of an exchange without an answer: in the system's words, none of the archive's."""
        if isinstance(error, requests.exceptions.SSLError):
            remedy = "REQUESTS_CA_BUNDLE names a file of authorities to trust"
            return self.fault(f"has no certificate that is trusted ({_words(error)}); {remedy}", "archive")
        if isinstance(getattr(error.args[0] if error.args else None, "reason", None), _UNREACHED):
            return self.fault(f"cannot be reached ({_words(error)}); look at URL and network", "archive", passing=True)
        if isinstance(error, requests.Timeout | requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return self.fault(f"breaks off ({_words(error)})", "unsure", passing=True)
        return self.fault(f"answers with what is not to be used ({_words(error)})")

    def search(self, what: Callable[..., Any], **query: Any) -> list[Any]:
        """Return the list that one of the client's searches gives. Raises Fault, also for what is no list of JSON."""

        def work(_: Advance) -> Any:
            try:
                return what(**query)
            except Exception as error:  # whatever a parser makes of hostile bytes is a verdict on this answer
                if isinstance(error, requests.RequestException) and not isinstance(error, requests.JSONDecodeError):
                    raise
                raise self.fault(f"answers with no list ({type(error).__name__})") from None

        found = self.ask(work)
        if not isinstance(found, list):
            raise self.fault(f"answers with no list ({type(found).__name__})")
        return found


_UNREACHED = (NewConnectionError, ConnectTimeoutError)


def checked_url(url: str) -> str:
    """Return the URL of a service without a slash at its end.

    Raises UsageError, without quoting it, if it is none, holds a name or password, which others would see in the list
    of processes, or if credentials that are set for it would go to another machine unencrypted.
    """
    try:
        parts = urlsplit(url)
        plain = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        plain = False
    if not plain or not url.isascii() or not url.isprintable() or " " in url or "?" in url or "#" in url:
        raise UsageError("The URL of an archive is like https://pacs.example/dicom-web: http or https, no ? and #.")
    if "@" in parts.netloc:
        raise UsageError(f"No name or password in the URL of an archive; set {TOKEN}, or use ~/.netrc.")
    if parts.scheme == "http" and not _is_this_machine(parts.hostname or "") and (_token() or get_netrc_auth(url)):
        raise UsageError(f"Credentials for {parts.netloc} would go unencrypted; give its https URL, or unset them.")
    return url.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError(f"{TOKEN} is no token: it holds what no header can.")
    return token


class _Bearer(AuthBase):
    """A token. Of `auth`, not of the headers: there a netrc would take its place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _session() -> requests.Session:
    session = requests.Session()
    session.auth = _Bearer(token) if (token := _token()) else None
    session.headers["Accept"] = "application/dicom+json"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Careful())
    return session


class _Careful(HTTPAdapter):
    """What sends requests: with limits on time, no redirection, no inflation, and a limit on what is read at once."""

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, *args: Any, **how: Any
    ) -> requests.Response:
        """Send a request. Raises Unusable for an answer that leads elsewhere or is compressed."""
        request.headers.pop("Host", None)  # dicomweb-client's has no port
        if _is_this_machine(urlsplit(str(request.url)).hostname or ""):
            how["proxies"] = {}  # by which credentials could leave it
        request.headers["Accept-Encoding"] = "identity"
        how["timeout"] = CONNECT_S, SILENCE_S
        response = super().send(request, stream, *args, **how)
        encoding = response.headers.get("Content-Encoding", "identity")
        if response.is_redirect or encoding.lower() != "identity":
            response.close()
            raise Unusable("a redirection, which is not followed" if response.is_redirect else "a compressed answer")
        if not stream:
            response.raw = _Bounded(response.raw)
        return response


class _Bounded:
    """The body of an answer that is read as a whole; of one that is too long no more than the limit is."""

    def __init__(self, raw: Any) -> None:
        self._raw, self.close, self.release_conn = raw, raw.close, raw.release_conn

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """Yield the body in pieces, as urllib3 does."""
        left = MAX_ANSWER_BYTES
        for chunk in self._raw.stream(CHUNK_BYTES, decode_content=decode_content):
            left -= len(chunk)
            if left < 0:
                self.close()
                raise Unusable(f"more than {MAX_ANSWER_BYTES} bytes")
            yield chunk


def _words(error: BaseException) -> str:
    """Return what the system, or we, say of an error; a library's own text can quote the other side."""
    if isinstance(error, Unusable):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        said = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None)
        if isinstance(said, str):
            return said
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
