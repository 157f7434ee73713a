"""Studies from an archive and results to it, by DICOMweb (PS3.18): QIDO-RS, WADO-RS, STOW-RS.

Searches are dicomweb-client's. Instances travel as the bytes that they are: it would parse and hold each of them, write
it anew, and say nothing of those that an archive took with reservations.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from requests import Response

from ich_seq.archive import CHUNK_BYTES, GONE, NOT_FOUND, Archive, Fault, Unusable
from ich_seq.dicom import read_headers
from ich_seq.dicom_files import MAX_FILE_BYTES
from ich_seq.elements import UID_FORM
from ich_seq.files import PARTIAL, read_whole, remove_folder, sha256_bytes, short_hash, writing
from ich_seq.multipart import Multipart, boundary_of
from ich_seq.patience import Advance
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Reason, Unused

FETCHED = f"fetched{PARTIAL}"
"""The folder inside --out that holds what was fetched, for the time of a run; the next run clears away what is left."""

MAX_STUDY_BYTES = 8 << 30
"""Four perfusion series; a head has 20 MB to 1 GB."""

MAX_INSTANCES = 20_000
MAX_SERIES = 1000
"""A list of so many may lack others; the study is then fetched as a whole."""

PAGE = 500
"""Studies asked for at once; archives may give fewer."""

AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
AS_EVER = 'multipart/related; type="application/dicom"'
"""What an archive that does not know the former is asked for; it may recode the pixels."""

OK, UNACCEPTABLE = 200, (400, 406, 415)

MODALITY, MODALITIES, STUDY_UID, SERIES_UID = "00080060", "00080061", "0020000D", "0020000E"
STUDY_INSTANCES, SERIES_INSTANCES = "00201208", "00201209"
FAILED, STORED_SOPS, FAILURE = "00081198", "00081199", "00081197"

REASONS = {
    0x0110: "it failed in processing",
    0x0111: "it has another instance of this UID",
    0x0122: "it does not take this SOP class",
    0x0124: "this account may not store",
    0xA700: "it has no space left",
    0xA900: "the data set does not match its SOP class",
    0xC000: "it cannot understand the data set",
    0xC122: "it does not take this transfer syntax",
}
"""Failure Reason (0008,1197), after PS3.4 and PS3.18; A700, A900 and C000 stand for all that begin as they do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedStudy:
    """A study of an archive, and how many instances it has there, None if it does not say."""

    study_uid: str
    instances: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What became of files that were sent: those that the archive said it had stored, and why it has not the others.

    `lost` tells that the latter may be for want of an archive: nobody answered, or it failed.
    """

    stored: tuple[Path, ...]
    refused: tuple[tuple[Path, str], ...]
    lost: bool


# ---- QIDO-RS ------------------------------------------------------------------------------------
def list_studies(
    url: str, *, modality: str = "CT", since: date | None = None, most: int = 10_000
) -> tuple[ListedStudy, ...]:
    """List the studies of an archive that hold a modality, each once, in its order.

    `since` leaves out those of an earlier Study Date, and those without, as far as the archive does. What it leaves
    unsaid of a study is no reason to leave it out, but a Study Instance UID is needed. Raises ArchiveError if there is
    no answer, or a list that goes on after `most` studies, of whatever modality; UsageError for an URL that
    `archive.checked_url` refuses.
    """
    archive, seen, found = Archive(url), set[str](), list[ListedStudy]()
    filters = {"ModalitiesInStudy": modality} | ({"StudyDate": f"{since:%Y%m%d}-"} if since else {})
    fields = ["ModalitiesInStudy", "NumberOfStudyRelatedInstances"]
    ask = partial(archive.search, archive.client.search_for_studies, limit=PAGE, fields=fields, search_filters=filters)
    offset = 0
    while len(seen) <= most:
        page = ask(offset=offset)
        new = [entry for entry in page if (uid := _uid(entry, STUDY_UID)) and uid not in seen]
        if not new:  # the end, or an archive that knows no offset and begins again
            return tuple({study.study_uid: study for study in found}.values())
        seen |= {_uid(entry, STUDY_UID) for entry in new}
        found += [_listed(entry) for entry in new if modality in (_values(entry, MODALITIES) or [modality])]
        offset += len(page)
    raise archive.fault(f"lists more than {most:,} studies; ask for fewer days, or for studies by their UIDs")


def count_ct(url: str, study: ListedStudy) -> int | None:
    """Return how many instances the CT series of a study have, those of the study if that is not told.

    Raises ArchiveError if the archive is gone, UsageError for an URL that `archive.checked_url` refuses.
    """
    series = _ct_series(Archive(url), study.study_uid)
    known = [] if series is None else [count for count in series.values() if count is not None]
    return study.instances if series is None or len(known) < len(series) else sum(known)


def _listed(entry: Any) -> ListedStudy:
    return ListedStudy(study_uid=_uid(entry, STUDY_UID), instances=_count(entry, STUDY_INSTANCES))


def _values(entry: Any, tag: str) -> list[str]:
    """Return the plain values of an element of DICOM JSON, none if it is absent or anything else."""
    element = entry.get(tag) if isinstance(entry, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return [str(v).strip() for v in values if isinstance(v, str | int)] if isinstance(values, list) else []


def _uid(entry: Any, tag: str) -> str:
    """Return an identifier that can stand in a URL or a table, or nothing."""
    value = next(iter(_values(entry, tag)), "")
    return value if UID_FORM.fullmatch(value) else ""


def _count(entry: Any, tag: str) -> int | None:
    value = next(iter(_values(entry, tag)), "")
    return int(value) if value.isdecimal() and len(value) < len(str(1 << 31)) else None


# ---- WADO-RS ------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """Where studies were fetched to, and what was not, by the name that reports give it."""

    folder: Path
    unused: tuple[Unused, ...]


@contextmanager
def fetched(
    url: str,
    study_uids: Iterable[str],
    out: Path,
    *,
    one_by_one: bool = False,
    called: Callable[[str], str] = str,
    progress: Progress = silent,
) -> Iterator[Fetched]:
    """Fetch studies into a folder inside `out` that only this user can enter, for as long as the block runs.

    Of each study its CT series, as far as the archive lists series and their modalities, else all. A study comes whole
    or not at all: one that the archive does not have, refuses, or does not send to the end is in `unused`, and so is an
    instance of another study, or of more than MAX_FILE_BYTES. An instance is known by its content: its file has the
    same name and time whenever it is fetched. `called` makes of a path below the folder the name for reports, as that
    of `inputs.list_inputs` does. `out` is to be held by `files.locked_folder`. Raises ArchiveError if no study could be
    had for another reason than that the archive has none of them (asked for `one_by_one`: but for what is of this study
    alone), UsageError for an URL that `archive.checked_url` refuses, OutputError if `out` cannot be written.
    """
    archive, folder, uids = Archive(url), out / FETCHED, tuple(dict.fromkeys(study_uids))
    with writing(folder):
        folder.mkdir(mode=0o700)
    try:
        unused = _fetch_all(archive, uids, folder, one_by_one, progress)
        yield Fetched(folder=folder, unused=tuple(replace(one, file=called(one.file)) for one in unused))
    finally:
        remove_folder(folder)


def _fetch_all(
    archive: Archive, uids: Sequence[str], folder: Path, one_by_one: bool, progress: Progress
) -> list[Unused]:
    unused, faults = list[Unused](), list[Fault]()
    for done, uid in enumerate(uids, start=1):
        try:
            unused += _fetch_study(archive, uid, folder / short_hash(uid))
        except Fault as fault:
            shutil.rmtree(folder / short_hash(uid), ignore_errors=True)
            unused.append(Unused(short_hash(uid), Reason.NOT_FETCHED, str(fault), uid))
            faults.append(fault)
        progress("fetching studies", done, len(uids))
    grave = [fault for fault in faults if not (fault.unknown or (one_by_one and fault.extent == "answer"))]
    if grave and len(faults) == len(uids):
        raise grave[0]
    return unused


def _fetch_study(archive: Archive, uid: str, folder: Path) -> list[Unused]:
    series = _ct_series(archive, uid)
    if series is not None and not series:
        return [Unused(folder.name, Reason.NOT_CT, "The archive lists no CT series of this study.", uid)]
    with writing(folder):
        folder.mkdir()
    delivery = _Delivery(archive, uid, folder)
    for series_uid, expected in ({"": None} if series is None else series).items():
        delivery.unused += archive.ask(partial(delivery.take, series_uid, expected))
    if not delivery.arrived:
        delivery.unused.append(Unused(folder.name, Reason.NOT_FETCHED, "The archive sent no instance of it.", uid))
    return delivery.unused


def _ct_series(archive: Archive, uid: str) -> dict[str, int | None] | None:
    """Return a study's CT series, each with the number of its instances; None: to be had as a whole only."""
    fields = ["Modality", "NumberOfSeriesRelatedInstances"]
    search = archive.client.search_for_series
    try:
        listed = archive.search(search, study_instance_uid=uid, limit=MAX_SERIES, fields=fields)
    except Fault as fault:
        if fault.extent == "archive":
            raise
        return None
    if not 0 < len(listed) < MAX_SERIES or not all(_uid(entry, SERIES_UID) for entry in listed):
        return None
    ct = [entry for entry in listed if "CT" in (_values(entry, MODALITY) or ["CT"])]
    return {_uid(entry, SERIES_UID): _count(entry, SERIES_INSTANCES) for entry in ct}


