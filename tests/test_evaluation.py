"""evaluate: predictions and labels into figures that add up, repeat to the byte and say what they rest on."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from markupsafe import Markup
from sklearn.metrics import brier_score_loss, roc_auc_score

from ich_seq import ArtefactError, UsageError, evaluate, evaluation_page
from ich_seq.bundle import SCHEMA
from ich_seq.cli import cli
from ich_seq.exploration import explore
from ich_seq.failures import FALSE_ALARM, MISSED
from ich_seq.files import sha256_file
from ich_seq.labels import LABELS
from ich_seq.phantom import draw_study, write_study

pytest_plugins = ["browser"]

PARTS = ("", "cnn_", "rnn_")
STUDIES, PATIENTS = 40, 25
PLANTED = "<script>alert(1)</script>"
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}
CARD: dict[str, Any] = {
    "schema": SCHEMA,
    "version": "0.1",
    "intended_use": "Nothing.",
    "labels": list(LABELS),
    "encoders": [
        {
            "file": "encoder-0.safetensors", "arch": "net", "dim": 8, "size": 32, "weights": "random", "sha256": "e0e0",
            "field_mm": 250.0, "windows_hu": [[40.0, 80.0]], "neighbours": [0],
        }
    ],
    "execution": {"engine": "torch", "precision": "fp32", "views": 1, "batch_size": 2},
    "rnn": {"dim": 8, "config": {"cell": "gru"}, "files": [{"file": "rnn-0.safetensors", "sha256": "f0f0"}]},
    "calibration": {
        level: {name: [0.5] * 6 for name in ("share", "slope", "intercept")} for level in ("slices", "studies")
    } | {"kernel": [[0.1, 0.05, 0.02]] * 6},
    "familiar": {"file": "familiar.safetensors", "sha256": "a0a0", "limit": 1.5},
    "figures": {
        "rnn": {f"{level}_{kind}": FIGURE if kind == "loss" else dict.fromkeys(LABELS, FIGURE)
                for level in ("slice", "study") for kind in ("loss", "auc")},
    },
    "training": {
        "studies": 10, "patients": 9, "slices": 300, "studies_without_labels": 1, "labels_sha256": "",
        "positive_slices": dict.fromkeys(LABELS, 30), "positive_studies": dict.fromkeys(LABELS, 4),
        "lengths": {"30": 10}, "features_fingerprint": "f", "networks_unchanged": 0, "settings": {},
        "versions": {"torch": "2"},
    },
}  # fmt: skip
"""All that the card of a bundle says, in short."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder as predict leaves it and a label file: 40 studies of 25 patients, the blend better than the CNN."""
    root, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    slices, studies, labels = [], [], []
    for number in range(STUDIES):
        uid, n = f"1.2.{number}", int(rng.integers(20, 50))
        truth = rng.random((n, 6)) < 0.3 * (number % 2)
        truth[:, -1] = truth[:, :-1].any(axis=1)
        logits = {part: 2 * truth - 2 + rng.normal(0, 0.5 + (part == "cnn_"), truth.shape) for part in PARTS}
        said = {part + k: 1 / (1 + np.exp(-x[:, i])) for part, x in logits.items() for i, k in enumerate(LABELS)}
        sops = [f"{uid}.{i}" for i in range(n)]
        slices.append(pd.DataFrame({"study_uid": uid, "sop_uid": sops, "position_mm": 5.0 * np.arange(n)} | said))
        geometry = {"spacing_mm": 5.0, "min_spacing_mm": 5.0, "max_spacing_mm": 5.0, "zones": 1 + number % 3 // 2}
        geometry |= {"gaps": 0, "duplicates": int(number == 7), "tilt_deg": float(number % 4) - 1.5, "slices": n}
        studies.append(
            {"study_uid": uid, "patient": number % PATIENTS} | geometry | {k: v.max() for k, v in said.items()}
        )
        labels.append(pd.DataFrame(truth.astype(int), columns=list(LABELS)).assign(ID=sops))
    pd.concat(slices).to_csv(root / "slices.csv", index=False)
    pd.DataFrame(studies).to_csv(root / "studies.csv", index=False)
    pd.concat(labels).to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture
def no_charts(monkeypatch):
    """Draw no charts, which take longer than all the rest, where nobody looks at the page."""
    monkeypatch.setattr(evaluation_page, "chart", lambda title, _draw, **_: Markup("<p>{}</p>").format(title))


@pytest.fixture(scope="module")
def judged(given, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "out"
    return evaluate(given, given / "labels.csv", out, resamples=100)


def test_figures_of_every_predictor_and_level_are_there(judged):
    """Blend, both parts and both baselines, slices and studies; JSON on the disk is what was returned."""
    evaluation = json.loads((judged.out / "evaluation.json").read_text())
    assert evaluation == judged.evaluation
    assert evaluation["predictors"] == ["blend", "cnn", "rnn", "constant", "position"]
    for level in ("slices", "studies"):
        assert list(evaluation[level]) == sorted(evaluation["predictors"])
        assert set(evaluation["differences"][level]) == {f"{p} - cnn" for p in ("blend", "rnn", "constant", "position")}
    assert evaluation["bootstrap"] == {"clusters": "patients", "number": PATIENTS, "resamples": 100}


def test_a_figure_is_that_of_the_tables(judged, given):
    """The AUROC of one label by scikit-learn from the files themselves, slices and studies."""
    slices, labels = (pd.read_csv(given / f"{name}.csv") for name in ("slices", "labels"))
    both = slices.merge(labels, left_on="sop_uid", right_on="ID", suffixes=("", "_true"))
    expected = roc_auc_score(both["subdural_true"], both["cnn_subdural"])
    assert judged.evaluation["slices"]["cnn"]["labels"]["subdural"]["auroc"]["value"] == pytest.approx(
        expected, abs=1e-6
    )
    true = both.groupby("study_uid")["subdural_true"].max()
    said = pd.read_csv(given / "studies.csv").set_index("study_uid").loc[true.index, "cnn_subdural"]
    found = judged.evaluation["studies"]["cnn"]["labels"]["subdural"]["auroc"]["value"]
    assert found == pytest.approx(roc_auc_score(true, said), abs=1e-6)


def test_the_better_one_is_better_for_certain(judged):
    """The blend was drawn with half the noise: its loss is lower and its AUC higher in every resample."""
    difference = judged.evaluation["differences"]["slices"]["blend - cnn"]
    assert difference["weighted_log_loss"]["high"] < 0
    assert difference["labels"]["any"]["auroc"]["low"] > 0
    assert judged.evaluation["slices"]["constant"]["labels"]["any"]["auroc"]["value"] < 0.6


def test_the_flat_table_has_every_figure(judged):
    """figures.csv: a row a figure, the same numbers as the JSON, none missing and none twice."""
    table = pd.read_csv(judged.out / "figures.csv", keep_default_na=True)
    predictors, differences, figures = 5, 4, 6 * 11 + 1
    assert len(table) == 2 * (predictors + differences) * figures
    assert not table.duplicated(["level", "predictor", "label", "figure"]).any()
    row = table.query("level == 'slices' and predictor == 'blend' and label == 'any' and figure == 'brier'").iloc[0]
    assert row[["value", "low", "high"]].to_dict() == judged.evaluation["slices"]["blend"]["labels"]["any"]["brier"]


def test_subgroups_hold_every_study_once(judged):
    """By slices, spacing, step, tilt, gaps and repeated positions: the studies of each add up; an empty one says 0."""
    groups = judged.evaluation["subgroups"]
    assert set(groups) == {"slices", "spacing", "step", "gantry tilt", "gaps", "repeated positions"}
    for members in groups.values():
        assert sum(g["studies"] for g in members.values()) == STUDIES
    assert groups["gaps"]["some"] == {"studies": 0, "positive": 0}
    assert groups["repeated positions"]["some"]["studies"] == 1
    assert groups["repeated positions"]["some"]["auroc"] is None
    assert groups["step"]["one"]["auroc"]["value"] > 0.5


def test_reliability_is_of_the_first_predictor(judged):
    """Bins of the blend, each label, slices and studies; their rows add up."""
    for level, rows in (("slices", judged.evaluation["flow"]["slices_judged"]), ("studies", STUDIES)):
        for bins in judged.evaluation["reliability"][level].values():
            assert sum(b["rows"] for b in bins) == rows


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(judged, given, tmp_path, request):
    """Seeded resamples, sorted keys: byte for byte the same; another seed draws other intervals of the same values."""
    evaluate(given / "slices.csv", given / "labels.csv", tmp_path, resamples=100)
    for name in ("evaluation.json", "figures.csv", "evaluation.html"):
        assert (tmp_path / name).read_bytes() == (judged.out / name).read_bytes()
    request.getfixturevalue("no_charts")
    other = evaluate(given, given / "labels.csv", tmp_path, resamples=100, seed=1).evaluation
    one, two = (e["slices"]["blend"]["labels"]["any"]["auroc"] for e in (judged.evaluation, other))
    assert one["value"] == two["value"]
    assert one["low"] != two["low"]


@pytest.mark.usefixtures("no_charts")
def test_predictive_values_go_by_the_prevalence_named(judged, given, tmp_path):
    """--prevalence any=0.01: other predictive values of that label, the others and everything else as before."""
    other = evaluate(given, given / "labels.csv", tmp_path, resamples=100, prevalence={"any": 0.01}).evaluation
    before, after = (e["studies"]["position"]["labels"] for e in (judged.evaluation, other))
    changed = {k for k in before["any"] if before["any"][k] != after["any"][k]}
    assert changed
    assert changed <= {f"{kind}_at_95_{by}" for kind in ("ppv", "npv") for by in ("specificity", "sensitivity")}
    assert other["slices"] == judged.evaluation["slices"]
    assert {k: v for k, v in before.items() if k != "any"} == {k: v for k, v in after.items() if k != "any"}
    assert other["prevalence"]["studies"]["any"] == 0.01


@pytest.mark.parametrize("prevalence", [{"any": 0}, {"any": 1.0}, {"all": 0.1}, {"any": float("nan")}])
def test_prevalences_that_cannot_be_meant_are_refused(given, tmp_path, prevalence):
    """A share of 0 or 1, no number, or of no label."""
    with pytest.raises(UsageError, match="--prevalence"):
        evaluate(given, given / "labels.csv", tmp_path, prevalence=prevalence)


@pytest.mark.usefixtures("no_charts")
def test_what_explore_left_is_spared_but_figures_may_lie_beside_what_is_judged(given, tmp_path):
    """The figures.csv of explore would be lost, and so would ours to explore; of predict or watch nothing is."""
    (tmp_path / "exploration.json").write_text("{}")
    (tmp_path / "figures.csv").write_text("theirs")
    with pytest.raises(UsageError, match="holds results of explore"):
        evaluate(given, given / "labels.csv", tmp_path, resamples=20)
    assert (tmp_path / "figures.csv").read_text() == "theirs"
    both = shutil.copytree(given, tmp_path / "both")
    (both / "watch.jsonl").touch()
    assert evaluate(both, given / "labels.csv", both, resamples=20).evaluation["flow"]["studies_judged"] == STUDIES
    judged = tmp_path / "judged"
    evaluate(given, given / "labels.csv", judged, resamples=20)
    with pytest.raises(UsageError, match="holds results of evaluate"):
        explore(given / "labels.csv", judged)


@pytest.fixture
def bundle(tmp_path):
    """What writes a card as that of a bundle, changed as told; returns the bundle's folder."""

    def write(**changed):
        root = tmp_path / "bundle"
        root.mkdir(exist_ok=True)
        (root / "bundle.json").write_text(json.dumps(CARD | changed))
        return root

    return write


def training(**changed: object) -> dict[str, Any]:
    """What a card says of its training, but for this."""
    return CARD["training"] | changed


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
def test_a_bundle_tells_whether_it_learnt_from_these_labels(given, bundle, tmp_path):
    """By the SHA-256 of label file and card; its card becomes a page, and answers items of the checklist."""
    labels, out = given / "labels.csv", tmp_path / "out"
    root = bundle(training=training(labels_sha256=sha256_file(labels)))
    summary = evaluate(given, labels, out, resamples=20, bundle=root)
    assert summary.evaluation["bundle"] == {
        "card_sha256": sha256_file(root / "bundle.json"),
        "made_the_predictions": None,
        "trained_on_these_labels": True,
    }
    page = (out / "evaluation.html").read_text()
    assert "the figures are too good" in page
    assert "is not known to have made" in page
    assert sha256_file(root / "bundle.json") in page
    assert "10 of 44 items are answered" in page, "a model that may not have made the predictions is not described"
    assert sha256_file(labels) in (out / "card.html").read_text()
    made = tmp_path / "made"
    shutil.copytree(given, made)
    (made / "run.json").write_text(json.dumps({"card_sha256": sha256_file(root / "bundle.json")}))
    evaluate(made, labels, out, resamples=20, bundle=root)
    assert "23 of 44 items are answered" in (out / "evaluation.html").read_text()
    root = bundle(training=training(labels_sha256="another's"))
    summary = evaluate(given, labels, out, resamples=20, bundle=root)
    assert summary.evaluation["bundle"]["trained_on_these_labels"] is False
    assert "the figures are too good" not in (out / "evaluation.html").read_text()


@pytest.mark.usefixtures("no_charts")
def test_without_a_bundle_there_is_no_card(given, tmp_path):
    """Neither its page, though an older run left one, nor a link to it; its items of the checklist stay open."""
    (tmp_path / "card.html").write_text("of an older run")
    evaluate(given, given / "labels.csv", tmp_path, resamples=20)
    assert not (tmp_path / "card.html").exists()
    page = (tmp_path / "evaluation.html").read_text()
    assert "card.html" not in page
    assert "10 of 44 items are answered" in page


def test_what_is_no_bundle_is_refused_before_anything_is_written(given, bundle, tmp_path):
    """A card of another kind, one with a hole, a folder without one."""
    labels, out = given / "labels.csv", tmp_path / "out"
    for changed, words in (({"schema": "else"}, r"bundle\.json"), ({"training": {}}, "does not say all")):
        with pytest.raises(ArtefactError, match=words):
            evaluate(given, labels, out, bundle=bundle(**changed))
    with pytest.raises(UsageError, match="not a bundle"):
        evaluate(given, labels, out, bundle=given)
    assert not out.exists()


def test_a_card_that_makes_a_page_fills_the_checklist_too_or_is_refused(given, bundle, tmp_path):
    """A cell that is no text is an artefact's fault, and no traceback after minutes of resampling."""
    with pytest.raises(ArtefactError):
        evaluate(
            given,
            given / "labels.csv",
            tmp_path,
            resamples=20,
            bundle=bundle(rnn=CARD["rnn"] | {"config": {"cell": 3}}),
        )


def run(*arguments: object):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


@pytest.mark.usefixtures("no_charts")
def test_the_command_prints_figures_and_ends_with_0(given, tmp_path):
    """A table for people on stdout, or the whole JSON; stderr keeps quiet when told to."""
    given_and_out = ("--predictions", given, "--labels", given / "labels.csv", "--out", tmp_path / "o")
    result = run(*given_and_out, "--resamples", 100, "--quiet")
    assert result.exit_code == 0
    assert "40 of 40 studies judged" in result.stdout
    assert f"intervals over {PATIENTS} patients" in result.stdout
    assert result.stderr == ""
    result = run(*given_and_out, "--resamples", 100, "--quiet", "--json", "--prevalence", "any=0.2")
    assert json.loads(result.stdout)["prevalence"]["studies"]["any"] == 0.2


@pytest.mark.parametrize("share", ["any", "any=", "any=x", "=0.1"])
def test_the_command_refuses_shares_it_cannot_read(given, tmp_path, share):
    """Exit code 2 and the option's name."""
    result = run("--predictions", given, "--labels", given / "labels.csv", "--out", tmp_path, "--prevalence", share)
    assert result.exit_code == 2
    assert "--prevalence" in result.stderr


# The page


def rows_of(page: str) -> list[list[str]]:
    """The rows of all tables of a page, as texts of their cells."""
    found = []
    for row in re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)
        found.append([html.unescape(re.sub(r"<[^>]*>", "", cell)).replace("\xa0", " ") for cell in cells])
    return found


def facts_of(page: str) -> dict[str, str]:
    """What a page says by name."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page, flags=re.DOTALL)
    return {name: html.unescape(re.sub(r"<[^>]*>", "", text)) for name, text in found}


def estimate(figure: dict[str, float] | None, decimals: int = 3) -> str:
    """A figure and its interval as people read them."""
    if figure is None:
        return "–"  # noqa: RUF001
    value, low, high = (f"{round(figure[k], decimals) + 0.0:.{decimals}f}" for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


@pytest.mark.slow
def test_the_page_is_sound(judged, browser):
    """In a browser, wide and narrow, light and dark: nothing runs, nothing is fetched, nothing lacks a name."""
    browser.assert_sound(judged.out / "evaluation.html")


def test_the_page_has_the_figures_of_the_json(judged):
    """Every predictor's summary, every label's figures, every difference, with intervals, cell by cell."""
    page, e = (judged.out / "evaluation.html").read_text(), judged.evaluation
    rows = rows_of(page)
    shown = ("auroc", "average_precision", "brier", "log_loss")
    for level in ("slices", "studies"):
        for name in e["predictors"]:
            quality = e[level][name]
            expected = [quality["weighted_log_loss"], *(quality["labels"]["any"][figure] for figure in shown)]
            assert [name, *map(estimate, expected)] in rows
        for label in LABELS:
            figures = e[level]["blend"]["labels"][label]
            (row,) = [row for row in rows if row[0] == label and row[3:4] == [estimate(figures["auroc"])]]
            assert row[1:3] == [str(e["positive"][level][label]), f"{100 * e['prevalence'][level][label]:.1f} %"]
            assert sorted(row[3:]) == sorted(map(estimate, figures.values()))
        for name, quality in e["differences"][level].items():
            expected = [estimate(quality["labels"][label]["auroc"]) for label in reversed(LABELS)]
            assert [name, estimate(quality["weighted_log_loss"], 4), *expected] in rows
    for kind, groups in e["subgroups"].items():
        for group, figures in groups.items():
            (row,) = [row for row in rows if row[:2] == [kind, group]]
            assert row[2:5] == [str(figures["studies"]), str(figures["positive"]), estimate(figures.get("auroc"))]
    for name, values in e["data"].items():
        assert [name.replace("_", " "), *(f"{v:.2f}" for v in values.values())] in rows


def test_the_page_says_what_it_rests_on(judged, given):
    """The way of the cases in numbers, the hashes of both files, and how much was resampled."""
    page, e = (judged.out / "evaluation.html").read_text(), judged.evaluation
    facts = facts_of(page)
    for name, number in e["flow"].items():
        assert facts[name.replace("_", " ")] == f"{number:,}"
    assert facts["predictions"] == f"SHA-256 {sha256_file(given / 'slices.csv')}"
    assert facts["labels"] == f"SHA-256 {sha256_file(given / 'labels.csv')}"
    assert f"100 bootstrap\nsamples of {PATIENTS} patients" in page
    assert "files seen by predict" not in facts


def test_the_page_has_a_chart_of_everything(judged):
    """ROC of both levels, reliability of each label, and each failure along the head."""
    page, e = (judged.out / "evaluation.html").read_text(), judged.evaluation
    named = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert named[:2] == ["ROC curves, slices", "ROC curves, studies"]
    assert named[2:14] == [f"{label}, {level}" for level in ("slices", "studies") for label in LABELS]
    assert named[14:] == [f"{f['label']} along the head, {f['kind']}" for f in e["failures"]]
    assert "below mark slices that are positive" in page


@pytest.mark.usefixtures("no_charts")
def test_charts_are_drawn_of_the_figures(judged, monkeypatch):
    """The area under a drawn ROC curve is the AUROC; a reliability chart has each bin that says something."""
    drawn: dict[str, list[Any]] = {"lines": [], "whiskers": []}
    for name, calls in drawn.items():
        monkeypatch.setattr(evaluation_page, name, lambda given, calls=calls, **_: calls.append(given))
    e = judged.evaluation
    evaluation_page.evaluation_page(e, [], {}, [])
    for level, curves in zip(("slices", "studies"), drawn["lines"], strict=True):
        assert list(curves) == list(LABELS)
        for label, (across, up) in curves.items():
            expected = e[level]["blend"]["labels"][label]["auroc"]["value"]
            assert np.trapezoid(up[::-1], across[::-1]) == pytest.approx(expected, abs=2e-3)
    bins = [e["reliability"][level][label] for level in ("slices", "studies") for label in LABELS]
    assert drawn["whiskers"] == [[(b["mean"], b["observed"]) for b in of] for of in bins]


@pytest.mark.usefixtures("no_charts")
def test_what_became_of_the_files_is_on_the_page(given, tmp_path):
    """As run.json of predict counts them, reasons and all."""
    for name in ("slices.csv", "studies.csv", "labels.csv"):
        shutil.copy(given / name, tmp_path)
    counts = {"files": 1234, "used": 1200, "excluded": 30, "rejected": 4, "reasons": {"localizer": 30, "decode": 4}}
    (tmp_path / "run.json").write_text(json.dumps({"counts": counts}))
    evaluation = evaluate(tmp_path, tmp_path / "labels.csv", tmp_path / "out", resamples=20).evaluation
    assert evaluation["files"] == counts | {"lost_frames": 0}
    assert (
        facts_of((tmp_path / "out" / "evaluation.html").read_text())["files seen by predict"]
        == "1,234: 1,200 used, 30 excluded, 4 rejected (localizer 30, decode 4)"
    )


@pytest.mark.parametrize(
    "record",
    [
        "no JSON",
        "[]",
        '{"counts": 3}',
        '{"counts": {"files": 3}}',
    ],
)
@pytest.mark.usefixtures("no_charts")
def test_a_record_of_predict_that_is_none_is_refused(given, tmp_path, record):
    """A run.json that was touched: predict again, and no traceback."""
    for name in ("slices.csv", "studies.csv", "labels.csv"):
        shutil.copy(given / name, tmp_path)
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(ArtefactError, match="predict again"):
        evaluate(tmp_path, tmp_path / "labels.csv", tmp_path / "out", resamples=20)


# Failures


def test_failures_are_the_studies_furthest_on_the_wrong_side(judged, given):
    """From the tables themselves, label by label, by a plain loop over all pairs of studies."""
    said = pd.read_csv(given / "studies.csv").set_index("study_uid")
    both = pd.read_csv(given / "slices.csv").merge(
        pd.read_csv(given / "labels.csv"), left_on="sop_uid", right_on="ID", suffixes=("", "_true")
    )
    true = both.groupby("study_uid", sort=False)[[f"{label}_true" for label in LABELS]].max()
    expected = []
    for label in LABELS:
        p, y = said[label].to_dict(), true[f"{label}_true"].to_dict()
        missed = {a for a in p for b in p if y[a] > y[b] and p[a] <= p[b]}
        alarms = {a for a in p for b in p if y[a] < y[b] and p[a] >= p[b]}
        expected += [(label, MISSED, a) for a in sorted(missed, key=p.get)[:3]]
        expected += [(label, FALSE_ALARM, a) for a in sorted(alarms, key=p.get, reverse=True)[:3]]
    failures = judged.evaluation["failures"]
    assert [(f["label"], f["kind"], f["study_uid"]) for f in failures] == expected
    assert {kind for _, kind, _ in expected} == {MISSED, FALSE_ALARM}
    by_sop = both.set_index("sop_uid")
    page = html.unescape((judged.out / "evaluation.html").read_text())
    for f in failures:
        assert f["probability"] == pytest.approx(said.loc[f["study_uid"], f["label"]], abs=1e-6)
        row = by_sop.loc[f["sop_uid"]]
        assert row["study_uid"] == f["study_uid"]
        if f["kind"] == MISSED:
            assert row[f"{f['label']}_true"] == 1
        else:
            assert row[f["label"]] == by_sop.loc[by_sop["study_uid"] == f["study_uid"], f["label"]].max()
        assert f"{f['kind']}, probability {f['probability']:.3f}; study {f['study_uid']}, slice {f['sop_uid']}" in page


# Labels of studies


def reads_of(said: pd.DataFrame, path):
    """Write CQ500's reads.csv of these patients but two, and of two nobody predicted; return the truth by patient.

    It follows what was said of each subtype, but for one study, and one of three readers is always wrong.
    """
    true = pd.DataFrame({label: (said[label] > said[label].median()).astype(int) for label in LABELS[:-1]})
    for k, label in enumerate(true.columns):
        true.loc[said[label].nlargest(len(said) // 2 - 1 - k // 2).index[-1], label] = 0
    true["any"] = true.max(axis=1)
    true = pd.concat([true.iloc[2:], true.iloc[:2].rename(lambda name: f"{name}00")])
    wrong = np.random.default_rng(5).integers(1, 4, true.shape)
    reads = pd.DataFrame({"name": true.index, "Category": "B1"})
    for reader in (1, 2, 3):
        for k, read in enumerate(("EDH", "IPH", "IVH", "SAH", "SDH", "ICH")):
            reads[f"R{reader}:{read}"] = np.abs(true.iloc[:, k].to_numpy() - (wrong[:, k] == reader))
        reads[f"R{reader}:Fracture"] = 0
    reads.to_csv(path, index=False)
    return true


@pytest.fixture(scope="module")
def read_by_three(given, tmp_path_factory):
    """Predictions with Patient IDs beside CQ500's reads: the run, the truth by patient, and what was said."""
    root = tmp_path_factory.mktemp("cq500")
    shutil.copy(given / "slices.csv", root)
    said = pd.read_csv(given / "studies.csv")
    said["patient_id"] = "CQ500-CT-" + said["study_uid"].str.removeprefix("1.2.")
    said["patient"] = np.arange(len(said))
    said.to_csv(root / "studies.csv", index=False)
    said = said.set_index("patient_id")
    true = reads_of(said, root / "reads.csv")
    return evaluate(root, root / "reads.csv", root / "out", resamples=50), true, said


@pytest.mark.slow
def test_reads_of_cq500_judge_studies_alone(read_by_three):
    """By Patient ID and the majority: figures are scikit-learn's, and of slices there is nothing."""
    summary, true, said = read_by_three
    e = summary.evaluation
    assert e["levels"] == ["studies"]
    assert "slices" not in e
    assert all(list(e[name]) == ["studies"] for name in ("differences", "reliability", "roc", "positive", "prevalence"))
    assert e["flow"] == {
        "studies_labelled": STUDIES,
        "studies_labelled_not_predicted": 2,
        "studies_predicted": STUDIES,
        "studies_of_shared_patient_ids": 0,
        "studies_left_out": 2,
        "studies_judged": STUDIES - 2,
    }
    assert e["predictors"] == ["blend", "cnn", "rnn", "constant"]
    known = [name for name in said.index if name in true.index]
    assert len({tuple(true.loc[known, label]) for label in LABELS}) == len(LABELS)
    for prefix, name in (("", "blend"), ("cnn_", "cnn")):
        for label in LABELS:
            y, p = true.loc[known, label], said.loc[known, prefix + label]
            figures = e["studies"][name]["labels"][label]
            assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(y, p), abs=1e-6)
            assert figures["brier"]["value"] == pytest.approx(brier_score_loss(y, p), abs=1e-6)
    assert set(pd.read_csv(summary.out / "figures.csv")["level"]) == {"studies"}
    assert json.loads((summary.out / "evaluation.json").read_text()) == e


