"""The relations hold for a few studies, and do not for a package that is made to break them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from attacks import tiny_bundle
from attacks.alterations import ALTERATIONS
from attacks.metamorphic import run
from attacks.relations import RELATIONS
from attacks.tiny_studies import ONE_SLICE_IN, tiny_study

from ich_seq import hounsfield, prediction, report, studies, windows


@pytest.fixture
def broken(tmp_path):
    """Try one relation on one study or more; returns the sentences that begin with its name."""

    def try_(name, runs=1):
        chosen = [relation for relation in RELATIONS if relation.name == name]
        failures = run(tmp_path / "work", scale=runs / 2000, relations=chosen).failures
        return [told for told in failures if told.startswith(name)]

    return try_


@pytest.mark.slow
def test_a_few_studies_are_told_alike_however_they_are_stored(tmp_path):
    """Every relation holds for a study of several slices and one of one, and every alteration is seen."""
    outcome = run(tmp_path, scale=0.04)
    assert outcome.failures == ()
    assert outcome.figures["studies"] == 2
    for relation in RELATIONS:
        assert outcome.figures[f"{relation.name}: runs"] == (2 if relation.least_slices == 1 else 1)
    for alteration in ALTERATIONS:
        assert outcome.figures[f"{alteration.name}: smallest difference"] > 0.01


def test_relations_are_told_apart_by_name():
    """No two have one, no tolerance is above what an alteration makes, and every tolerance has its reason."""
    names = [each.name for each in (*RELATIONS, *ALTERATIONS)]
    assert len(set(names)) == len(names)
    assert all(0 <= relation.tolerance <= 0.01 and relation.why for relation in RELATIONS)


def test_studies_are_various():
    """Among a few dozen there are tilts, zones or holes, repeats, single slices and several encodings."""
    drawn = [tiny_study(index, seed=0) for index in range(3 * ONE_SLICE_IN)]
    counts = [len(study.sop_uids) for study in drawn]
    assert counts.count(1) == 3
    assert max(counts) <= 12
    assert sum(max(study.acquisitions) > 1 for study in drawn) >= 3
    assert sum(len(set(np.diff(study.positions_mm).round(2))) > 1 for study in drawn) >= 3
    assert len({study.encoding for study in drawn}) >= 3
    assert any(study.tilt_deg for study in drawn)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_runs(tmp_path):
    """Figures and failures are repeated; another seed has other figures."""
    chosen = [relation for relation in RELATIONS if relation.name == "finer pixels"]
    one, two, other = (run(tmp_path / f"{k}", scale=0.0005, seed=s, relations=chosen) for k, s in enumerate((0, 0, 1)))
    assert one == two
    assert one.figures != other.figures


@pytest.mark.slow
def test_slices_in_the_order_of_names_are_found_out(broken, monkeypatch):
    """A reader that believes names."""

    def by_name(headers):
        ordered = sorted(headers, key=lambda h: h.file)
        return tuple(ordered), np.arange(len(ordered)) * 5.0

    assert broken("names against the order of slices") == []
    monkeypatch.setattr(studies, "order_slices", by_name)
    assert "what is said differs by inf" in broken("names against the order of slices")[0]


def test_a_slope_that_is_ignored_is_found_out(broken, monkeypatch):
    """A reader that takes stored values for HU but for the intercept."""
    plain = hounsfield.to_hounsfield
    monkeypatch.setattr(hounsfield, "to_hounsfield", lambda stored, header: plain(stored, replace(header, slope=1.0)))
    assert "not by 0 at most" in broken("slope 2")[0]


def test_a_field_that_is_half_a_pixel_off_is_found_out(broken, monkeypatch):
    """A resampling that takes the first pixel's middle for its edge: hardly seen on one grid, but on two."""
    plain = windows._shares
    off = lambda pixels, spacing_mm, field_mm, size: plain(pixels + 1, spacing_mm, field_mm, size)[:, :-1]  # noqa: E731
    monkeypatch.setattr(windows, "_shares", off)
    assert "not by 0.001 at most" in broken("finer pixels")[0]


def test_a_study_that_leaks_into_the_next_is_found_out(broken, monkeypatch):
    """What is said of a study depends on how many were predicted before."""
    plain, calls = prediction.embed_studies, itertools.count()

    def leaking(found, networks, *, workers):
        for item in plain(found, networks, workers=workers):
            shade = np.float16(0.01 * next(calls))
            yield replace(item, features=tuple(replace(f, features=f.features + shade) for f in item.features))

    monkeypatch.setattr(prediction, "embed_studies", leaking)
    assert broken("another study beside")


def test_a_table_that_mixes_slices_up_is_found_out(broken, monkeypatch):
    """Rows of slices.csv that are in another order each time, while the network was right."""
    plain, calls = report._slice_rows, itertools.count()

    def mixed(said):
        rows = list(plain(said))
        return rows if next(calls) == 0 else rows[::-1]

    monkeypatch.setattr(report, "_slice_rows", mixed)
    assert broken("names shuffled") == ["names shuffled, study 0, seed 0: its rows in slices.csv are not the same"]


def test_a_bundle_that_is_blind_for_positions_is_found_out(tmp_path, monkeypatch):
    """One that adds nothing to what the classifier says of slices one by one."""
    monkeypatch.setattr(tiny_bundle, "LOUDNESS", 0.0)
    failures = run(tmp_path, scale=0.0005, relations=RELATIONS[:1]).failures
    assert any(told.startswith("the last slice further up, study 0, seed 0: is not seen") for told in failures)
