"""The CSV files of the tables, and the tables of the documents made from them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from benchmarks.paper.figures import BIN_COLUMNS, CLASS_COLUMNS, MODEL_COLUMNS, PAPER, TEST_COLUMNS, Figures
from benchmarks.paper.setups import SEED
from benchmarks.provenance import provenance, read_results
from benchmarks.speed.measure import merge_rows
from benchmarks.tables import PROVENANCE, markdown, provenance_line

RESULTS = Path(__file__).parents[1] / "results" / "paper"
PACKAGES = ("numpy", "torch", "torchvision", "sal-detectron2", "mmdet", "mmcv-lite", "hotcoco")
"""Packages whose versions are kept."""
COLUMNS: dict[str, Sequence[str]] = {
    "1": CLASS_COLUMNS,
    "3": ["objects", "AP", "AR@100", "AR@300", "AR@1000"],
    "5": MODEL_COLUMNS,
    "9": [*BIN_COLUMNS, "bAP"],
    "10": TEST_COLUMNS,
    "tail": [*BIN_COLUMNS, "bAP"],
}
"""Columns that the documents show; AP by bin for other tables."""
COUNTS = (*CLASS_COLUMNS, "objects")
"""Columns of whole numbers."""


def save(table: str, rows: pd.DataFrame, dataset: str, command: Sequence[str], folder: Path = RESULTS) -> Path:
    """Writes the rows of a dataset to the table's file, in place of those that it had; returns the file.

    Args:
        table: a key of `PAPER`.
        rows: column `row` first, then figures.
        dataset: name of the setup.
        command: arguments of `python -m benchmarks.paper`.
        folder: of the files.
    """
    rows = rows.round(4).assign(
        seed=SEED, command=f"python -m benchmarks.paper {shlex.join(command)}", versions=_versions(), **provenance()
    )
    rows.insert(0, "dataset", dataset)
    path = csv_file(table, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        before = read_results(path)
        rows = merge_rows(before[before["dataset"] != dataset], rows, ["dataset", "row"])
    rows.to_csv(path, index=False)
    return path


def csv_file(table: str, folder: Path = RESULTS) -> Path:
    """Returns the file of a table."""
    return folder / f"{f'table_{int(table):02}' if table.isdigit() else table}.csv"


def document_table(table: str, folder: Path = RESULTS) -> str:
    """Formats a table: of each row the paper's figures, then those measured on each dataset."""
    path = csv_file(table, folder)
    measured = read_results(path, row=str) if path.is_file() else pd.DataFrame(columns=["dataset", "row"])
    columns = list(COLUMNS.get(table, BIN_COLUMNS))
    lines = []
    for row in dict.fromkeys([*PAPER[table], *measured["row"]]):
        sources = _sources(row, PAPER[table], measured)
        for i, (source, figures) in enumerate(sources.items()):
            lines.append([row if i == 0 else "", source, *(_format(figures, column) for column in columns)])
    command = f"`python -m benchmarks.paper {table}`"
    note = f"Not measured yet: {command}." if measured.empty else provenance_line(measured[PROVENANCE])
    return "\n\n".join([markdown(["row", "of", *columns], lines), note] if lines else [note])


def _sources(row: str, paper: Figures, measured: pd.DataFrame) -> dict[str, Mapping[str, float]]:
    """Returns the figures of one row by where they are from."""
    sources: dict[str, Mapping[str, float]] = {"paper": paper[row]} if row in paper else {}
    for record in measured[measured["row"] == row].to_dict("records"):
        sources[record["dataset"]] = record
    return sources


def _format(figures: Mapping[str, float], column: str) -> str:
    """Formats one figure; empty if there is none."""
    value = figures.get(column)
    if value is None or pd.isna(value):
        return ""
    return f"{value:,.0f}" if column in COUNTS else f"{value:.1f}"


def _versions() -> str:
    """Returns the versions of the packages that are installed."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
