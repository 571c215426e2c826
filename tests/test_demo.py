"""`make demo` at full size: AP is that of docs/results.md, and calibration raises it on the tail.

Rows of the retrained head are compared with the results of the default recipe, the other rows with the tables.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.recipes import default_rows
from calib.config import Config

pytestmark = [pytest.mark.framework, pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
HEAD_ROWS = {"rhead-only": "calibrated", "rhead-avg": "avg", "rhead-cat": "cat"}
"""Row → its mode in the results of the recipes."""
BINS = ["AP(0,10)", "AP[10,100)", "AP[100,1000)", "AP[1000,-)"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folder in which Mini-LVIS is made once for all demos."""
    return tmp_path_factory.mktemp("data") / "minilvis"


def run_demo(detector: str, run: Path, results: str, **variables: object) -> pd.DataFrame:
    """Runs `make demo`, checks its mask AP against that of the committed results, and returns it."""
    environment = Path(sys.prefix)
    # The tests' own environment has all that the demo needs, so nothing is installed.
    installed = [f"--assume-old={environment / mark}" for mark in ("demo", "dev", "frameworks")]
    variables |= {"VENV": environment, "RUN": run, "DETECTOR": detector}
    arguments = [f"{name}={value}" for name, value in variables.items()]
    subprocess.run(["make", *installed, "demo", *arguments], cwd=ROOT, check=True)
    metrics = pd.read_csv(run / "sweep" / "metrics.csv", index_col=["iou_type", "row"]).loc["segm"]
    committed = pd.read_csv(ROOT / "benchmarks" / "results" / f"{results}.csv", index_col=["iou_type", "row"])
    assert metrics.index.tolist() == committed.loc["segm"].index.tolist()
    own = [row for row in metrics.index if not row.startswith("rhead")]
    assert_close(metrics.loc[own], committed.loc["segm"].loc[own])
    recipes = pd.read_csv(ROOT / "benchmarks" / "results" / "recipes.csv")
    recipes = recipes[recipes["seed"] == Config.seed]
    if results in recipes["detector"].tolist():
        expected = default_rows(recipes, results, HEAD_ROWS, "segm").set_index("row")
        assert_close(metrics.loc[list(HEAD_ROWS)], expected)
    return metrics


def assert_close(metrics: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Checks AP by bin to within a point."""
    pd.testing.assert_frame_equal(metrics[BINS], expected[BINS], atol=1.0, check_exact=False, check_names=False)


def test_demo(data, tmp_path):
    started = time.perf_counter()
    metrics = run_demo("plain", tmp_path, "plain", DATA=data)
    seconds = time.perf_counter() - started
    plain, cat, oracle = (metrics.loc[name] for name in ("original@0.0", "rhead-cat", "props-gt"))
    assert plain["AP(0,10)"] < 2 and oracle["AP(0,10)"] > 35
    assert metrics.loc["original@0.05", "AP"] < plain["AP"] - 1
    assert cat["AP(0,10)"] >= plain["AP(0,10)"] + 10
    assert cat["AP"] >= plain["AP"] + 5
    assert cat["AP[1000,-)"] > plain["AP[1000,-)"] - 0.5
    assert seconds < 900, "five minutes on two idle cores; tests may run on busier ones"


def test_demo_of_an_exhaustive_dataset(data, tmp_path):
    metrics = run_demo("plain", tmp_path, "coco", DATA="coco", FOLDER=data)
    plain, cat, oracle = (metrics.loc[name] for name in ("original@0.0", "rhead-cat", "props-gt"))
    assert plain["AP(0,10)"] < 2 and oracle["AP(0,10)"] > 35
    assert metrics.loc["original@0.05", "AP"] < plain["AP"] - 0.5
    assert cat["AP(0,10)"] >= plain["AP(0,10)"] + 10
    assert cat["AP"] >= plain["AP"] + 5
    assert cat["AP[1000,-)"] > plain["AP[1000,-)"] - 0.5
    assert {"APs", "APm", "AR@10"} <= set(metrics.columns)


@pytest.mark.parametrize("detector", ["cascade", "htc"])
def test_cascades(detector, data, tmp_path):
    """Tables 5 and 7: cascades of other frameworks, with tail bounds 10 and 100."""
    pytest.importorskip({"cascade": "detectron2", "htc": "mmdet"}[detector])
    metrics = run_demo(detector, tmp_path, detector, DATA=data)
    original = metrics.loc["original@0.0"]
    for row in ("rhead-cat@10", "rhead-cat"):
        assert metrics.loc[row, "AP(0,10)"] >= original["AP(0,10)"] + 5
        assert metrics.loc[row, "AP"] >= original["AP"]
