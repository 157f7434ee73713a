"""What several test files share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.fileset import FileSet
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real files beside the checkout; tests on them are skipped where the folder is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


def _write_slice(
    path: Path,
    *,
    syntax: str = ExplicitVRLittleEndian,
    stored: NDArray[np.integer[Any]] | None = None,
    drop: Sequence[str] = (),
    text: Mapping[str, str] | None = None,
    meta_sop: str = "1.2.3",
    **tags: object,
) -> Path:
    """Write one sound CT slice, 16 x 16, with some things changed; return its path.

    `stored` are the pixels (H, W) as they are stored, `drop` elements left out, `text` values written as
    they stand though their VR forbids them (in implicit VR only, which does not name it).
    """
    stored = np.arange(900, 1156).reshape(16, 16) if stored is None else stored
    values: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": "1.2.3",
        "StudyInstanceUID": "1.2.3.4",
        "SeriesInstanceUID": "1.2.3.4.5",
        "PatientID": "P1",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "AcquisitionNumber": 1,
        "InstanceNumber": 1,
        "ImagePositionPatient": [-4, -4, 10],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [0.5, 0.5],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "PixelRepresentation": 1,
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
    }
    values = {**values, **tags}
    bits = values["BitsStored"]
    values.setdefault("HighBit", bits - 1 if isinstance(bits, int) else 15)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    with config.disable_value_validation():
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, meta_sop
        for keyword, value in values.items():
            if keyword not in drop:
                setattr(ds, keyword, value)
        for keyword, raw in (text or {}).items():
            ds.add_new(keyword, "LO", raw)
        if "PixelData" not in drop:
            ds.add_new("PixelData", "OW", (stored.astype(np.int64) & 0xFFFF).astype(f"{order}u2").tobytes())
        if syntax == RLELossless:
            ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="session")
def write_slice() -> Callable[..., Path]:
    """Give the writer of single CT slices, `_write_slice`."""
    return _write_slice


def _cut_frame(path: Path) -> None:
    """Compress a slice and cut its only frame: the header is sound, and only decoding the pixels tells."""
    with config.disable_value_validation():
        ds = dcmread(path)
        ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([frame[:200]])
        ds.save_as(path)


@pytest.fixture(scope="session")
def cut_frame() -> Callable[[Path], None]:
    """Give what damages a slice so that its header does not tell, `_cut_frame`."""
    return _cut_frame


def _write_media(files: Sequence[Path], folder: Path) -> Path:
    """Write files as a medium has them, by pydicom's FileSet, with names in capitals; return the DICOMDIR."""
    media = FileSet()
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, path in enumerate(files, start=1):
            ds = dcmread(path)
            ds.StudyDate, ds.StudyTime, ds.StudyID, ds.SeriesNumber = "20200101", "0", "1", 1
            ds.InstanceNumber = ds.get("InstanceNumber") or number
            media.add(ds)
        media.write(folder)
    media._stage["t"].cleanup()  # else the garbage collector does, with a warning, in some other test
    return folder / "DICOMDIR"


@pytest.fixture(scope="session")
def write_media() -> Callable[[Sequence[Path], Path], Path]:
    """Give the writer of media, `_write_media`."""
    return _write_media


@pytest.fixture(scope="session")
def execution():
    """Run the encoder by torch, in single precision, each slice seen once, two at a time."""
    from ich_seq.engines import Execution

    return Execution(engine="torch", precision="fp32", views=1, batch_size=2)


def _tiny_encoder(seed):
    from ich_seq.config import Config
    from ich_seq.encoder import build_encoder

    chosen = {"slices": {"size": 32}, "encoder": {"arch": "test_convnext", "weights": "random", "seed": seed}}
    return build_encoder(Config.model_validate(chosen))


@pytest.fixture(scope="session")
def tiny_encoder():
    """An encoder of a real timm network with random weights and no head, 64 numbers a slice of 32 x 32 pixels."""
    return _tiny_encoder(0)


@pytest.fixture(scope="session")
def headed_encoders():
    """Two encoders as train-cnn makes them, of other weights and heads: both are random."""
    from dataclasses import replace

    from ich_seq.encoder import with_head
    from ich_seq.labels import LABELS

    made = []
    for fold in range(2):
        encoder, rng = _tiny_encoder(1 + fold), np.random.default_rng(fold)
        weight = rng.normal(0, 0.2, (len(LABELS), encoder.spec.dim)).astype(np.float32)
        encoder.spec = replace(encoder.spec, weights=f"train-cnn, all folds but {fold}, from random")
        made.append(with_head(encoder, weight, rng.normal(-1, 0.5, len(LABELS)).astype(np.float32)))
    return made


