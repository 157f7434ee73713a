"""Synthetic head CT with bleeds of the five subtypes, written as DICOM, for the demo and the tests.

Nothing in it was taken from a patient. Labels are drawn first, after the statistics of the RSNA 2019
challenge (`phantom_labels`); the pixels then follow the labels (`phantom_anatomy`); this module scans
the head, encodes it as variously as scanners do and writes the files and the tables of a data set.

Crude on purpose: no bleed pushes the midline, and several studies of one patient agree in anatomy
only. Good for showing that the software works; worthless as evidence about patients.
"""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ich_seq import OutputError, UsageError
from ich_seq.files import make_folder
from ich_seq.labels import LABELS
from ich_seq.phantom_anatomy import AIR_HU, Head, draw_bleed, draw_head
from ich_seq.phantom_labels import DEMO_EPIDURAL, SLICES_MEAN, Doubles, draw_labels
from ich_seq.progress import Progress, silent

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["PhantomSet", "PhantomStudy", "draw_labels", "draw_study", "write_dataset", "write_study"]

# RSNA 2019 headers: slices a study 34.5 sd 5.0 (20-60), two zones 43 %, repeated passes 1.3 %.
SLICES_SD, SLICES_RANGE = 5.0, (20, 60)
TWO_ZONES, REPEATED, TILTED, TILT_DEG = 0.43, 0.013, 0.70, (-18.0, 30.0)  # tilt: 53 %, 91 % there
PIXEL_512_MM, PIXEL_SD_MM = 0.488, 0.006  # RSNA 2019: .488 in 96.5 % of the series
SHARED_PATIENT = 0.165  # of neighbouring pairs of studies: 9 % of RSNA patients have more than one
RSNA_STYLE, MANY_WINDOWS, PADDED, SCOUT = 0.60, 0.04, 0.36, 0.03  # all, 4 %, 376/1,044, ours
PADDING_HU = -3024  # GE: stored -2000 with intercept -1024
DENSEST_HU = 1900


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How Hounsfield units are stored; `share` of the studies of a data set."""

    bits: int
    signed: bool
    intercept: int
    share: float
    wrapped: bool = False


# RSNA 2019, 752,803 slices: 43 %, .9 %, 55 %, .4 %, .3 %; the rare ones are raised so that a demo
# meets them. The wrapped one (123 slices there) is written on request only.
ENCODINGS = {
    "u12-1024": Encoding(bits=12, signed=False, intercept=-1024, share=0.40),
    "u12-1000": Encoding(bits=12, signed=False, intercept=-1000, share=0.06),
    "s16-1024": Encoding(bits=16, signed=True, intercept=-1024, share=0.42),
    "s16+0": Encoding(bits=16, signed=True, intercept=0, share=0.06),
    "s12+0": Encoding(bits=12, signed=True, intercept=0, share=0.06),
    "u12-wrapped": Encoding(bits=12, signed=False, intercept=0, share=0.0, wrapped=True),
}
COMPRESSED = 0.05  # ours: share of the studies stored RLE lossless
SYNTAXES = ("implicit", "explicit", "rle")


# ---- the scan: where the slices lie -------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Scan:
    """Geometry of one series of N files that show n distinct slices; n < N where a pass was repeated."""

    table_mm: Doubles  # (n,) heights of the distinct slices, rising
    shown: NDArray[np.intp]  # (N,) distinct slice behind each file, never falling
    acquisition: NDArray[np.intp]  # (N,) 1, or 2 on a repeated pass
    tilt_deg: float
    pixel_mm: float
    corner_mm: tuple[float, float]  # of the image, along row and column

    def corners(self) -> Doubles:
        """Return ImagePositionPatient, (N, 3) mm: the table moves along z whatever the gantry's tilt."""
        (u, v), tilt = self.corner_mm, np.deg2rad(self.tilt_deg)
        offset = np.array([u, v * np.cos(tilt), -v * np.sin(tilt)])
        z = self.table_mm[self.shown]
        return np.asarray(offset + z[:, None] * np.array([0.0, 0.0, 1.0]), np.float64)


