"""The soak finds nothing in a short run, and finds memory, files and time that grow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attacks import soak
from attacks.soak import SAMPLES, Sample, faults, run

KEPT: list[object] = []


def keep_everything() -> None:
    """Let a bundle keep some memory and an open file of each study that it looks at."""
    from ich_seq.bundle import Bundle

    plain = Bundle.novelty

    def keeping(self, views):
        KEPT.append(bytearray(os.urandom(20_000)))
        KEPT.append(Path(os.devnull).open())  # noqa: SIM115 - that it is never closed is the fault
        return plain(self, views)

    Bundle.novelty = keeping


def die() -> None:
    """Let a child die in the midst of its work."""
    from ich_seq.bundle import Bundle

    Bundle.novelty = lambda self, views: os.kill(os.getpid(), 9)


def samples(*, every=83, mb_a_study=0.0, files_a_study=0.0, slower=0.0, a_study_s=0.01):
    """Samples of a run of 10,000 studies, of which a study costs so much more than the one before."""
    done = [every * k for k in range(1, SAMPLES + 1)]
    seconds = [a_study_s * n * (1 + slower * n / done[-1] / 2) for n in done]
    reading = [Sample("reading headers", n, 100 + n / 100, 9, 0, 0) for n in done]
    return reading + [
        Sample("predicting studies", n, 400 + mb_a_study * n, 9 + int(files_a_study * n), s, s)
        for n, s in zip(done, seconds, strict=True)
    ]


@pytest.mark.slow
def test_a_short_soak_finds_nothing(tmp_path):
    """Each command once over few studies, with a figure for each thing that is judged."""
    outcome = run(tmp_path, scale=0.003)
    assert outcome.failures == ()
    assert outcome.trials == 240 + 30 + 30
    for name in soak.STUDIES:
        assert outcome.figures[f"{name}: studies"] == soak.LEAST[name]
        assert outcome.figures[f"{name}: most open files"] > 0
    assert not [path for path in tmp_path.iterdir() if path.name != "bundle"]


@pytest.mark.slow
def test_a_process_that_keeps_memory_and_files_is_found_out(tmp_path, monkeypatch):
    """20 KB and a file a study are told as 20 MB per 1,000 and as a range of open files."""
    monkeypatch.setattr(soak, "STUDIES", {soak.PREDICT: 10_000})
    memory, files = run(tmp_path, scale=0.01, fault=keep_everything).failures
    assert "predict, 240 studies, seed 0: memory grows by 2" in memory
    assert "open files range from" in files


@pytest.mark.slow
def test_a_process_that_dies_is_a_failure(tmp_path, monkeypatch):
    """Its exit code is told."""
    monkeypatch.setattr(soak, "STUDIES", {soak.REPORT: 60})
    assert run(tmp_path, scale=1, fault=die).failures == ("predict with pages, 60 studies, seed 0: it ended with -9",)


def test_a_steady_run_has_no_faults():
    """Nothing that stays as it is, is told of."""
    assert list(faults(samples(), "predicting studies")) == []


@pytest.mark.parametrize(
    ("grows", "told"),
    [
        ({"mb_a_study": 0.0011}, "memory grows by 1.10 MB per 1,000 studies, not by 1 at most"),
        ({"files_a_study": 0.001}, "open files range from 11 to 18"),
        ({"slower": 0.5}, "studies take 32% longer in the last third than in the first, not 25% at most"),
    ],
)
def test_what_grows_slowly_is_told(grows, told):
    """Each by itself, just beyond its limit."""
    assert list(faults(samples(**grows), "predicting studies")) == [told]


def test_a_run_too_short_to_tell_is_not_timed():
    """In seconds the machine's other work is all that is seen."""
    assert list(faults(samples(slower=2, a_study_s=1e-4), "predicting studies")) == []


def test_growth_by_less_than_python_asks_for_at_once_is_not_told():
    """180 of 240 studies that grow memory by half a megabyte are not told, by two they are."""
    assert list(faults(samples(every=2, mb_a_study=0.003), "predicting studies")) == []
    assert list(faults(samples(every=2, mb_a_study=0.012), "predicting studies")) != []
