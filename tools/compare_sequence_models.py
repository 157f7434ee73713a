"""Hold the package's sequence model against published ones: same features, same folds, same budget.

    python tools/compare_sequence_models.py STORE --labels STORE/labels.csv --out OUT

Each fold of patients is predicted by models that never saw it: of the others one fold stops the training early and
the rest is learnt from. `ours` is the procedure that train-rnn ships, a network for each fold that may be learnt
from and a blend; `ours_one` is one of its networks, with a blend, and fits as often as the peers do. --stops 4
lets the latter and the peers rotate the stop fold too, and takes the mean of what they say.

Every prediction is kept in OUT, so that a broken run goes on where it was. Then comparison.json and comparison.md:
weighted log loss and AUC of slices and studies, mean over the seeds, and the paired difference of --against to each
with its 95 % interval over patients. Negative differences of losses and positive ones of AUCs speak for it.

--order retrains and judges ours with slices in another order, as a proof that order matters: `shuffled` (nor does it
know positions), `no-positions` (in order, but millimetres withheld: what shuffled is to be held against) and
`reversed` (trained as ever, tested head to feet).
"""

from __future__ import annotations

import io
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from sequence_peers import PEERS, Budget, Predict, Said, Studies, taken

from ich_seq import __version__
from ich_seq.config import Config
from ich_seq.devices import choose_device
from ich_seq.figures import Truth
from ich_seq.files import sha256_file, write_bytes, write_json
from ich_seq.folded_studies import FoldedStudies
from ich_seq.labels import LABELS, assign_folds, read_labels
from ich_seq.metrics import LOSS_WEIGHTS, RankedScores, bootstrap, log_losses
from ich_seq.rnn_training import Ensemble, Trainer, calibrated, fit_ensemble, predict_ensemble
from ich_seq.sequence_fitting import SequenceTask, fit_sequence, logits_beside_base
from ich_seq.sequences import LabelledStudy, label_studies
from ich_seq.store import MANIFEST, open_store

Floats = NDArray[np.float64]
Statistic = Callable[[Floats | None], float]
FOLD_SEED = 0
"""Folds are the same for all seeds, so that seeds differ by the training alone."""

ORDERS = ("sorted", "shuffled", "reversed", "no-positions")
OURS = ("ours", "ours_one")


# Ours: the one place that knows how the package trains


def ours(train: Studies, stop: Studies, config: Config, device: torch.device) -> Predict:
    """Train as train-rnn does on all that may be learnt from: a network a fold, blended with the CNN, calibrated."""
    studies = [*train, *stop]
    data = FoldedStudies(studies, folds_of(studies, config.train.folds, config.train.seed), config.train.seed)
    ensemble = fit_ensemble(data, Trainer(config, device))
    return lambda unseen: blended(ensemble, unseen, device)


def ours_one(train: Studies, stop: Studies, config: Config, device: torch.device) -> Predict:
    """Train one network, stopped on `stop`, and choose its blend and calibration there."""
    task = SequenceTask(
        name="one", learn=train, stop=stop, rnn=config.rnn, options=config.train, seed=config.train.seed, device=device
    )
    model = fit_sequence(task, None)
    fitted = calibrated(*logits_beside_base(model, stop, device), config.train.calibration)
    ensemble = Ensemble(models=[model], calibrations=fitted)
    return lambda unseen: blended(ensemble, unseen, device)


def blended(ensemble: Ensemble, studies: Studies, device: torch.device) -> list[Said]:
    """Return what the bundle of an ensemble would say, study by study."""
    said = predict_ensemble(ensemble, studies, device)["blend"]
    ends = np.cumsum([len(s) for s in studies])
    return [Said(rows, whole) for rows, whole in zip(np.split(said.slices, ends[:-1]), said.studies, strict=True)]


def settings_of(run: Run, seed: int) -> Config:
    """Return the package's settings, but for the budget, the seed and what the order withholds."""
    config = Config()
    options = {"epochs": run.epochs, "patience": run.patience, "seed": seed, "folds": run.folds - 1}
    position = run.order not in {"shuffled", "no-positions"}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=options),
            "rnn": config.rnn.model_copy(update={"position": position}),
        }
    )


