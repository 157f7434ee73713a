"""Lay embeddings and logits such as a CNN makes over real sequences of labels, as a feature store.

    python tools/simulate_features.py FOLDER OUT [--dim 64] [--seed 0] [--studies N] [--independent] [--report]
    ich-seq train-rnn OUT --labels OUT/labels.csv --out bundle

FOLDER holds stage1test_slices.csv.gz (RSNA 2019: 1,110 complete studies with positions and the labels of every
slice; tools/rsna_tables.py says which columns). OUT becomes a store with one network a patient fold, as
extract-features makes it of a folder of train-cnn, and labels.csv in the challenge's long form. No pixels exist:
the networks in OUT are tiny and random, and stand there only so that train-rnn can make a bundle of the store.
--report prints the figures by which the constants below were fitted, and those of errors that are independent.

What is simulated, for slice s of a study and label k:

    size[s, k]   how much of a bleed s shows: the labels smoothed along z over SIZE_MM. It is smaller at the ends
                 of a bleed and for bleeds of one slice, which are harder to see and whose labels are disputed
    score[s, k]  SEPARATION[k] * size[s, k] + error[s, k]
    error[s, k]  of variance 1, in three parts: one of the whole study, one that is correlated along z with a
                 length of ERRORS.length_mm, one of the slice alone; each is partly SHARED by the labels
    latent[s]    the scores; where the slice lies (a CNN knows anatomy); a second, weaker look at the sizes that
                 sees the neighbours too; nuisance of the patient and nuisance that is smooth along z
    embedding[s] latent[s] @ a fixed random map + noise, float16
    logits[s]    a linear head on the embedding: the logistic regression of the labels on scores and place as they
                 can be read off it. So logits are calibrated, as those of a CNN trained by log loss nearly are

Where the constants come from. The CNN alone: a weighted log loss of 0.07 to 0.08 (single CNNs scored 0.070 to 0.068
on the challenge's first test set, which these studies are of, a 224-pixel ResNet-50 0.079 on its own), AUC(any) of
slices 0.979 and 0.981 and epidural 0.954 (EfficientNetV2-M and MaxViT-tiny of 2026), the other labels in the order
that published sequence models have them (intraventricular best, then intraparenchymal, subarachnoid, subdural).
Sequences: smoothing over neighbouring slices, or a recurrent network, took 0 to 25 % off the loss of real CNNs, most
often 8 to 12 %, whereas it took 62 % where errors were independent given the labels.

Reached on all studies with --dim 64 --seed 0: CNN alone 0.0706, AUC of slices any 0.980, epidural 0.954,
intraparenchymal 0.980, intraventricular 0.985, subarachnoid 0.971, subdural 0.979; smoothed by logistic regressions
over +-1, 2, 3 slices -7.6, -8.0, -8.4 %, and with independent errors, from 0.0699, -51.4, -55.0, -55.7 %. A new
linear read-out of the embeddings comes within 3.3 % of the CNN's logits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rsna_tables import header
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ich_seq.config import Config
from ich_seq.encoder import SliceEncoder, build_encoder, save_encoder, with_head
from ich_seq.engines import Execution
from ich_seq.figures import Predicted
from ich_seq.files import short_hash
from ich_seq.labels import LABELS, assign_folds
from ich_seq.metrics import auc, log_losses, weighted_log_loss
from ich_seq.reasons import unused_csv
from ich_seq.sequences import LabelledStudy
from ich_seq.store import StoreWriter, StudyFeatures, encoder_file
from ich_seq.studies import Study, group_studies

Floats = NDArray[np.float64]
Figure = Callable[[Floats, NDArray[np.uint8]], float]
TABLE, LABEL_FILE = "stage1test_slices.csv.gz", "labels.csv"
K, FOLDS = len(LABELS), 5

ARCHS = {64: "test_convnext", 96: "test_resnet", 128: "test_convnext2", 192: "test_nfnet", 256: "test_efficientnet"}
"""Tiny networks of timm, by the width of their embeddings."""

SIZE_MM = 4.0
"""Standard deviation of the smoothing that makes sizes of labels: about a slice, so that the last slice of a bleed
shows half as much as its middle. At more, the neighbours of a bleed would look like bleeds themselves."""

SEPARATION = np.array([1.85, 2.65, 3.05, 2.3, 2.2, 3.25])
"""Scores of a full bleed, in standard deviations of the error; fitted to the AUCs above."""

SHARED = np.array([0.3, 0.3, 0.3, 0.3, 0.3, 0.6])
"""Share of the error's variance that is common to the labels: what hides one bleed hides the others, and `any` is
wrong where a subtype is."""

PLACES = 3
SECOND_LOOK = 0.2
"""Separation of the second look, as a share of the first's: what an embedding holds and its head does not use."""

