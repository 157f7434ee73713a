"""Hand-made bad inputs: that a slice of them finds nothing, and that a weakened package is found out."""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections import Counter
from dataclasses import replace

import pytest
from attacks import bad_inputs, watch_child
from attacks.bad_case import USED, one
from attacks.bad_inputs import attempt, choose, every_case, judge, run
from attacks.dicom_bytes import slice_file

from ich_seq import dicom, hounsfield, studies

QUICK = 1 / 20
SLICE = one("a family", "a case", slice_file(), USED)
NO_SLICE = one("a family", "a case", b"no slice", "not_dicom")


@pytest.fixture(scope="module")
def cases():
    return every_case()


@pytest.mark.slow
def test_a_slice_of_every_family_finds_no_failure(tmp_path):
    outcome = run(tmp_path, scale=QUICK)
    assert outcome.failures == ()
    assert outcome.figures["families"] == 15
    assert outcome.figures["worst memory MB"] < bad_inputs.MAX_GROWTH_MB


def test_there_are_300_cases_and_each_has_a_name_of_its_own(cases):
    assert len(cases) >= 300
    assert len({(case.family, case.name) for case in cases}) == len(cases)
    assert min(Counter(case.family for case in cases).values()) >= 12


@pytest.mark.parametrize("scale", [1, 0.25, 0.01])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_family_is_chosen_from_at_every_scale(cases, scale, seed):
    chosen = choose(cases, scale, seed)
    assert {case.family for case in chosen} == {case.family for case in cases}
    assert len(chosen) == pytest.approx(len(cases) * scale, abs=15)


# ---- the attack is able to fail


def read(path, file, member, *, instead):
    """Read a header, but of the bad file do something else first."""
    (found,) = dicom.read_headers(path, file, member)
    return ((instead(path, found) or found) if file == "bad.dcm" else found,)


def spin(*_):
    while True:
        pass


def sleep(*_):
    time.sleep(60)


def swell(*_):
    with mmap.mmap(-1, 60 << 20) as pages:  # of its own, where numpy would take what the process freed before
        for _ in range(60):
            pages.write(bytes([1]) * (1 << 20))


def fall(*_):
    raise RecursionError("as deep as it goes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instead", "fault"),
    [
        (spin, "still running"),
        (sleep, "still running"),
        (swell, "MB, over"),
        (fall, "RecursionError escaped from"),
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "ended with -9"),
        (lambda path, _: path.write_bytes(b""), "written or removed"),
        (lambda path, found: replace(found, detail="x" * 500), "is too long"),
        (lambda path, found: replace(found, reason=dicom.Reason.OTHER_FILE), "is other_file, not not_dicom"),
    ],
)
def test_what_a_weak_reader_does_is_reported(tmp_path, monkeypatch, instead, fault):
    monkeypatch.setattr(studies, "read_file", lambda *source: read(*source, instead=instead))
    monkeypatch.setattr(watch_child, "KILL_AFTER_S", 1.0)
    monkeypatch.setattr(bad_inputs, "MAX_GROWTH_MB", 40)
    (failure,) = judge(NO_SLICE, attempt(NO_SLICE, tmp_path / "case"))
    assert failure.startswith("a family: a case: ")
    assert fault in failure


def test_a_file_that_is_lost_is_reported(tmp_path, monkeypatch):
    find = studies.find_studies
    monkeypatch.setattr(studies, "find_studies", lambda folder: replace(find(folder), unused=()))
    failures = judge(NO_SLICE, attempt(NO_SLICE, tmp_path / "case"))
    assert "bad.dcm has no verdict" in failures[0]
    assert "do not add up" in failures[1]


def test_other_pixels_than_those_drawn_are_reported(tmp_path, monkeypatch):
    right = hounsfield.read_hounsfield
    monkeypatch.setattr(hounsfield, "read_hounsfield", lambda header: right(header) + 1)
    failures = judge(SLICE, attempt(SLICE, tmp_path / "case"))
    assert sorted(failure.split(": ")[2] for failure in failures) == [
        "'bad.dcm' is altered, not used.",
        "'sound.dcm' is altered, not used.",
    ]


def test_a_gate_without_bounds_is_reported(tmp_path, monkeypatch, cases):
    """Every spacing that is out of bounds is found to be used where the bounds are gone."""
    for name, bound in (("MIN_SPACING_MM", -1e300), ("MAX_SPACING_MM", 1e300)):
        monkeypatch.setattr(dicom, name, bound)
    absurd = [case for case in cases if case.name in ("PixelSpacing 0\\0", "PixelSpacing 5.1\\5.1")]
    failures = [fault for case in absurd for fault in judge(case, attempt(case, tmp_path / "case"))]
    assert len(absurd) == len(failures) == 2
    assert all("is used, not geometry" in failure for failure in failures)
