"""The command line of `watch`; heavy imports sit inside the command, as everywhere."""

from __future__ import annotations

import json
import sys
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ich_seq import ArchiveError
from ich_seq.commands import (
    EXIT_DONE,
    EXIT_SOME_REJECTED,
    Place,
    bundle_option,
    common,
    engine_option,
    is_url,
    name_shipped,
    out_option,
    phi_option,
    report_option,
    send_option,
    shortened,
    was_given,
    workers_option,
)
from ich_seq.tables import printable
from ich_seq.terminal import print_result
from ich_seq.weight_library import is_shipped

if TYPE_CHECKING:
    from ich_seq.incoming import Source
    from ich_seq.watch import StudyNews, WatchSummary


@click.command()
@click.argument("folder", type=Place(), required=False)
@click.option("--dicomweb", metavar="URL", help="Ask this archive for studies, in place of FOLDER.")
@click.option(
    "--days",
    default=1,
    show_default=True,
    type=click.IntRange(min=0, max=36_500),
    help="Of the archive, studies whose date is at most so many days ago.",
)
@bundle_option
@out_option
@click.option(
    "--quiet-time",
    "quiet_s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds without a new or changed file after which a study is taken for whole.",
)
@click.option(
    "--every",
    "every_s",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between two looks at the folder.",
)
@click.option("--once", is_flag=True, help="End when all that is there at the first look is done.")
@engine_option
@report_option
@click.option(
    "--refresh",
    "refresh_s",
    default=0,
    type=click.IntRange(min=0),
    help="Seconds after which a browser loads the worklist anew. [default: when asked]",
)
@click.option("--sr", is_flag=True, help="DICOM SR and key objects of each study; they name the patient (PHI).")
@send_option
@phi_option
@common
@workers_option
def watch(
    folder: Path | None,
    dicomweb: str | None,
    days: int,
    bundle: Path,
    out: Path,
    quiet_s: float,
    every_s: float,
    once: bool,
    engine: str | None,
    report: bool,
    refresh_s: int,
    sr: bool,
    send: str | None,
    phi: bool,
    device: str,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Predict studies as they arrive in a folder or an archive, into a worklist that is always up to date.

    FOLDER is looked at again and again, with all its subfolders; a study is predicted once none of its files appeared
    or changed for the quiet time, and again if more come later. An archive, --dicomweb, is asked again and again in its
    place. Writes report.html, studies.csv and rejected.csv of all studies, a folder a study in studies/, and prints a
    line a study. End it as you like, and run the same command again to go on.

    \b
    ich-seq watch /data/incoming --bundle bundle --out worklist
    """
    from ich_seq.progress import shown
    from ich_seq.watch import send_results
    from ich_seq.watch import watch as run
    from ich_seq.worklist import Pages

    source = _source(folder, dicomweb, out, days, quiet_s)
    if is_shipped(bundle):
        name_shipped()
    with shown(quiet=quiet) as progress:
        summary = run(
            source,
            bundle,
            out,
            quiet_s=quiet_s,
            every_s=every_s,
            once=once,
            engine=engine,
            device=device,
            workers=workers,
            shown=Pages(report=report, refresh_s=refresh_s, phi=phi, sr=sr or send is not None),
            send=None if send is None else partial(send_results, send),
            tell=partial(_tell, as_json=as_json),
            warn=lambda told: click.echo(shortened(printable(told)), err=True),
            progress=progress,
        )
    _finish(summary)


def _tell(news: StudyNews, *, as_json: bool) -> None:
    print_result(json.dumps(described(news)) if as_json else printable(sentence(news)))


def _finish(summary: WatchSummary) -> NoReturn:
    """Say on stderr what lies there now; end with 3 if files or frames were rejected, with 6 if results stayed here."""
    counts = summary.counts
    click.echo(
        f"{summary.studies} studies, {summary.failed} failed; of {counts.files} files {counts.used} were used, "
        f"{counts.excluded} excluded and {counts.rejected} rejected -> {printable(str(summary.out))}",
        err=True,
    )
    if summary.unsent:
        raise ArchiveError(f"The results of {summary.unsent} studies were not sent; run the same command again.")
    sys.exit(EXIT_SOME_REJECTED if counts.rejected or counts.lost_frames else EXIT_DONE)


def _source(folder: Path | None, dicomweb: str | None, out: Path, days: int, quiet_s: float) -> Path | Source:
    """Return the one source that was given."""
    if folder is not None and dicomweb is None:
        if is_url(folder):
            raise click.UsageError("FOLDER is a folder; a URL is given by --dicomweb URL.")
        if was_given("days"):
            raise click.UsageError(
                "--days is of the studies of an archive, --dicomweb; a folder is watched as a whole."
            )
        return folder
    if folder is not None or dicomweb is None:
        raise click.UsageError("Give either FOLDER or --dicomweb URL.")
    from ich_seq.incoming import archive_source

    return archive_source(dicomweb, out, days=days, quiet_s=quiet_s)


def described(news: StudyNews) -> dict[str, Any]:
    """Return what is told of a study as JSON values, without text of a patient."""
    from ich_seq.labels import LABELS

    record, result = news.record, news.record.result
    numbers = None if result is None else [None if isnan(p) else p for p in result.probabilities.tolist()]
    return {
        "study_uid": record.study_uid,
        "fate": record.fate,
        "reason": record.reason,
        "again": news.again,
        "probabilities": None if numbers is None else dict(zip(LABELS, numbers, strict=True)),
        "slices": 0 if result is None else result.slices,
        "lost_slices": 0 if result is None else result.lost_slices,
        "folder": str(news.folder),
    }


def sentence(news: StudyNews) -> str:
    """Return what is told of a study as a line."""
    record, result = news.record, news.record.result
    if result is None:
        return f"{record.fate} {record.study_uid}: {record.reason}"
    again = ", done again" if news.again else ""
    return f"{result.probabilities[-1]:.3f} {record.study_uid}: {result.slices} slices{again} -> {news.folder}"