def test_the_page_of_studies_alone_says_nothing_of_slices(read_by_three, browser):
    """It says what was judged, shows the failures without marks of slices, and is sound on a phone."""
    summary, _, _ = read_by_three
    page = (summary.out / "evaluation.html").read_text()
    assert "<caption>Studies" in page
    assert "<caption>Slices" not in page
    assert "below mark slices that are positive" not in page
    assert facts_of(page)["studies judged"] == str(STUDIES - 2)
    assert [estimate(summary.evaluation["studies"]["blend"]["weighted_log_loss"])] in [
        row[1:2] for row in rows_of(page) if row[0] == "blend"
    ]
    assert len(re.findall('aria-label="[^"]* along the head', page)) == len(summary.evaluation["failures"]) > 0
    assert browser.look(summary.out / "evaluation.html", width=browser.PHONE).faults == {}


@pytest.mark.usefixtures("no_charts")
def test_the_command_takes_labels_of_studies(given, tmp_path):
    """A row a study, by UID: the table for people has studies only."""
    slices = pd.read_csv(given / "slices.csv").merge(
        pd.read_csv(given / "labels.csv"), left_on="sop_uid", right_on="ID", suffixes=("_said", "")
    )
    slices.groupby("study_uid")[list(LABELS)].max().to_csv(tmp_path / "studies_true.csv")
    options = ("--resamples", 100, "--quiet")
    result = run("--predictions", given, "--labels", tmp_path / "studies_true.csv", "--out", tmp_path / "o", *options)
    assert result.exit_code == 0, result.output
    assert f"{STUDIES} of {STUDIES} studies judged; intervals over {PATIENTS} patients" in result.stdout
    assert "study AUC" in result.stdout
    assert "slice" not in result.stdout.replace("slices.csv", "")


