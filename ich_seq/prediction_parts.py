"""predict by a group: what each process is to know of its studies, and its tables on their way into one.

Each process writes the rows of its studies, in their order, into parts of its own, `OUT/.part-<turn>-<rank>-<table>`;
the first process then copies them study by study into the tables, and nothing but a study is ever in memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ich_seq import OutputError
from ich_seq.files import growing_file, open_unwaiting, remove
from ich_seq.report import SLICES, SUBMISSION, StudyResult
from ich_seq.shared_folder import Turn
from ich_seq.studies import Findings, Study

TABLES = (SLICES, SUBMISSION)
SHARED = "All processes must see one --out: a file that is closed by one must be whole to another that then opens it."
PART = re.compile(r"\.part-[0-9a-f]{16}-[0-9]+-[a-z]+\.csv")
"""What a run that was killed leaves of its parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A study to be predicted: its place among all, the number of its patient, and slices lost before their pixels."""

    study: Study
    place: int
    patient: int
    lost: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A study that has been predicted: its place among all, its result, and by table the rows of its slices."""

    place: int
    result: StudyResult
    rows: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A study in the parts of a process: its place, its result, and by table how many bytes are its rows."""

    rank: int
    place: int
    result: StudyResult
    lengths: Mapping[str, int]


def cases_of(findings: Findings) -> dict[str, Case]:
    """Return the studies by UID with all that is known of them beforehand; patients are numbered as they come."""
    lost = Counter(u.study_uid for u in findings.unused if u.fate == "rejected")
    patients: dict[str, int] = {}
    return {
        study.uid: Case(
            study=study,
            place=place,
            patient=patients.setdefault(study.patient_id, len(patients) + 1),
            lost=lost[study.uid],
        )
        for place, study in enumerate(findings.studies)
    }


def clear_parts(out: Path) -> None:
    """Remove the parts that an older run left. Raises OutputError."""
    remove(path for path in out.glob(".part-*") if PART.fullmatch(path.name))


def through_parts(predicted: Iterable[Predicted], turn: Turn) -> Iterator[Predicted]:
    """Have this process predict its studies into its parts; return those of all, in order, to the first process.

    The others get none. Parts are removed once they have been read. Raises OutputError if a part cannot be written or,
    as they are read, if the first process does not find what another wrote.
    """
    pieces = turn.group.collect(_written(predicted, turn))
    return _read_back(sorted(pieces, key=lambda piece: piece.place), turn)


def _written(predicted: Iterable[Predicted], turn: Turn) -> list[Piece]:
    with ExitStack() as files:
        rank = turn.group.rank
        append = {table: files.enter_context(growing_file(_part(turn, rank, table))) for table in TABLES}
        pieces = []
        for study in predicted:
            for table in TABLES:
                append[table](study.rows[table])
            lengths = {table: len(study.rows[table]) for table in TABLES}
            pieces.append(Piece(rank=rank, place=study.place, result=study.result, lengths=lengths))
        return pieces


def _read_back(pieces: Iterable[Piece], turn: Turn) -> Iterator[Predicted]:
    with ExitStack() as files:
        parts: dict[Path, BufferedReader] = {}
        for piece in pieces:
            rows = {}
            for table, length in piece.lengths.items():
                path = _part(turn, piece.rank, table)
                rows[table] = _next_bytes(path, length, parts, files)
            yield Predicted(place=piece.place, result=piece.result, rows=rows)
    if turn.group.writes:
        remove(_part(turn, rank, table) for rank in range(turn.group.size) for table in TABLES)


def _next_bytes(path: Path, length: int, parts: dict[Path, BufferedReader], files: ExitStack) -> bytes:
    """Return the next bytes of a part, which is opened when the first are asked for."""
    try:
        if path not in parts:
            parts[path] = files.enter_context(open_unwaiting(path))
        data = parts[path].read(length)
    except OSError as error:
        raise OutputError(f"{path}, which another process wrote, cannot be read: {error.strerror}. {SHARED}") from error
    if len(data) != length:
        raise OutputError(f"{path} is shorter than the process that wrote it says. {SHARED}")
    return data


def _part(turn: Turn, rank: int, table: str) -> Path:
    return turn.folder / f".part-{turn.name}-{rank}-{table}"