class _Delivery:
    """A study on its way into a folder: what has arrived, what of it is of no use, and how much more may come."""

    def __init__(self, archive: Archive, uid: str, folder: Path) -> None:
        self._archive, self._uid, self._folder = archive, uid, folder
        self._bytes_left = MAX_STUDY_BYTES
        self.arrived, self.unused = 0, list[Unused]()

    def take(self, series: str, expected: int | None, advance: Advance) -> list[Unused]:
        """Fetch a series, or the whole study; return what of it is of no use. Nothing stays if it ends too early."""
        bytes_left = self._bytes_left
        with writing(self._folder):
            arriving = Path(mkdtemp(dir=self._folder))  # whoever was given up may still be at work in an older one
        place = self._folder / short_hash(series)
        try:
            received, unused = self._receive(series, arriving, f"{self._folder.name}/{place.name}", advance)
            with writing(place):
                arriving.rename(place)
        except BaseException:
            self._bytes_left = bytes_left  # of what came nothing stays
            shutil.rmtree(arriving, ignore_errors=True)
            raise
        self.arrived += received
        if expected is not None and received < expected:
            detail = f"The archive lists {expected} instances of a series and sent {received}; fetch it again later."
            unused.append(Unused(f"{self._folder.name}/{place.name}", Reason.NOT_FETCHED, detail, self._uid))
        return unused

    def _receive(self, series: str, arriving: Path, shown: str, advance: Advance) -> tuple[int, list[Unused]]:
        unused, names = list[Unused](), Counter[str]()
        address = f"{self._archive.url}/studies/{self._uid}" + (f"/series/{series}" if series else "")
        with _instances(self._archive, address) as response:
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            for part in Multipart(self._counted(response, advance), boundary):
                if names.total() + self.arrived >= MAX_INSTANCES:
                    raise Unusable(f"more than {MAX_INSTANCES} instances")
                path, size = _keep(part, arriving, names)
                if trouble := _trouble(path, size, self._uid):
                    unused.append(Unused(f"{shown}/{path.name}", *trouble, self._uid))
                    path.unlink()
        return names.total(), unused

    def _counted(self, response: Response, advance: Advance) -> Iterator[bytes]:
        for chunk in response.iter_content(CHUNK_BYTES):
            self._bytes_left -= len(chunk)
            if self._bytes_left < 0:
                raise Unusable(f"more than {MAX_STUDY_BYTES} bytes of a study")
            advance(len(chunk))
            yield chunk


