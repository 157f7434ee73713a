"""The ground of the attacks for tests: a process that forks commands, and a small scene, made once a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attacks.scene import Scene, build
from attacks.zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that runs commands in forked children."""
    with Zygote() as process:
        yield process


@pytest.fixture(scope="session")
def scene(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A few small studies and what each command made of them."""
    return build(tmp_path_factory.mktemp("scene"), zygote, studies=4)