def draw_scan(matrix: int, rng: np.random.Generator) -> Scan:
    """Draw slices, spacing, tilt and pixel size as mixed as in the RSNA headers.

    `matrix` is H = W in pixels; the fewer, the larger they are. Refuses nothing.
    """
    n = int(np.clip(round(rng.normal(SLICES_MEAN, SLICES_SD)), *SLICES_RANGE))
    height, low = rng.normal(158, 8), rng.uniform(0.22, 0.34) if rng.random() < TWO_ZONES else 0.0
    coarse = float(np.clip(round(height * (1 + low) / n, 1), 2.1, 6.4))
    fine = round(low * n * coarse / (1 + low) / (coarse / 2)) if low else 0
    steps = np.where(np.arange(n - 1) < fine, coarse / 2, coarse)
    table = rng.uniform(-900, 300) + np.concatenate([[0.0], np.cumsum(steps)])
    shown, acquisition = np.arange(n), np.ones(n, np.intp)
    if rng.random() < REPEATED:
        first = int(rng.integers(0, n - 8))
        again = np.arange(first, first + int(rng.integers(3, 9)))
        shown, acquisition = np.append(shown, again), np.append(acquisition, np.full(len(again), 2))
        order = np.argsort(shown, kind="stable")
        shown, acquisition = shown[order], acquisition[order]
    pixel = max(rng.normal(PIXEL_512_MM, PIXEL_SD_MM), 0.45) * 512 / matrix
    return Scan(
        table_mm=np.round(table, 4),
        shown=shown,
        acquisition=acquisition,
        tilt_deg=round(rng.uniform(*TILT_DEG), 2) if rng.random() < TILTED else 0.0,
        pixel_mm=round(pixel, 6),
        corner_mm=(-pixel * matrix / 2 + rng.uniform(-5, 5), -pixel * matrix / 2 - rng.uniform(0, 150)),
    )


# ---- a study ------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class PhantomStudy:
    """One synthetic study of N files; all arrays run feet to head, ties in the order of acquisition.

    hounsfield     (N, H, W) int16, HU; corners hold -3024 where the scanner pads
    positions_mm   (N,) float64, corner on the slice normal, never falling
    corners_mm     (N, 3) float64, ImagePositionPatient
    targets        (N, K) uint8, `any` the maximum of the others
    acquisitions   N numbers: 2 on the slices of a repeated pass, else 1
    rsna_style     ids and header fields as RSNA left them, else valid UIDs and a fuller header
    encoding       a name in ENCODINGS; `syntax` one in SYNTAXES
    windows        two display windows in the header instead of one
    scout          a localizer comes with the study
    """

    patient_id: str
    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]
    hounsfield: NDArray[np.int16]
    positions_mm: Doubles
    corners_mm: Doubles
    tilt_deg: float
    pixel_spacing_mm: float
    targets: NDArray[np.uint8]
    acquisitions: tuple[int, ...]
    rsna_style: bool
    encoding: str
    syntax: str
    windows: bool
    scout: bool


def _rng(*key: object) -> np.random.Generator:
    """A stream of its own for each key, the same in every process."""
    return np.random.default_rng(int(hashlib.sha256(repr(key).encode()).hexdigest()[:32], 16))