# The order of slices


def arranged(study: LabelledStudy, order: str, *, testing: bool) -> tuple[LabelledStudy, NDArray[np.int64]]:
    """Return a study as `order` wants it, and where each of its slices was before, (N,).

    A study is always shuffled alike. Positions come out as zeros where they are withheld, and turned round with
    the slices.
    """
    index = np.arange(len(study))
    if order == "shuffled":
        index = np.random.default_rng(zlib.crc32(study.features.study_uid.encode())).permutation(index)
    if order == "reversed" and testing:
        index = index[::-1]
    moved = taken(study, index)
    sign = {"sorted": 1, "reversed": -1 if testing else 1}.get(order, 0)
    return replace(moved, features=replace(moved.features, positions_mm=sign * moved.features.positions_mm)), index


def in_order(predict: Predict, order: str) -> Predict:
    """Predict studies arranged as `order` wants them, and put the slices back."""

    def predict_arranged(studies: Studies) -> list[Said]:
        pairs = [arranged(s, order, testing=True) for s in studies]
        said = predict([study for study, _ in pairs])
        return [Said(s.slices[np.argsort(index)], s.study) for s, (_, index) in zip(said, pairs, strict=True)]

    return predict_arranged


# Fitting and keeping


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is compared: settings that all predictions in a folder share."""

    folds: int
    stops: int
    epochs: int
    patience: int
    order: str
    studies: int


def fit(model: str, train: Studies, stop: Studies, seed: int, run: Run, device: torch.device) -> Predict:
    """Fit a model by its name."""
    if model not in OURS:
        budget = Budget(epochs=run.epochs, patience=run.patience, device=device)
        return PEERS[model](train, stop, seed, budget)
    learn, hold = ([arranged(s, run.order, testing=False)[0] for s in part] for part in (train, stop))
    fitted = {"ours": ours, "ours_one": ours_one}[model](learn, hold, settings_of(run, seed), device)
    return in_order(fitted, run.order)


def fitted_on_fold(
    model: str, studies: Studies, folds: NDArray[np.int64], fold: int, seed: int, run: Run, device: torch.device
) -> list[Said]:
    """Predict the studies of a fold by a model that saw others alone: the mean over the stop folds."""
    rest = [(fold + 1 + i) % run.folds for i in range(run.folds - 1)]
    rounds = []
    for stop in rest[: 1 if model == "ours" else run.stops]:
        held, learnt = of_folds(studies, folds, {stop}), of_folds(studies, folds, set(rest) - {stop})
        rounds.append(fit(model, learnt, held, seed, run, device)(of_folds(studies, folds, {fold})))
    return [
        Said(np.mean([s.slices for s in said], axis=0), np.mean([s.study for s in said], axis=0))
        for said in zip(*rounds, strict=True)
    ]


def of_folds(studies: Studies, folds: NDArray[np.int64], chosen: set[int]) -> list[LabelledStudy]:
    return [s for s, f in zip(studies, folds.tolist(), strict=True) if f in chosen]


def folds_of(studies: Studies, number: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each study, (B,)."""
    patients = np.array([s.features.patient_key for s in studies])
    return assign_folds(patients, np.stack([s.targets.max(axis=0) for s in studies]), n_folds=number, seed=seed)


def kept(out: Path, model: str, seed: int, fold: int) -> Path:
    return out / f"{model}-seed{seed}-fold{fold}.npz"


def save(path: Path, said: Sequence[Said], seconds: float) -> None:
    data = io.BytesIO()
    slices, studies = np.concatenate([s.slices for s in said]), np.stack([s.study for s in said])
    np.savez(data, slices=slices, studies=studies, seconds=np.array(seconds))
    write_bytes(path, data.getvalue())


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Note what the predictions in a folder were made with. Raises a click error if it holds others."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise click.UsageError(f"{out} holds predictions made otherwise; give another folder.")
    write_json(path, dict(settings))


# Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a model said with each seed, in the order of the truth: slices (M, K) and studies (B, K)."""

    slices: list[Floats]
    studies: list[Floats]
    seconds: float


def read_kept(out: Path, model: str, seeds: Sequence[int], folds: int) -> Judged | None:
    """Return a model's predictions, fold after fold, or None if any is missing."""
    paths = [[kept(out, model, seed, fold) for fold in range(folds)] for seed in seeds]
    if not all(path.exists() for row in paths for path in row):
        return None
    parts = [[np.load(path, allow_pickle=False) for path in row] for row in paths]
    return Judged(
        slices=[np.concatenate([p["slices"] for p in row]) for row in parts],
        studies=[np.concatenate([p["studies"] for p in row]) for row in parts],
        seconds=float(np.mean([p["seconds"] for row in parts for p in row])),
    )


def statistics(seeds: Sequence[Floats], targets: NDArray[np.uint8]) -> dict[str, Statistic]:
    """Return what is judged at one level, by name, as functions of row weights: each is the mean over the seeds."""
    losses = np.mean([log_losses(p, targets) for p in seeds], axis=0)
    found: dict[str, Statistic] = {"loss": average(losses @ LOSS_WEIGHTS)}
    for k, label in enumerate(LABELS):
        found[f"loss {label}"] = average(losses[:, k])
        found[f"auc {label}"] = mean_auc([RankedScores(p[:, k], targets[:, k]) for p in seeds])
    return found


def average(rows: Floats) -> Statistic:
    return lambda weights: float(np.average(rows, weights=weights))


def mean_auc(scores: Sequence[RankedScores]) -> Statistic:
    return lambda weights: float(np.mean([s.auc(weights) for s in scores]))


def difference(a: Statistic, b: Statistic) -> Statistic:
    return lambda weights: a(weights) - b(weights)


def judge(models: Mapping[str, Judged], truth: Truth, against: str, resamples: int) -> dict[str, Any]:
    """Return for each model and level the figures, and `against` minus the model's with a 95 % interval."""
    levels = {"slices": (truth.slices, truth.slice_patients), "studies": (truth.studies, truth.study_patients)}
    found = {
        (name, level): statistics(getattr(said, level), levels[level][0])
        for name, said in models.items()
        for level in levels
    }
    result: dict[str, Any] = {name: {"seconds_per_fold": round(said.seconds, 1)} for name, said in models.items()}
    for (name, level), own in found.items():
        reference = found.get((against, level), {})
        compared = {} if name == against else {key: difference(reference[key], own[key]) for key in reference}
        result[name][level] = {key: number(statistic(None)) for key, statistic in own.items()}
        result[name][f"{level}: {against} minus this"] = {
            key: {k: number(v) for k, v in asdict(bootstrap(d, levels[level][1], resamples=resamples)).items()}
            for key, d in compared.items()
        }
    return result


def number(value: float) -> float | None:
    """Return a JSON value: None where a label is absent."""
    return None if np.isnan(value) else round(value, 6)


def markdown(figures: Mapping[str, Any], against: str) -> str:
    """Lay the figures out: a summary, then each label."""
    parts = []
    for level in ("slices", "studies"):
        keys = ["loss", "auc any"]
        parts.append(f"## {level}: weighted log loss and AUC(any)\n\n{grid(figures, level, keys, against)}")
        for what in ("loss", "auc"):
            keys = [f"{what} {label}" for label in LABELS]
            parts.append(f"### {level}: {what} by label\n\n{grid(figures, level, keys, against)}")
    times = ", ".join(f"{name} {f['seconds_per_fold']} s" for name, f in figures.items())
    return "\n\n".join([*parts, f"Seconds a fold and seed: {times}."]) + "\n"


