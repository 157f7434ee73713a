"""What is said of one trial, and what a package that is attacked is to the attack: two functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ich_seq.dicom import SliceHeader, read_headers
from ich_seq.reasons import Unused

ReadHeader = Callable[[Path, str], SliceHeader | Unused]
ReadPixels = Callable[[SliceHeader], NDArray[np.float32]]


def read_header(path: Path, file: str) -> SliceHeader | Unused:
    """Read the header of a file of one slice."""
    (header,) = read_headers(path, file)
    return header


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one trial: a word for the figures, how long it took, and what is wrong, empty if nothing.

    `worker_died` tells whether a process that the package had started ended meanwhile; `peak_mb` is the most memory
    that the reading process has held so far.
    """

    outcome: str
    seconds: float
    wrong: str = ""
    worker_died: bool = False
    peak_mb: float = 0.0
