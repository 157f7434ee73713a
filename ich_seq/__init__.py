"""Intracranial haemorrhage on head CT, study by study: slice embeddings, then a bidirectional GRU.

Letters used in every docstring of the package:

    B  studies in a batch               H, W  rows and columns of a slice, pixels
    N  slices of one study              S     side of the network's square input, pixels
    T  longest N in a batch             D     width of a slice embedding
    M  any number of slices             K     the six labels, in the order of `labels.LABELS`
    C  channels: windows x neighbours   P     patients

`lengths` is always (B,) int64 on the CPU. Positions are float64 millimetres along the slice normal,
feet to head. HU are Hounsfield units.

    IchSeqError                 everything this package refuses; its text carries the remedy
    |-- UsageError              a wrong setting, label file or argument
    |-- NothingUsableError      the input holds no study that can be read
    |-- ArtefactError           a store or bundle that is damaged or belongs to something else
    |-- OutputError             the output folder cannot be written
    +-- ArchiveError            a DICOMweb archive cannot be reached, refuses us, has no study, or did not take all
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ich_seq.cnn_training import train_cnn as train_cnn
    from ich_seq.evaluation import evaluate as evaluate
    from ich_seq.exploration import explore as explore
    from ich_seq.extraction import extract_features as extract_features
    from ich_seq.prediction import predict as predict
    from ich_seq.rnn_training import train_rnn as train_rnn

# Intel's manual promises equal bits from run to run only in this mode; read when torch first multiplies matrices.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
__all__ = [
    "ArchiveError",
    "ArtefactError",
    "IchSeqError",
    "NothingUsableError",
    "OutputError",
    "UsageError",
    "__version__",
    "evaluate",
    "explore",
    "extract_features",
    "predict",
    "train_cnn",
    "train_rnn",
]

_LAZY = {
    "explore": "ich_seq.exploration",
    "extract_features": "ich_seq.extraction",
    "train_cnn": "ich_seq.cnn_training",
    "train_rnn": "ich_seq.rnn_training",
    "predict": "ich_seq.prediction",
    "evaluate": "ich_seq.evaluation",
}


class IchSeqError(Exception):
    """Base of all refusals. `exit_code` is what the command line ends with; what is `told` another process says."""

    exit_code = 2
    told = False


class UsageError(IchSeqError):
    """A setting, label file or argument that cannot be meant."""


class NothingUsableError(IchSeqError):
    """The input holds no study that can be read; the files are listed in rejected.csv."""

    exit_code = 4


class ArtefactError(IchSeqError):
    """A feature store or bundle that is damaged, incomplete or made by something else."""


class OutputError(IchSeqError):
    """The output folder cannot be written: full, read-only or in use by another process."""

    exit_code = 5


class ArchiveError(IchSeqError):
    """A DICOMweb archive that cannot be reached, refuses us, has no study, or did not take all that it was sent."""

    exit_code = 6


def __getattr__(name: str) -> Any:
    """Load a command's Python call on first use, so that importing the package costs no torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ich_seq' has no attribute {name!r}")
