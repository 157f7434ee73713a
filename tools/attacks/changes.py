"""Changes of a folder of DICOM files: of their names, of what lies beside them, or by an edit of each slice.

Each is made in place, by numbers of a generator, so that it can be made again. `slice_edits` has the edits.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ich_seq.config import AIR_HU

Rng = np.random.Generator
Change = Callable[[Path, Rng], None]
Edit = Callable[[Dataset], None]

ENCODERS: dict[str, str] = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}
SYNTAXES: tuple[str, ...] = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, *ENCODERS)
DEFLATED = DeflatedExplicitVRLittleEndian
PREAMBLE_BYTES = 132
SUFFIXES = ("", ".dcm", ".IMA", ".dic", ".0042", ".jpg", ".txt", ".dcm.bak")


# ---- reading and writing


def files_of(folder: Path) -> list[Path]:
    """Return the files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read(path: Path) -> Dataset:
    """Read a file as a dataset of plain values, uncompressed, that can be written in any syntax."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        stored = dcmread(path)
        if stored.file_meta.TransferSyntaxUID.is_compressed:
            stored.decompress(generate_instance_uid=False)
        plain = Dataset()
        plain.update({element.tag: element for element in stored})
        plain.file_meta = stored.file_meta
    return plain


def write(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a dataset of little-endian pixels in a transfer syntax."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        dataset.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian if syntax in ENCODERS else syntax)
        if syntax == ExplicitVRBigEndian:
            dataset.add_new("PixelData", "OW", np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes())
        if syntax in ENCODERS:
            dataset.compress(syntax, encoding_plugin=ENCODERS[syntax], generate_instance_uid=False)
        path.unlink(missing_ok=True)  # it may be a link to a file that others have
        dataset.save_as(path, enforce_file_format=True)


def hounsfield(dataset: Dataset) -> NDArray[np.int32]:
    """Return a slice's HU, (H, W), none below air; its slope is 1."""
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    stored = np.frombuffer(dataset.PixelData, kind).reshape(dataset.Rows, dataset.Columns)
    return np.maximum(stored.astype(np.int32) + int(dataset.RescaleIntercept), AIR_HU)


def store(
    dataset: Dataset,
    hu: NDArray[np.integer[Any]],
    *,
    bits: int = 16,
    signed: bool = True,
    slope: float = 1.0,
    intercept: int = AIR_HU,
) -> None:
    """Store HU, (H, W), as these bits say; whole stored values are meant to come out."""
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:g}", str(intercept)
    stored = np.rint((hu - intercept) / slope).astype(np.int64)
    dataset.add_new("PixelData", "OW", (stored & 0xFFFF).astype("<u2").tobytes())
    if "PixelPaddingValue" in dataset:
        del dataset.PixelPaddingValue


# ---- kinds of change


def each(make: Callable[[Rng], Edit], syntax: str = ExplicitVRLittleEndian) -> Change:
    """Return the change that makes the same edit of each file, with numbers drawn once."""

    def change(folder: Path, rng: Rng) -> None:
        edit = make(rng)
        for path in files_of(folder):
            dataset = read(path)
            edit(dataset)
            write(dataset, path, syntax)

    return change


def stored(**how: Any) -> Change:
    """Return the change that stores the same HU in another way: see `store`."""
    return each(lambda rng: lambda ds: store(ds, hounsfield(ds), **how))


def in_syntax(syntax: str) -> Change:
    """Return the change that writes the same values in another transfer syntax."""
    return each(lambda rng: lambda ds: None, syntax)


def tagged(**values: object) -> Change:
    """Return the change that gives elements these values, or takes those away that are None."""

    def edit(dataset: Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)

    return each(lambda rng: edit)


# ---- names and places of files


def names_shuffled(folder: Path, rng: Rng) -> None:
    """Give each file another's name."""
    _rename(folder, [path.name for path in rng.permutation(np.array(files_of(folder), dtype=object))])


def names_reversed(folder: Path, rng: Rng) -> None:
    """Name files so that their slices run against the order of names."""
    for number, path in enumerate(upwards(folder)):
        path.rename(folder / f"{9999 - number}.dcm")


def names_of_other_kinds(folder: Path, rng: Rng) -> None:
    """Name files in ways in which DICOM files are named, and in some in which none is."""
    _rename(folder, [f"{rng.integers(10**9)} é{rng.choice(SUFFIXES)}" for _ in files_of(folder)])


def _rename(folder: Path, names: list[str]) -> None:
    for number, path in enumerate(paths := files_of(folder)):
        path.rename(folder / f".{number}")
    for number, name in zip(range(len(paths)), names, strict=True):
        (folder / f".{number}").rename(folder / name)


def nested(folder: Path, rng: Rng) -> None:
    """Scatter files over folders in folders."""
    for path in files_of(folder):
        deep = folder.joinpath(*(f"d{rng.integers(3)}" for _ in range(int(rng.integers(0, 5)))))
        deep.mkdir(parents=True, exist_ok=True)
        path.rename(deep / path.name)


