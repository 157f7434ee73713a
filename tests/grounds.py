"""The ground of the attacks for tests: a process that forks commands, and a small scene, made once a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from attacks.forked import Zygote
from attacks.scene import Scene, build


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that runs commands in forked children."""
    with Zygote() as process:
        yield process


@pytest.fixture(scope="session")
def scene(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A few small studies and what each command made of them."""
    return build(tmp_path_factory.mktemp("scene"), zygote, studies=4)