@pytest.fixture(scope="session")
def make_study():
    """Make the features of a study of N slices, feet to head: random, the same for the same name and network.

    Networks make other features, and logits if asked for, of the same slices.
    """
    import zlib

    from ich_seq.labels import LABELS
    from ich_seq.store import StudyFeatures

    def make(name, slices, *, dim=64, patient=None, network=0, logits=False):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        sop_uids = tuple(f"{name}.{rng.integers(10**9)}.{i}" for i in range(slices))
        positions_mm = rng.normal(0, 50) + rng.uniform(0.5, 8, slices).cumsum()
        own = np.random.default_rng([zlib.crc32(name.encode()), network]) if network else rng
        return StudyFeatures(
            study_uid=name,
            patient_key=patient or f"patient of {name}",
            sop_uids=sop_uids,
            positions_mm=positions_mm,
            features=own.normal(size=(slices, dim)).astype(np.float16),
            logits=own.normal(-1, 2, (slices, len(LABELS))).astype(np.float32) if logits else None,
            network=network,
        )

    return make


@pytest.fixture(scope="session")
def write_store(tiny_encoder, execution):
    """Write studies, a row a study and network, into a whole store; returns its folder.

    The encoders are those given, by number, or `tiny_encoder`; studies named by `in_sample` are marked so.
    """
    from dataclasses import asdict

    from ich_seq.encoder import save_encoder
    from ich_seq.reasons import unused_csv
    from ich_seq.store import StoreWriter, encoder_file

    def write(root, studies, *, encoders=None, in_sample=()):
        encoders = encoders or {0: tiny_encoder}
        root.mkdir(parents=True, exist_ok=True)
        writer = StoreWriter(root, " ".join(e.spec.fingerprint for e in encoders.values()))
        for number, encoder in encoders.items():
            save_encoder(encoder, root / encoder_file(number))
        keys = [f"{study.study_uid} {study.network}" for study in studies]
        for key, study in zip(keys, studies, strict=True):
            writer.add(key, study, {"spacing_mm": 5.0}, whole=True, in_sample=study.study_uid in in_sample)
        specs = {str(number): asdict(encoder.spec) for number, encoder in encoders.items()}
        files = [encoder_file(number) for number in encoders]
        writer.close(keys, unused_csv([]), files, {"encoders": specs, "execution": asdict(execution)})
        return root

    return write


@pytest.fixture(scope="session")
def told_by_the_slice_below(make_study):
    """Make studies in which slice i-1 says whether slice i bleeds, and slice i knows nothing of itself.

    With logits they come with those of a base that says nothing; in a study that is no bleeding one none does.
    """
    from dataclasses import replace

    from ich_seq.labels import LABELS
    from ich_seq.sequences import LabelledStudy

    def make(name, rng, *, logits=False, bleeding=True):
        slices = int(rng.integers(6, 13))
        bleeds = (rng.uniform(size=slices) < 0.4) & bleeding
        bleeds[0] = False
        study = make_study(name, slices, dim=8)
        features = study.features.copy()
        features[:-1, 0] = np.where(bleeds[1:], 2, -2)
        features[-1, 0] = rng.choice([2, -2])
        targets = np.zeros((slices, len(LABELS)), np.uint8)
        targets[:, LABELS.index("subdural")] = targets[:, LABELS.index("any")] = bleeds
        said = np.full(targets.shape, -0.5, np.float32) if logits else None
        return LabelledStudy(features=replace(study, features=features, logits=said), targets=targets)

    return make


@pytest.fixture(scope="session")
def logits_alone():
    """Give base logits, a model's logits and targets, of all slices and of all studies: study by study, no batch."""
    import torch

    def give(model, studies):
        of_slices, of_studies = [], []
        for study in studies:
            features = torch.from_numpy(np.asarray(study.features.features)).float()[None]
            places, base = torch.from_numpy(study.features.positions_mm)[None], torch.from_numpy(study.features.logits)
            with torch.no_grad():
                said = model(features, places, torch.tensor([len(study)]), base[None])
            of_slices.append((base.double().numpy(), said.slices[0].double().numpy(), study.targets))
            whole = said.studies.double().numpy()
            of_studies.append((base.double().numpy().max(axis=0)[None], whole, study.targets.max(axis=0)[None]))
        return tuple(tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in (of_slices, of_studies))

    return give


@pytest.fixture(scope="session")
def write_labels():
    """Write the challenge's label file of slices, their six values by UID; returns its path."""
    from ich_seq.labels import LABELS

    def write(path, rows):
        said = [f"{uid}_{label},{value}" for uid, row in rows.items() for label, value in zip(LABELS, row, strict=True)]
        path.write_text("\n".join(["ID,Label", *said]) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def labelled_store(make_study, write_store, write_labels, tmp_path_factory):
    """Make a store of studies of these numbers of slices, spread over patients, and random labels of their slices.

    Gives the store, the label file and its rows; those named by `holes` lack the labels of a slice.
    """
    from ich_seq.labels import LABELS

    def make(slices, patients, holes=()):
        root, rng, rows = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), {}
        studies = [make_study(f"1.2.{i}", n, patient=f"patient {i % patients}") for i, n in enumerate(slices)]
        for study in studies:
            uids = study.sop_uids[:-1] if study.study_uid in holes else study.sop_uids
            targets = (rng.uniform(size=(len(uids), len(LABELS))) < 0.2).astype(np.uint8)
            targets[:, -1] = targets[:, :-1].max(axis=1)
            rows |= zip(uids, targets.tolist(), strict=True)
        return write_store(root / "store", studies), write_labels(root / "labels.csv", rows), rows

    return make
