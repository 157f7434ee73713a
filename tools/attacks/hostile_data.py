"""Input that holds hostile texts wherever text may stand: DICOM files and their names, tables, a bundle's card."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attacks.payloads import Payload
from attacks.raw_dicom import slice_bytes
from ich_seq.labels import LABELS, SUBTYPES
from ich_seq.report import GEOMETRY_COLUMNS, MACHINE_COLUMNS

READ = ("Manufacturer", "ManufacturerModelName", "ImageType", "PatientID")
UNREAD = ("PatientName", "StudyDescription", "SeriesDescription", "ProtocolName", "InstitutionName", "ImageComments")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
GATED = ("SOPClassUID", "Modality", "PhotometricInterpretation", "RescaleSlope", "ImagePositionPatient", "PixelSpacing")
"""Elements that a file is refused for: what is said of it must not repeat them."""

READS = tuple(f"R{r}:{read}" for r in (1, 2, 3) for read in ("EDH", "IPH", "IVH", "SAH", "SDH", "ICH"))
"""The columns of CQ500's reads.csv."""

SLICES, LONGEST_PREDICTOR = 2, 60


def study_uid(number: int) -> str:
    """Return the UID of a study whose own text is hostile, but not its UIDs."""
    return f"1.2.840.99.{number}"


def write_tree(root: Path, payloads: Sequence[Payload]) -> int:
    """Write a folder a payload, called by it; return how many files there are.

    In each lie two sound slices, one for each element that is refused if it is hostile, and one that is no DICOM.
    """
    for number, payload in enumerate(payloads):
        folder = root / payload.file_name
        folder.mkdir(parents=True)
        uid, text = study_uid(number), dict.fromkeys((*READ, *UNREAD), payload.data)
        names = [payload.file_name, f"{payload.file_name}.dcm"]
        for k, name in enumerate(names, start=1):
            (folder / name).write_bytes(slice_bytes(text, study=uid, number=k))
        for k, keyword in enumerate((*UIDS, *GATED), start=1):
            data = slice_bytes(text | {keyword: payload.data}, study=f"{uid}.{k}", number=1)
            (folder / f"{payload.file_name}.{k}").write_bytes(data)
        data = slice_bytes(text, study=f"{uid}.99", number=1, syntax=payload.data)
        (folder / f"{payload.file_name}.98").write_bytes(data)
        (folder / f"{payload.file_name}.99").write_bytes(payload.data)
    return sum(path.is_file() for path in root.rglob("*"))


def write_tree_labels(path: Path, n_payloads: int) -> None:
    """Write the labels of the sound slices of a tree."""
    rows = [
        [f"{study_uid(number)}.{k}_{label}", int(number % 2 == 0 and label in ("any", SUBTYPES[number % 5]))]
        for number in range(n_payloads)
        for k in range(1, SLICES + 1)
        for label in LABELS
    ]
    path.write_bytes(table(["ID", "Label"], rows))


