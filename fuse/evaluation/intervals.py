"""Values with intervals, as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

MARK = "~"
"""Stands behind what is within noise of the baseline."""


def iou_title(iou_type: str) -> str:
    """Returns the title of a table."""
    return "Mask AP" if iou_type == "segm" else "Box AP"


def marked(table: pd.DataFrame, within_noise: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """Returns a table with one decimal as text, a mark behind the columns of each row that are within noise."""
    text = table.map("{:.1f}".format)
    for row in text.index:
        columns = within_noise[row]
        text.loc[row] = [value + (MARK if name in columns else " ") for name, value in text.loc[row].items()]
    return text


def cells(rows: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Returns values or differences with their intervals as text, a row for each table and a column for each row of it.

    Args:
        rows: tables of the columns value, low, high, or difference, low, high, within_noise.
    """
    return pd.DataFrame(
        {row: [_cell(*values) for values in table.to_numpy()] for row, table in rows.items()},
        index=next(iter(rows.values())).index,
    ).T.rename_axis(columns=None)


def _cell(value: float, low: float, high: float, within_noise: bool | None = None) -> str:
    if within_noise is None:
        return f"{value:.1f} [{low:.1f}, {high:.1f}] "
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]{MARK if within_noise else ' '}"
