"""How far a bundle's probabilities move when the same heads are stored, sampled or scanned in another way.

    python tools/stability.py DICOM... [--bundle ct-ich] [--engine openvino]

Every file is written anew in each way below, all are predicted, and slices and studies are held against those as they
are. The first four ways change no Hounsfield unit, so nothing may move but by rounding; the others change the image as
another scanner, archive or export would. Prints, for each way, the mean and the largest change of the probability of
any haemorrhage of slices, the largest of studies, and the rank correlation of slices.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
from pydicom import Dataset
from pydicom.config import IGNORE, settings
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ich_seq.augmentation import move
from ich_seq.labels import LABELS
from ich_seq.prediction import predict
from ich_seq.terminal import print_result
from ich_seq.weight_library import SHIPPED

Change = Callable[[Dataset], None]
AIR_HU = -1000
BRAIN, BONE = (40, 120), (700, 3200)
"""The windows (level, width) of 8 bits from which the training set's Hounsfield units were rebuilt."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dicom", type=Path, nargs="+")
    parser.add_argument("--bundle", default=SHIPPED)
    parser.add_argument("--engine", choices=["torch", "openvino"], default="torch")
    parser.add_argument("--workers", type=int)
    chosen = parser.parse_args()
    settings.reading_validation_mode = settings.writing_validation_mode = IGNORE  # UIDs of RSNA are none
    with tempfile.TemporaryDirectory() as scratch:
        read = said(chosen, Path(scratch) / "as they are", lambda dataset: None)
        rows = [
            {"way": way, **compared(read, said(chosen, Path(scratch) / way, change))} for way, change in WAYS.items()
        ]
    print_result(pd.DataFrame(rows).to_string(index=False, float_format="%.4f"))


def said(chosen: argparse.Namespace, folder: Path, change: Change) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what the bundle says of all files, changed: slices by SOP Instance UID, studies by theirs."""
    (folder / "dicom").mkdir(parents=True)
    for number, path in enumerate(files(chosen.dicom)):
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress()
        change(dataset)
        dataset.save_as(folder / "dicom" / f"{number}.dcm")
    out = folder / "results"
    options = {"engine": chosen.engine, "workers": chosen.workers, "device": "cpu", "report": False}
    predict(folder / "dicom", chosen.bundle, out, **options)
    slices, studies = (pd.read_csv(out / f"{name}.csv") for name in ("slices", "studies"))
    return slices.set_index("sop_uid"), studies.set_index("study_uid")


def files(given: Iterable[Path]) -> list[Path]:
    return [path for root in given for path in (sorted(root.rglob("*.dcm")) if root.is_dir() else [root])]


def compared(
    plain: tuple[pd.DataFrame, pd.DataFrame], changed: tuple[pd.DataFrame, pd.DataFrame]
) -> dict[str, float | int]:
    (slices, studies), (others, other_studies) = plain, changed
    both = slices.index.intersection(others.index)
    one, two = slices.loc[both, LABELS[-1]], others.loc[both, LABELS[-1]]
    of_studies = (studies[LABELS[-1]] - other_studies[LABELS[-1]]).abs().max()
    return {
        "slices": len(both),
        "mean": (one - two).abs().mean(),
        "largest": (one - two).abs().max(),
        "of studies": of_studies,
        "rank corr.": one.corr(two, method="spearman"),
    }


def hounsfield(dataset: Dataset) -> np.ndarray:
    return dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def store(dataset: Dataset, hu: np.ndarray) -> None:
    """Put Hounsfield units in the place of a dataset's pixels, as 16 bits with a sign."""
    dataset.Rows, dataset.Columns = hu.shape
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.pop("PixelPaddingValue", None)
    dataset.set_pixel_data(
        np.rint(hu).clip(-32768, 32767).astype(np.int16), "MONOCHROME2", 16, generate_instance_uid=False
    )
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def compressed(syntax: str) -> Change:
    return lambda dataset: dataset.compress(syntax, generate_instance_uid=False)


