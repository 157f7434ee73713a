"""Where studies arrive: a folder, or whatever can list studies and fetch one. The driver asks both in one way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ich_seq import IchSeqError, OutputError, UsageError
from ich_seq.arrivals import Arrivals, Stamp
from ich_seq.files import short_hash
from ich_seq.inputs import InputFile, identity_on_disk, list_inputs, walk
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Reason, Unused
from ich_seq.studies import read_headers

if TYPE_CHECKING:
    from ich_seq.dicomweb import Fetched

NamedFiles = list[InputFile | Unused]
"""Files, each with the name that it is reported by; and what is known not to have come, with the reason."""

UNTOLD = Stamp(-1, -1)
"""Of a link to nothing: its header, which cannot be read, says what is wrong."""

HEADERS_AT_ONCE = 1 << 15
"""Headers of a first look that are read before the next ones are asked for: what waits for it takes memory."""


class UnreachableError(UsageError):
    """What is watched, or sent to, cannot be reached, which may pass."""

    @classmethod
    def of(cls, refusal: IchSeqError) -> UnreachableError:
        """Return what a refusal comes to; it ends a command with the same code."""
        error = cls(str(refusal))
        error.exit_code = refusal.exit_code
        return error


class Source(Protocol):
    """Where studies arrive. `arrivals` says which are ready, `strays` which files belong to no study, and why."""

    arrivals: Arrivals

    @property
    def strays(self) -> Mapping[str, Unused]:
        """Return the files of no study by name."""

    def look(self, now: float) -> None:
        """See what is there. Raises UnreachableError, and forgets nothing then."""

    def files(self, study_uid: str, names: Iterable[str]) -> AbstractContextManager[NamedFiles]:
        """Give the files of a study, of these names, for as long as the block runs. Raises UnreachableError."""


class Folder:
    """A folder into which files are dropped: mixed, slowly, in any order. The header of each is read once.

    The folder `skip` is passed over; with `hide_names` files are reported by a hash of their path below `root`.
    `workers` processes read headers where there are many.
    """

    def __init__(
        self,
        root: Path,
        quiet_s: float,
        *,
        skip: Path | None = None,
        hide_names: bool = True,
        workers: int = 0,
        progress: Progress = silent,
    ) -> None:
        self.arrivals = Arrivals(quiet_s)
        self.strays: dict[str, Unused] = {}
        self._root, self._skip, self._workers, self._progress = root, skip, workers, progress
        self._shown = short_hash if hide_names else str

    def look(self, now: float) -> None:
        """See which files are there, and read the headers of those that are new or changed."""
        try:
            untold = self.arrivals.look(now, self._scanned())
        except OSError as error:
            raise UnreachableError(f"{self._root} cannot be read: {error.strerror}.") from error
        for name in [name for name in self.strays if name not in self.arrivals]:
            del self.strays[name]
        for start in range(0, len(untold), HEADERS_AT_ONCE):
            self._read(untold[start : start + HEADERS_AT_ONCE])
            if len(untold) >= HEADERS_AT_ONCE:
                self._progress("reading headers", min(start + HEADERS_AT_ONCE, len(untold)), len(untold))

    @contextmanager
    def files(self, study_uid: str, names: Iterable[str]) -> Iterator[NamedFiles]:
        """Give the files of a study where they lie."""
        yield [self._named(name) for name in names]

    def _read(self, untold: list[str]) -> None:
        """Read the headers of files and say to which studies they belong."""
        named = [self._named(name) for name in untold]
        with closing(read_headers(named, workers=self._workers)) as verdicts:
            for name, (verdict, *_) in zip(untold, verdicts, strict=True):  # frames of a file are of one study
                self.strays.pop(name, None)
                if verdict.study_uid:
                    self.arrivals.tell(name, verdict.study_uid)
                elif isinstance(verdict, Unused):
                    self._set_aside(name, verdict)

    def _set_aside(self, name: str, verdict: Unused) -> None:
        """Keep why a file belongs to no study; one that cannot be opened may be so at the next look, unchanged."""
        self.strays[name] = verdict
        if verdict.reason != Reason.UNREADABLE:
            self.arrivals.tell(name, "")

    def _named(self, name: str) -> InputFile:
        return InputFile(self._root / name, self._shown(name))

    def _scanned(self) -> Iterator[tuple[str, Stamp]]:
        """Yield every file below the folder. Raises OSError if the folder itself cannot be listed."""
        hidden: list[str] = []

        def hide(error: OSError) -> None:
            if error.filename == str(self._root):
                raise error
            hidden.append(error.filename)

        below = len(os.path.join(self._root, ""))  # noqa: PTH118 - of hundreds of thousands of files, at each look
        passed_over = set() if self._skip is None else {identity_on_disk(self._skip)}
        for folder, names in walk(self._root, passed_over, hide):
            start = os.path.join(folder, "")  # noqa: PTH118
            for name in names:
                path = start + name
                if (stamp := _stamp(path)) is not None:
                    yield path[below:], stamp
        yield from ((folder[below:], UNTOLD) for folder in hidden)


def _stamp(path: str) -> Stamp | None:
    """Return the stamp of a file, of a link to nothing UNTOLD; None if it went meanwhile."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return UNTOLD if os.path.lexists(path) else None
    return Stamp(status.st_size, status.st_mtime_ns)