def linked(folder: Path, rng: Rng) -> None:
    """Put links in the place of files, one of them to a folder, and one that leads round in a circle."""
    away = folder.with_name(f"{folder.name} elsewhere")
    shutil.rmtree(away, ignore_errors=True)
    (away / "some").mkdir(parents=True)
    for path in files_of(folder):
        inside = bool(rng.integers(2))
        target = away / "some" / path.name if inside else away / path.name
        path.rename(target)
        if not inside:
            path.symlink_to(target)
    (folder / "some").symlink_to(away / "some", target_is_directory=True)
    (folder / "round").symlink_to(folder, target_is_directory=True)


def without_preamble(folder: Path, rng: Rng) -> None:
    """Leave out preamble and marker; of some studies the group about the file too, as files were before 1993."""
    bare = bool(rng.integers(2))
    for path in files_of(folder):
        dataset = read(path)
        write(dataset, path, ImplicitVRLittleEndian)
        path.write_bytes(path.read_bytes()[PREAMBLE_BYTES:])
        if bare:
            del dataset.file_meta
            dataset.save_as(path, implicit_vr=True, little_endian=True, overwrite=True)


# ---- more files


def copied(folder: Path, rng: Rng) -> None:
    """Add the same bytes under other names, some before and some behind the first."""
    for path in files_of(folder)[:: int(rng.integers(1, 4))]:
        shutil.copy(path, folder / f"{rng.choice(['!', '~'])}{path.name}")


def copied_in_other_syntax(folder: Path, rng: Rng) -> None:
    """Add slices once more in another transfer syntax."""
    for path in files_of(folder)[:: int(rng.integers(1, 4))]:
        write(read(path), folder / f"{rng.choice(['!', '~'])}{path.name}", str(rng.choice(SYNTAXES)))


def with_localizer(folder: Path, rng: Rng) -> None:
    """Add a scout view, named so or known by its plane alone."""
    scout = _renamed(read(upwards(folder)[0]), ".77", ".7")
    if rng.integers(2):
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    else:
        scout.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    write(scout, folder / "scout.dcm")


def with_shorter_series(folder: Path, rng: Rng) -> None:
    """Add a second series of the study, of fewer slices and other pixels."""
    paths = upwards(folder)
    for number, path in enumerate(paths[: int(rng.integers(1, len(paths)))]):
        write(_renamed(_upside_down(read(path)), ".1", ".1"), folder / f"a{number}.dcm")


def with_longer_derived_series(folder: Path, rng: Rng) -> None:
    """Add a second series of the study, of more slices, that was computed from the first."""
    paths = upwards(folder)
    for number in range(len(paths) + 2):
        dataset = _renamed(_upside_down(read(paths[number % len(paths)])), f".1.{number}", ".1")
        dataset.ImageType = ["DERIVED", "SECONDARY", "REFORMATTED"]
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], f"{number}"]
        write(dataset, folder / f"a{number}.dcm")


def with_bad_slice(folder: Path, rng: Rng) -> None:
    """Add a slice that cannot be read: its pixels are cut short, or its frame is, which decoding alone tells."""
    path = upwards(folder)[0]
    bad = _renamed(read(path), ".66")
    bad.ImagePositionPatient = [*bad.ImagePositionPatient[:2], f"{float(bad.ImagePositionPatient[2]) + 1.25:.6f}"]
    if rng.integers(2):
        bad.PixelData = bad.PixelData[: len(bad.PixelData) // 2]
        write(bad, folder / "bad.dcm")
        return
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        bad.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        (frame,) = generate_frames(bad.PixelData, number_of_frames=1)
        bad.PixelData = encapsulate([frame[:100]])
        bad.save_as(folder / "bad.dcm", enforce_file_format=True)


def with_other_files(folder: Path, rng: Rng) -> None:
    """Add files that are no slices."""
    for name, data in {"notes.txt": b"notes", "empty.dcm": b"", "DICOMDIR": rng.bytes(999), ".hidden": b"x"}.items():
        (folder / name).write_bytes(data)
    (folder / "gone.dcm").symlink_to(folder / "nowhere")


def _renamed(dataset: Dataset, sop: str, series: str = "") -> Dataset:
    """Make a dataset another instance, and one of another series if that is asked for."""
    dataset.SOPInstanceUID += sop
    dataset.SeriesInstanceUID += series
    return dataset


def _upside_down(dataset: Dataset) -> Dataset:
    store(dataset, hounsfield(dataset)[::-1])
    return dataset


# ---- fewer files


def all_but_one_removed(folder: Path, rng: Rng) -> None:
    """Leave one slice of the study."""
    paths = upwards(folder)
    for path in [*paths[: (one := int(rng.integers(len(paths))))], *paths[one + 1 :]]:
        path.unlink()


def upwards(folder: Path) -> list[Path]:
    """Return the files of slices, feet to head; a scout is none."""
    slices = [path for path in files_of(folder) if "LOCALIZER" not in read(path).get("ImageType", "")]
    return sorted(slices, key=lambda path: float(read(path).ImagePositionPatient[2]))