def implicit(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian


def of_12_bits(dataset: Dataset) -> None:
    """Store a slice as unsigned 12 bits above -1024: what lies above 3071 HU, metal, is clipped."""
    stored = np.rint(hounsfield(dataset) + 1024).clip(0, 4095).astype(np.uint16)
    store(dataset, stored)
    dataset.set_pixel_data(stored, "MONOCHROME2", 12, generate_instance_uid=False)
    dataset.RescaleIntercept = "-1024"


def sampled(side: int) -> Change:
    """Bring a slice to another matrix over the same field."""

    def change(dataset: Dataset) -> None:
        hu = hounsfield(dataset).astype(np.float32)
        steps = [float(step) * n / side for step, n in zip(dataset.PixelSpacing, hu.shape, strict=True)]
        manner = cv2.INTER_AREA if side < hu.shape[0] else cv2.INTER_LINEAR
        store(dataset, cv2.resize(hu, (side, side), interpolation=manner))
        dataset.PixelSpacing = [f"{step:.6f}" for step in steps]

    return change


def through_windows(dataset: Dataset) -> None:
    """Rebuild a slice from pictures of two windows, as the training set was: 8 bits each, and JPEG."""
    hu = hounsfield(dataset)
    brain, bone = (seen(hu, *window) for window in (BRAIN, BONE))
    rebuilt = np.where(brain <= 2, np.minimum(back(bone, *BONE), -20), back(brain, *BRAIN))
    store(dataset, np.where(brain >= 253, np.maximum(back(bone, *BONE), 100), rebuilt))


def seen(hu: np.ndarray, level: float, width: float) -> np.ndarray:
    shown = np.rint(((hu - level) / width + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_GRAYSCALE)


def back(shown: np.ndarray, level: float, width: float) -> np.ndarray:
    return (shown / 255.0 - 0.5) * width + level


def noisy(sigma_hu: float) -> Change:
    def change(dataset: Dataset) -> None:
        hu = hounsfield(dataset)
        rng = np.random.default_rng(zlib.crc32(str(dataset.SOPInstanceUID).encode()))
        store(dataset, hu + rng.normal(0, sigma_hu, hu.shape))

    return change


def softened(sigma_mm: float) -> Change:
    def change(dataset: Dataset) -> None:
        sigma = sigma_mm / float(dataset.PixelSpacing[0])
        store(dataset, cv2.GaussianBlur(hounsfield(dataset).astype(np.float32), (0, 0), sigma))

    return change


def moved(angle_deg: float, shift_mm: float) -> Change:
    """Lay the head down otherwise, in the plane of the slice."""

    def change(dataset: Dataset) -> None:
        import torch

        hu = torch.from_numpy(hounsfield(dataset).astype(np.float32))[None]
        pixels = shift_mm / float(dataset.PixelSpacing[0])
        store(dataset, move(hu, angle_deg=angle_deg, shift_pixels=(pixels, pixels))[0].numpy())

    return change


def brighter(hu: float) -> Change:
    return lambda dataset: store(dataset, hounsfield(dataset) + hu)


WAYS: dict[str, Change] = {
    "RLE": compressed(RLELossless),
    "JPEG-LS": compressed(JPEGLSLossless),
    "JPEG 2000": compressed(JPEG2000Lossless),
    "implicit VR": implicit,
    "12 bits, unsigned": of_12_bits,
    "matrix 256": sampled(256),
    "matrix 400": sampled(400),
    "matrix 768": sampled(768),
    "through 8-bit windows": through_windows,
    "noise of 5 HU": noisy(5),
    "blur of .7 mm": softened(0.7),
    "turned 5 degrees": moved(5, 0),
    "moved 10 mm": moved(0, 10),
    "3 HU brighter": brighter(3),
}


if __name__ == "__main__":
    main()
