"""The command that stores results of an earlier run in an archive."""

from __future__ import annotations

from pathlib import Path

import click

from ich_seq import UsageError
from ich_seq.commands import Place, archive_url, finish, store_results, telling


@click.command()
@click.argument("results", type=Place())
@click.argument("url", callback=archive_url)
@telling
def send(results: Path, url: str, as_json: bool, quiet: bool) -> None:
    """Store the DICOM results of predict --sr or watch --sr in the archive at URL.

    RESULTS is the folder that was their --out. All that is in it is sent, under the UIDs that it always has: most
    archives keep one of each, some refuse what they have.

    \b
    ich-seq send results https://pacs.example/dicom-web
    """
    from ich_seq.progress import shown

    files = _results_in(results)
    with shown(quiet=quiet) as progress:
        line, told, trouble = store_results(url, results, files, progress)
    finish(told, line, as_json=as_json)
    if trouble is not None:
        raise trouble


def _results_in(out: Path) -> list[Path]:
    """Return the DICOM results of a run and of its studies, each of which is whole. Raises UsageError for none."""
    from ich_seq.dicom_results import FOLDER, NOT_WRITTEN, dicom_results_in
    from ich_seq.report import RUN
    from ich_seq.worklist import FOLDERS, RECORD

    if not (out / RUN).is_file():
        raise UsageError(f"{out} is no result of predict or watch that came to its end; it has no {RUN}.")
    studies = (out / FOLDERS).glob(f"[!.]*/{RECORD}")  # the name of one that is being made begins with a dot
    folders = [out, *sorted(record.parent for record in studies)]
    if files := [path for folder in folders for path in dicom_results_in(folder)]:
        return files
    if any((folder / FOLDER / NOT_WRITTEN).is_file() for folder in folders):
        raise UsageError(f"No study in {out} could have DICOM results; {FOLDER}/{NOT_WRITTEN} there says why.")
    raise UsageError(f"{out} holds no DICOM results; predict --sr and watch --sr write them.")