def _uid(*key: object, rsna: bool) -> str:
    """`ID_` and nine hex digits as RSNA has them, or a valid UID under 2.25."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    return f"ID_{digest[:9]}" if rsna else f"2.25.{int(digest[:32], 16)}"


def _patient(index: int, seed: int) -> int:
    """First study of the patient of study `index`: itself, or the even one before it."""
    pair = index // 2
    return 2 * pair if _rng(seed, "pair", pair).random() < SHARED_PATIENT else index


def label_quantile(index: int, seed: int) -> float:
    """Return the rank in [0, 1) of study `index` among the sets of subtypes, for `draw_labels`.

    Golden-ratio steps, so that any few dozen studies hold their fair share of each set.
    """
    return (_rng(seed, "offset").random() + index * 0.6180339887498949) % 1.0


def _finish(head: Head, scan: Scan, matrix: int, padded: bool, rng: np.random.Generator) -> NDArray[np.int16]:
    """(N, H, W) HU of the files: the head on its headrest, noise of the scanner, padding."""
    _, h, w = head.hu.shape
    grid = (np.arange(matrix, dtype=np.float32) - (matrix - 1) / 2) * scan.pixel_mm
    far = np.hypot(grid, grid[:, None])
    rest = np.abs(np.hypot(grid, grid[:, None] + 4) - rng.uniform(104, 109)) < 1.6
    rest &= grid[:, None] > 45
    scene = np.where(rest & (rng.random() < 0.7), np.float32(-150), np.float32(AIR_HU))
    image = np.repeat(scene[None], len(scan.shown), axis=0)
    drift = 0.3 * (scan.table_mm - scan.table_mm.mean()) * np.sin(np.deg2rad(scan.tilt_deg))
    left, up = (matrix - w) // 2 + int(rng.integers(-3, 4)), (matrix - h) // 2
    for file, k in enumerate(scan.shown):
        top = up + round(float(drift[k]) / scan.pixel_mm)
        rows = slice(max(top, 0), min(top + h, matrix))
        columns = slice(max(left, 0), min(left + w, matrix))
        part = head.hu[k, rows.start - top :, columns.start - left :]
        part = part[: rows.stop - rows.start, : columns.stop - columns.start]
        np.copyto(image[file, rows, columns], part, where=part > AIR_HU + 1)
    noise = rng.standard_normal((len(image), matrix + 1, matrix + 1), dtype=np.float32)
    noise = noise[:, 1:, :-1] + noise[:, :-1, :-1] + noise[:, 1:, 1:] + noise[:, :-1, 1:]
    image += noise * np.float32(rng.uniform(3, 6) / 2)
    image = np.clip(np.rint(image), -1024, DENSEST_HU)
    image[:, far > matrix / 2 * scan.pixel_mm] = PADDING_HU if padded else -1024
    return np.asarray(image, np.int16)


def draw_study(
    index: int, *, seed: int, matrix: int = 256, enrich: float = DEMO_EPIDURAL, lesions: bool = True
) -> PhantomStudy:
    """Draw study number `index` of the data set `seed`, the same whatever else is drawn.

    `matrix` is H = W in pixels; fewer than 32 are refused (UsageError). `enrich` as in `draw_labels`.
    Without `lesions` the pixels are those of the same study before it bled; the labels stay.
    """
    if matrix < 32:
        raise UsageError(f"a phantom of {matrix} pixels shows nothing; ask for 32 or more")
    rng = _rng(seed, index, "study")
    scan = draw_scan(matrix, rng)
    plan = draw_labels(len(scan.table_mm), rng, enrich=enrich, quantile=label_quantile(index, seed))
    patient = _patient(index, seed)
    head = draw_head(scan.table_mm, scan.pixel_mm, _rng(seed, patient, "head"))
    for number, body in enumerate(plan.bodies if lesions else ()):
        draw_bleed(head, body, _rng(seed, index, "bleed", number))
    rsna = bool(rng.random() < RSNA_STYLE)
    encoding = str(rng.choice(list(ENCODINGS), p=[e.share for e in ENCODINGS.values()]))
    padded = encoding.startswith("s16") and bool(rng.random() < PADDED / 0.48)
    syntax = "rle" if rng.random() < COMPRESSED else str(rng.choice(SYNTAXES[:2]))
    corners, tilt = scan.corners(), np.deg2rad(scan.tilt_deg)
    return PhantomStudy(
        patient_id=_uid(seed, patient, "patient", rsna=True)[:11],
        study_uid=_uid(seed, index, "study", rsna=rsna),
        series_uid=_uid(seed, index, "series", rsna=rsna),
        sop_uids=tuple(_uid(seed, index, "sop", k, rsna=rsna) for k in range(len(corners))),
        hounsfield=_finish(head, scan, matrix, padded, _rng(seed, index, "noise")),
        positions_mm=corners @ np.array([0.0, np.sin(tilt), np.cos(tilt)]),
        corners_mm=corners,
        tilt_deg=scan.tilt_deg,
        pixel_spacing_mm=scan.pixel_mm,
        targets=plan.targets[scan.shown],
        acquisitions=tuple(int(a) for a in scan.acquisition),
        rsna_style=rsna,
        encoding=encoding,
        syntax=syntax,
        windows=bool(rng.random() < MANY_WINDOWS),
        scout=bool(not rsna and rng.random() < SCOUT / (1 - RSNA_STYLE)),
    )


# ---- DICOM --------------------------------------------------------------------------------------
def _stored(hounsfield: NDArray[np.int16], encoding: Encoding) -> NDArray[np.int16]:
    """Stored values, clipped to what the container holds; 12-bit unsigned ones fit int16 too."""
    values = hounsfield.astype(np.int32) - encoding.intercept
    if encoding.wrapped:  # 12-bit scanners that wrapped at 4096 and lost their intercept
        return (np.maximum(values, -1000) % 4096).astype(np.int16)
    low = -(2 ** (encoding.bits - 1)) if encoding.signed else 0
    return np.clip(values, low, low + 2**encoding.bits - 1).astype(np.int16)


def _frame(study: PhantomStudy, sop: str, pixels: NDArray[np.int16], encoding: Encoding) -> Dataset:
    """A data set with everything but position: what RSNA kept of a header, and the pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    ds, meta = Dataset(), FileMetaDataset()
    implicit = study.syntax == "implicit"
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(_uid(sop, rsna=False) if study.rsna_style else sop)
    ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta, CTImageStorage, sop, "CT"
    ds.PatientID, ds.PatientName, ds.StudyID = study.patient_id, "", ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.study_uid, study.series_uid
    ds.PixelSpacing = [f"{study.pixel_spacing_mm:.6f}"] * 2
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.BitsAllocated = 1, "MONOCHROME2", 16
    ds.BitsStored, ds.HighBit = encoding.bits, encoding.bits - 1
    ds.PixelRepresentation = int(encoding.signed)
    ds.RescaleSlope, ds.RescaleIntercept = "1", str(encoding.intercept)
    ds.WindowCenter = ["00040", "00040"] if study.windows else "40"
    ds.WindowWidth = ["00080", "00080"] if study.windows else "80"
    if int(study.hounsfield[0, 0, 0]) == PADDING_HU and encoding.bits == 16 and encoding.signed:
        ds.add_new(0x00280120, "SS", PADDING_HU - encoding.intercept)
    ds.PixelData = pixels.tobytes()
    return ds


