"""demo: every stage once, on synthetic studies, ending in figures and files to look at."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ich_seq import OutputError
from ich_seq.cnn_training import train_cnn
from ich_seq.config import load_config
from ich_seq.devices import choose_workers
from ich_seq.evaluation import evaluate, first_figures
from ich_seq.exploration import explore
from ich_seq.extraction import extract_features
from ich_seq.inputs import Given
from ich_seq.labels import LABELS
from ich_seq.phantom import write_dataset
from ich_seq.prediction import PredictionSummary, predict
from ich_seq.progress import Progress, silent
from ich_seq.report import STUDIES
from ich_seq.rnn_training import train_rnn
from ich_seq.tables import printable
from ich_seq.weight_library import shipped_folder

MATRIX = 256
TRAINED_PER_NEW = 3
"""One new study is drawn and predicted for so many trained on."""

MOST_READ_OUT = 10

SETTINGS = (
    "slices.size=96",
    "cnn.folds=3",
    "cnn.epochs=2",
    "cnn.head_epochs=0.25",
    "cnn.precision=fp32",
    "train.folds=3",
    "train.epochs=20",
)
"""Fewer pixels, folds and epochs than usual: minutes on two cores."""

EXPLANATION = """\
The rows above are out of fold: each study was predicted by networks that never saw its patient.
The last row is {new} further studies, predicted from their DICOM files by `predict` and judged by `evaluate`.
What the figures mean: that every stage works. The heads are drawn by a program, so they say nothing
about patients.

DICOM files, labels   {out}/train  {out}/new
the data, seen        {out}/exploration/exploration.html
networks, curves      {out}/cnn
features              {out}/features
bundle                {out}/bundle
results               {out}/results/report.html  studies.csv  slices.csv  submission.csv
how good they are     {out}/evaluation/evaluation.html  card.html"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSummary:
    """The demo's figures, and in words what they mean and where everything lies."""

    out: Path
    figures: dict[str, Any]
    explanation: str


def run_demo(
    out: Path,
    *,
    studies: int,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> DemoSummary:
    """Draw phantoms, train on them stage by stage, predict new phantoms, judge the predictions; all below `out`.

    Raises OutputError if `out` holds anything already: a demo does not write over somebody's results.
    """
    _refuse_full(out)
    workers = choose_workers(workers)
    new = max(4, studies // TRAINED_PER_NEW)
    train_set = write_dataset(
        out / "train", n_studies=studies, seed=seed, matrix=MATRIX, workers=workers, progress=progress
    )
    new_set = write_dataset(out / "new", n_studies=new, seed=seed + 1, matrix=MATRIX, workers=workers)
    config = load_config(overrides=SETTINGS)
    explore(train_set.dicom, out / "exploration", train_set.labels, workers=workers, progress=progress)
    reading: dict[str, Any] = {"device": device, "workers": workers, "progress": progress}
    train_cnn(train_set.dicom, train_set.labels, out / "cnn", config, **reading)
    extract_features(train_set.dicom, out / "features", config, cnn=out / "cnn", **reading)
    trained = train_rnn(out / "features", train_set.labels, out / "bundle", config, device=device, progress=progress)
    predict(new_set.dicom, out / "bundle", out / "results", **reading)
    judged = evaluate(
        out / "results", new_set.labels, out / "evaluation", bundle=out / "bundle", dicom=new_set.dicom, seed=seed
    )
    figures = trained.figures | {"blend, new studies": first_figures(judged.evaluation)["blend"]}
    return DemoSummary(out=out, figures=figures, explanation=EXPLANATION.format(out=printable(str(out)), new=new))


def run_real(
    source: Given, out: Path, *, device: str = "auto", workers: int | None = None, progress: Progress = silent
) -> PredictionSummary:
    """Predict real studies by the bundle that comes with the package, into `out`.

    Raises OutputError if `out` holds anything already, NothingUsableError if no file is a usable CT slice.
    """
    _refuse_full(out)
    return predict(source, shipped_folder(), out, device=device, workers=workers, progress=progress)


def read_out(summary: PredictionSummary) -> str:
    """Return what a run of predict says of its likeliest studies, as text, and where to look at them."""
    with (summary.out / STUDIES).open(newline="", encoding="utf-8") as file:
        rows = list(itertools.islice(csv.DictReader(file), MOST_READ_OUT))
    lines = [
        f"study {number}, {row['slices']} slices:  " + "  ".join(f"{label} {float(row[label]):.2f}" for label in LABELS)
        for number, row in enumerate(rows, start=1)
    ]
    more = [f"... and {summary.studies - len(rows)} less likely"] if summary.studies > len(rows) else []
    return "\n".join([*lines, *more, f"look at {printable(str(summary.out / 'report.html'))}"])


def _refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty; remove it or choose another --out.")