NEIGHBOUR_MM = 8.0
"""Smoothing of the second look: partial volume and neighbours shown as channels (2.5D)."""

NUISANCE, NUISANCE_MM = 8, 40.0
"""Dimensions of the patient's nuisance and of the smooth one, and the correlation length of the latter."""

NOISE = 0.3
"""Standard deviation of what an embedding's dimensions have of their own; the latent ones have about 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """How the variance of the scores' errors is divided, and over how many mm along z errors are alike."""

    study: float
    smooth: float
    own: float
    length_mm: float


ERRORS = Errors(study=0.2, smooth=0.66, own=0.14, length_mm=40.0)
"""Fitted so that logistic smoothing gains what real models gain."""

INDEPENDENT = Errors(study=0.0, smooth=0.0, own=1.0, length_mm=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A study and its labels, (N, K) uint8, feet to head."""

    study: Study
    targets: NDArray[np.uint8]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dim", default=64, show_default=True, type=click.Choice(ARCHS), help="Width D of the embeddings.")
@click.option("--seed", default=0, show_default=True)
@click.option("--studies", default=0, help="Take only so many studies, drawn by the seed (0: all).")
@click.option("--independent", is_flag=True, help="Errors of slices are independent: what real ones are not.")
@click.option("--report", is_flag=True, help="Print the figures that the constants answer to.")
def main(folder: Path, out: Path, dim: int, seed: int, studies: int, independent: bool, report: bool) -> None:
    cases = read_cases(folder, studies=studies, seed=seed)
    made = simulate(cases, INDEPENDENT if independent else ERRORS, dim=dim, seed=seed)
    write(out, cases, made, seed=seed)
    click.echo(f"{len(cases)} studies, {sum(len(c.targets) for c in cases)} slices -> {out}")
    if report:
        click.echo(describe("written", made.studies))
        other = simulate(cases, ERRORS if independent else INDEPENDENT, dim=dim, seed=seed)
        click.echo(describe("correlated" if independent else "independent errors", other.studies))


def read_cases(folder: Path, *, studies: int = 0, seed: int = 0) -> list[Case]:
    """Read the studies of a table, ordered by the package, or so many drawn by the seed.

    Raises a click error if there is no table.
    """
    path = folder / TABLE
    if not path.is_file():
        raise click.UsageError(f"{folder} holds no {TABLE}.")
    table = pd.read_csv(path)
    uids = np.sort(table["StudyInstanceUID"].unique())
    drawn = np.random.default_rng(seed).permutation(uids)[: studies or None]
    rows = table[table["StudyInstanceUID"].isin(drawn)]
    labels = rows.set_index("image_id")[list(LABELS)]
    ordered, _ = group_studies([header(row) for row in rows.to_dict("records")])
    return [Case(study=s, targets=labels.loc[[h.sop_uid for h in s.slices]].to_numpy(np.uint8)) for s in ordered]


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """Studies with features and logits, and the head that makes the latter of the former: (K, D) and (K,)."""

    studies: list[LabelledStudy]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def simulate(cases: Sequence[Case], errors: Errors, *, dim: int, seed: int) -> Simulated:
    """Lay features and logits over cases; the same for the same seed, and a study's embeddings in any company.

    Only the head is fitted on all cases that are given.
    """
    latents = [latent(case, errors, seed) for case in cases]
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(latents[0].shape[1], dim)) / np.sqrt(latents[0].shape[1])
    embedded = [
        (values @ mixing + NOISE * generator(seed, "noise", case.study.uid).normal(size=(len(values), dim))).astype(
            np.float16
        )
        for case, values in zip(cases, latents, strict=True)
    ]
    weight, bias = fit_head(np.concatenate(embedded), np.concatenate([c.targets for c in cases]), mixing)
    folds = folds_of(cases, seed)
    rows = zip(cases, embedded, folds.tolist(), strict=True)
    studies = [labelled(c, e, e.astype(np.float32) @ weight.T + bias, f) for c, e, f in rows]
    return Simulated(studies=studies, weight=weight, bias=bias)


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return a generator for this purpose and study or patient alone."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def folds_of(cases: Sequence[Case], seed: int) -> NDArray[np.int64]:
    """Return the fold of each study's patient, which is the number of the network that embeds it."""
    patients = np.array([c.study.patient_id for c in cases])
    return assign_folds(patients, np.stack([c.targets.max(axis=0) for c in cases]), n_folds=FOLDS, seed=seed)


def labelled(case: Case, features: NDArray[np.float16], logits: NDArray[np.float32], fold: int) -> LabelledStudy:
    features_of = StudyFeatures(
        study_uid=case.study.uid,
        patient_key=short_hash(case.study.patient_id),
        sop_uids=tuple(h.sop_uid for h in case.study.slices),
        positions_mm=case.study.positions_mm,
        features=features,
        logits=logits,
        network=fold,
    )
    return LabelledStudy(features=features_of, targets=case.targets)


def latent(case: Case, errors: Errors, seed: int) -> Floats:
    """Return what a CNN would know of each slice, (N, 2K + PLACES + 2 NUISANCE): first scores and place."""
    z, name = case.study.positions_mm, case.study.uid
    rng = generator(seed, "slices", name)
    patient = generator(seed, "patient", case.study.patient_id).normal(size=NUISANCE)
    first = SEPARATION * sizes(case.targets, z, SIZE_MM) + error(z, errors, rng)
    second = SECOND_LOOK * SEPARATION * sizes(case.targets, z, NEIGHBOUR_MM) + error(z, errors, rng)
    smooth = along_z(z, NUISANCE_MM, rng.normal(size=(len(z), NUISANCE)))
    return np.concatenate([first, place(z), second, np.tile(patient, (len(z), 1)), smooth], axis=1)


def sizes(targets: NDArray[np.uint8], z: Floats, length_mm: float) -> Floats:
    """Return the labels smoothed along z, (N, K): a slice counts as much as it is thick."""
    thick = np.gradient(z).clip(0.5) if len(z) > 1 else np.ones(1)
    near = np.exp(-0.5 * ((z[:, None] - z) / length_mm) ** 2) * thick
    return np.asarray(near @ targets / near.sum(axis=1, keepdims=True))


def error(z: Floats, errors: Errors, rng: np.random.Generator) -> Floats:
    """Return errors of N slices and K labels, each of variance 1."""
    study = shared(rng.normal(size=(1, K + 1)))
    smooth = along_z(z, errors.length_mm, shared(rng.normal(size=(len(z), K + 1))))
    own = shared(rng.normal(size=(len(z), K + 1)))
    return np.asarray(np.sqrt(errors.study) * study + np.sqrt(errors.smooth) * smooth + np.sqrt(errors.own) * own)


def shared(draws: Floats) -> Floats:
    """Mix draws of K labels and of a common cause, (N, K + 1), into correlated ones of variance 1, (N, K)."""
    return np.asarray(np.sqrt(1 - SHARED) * draws[:, :K] + np.sqrt(SHARED) * draws[:, K:])


def along_z(z: Floats, length_mm: float, draws: Floats) -> Floats:
    """Correlate independent draws, (N, any), along z: by exp(-distance / length), an autoregression in mm."""
    correlation = np.exp(-np.abs(z[:, None] - z) / length_mm) + 1e-6 * np.eye(len(z))
    return np.asarray(np.linalg.cholesky(correlation) @ draws)


def place(z: Floats) -> Floats:
    """Return where slices lie between feet (-1) and head (1) of their study, to the third power: (N, PLACES)."""
    along = 2 * (z - z[0]) / max(z[-1] - z[0], 1e-9) - 1
    return np.stack([along**power for power in range(1, PLACES + 1)], axis=1)


def fit_head(
    embedded: NDArray[np.float16], targets: NDArray[np.uint8], mixing: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit the logits on scores and place as embeddings (M, D) show them; return the head, (K, D) and (K,).

    A label with one class among the targets gets a constant.
    """
    shown = np.linalg.pinv(mixing)[:, : K + PLACES]
    known = embedded.astype(np.float64) @ shown
    weight, bias = np.zeros((K, mixing.shape[1])), np.full(K, -8.0)
    for k in np.flatnonzero(targets.any(axis=0)):
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(known, targets[:, k])
        weight[k], bias[k] = shown @ fitted.coef_[0], fitted.intercept_[0]
    return weight.astype(np.float32), bias.astype(np.float32)


def write(out: Path, cases: Sequence[Case], made: Simulated, *, seed: int) -> None:
    """Write the store and labels.csv."""
    out.mkdir(parents=True, exist_ok=True)
    encoders = [stand_in(made, number) for number in range(FOLDS)]
    writer = StoreWriter(out, short_hash(" ".join([str(seed), *(e.spec.fingerprint for e in encoders)])))
    for number, encoder in enumerate(encoders):
        save_encoder(encoder, out / encoder_file(number))
    for case, study in zip(cases, made.studies, strict=True):
        writer.add(case.study.uid, study.features, asdict(case.study.geometry), whole=True)
    execution = Execution(engine="torch", precision="fp32", views=1, batch_size=32)
    specs = {str(number): asdict(encoder.spec) for number, encoder in enumerate(encoders)}
    facts = {"encoders": specs, "execution": asdict(execution)}
    writer.close([c.study.uid for c in cases], unused_csv([]), [encoder_file(k) for k in range(FOLDS)], facts)
    write_labels(out / LABEL_FILE, made.studies)


def stand_in(made: Simulated, number: int) -> SliceEncoder:
    """Return a random network with the simulated head: it never saw a slice."""
    arch = ARCHS[made.weight.shape[1]]
    chosen = {"slices": {"size": 32}, "encoder": {"arch": arch, "weights": "random", "seed": number}}
    encoder = build_encoder(Config.model_validate(chosen))
    encoder.spec = replace(encoder.spec, weights=f"none: features of fold {number} are simulated")
    return with_head(encoder, made.weight, made.bias)


def write_labels(path: Path, studies: Sequence[LabelledStudy]) -> None:
    rows = ((uid, row) for s in studies for uid, row in zip(s.features.sop_uids, s.targets.tolist(), strict=True))
    lines = [f"{uid}_{label},{value}" for uid, row in rows for label, value in zip(LABELS, row, strict=True)]
    path.write_text("\n".join(["ID,Label", *lines]) + "\n", encoding="utf-8")


def describe(title: str, studies: Sequence[LabelledStudy]) -> str:
    """Return the figures of the CNN alone and of what smoothing and the embeddings add, as text.

    Read-outs are fitted on four folds of patients and judged on the fifth, in turn.
    """
    targets = np.concatenate([s.targets for s in studies])
    alone = expit(np.concatenate([logits_of(s) for s in studies]).astype(np.float64))
    lengths = [len(s) for s in studies]
    whole = Predicted.of_slices(alone, lengths).studies
    truth = np.stack([s.targets.max(axis=0) for s in studies])
    loss = weighted_log_loss(alone, targets)
    lines = [
        f"{title}: CNN alone, weighted log loss {loss:.4f}; AUC of slices {by_label(alone, targets, auc)}",
        f"    log loss {by_label(alone, targets, lambda p, t: float(log_losses(p, t).mean()))}",
        f"    AUC of studies {by_label(whole, truth, auc)}",
        f"    says / is positive {by_label(alone, targets, lambda p, t: float(p.mean() / t.mean()))}",
    ]
    read_outs = {f"smoothed over +-{w}": [neighbours(logits_of(s), w) for s in studies] for w in (0, 1, 2, 3)}
    read_outs["linear on the embedding"] = [s.features.features.astype(np.float64)[:, None] for s in studies]
    for name, inputs in read_outs.items():
        p = cross_fitted(inputs, studies)
        lines.append(f"    {name}: {weighted_log_loss(p, targets):.4f} ({gain(p, alone, targets):+.1f} %)")
    return "\n".join(lines)


def logits_of(study: LabelledStudy) -> NDArray[np.float32]:
    if study.features.logits is None:
        raise ValueError(f"{study.features.study_uid} has no logits")
    return study.features.logits


def neighbours(logits: NDArray[np.float32], reach: int) -> Floats:
    """Return the logits of the slices from -reach to reach, the ends repeated: (N, K) -> (N, K, 2 reach + 1)."""
    padded = np.pad(logits.astype(np.float64), ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)


def cross_fitted(inputs: Sequence[Floats], studies: Sequence[LabelledStudy]) -> Floats:
    """Predict every slice by logistic regressions on `inputs`, (N, K or 1, any), of other folds: (M, K)."""
    rows, targets = np.concatenate(inputs), np.concatenate([s.targets for s in studies])
    fold = np.concatenate([np.full(len(s), s.features.network) for s in studies])
    said = np.tile(targets.mean(axis=0), (len(targets), 1))
    for k in range(K):
        x = rows[:, min(k, rows.shape[1] - 1)]
        for f in np.unique(fold):
            seen, y = fold != f, targets[fold != f, k]
            if y.any():
                fitted = LogisticRegression(C=1.0, max_iter=1000).fit(x[seen], y)
                said[~seen, k] = fitted.predict_proba(x[~seen])[:, 1]
    return said


def gain(probabilities: Floats, before: Floats, targets: NDArray[np.uint8]) -> float:
    """Return by how many per cent the loss changes."""
    return 100 * (weighted_log_loss(probabilities, targets) / weighted_log_loss(before, targets) - 1)


def by_label(probabilities: Floats, targets: NDArray[np.uint8], figure: Figure) -> str:
    columns = ((label, figure(probabilities[:, k], targets[:, k])) for k, label in enumerate(LABELS))
    return ", ".join(f"{label} {value:.4f}" for label, value in columns)


if __name__ == "__main__":
    main()
