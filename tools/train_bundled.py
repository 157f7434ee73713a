"""Train the bundle that lies in the package, from the DICOM files of CT-ICH to a model card, in one command.

    python tools/train_bundled.py DICOM --labels LABELS --out OUT [--engine openvino] [--phantoms 450] [--copies 2]

DICOM and LABELS are the 62 patients of CT-ICH (Hssayeni et al., Data 2020, CC BY 4.0) as CT images and rows `ID,Label`.
Below OUT: phantoms and the encoder that learnt from them first, phantom-cnn; drawn-2, copies of each patient with
bleeds drawn in, and cnn-drawn, the networks of each fold that learnt from these and from the patients; cnn, which began
at those and learnt from the patients alone; features out of fold, and whole, the bundle in full precision; out-of-fold,
what it says of patients that it did not know, for evaluate; bundle, the one to ship: half precision, and a card that
says whence it comes. Each stage that is done is not done again. Two to three hours on two cores. With --copies 0
nothing is drawn, and cnn begins at phantom-cnn.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draw_bleeds import write_drawn

from ich_seq.bundle import CARD, Bundle, load_bundle, save_bundle
from ich_seq.cnn_run import ENCODER, RUN, fold_folder
from ich_seq.cnn_training import train_cnn
from ich_seq.config import Config, load_config
from ich_seq.extraction import extract_features
from ich_seq.files import make_folder, read_json, sha256_file
from ich_seq.phantom import write_dataset
from ich_seq.prediction import predict
from ich_seq.progress import shown
from ich_seq.rnn_training import train_rnn
from ich_seq.terminal import print_result

CONFIG = Path(__file__).parents[1] / "configs" / "bundled.toml"
PHANTOM_SEED, PHANTOM_MATRIX, DRAWN_SEED = 8, 256, 1
ON_PHANTOMS = {"epochs": 1, "learning_rate": 1e-3, "head_epochs": 0.05, "dropout": 0.3}
"""They are endless, so one epoch; the network is not to forget ImageNet before its head knows anything."""

CITATION = (
    "Hssayeni MD, Croock MS, Salman AD, Al-khafaji HF, Yahya ZA, Ghoraani B. Intracranial Hemorrhage Segmentation "
    "Using a Deep Convolutional Model. Data 2020, 5(1), 14, https://doi.org/10.3390/data5010014. Data set: PhysioNet, "
    "ct-ich. Licence: CC BY 4.0."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dicom", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", choices=["torch", "openvino"], default="torch", help="what embeds; the same card")
    parser.add_argument("--phantoms", type=int, default=450)
    parser.add_argument("--copies", type=int, default=2, help="of each patient, with other bleeds drawn in")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto takes CUDA where there is any")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    config = load_config(CONFIG)
    begun = with_weights(config, on_phantoms(chosen, config))
    first = on_drawn(chosen, begun) if chosen.copies else None
    on_patients(chosen, config if first else begun, first)


def with_weights(config: Config, file: Path) -> Config:
    return config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": str(file)})})


def on_phantoms(chosen: argparse.Namespace, config: Config) -> Path:
    """Return the weights of an encoder that learnt what blood looks like from drawn heads."""
    root, run = chosen.out / "phantoms", chosen.out / "phantom-cnn"
    options = config.model_copy(update={"cnn": config.cnn.model_copy(update=ON_PHANTOMS)})
    trained = fold_folder(run, config.cnn.folds) / ENCODER
    if (run / RUN).exists():
        return trained
    with shown(quiet=False) as progress:
        if not (root / "order.csv").exists():
            shutil.rmtree(root, ignore_errors=True)
            write_dataset(
                root,
                n_studies=chosen.phantoms,
                seed=PHANTOM_SEED,
                matrix=PHANTOM_MATRIX,
                workers=chosen.workers,
                progress=progress,
            )
        train_cnn(
            root / "dicom",
            root / "labels.csv",
            run,
            options,
            fold="final",
            device=chosen.device,
            workers=chosen.workers,
            progress=progress,
        )
    return trained


def on_drawn(chosen: argparse.Namespace, config: Config) -> Path:
    """Return a run of all folds and the final network that learnt from the patients and from bleeds drawn into them."""
    run, drawn = chosen.out / "cnn-drawn", chosen.out / f"drawn-{chosen.copies}"
    with shown(quiet=False) as progress:
        if not (drawn / "labels.csv").exists():
            shutil.rmtree(drawn, ignore_errors=True)
            write_drawn(
                [chosen.dicom],
                chosen.labels,
                drawn,
                copies=chosen.copies,
                seed=DRAWN_SEED,
                workers=chosen.workers,
                progress=progress,
            )
        for fold in (None, "final"):
            train_cnn(
                [chosen.dicom, drawn / "dicom"],
                chosen.labels,
                run,
                config,
                also=drawn / "labels.csv",
                fold=fold,
                device=chosen.device,
                workers=chosen.workers,
                progress=progress,
            )
    return run


def on_patients(chosen: argparse.Namespace, config: Config, first: Path | None) -> None:
    """Train both stages on the patients, begun at a `first` run; write the bundle in full and in half precision."""
    out, dicom, labels = chosen.out, chosen.dicom, chosen.labels
    reading: dict[str, Any] = {"device": chosen.device, "workers": chosen.workers}
    embedding = reading | ({"device": "cpu"} if chosen.engine == "openvino" else {})
    with shown(quiet=False) as progress:
        for fold in (None, "final"):
            train_cnn(dicom, labels, out / "cnn", config, begin=first, fold=fold, progress=progress, **reading)
        extract_features(
            dicom, out / "features", config, cnn=out / "cnn", engine=chosen.engine, progress=progress, **embedding
        )
        predictions = out / "out-of-fold"
        train_rnn(
            out / "features",
            labels,
            out / "whole",
            config,
            predictions=predictions,
            device=chosen.device,
            progress=progress,
        )
        whole = load_bundle(out / "whole", torch.device("cpu"), "torch")
        write_halved(whole, out / "bundle", provenance(chosen, first))
        changes = halving_moves(chosen, embedding)
    print_result(
        f"{out / 'bundle'}: {sum(f.stat().st_size for f in (out / 'bundle').iterdir()) / 2**20:.1f} MB; {changes}"
    )


def provenance(chosen: argparse.Namespace, first: Path | None) -> dict[str, Any]:
    """Return what the card says of where the bundle comes from."""
    run = read_json(chosen.out / "cnn" / RUN)
    begun = read_json((first or chosen.out / "cnn") / RUN)
    encoder = begun["settings"]["encoder"]
    where = Path(encoder["weights"]).relative_to(chosen.out).as_posix()  # not where that lay on somebody's machine
    drawn = (
        {"drawn_bleeds": {"copies": chosen.copies, "seed": DRAWN_SEED, "slices": begun["also_slices"]}} if first else {}
    )
    return {
        "data": "CT-ICH: non-contrast head CT of 62 trauma patients, 5 mm slices, one hospital in Iraq",
        "citation": CITATION,
        "licence": "Apache-2.0, with attribution of the data (CC BY 4.0)",
        "recipe": "tools/train_bundled.py",
        "phantoms": {"studies": chosen.phantoms, "seed": PHANTOM_SEED, "matrix": PHANTOM_MATRIX},
        **drawn,
        "sha256_of_inputs": {
            "labels": sha256_file(chosen.labels),
            "dicom": sha256_of_files(chosen.dicom),
            "recipe": sha256_file(CONFIG),
        },
        "folds_sha256": run["folds_sha256"],
        "encoder_settings": run["settings"] | {"encoder": encoder | {"weights": where}},
        "encoder_figures": run["figures"],
    }


def sha256_of_files(folder: Path) -> str:
    """Return a SHA-256 of all files below a folder: of the lines of `sha256sum`, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = (f"{sha256_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_halved(whole: Bundle, out: Path, facts: dict[str, Any]) -> None:
    """Write a bundle's networks in half precision, with more said on its card."""
    make_folder(out)
    said = {key: whole.card[key] for key in ("training", "figures", "operating_points")}
    save_bundle(
        out,
        encoders=[embedder.encoder for embedder in whole.embedders.values()],
        execution=replace(next(iter(whole.embedders.values())).execution, engine="torch"),
        models=whole.models,
        calibrations=whole.calibrations,
        familiar=whole.familiar,
        facts=said | {"provenance": facts},
        half=True,
    )


def halving_moves(chosen: argparse.Namespace, embedding: dict[str, Any]) -> str:
    """Say by how much half precision moves probabilities of the training slices, at most."""
    import pandas as pd

    tables = []
    for name in ("whole", "bundle"):
        results = chosen.out / f"results-{name}"
        predict(chosen.dicom, chosen.out / name, results, engine=chosen.engine, report=False, **embedding)
        tables.append(pd.read_csv(results / "slices.csv").select_dtypes("float"))
    return f"half precision moves probabilities by at most {np.abs(tables[0] - tables[1]).max(axis=None):.4f} ({CARD})"


if __name__ == "__main__":
    main()
