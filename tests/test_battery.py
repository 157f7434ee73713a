"""The battery gives each attack what it asks for, and one that breaks does not end the others."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from battery import ALONE, ON_THE_SCENE, outcome_of

TOOLS = Path(__file__).resolve().parents[1] / "tools"

BASIS = {"work", "scale", "seed"}


@pytest.mark.parametrize("name", [*ALONE, *ON_THE_SCENE])
def test_an_attack_asks_for_what_the_battery_gives_it(name):
    """Whatever else it takes has a default, for its tests."""
    asked = inspect.signature(import_module(f"attacks.{name}").run).parameters
    given = BASIS | ({"scene", "zygote"} if name in ON_THE_SCENE else set())
    assert given <= set(asked)
    assert all(asked[more].default is not inspect.Parameter.empty for more in set(asked) - given)


def test_no_attack_is_left_out():
    """A module with `run` is an attack."""
    attacks = {path.stem for path in (TOOLS / "attacks").glob("*.py") if "\ndef run(" in path.read_text()}
    assert attacks == {*ALONE, *ON_THE_SCENE}


def test_an_attack_that_breaks_is_a_failure(tmp_path, monkeypatch):
    """And no end of the battery."""
    monkeypatch.setattr("attacks.size_lies.run", lambda *_, **__: 1 / 0)
    outcome = outcome_of("size_lies", tmp_path, scale=1.0, seed=0)
    assert "ZeroDivisionError" in outcome.failures[0]
