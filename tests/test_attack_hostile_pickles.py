"""Pickle gadgets in the places of files, and that the attack finds a package that unpickles."""

from __future__ import annotations

import io

import pytest
import torch
from attacks.gadgets import build_gadgets
from attacks.hostile_pickles import read_all, run
from attacks.targets import TARGETS, prepare

from ich_seq import weights

pytest_plugins = ["grounds"]

BUNDLE, FEATURES, CNN = TARGETS[:3]


@pytest.mark.slow
def test_a_slice_of_the_gadgets_finds_nothing(scene, zygote, tmp_path):
    """In place of files of a bundle and of a run nothing is executed, and all but two would be, elsewhere."""
    outcome = run(tmp_path, scene=scene, zygote=zygote, scale=0.05, targets=(BUNDLE, CNN))
    assert outcome.failures == ()
    assert outcome.trials == outcome.figures["read by function calls"] > 10
    assert outcome.figures["gadgets that work on careless loaders"] == len(build_gadgets(tmp_path / "canary")) - 2


@pytest.mark.slow
def test_a_package_that_unpickles_is_found(scene, zygote, tmp_path, monkeypatch):
    """Where weights are read by torch.load as it once was, a gadget with the right hash is executed."""
    prepare(tmp_path / "prepared", scene, zygote, [BUNDLE])
    monkeypatch.setattr(weights, "load", lambda data: torch.load(io.BytesIO(data), weights_only=False))
    ends, failures = read_all(BUNDLE, tmp_path / "prepared", tmp_path, 6, seed=0)
    assert ends["refused"]
    assert any("vouched for, was executed" in failure for failure in failures)
    assert not any("was executed" in failure for failure in failures if "vouched" not in failure)


@pytest.mark.slow
def test_a_reader_that_fails_is_found(scene, zygote, tmp_path, monkeypatch):
    """An error that is no refusal is told with the place where it came about."""
    prepare(tmp_path / "prepared", scene, zygote, [FEATURES])
    monkeypatch.setattr("ich_seq.store.read_index", lambda data, path, most_rows: data.decode("ascii"))
    _, failures = read_all(FEATURES, tmp_path / "prepared", tmp_path, 2, seed=0)
    assert any("failed with" in failure and ".py:" in failure for failure in failures)


@pytest.fixture(autouse=True)
def _no_canary_is_left(tmp_path):
    yield
    assert not (tmp_path / "canary").exists()
