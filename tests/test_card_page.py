"""card_page: what a real bundle's card says stands on its page, as text, and a card with a hole makes none."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_seq import ArtefactError, figures, operating_points
from ich_seq.bundle import read_card
from ich_seq.card_page import card_page
from ich_seq.config import Config
from ich_seq.labels import LABELS
from ich_seq.rnn_training import train_rnn

pytest_plugins = ["browser"]

LENGTHS = [3, 4, 5, 2, 6, 3, 4, 1, 3, 4, 2, 5]
SETTINGS = {"rnn": {"projection": 8, "hidden": 8, "layers": 1}, "train": {"folds": 3, "epochs": 1}}
PLANTED = "<script>alert(1)</script>"
SHOWN = (
    "version",
    "intended_use",
    "encoders",
    "execution",
    "rnn",
    "calibration",
    "operating_points",
    "training",
    "figures",
)
"""Entries of a card that the page tells of."""


@pytest.fixture(scope="module")
def card(make_study, write_store, write_labels, headed_encoders, tmp_path_factory) -> dict[str, Any]:
    """The card of a bundle that train-rnn made: two encoders, three folds, twelve studies of seven patients."""
    root, rng, rows = tmp_path_factory.mktemp("card"), np.random.default_rng(0), {}
    studies = [
        make_study(f"1.2.{i}", n, patient=f"patient {i % 7}", network=i % 2, logits=True) for i, n in enumerate(LENGTHS)
    ]
    for study in studies:
        targets = (rng.random((len(study.sop_uids), len(LABELS))) < 0.2).astype(int)
        targets[:, -1] = targets[:, :-1].max(axis=1)
        rows |= dict(zip(study.sop_uids, targets.tolist(), strict=True))
    store = write_store(root / "store", studies, encoders=dict(enumerate(headed_encoders)))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RESAMPLES", 50)
        patch.setattr(operating_points, "LEAST_STUDIES", 2)
        torch.set_num_threads(1)  # so little is slower with more
        try:
            labels = write_labels(root / "labels.csv", rows)
            train_rnn(store, labels, root / "bundle", Config.model_validate(SETTINGS), device="cpu")
        finally:
            torch.set_num_threads(threads)
    return read_card(root / "bundle")


class Page(HTMLParser):
    """The text of a page, its tables as rows of cells, its facts by name, and the elements it has."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text, self.tables, self.facts, self.tags, self.pre = "", [], {}, [], ""
        self._cell: list[str] | None = None
        self._in: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        """Open a table, a row, a cell, or a fact."""
        self.tags.append(tag)
        self._in.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "dt":
            self._name = ""
        elif tag == "dd":
            self.facts[self._name] = ""

    def handle_endtag(self, tag):
        """Close it, with what stands open within."""
        while tag in self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data):
        """Put text where it stands."""
        inner = self._in[-1] if self._in else ""
        self.text += "" if inner == "style" else data
        if inner in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif inner == "dt":
            self._name += data
        elif inner == "dd":
            self.facts[self._name] += data
        elif inner == "pre":
            self.pre += data


@pytest.fixture(scope="module")
def page(card) -> Page:
    return Page(card_page(card))


def estimate(figure: dict[str, float] | None) -> str:
    """A figure and its interval as people read them."""
    if figure is None:
        return "–"  # noqa: RUF001
    return "{} [{},\xa0{}]".format(*(f"{round(figure[k], 3) + 0.0:.3f}" for k in ("value", "low", "high")))


@pytest.mark.parametrize(("number", "level"), [(0, "slice"), (1, "study")])
def test_every_figure_stands_in_its_cell(card, page, number, level):
    """Each predictor's loss and AUC of each label, with intervals, any haemorrhage first; a dash for none."""
    head, *rows = page.tables[number]
    assert head == ["predictor", "weighted log loss", *(f"AUC, {label}" for label in reversed(LABELS))]
    assert [row[0] for row in rows] == list(card["figures"])
    assert {"rnn", "blend", "cnn", "constant", "position"} <= set(card["figures"])
    for row, of in zip(rows, card["figures"].values(), strict=True):
        expected = [of[f"{level}_loss"], *(of[f"{level}_auc"][label] for label in reversed(LABELS))]
        assert row[1:] == [estimate(figure) for figure in expected]


