"""Where the studies of a run come from: files and folders, or an archive that is asked for them by DICOMweb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ich_seq import ArchiveError, IchSeqError, NothingUsableError, UsageError
from ich_seq.distributed import Group
from ich_seq.elements import UID_FORM
from ich_seq.files import short_hash
from ich_seq.inputs import MAX_NAMED, Given, as_paths, check_input, list_files
from ich_seq.progress import Progress
from ich_seq.reasons import Reason, Unused
from ich_seq.shared_search import find_together
from ich_seq.studies import Counts, Findings
from ich_seq.tables import printable

if TYPE_CHECKING:
    from ich_seq.dicomweb import Fetched


@dataclass(frozen=True, slots=True)
class ArchivedStudies:
    """Studies of a DICOMweb archive: the URL of its service, and their Study Instance UIDs."""

    url: str
    study_uids: tuple[str, ...]


Source = Given | ArchivedStudies
"""Files and folders, or studies of an archive."""


def check_source(source: Source, out: Path) -> None:
    """Raise UsageError for a source that cannot be meant, before anything else is done, written or asked for."""
    if not isinstance(source, ArchivedStudies):
        check_input(source, out)
        return
    from ich_seq.archive import checked_url

    checked_url(source.url)
    if wrong := [uid for uid in source.study_uids if not UID_FORM.fullmatch(uid)]:
        raise UsageError(f"{printable(wrong[0])!r} is no Study Instance UID: 1 to 128 letters, digits and . _ -")
    if not source.study_uids:
        raise UsageError("No study of the archive is named; give its Study Instance UID.")


@contextmanager
def found_studies(
    source: Source, out: Path, group: Group, *, workers: int, hide_names: bool, progress: Progress
) -> Iterator[Findings]:
    """Give the studies of a source; files that were fetched for it are there as long as the block runs.

    The processes of a group share the reading, the first fetches, and it alone has the findings in the end.

    `out` is held by this process, and passed over where it lies in a folder of the source. A study that an archive does
    not send counts as a file, as a folder does that cannot be listed. Raises as `studies.find_studies` and
    `dicomweb.fetched` do, in every process.
    """
    find = partial(find_together, group=group, workers=workers, hide_names=hide_names, progress=progress)
    if not isinstance(source, ArchivedStudies):
        yield find(as_paths(source), skip=out)
        return
    with ExitStack() as held:
        arrived = group.lead(lambda: held.enter_context(_fetched(source, out, hide_names, progress)))
        found = Findings((), (), 0)
        if group.lead(lambda: bool(list_files(arrived.folder))):
            found = find(arrived.folder, skip=None)
        yield _with_unsent(found, arrived.unused) if group.writes else found


def nothing_usable(unused: Sequence[Unused], counts: Counts, listed: Path) -> IchSeqError:
    """Return what to raise for a source without a usable slice; `unused` is all of it, and stands in the file `listed`.

    An ArchiveError if an archive sent none of the studies: nothing is wrong with files then, there are none.
    """
    if unused and all(u.reason == Reason.NOT_FETCHED for u in unused):
        told = [f"{u.study_uid}: {u.detail}" for u in unused[:MAX_NAMED]]
        more = [f"and {len(unused) - MAX_NAMED} more"] if len(unused) > MAX_NAMED else []
        first = f"None of the studies was fetched; see {listed}."
        return ArchiveError("\n".join([first, *told, *more]))
    why = counts.named_reasons
    return NothingUsableError(f"None of the {counts.files} files is a usable CT slice ({why}); see {listed}.")


def _fetched(
    source: ArchivedStudies, out: Path, hide_names: bool, progress: Progress
) -> AbstractContextManager[Fetched]:
    from ich_seq.dicomweb import fetched

    called = short_hash if hide_names else str
    return fetched(source.url, source.study_uids, out, called=called, progress=progress)


def _with_unsent(found: Findings, unsent: Sequence[Unused]) -> Findings:
    """Return what was found with what an archive did not send among it."""
    unused = tuple(sorted([*found.unused, *unsent], key=lambda u: u.file))
    return replace(found, unused=unused, n_files=found.n_files + len(unsent))