def grid(figures: Mapping[str, Any], level: str, keys: Sequence[str], against: str) -> str:
    head = ["model", *keys]
    rows = [[name, *(cell(f, level, key, against) for key in keys)] for name, f in figures.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def cell(figures: Mapping[str, Any], level: str, key: str, against: str) -> str:
    """Return a figure and, in brackets, the difference of `against` to it with its interval."""
    value, d = figures[level][key], figures[f"{level}: {against} minus this"].get(key)
    if value is None:
        return "-"
    return f"{value:.4f}" + (f" ({d['value']:+.4f}, {d['low']:+.4f} to {d['high']:+.4f})" if d else "")


@click.command(help=__doc__)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--labels", required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--models", default=",".join([*OURS, *PEERS]), show_default=True)
@click.option("--against", default="ours", show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=4))
@click.option("--stops", default=1, show_default=True, help="Stop folds a peer rotates through.")
@click.option("--epochs", default=40, show_default=True)
@click.option("--patience", default=10, show_default=True)
@click.option("--studies", default=0, help="Take only so many studies (0: all).")
@click.option("--order", default="sorted", show_default=True, type=click.Choice(ORDERS))
@click.option("--device", default="auto", show_default=True)
@click.option("--resamples", default=1000, show_default=True)
def main(
    store: Path,
    labels: Path,
    out: Path,
    models: str,
    against: str,
    seeds: int,
    folds: int,
    stops: int,
    epochs: int,
    patience: int,
    studies: int,
    order: str,
    device: str,
    resamples: int,
) -> None:
    names = checked(models.split(","), against)
    run = Run(folds=folds, stops=stops, epochs=epochs, patience=patience, order=order, studies=studies)
    files = {"store": sha256_file(store / MANIFEST), "labels": sha256_file(labels)}
    made_by = {"version": __version__, "torch": torch.__version__, "defaults": Config().model_dump(mode="json")}
    keep_settings(out, asdict(run) | files | made_by)
    chosen = read_studies(store, labels, studies)
    dealt = folds_of(chosen, folds, FOLD_SEED)
    for seed, fold, model in product(range(seeds), range(folds), names):
        path = kept(out, model, seed, fold)
        if not path.exists():
            start = time.perf_counter()
            said = fitted_on_fold(model, chosen, dealt, fold, seed, run, choose_device(device))
            save(path, said, time.perf_counter() - start)
            click.echo(f"{path.stem}: {time.perf_counter() - start:.0f} s", err=True)
    figures = judge(complete(out, names, seeds, folds), truth_of(chosen, dealt), against, resamples)
    write_json(out / "comparison.json", figures)
    write_bytes(out / "comparison.md", markdown(figures, against).encode())
    click.echo(markdown(figures, against))


def checked(names: Sequence[str], against: str) -> list[str]:
    if unknown := set(names) - {*OURS, *PEERS}:
        raise click.UsageError(f"unknown models {', '.join(sorted(unknown))}; known are {', '.join([*OURS, *PEERS])}.")
    if against not in names:
        raise click.UsageError(f"--against {against} is none of --models {','.join(names)}.")
    return list(names)


def read_studies(store: Path, labels: Path, number: int) -> list[LabelledStudy]:
    """Read the labelled studies of a store into memory, or `number` of them drawn at random."""
    studies, _ = label_studies(open_store(store), read_labels(labels))
    drawn = np.random.default_rng(FOLD_SEED).permutation(len(studies))[: number or None]
    return [
        replace(s, features=replace(s.features, features=np.asarray(s.features.features)))
        for s in (studies[i] for i in sorted(drawn))
    ]


def complete(out: Path, names: Sequence[str], seeds: int, folds: int) -> dict[str, Judged]:
    """Return the models whose every prediction is there."""
    read = {name: read_kept(out, name, range(seeds), folds) for name in names}
    return {name: judged for name, judged in read.items() if judged is not None}


def truth_of(studies: Studies, folds: NDArray[np.int64]) -> Truth:
    """Return the labels in the order of the predictions: fold after fold."""
    ordered = [studies[i] for i in np.argsort(folds, kind="stable")]
    return Truth.of_studies([s.targets for s in ordered], [s.features.patient_key for s in ordered])


if __name__ == "__main__":
    main()
