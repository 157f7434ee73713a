"""evaluate: what predict wrote and labels into figures with intervals, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.bundle import CARD, read_card
from ich_seq.figures import Predicted, table
from ich_seq.files import locked_folder, sha256_file, write_bytes, write_json
from ich_seq.labels import LABELS, read_labels
from ich_seq.metrics import Resamples
from ich_seq.progress import Progress, silent
from ich_seq.quality import Quality, Sample, compare, measure, of_labels, reliability
from ich_seq.report import RUN, SLICES
from ich_seq.results import Held, hold, read_results, slices_table

SCHEMA = "ich-seq evaluation 1"
EVALUATION, FIGURES = "evaluation.json", "figures.csv"
SINGULAR = {"slice": "slices", "study": "studies"}
LEVELS = tuple(SINGULAR.values())
SUBGROUP_FIGURES = ("auroc", "sensitivity_at_95_specificity", "specificity_at_95_sensitivity", "log_loss")

Mask = NDArray[np.bool_]
SUBGROUPS: dict[str, Callable[[pd.DataFrame], Mapping[str, Any]]] = {
    "slices": lambda g: {
        "under 30": g["slices"] < 30, "30 to 40": g["slices"].between(30, 40), "over 40": g["slices"] > 40,
    },
    "spacing": lambda g: {
        "up to 3 mm": g["spacing_mm"] <= 3, "over 3 mm": g["spacing_mm"] > 3,
    },
    "step": lambda g: {"one": g["zones"] <= 1, "changes": g["zones"] > 1},
    "gantry tilt": lambda g: {"under 1 degree": g["tilt_deg"].abs() < 1, "1 degree or more": g["tilt_deg"].abs() >= 1},
    "gaps": lambda g: {"none": g["gaps"] == 0, "some": g["gaps"] > 0},
    "repeated positions": lambda g: {"none": g["duplicates"] == 0, "some": g["duplicates"] > 0},
}  # fmt: skip
"""By what the studies.csv of predict says of a study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSummary:
    """What a run of evaluate did: where it lies, and all of evaluation.json."""

    out: Path
    evaluation: dict[str, Any]