# Machines


def with_machines(given, root, change=lambda studies: studies):
    """The predictions with what studies.csv says of matrix and scanner, and changed."""
    for name in ("slices.csv", "labels.csv"):
        shutil.copy(given / name, root)
    studies = pd.read_csv(given / "studies.csv")
    studies["rows"] = np.where(np.arange(len(studies)) % 5, 512, 256)
    studies["columns"] = 512
    studies["scanner"] = [["Maker One", "Maker Two", ""][i % 3] for i in range(len(studies))]
    change(studies).to_csv(root / "studies.csv", index=False)
    return root


@pytest.mark.usefixtures("no_charts")
def test_matrix_and_scanner_are_subgroups_where_they_are_known(given, judged, tmp_path):
    """Their studies add up and stand on the page; figures that they have no part in are as before."""
    root = with_machines(given, tmp_path)
    evaluation = evaluate(root, root / "labels.csv", root / "out", resamples=100).evaluation
    groups = evaluation["subgroups"]
    assert {name: g["studies"] for name, g in groups["matrix"].items()} == {"512 x 512": 32, "256 x 512": 8}
    assert {name: g["studies"] for name, g in groups["scanner"].items()} == {
        "Maker One": 14,
        "Maker Two": 13,
        "(not named)": 13,
    }
    rows = rows_of((root / "out" / "evaluation.html").read_text())
    for kind in ("matrix", "scanner"):
        for name, figures in groups[kind].items():
            (row,) = [row for row in rows if row[:2] == [kind, name]]
            assert row[2:5] == [str(figures["studies"]), str(figures["positive"]), estimate(figures["auroc"])]
    assert evaluation["studies"] == judged.evaluation["studies"]
    assert {k: v for k, v in groups.items() if k not in ("matrix", "scanner")} == judged.evaluation["subgroups"]