def _place(ds: Dataset, corner: Doubles, row: Doubles, column: Doubles) -> None:
    ds.ImagePositionPatient = [f"{v:.6f}" for v in corner]
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in (*row, *column)]


def _describe(ds: Dataset, study: PhantomStudy, number: int, acquisition: int, kind: str) -> None:
    """The fields that RSNA took out: who made the image, and which one of the series it is."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", kind]
    ds.Manufacturer, ds.ManufacturerModelName = "ich_seq", "phantom"
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber = 2, number, acquisition
    ds.FrameOfReferenceUID = _uid(study.study_uid, "frame", rsna=False)
    ds.GantryDetectorTilt = f"{study.tilt_deg:.2f}"
    if kind == "AXIAL":
        ds.SliceThickness = f"{float(np.median(np.diff(np.unique(study.positions_mm)))):.3f}"


def _numbers(study: PhantomStudy) -> list[int]:
    """Instance numbers, feet to head, head to feet or in no order: they must not be trusted."""
    numbers = np.arange(1, len(study.sop_uids) + 1)
    rng = _rng(study.study_uid, "numbers")
    way = int(rng.integers(3))
    return [int(i) for i in (numbers, numbers[::-1], rng.permutation(numbers))[way]]


def _scout(study: PhantomStudy, encoding: Encoding) -> Dataset:
    """A sagittal localizer of the same study, in a series of its own: never part of the labels."""
    side = study.hounsfield.clip(AIR_HU).mean(axis=2)[::-1]
    step = np.ptp(study.positions_mm) / (len(side) - 1)
    rows = np.linspace(0, len(side) - 1, round(len(side) * step / study.pixel_spacing_mm)).round()
    pixels = _stored(side[rows.astype(np.intp)].astype(np.int16), encoding)
    ds = _frame(study, _uid(study.study_uid, "scout", rsna=False), pixels, encoding)
    _place(ds, study.corners_mm[-1], np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]))
    _describe(ds, study, 1, 1, "LOCALIZER")
    ds.SeriesInstanceUID, ds.SeriesNumber = _uid(study.study_uid, "scouts", rsna=False), 1
    return ds


def _save(ds: Dataset, path: Path, *, compress: bool) -> Path:
    from pydicom.uid import RLELossless

    if compress:
        ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_study(study: PhantomStudy, folder: Path, *, encoding: str | None = None) -> list[Path]:
    """Write a study to an existing folder, one file a slice, named by SOP Instance UID.

    Returns the paths of the N slices, feet to head; a scout, if the study has one, comes last.
    `encoding` is a name in ENCODINGS (KeyError if not), by default the study's own; HU that its
    container cannot hold are clipped. Files of the same name are overwritten.
    """
    from pydicom import config

    how = ENCODINGS[encoding or study.encoding]
    tilt, numbers = np.deg2rad(study.tilt_deg), _numbers(study)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), -np.sin(tilt)])
    rle, paths = study.syntax == "rle", []
    with config.disable_value_validation():  # RSNA's ids are no valid UIDs
        for k, sop in enumerate(study.sop_uids):
            ds = _frame(study, sop, _stored(study.hounsfield[k], how), how)
            _place(ds, study.corners_mm[k], row, column)
            if not study.rsna_style:
                _describe(ds, study, numbers[k], study.acquisitions[k], "AXIAL")
            elif max(study.acquisitions) > 1:
                ds.AcquisitionNumber = study.acquisitions[k]
            paths.append(_save(ds, folder / f"{sop}.dcm", compress=rle))
        if study.scout:
            ds = _scout(study, how)
            paths.append(_save(ds, folder / f"{ds.SOPInstanceUID}.dcm", compress=False))
    return paths


# ---- a data set ---------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class PhantomSet:
    """What `write_dataset` wrote. `n_files` counts the scouts too, `n_slices` does not."""

    dicom: Path
    labels: Path
    order: Path
    n_studies: int
    n_slices: int
    n_files: int


@dataclass(frozen=True, kw_only=True)
class _Written:
    """Rows of one study for the two tables: N ids, (N,) mm, (N, K) labels; its files with the scout."""

    study_uid: str
    sop_uids: tuple[str, ...]
    positions_mm: Doubles
    targets: NDArray[np.uint8]
    n_files: int


def _write_one(index: int, *, folder: Path, seed: int, matrix: int, enrich: float) -> _Written:
    """Draw and write one study; what a worker process is asked for, hence at the top level."""
    study = draw_study(index, seed=seed, matrix=matrix, enrich=enrich)
    return _Written(
        study_uid=study.study_uid,
        sop_uids=study.sop_uids,
        positions_mm=study.positions_mm,
        targets=study.targets,
        n_files=len(write_study(study, folder)),
    )


def _write_all(n_studies: int, workers: int, write: partial[_Written]) -> Iterator[_Written]:
    """Write the studies, in this process or in others; their rows come in order."""
    if workers < 1:
        yield from map(write, range(n_studies))
        return
    context = multiprocessing.get_context("spawn")  # forking a process that runs torch's threads can hang
    with ProcessPoolExecutor(min(workers, n_studies), mp_context=context) as pool:
        yield from pool.map(write, range(n_studies))


def _write_tables(rows: list[_Written], labels: Path, order: Path) -> None:
    """RSNA's long label table, and the true order of the slices for checks."""
    with labels.open("w", newline="") as first, order.open("w", newline="") as second:
        long, true = csv.writer(first), csv.writer(second)
        long.writerow(["ID", "Label"])
        true.writerow(["study", "sop", "position_mm"])
        for row in rows:
            for k, sop in enumerate(row.sop_uids):
                true.writerow([row.study_uid, sop, f"{row.positions_mm[k]:.4f}"])
                long.writerows([f"{sop}_{name}", row.targets[k, i]] for i, name in enumerate(LABELS))


