"""The notebooks run from top to bottom, here on the tiny dataset; `make notebooks` runs them on Mini-LVIS."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from benchmarks.minilvis import coco
from tests.conftest import CLASSES

pytestmark = [pytest.mark.process, pytest.mark.long]

NEEDED = ("jupytext", "nbclient", "ipykernel")


def parameters(name: str, tiny, out: Path) -> str:
    """Python that replaces the paths of a notebook's first cell."""
    options = (f"num_classes={CLASSES}",)
    if name == "mini_lvis":
        return f"DATA, WEIGHTS, OPTIONS = Path({str(tiny.data)!r}), Path({str(tiny.weights)!r}), {options}\n" + (
            f"RUN, STEPS, PROJECTION = Path({str(out)!r}), 20, 16"
        )
    files = coco.convert(tiny.data)
    return (
        f"TRAIN, TRAIN_IMAGES = Path({str(files / 'train.json')!r}), Path({str(tiny.data / 'train')!r})\n"
        f"VAL, VAL_IMAGES = Path({str(files / 'val.json')!r}), Path({str(tiny.data / 'val')!r})\n"
        f"DETECTOR |= dict(weights=Path({str(tiny.weights)!r}), detector_options={options})\n"
        f"RUN, STEPS = Path({str(out)!r}), 20"
    )


@pytest.mark.parametrize("name", ["mini_lvis", "my_dataset"])
def test_a_notebook_runs(name, tiny, tmp_path):
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"the notebooks need {' and '.join(missing)}")
    from benchmarks.notebooks import execute

    notebook = execute(name, parameters(name, tiny, tmp_path))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 4
    assert (tmp_path / "head" / "config.json").is_file()