# Text of others


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
def test_hostile_text_in_the_tables_is_text(given, browser, tmp_path):
    """A script as study, slice, scanner, patient, predictor and reason is read on the page and runs nowhere."""

    def plant(table, *columns):
        return table.assign(**{c: PLANTED + table[c].astype(str) for c in columns})

    root = with_machines(given, tmp_path, lambda studies: plant(studies, "study_uid", "patient", "scanner"))
    for name, columns in (("slices.csv", ("study_uid", "sop_uid")), ("labels.csv", ("ID",))):
        plant(pd.read_csv(root / name), *columns).to_csv(root / name, index=False)
    for name in ("slices.csv", "studies.csv"):
        table = pd.read_csv(root / name)
        renamed = {f"rnn_{label}": f"{PLANTED}_{label}" for label in LABELS}
        table.rename(columns=renamed).to_csv(root / name, index=False)
    counts = {"files": 1, "used": 1, "excluded": 0, "rejected": 0, "reasons": {PLANTED: 1}}
    (root / "run.json").write_text(json.dumps({"counts": counts}))
    evaluation = evaluate(root, root / "labels.csv", root / "out", resamples=20).evaluation
    assert all(f["study_uid"].startswith(PLANTED) and f["sop_uid"].startswith(PLANTED) for f in evaluation["failures"])
    assert len(evaluation["failures"]) > 0
    assert PLANTED in evaluation["predictors"]
    page = (root / "out" / "evaluation.html").read_text()
    assert "<script" not in page
    assert page.count(html.escape(PLANTED)) > 2 * len(evaluation["failures"]) + 3
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    (root / "out" / "bare.html").write_text(bare)
    for name in ("evaluation.html", "bare.html"):  # the policy would stop a script that the page let in
        seen = browser.look(root / "out" / name)
        assert (seen.dialogs, seen.scripts, seen.requests, seen.console) == ((), 0, (), ())


