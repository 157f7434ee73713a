"""A result that grows study by study: a folder each, whole or absent, and tables and a worklist of all of them.

OUT/
    studies/<hash>/   slices.csv, submission.csv, studies.csv (its row), rejected.csv; study.json, which vouches
    report/<hash>.html, report.html     as predict has them
    studies.csv, rejected.csv, run.json of all, written anew after each study
    watch.jsonl                         what was done when
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from ich_seq import OutputError, UsageError, __version__
from ich_seq.bundle import Bundle
from ich_seq.files import (
    growing_file,
    make_folder,
    put_in_place,
    read_json,
    read_whole,
    remove,
    remove_folder,
    sha256_file,
    short_hash,
    write_bytes,
    write_json,
)
from ich_seq.journal import BEGUN, ENDED, Journal
from ich_seq.reasons import Unused, unused_csv
from ich_seq.report import (
    RUN,
    SLICES,
    STUDIES,
    StudyPrediction,
    StudyResult,
    slice_table_rows,
    slice_tables,
    write_studies,
)
from ich_seq.store import REJECTED
from ich_seq.studies import Counts, Geometry, Study
from ich_seq.study_pages import PAGES, StudyPages, study_page

SCHEMA = "ich-seq watched study 1"
FOLDERS, RECORD, JOURNAL = "studies", "study.json", "watch.jsonl"
OURS = re.compile(r"\.?[0-9a-f]{16}")
"""A study's folder, and the one in which it is made."""

PREDICTED, UNUSABLE, FAILED = "predicted", "unusable", "failed"
"""What becomes of a study: it has a result, none of its files is a usable slice, or it could not be worked through."""

CHOICES = {
    "card_sha256": "another bundle",
    "execution": "another engine",
    "phi": "another choice of --phi",
    "report": "another choice of --report",
    "sr": "another choice of --sr",
}
"""What all studies of a worklist are made with, and what is said where it is not the same."""

