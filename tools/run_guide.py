"""Run docs/guide.py cell by cell, as a notebook, and write it with its outputs: build/guide/guide.ipynb.

python tools/run_guide.py [FOLDER]
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
GUIDE, OUT = ROOT / "docs" / "guide.py", ROOT / "build" / "guide"
CELL_TIMEOUT_S = 3600


def run_guide(guide: Path, out: Path) -> Path:
    """Run a notebook in an emptied folder. Raises nbclient's CellExecutionError for a cell that fails."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    notebook = jupytext.read(guide)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # not a random one: the same guide gives the same file
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a debugger's warning, which would be an output
    NotebookClient(notebook, timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(out)}}).execute()
    for cell in notebook.cells:
        cell.get("metadata", {}).pop("execution", None)  # when it ran
    path = out / "guide.ipynb"
    nbformat.write(notebook, path)
    return path


if __name__ == "__main__":
    print(run_guide(GUIDE, OUT))
