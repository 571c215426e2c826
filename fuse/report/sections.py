"""The tables of the report, as values for the template."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from extract.data.bins import bin_names
from fuse.evaluation.row_comparison import SUFFIXES
from fuse.gallery import class_outcomes, look_alikes, most_changed
from fuse.report.inputs import ReportInputs

MAX_CHANGED = 15
"""Classes listed as gained, and as lost."""
MAX_CONFUSED = 30
"""Tail classes listed with their look-alikes."""
ERROR_COLUMNS = {
    "confused": "taken for another class",
    "up": "for a more frequent one",
    "missed": "missed",
    "ECE": "calibration error",
}
"""Columns of `fuse.error_table` for each bin, shares of its objects in percent, and their titles."""


class Cell(NamedTuple):
    """A cell of the comparison table: its text, its value for sorting, its interval as text, and a mark."""

    text: str
    value: float
    interval: str = ""
    within_noise: bool = False


def comparison_table(inputs: ReportInputs, iou_type: str) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Returns the names of the columns, and each row's name with its cells. Columns without any value are left out."""
    table = inputs.summary.loc[iou_type]
    names = [name for name in table if not str(name).endswith(SUFFIXES) and table[name].notna().any()]
    return names, [(str(row), [_cell(table.loc[row], name) for name in names]) for row in table.index]


def _cell(row: pd.Series, name: str) -> Cell:
    value = float(row[name])
    if np.isnan(value):
        return Cell("–", -1.0)
    low, high = (row.get(f"{name}{side}", np.nan) for side in ("_low", "_high"))
    interval = "" if pd.isna(low) else f"{low:.1f} – {high:.1f}"
    noise = row.get(f"{name}_within_noise", False)
    return Cell(f"{value:.1f}", value, interval, not pd.isna(noise) and bool(noise))


def changed_classes(inputs: ReportInputs, iou_type: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the classes whose AP rose most, and those whose AP fell most."""
    before, after = (inputs.tables(iou_type)[row] for row in inputs.rows)
    table = after[["name", "instance_count"]].assign(before=before["AP"], after=after["AP"]).dropna()
    table["change"] = table["after"] - table["before"]
    ordered = table.sort_values("change", kind="stable")
    gained = ordered[ordered["change"] > 0].iloc[::-1].head(MAX_CHANGED)
    lost = ordered[ordered["change"] < 0].head(MAX_CHANGED)
    return gained.to_dict("records"), lost.to_dict("records")


def error_shares(inputs: ReportInputs, iou_type: str) -> list[dict[str, Any]]:
    """Returns the cells of `ERROR_COLUMNS`, before → after, for each bin and for all classes."""
    before, after = (inputs.errors.loc[iou_type, row] for row in inputs.rows)
    rows = []
    for name in (*bin_names(inputs.bins), ""):
        pairs = [[one.get(f"{column}{name}", np.nan) for one in (before, after)] for column in ERROR_COLUMNS]
        if not np.isnan(pairs).all():
            rows.append({"name": name or "all", "cells": [_change(*pair) for pair in pairs]})
    return rows


def _change(before: float, after: float) -> Cell:
    if np.isnan(before) and np.isnan(after):
        return Cell("–", -1.0)
    return Cell(f"{before:.1f} → {after:.1f}", after)


def confused_classes(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Returns the tail classes with most objects named now, what they were taken for, and what they are taken for."""
    before, after = (inputs.outcomes[row] for row in inputs.rows)
    counts = [class_outcomes(one, inputs.is_tail) for one in (before, after)]
    listed = most_changed(counts[0], counts[1], inputs.is_tail)[:MAX_CONFUSED]
    return [
        {
            "name": inputs.classes["name"].iloc[label],
            "figures": [
                int(inputs.classes["instance_count"].iloc[label]),
                int(counts[0][label].sum()),
                *(int(one[label, kind]) for kind in (0, -1) for one in counts),
            ],
            "taken_for": [_names_of(inputs, look_alikes(one, label)) for one in (before, after)],
        }
        for label in listed
    ]


def _names_of(inputs: ReportInputs, found: list[tuple[int, int]]) -> str:
    return ", ".join(f"{inputs.classes['name'].iloc[label]} ×{count}" for label, count in found)