class Listed:
    """Whatever can list its studies, with how many instances each has, and fetch one: an archive that is asked.

    A study is quiet when that number stayed the same for the quiet time. `fetch` gives a folder with its files, and
    what did not come, by the names of reports; a refusal of either (IchSeqError) means that nothing can be seen now,
    but for an OutputError, which is passed on.
    """

    def __init__(
        self,
        listing: Callable[[], Mapping[str, int]],
        fetch: Callable[[str], AbstractContextManager[Fetched]],
        quiet_s: float,
    ) -> None:
        self.arrivals = Arrivals(quiet_s)
        self.strays: dict[str, Unused] = {}
        self._listing, self._fetch = listing, fetch

    def look(self, now: float) -> None:
        """Ask which studies there are."""
        try:
            listed = self._listing()
        except IchSeqError as refusal:
            raise UnreachableError.of(refusal) from refusal
        for study_uid in self.arrivals.look(now, ((uid, Stamp(count, 0)) for uid, count in listed.items())):
            self.arrivals.tell(study_uid, study_uid)

    @contextmanager
    def files(self, study_uid: str, names: Iterable[str]) -> Iterator[NamedFiles]:
        """Fetch a study for as long as the block runs; its files go by a hash of their place in what was fetched."""
        with ExitStack() as held:
            try:
                arrived = held.enter_context(self._fetch(study_uid))
            except OutputError:
                raise
            except IchSeqError as refusal:
                raise UnreachableError.of(refusal) from refusal
            listing = list_inputs(arrived.folder, called=short_hash)
            yield [*listing.sources, *listing.unused, *arrived.unused]


def archive_source(url: str, out: Path, *, days: int, quiet_s: float) -> Listed:
    """Return a DICOMweb archive as a source: its CT studies whose date is at most `days` days ago.

    Studies are fetched into `out` one by one, as `dicomweb.fetched` has it; one that is refused did not come. Only
    instances of CT series count, as far as the archive tells them apart: what is said of a study and filed with it, as
    our own results are, makes it no other. Of an archive that does not tell how many instances a study has, a study is
    taken once it was listed for the quiet time, and not again. Raises UsageError for an URL that `archive.checked_url`
    refuses.
    """
    from ich_seq.archive import checked_url
    from ich_seq.dicomweb import ListedStudy, count_ct, fetched, list_studies

    counted: dict[ListedStudy, int] = {}

    def listing() -> dict[str, int]:
        nonlocal counted
        listed = list_studies(url, since=datetime.now().date() - timedelta(days=days))
        counted = {study: counted[study] if study in counted else count_ct(url, study) or 0 for study in listed}
        return {study.study_uid: count for study, count in counted.items()}

    checked_url(url)
    return Listed(listing, lambda uid: fetched(url, [uid], out, one_by_one=True, called=short_hash), quiet_s)
