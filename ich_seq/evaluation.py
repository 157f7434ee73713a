"""evaluate: what predict wrote and labels into figures with intervals, for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from ich_seq import ArtefactError, UsageError, __version__
from ich_seq.bundle import CARD, read_card
from ich_seq.card_page import CARD_PAGE, card_page
from ich_seq.checklist import answers_of_card, fill_checklist
from ich_seq.evaluation_page import evaluation_page
from ich_seq.failures import find_failures
from ich_seq.figures import Predicted, table
from ich_seq.files import locked_folder, read_json, remove, sha256_file, spare_result, write_bytes, write_json
from ich_seq.inputs import Given, as_paths, check_input
from ich_seq.labels import LABELS
from ich_seq.metrics import Resamples
from ich_seq.progress import Progress, silent
from ich_seq.quality import Quality, Sample, compare, measure, reliability
from ich_seq.report import RUN, SLICES
from ich_seq.results import Held, hold, read_results, slices_table
from ich_seq.slice_pictures import find_pictures
from ich_seq.studies import Counts
from ich_seq.study_labels import read_any_labels
from ich_seq.subgroups import judge_subgroups, spread
from ich_seq.tables import csv_table
from ich_seq.thresholds import roc_curve
from ich_seq.weight_library import bundle_folder

SCHEMA = "ich-seq evaluation 2"
EVALUATION, FIGURES, PAGE = "evaluation.json", "figures.csv", "evaluation.html"
SINGULAR = {"slices": "slice", "studies": "study"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSummary:
    """What a run of evaluate did: where it lies, all of evaluation.json, and how many slices the page shows."""

    out: Path
    evaluation: dict[str, Any]
    pictured: int


def evaluate(
    predictions: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    bundle: str | Path | None = None,
    dicom: Given | None = None,
    prevalence: Mapping[str, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = silent,
) -> EvaluationSummary:
    """Hold the slices.csv of predict against labels; write evaluation.html, evaluation.json, figures.csv into `out`.

    Labels are of slices or of studies (see `read_any_labels`; then only studies are judged). `dicom`, what was
    predicted, gives the page pictures of the worst failures. Every figure has a 95 % interval over resampled
    patients (studies, where the table does not tell patients). Predictive values of studies hold for `prevalence`,
    that of the data where a label is not named. Of `bundle` it is noted whether it made the predictions and was
    trained with this very label file, and card.html is what its card says. Raises UsageError for tables that cannot be
    meant, if `out` is the result of explore and if no predicted study is labelled, ArtefactError
    for a damaged bundle, OutputError if `out` cannot be written.
    """
    predictions, labels, out = slices_table(Path(predictions)), Path(labels), Path(out)
    spare_result(out, "exploration.json")  # whose figures.csv would be lost; others' results lose nothing
    _check_prevalence(prevalence or {})
    given = None if dicom is None else as_paths(dicom)
    if given is not None:
        check_input(given)
    held = hold(read_results(predictions), read_any_labels(labels))
    bundle = None if bundle is None else bundle_folder(Path(bundle))
    card = None if bundle is None else _whole_card(bundle)
    rendered = None if card is None else card_page(card)
    inputs, run = _inputs(predictions, labels), _run_of(predictions)
    made_by = {} if bundle is None or card is None else {"bundle": _of_bundle(bundle, card, run, inputs)}
    with locked_folder(out):
        remove(out / name for name in (EVALUATION, PAGE, FIGURES, CARD_PAGE))  # an older run's are none of this one
        samples = _samples(held, prevalence or {}, resamples, seed)
        failures = find_failures(held, held.predicted[_main(held)])
        evaluation = (
            _describe(held, samples)
            | _figures(held, _measure(held, samples, progress), samples)
            | {"failures": [failure.json() for failure in failures]}
            | {"inputs": inputs, "files": run.get("counts", {})}
            | made_by
        )
        pictures = {} if given is None else find_pictures(given, [f.sop_uid for f in failures], progress)
        made = made_by.get("bundle", {}).get("made_the_predictions")
        items = fill_checklist(evaluation, card if made else None)  # no other model is to be described
        write_bytes(out / FIGURES, csv_table(_flat(evaluation)))
        write_bytes(out / PAGE, evaluation_page(evaluation, failures, pictures, items))
        if rendered is not None:
            write_bytes(out / CARD_PAGE, rendered)
        write_json(out / EVALUATION, evaluation)
    return EvaluationSummary(out=out, evaluation=evaluation, pictured=len(pictures))


def _main(held: Held) -> str:
    """Return the name of the predictor that is judged: that of the tables' own columns."""
    return next(iter(held.predicted))


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
        if level in held.levels
    }


