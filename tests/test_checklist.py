"""checklist: all items of CLAIM in their order, and no answer that figures or card do not give."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ich_seq.checklist import ITEMS, fill_checklist

EVALUATION: dict[str, Any] = {
    "levels": ["slices", "studies"],
    "flow": {"slices_predicted": 12_345, "studies_judged": 311},
    "bootstrap": {"clusters": "patients", "number": 1_234, "resamples": 2_000},
    "subgroups": {"step": {"one": {"studies": 311, "positive": 0}}},
    "failures": [{"label": "any"}],
}
CARD: dict[str, Any] = {
    "version": "7.8.9",
    "intended_use": "For nobody.",
    "encoders": [
        {
            "arch": "net",
            "dim": 71,
            "size": 72,
            "field_mm": 250.0,
            "neighbours": [-1, 0, 1],
            "windows_hu": [[40.0, 80.0], [33.5, 200.0]],
            "weights": "of paper",
        },
    ],
    "rnn": {"config": {"cell": "gru"}, "files": [{}, {}, {}]},
    "training": {
        "studies": 20_001,
        "slices": 700_002,
        "patients": 18_003,
        "labels_sha256": "abc123",
        "versions": {"torch": "2.99", "numpy": "9.1"},
    },
}
BY_EVALUATION = {6, 12, 20, 28, 29, 30, 35, 37, 38, 39}
BY_CARD = {1, 3, 9, 16, 19, 22, 23, 24, 25, 26, 27, 31, 32}


def answers(evaluation: dict[str, Any] = EVALUATION, card: dict[str, Any] | None = CARD) -> dict[int, str | None]:
    """What fills each item, by its number."""
    return {item.claim: item.answer for item in fill_checklist(evaluation, card)}


@pytest.mark.parametrize("card", [None, CARD])
def test_all_items_are_there_in_order(card):
    """44 items of CLAIM's update of 2024, each with what it asks and STARD's like, whatever is known."""
    items = fill_checklist(EVALUATION, card)
    assert [item.claim for item in items] == list(range(1, 45))
    assert [(item.claim, item.stard, item.asks) for item in items] == list(ITEMS)
    assert len({item.asks for item in items}) == 44
    assert all(item.asks.strip() for item in items)


def test_stards_numbers_are_of_stard():
    """1 to 30, some with a letter; none is asked that STARD 2015 does not have."""
    numbers = {number.strip() for _, stard, _ in ITEMS for number in stard.split(",") if number.strip()}
    assert numbers <= {str(n) for n in range(1, 31)} | {f"{n}{letter}" for n in (10, 12, 13, 21) for letter in "ab"}
    assert len(numbers) > 15


def test_without_a_card_its_items_are_for_people_to_say():
    """What only a bundle knows stays open: no answer without a source."""
    assert {number for number, answer in answers(card=None).items() if answer} == BY_EVALUATION
    assert all(answer is None or answer.strip() for answer in answers(card=None).values())


def test_a_card_answers_its_own_items_and_changes_no_other():
    """What the evaluation says it says with a card too; aims, data, ethics and money are never answered."""
    with_card, without = answers(), answers(card=None)
    assert {number for number, answer in with_card.items() if answer} == BY_EVALUATION | BY_CARD
    assert {number: with_card[number] for number in BY_EVALUATION} == {n: without[n] for n in BY_EVALUATION}
    assert all(with_card[number] is None for number in range(1, 45) if number not in BY_EVALUATION | BY_CARD)


FACTS: list[tuple[tuple[str | int, ...], Any, str, set[int]]] = [
    (("version",), "1.0.1", "1.0.1", {23}),
    (("intended_use",), "For all.", "For all.", {3}),
    (("training", "labels_sha256"), "fed987", "fed987", {16}),
    (("training", "studies"), 4_004, "4,004", {25}),
    (("training", "slices"), 5_005, "5,005", {25}),
    (("training", "patients"), 6_006, "6,006", {25}),
    (("training", "versions"), {"torch": "3.1"}, "torch 3.1", {23}),
    (("encoders", 0, "arch"), "other", "other", {1, 22}),
    (("encoders", 0, "dim"), 1_280, "1280", {22}),
    (("encoders", 0, "size"), 512, "512", {9}),
    (("encoders", 0, "field_mm"), 240.5, "240.5", {9}),
    (("encoders", 0, "neighbours"), [0, 2], "0, 2", {9}),
    (("encoders", 0, "windows_hu"), [[600.0, 2800.0]], "600/2800", {9}),
    (("encoders", 0, "weights"), "random", "random", {24}),
    (("rnn", "config", "cell"), "lstm", "LSTM", {1, 22}),
    (("rnn", "files"), [{}] * 17, "17", {22}),
]


@pytest.mark.parametrize(("path", "value", "words", "items"), FACTS, ids=[".".join(map(str, f[0])) for f in FACTS])
def test_answers_are_the_cards_own_facts(path, value, words, items):
    """Another fact on the card is another answer to the items that rest on it, and to no other."""
    card = copy.deepcopy(CARD)
    at = card
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    before, after = answers(), answers(card=card)
    assert {number for number in before if before[number] != after[number]} == items
    for number in items:
        assert words in after[number]
        assert words not in before[number]


def test_networks_side_by_side_are_counted():
    """In one encoder there may be several."""
    card = copy.deepcopy(CARD)
    card["encoders"][0]["arch"] = "one+other"
    assert answers()[22].startswith("net (1 network(s)")
    assert answers(card=card)[22].startswith("one+other (2 network(s)")


@pytest.mark.parametrize(
    ("changed", "words", "items"),
    [
        ({"levels": ["studies"]}, "for studies.", {28}),
        ({"flow": {"studies_left_out": 9_876}}, "studies left out 9,876", {35}),
        ({"bootstrap": {"clusters": "studies", "number": 77, "resamples": 2_000}}, "studies", {20, 29}),
        ({"bootstrap": {"clusters": "patients", "number": 77, "resamples": 3_000}}, "3,000 bootstrap", {29}),
    ],
)
def test_answers_are_the_evaluations_own_facts(changed, words, items):
    """Levels, the way of the cases, what was resampled and how often."""
    before, after = answers(card=None), answers(EVALUATION | changed, None)
    assert {number for number in before if before[number] != after[number]} == items
    for number in items:
        assert words in after[number]
        assert words not in before[number]


def test_subgroups_are_not_claimed_where_there_are_none():
    """Without a table that describes the studies nothing was looked at by subgroup."""
    assert answers(EVALUATION | {"subgroups": {}})[30] is None
