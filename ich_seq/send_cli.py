"""The command that stores results in an archive which were made before, or sent to another."""

from __future__ import annotations

from pathlib import Path

import click

from ich_seq import UsageError
from ich_seq.commands import Place, archive_url, finish, reporting, send_results


@click.command()
@click.argument("results", type=Place())
@click.argument("url", callback=archive_url)
@reporting
def send(results: Path, url: str, as_json: bool) -> None:
    """Store the DICOM results of predict --sr or watch --sr in the archive at URL.

    RESULTS is the folder that was their --out. Every object is sent, also one that the archive has: it stays one.

    \b
    ich-seq send results https://pacs.example/dicom-web
    """
    from ich_seq.dicom_results import dicom_results_in
    from ich_seq.worklist import FOLDERS

    folders = [results, *sorted((results / FOLDERS).glob("*"))]
    if not (files := [path for folder in folders for path in dicom_results_in(folder)]):
        raise UsageError(f"{results} holds no DICOM results; predict --sr and watch --sr write them.")
    line, told, trouble = send_results(url, results, files)
    finish(told, line, as_json=as_json)
    if trouble is not None:
        raise trouble