def _measure(held: Held, samples: Mapping[str, Sample], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Return the quality of every predictor, of slices and of studies."""
    measured: dict[str, dict[str, Quality]] = {level: {} for level in held.levels}
    total = len(held.levels) * len(held.predicted)
    for done, (level, name) in enumerate(((k, n) for k in held.levels for n in held.predicted), start=1):
        measured[level][name] = measure(getattr(held.predicted[name], level), samples[level])
        progress("measuring", done, total)
    return measured


def _figures(
    held: Held, measured: Mapping[str, Mapping[str, Quality]], samples: Mapping[str, Sample]
) -> dict[str, Any]:
    """Return all figures as JSON values: of each predictor, of paired differences, of bins and of subgroups."""
    main = _main(held)
    against = next(name for name in ("cnn", "position", main) if name in held.predicted)
    return {
        "predictors": list(held.predicted),
        **{level: {name: q.json() for name, q in measured[level].items()} for level in held.levels},
        "differences": {level: compare(measured[level], against) for level in held.levels},
        "reliability": {level: _reliability(held.predicted[main], level, samples[level]) for level in held.levels},
        "roc": {level: _rocs(held.predicted[main], level, samples[level]) for level in held.levels},
        "subgroups": {}
        if held.geometry is None
        else judge_subgroups(held.predicted[main].studies[:, -1], held.geometry, samples["studies"]),
    }


def _reliability(said: Predicted, level: str, sample: Sample) -> dict[str, Any]:
    p = getattr(said, level)
    return {label: reliability(p[:, k], sample.targets[:, k], sample.resamples) for k, label in enumerate(LABELS)}


def _rocs(said: Predicted, level: str, sample: Sample) -> dict[str, Any]:
    p = getattr(said, level)
    return {label: roc_curve(p[:, k], sample.targets[:, k]) for k, label in enumerate(LABELS)}


def _describe(held: Held, samples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return what was judged: counts, how often each label is there, and what intervals rest on."""
    drawn = samples["studies"].resamples.weights
    return {
        "schema": SCHEMA,
        "version": __version__,
        "levels": list(held.levels),
        "flow": held.flow,
        "bootstrap": {
            "clusters": "patients" if held.by_patient else "studies", "number": drawn.shape[1], "resamples": len(drawn),
        },
        "positive": {
            level: dict(zip(LABELS, samples[level].targets.sum(axis=0, dtype=int).tolist(), strict=True))
            for level in held.levels
        },
        "prevalence": {
            level: dict(zip(LABELS, samples[level].prevalence.round(6).tolist(), strict=True)) for level in held.levels
        },
        "data": {} if held.geometry is None else spread(held.geometry),
    }  # fmt: skip


def _whole_card(bundle: Path) -> dict[str, Any]:
    """Read a bundle's card; refuse at once one that will not answer later."""
    card = read_card(bundle)
    answers_of_card(card)
    return card


def _of_bundle(
    bundle: Path, card: Mapping[str, Any], run: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Return whether a bundle made the predictions and learnt from this label file (None: nothing tells)."""
    sha256, made = sha256_file(bundle / CARD), run.get("card_sha256")
    learnt = card.get("training", {}).get("labels_sha256") == inputs["labels_sha256"]
    return {
        "card_sha256": sha256,
        "made_the_predictions": None if made is None else made == sha256,
        "trained_on_these_labels": None if "published" in card else learnt,
    }


def _run_of(predictions: Path) -> dict[str, Any]:
    """Return the record that predict left beside its table, its counts whole, or nothing if this is no such table."""
    path = predictions.with_name(RUN)
    if predictions.name != SLICES or not os.path.lexists(path):  # what is there and no file is refused
        return {}
    try:
        run: dict[str, Any] = read_json(path)
        known = asdict(TypeAdapter(Counts).validate_python(run["counts"])) if "counts" in run else {}
        return run | {"counts": known}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{path} cannot be read; predict again.") from error


def _inputs(predictions: Path, labels: Path) -> dict[str, str]:
    return {"predictions_sha256": sha256_file(predictions), "labels_sha256": sha256_file(labels)}


def summarised(evaluation: Mapping[str, Any]) -> str:
    """Lay the first figures side by side for people, and say what they rest on."""
    flow, basis = evaluation["flow"], evaluation["bootstrap"]
    slices = f", {flow['slices_judged']} slices" if "slices" in evaluation["levels"] else ""
    return (
        f"{table(first_figures(evaluation))}\n\n{flow['studies_judged']} of {flow['studies_predicted']} studies "
        f"judged{slices}; intervals over {basis['number']} {basis['clusters']}{_unmatched(flow)}"
    )


def _unmatched(flow: Mapping[str, int]) -> str:
    """Say what labels found no study, or more than one."""
    told = {
        "labelled studies were not predicted": flow.get("studies_labelled_not_predicted", 0),
        "predicted studies share a labelled Patient ID and were left out": flow.get("studies_of_shared_patient_ids", 0),
    }
    return "".join(f"; {number} {what}" for what, number in told.items() if number)


def first_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return each predictor's losses and AUCs by level, in the form of `figures.judge`."""
    return {
        name: {
            **{f"{SINGULAR[k]}_loss": evaluation[k][name]["weighted_log_loss"] for k in evaluation["levels"]},
            **{
                f"{SINGULAR[k]}_auc": {label: f["auroc"] for label, f in evaluation[k][name]["labels"].items()}
                for k in evaluation["levels"]
            },
        }
        for name in evaluation["predictors"]
    }


def _flat(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Return every figure as a row: level, predictor, label, figure, value, low, high."""
    rows = [
        {"level": level, "predictor": name, "label": label, "figure": figure, **(estimate or {})}
        for level in evaluation["levels"]
        for name, quality in (evaluation[level] | evaluation["differences"][level]).items()
        for label, figures in ({"": {"weighted_log_loss": quality["weighted_log_loss"]}} | quality["labels"]).items()
        for figure, estimate in figures.items()
    ]
    return pd.DataFrame(rows, columns=["level", "predictor", "label", "figure", "value", "low", "high"])
