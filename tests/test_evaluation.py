"""evaluate: predictions and labels into figures that add up, repeat to the byte and say what they rest on."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from ich_seq import ArtefactError, UsageError, evaluate
from ich_seq.bundle import SCHEMA
from ich_seq.cli import cli
from ich_seq.files import sha256_file
from ich_seq.labels import LABELS

PARTS = ("", "cnn_", "rnn_")
STUDIES, PATIENTS = 40, 25


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


def test_two_runs_give_the_same_bytes(judged, given, tmp_path):
    """Seeded resamples, sorted keys: byte for byte the same; another seed draws other intervals of the same values."""
    evaluate(given / "slices.csv", given / "labels.csv", tmp_path, resamples=100)
    for name in ("evaluation.json", "figures.csv"):
        assert (tmp_path / name).read_bytes() == (judged.out / name).read_bytes()
    other = evaluate(given, given / "labels.csv", tmp_path, resamples=100, seed=1).evaluation
    one, two = (e["slices"]["blend"]["labels"]["any"]["auroc"] for e in (judged.evaluation, other))
    assert one["value"] == two["value"]
    assert one["low"] != two["low"]


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


def test_a_bundle_tells_whether_it_learnt_from_these_labels(given, tmp_path):
    """By the SHA-256 of label file and card; what is no bundle is refused."""
    card = {"schema": SCHEMA, "training": {"labels_sha256": sha256_file(given / "labels.csv")}}
    (tmp_path / "bundle.json").write_text(json.dumps(card))
    summary = evaluate(given, given / "labels.csv", tmp_path / "out", resamples=100, bundle=tmp_path)
    assert summary.evaluation["bundle"]["trained_on_these_labels"] is True
    assert summary.evaluation["bundle"]["made_the_predictions"] is None
    (tmp_path / "bundle.json").write_text(json.dumps(card | {"training": {}}))
    summary = evaluate(given, given / "labels.csv", tmp_path / "out", resamples=100, bundle=tmp_path)
    assert summary.evaluation["bundle"]["trained_on_these_labels"] is False
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"bundle\.json"):
        evaluate(given, given / "labels.csv", tmp_path / "out", bundle=tmp_path)
    with pytest.raises(UsageError, match="not a bundle"):
        evaluate(given, given / "labels.csv", tmp_path / "out", bundle=given)


def run(*arguments: object):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


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
