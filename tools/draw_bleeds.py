"""Draw haemorrhages into real heads: more bleeds to learn from than the patients at hand have.

    python tools/draw_bleeds.py DICOM --labels LABELS --out OUT [--copies 2] [--seed 0]

Each study of DICOM is written to OUT/dicom again, under new UIDs but with its patient's ID, with bleeds of the five
subtypes drawn into it as the phantoms have them. OUT/labels.csv labels the slices in which something was drawn, and no
others: what is seen there, drawn or there before. They are to be learnt from, and as little evidence about patients as
phantoms are:

    ich-seq train-cnn DICOM OUT/dicom --labels LABELS --also OUT/labels.csv --out first
    ich-seq train-cnn DICOM --labels LABELS --begin first --out second

What is drawn keeps the noise and the edges of the image below it. A head whose brain is not found, and a study that
is no evenly sized stack, is left out and named.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage
from stability import store

from ich_seq import IchSeqError, OutputError, UsageError
from ich_seq.dicom import SliceHeader
from ich_seq.files import make_folder, write_bytes
from ich_seq.hounsfield import read_hounsfield
from ich_seq.labels import LABELS, SUBTYPES, SliceLabels, read_labels
from ich_seq.phantom_anatomy import Head, draw_bleed, texture
from ich_seq.phantom_labels import draw_labels
from ich_seq.progress import Progress, shown, silent
from ich_seq.reasons import Refused
from ich_seq.samples import label_slices
from ich_seq.studies import Study, find_studies
from ich_seq.tables import csv_rows
from ich_seq.terminal import print_result

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = list[tuple[str, int]]
Mask = NDArray[np.bool_]

BONE_HU = 180
BRAIN_HU = (-12, 95)
"""Of smoothed pixels, fresh blood included; what is brighter is bone, what is darker fat or air."""

CLEARANCE_MM, REACH_TO_BONE_MM = 3.5, 2.5
"""Brain is taken apart from what hangs on it by bridges thinner than twice the first; bone lies within the second."""

IN_BONE, LEAST_MM2, LEAST_BRAIN_MM2 = 0.65, 250, 5000
"""How much of its rim is bone where a region is a brain's, the smallest region, and the largest slice of a head."""

FLUID_HU, SHOWN_HU, SHOWN_MM2 = 26, 6, 25
"""Below the first is fluid. A slice holds a drawn bleed if so many mm2 of it are so much brighter."""

SMOOTHING_MM = 1.0
BLEEDING = 0.6
"""Studies of phantoms are ranked by their subtypes; from here on all bleed (see `phantom_labels`)."""

EPIDURAL_SHARE = 0.15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dicom", type=Path, nargs="+")
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=2, help="of each study, each with other bleeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    try:
        with shown(quiet=False) as progress:
            left_out = write_drawn(
                chosen.dicom,
                chosen.labels,
                chosen.out,
                copies=chosen.copies,
                seed=chosen.seed,
                workers=chosen.workers,
                progress=progress,
            )
    except IchSeqError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print_result(f"{chosen.out}; left out: {', '.join(left_out) or 'none'}")


class Drawn(NamedTuple):
    """A study with bleeds drawn in: (N, H, W) HU, which slices hold which of them, (N, K), and where pixels changed."""

    hu: Floats
    targets: NDArray[np.uint8]
    changed: Mask


def find_brain(hu: Floats, pixel_mm: float) -> Mask:
    """Return the inside of the skull on one slice, (H, W): soft, clear of bridges, and mostly rimmed by bone.

    Of several such regions the largest. All False where there is none.
    """
    smooth = ndimage.gaussian_filter(np.clip(hu, -200, 400), SMOOTHING_MM / pixel_mm)
    bone = hu > BONE_HU
    soft = (smooth > BRAIN_HU[0]) & (smooth < BRAIN_HU[1]) & ~bone
    if not bone.any():
        return np.zeros(hu.shape, bool)
    regions, count = ndimage.label(to_edge_mm(soft, pixel_mm) > CLEARANCE_MM)
    near_bone = to_edge_mm(~bone, pixel_mm) <= REACH_TO_BONE_MM
    areas_mm2 = ndimage.sum_labels(regions > 0, regions, np.arange(1, count + 1)) * pixel_mm**2
    for number in np.argsort(-areas_mm2)[:3]:
        if areas_mm2[number] < LEAST_MM2:
            break
        grown = to_edge_mm(regions != number + 1, pixel_mm) <= CLEARANCE_MM + pixel_mm
        region = ndimage.binary_fill_holes(grown & soft)
        rim = (to_edge_mm(~region, pixel_mm) <= REACH_TO_BONE_MM) & ~region
        if rim.any() and near_bone[rim].mean() > IN_BONE:
            return np.asarray(region)
    return np.zeros(hu.shape, bool)