def write_dataset(
    out: Path,
    *,
    n_studies: int,
    seed: int = 0,
    matrix: int = 256,
    enrich: float = DEMO_EPIDURAL,
    workers: int = 0,
    progress: Progress = silent,
) -> PhantomSet:
    """Write OUT/dicom/*.dcm (flat), OUT/labels.csv and OUT/order.csv; same arguments, same bytes.

    labels.csv: `ID,Label`, six rows `<SOP>_<label>` a slice. order.csv: `study,sop,position_mm`,
    feet to head. `matrix` is H = W in pixels. `enrich` is the share of studies with an epidural bleed:
    six times what RSNA has. `workers` processes draw and write (0: this one); the bytes do not depend
    on them. `progress` is called after each study. Refuses fewer than one study or 32 pixels
    (UsageError) and an OUT/dicom that already holds files (OutputError).
    """
    if n_studies < 1:
        raise UsageError(f"cannot write {n_studies} studies; ask for one or more")
    folder = out / "dicom"
    make_folder(folder)
    if any(folder.iterdir()):
        raise OutputError(f"{folder} already holds files; name an empty folder")
    write = partial(_write_one, folder=folder, seed=seed, matrix=matrix, enrich=enrich)
    rows: list[_Written] = []
    for row in _write_all(n_studies, workers, write):
        rows.append(row)
        progress("drawing phantoms", len(rows), n_studies)
    _write_tables(rows, out / "labels.csv", out / "order.csv")
    return PhantomSet(
        dicom=folder,
        labels=out / "labels.csv",
        order=out / "order.csv",
        n_studies=n_studies,
        n_slices=sum(len(row.sop_uids) for row in rows),
        n_files=sum(row.n_files for row in rows),
    )