def _instances(archive: Archive, address: str) -> Response:
    """Ask for the instances below an address, encoded as they are stored if the archive knows how to say that."""
    for accept in (AS_STORED, AS_EVER):
        response = archive.session.get(address, headers={"Accept": accept}, stream=True)
        if response.status_code == OK:
            return response
        response.close()
        if response.status_code not in UNACCEPTABLE:
            break
    response.raise_for_status()
    raise Unusable(f"HTTP {response.status_code}")


def _keep(part: Iterator[bytes], folder: Path, names: Counter[str]) -> tuple[Path, int]:
    """Write an instance to a file that is called by its content; return it and the size of what came, in bytes."""
    arriving = folder / "arriving"
    sha256, size = _write_pieces(part, arriving)
    name = sha256[:16]
    path = folder / (f"{name}-{names[name]}.dcm" if names[name] else f"{name}.dcm")
    names[name] += 1
    content_ns = int(name[:12], 16)  # what resumes by size and time knows it again, and only it
    with writing(path):
        arriving.rename(path)
        os.utime(path, ns=(content_ns, content_ns))
    return path, size


def _write_pieces(part: Iterator[bytes], path: Path) -> tuple[str, int]:
    """Write what comes, up to MAX_FILE_BYTES; return SHA-256 and size of all of it."""
    digest, size = hashlib.sha256(), 0
    with writing(path):
        file = path.open("wb")
    try:
        for piece in part:  # whose own errors are the archive's, though some are OSErrors too
            digest.update(piece)
            size += len(piece)
            if size <= MAX_FILE_BYTES:
                with writing(path):
                    file.write(piece)
        with writing(path):
            file.close()
    except BaseException:
        with suppress(OSError):
            file.close()
        raise
    return digest.hexdigest(), size


