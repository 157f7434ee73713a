"""The reporting checklist of a study of diagnostic accuracy, filled in as far as the figures and the card tell.

CLAIM, the 2024 update (Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300), whose items are named in
our own words; beside them the items of STARD 2015 (Bossuyt et al., BMJ 2015;351:h5527) that ask the same. STARD-AI
(Sounderajah et al., Nature Medicine 2025) extends the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ich_seq import ArtefactError


@dataclass(frozen=True, slots=True)
class Item:
    """An item of CLAIM 2024, the like of STARD 2015 (empty: none), and what fills it (None: only people can)."""

    claim: int
    stard: str
    asks: str
    answer: str | None


def fill_checklist(evaluation: Mapping[str, Any], card: Mapping[str, Any] | None) -> list[Item]:
    """Return all 44 items, with answers from an evaluation and, if it is known, the card of what was judged.

    Raises ArtefactError for a card that does not say what cards say.
    """
    answers = _of_evaluation(evaluation) | (answers_of_card(card) if card is not None else {})
    return [Item(number, stard, asks, answers.get(number)) for number, stard, asks in ITEMS]


def _of_evaluation(evaluation: Mapping[str, Any]) -> dict[int, str]:
    """Return what the evaluation itself answers, by number of the item."""
    flow, basis = evaluation["flow"], evaluation["bootstrap"]
    counted = "; ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in flow.items())
    units = " and ".join(evaluation["levels"])
    return {
        6: "Evaluation of a trained model against a reference standard.",
        12: "Studies without a complete label are left out and counted; see the flow of cases.",
        20: f"The {basis['clusters']} of the test set are what is resampled; training patients are not known here.",
        28: "Weighted log loss of the RSNA 2019 challenge, AUROC, average precision, Brier score, calibration error, "
        f"operating points at 95 % of sensitivity and of specificity; for {units}.",
        29: f"95 % percentile intervals over {basis['resamples']:,} bootstrap samples of {basis['number']:,} "
        f"{basis['clusters']}; differences are paired.",
        **({30: f"Subgroups of studies by {', '.join(groups)}."} if (groups := evaluation["subgroups"]) else {}),
        35: counted,
        37: "See the figures; all of them in figures.csv and evaluation.json.",
        38: "See the figures of each label.",
        39: "See the failures.",
    }


def answers_of_card(card: Mapping[str, Any]) -> dict[int, str]:
    """Return what a bundle's card answers. Raises ArtefactError for one that does not say what cards say."""
    try:
        return _of_card(card)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"The bundle's card does not say all that a card says ({error}); train again.") from error


def _of_card(card: Mapping[str, Any]) -> dict[int, str]:
    return _of_networks(card) | (_of_published(card) if "published" in card else _of_training(card))


def _of_networks(card: Mapping[str, Any]) -> dict[int, str]:
    encoders, rnn = card["encoders"], card["rnn"]
    first, networks = encoders[0], sum(1 + encoder["arch"].count("+") for encoder in encoders)
    windows = ", ".join(f"{level:g}/{width:g}" for level, width in first["windows_hu"])
    return {
        1: f"A network of slices ({first['arch']}), then one of the sequence of slices, read in both directions "
        f"({rnn['config']['cell'].upper()}): deep learning.",
        3: card["intended_use"],
        9: f"Hounsfield units, {first['field_mm']:g} mm over {first['size']} pixels, windows (level/width) {windows}, "
        f"slices {', '.join(map(str, first['neighbours']))} beside one another.",
        22: f"{first['arch']} ({networks} network(s), embeddings of {first['dim']}), then {len(rnn['files'])} "
        f"{rnn['config']['cell'].upper()} network(s): embeddings and slice logits in, slice and study logits out.",
        24: f"Encoder: {first['weights']}.",
        27: "The mean of the logits of all networks.",
        31: "Class activation maps of key slices (predict's report).",
    }


def _of_published(card: Mapping[str, Any]) -> dict[int, str]:
    published = card["published"]
    return {
        23: f"ich-seq {card['version']} with weights that others trained.",
        25: f"By its authors: {published['training_data']}.",
        43: f"The weights are {published['source']}, under {published['licence']}.",
    }


def _of_training(card: Mapping[str, Any]) -> dict[int, str]:
    training = card["training"]
    versions = ", ".join(f"{name} {version}" for name, version in training["versions"].items())
    return {
        16: f"Labels of the training set: a file of SHA-256 {training['labels_sha256']}.",
        19: "Folds by patient, strata by the rarest label of a patient.",
        23: f"ich-seq {card['version']}, {versions}.",
        25: f"{training['studies']:,} studies, {training['slices']:,} slices of {training['patients']:,} patients; all "
        "settings are on the card.",
        26: "Each sequence model stops on a fold that it did not learn from; the blend is chosen on the same folds, "
        "and so are the kernel and the calibration.",
        32: "Out of fold by patient; the figures are on the card.",
    }


ITEMS = (
    (1, "1", "Identified as a study of AI, with the kind of technology"),
    (2, "2", "Structured summary"),
    (3, "3", "Background, intended use and clinical role"),
    (4, "4", "Aims and hypotheses"),
    (5, "5", "Prospective or retrospective"),
    (6, "", "Goal of the study"),
    (7, "8", "Sources of the data"),
    (8, "6", "Who was included and excluded"),
    (9, "", "Preprocessing"),
    (10, "", "How subsets of the data were selected"),
    (11, "", "De-identification"),
    (12, "16", "How missing data were handled"),
    (13, "10a", "Acquisition protocol of the images"),
    (14, "10b", "Method of the reference standard"),
    (15, "11", "Why this reference standard"),
    (16, "13b", "Who annotated the reference standard"),
    (17, "13b", "Annotation of the test set"),
    (18, "17", "Variability between and within raters"),
    (19, "", "How data were assigned to partitions"),
    (20, "", "On which level partitions are disjoint"),
    (21, "18", "Size of the test set, and why"),
    (22, "10a", "The model"),
    (23, "", "Software"),
    (24, "", "Initial weights"),
    (25, "", "Training"),
    (26, "", "How the final model was selected"),
    (27, "", "Ensembles"),
    (28, "14", "Metrics of performance"),
    (29, "14", "Significance and uncertainty"),
    (30, "17", "Robustness and sensitivity analysis"),
    (31, "", "Explanations"),
    (32, "", "Evaluation on internal data"),
    (33, "", "Test on external data"),
    (34, "28", "Registration of a trial"),
    (35, "19", "Flow of cases"),
    (36, "20", "Demography and clinical characteristics of each partition"),
    (37, "24", "Performance with its uncertainty"),
    (38, "23, 24", "Diagnostic performance and its precision"),
    (39, "", "Analysis of failures"),
    (40, "26", "Limitations"),
    (41, "27", "What it means for practice"),
    (42, "29", "Where the protocol can be had"),
    (43, "", "Availability of software, model and data"),
    (44, "30", "Funding"),
)