def test_the_data_stand_in_numbers(card, page):
    """Studies, patients, slices from shortest to longest, positives of each label, the hash of the label file."""
    training = card["training"]
    assert page.facts["studies"] == f"{len(LENGTHS)} of 7 patients"
    assert page.facts["left out"] == "0 studies without complete labels"
    assert page.facts["slices"] == f"{sum(LENGTHS)}; 1 to 6 a study, {sorted(LENGTHS)[6]} in the middle"
    assert page.facts["labels"] == f"SHA-256 {training['labels_sha256']}"
    _, *rows = page.tables[2]
    for label, row in zip(LABELS, rows, strict=True):
        studies, slices = training["positive_studies"][label], training["positive_slices"][label]
        shares = [f"{100 * studies / len(LENGTHS):.1f} %", f"{100 * slices / sum(LENGTHS):.1f} %"]
        assert row == [label, str(studies), shares[0], str(slices), shares[1]]


def test_the_networks_stand_with_their_hashes(card, page):
    """A row an encoder; what they see, what computed them, and how many sequence models follow."""
    _, *rows = page.tables[3]
    assert rows == [
        [str(e[name]) for name in ("file", "arch", "dim", "size", "weights", "sha256")] for e in card["encoders"]
    ]
    assert len(rows) == 2
    assert page.facts["seen"].split("; ")[0] == "250 mm of Hounsfield units"
    assert "40/80 80/200 600/2800" in page.facts["seen"]
    assert page.facts["computed with"] == "torch, fp32, 1 view(s) a slice"
    unchanged = card["training"]["networks_unchanged"]
    assert page.facts["sequence models"].startswith("3 x gru")
    assert (f"{unchanged} of them learnt nothing" in page.facts["sequence models"]) == bool(unchanged)


@pytest.mark.parametrize(("number", "level"), [(5, "slices"), (6, "studies")])
def test_the_calibration_stands_label_by_label(card, page, number, level):
    """Share, slope and intercept, in the labels' order."""
    _, *rows = page.tables[number]
    numbers = card["calibration"][level]
    for k, (label, row) in enumerate(zip(LABELS, rows, strict=True)):
        assert row == [label, *(f"{round(numbers[n][k], 3) + 0.0:.3f}" for n in ("share", "slope", "intercept"))]


def test_the_kernel_stands_label_by_label(card):
    """Where there is one; a card that smooths nothing, or is of an older version, has no such table."""
    weights = np.outer(np.linspace(0, 1, len(LABELS)), [0.2, 0.1, 0.05]).tolist()
    head = ["label", "1 away", "2 away", "3 away"]
    shown = Page(card_page(card | {"calibration": card["calibration"] | {"kernel": weights}}))
    (table,) = (table for table in shown.tables if table[0] == head)
    assert table[1:] == [
        [label, *(f"{w:.3f}" for w in of_label)] for label, of_label in zip(LABELS, weights, strict=True)
    ]
    levels = {level: card["calibration"][level] for level in ("slices", "studies")}
    for none in ({"kernel": [[0.0] * 3] * len(LABELS)}, {"kernel": [[]] * len(LABELS)}, {}):
        assert head not in [table[0] for table in Page(card_page(card | {"calibration": levels | none})).tables]


def test_the_operating_points_stand_label_by_label(card, page):
    """With a dash where there is none, and with what they are not; a card of older versions has no such table."""
    (table,) = [t for t in page.tables if t[0] == ["label", "95.0 % sensitivity", "95.0 % specificity"]]
    points = card["operating_points"]
    assert any(point is not None for point in points["present_from"])
    for k, label in enumerate(LABELS):
        expected = [
            "\u2013" if p is None else f"{p:.3f}" for p in (points["absent_below"][k], points["present_from"][k])
        ]
        assert table[1 + k] == [label, *expected]
    assert points["basis"] in page.text
    older = Page(card_page({name: value for name, value in card.items() if name != "operating_points"}))
    assert len(older.tables) == len(page.tables) - 1


def test_an_older_card_tells_of_neither_a_final_encoder_nor_studies_in_sample(card):
    """What it does not say it does not warn of; the page is there."""
    news = ("final_encoder", "studies_in_sample")
    older = {name: value for name, value in card["training"].items() if name not in news}
    plain = card_page(card | {"training": older}).decode()
    assert card_page(card | {"training": older | {"final_encoder": False, "studies_in_sample": 0}}).decode() == plain
    warned = card_page(card | {"training": older | {"final_encoder": True, "studies_in_sample": 3}}).decode()
    for warning in ("learnt from every patient", "All figures are too good"):
        assert warning not in plain
        assert warning in warned


def test_settings_and_versions_stand_as_they_are(card, page):
    """The settings are JSON that can be read back; whose versions, use and features are named."""
    assert json.loads(page.pre) == card["training"]["settings"]
    assert card["intended_use"] in page.text
    versions = [f"{name} {version}" for name, version in card["training"]["versions"].items()]
    assert page.facts["made by"] == ", ".join([f"ich-seq {card['version']}", *versions])
    assert page.facts["features"] == card["training"]["features_fingerprint"]


