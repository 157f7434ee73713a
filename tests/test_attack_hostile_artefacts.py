"""Artefacts that say the wrong thing, and that the attack finds commands that take them or die of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from attacks.absurdities import Case
from attacks.hostile_artefacts import all_cases, judge
from attacks.targets import TARGETS, judge_refusal, prepare
from attacks.zygote import Done

pytest_plugins = ["grounds"]

SHOWN = (
    r"^bundle: bundle.json says that rnn.config.hidden is 1000000000",
    r"^bundle: bundle.json says that encoders.\*.arch is 'hf-hub",
    r"^features: manifest.json holds lists in lists, 100,000 deep$",
    r"^features: network-0.safetensors whose largest tensor is, or holds, a NaN",
    r"^cnn: run.json is a pipe",
    r"^cnn: fold-0/encoder.safetensors is a link to /dev/zero",
)


@pytest.fixture(scope="module")
def prepared(scene, zygote, tmp_path_factory) -> Path:
    """All that can be harmed, but for the states of trainings, which take a while."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, scene, zygote, [target for target in TARGETS if not target.stopped_at])
    return root


@pytest.mark.slow
def test_a_slice_of_the_cases_finds_nothing(scene, zygote, prepared, tmp_path):
    """One of each kind is refused by the command that reads it."""
    cases = all_cases(prepared)
    assert len(cases) > 800
    assert {case.target for case in cases} == {target.name for target in TARGETS}
    chosen = [next(case for case in cases if re.search(shown, str(case))) for shown in SHOWN]
    judged = [judge(case, prepared, tmp_path, scene, zygote) for case in chosen]
    assert [(str(one.case), one.end) for one in judged if one.wrong] == []


@pytest.mark.slow
def test_a_command_that_takes_what_it_should_refuse_is_found(scene, zygote, prepared, tmp_path):
    """A case that does no harm stands for one that is not seen."""
    unseen = Case("cnn", "nothing", lambda root: None)
    one = judge(unseen, prepared, tmp_path, scene, zygote)
    assert one.wrong
    assert one.end == "was accepted: ended with 0"


@pytest.mark.parametrize(
    ("done", "told"),
    [
        (Done(2, "", "Error: bundle.json is damaged.", 1.0, 0, 1.0, 800), "refused"),
        (Done(1, "", "A bug of ich-seq: KeyError; its text", 1.0, 0), "ended with 1"),
        (Done(2, "", "Traceback (most recent call last):", 1.0, 0), "ended with 2"),
        (Done(2, "", "", 1.0, 0), "ended with 2"),
        (Done(-1, "", "", 60.0, 0), "ended with -1 after 60.0 s"),
        (Done(139, "", "", 1.0, 0), "ended with 139"),
        (Done(2, "", "Error: " + "x" * 5000, 1.0, 0), "said 5007 letters"),
        (Done(2, "", "Error: no.", 9.0, 0, 8.0, 800), "only after 8.0 s"),
        (Done(2, "", "Error: no.", 1.0, 0, 1.0, 4000), "and 4000 MB"),
    ],
    ids=["refused", "a bug", "a traceback", "silence", "a hang", "a crash", "a flood", "too slow", "too large"],
)
def test_only_a_short_sentence_soon_is_a_refusal(done, told):
    """Whatever else a command does is told."""
    assert told in judge_refusal(done)
    assert (judge_refusal(done) == "refused") == (told == "refused")