# Pictures


@pytest.fixture(scope="module")
def imaged(tmp_path_factory):
    """Two phantoms as DICOM, tables that judge both wrongly, and a third study that has no images."""
    root = tmp_path_factory.mktemp("imaged")
    phantoms = [draw_study(index, seed=4, matrix=64) for index in (0, 1)]
    (root / "dicom").mkdir()
    for study in phantoms:
        write_study(study, root / "dicom")
    names = [(study.study_uid, list(study.sop_uids)) for study in phantoms] + [("9.9", ["9.9.0", "9.9.1"])]
    slices, labels = [], []
    for number, (uid, sops) in enumerate(names):
        true = np.zeros((len(sops), 6), int)
        if number != 1:
            true[len(sops) // 2 - 1 : len(sops) // 2 + 2, 4:] = 1
        said = np.where(number != 1, 0.1, 0.8) + 0.1 * (np.arange(len(sops)) == 3)[:, None] * np.ones((1, 6))
        table = pd.DataFrame(said, columns=list(LABELS)).assign(study_uid=uid, sop_uid=sops)
        slices.append(table.assign(position_mm=5.0 * np.arange(len(sops))))
        labels.append(pd.DataFrame(true, columns=list(LABELS)).assign(sop_uid=sops))
    pd.concat(slices).to_csv(root / "slices.csv", index=False)
    pd.concat(labels).to_csv(root / "labels.csv", index=False)
    return root, phantoms


def images_of(page: str) -> list[tuple[str, np.ndarray]]:
    """The pictures of a page with what they are called."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" [^>]*alt="([^"]*)"', page)
    return [(alt, cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), -1)) for data, alt in found]


def grey(hu: np.ndarray, pixel_mm: float, level: float, width: float) -> np.ndarray:
    """A slice through a window, its middle 250 mm on 288 pixels, by OpenCV alone."""
    to_image = np.array([[250 / 288 / pixel_mm, 0, 0], [0, 250 / 288 / pixel_mm, 0]])
    to_image[:, 2] = (np.array(hu.shape[::-1]) - 1) / 2 - to_image[[0, 1], [0, 1]] * (288 - 1) / 2
    shown = cv2.warpAffine(
        hu.astype(np.float32), to_image, (288, 288), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=-1000
    )
    return np.clip((shown - level) / width + 0.5, 0, 1) * 255


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
def test_dicom_gives_pictures_of_the_very_slices(imaged, browser, tmp_path):
    """Two windows of each failure's slice, told from all its neighbours; a study without images has none."""
    root, phantoms = imaged
    failures = evaluate(root, root / "labels.csv", tmp_path, resamples=20, dicom=root / "dicom").evaluation["failures"]
    assert Counter((f["label"], f["kind"]) for f in failures) == {
        (label, kind): number for label in ("subdural", "any") for kind, number in ((MISSED, 2), (FALSE_ALARM, 1))
    }
    page = (tmp_path / "evaluation.html").read_text()
    pictures = images_of(page)
    seen = [f for f in failures if f["study_uid"] != "9.9"]
    assert [alt for alt, _ in pictures] == [
        f"{f['kind']}, {f['label']}, {window} window" for f in seen for window in ("brain", "subdural")
    ]
    assert len(pictures) == 8
    for i, f in enumerate(seen):
        (study,) = [study for study in phantoms if study.study_uid == f["study_uid"]]
        for (_, picture), window in zip(pictures[2 * i : 2 * i + 2], ((40, 80), (80, 200)), strict=True):
            assert picture.shape == (288, 288)
            off = [np.abs(grey(hu, study.pixel_spacing_mm, *window) - picture).mean() for hu in study.hounsfield]
            assert study.sop_uids[int(np.argmin(off))] == f["sop_uid"]
            assert min(off) < 12
    assert browser.look(tmp_path / "evaluation.html", width=browser.PHONE).faults == {}


@pytest.mark.usefixtures("no_charts")
def test_without_dicom_there_are_no_pictures(imaged, tmp_path):
    """The failures are named all the same."""
    root, _ = imaged
    result = run(
        "--predictions", root, "--labels", root / "labels.csv", "--out", tmp_path, "--resamples", 100, "--quiet"
    )
    assert result.exit_code == 0, result.output
    page = (tmp_path / "evaluation.html").read_text()
    assert "<img" not in page
    assert page.count(f"<figcaption>{MISSED}") == 4


@pytest.mark.usefixtures("no_charts")
def test_a_folder_of_images_that_is_not_there_is_refused(imaged, tmp_path):
    """Nothing is written then."""
    root, _ = imaged
    with pytest.raises(UsageError, match="absent"):
        evaluate(root, root / "labels.csv", tmp_path, resamples=20, dicom=root / "absent")
    assert not list(tmp_path.iterdir())