def _trouble(path: Path, size: int, uid: str) -> tuple[Reason, str] | None:
    """Return why an instance is not to be used, as far as its transfer tells; its header is judged with all others."""
    if size > MAX_FILE_BYTES:
        return Reason.TOO_LARGE, f"{size} bytes; a slice has at most {MAX_FILE_BYTES}."
    if {one.study_uid for one in read_headers(path, path.name)} - {"", uid}:
        return Reason.WRONG_STUDY, "The archive sent an instance of another study than was asked for."
    return None


# ---- STOW-RS ------------------------------------------------------------------------------------
def send(url: str, paths: Iterable[Path]) -> Sent:
    """Store DICOM files in an archive, one by one, each as it is; one that it refuses does not keep back the others.

    A file counts as stored only if the archive says so of it. To send one again does no harm: it is the same instance.
    Raises UsageError for an URL that `archive.checked_url` refuses; all else is told of each file.
    """
    archive, stored, refused, lost = Archive(url), list[Path](), list[tuple[Path, str]](), False
    for path in paths:
        try:
            archive.ask(partial(_store, archive, read_whole(path, MAX_FILE_BYTES)))
            stored.append(path)
        except Fault as fault:
            refused.append((path, str(fault)))
            lost = lost or fault.extent != "answer"
        except OSError as error:
            refused.append((path, f"The file cannot be read: {error.strerror}."))
    return Sent(stored=tuple(stored), refused=tuple(refused), lost=lost)


class _Upload:
    """Bytes to send, of a known length, that tell how they get on."""

    def __init__(self, data: bytes, advance: Advance) -> None:
        self._data, self._advance = data, advance

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), CHUNK_BYTES):
            yield self._data[start : start + CHUNK_BYTES]
            self._advance(CHUNK_BYTES)


def _store(archive: Archive, instance: bytes, advance: Advance) -> None:
    boundary = sha256_bytes(instance)  # which it cannot hold
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    response = archive.session.post(
        f"{archive.url}/studies",
        data=_Upload(b"".join([head, instance, f"\r\n--{boundary}--\r\n".encode()]), advance),
        headers={"Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}'},
    )
    answer = _answer(response)
    if failed := _items(answer, FAILED):
        raise archive.fault(f"did not store it: {_reason(failed[0])}", status=response.status_code)
    if response.status_code in (NOT_FOUND, GONE):
        told = f"takes no results at this URL (HTTP {response.status_code}); look at it"
        raise archive.fault(told, status=response.status_code)
    response.raise_for_status()
    if not _items(answer, STORED_SOPS):
        raise archive.fault("does not say that it stored it", status=response.status_code)


def _answer(response: Response) -> Any:
    with suppress(ValueError, RecursionError):
        answer = response.json()
        return answer[0] if isinstance(answer, list) and answer else answer
    return None


def _items(entry: Any, tag: str) -> list[Any]:
    """Return the items of a sequence of DICOM JSON."""
    element = entry.get(tag) if isinstance(entry, dict) else None
    items = element.get("Value") if isinstance(element, dict) else None
    return items if isinstance(items, list) else []


def _reason(failed: Any) -> str:
    code = _count(failed, FAILURE)
    if code is None:
        return "it does not say why"
    words = next((REASONS[c] for c in (code, code & 0xFF00, code & 0xF000) if c in REASONS), "which it knows to mean")
    return f"{words} (reason {code:04X})"
