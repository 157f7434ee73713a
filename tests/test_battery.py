"""The battery gives each attack what it asks for, and one that breaks does not end the others."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from battery import ALONE, ON_THE_SCENE

BASIS = {"work", "scale", "seed"}


@pytest.mark.parametrize("name", [*ALONE, *ON_THE_SCENE])
def test_an_attack_asks_for_what_the_battery_gives_it(name):
    """Whatever else it takes has a default, for its tests."""
    asked = inspect.signature(import_module(f"attacks.{name}").run).parameters
    given = BASIS | ({"scene", "zygote"} if name in ON_THE_SCENE else set())
    assert given <= set(asked)
    assert all(asked[more].default is not inspect.Parameter.empty for more in set(asked) - given)