def evaluate(
    predictions: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    bundle: str | Path | None = None,
    prevalence: Mapping[str, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> EvaluationSummary:
    """Hold the slices.csv of predict against labels; write evaluation.json and figures.csv into `out`.

    Every figure has a 95 % interval over resampled patients (studies, where the table does not tell patients).
    Predictive values of studies hold for `prevalence`, that of the data where a label is not named. Of `bundle` it is
    noted whether it made the predictions and was trained with this very label file. Raises UsageError for tables that
    cannot be meant and if no predicted study is labelled, ArtefactError for a damaged bundle, OutputError if `out`
    cannot be written.
    """
    predictions, labels, out = slices_table(Path(predictions)), Path(labels), Path(out)
    _check_prevalence(prevalence or {})
    held = hold(read_results(predictions), read_labels(labels))
    made_by = {} if bundle is None else {"bundle": _of_bundle(Path(bundle), predictions, labels)}
    with locked_folder(out):
        samples = _samples(held, prevalence or {}, resamples, seed)
        measured = _measure(held, samples, progress)
        evaluation = (
            _describe(held, samples) | _figures(held, measured, samples) | _inputs(predictions, labels) | made_by
        )
        write_bytes(out / FIGURES, _flat(evaluation).to_csv(index=False, lineterminator="\n").encode())
        write_json(out / EVALUATION, evaluation)
    return EvaluationSummary(out=out, evaluation=evaluation)


def _check_prevalence(prevalence: Mapping[str, float]) -> None:
    for label, share in prevalence.items():
        if label not in LABELS or not 0 < share < 1:
            raise UsageError(
                f"--prevalence {label}={share}: name one of {', '.join(LABELS)} and a share between 0 and 1."
            )


def _samples(held: Held, prevalence: Mapping[str, float], resamples: int, seed: int) -> dict[str, Sample]:
    """Return what slices and studies are held against."""
    of_studies = Resamples(held.truth.study_patients, resamples=resamples, seed=seed)
    of_slices = of_studies.of(np.repeat(np.arange(len(held.lengths)), held.lengths))
    return {
        level: Sample(
            targets=targets,
            resamples=drawn,
            prevalence=np.array([given.get(k, p) for k, p in zip(LABELS, targets.mean(axis=0), strict=True)]),
        )
        for level, targets, drawn, given in (
            ("slices", held.truth.slices, of_slices, {}),
            ("studies", held.truth.studies, of_studies, prevalence),
        )
    }


def _measure(held: Held, samples: Mapping[str, Sample], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Return the quality of every predictor, of slices and of studies."""
    measured: dict[str, dict[str, Quality]] = {level: {} for level in LEVELS}
    total = len(LEVELS) * len(held.predicted)
    for done, (level, name) in enumerate(((k, n) for k in LEVELS for n in held.predicted), start=1):
        measured[level][name] = measure(getattr(held.predicted[name], level), samples[level])
        progress("measuring", done, total)
    return measured


def _figures(
    held: Held, measured: Mapping[str, Mapping[str, Quality]], samples: Mapping[str, Sample]
) -> dict[str, Any]:
    """Return all figures as JSON values: of each predictor, of paired differences, of bins and of subgroups."""
    main = next(iter(held.predicted))
    against = next(name for name in ("cnn", "position", main) if name in held.predicted)
    return {
        "predictors": list(held.predicted),
        **{level: {name: q.json() for name, q in measured[level].items()} for level in LEVELS},
        "differences": {level: compare(measured[level], against) for level in LEVELS},
        "reliability": {level: _reliability(held.predicted[main], level, samples[level]) for level in LEVELS},
        "subgroups": {} if held.geometry is None else _subgroups(held, held.geometry, samples),
    }


def _reliability(said: Predicted, level: str, sample: Sample) -> dict[str, Any]:
    p = getattr(said, level)
    return {label: reliability(p[:, k], sample.targets[:, k], sample.resamples) for k, label in enumerate(LABELS)}


def _subgroups(held: Held, geometry: pd.DataFrame, samples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return the first predictor's figures of any haemorrhage, study by study, in groups of studies."""
    said = next(iter(held.predicted.values())).studies[:, -1]
    found: dict[str, Any] = {}
    for name, groups in SUBGROUPS.items():
        for group, members in groups(geometry).items():
            chosen = np.asarray(members, bool)
            found.setdefault(name, {})[group] = _of_group(said[chosen], chosen, samples["studies"])
    return found


def _of_group(said: NDArray[np.float64], chosen: Mask, sample: Sample) -> dict[str, Any]:
    y = sample.targets[chosen, -1]
    counts = {"studies": int(chosen.sum()), "positive": int(y.sum())}
    if not counts["studies"]:
        return counts
    part = Sample(targets=y[:, None], resamples=sample.resamples.of(chosen), prevalence=sample.prevalence[-1:])
    (figures,) = of_labels(said[:, None], part)
    return counts | {name: figures[name].json() for name in SUBGROUP_FIGURES}


def _describe(held: Held, samples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return what was judged: counts, how often each label is there, and what intervals rest on."""
    drawn = samples["studies"].resamples.weights
    return {
        "schema": SCHEMA,
        "version": __version__,
        "flow": held.flow,
        "bootstrap": {
            "clusters": "patients" if held.by_patient else "studies", "number": drawn.shape[1], "resamples": len(drawn),
        },
        "positive": {
            level: dict(zip(LABELS, samples[level].targets.sum(axis=0, dtype=int).tolist(), strict=True))
            for level in LEVELS
        },
        "prevalence": {
            level: dict(zip(LABELS, samples[level].prevalence.round(6).tolist(), strict=True)) for level in LEVELS
        },
    }  # fmt: skip


def _of_bundle(bundle: Path, predictions: Path, labels: Path) -> dict[str, Any]:
    """Return whether a bundle made the predictions (None: they do not tell) and learnt from this label file."""
    card, sha256 = read_card(bundle), sha256_file(bundle / CARD)
    record = predictions.with_name(RUN)
    told = predictions.name == SLICES and record.is_file()
    made = _read_run(record).get("card_sha256") if told else None
    return {
        "card_sha256": sha256,
        "made_the_predictions": None if made is None else made == sha256,
        "trained_on_these_labels": card.get("training", {}).get("labels_sha256") == sha256_file(labels),
    }


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read; predict again.") from error
    return run


def _inputs(predictions: Path, labels: Path) -> dict[str, Any]:
    return {"inputs": {"predictions_sha256": sha256_file(predictions), "labels_sha256": sha256_file(labels)}}


def summarised(evaluation: Mapping[str, Any]) -> str:
    """Lay the first figures side by side for people, and say what they rest on."""
    figures = {
        name: {
            **{f"{level}_loss": evaluation[key][name]["weighted_log_loss"] for level, key in SINGULAR.items()},
            **{
                f"{level}_auc": {label: f["auroc"] for label, f in evaluation[key][name]["labels"].items()}
                for level, key in SINGULAR.items()
            },
        }
        for name in evaluation["predictors"]
    }
    flow, basis = evaluation["flow"], evaluation["bootstrap"]
    return (
        f"{table(figures)}\n\n{flow['studies_judged']} of {flow['studies_predicted']} studies judged, "
        f"{flow['slices_judged']} slices; intervals over {basis['number']} {basis['clusters']}"
    )


def _flat(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return every figure as a row: level, predictor, label, figure, value, low, high."""
    rows = [
        {"level": level, "predictor": name, "label": label, "figure": figure, **(estimate or {})}
        for level in LEVELS
        for name, quality in (evaluation[level] | evaluation["differences"][level]).items()
        for label, figures in ({"": {"weighted_log_loss": quality["weighted_log_loss"]}} | quality["labels"]).items()
        for figure, estimate in figures.items()
    ]
    return pd.DataFrame(rows, columns=["level", "predictor", "label", "figure", "value", "low", "high"])
