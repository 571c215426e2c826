"""Fills the tables of README.md and docs from the CSV files in `benchmarks/results`.

    python -m benchmarks.documents                            # all tables, from the CSV files as they are
    python -m benchmarks.documents plain=data/plain/sweep     # first keep the metrics of a finished sweep as plain.csv

A table stands between the lines `<!-- results:NAME -->` and `<!-- /results -->` of a document.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.coverage import coverage_table
from benchmarks.crossing.tables import (
    calibration_table,
    evaluators_table,
    inference_table,
    readers_table,
    tools_table,
)
from benchmarks.paper.figures import PAPER
from benchmarks.paper.results import document_table
from benchmarks.provenance import read_results
from benchmarks.recipes import default_rows, recipes_table
from benchmarks.reliability.results import reliability_table
from benchmarks.scale.tables import checks_table, scale_table
from benchmarks.selection import selection_table
from benchmarks.tables import (
    BINS,
    accuracy_table,
    cost_table,
    live_table,
    provenance_line,
    speed_table,
    targets_table,
    versus_table,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SWEEPS = ("plain", "rfs", "cascade", "htc", "coco")
SPEED = (
    "nms",
    "detection",
    "training",
    "streaming",
    "storage",
    "integrity",
    "extraction",
    "painting",
    "evaluation",
    "sweep",
    "imports",
    "compilation",
    "demo",
)
RELIABILITY = ("kills", "damage", "inputs", "disk")
README_ROWS = ["original@0.0", "rhead-only", "rhead-cat"]
DEFAULT_ROWS = {"rhead-only, default recipe": "calibrated", "rhead-cat, default recipe": "cat"}
"""Rows of the README's table whose head is trained by the default recipe → mode."""
README_COLUMNS = [column for column in BINS if column != "bAP"]


def main(arguments: list[str]) -> None:
    """Keeps the metrics of NAME=SOURCE arguments, then fills all tables."""
    for argument in arguments:
        name, source = argument.split("=")
        keep_metrics(name, Path(source))
    fill_documents(ROOT)


def fill_documents(root: Path) -> None:
    """Fills all tables of the documents below a folder."""
    fill(root / "README.md", {"readme": readme_table, "recipes": readme_recipes})
    accuracy = {name: partial(sweep_table, name) for name in SWEEPS}
    others: dict[str, Callable[[pd.DataFrame], str]] = {
        "folding": partial(accuracy_table, columns=BINS),
        "live": live_table,
        "recipes": recipes_table,
    }
    tables = {name: partial(_from_csv, table, RESULTS / f"{name}.csv") for name, table in others.items()}
    tables["selection"] = partial(_if_measured, selection_table, "selection")
    tables["coverage"] = partial(_if_measured, coverage_table, "coverage")
    paper = {f"paper-{table}": partial(document_table, table) for table in PAPER}
    fill(root / "docs" / "results.md", {**accuracy, **tables, **paper})
    crossing = {
        "crossing": evaluators_table,
        "crossing_calibration": calibration_table,
        "crossing_inference": inference_table,
        "crossing_readers": readers_table,
        "crossing_tools": tools_table,
    }
    traps = {name: partial(_from_csv, table, RESULTS / f"{name}.csv") for name, table in crossing.items()}
    fill(root / "docs" / "traps.md", traps)
    speed = {name: partial(_from_csv, speed_table, RESULTS / "speed" / f"{name}.csv") for name in SPEED}
    performance = {
        "cost": partial(_from_csv, cost_table, RESULTS / "speed" / "cost.csv"),
        "targets": speed_targets,
        "versus": partial(_if_measured, versus_table, "versus"),
        "scale": partial(_from_csv, scale_table, RESULTS / "scale.csv"),
        "scale_checks": partial(_from_csv, checks_table, RESULTS / "scale_checks.csv"),
        "derived": partial(_from_csv, derived_table, RESULTS / "derived.csv"),
        "precision": partial(_from_csv, partial(accuracy_table, columns=BINS, decimals=2), RESULTS / "precision.csv"),
    }
    fill(root / "docs" / "performance.md", {**performance, **speed})
    memory = partial(reliability_table, total=False)
    reliability = {
        name: partial(_from_csv, reliability_table, RESULTS / "reliability" / f"{name}.csv") for name in RELIABILITY
    } | {"memory": partial(_if_measured, memory, "reliability/memory")}
    fill(root / "docs" / "reliability.md", reliability)


def keep_metrics(name: str, source: Path) -> None:
    """Writes `results/<name>.csv`: the metrics in a sweep's folder."""
    metrics = pd.read_csv(source / "metrics.csv")
    metrics.round(4).to_csv(RESULTS / f"{name}.csv", index=False)


def fill(document: Path, tables: dict[str, Callable[[], str]]) -> None:
    """Replaces the blocks of a document. Raises ValueError for a block that is missing."""
    text = document.read_text()
    for name, table in tables.items():
        block = re.search(rf"(<!-- results:{name} -->\n).*?(<!-- /results -->)", text, flags=re.S)
        if block is None:
            raise ValueError(f"{document}: has no block results:{name}")
        text = f"{text[: block.end(1)]}{table()}\n{text[block.start(2) :]}"
    document.write_text(text)


def readme_table() -> str:
    """Returns the rows of the plain detector's table that show what calibration does, with both recipes."""
    metrics = pd.read_csv(RESULTS / "plain.csv")
    metrics = metrics[metrics["iou_type"] == "segm"].set_index("row", drop=False)
    default = default_rows(pd.read_csv(RESULTS / "recipes.csv"), "plain", DEFAULT_ROWS, "segm")
    return accuracy_table(pd.concat([metrics.loc[README_ROWS], default, metrics.loc[["props-gt"]]]), README_COLUMNS)


def readme_recipes() -> str:
    """Returns the plain detector's part of the table of recipes."""
    results = read_results(RESULTS / "recipes.csv")
    return recipes_table(results[results["detector"] == "plain"])


def sweep_table(name: str) -> str:
    """Returns the mask AP of a sweep's rows."""
    metrics = pd.read_csv(RESULTS / f"{name}.csv")
    return accuracy_table(metrics[metrics["iou_type"] == "segm"])


def derived_table(metrics: pd.DataFrame) -> str:
    """Formats the AP of stored and of computed logits."""
    table = accuracy_table(metrics.rename(columns={"logits": "row"}), BINS, decimals=2)
    return table + "\n\n" + provenance_line(metrics)


def speed_targets() -> str:
    """Returns the table of how many targets each benchmark meets."""
    return targets_table({name: read_results(RESULTS / "speed" / f"{name}.csv") for name in SPEED})


def _if_measured(table: Callable[[pd.DataFrame], str], name: str) -> str:
    """Returns the table of the results of a command, or the sentence that there are none yet."""
    file = RESULTS / f"{name}.csv"
    if file.is_file():
        return _from_csv(table, file)
    return f"Not measured yet; `python -m benchmarks.{name.replace('/', '.')} --help` describes the command."


def _from_csv(table: Callable[[pd.DataFrame], str], file: Path) -> str:
    return table(read_results(file))


if __name__ == "__main__":
    main(sys.argv[1:])