Also = Callable[[Path, Study, StudyPrediction], object]
"""Writes more results of a study into its folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What is shown: pages, loaded anew by a browser every `refresh_s` (0: when asked), and with `phi` Patient IDs.

    With `sr` each study has DICOM objects too, in sr/ of its folder.
    """

    report: bool = True
    refresh_s: int = 0
    phi: bool = False
    sr: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is kept in memory of a study that was worked through; `key` stands for the files that it then had.

    `fate` is PREDICTED, and then there is a `result`, UNUSABLE or FAILED; `reason` says why there is none.
    """

    study_uid: str
    key: str
    fate: str
    reason: str
    counts: Counts
    result: StudyResult | None = None


@dataclass(frozen=True, slots=True)
class Worked:
    """A study worked through: its record, its files that were not used, and what was predicted, if it was."""

    record: Record
    unused: Sequence[Unused]
    predicted: tuple[Study, StudyPrediction] | None = None


def folder_of(study_uid: str) -> str:
    """Return where the results of a study lie, from the folder of all; its name is a hash, never the UID."""
    return f"{FOLDERS}/{short_hash(study_uid)}"


class Worklist:
    """All studies of a folder of results. Every method raises OutputError if it cannot be written.

    `made_by` is what run.json says of what made them.
    """

    def __init__(self, out: Path, bundle: Bundle, made_by: dict[str, Any], how: Pages) -> None:
        self.out, self._bundle, self._how = out, bundle, how
        self._made_by = made_by
        self._made_with = {name: made_by[name] for name in ("card_sha256", "execution")} | {
            "phi": how.phi,
            "report": how.report,
            "sr": how.sr,
        }
        self.records: dict[str, Record] = {}

    def take_up(self, journal: Journal) -> None:
        """Read what an earlier watch left: its whole studies, but for one that was begun and did not end.

        What else is in folders of ours is cleared away. Raises UsageError, and changes nothing, if that was made in
        another way, or is not what the journal says.
        """
        make_folder(self.out / FOLDERS)
        found = {folder: self._whole(folder) for folder in sorted((self.out / FOLDERS).iterdir())}
        for folder, record in found.items():
            if record is not None and self._has_ended(record, journal):
                self.records[record.study_uid] = record
            elif OURS.fullmatch(folder.name):
                remove_folder(folder)
                remove([self.out / PAGES / f"{folder.name}.html"])
        remove([self.out / SLICES])

    def made_of(self, study_uid: str) -> dict[str, str]:
        """Return the files that a study's record was made of, stamps by a hash of their names; none without one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return dict(read_json(self.out / folder_of(study_uid) / RECORD)["made_of"])
        return {}

    def put(self, worked: Worked, made_of: Mapping[str, str], also: Also | None = None) -> None:
        """Write the folder of a study, aside, and put it whole in the place of an older one; its page too."""
        record = worked.record
        folder = self.out / folder_of(record.study_uid)
        aside = folder.with_name(f".{folder.name}")
        if aside.exists():
            remove_folder(aside)
        make_folder(aside)
        if worked.predicted is not None:
            self._write_prediction(aside, *worked.predicted, also)
        write_bytes(aside / REJECTED, unused_csv(worked.unused))
        told = {"schema": SCHEMA, "made_of": dict(made_of), "made_with": self._made_with, "version": __version__}
        write_json(aside / RECORD, told | {"record": _plain(record), "sha256": _hashes(aside)})
        self._move_page(aside, record.study_uid)
        put_in_place(aside, folder)
        self.records[record.study_uid] = record

    def write(self, strays: Collection[Unused]) -> None:
        """Write the tables and pages of all studies, and list, beside the files that they could not use, the strays."""
        results = [record.result for record in self.records.values() if record.result is not None]
        counts = self.counts(strays)
        write_studies(self.out / STUDIES, results)
        with growing_file(self.out / REJECTED) as append:
            append(unused_csv(()))
            for table in self._tables(REJECTED):
                append(_body(table))
            append(_body(unused_csv(sorted(strays, key=lambda u: u.file))))
        if self._how.report:
            unseen = [r for r in self._in_order() if r.fate == FAILED or (r.fate == UNUSABLE and r.counts.rejected)]
            make_folder(self.out / PAGES)
            StudyPages(self.out, self._bundle).write_worklist(results, counts, unseen, self._how.refresh_s)
        without = {r.study_uid: {"fate": r.fate, "reason": r.reason} for r in self._in_order() if r.result is None}
        files = {name: sha256_file(self.out / name) for name in (STUDIES, REJECTED)}
        facts = {"counts": asdict(counts), "studies": len(results), "without_result": without, "files": files}
        write_json(self.out / RUN, self._made_by | facts)

    def write_slices(self) -> None:
        """Write slices.csv of all studies, if there are any, as `evaluate` reads it beside studies.csv."""
        tables = self._tables(SLICES)
        if (first := next(tables, None)) is not None:
            with growing_file(self.out / SLICES) as append:
                append(first)
                for table in tables:
                    append(_body(table))

    def counts(self, strays: Collection[Unused]) -> Counts:
        """Return what became of every file: of those of all studies, and of the strays."""
        fates, reasons = Counter(u.fate for u in strays), Counter(str(u.reason) for u in strays)
        for record in self.records.values():
            reasons.update(record.counts.reasons)
        of_studies = [record.counts for record in self.records.values()]
        return Counts(
            files=sum(c.files for c in of_studies) + len(strays),
            used=sum(c.used for c in of_studies),
            excluded=sum(c.excluded for c in of_studies) + fates["excluded"],
            rejected=sum(c.rejected for c in of_studies) + fates["rejected"],
            reasons=dict(sorted(reasons.items())),
            lost_frames=sum(c.lost_frames for c in of_studies),
        )

    def _in_order(self) -> list[Record]:
        return [self.records[uid] for uid in sorted(self.records)]

    def _tables(self, name: str) -> Iterator[bytes]:
        """Yield a table of each study that has it, study by study."""
        for record in self._in_order():
            with suppress(OSError):  # there is none without a result
                yield read_whole(self.out / folder_of(record.study_uid) / name)

    def _write_prediction(self, folder: Path, study: Study, said: StudyPrediction, also: Also | None) -> None:
        with slice_tables(folder) as write_slices:
            write_slices(slice_table_rows(said))
        write_studies(folder / STUDIES, [said.result])
        if self._how.report:
            StudyPages(folder, self._bundle).write_study(study, said)
        if also is not None:
            also(folder, study, said)

    def _move_page(self, folder: Path, study_uid: str) -> None:
        """Take the page out of a study's folder to where the worklist looks for it; without one an older one goes."""
        page = study_page(study_uid)
        if (folder / page).exists():
            make_folder(self.out / PAGES)
            put_in_place(folder / page, self.out / page)
            remove_folder(folder / PAGES)
        else:
            remove([self.out / page])

    def _has_ended(self, record: Record, journal: Journal) -> bool:
        """Tell whether a study ended. Raises UsageError for one that the journal does not know: it is another's."""
        begun = journal.key_of(BEGUN, record.study_uid)
        if not begun:
            raise UsageError(f"{journal.path} does not tell of the studies beside it; choose another --out.")
        return begun != record.key or journal.key_of(ENDED, record.study_uid) == begun

    def _whole(self, folder: Path) -> Record | None:
        """Return the record of a study whose files are as they were written; None for anything else.

        Raises UsageError if it was made in another way, OutputError if it cannot be read now.
        """
        try:
            told = read_json(folder / RECORD)
            if other := "another version" if told["schema"] != SCHEMA else _other(told["made_with"], self._made_with):
                raise UsageError(
                    f"{self.out} holds studies that were made with {other}; go on with what they were made with, or "
                    "choose another --out."
                )
            record, hashes = _record(told["record"]), _hashes(folder)
            unharmed = all(hashes.get(name) == sha256 for name, sha256 in told["sha256"].items())
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise OutputError(f"Cannot read {folder}: {error.strerror}. Mend or remove it.") from error
        return record if unharmed and folder.name == short_hash(record.study_uid) else None


