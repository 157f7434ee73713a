"""The house's plan: who may import whom, and what a start may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ich_seq

PACKAGE = Path(ich_seq.__file__).parent

LEVELS = {
    "__init__": -1,
    "files": 0,
    "signals": 0,
    "terminal": 0,
    "multipart": 0,
    "patience": 0,
    "archive": 1,
    "tables": 0,
    "devices": 1,
    "readers": 1,
    "arrivals": 1,
    "journal": 1,
    "labels": 1,
    "config": 1,
    "progress": 1,
    "reasons": 1,
    "schedule": 1,
    "distributed": 2,
    "sharding": 0,
    "shared_folder": 3,
    "shared_search": 6,
    "curves": 1,
    "label_statistics": 3,
    "pages": 2,
    "pictures": 2,
    "charts": 3,
    "baselines": 2,
    "elements": 2,
    "metrics": 2,
    "weights": 2,
    "augmentation": 2,
    "codestreams": 2,
    "decode_worker": 2,
    "decoding": 2,
    "streams": 2,
    "syntaxes": 2,
    "archives": 2,
    "dicom_files": 3,
    "dicomdir": 3,
    "functional_groups": 3,
    "pixel_data": 3,
    "inputs": 4,
    "dicom": 4,
    "windows": 3,
    "calibration": 3,
    "smoothing": 4,
    "cells": 3,
    "codes": 2,
    "operating_points": 4,
    "study_identity": 5,
    "structured_report": 6,
    "highlights": 7,
    "dicom_results": 8,
    "model": 4,
    "contextual": 5,
    "novelty": 1,
    "store_checks": 2,
    "store": 3,
    "phantom_labels": 3,
    "hounsfield": 5,
    "studies": 5,
    "dicomweb": 5,
    "sources": 7,
    "encoder": 4,
    "checkpoint": 3,
    "samples": 6,
    "engines": 6,
    "cnn_run": 6,
    "fitting": 7,
    "figures": 4,
    "study_labels": 2,
    "thresholds": 3,
    "quality": 6,
    "results": 7,
    "prediction_parts": 8,
    "failures": 8,
    "subgroups": 7,
    "checklist": 1,
    "card_page": 3,
    "slice_pictures": 6,
    "evaluation_page": 9,
    "evaluation": 10,
    "report": 6,
    "slice_tables": 5,
    "sequences": 4,
    "folded_studies": 6,
    "sequence_fitting": 6,
    "phantom_anatomy": 4,
    "bundle": 7,
    "weight_library": 1,
    "published": 8,
    "weight_sources": 9,
    "export": 8,
    "activation": 6,
    "study_pages": 8,
    "phantom": 6,
    "extraction": 8,
    "cnn_training": 8,
    "out_of_fold": 7,
    "rnn_training": 8,
    "collection": 6,
    "inventory": 7,
    "gallery": 7,
    "exploration_page": 8,
    "exploration": 9,
    "incoming": 6,
    "worklist": 9,
    "prediction": 9,
    "watch": 10,
    "records": 8,
    "analysis_records": 11,
    "schemas": 12,
    "demo": 11,
    "commands": 12,
    "watch_cli": 13,
    "send_cli": 13,
    "demo_cli": 13,
    "weights_cli": 13,
    "cli": 14,
}
"""A module imports from lower levels only."""

HEAVY = {
    "torch",
    "timm",
    "pandas",
    "numpy",
    "pydicom",
    "sklearn",
    "scipy",
    "cv2",
    "pyarrow",
    "pydantic",
    "rich",
    "highdicom",
    "requests",
    "dicomweb_client",
}


def imports_of(path: Path) -> set[str]:
    """Return the package's modules that a file imports, wherever in the file, bar those for types only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing_only and node.module:
            if node.module == "ich_seq":
                found |= {alias.name for alias in node.names if (PACKAGE / f"{alias.name}.py").exists()} or {"__init__"}
            elif node.module.startswith("ich_seq."):
                found.add(node.module.removeprefix("ich_seq."))
    return found


def test_every_module_has_its_level() -> None:
    """A new module must be given a place before it can be used."""
    assert {p.stem for p in PACKAGE.glob("*.py")} == set(LEVELS)


def test_imports_go_down_only() -> None:
    """No module imports from its own level or above, not even inside a function."""
    upward = [
        f"{path.stem} ({LEVELS[path.stem]}) -> {name} ({LEVELS[name]})"
        for path in PACKAGE.glob("*.py")
        for name in imports_of(path)
        if LEVELS[name] >= LEVELS[path.stem]
    ]
    assert upward == []


def test_prediction_knows_no_training_and_training_no_dicom() -> None:
    """What serves patients must not hang on what trains, and training reads features only."""
    assert "rnn_training" not in imports_of(PACKAGE / "prediction.py")
    assert not {"studies", "extraction", "windows"} & imports_of(PACKAGE / "rnn_training.py")


def test_help_loads_nothing_heavy() -> None:
    """`ich-seq --help` must answer at once, so torch and its like may not be imported by it."""
    code = (
        "import sys\n"
        "from ich_seq.cli import cli\n"
        "try:\n    cli(['--help'])\n"
        "except SystemExit:\n    pass\n"
        f"print('HEAVY', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Commands:" in output
    assert output.endswith("HEAVY []\n")


def test_the_public_names_are_there() -> None:
    """`__all__` names what can be had from the package, and nothing else is promised."""
    assert sorted(ich_seq.__all__) == ich_seq.__all__
    assert all(getattr(ich_seq, name) is not None for name in ich_seq.__all__)


def test_no_room_is_too_long() -> None:
    """A module of more than 470 lines or a function of more than 60 wants to be two."""
    long = [p.name for p in PACKAGE.glob("*.py") if len(p.read_text().splitlines()) > 470]
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 60:
                long.append(f"{path.name}:{node.name}")
    assert long == []
