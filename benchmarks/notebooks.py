"""Runs the notebooks, and keeps them with their output in build/notebooks.

python -m benchmarks.notebooks                # both, on Mini-LVIS: a few minutes each
python -m benchmarks.notebooks mini_lvis
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NAMES = ("mini_lvis", "my_dataset")
TIMEOUT = 1800
"""Of a cell in seconds."""


def main(names: list[str]) -> None:
    """Runs the notebooks of these names, by default all."""
    folder = ROOT / "build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or NAMES:
        jupytext.write(execute(name), folder / f"{name}.ipynb")
        print(folder / f"{name}.ipynb")


def execute(name: str, parameters: str = "") -> Any:
    """Returns a notebook with its output. `parameters` is Python that is added to its cell of this tag.

    Raises nbclient.exceptions.CellExecutionError with the traceback of a cell that fails.
    """
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\n{parameters}"
    return NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(ROOT)}}).execute()


if __name__ == "__main__":
    main(sys.argv[1:])