def hashes(value: Any) -> set[str]:
    """All SHA-256 of a card, wherever they stand."""
    if isinstance(value, dict):
        return {v for k, v in value.items() if "sha256" in k}.union(*map(hashes, value.values()))
    return set().union(*map(hashes, value)) if isinstance(value, list) else set()


def test_every_hash_is_on_the_page(card, page):
    """Of encoders, sequence models, what is familiar, and labels."""
    assert len(hashes(card)) == 2 + 3 + 1 + 1
    assert {sha256 for sha256 in hashes(card) if sha256 not in page.text} == set()


@pytest.mark.slow
def test_the_page_is_sound(card, browser, tmp_path):
    """In a browser, wide and narrow, light and dark; the same card makes the same bytes."""
    (tmp_path / "card.html").write_bytes(card_page(card))
    assert (tmp_path / "card.html").read_bytes() == card_page(copy.deepcopy(card))
    browser.assert_sound(tmp_path / "card.html")


def planted(value: Any, *, keep: bool = True) -> Any:
    """The same card with a script in every text, and in every name that its maker may choose."""
    if isinstance(value, dict):
        free = ("figures", "versions", "settings")
        return {k if keep else PLANTED + k: planted(v, keep=k not in free) for k, v in value.items()}
    if isinstance(value, list):
        return [planted(v) for v in value]
    return PLANTED + value if isinstance(value, str) else value


def test_a_hostile_card_is_text(card, page, browser, tmp_path):
    """Whatever a stranger's card says is read and never run: no element more than a harmless card has."""
    hostile = planted(card) | {"labels": card["labels"]}  # others than ours are refused
    hostile["training"]["settings"] = {PLANTED: "</pre>" + PLANTED}
    made = card_page(hostile)
    found = Page(made)
    assert found.tags == page.tags
    assert found.text.count(PLANTED) > 20
    assert json.loads(found.pre) == hostile["training"]["settings"]
    (tmp_path / "card.html").write_bytes(made)
    seen = browser.look(tmp_path / "card.html")
    assert (seen.dialogs, seen.scripts, seen.requests, seen.console) == ((), 0, (), ())


OPTIONAL = "operating_points"
"""Cards of older versions lack it."""


@pytest.mark.parametrize("name", [name for name in SHOWN if name != OPTIONAL])
def test_a_card_with_a_hole_is_refused(card, name):
    """None of what the page tells may be missing."""
    with pytest.raises(ArtefactError, match="card"):
        card_page({k: v for k, v in card.items() if k != name})


@pytest.mark.parametrize("name", ["labels", "familiar"])
def test_a_card_without_labels_or_what_is_familiar_is_refused(card, name):
    """They are part of every card; that no bundle is loaded without them does not help who only reads."""
    with pytest.raises(ArtefactError, match="card"):
        card_page({k: v for k, v in card.items() if k != name})


def test_a_card_of_labels_in_another_order_is_refused(card):
    """As load_bundle does: the numbers of a calibration have no names of their own."""
    with pytest.raises(ArtefactError, match="labels"):
        card_page(card | {"labels": [*reversed(LABELS)]})


JUNK = [None, 3, "x", [], [1], {}, {"a": 1}, {"a": {}}, [[]]]
MISPLACED = [
    (name, value)
    for name in SHOWN
    for value in JUNK
    if name not in ("version", "intended_use") and (name, value) != ("figures", {})  # no predictor is an empty table
]


@pytest.mark.parametrize(("name", "value"), MISPLACED, ids=json.dumps)
def test_a_card_of_other_things_is_refused(card, name, value):
    """Whatever stands where something else should: an ArtefactError, no traceback of ours and no page of nonsense."""
    with pytest.raises(ArtefactError, match="card"):
        card_page(card | {name: value})


@pytest.mark.parametrize("name", ["studies", "slices"])
def test_a_card_of_no_data_is_refused(card, name):
    """Of nothing there is no share."""
    with pytest.raises(ArtefactError, match="card"):
        card_page(card | {"training": card["training"] | {name: 0}})


def paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to everything in a card."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for step, part in inner for path in paths(part, (*at, step)))]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_card_that_was_tampered_with_makes_a_page_or_an_artefact_error(card, data):
    """Any one thing in it gone or exchanged for another: never a traceback of ours, never a script."""
    path = data.draw(st.sampled_from([path for path in paths(card) if "settings" not in path]))
    changed = copy.deepcopy(card)
    at = changed
    for step in path[:-1]:
        at = at[step]
    if data.draw(st.booleans()):
        del at[path[-1]]
    else:
        at[path[-1]] = data.draw(st.sampled_from([*JUNK, True, -1, 1e400, float("nan"), PLANTED]))
    try:
        made = card_page(changed)
    except ArtefactError:
        return
    assert "script" not in Page(made).tags
