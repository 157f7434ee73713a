"""explore: a folder of DICOM files, or a table, into a page that shows what is in it, and all its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich_seq import NothingUsableError, __version__
from ich_seq.collection import Collection, collect
from ich_seq.devices import choose_workers
from ich_seq.exploration_page import page
from ich_seq.files import locked_folder, remove, spare_others, spare_result, write_bytes, write_json
from ich_seq.gallery import Gallery, hang
from ich_seq.inputs import Given, as_paths, check_input, named
from ich_seq.inventory import flat, studies_table, take_inventory
from ich_seq.labels import LABELS
from ich_seq.pages import count, percent
from ich_seq.progress import Progress, silent
from ich_seq.reasons import unused_csv
from ich_seq.studies import Counts
from ich_seq.tables import csv_table

SCHEMA = "ich-seq exploration 1"
EXPLORATION, PAGE = "exploration.json", "exploration.html"
STUDIES, FIGURES, REJECTED = "studies.csv", "figures.csv", "rejected.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplorationSummary:
    """What a run of explore found, and where it lies; `exploration` is all of exploration.json."""

    out: Path
    studies: int
    counts: Counts
    exploration: dict[str, Any]


def explore(
    source: Given,
    out: str | Path,
    labels: str | Path | None = None,
    *,
    workers: int | None = None,
    phi: bool = False,
    progress: Progress = silent,
) -> ExplorationSummary:
    """Explore DICOM files (of one path or several), a table of slices or studies, or a label file, into `out`.

    exploration.html shows it, exploration.json and figures.csv hold its numbers, studies.csv a row a study and
    rejected.csv what was not used, and why; there a hash stands for each file, unless `phi` asks for names. Of DICOM
    files the headers are read, and the pixels of those slices only that are shown. Raises UsageError for a source or
    labels that cannot be meant and if `out` is another command's result, NothingUsableError if nothing in it can be
    used (rejected.csv then says why), OutputError if `out` cannot be written.
    """
    source, out, labels = as_paths(source), Path(out), None if labels is None else Path(labels)
    check_input(source, out)
    spare_others(out, EXPLORATION)
    spare_result(out, "evaluation.json")  # whose figures.csv would be lost
    found = collect(source, labels, skip=out, workers=choose_workers(workers), hide_names=not phi, progress=progress)
    with locked_folder(out):
        remove(
            out / name for name in (EXPLORATION, PAGE, STUDIES, FIGURES, REJECTED)
        )  # an older run's are none of ours
        gallery = hang(found, progress)
        if gallery is not None:
            found = found.without(gallery.refused)
        write_bytes(out / REJECTED, unused_csv(found.unused))
        if not found.counts.used:
            raise NothingUsableError(
                f"Nothing of the {found.counts.files} in {named(source)} is usable; see {out / REJECTED}."
            )
        exploration = _describe(found) | take_inventory(found)
        _write_results(out, found, exploration, gallery)
    n_studies = exploration["counts"]["studies"] or 0
    return ExplorationSummary(out=out, studies=n_studies, counts=found.counts, exploration=exploration)


def _describe(found: Collection) -> dict[str, Any]:
    return {"schema": SCHEMA, "version": __version__, "source": {"kind": found.kind}}


def _write_results(out: Path, found: Collection, exploration: dict[str, Any], gallery: Gallery | None) -> None:
    """Write the tables, the page and, last, the JSON that makes them whole."""
    sections = {name: values for name, values in exploration.items() if name not in ("schema", "version", "source")}
    write_bytes(out / FIGURES, csv_table(flat(sections)))
    studies = studies_table(found)
    if studies is not None:
        write_bytes(out / STUDIES, csv_table(studies))
    write_bytes(out / PAGE, page(exploration, gallery))
    write_json(out / EXPLORATION, exploration)


def summarised(exploration: Mapping[str, Any]) -> str:
    """Lay counts and prevalence out for people."""
    counts, prevalence = exploration["counts"], exploration.get("prevalence", {})
    told = ", ".join(f"{count(counts[name])} {name}" for name in ("slices", "studies", "patients") if counts[name])
    if not prevalence:
        return f"{told}\n{exploration['absent']['prevalence']}"
    rows = [["", *prevalence]] + [
        [label, *(f"{count(p[label]['positive'])} ({percent(p[label]['share'])})" for p in prevalence.values())]
        for label in LABELS
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    laid = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([told, "", *laid, ""])
