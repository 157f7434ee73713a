"""Run the ordering, label and fold code over tables of the RSNA 2019 set, and print what they hold.

    python tools/rsna_tables.py FOLDER

FOLDER holds stage1test_slices.csv.gz (a row a slice: image_id, Patient/Study/Series ids, position and
orientation as ImagePositionPatient_1..3 and ImageOrientationPatient_1..6, labels),
stage1train_labels.csv.gz (image_id and the six labels) and stage1train_studies.csv.gz (StudyInstanceUID,
PatientID and the six study labels). No pixels are needed.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from ich_seq.dicom import SliceHeader
from ich_seq.labels import LABELS, assign_folds, read_labels
from ich_seq.metrics import weighted_log_loss
from ich_seq.studies import group_studies

FOLDS = 5


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder):
    order_studies(folder / "stage1test_slices.csv.gz")
    read_all_labels(folder / "stage1train_labels.csv.gz")
    fold_studies(folder / "stage1train_studies.csv.gz")


def order_studies(path):
    table = pd.read_csv(path).sample(frac=1, random_state=0)
    headers = [header(row) for row in table.to_dict("records")]
    start = time.perf_counter()
    studies, unused = group_studies(headers)
    seconds = time.perf_counter() - start
    known = {s.uid: positions(table[table["StudyInstanceUID"] == s.uid]) for s in studies}
    same = sum(np.allclose(s.positions_mm, known[s.uid], atol=0.02) for s in studies)
    geometry = [s.geometry for s in studies]
    click.echo(
        f"ordering   {len(studies)} studies, {len(headers)} slices shuffled, {len(unused)} left over, {seconds:.1f} s"
    )
    click.echo(f"           {same} agree with positions worked out from the table alone")
    click.echo(
        f"           {share(g.zones > 1 for g in geometry)} with two zones or more, "
        f"{sum(g.duplicates > 0 for g in geometry)} with repeated positions, "
        f"{share(abs(g.tilt_deg) > 1 for g in geometry)} tilted by more than a degree"
    )


def header(row):
    return SliceHeader(
        path=Path(), file=row["image_id"], patient_id=row["PatientID"], study_uid=row["StudyInstanceUID"],
        series_uid=row["SeriesInstanceUID"], sop_uid=row["image_id"], transfer_syntax="", image_type=(),
        acquisition=0, instance=0,
        position_mm=tuple(row[f"ImagePositionPatient_{i}"] for i in (1, 2, 3)),
        orientation=tuple(row[f"ImageOrientationPatient_{i}"] for i in range(1, 7)),
        rows=row["Rows"], columns=row["Columns"], spacing_mm=(row["PixelSpacing_1"], row["PixelSpacing_2"]),
        bits_stored=row["BitsStored"], signed=bool(row["PixelRepresentation"]), padding=None,
        slope=row["RescaleSlope"], intercept=row["RescaleIntercept"], pixel_offset=0, file_bytes=0, modified_ns=0,
    )  # fmt: skip


def positions(rows):
    """Sort the projections on the study's commonest normal, with nothing of the package."""
    cosines = rows[[f"ImageOrientationPatient_{i}" for i in range(1, 7)]]
    common = cosines.value_counts().reset_index().sort_values(["count", *cosines.columns]).iloc[-1][:6].to_numpy(float)
    normal = np.cross(common[:3], common[3:])
    normal *= np.sign(normal[np.abs(normal).argmax()]) / np.linalg.norm(normal)
    return np.sort(rows[[f"ImagePositionPatient_{i}" for i in (1, 2, 3)]].to_numpy() @ normal)


def read_all_labels(path):
    start = time.perf_counter()
    table = read_labels(path).table
    click.echo(f"labels     {len(table)} slices in {time.perf_counter() - start:.1f} s; " + prevalence(table))
    constant = np.tile(table.mean().to_numpy(), (len(table), 1))
    click.echo(f"           the prevalence as a constant scores {weighted_log_loss(constant, table.to_numpy()):.4f}")


def fold_studies(path):
    table = pd.read_csv(path)
    start = time.perf_counter()
    fold = assign_folds(table["PatientID"].to_numpy(str), table[list(LABELS)].to_numpy(np.uint8), n_folds=FOLDS, seed=0)
    seconds = time.perf_counter() - start
    patients = table.groupby("PatientID")["StudyInstanceUID"].count()
    straddling = int((table.assign(fold=fold).groupby("PatientID")["fold"].nunique() > 1).sum())
    click.echo(
        f"folds      {len(table)} studies of {len(patients)} patients ({(patients > 1).sum()} with more than one) "
        f"in {seconds:.2f} s; {straddling} patients straddle; " + prevalence(table[list(LABELS)])
    )
    for number, part in table.groupby(fold):
        click.echo(f"           fold {number}: {len(part)} studies; " + prevalence(part[list(LABELS)]))


def prevalence(table):
    return ", ".join(f"{label} {100 * table[label].mean():.2f} %" for label in LABELS)


def share(flags):
    return f"{100 * np.mean(list(flags)):.1f} %"


if __name__ == "__main__":
    main()