def _other(made_with: dict[str, Any], now: dict[str, Any]) -> str:
    """Return in words where that with which studies were made is not what it is `now`; nothing if it is the same."""
    words = [word for name, word in CHOICES.items() if made_with.get(name) != now[name]]
    return ", ".join(words) or ("another version" if made_with != now else "")


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a study's folder but its record and its page, by name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    named = {path.relative_to(folder).as_posix(): path for path in sorted(files)}
    return {name: sha256_file(path) for name, path in named.items() if not name.startswith(f"{PAGES}/")}


def _body(table: bytes) -> bytes:
    """Return a CSV without its line of names."""
    return table.partition(b"\n")[2]


def _plain(record: Record) -> dict[str, Any]:
    """Return a record as JSON values that `_record` reads back to the last bit; a probability that is NaN is null."""
    values = asdict(record)
    if record.result is not None:
        said = [[None if isnan(p) else p for p in row] for row in record.result.said.tolist()]
        novelty = record.result.novelty
        values["result"] |= {"said": said, "novelty": None if novelty is None else repr(novelty)}
    return values


def _record(values: dict[str, Any]) -> Record:
    """Read back what `_plain` wrote. Raises KeyError, TypeError or ValueError for anything else."""
    result = values["result"]
    if result is not None:
        result = StudyResult(
            **result
            | {
                "said": np.array(result["said"], np.float64),
                "novelty": None if result["novelty"] is None else float(result["novelty"]),
                "matrix": tuple(result["matrix"]),
                "geometry": Geometry(**result["geometry"]),
            }
        )
    return Record(**values | {"counts": Counts(**values["counts"]), "result": result})
