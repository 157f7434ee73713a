"""The feature store: embeddings on disk, a file a study and network, each row beside its SOP Instance UID.

    FEATURES/
        manifest.json       what made the store, what it holds, the SHA-256 of the files below
        network-<k>.safetensors   the encoders' weights, so that a bundle can be made of the store alone
        studies.parquet     a row a study and network: identity, geometry, name, size and SHA-256 of its file
        rejected.csv        a row for every file that is no slice of a study, with its reason
        <hash>.safetensors  features (N, D) float16, positions_mm (N,) float64, logits (N, K) float32 if the
                            encoder has a head, SOP UIDs in the header

There is one network, 0, unless the encoder was trained by train-cnn: then each study was embedded by the
network of its patient's fold, which did not learn from it, or by all of them if none did. `in_sample` marks
rows for which only a network was at hand that did learn from the patient.

`.journal.jsonl` remembers finished studies while a store grows; `.lock` keeps a second process out.
A study counts as finished when the journal names it and its file has the journalled size and hash.
Where a group grows a store, each process but the first has a journal of its own beside it,
`.journal-<turn>-<rank>.jsonl`: no file has two writers. Whoever opens the store next, a group of any size, takes up
all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ich_seq import ArtefactError, OutputError, UsageError, __version__
from ich_seq.files import (
    append_line,
    parse_json,
    plain_name,
    read_json,
    read_whole,
    remove,
    sha256_bytes,
    sha256_file,
    short_hash,
    write_bytes,
    write_json,
)
from ich_seq.journal import read_lines
from ich_seq.store_checks import check_journalled, check_study, read_index

SCHEMA = "ich-seq features 2"
MANIFEST, STUDIES, REJECTED, JOURNAL = "manifest.json", "studies.parquet", "rejected.csv", ".journal.jsonl"
INDEX_COLUMNS = ("study_uid", "patient_key", "network", "in_sample", "slices", "file", "bytes", "sha256", "whole")
"""First columns of the index; the geometry's follow by name, as a resumed row has lost its own order."""

PART_JOURNAL = re.compile(r"\.journal-[0-9a-f]{16}-[0-9]+\.jsonl")
"""The journals of the other processes of a group."""

HEADER_KEY = "ich_seq"
"""All text of a study file sits under this one key: safetensors writes several in random order."""


def encoder_file(number: int | str) -> str:
    """Return the name of an encoder's file; a bundle's have another, so that both can lie in one folder."""
    return f"network-{number}.safetensors"