def to_edge_mm(inside: Mask, pixel_mm: float) -> Floats:
    """Return how far each pixel inside a region lies from what is outside, in mm, (H, W); 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(inside) * pixel_mm, np.float32)


def read_head(hu: Floats, positions_mm: Doubles, pixel_mm: float, rng: np.random.Generator) -> Head | None:
    """Return a real head, (N, H, W) HU, as `draw_bleed` takes those of phantoms; None if no brain is found.

    Its `hu` are smoothed: what a bleed adds to them is then added to the image, whose noise stays. Fluid deep inside is
    taken for ventricles, fluid near the rim for sulci; as 5 mm slices hide most of these, some are drawn.
    """
    brain = np.stack([find_brain(one, pixel_mm) for one in hu])
    areas_mm2 = brain.sum(axis=(1, 2)) * pixel_mm**2
    if areas_mm2.max() < LEAST_BRAIN_MM2 or np.ptp(positions_mm) == 0:
        return None
    x, y = _from_middle(brain[areas_mm2 > 0.7 * areas_mm2.max()].any(axis=0), pixel_mm)
    depth = np.stack([_depth(one, pixel_mm) for one in brain])
    smooth = ndimage.gaussian_filter(np.clip(hu, -100, 120), (0, SMOOTHING_MM / pixel_mm, SMOOTHING_MM / pixel_mm))
    share = np.clip(depth / pixel_mm + 0.5, 0, 1) * (smooth > -5)
    fluid = np.clip((FLUID_HU - smooth) / 8, 0, 1) * np.clip((smooth + 8) / 6, 0, 1) * share
    folds = texture(hu.shape, 4.2 / pixel_mm, rng)
    drawn = np.clip(1.25 - np.abs(folds) / rng.uniform(0.12, 0.3), 0, 1) * np.clip((16 - depth) / 6, 0, 1) * share
    return Head(
        x=x,
        y=y,
        angle=np.arctan2(y, x),
        z=((positions_mm - positions_mm[0]) / np.ptp(positions_mm)).astype(np.float32),
        depth=depth,
        brain=share.astype(np.float32),
        sulci=np.maximum(fluid * np.clip((22 - depth) / 6, 0, 1), 0.9 * drawn).astype(np.float32),
        ventricles=_ventricles(fluid * _core(x, y) * (depth > 16)),
        folds=folds,
        hu=smooth.astype(np.float32),
        pixel_mm=pixel_mm,
    )


def _from_middle(inside: Mask, pixel_mm: float) -> tuple[Floats, Floats]:
    """Return how far each pixel lies to the left and to the back of the middle of a region, in mm, (H, W) each."""
    middles = [(found[0] + found[-1]) / 2 for found in (np.flatnonzero(inside.any(axis=a)) for a in (1, 0))]
    rows, columns = (
        ((np.arange(n) - middle) * pixel_mm).astype(np.float32) for n, middle in zip(inside.shape, middles, strict=True)
    )
    return np.broadcast_to(columns, inside.shape).copy(), np.broadcast_to(rows[:, None], inside.shape).copy()


def _depth(inside: Mask, pixel_mm: float) -> Floats:
    """Return how deep inside a region each pixel lies, in mm, negative outside; far outside where there is none."""
    if not inside.any():
        return np.full(inside.shape, -1e3, np.float32)
    return to_edge_mm(inside, pixel_mm) - to_edge_mm(~inside, pixel_mm)


def _core(x: Floats, y: Floats) -> Floats:
    """Return 1 where ventricles are to be expected and 0 far from there, (H, W)."""
    return np.exp(-((x / 36) ** 6) - (y / 52) ** 6)


def _ventricles(fluid: Floats) -> Floats:
    """Return fluid that is more than a line, (N, H, W), as a share of the pixel."""
    bulky = ndimage.gaussian_filter(ndimage.grey_opening(fluid, size=(1, 3, 3)), (0, 0.7, 0.7))
    return np.clip(1.5 * bulky, 0, 1).astype(np.float32)


def draw_bleeds(hu: Floats, positions_mm: Doubles, pixel_mm: float, rng: np.random.Generator) -> Drawn | None:
    """Draw bleeds into a study, (N, H, W) HU, as often and as long as RSNA 2019 has them; None if it has no brain."""
    head = read_head(hu, positions_mm, pixel_mm, rng)
    if head is None:
        return None
    plan = draw_labels(len(hu), rng, enrich=EPIDURAL_SHARE, quantile=rng.uniform(BLEEDING, 1))
    before, targets = head.hu.copy(), np.zeros((len(hu), len(LABELS)), np.uint8)
    for body in plan.bodies:
        without = head.hu.copy()
        draw_bleed(head, body, rng)
        seen_mm2 = (np.abs(head.hu - without) > SHOWN_HU).sum(axis=(1, 2)) * pixel_mm**2
        if body.subtype == "intraparenchymal":  # whose oedema is no blood
            seen_mm2 = (head.hu - without > SHOWN_HU).sum(axis=(1, 2)) * pixel_mm**2
        targets[:, SUBTYPES.index(body.subtype)] |= seen_mm2 > SHOWN_MM2
    targets[:, -1] = targets[:, :-1].max(axis=1)
    return Drawn(hu + (head.hu - before), targets, np.abs(head.hu - before).max(axis=(1, 2)) > 0)


# Files


def write_drawn(
    dicom: Sequence[Path],
    labels: Path,
    out: Path,
    *,
    copies: int,
    seed: int,
    workers: int,
    progress: Progress = silent,
) -> list[str]:
    """Write `copies` of each study to OUT/dicom, each with other bleeds, and OUT/labels.csv; return who was left out.

    The same input, number and seed give the same bytes. Raises what reading raises, UsageError if no study has a
    labelled slice or for no copies, and OutputError if OUT holds DICOM files already.
    """
    if copies < 1:
        raise UsageError(f"{copies} copies are none; ask for 1 or more.")
    known = read_labels(labels)
    studies = find_studies(dicom, skip=out, workers=workers, progress=progress).studies
    if not len(label_slices(studies, known)[0]):
        raise UsageError(f"None of the {len(studies)} studies has a labelled slice in {labels}.")
    make_folder(out / "dicom")
    if any((out / "dicom").iterdir()):
        raise OutputError(f"{out / 'dicom'} is not empty; remove it or choose another --out.")
    jobs = [(study, copy) for study in studies for copy in range(copies)]
    write = partial(_write_one, known=known, folder=out / "dicom", seed=seed)
    rows: Rows = []
    left_out: dict[str, None] = {}
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), mp_context=spawned) as pool:
        for done, ((study, _), written) in enumerate(zip(jobs, pool.map(write, jobs), strict=True), start=1):
            rows += written or []
            if written is None:
                left_out[study.uid] = None
            progress("drawing bleeds", done, len(jobs))
    write_bytes(out / "labels.csv", csv_rows([["ID", "Label"], *rows]))
    return list(left_out)


def _write_one(job: tuple[Study, int], *, known: SliceLabels, folder: Path, seed: int) -> Rows | None:
    """Draw into one study and write its slices; return the rows of their labels, None if it was left out."""
    config.settings.writing_validation_mode = config.IGNORE  # IDs of RSNA are no UIDs
    study, copy = job
    key = (seed, copy, study.uid)
    drawn = _drawn(study, np.random.default_rng(int(_hash(key), 16)))
    if drawn is None:
        return None
    uids = [f"2.25.{int(_hash((*key, header.sop_uid)), 16)}" for header in study.slices]
    for uid, header, hu in zip(uids, study.slices, drawn.hu, strict=True):
        _dataset(study, header, hu, uid, key).save_as(folder / f"{uid}.dcm", enforce_file_format=True)
    return list(_rows(study, uids, drawn, known))


def _drawn(study: Study, rng: np.random.Generator) -> Drawn | None:
    """Draw into a study; None if it is no even stack, cannot be read whole or shows no brain."""
    sizes = {(header.rows, header.columns, header.spacing_mm) for header in study.slices}
    if len(sizes) > 1 or len(study.slices) < 2 or not np.isclose(*study.slices[0].spacing_mm):
        return None
    try:
        hu = np.stack([read_hounsfield(header) for header in study.slices])
    except Refused:
        return None
    return draw_bleeds(hu, study.positions_mm, study.slices[0].spacing_mm[0], rng)


def _rows(study: Study, uids: Sequence[str], drawn: Drawn, known: SliceLabels) -> Iterator[tuple[str, int]]:
    """Yield the rows of labels: of slices in which a bleed was drawn, and whose own labels are known."""
    sops = np.array([header.sop_uid for header in study.slices])
    told = np.flatnonzero((known.table.index.get_indexer(sops) >= 0) & drawn.targets.any(axis=1))
    both = np.maximum(drawn.targets[told], known.targets(sops[told].tolist())) if told.size else []
    for k, targets in zip(told, both, strict=True):
        yield from ((f"{uids[k]}_{label}", int(value)) for label, value in zip(LABELS, targets, strict=True))


def _hash(key: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _dataset(study: Study, header: SliceHeader, hu: Floats, sop_uid: str, key: tuple[object, ...]) -> Dataset:
    """Return a CT image where the slice lay, of its patient, in a study and series of their own.

    A study whose Patient ID was emptied stands for a patient of its own: by that name, so that what is drawn into it
    is of the same.
    """
    ds, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop_uid
    ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta, CTImageStorage, sop_uid, "CT"
    ds.PatientID, ds.PatientName = study.patient_id, ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = (f"2.25.{int(_hash((*key, what)), 16)}" for what in ("study", "series"))
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [f"{v:.6f}" for v in header.position_mm]
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in header.orientation]
    ds.PixelSpacing = [f"{v:.6f}" for v in header.spacing_mm]
    ds.AcquisitionNumber, ds.InstanceNumber = header.acquisition, header.instance
    ds.SamplesPerPixel = 1
    store(ds, hu)
    return ds


if __name__ == "__main__":
    main()