def table(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> bytes:
    """Return a CSV; the texts in it may be no UTF-8."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows([list(heads), *map(list, rows)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def slice_table(payloads: Sequence[Payload]) -> bytes:
    """Return a table of slices with DICOM keywords as columns; each payload once in each of these."""
    text = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", *READ, *UNREAD)
    numbers = {
        "Rows": 512, "Columns": 512, "BitsStored": 12, "PixelRepresentation": 0, "RescaleSlope": 1,
        "RescaleIntercept": -1024, **{f"PixelSpacing_{k}": 0.5 for k in (1, 2)},
        **{f"ImageOrientationPatient_{k}": value for k, value in enumerate((1, 0, 0, 0, 1, 0), start=1)},
    }  # fmt: skip
    rows = []
    for number, payload in enumerate(payloads):
        for k in range(len(text)):
            given = [payload.text if k == column else f"7.{number}.{k}" for column in range(len(text))]
            rows.append([*given, *numbers.values(), 0, 0, 5 * k, *_bits(number)])
        rows.append([payload.text, "1", payload.text, *given[3:], *numbers.values(), "x", 0, 0, *_bits(number)])
    places = [f"ImagePositionPatient_{k}" for k in (1, 2, 3)]
    return table([*text, *numbers, *places, *LABELS], rows)


def _bits(number: int) -> list[int]:
    """Return labels of a slice or study, in turn of each subtype and of none."""
    found = [int(number % 6 == k) for k in range(len(SUBTYPES))]
    return [*found, max(found)]


def study_table(payloads: Sequence[Payload]) -> bytes:
    """Return a table of studies named by payloads, of patients named so, some rows to be refused."""
    heads = ["StudyInstanceUID", "PatientID", *LABELS]
    rows = [[p.text, f"p{p.text}", *_bits(number)] for number, p in enumerate(payloads)]
    return table(heads, [*rows, *([f"{p.text}x", p.text, *([2] * len(LABELS))] for p in payloads)])


def label_table(payloads: Sequence[Payload]) -> bytes:
    """Return labels of slices named by payloads."""
    return table(["sop_uid", *LABELS], ([p.text, *_bits(number)] for number, p in enumerate(payloads)))


def write_results(folder: Path, payloads: Sequence[Payload]) -> None:
    """Write what predict might have: studies, slices, scanners, patients, predictors and reasons named by payloads.

    Predictors have names that are accepted, short and printable; `refusals` has the others. Beside it lie labels:
    `labels.csv` of slices, `reads.csv` of studies, as CQ500 has them.
    """
    folder.mkdir(parents=True)
    accepted = [p.text for p in payloads if p.text.isprintable() and len(p.text) <= LONGEST_PREDICTOR]
    predictors = [f"{name}_{label}" for name in accepted for label in LABELS]
    said = [[(0.3 + 0.01 * (n + k)) % 1 for k in range(len(LABELS) + len(predictors))] for n in range(len(payloads))]
    slices = [[p.text, f"{k}{p.text}", 5 * k, *said[n]] for n, p in enumerate(payloads) for k in range(SLICES)]
    heads = ["study_uid", "sop_uid", "position_mm", *LABELS, *predictors]
    (folder / "slices.csv").write_bytes(table(heads, slices))
    geometry = dict.fromkeys(GEOMETRY_COLUMNS, 5)
    described = ["slices", *geometry, *MACHINE_COLUMNS, "novelty", "patient", "patient_id"]
    studies = [
        [p.text, *said[n], SLICES, *geometry.values(), 512, 512, p.text, 1, f"p{p.text}", p.text]
        for n, p in enumerate(payloads)
    ]
    (folder / "studies.csv").write_bytes(table(["study_uid", *LABELS, *predictors, *described], studies))
    truth = [[f"{k}{p.text}", *_bits(n)] for n, p in enumerate(payloads) for k in range(SLICES)]
    (folder / "labels.csv").write_bytes(table(["sop_uid", *LABELS], truth))
    reads = [[p.text, *3 * _bits(n)] for n, p in enumerate(payloads)]
    (folder / "reads.csv").write_bytes(table(["name", *READS], reads))
    reasons = {p.text: 1 for p in payloads}
    counts = {"files": 9, "used": 9, "excluded": 0, "rejected": 0, "reasons": reasons}
    (folder / "run.json").write_text(json.dumps({"counts": counts, "card_sha256": payloads[0].text}))


def write_bundle(sound: Path, folder: Path, payloads: Sequence[Payload]) -> None:
    """Copy a bundle; where its card holds text that nothing checks, let it hold all payloads."""
    shutil.copytree(sound, folder)
    card = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    texts = [payload.text for payload in payloads]
    whole = " ".join(texts)
    training = card["training"]
    training |= {"labels_sha256": whole, "features_fingerprint": whole}
    training["versions"] |= {text: text for text in texts}
    training["settings"] |= {text: text for text in texts}
    for encoder in card["encoders"]:
        encoder["weights"] = whole
    card["figures"] |= {text: next(iter(card["figures"].values())) for text in texts}
    card |= {"intended_use": whole, "version": whole, **{text: text for text in texts}}
    (folder / "bundle.json").write_text(json.dumps(card))