@dataclass(frozen=True, slots=True)
class RowsOnDisk:
    """Embeddings where they lie, (N, D) float16 at `offset` of a file: read anew each time they are looked at.

    So a store of any size can be learnt from, since only a batch of it is ever in memory. An index chooses
    rows and still reads nothing.
    """

    path: Path
    offset: int
    stored: tuple[int, int]
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, D), as an array would."""
        return len(self.rows), self.stored[1]

    def __getitem__(self, index: NDArray[np.intp]) -> RowsOnDisk:
        return replace(self, rows=self.rows[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the rows. Raises ArtefactError if the file is gone or was cut short since its hash was checked."""
        try:
            whole = np.fromfile(self.path, np.float16, count=self.stored[0] * self.stored[1], offset=self.offset)
        except OSError as error:
            raise ArtefactError(f"Cannot read {self.path}: {error.strerror}; extract the features again.") from error
        if len(whole) != self.stored[0] * self.stored[1]:
            raise ArtefactError(f"{self.path} was changed while it was read; extract the features again.")
        return np.asarray(whole.reshape(self.stored)[self.rows], dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFeatures:
    """The embeddings of one study by one network, feet to head: `features` (N, D), `positions_mm` (N,),
    `sop_uids` N names and, if the network has a head, its `logits` (N, K).

    `patient_key` is a hash, the same for all studies of a patient; `network` is the encoder's number.
    """

    study_uid: str
    patient_key: str
    sop_uids: tuple[str, ...]
    positions_mm: NDArray[np.float64]
    features: NDArray[np.float16] | RowsOnDisk
    logits: NDArray[np.float32] | None = None
    network: int = 0


def encode_study(study: StudyFeatures) -> bytes:
    """Return the bytes of a study's file; equal studies give equal bytes."""
    header = {
        "study_uid": study.study_uid,
        "patient_key": study.patient_key,
        "sop_uids": list(study.sop_uids),
        "network": study.network,
    }
    arrays = {"features": study.features, "positions_mm": study.positions_mm, "logits": study.logits}
    return save_arrays(
        {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None},
        metadata={HEADER_KEY: json.dumps(header, sort_keys=True)},
    )


def decode_study(data: bytes, path: Path) -> StudyFeatures:
    """Read a study's file back. Raises ArtefactError if it is none, or its parts disagree in length."""
    try:
        arrays = load_arrays(data)
        if not {"positions_mm", "features"} <= arrays.keys() <= {"positions_mm", "features", "logits"}:
            raise ValueError("arrays of something else")
        length = int.from_bytes(data[:8], "little")
        header = parse_json(parse_json(data[8 : 8 + length])["__metadata__"][HEADER_KEY])
        study = StudyFeatures(
            study_uid=header["study_uid"],
            patient_key=header["patient_key"],
            sop_uids=tuple(_list(header["sop_uids"])),
            positions_mm=arrays["positions_mm"],
            features=arrays["features"],
            logits=arrays.get("logits"),
            network=header["network"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ArtefactError(f"{path} is not a feature file of this package; extract the features again.") from error
    rows = {len(study.sop_uids), len(study.positions_mm), len(study.features)}
    if len(rows | ({len(study.logits)} if study.logits is not None else set())) != 1:
        raise ArtefactError(f"{path}: rows and SOP Instance UIDs differ in number; extract the features again.")
    return study


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


class StoreWriter:
    """Grows a store study by study, and picks up where a broken run left off.

    Studies are known by a key that stands for their input files; `fingerprint` is the encoder's, and
    what another encoder left in the folder is not taken up. With `part`, the name of a journal of its own, it only adds
    to a store that the first process of its group has opened, and closes.
    """

    def __init__(self, root: Path, fingerprint: str, *, part: str | None = None) -> None:
        self.root, self.fingerprint = root, fingerprint
        self._journal = root / (part or JOURNAL)
        self._files: dict[str, str] = {}  # a night's run holds no more than this of its studies
        if part is None:
            self._take_up()

    def _take_up(self) -> None:
        """Go on with what is there, in one journal."""
        parts = sorted(path for path in self.root.glob(".journal-*") if PART_JOURNAL.fullmatch(path.name))
        journalled: set[str] = set()
        rows = {row["key"]: row for path in (self._journal, *parts) for row in self._finished(path, journalled)}
        self._files = {key: row["file"] for key, row in rows.items()}
        remove([self.root / MANIFEST])  # the store is not whole from here on
        self._remove_all_but_rows(journalled)
        self._write_journal(rows.values())
        remove(parts)

    def _finished(self, journal: Path, journalled: set[str]) -> Iterator[dict[str, Any]]:
        """Yield the studies of a journal whose file is whole, and gather the files of all."""
        for row in read_lines(journal):
            try:
                check_journalled(row)
                if row["file"] != study_file(row["study_uid"], row["network"]):
                    continue  # no name that this store gives
                journalled.add(row["file"])
                path = self.root / row["file"]
                unharmed = path.stat().st_size == row["bytes"] and sha256_file(path) == row["sha256"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if unharmed and row["whole"] and row["fingerprint"] == self.fingerprint:
                yield row

    def _write_journal(self, rows: Iterable[dict[str, Any]]) -> None:
        write_bytes(self._journal, "".join(f"{_line(row)}\n" for row in rows).encode())

    def _remove_all_but_rows(self, journalled: set[str]) -> None:
        """Remove files of ours that no row is left of, while the journal still tells that they are ours."""
        remove(self.root / name for name in sorted(journalled - set(self._files.values())))

    def has(self, key: str) -> bool:
        """Tell whether the study of these input files is in the store."""
        return key in self._files

    def add(
        self, key: str, study: StudyFeatures, geometry: dict[str, Any], *, whole: bool, in_sample: bool = False
    ) -> None:
        """Write one study's file, then journal it.

        `geometry` are plain values for its row of the index. A study that lost slices is not `whole`:
        it is in the store, but the next run tries it again.
        """
        data = encode_study(study)
        row = {
            "key": key,
            "fingerprint": self.fingerprint,
            "file": study_file(study.study_uid, study.network),
            "bytes": len(data),
            "sha256": sha256_bytes(data),
            "study_uid": study.study_uid,
            "patient_key": study.patient_key,
            "network": study.network,
            "in_sample": in_sample,
            "slices": len(study.sop_uids),
            "whole": whole,
            **geometry,
        }
        write_bytes(self.root / row["file"], data)
        append_line(self._journal, _line(row))
        self._files[key] = row["file"]

    def added(self) -> list[dict[str, Any]]:
        """Return what this process has journalled on its own, for the first one to take; nothing if it is that."""
        return [] if self._journal.name == JOURNAL else self._journalled()

    def take(self, rows: Sequence[dict[str, Any]], parts: Iterable[str]) -> None:
        """Journal what the other processes have `added`, and remove their journals, the `parts`."""
        if rows:
            append_line(self._journal, "\n".join(map(_line, rows)))
        self._files |= {row["key"]: row["file"] for row in rows}
        remove(self.root / part for part in parts)

    def close(self, keys: Sequence[str], rejected: bytes, encoders: Sequence[str], facts: dict[str, Any]) -> None:
        """Write the index, the list of unused files and, last, the manifest that makes the store whole.

        `keys` are the rows of this run, in order; journalled ones that are not among them are removed,
        files of others never. `encoders` are the files of the encoders, `facts` JSON values for the manifest.
        """
        rows = self._rows_of(keys)
        remove(path for path in self.root.glob(encoder_file("*")) if path.name not in encoders)
        self._write_journal(rows)
        table = pd.DataFrame(rows)
        geometry = sorted(set(table.columns) - {*INDEX_COLUMNS, "key", "fingerprint"})
        write_bytes(self.root / STUDIES, table[[*INDEX_COLUMNS, *geometry]].to_parquet(index=False, engine="pyarrow"))
        write_bytes(self.root / REJECTED, rejected)
        hashes = {name: sha256_file(self.root / name) for name in (STUDIES, REJECTED, *encoders)}
        write_json(
            self.root / MANIFEST,
            {"schema": SCHEMA, "version": __version__, "fingerprint": self.fingerprint, "files": hashes, **facts},
        )

    def _rows_of(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """Return rows as they were journalled, and remove the files of all others."""
        journalled = set(self._files.values())
        self._files = {key: self._files[key] for key in keys if key in self._files}
        rows = self._journalled()
        self._remove_all_but_rows(journalled)
        return rows

    def _journalled(self) -> list[dict[str, Any]]:
        """Return the rows of this run as they were journalled."""
        rows = {row["key"]: row for row in read_lines(self._journal)}
        if missing := self._files.keys() - rows.keys():
            raise OutputError(f"{len(missing)} studies are gone from {self._journal}: it was changed meanwhile.")
        return [rows[key] for key in self._files]


def part_journal(turn: str, rank: int) -> str:
    """Return the name of the journal of a process that is not the first of its group."""
    return f".journal-{turn}-{rank}.jsonl"


def study_file(study_uid: str, network: int) -> str:
    """Return the name of the file that holds a study's features of a network."""
    return f"{short_hash(f'{study_uid} {network}')}.safetensors"


def _line(row: dict[str, Any]) -> str:
    """Return a row as the journal has it."""
    return json.dumps(row, sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureStore:
    """A whole store, opened for reading: its manifest and the index of its rows, sorted by study and network."""

    root: Path
    manifest: dict[str, Any]
    studies: pd.DataFrame

    def __iter__(self) -> Iterator[StudyFeatures]:
        """Read every study once, in the order of the index, its bytes checked; its embeddings stay on the disk.

        Of a study that several networks embedded one is taken, in turn from study to study, so that what
        learns from them sees all networks. Raises ArtefactError if bytes were changed, or are of another study.
        """
        for turn, (_, rows) in enumerate(self.studies.groupby("study_uid", sort=False)):
            row = rows.iloc[turn % len(rows)]
            path = self.root / str(row["file"])
            data = _checked_bytes(path, str(row["sha256"]))
            study = decode_study(data, path)
            on_disk = replace(study, features=_where_rows_lie(data, path))
            check_study(study, row, path)
            yield on_disk

    def __len__(self) -> int:
        return int(self.studies["study_uid"].nunique())

    def in_sample(self) -> list[str]:
        """Return the studies of which there are embeddings only by a network that learnt from their patient."""
        return sorted(self.studies.loc[self.studies["in_sample"], "study_uid"].unique())


def _where_rows_lie(data: bytes, path: Path) -> RowsOnDisk:
    """Find the embeddings among the bytes of a study's file, of the safetensors format."""
    length = int.from_bytes(data[:8], "little")
    described = parse_json(data[8 : 8 + length])["features"]
    if described["dtype"] != "F16" or len(described["shape"]) != 2:
        raise ArtefactError(f"{path} holds features of another form; extract the features again.")
    count, dim = described["shape"]
    return RowsOnDisk(path, 8 + length + described["data_offsets"][0], (count, dim), np.arange(count))


def open_store(root: Path) -> FeatureStore:
    """Open a feature store. Raises UsageError if there is none, ArtefactError if it is unfinished or damaged."""
    path = root / MANIFEST
    if not path.is_file():
        begun = " It was begun: run extract-features again to finish it." if (root / JOURNAL).exists() else ""
        raise UsageError(f"{root} is not a feature store: it has no {MANIFEST}.{begun}")
    manifest = read_manifest(path, SCHEMA)
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or not {STUDIES, REJECTED} < hashes.keys():
        raise ArtefactError(f"{path} does not vouch for the files beside it; extract the features again.")
    try:
        names = [plain_name(name) for name in hashes]
    except ValueError as error:
        raise ArtefactError(f"{path} vouches for files elsewhere; extract the features again.") from error
    for name in names:
        _checked_bytes(root / name, hashes[name])
    index = _checked_bytes(root / STUDIES, hashes[STUDIES])
    most = sum(1 for _ in root.glob("*.safetensors"))
    return FeatureStore(root=root, manifest=manifest, studies=read_index(index, root / STUDIES, most_rows=most))


def read_manifest(path: Path, schema: str, *before: str) -> dict[str, Any]:
    """Read an artefact's JSON description. Raises ArtefactError if it is damaged or of no schema named."""
    try:
        manifest: dict[str, Any] = read_json(path)
        found = manifest["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} cannot be read; make the folder again.") from error
    if found not in (schema, *before):
        raise ArtefactError(f"{path} is of schema {found!r:.80}, this version reads {schema!r}; make the folder again.")
    return manifest


def _checked_bytes(path: Path, sha256: str) -> bytes:
    try:
        data = read_whole(path)
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}; extract the features again.") from error
    if sha256_bytes(data) != sha256:
        raise ArtefactError(f"{path} was changed since it was written (SHA-256 differs); extract the features again.")
    return data
