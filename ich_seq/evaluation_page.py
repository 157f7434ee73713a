"""An evaluation as a page to read: figures with intervals, charts, failures, the data, the checklist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ich_seq.charts import chart, lines, strip, whiskers
from ich_seq.checklist import Item
from ich_seq.failures import Failure
from ich_seq.labels import LABELS
from ich_seq.pages import COLOUR_OF, render

FIGURES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "sensitivity_at_95_specificity": "sensitivity at 95 % specificity",
    "ppv_at_95_specificity": "PPV there",
    "npv_at_95_specificity": "NPV there",
    "specificity_at_95_sensitivity": "specificity at 95 % sensitivity",
    "ppv_at_95_sensitivity": "PPV there",
    "npv_at_95_sensitivity": "NPV there",
}
"""What the tables show of each label, and how it is headed."""

COMPARED = ("auroc", "average_precision", "brier", "log_loss")


def evaluation_page(
    evaluation: Mapping[str, Any],
    failures: Sequence[Failure],
    pictures: Mapping[str, Mapping[str, str]],
    checklist: Sequence[Item],
) -> bytes:
    """Return the page of evaluation.json; `pictures` of slices to look at, by SOP Instance UID, may be empty."""
    return render(
        "evaluation.html",
        e=evaluation,
        main=evaluation["predictors"][0],
        figures=FIGURES,
        compared=COMPARED,
        rocs={level: _rocs(evaluation, level) for level in evaluation["levels"]},
        reliability={level: _reliability(evaluation, level) for level in evaluation["levels"]},
        failures=[{"of": f, "strip": _strip(f), "pictures": pictures.get(f.sop_uid, {})} for f in failures],
        checklist=checklist,
    )


def _rocs(evaluation: Mapping[str, Any], level: str) -> Markup | None:
    """Return the ROC curves of all labels in one chart; None if no label has both classes."""
    curves = {
        label: ([1 - s for s in curve["specificity"]], curve["sensitivity"])
        for label, curve in evaluation["roc"][level].items()
        if curve is not None
    }
    draw = lines(curves, x="1 - specificity", y="sensitivity", unit_square=True)
    return chart(f"ROC curves, {level}", draw, size_inches=(5.2, 4.6)) if curves else None


def _reliability(evaluation: Mapping[str, Any], level: str) -> list[Markup]:
    """Return a reliability chart for each label: how often it was there where so much was said."""
    charts = []
    for label in LABELS:
        bins = evaluation["reliability"][level][label]
        points = [(b["mean"], b["observed"]) for b in bins if b["observed"] is not None]
        draw = whiskers(points, x="probability said", y="share positive", colour=COLOUR_OF[label])
        charts.append(chart(f"{label}, {level}", draw))
    return charts


def _strip(failure: Failure) -> Markup:
    title = f"{failure.label} along the head, {failure.kind}"
    draw = strip(failure.positions_mm, failure.slice_probabilities, failure.slice_truth, COLOUR_OF[failure.label])
    return chart(title, draw, size_inches=(4.4, 1.9))
