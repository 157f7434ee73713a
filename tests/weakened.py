"""A package without its defences, so that attacks on its disk and its signals are known to be able to fail."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from attacks.zygote import Zygote

import ich_seq

WEAKER = {
    "files.py": """
def write_bytes(path, data):
    with path.open("wb") as file:
        file.write(data)
""",
    "cli.py": """
import signal

def main():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    cli()
""",
}
"""What is put in the place of the package's own: files are written where they stand, signals are not heard."""


@pytest.fixture(scope="session")
def weak_zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A process that runs the commands of a weakened copy of the package."""
    root = tmp_path_factory.mktemp("weakened")
    package = root / "ich_seq"
    shutil.copytree(Path(ich_seq.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, weaker in WEAKER.items():
        source = (package / name).read_text()
        (package / name).write_text(source.replace('\nif __name__ == "__main__":\n    main()\n', "") + weaker)
    with chdir(root):  # python -m looks into the current folder first
        process = Zygote()
    with process:
        yield process
