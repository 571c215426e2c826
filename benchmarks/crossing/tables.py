"""Markdown tables of the results in this folder."""

from __future__ import annotations

import pandas as pd

from benchmarks.tables import markdown, provenance_line

SHAPES = {"segm": "masks", "bbox": "boxes"}


def evaluators_table(results: pd.DataFrame) -> str:
    """Formats the AP of every evaluator, in points: by reading of the data, IoU type and cap."""
    columns = list(results[["data", "iou_type", "cap"]].drop_duplicates().itertuples(index=False, name=None))
    header = ["evaluator", *(f"{data}, {SHAPES[iou_type]}, {cap}" for data, iou_type, cap in columns)]
    rows = []
    for (evaluator, version), table in results.groupby(["evaluator", "version"], sort=False):
        ap = table.set_index(["data", "iou_type", "cap"])["AP"]
        name = evaluator if evaluator == "tailcal" else f"{evaluator} ({version})"
        rows.append([name, *(_number(ap.get(column)) for column in columns)])
    return markdown(header, rows) + "\n\n" + provenance_line(results)


def _number(ap: float | None) -> str:
    """Formats an AP; one that the evaluator does not compute is none, one that was not run is left out."""
    return "" if ap is None else "none" if pd.isna(ap) else f"{ap:.2f}"
