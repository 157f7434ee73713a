"""Where the studies of a run come from: a folder, or an archive that is asked for them by DICOMweb."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ich_seq import UsageError
from ich_seq.dicom import UID_FORM
from ich_seq.files import short_hash
from ich_seq.progress import Progress
from ich_seq.studies import Findings, check_input, find_studies, list_files
from ich_seq.tables import printable


@dataclass(frozen=True, slots=True)
class ArchivedStudies:
    """Studies of a DICOMweb archive: the URL of its service, and their Study Instance UIDs."""

    url: str
    study_uids: tuple[str, ...]


Source = str | Path | ArchivedStudies


def check_source(source: Source, out: Path) -> None:
    """Raise UsageError for a source that cannot be meant, before anything else is done, written or asked for."""
    if not isinstance(source, ArchivedStudies):
        check_input(Path(source), out)
        return
    from ich_seq.archive import checked_url

    checked_url(source.url)
    if wrong := [uid for uid in source.study_uids if not UID_FORM.fullmatch(uid)]:
        raise UsageError(
            f"{printable(wrong[0])!r} is no Study Instance UID: letters, digits and . _ - of an archive's."
        )
    if not source.study_uids:
        raise UsageError("No study of the archive is named; give its Study Instance UID.")


@contextmanager
def found_studies(
    source: Source, out: Path, *, workers: int, hide_names: bool, progress: Progress
) -> Iterator[Findings]:
    """Give the studies of a source; files that were fetched for it are there as long as the block runs.

    `out` is held by this process, and passed over where it lies in a folder of the source. A study that an archive does
    not send counts as a file, as a folder does that cannot be listed. Raises as `studies.find_studies` and
    `dicomweb.fetched` do.
    """
    if not isinstance(source, ArchivedStudies):
        yield find_studies(Path(source), skip=out, workers=workers, hide_names=hide_names, progress=progress)
        return
    from ich_seq.dicomweb import fetched

    with fetched(source.url, source.study_uids, out, progress=progress) as arrived:
        found = Findings((), (), 0)
        if list_files(arrived.folder):
            found = find_studies(arrived.folder, workers=workers, hide_names=hide_names, progress=progress)
        named = [replace(u, file=short_hash(u.file)) if hide_names else u for u in arrived.unused]
        unused = tuple(sorted([*found.unused, *named], key=lambda u: u.file))
        yield replace(found, unused=unused, n_files=found.n_files + len(named))
