"""The choice of a setting and a mode of each method, and of a winner, from AP on held-out training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from fuse.selection.grids import Row


class Selection(NamedTuple):
    """What was chosen.

    Attributes:
        chosen: by method the row of the highest AP on held-out images; the first of equal ones.
        winner: the method of the highest AP of all.
        figures: the columns of `evaluate` on held-out images, indexed by the rows' names.
    """

    chosen: dict[str, Row]
    winner: str
    figures: pd.DataFrame

    def ranked(self) -> list[Row]:
        """Returns the chosen rows, the highest AP first."""
        return sorted(self.chosen.values(), key=lambda row: -self.figures.loc[row.name, "AP"])

    def describe(self, images: int) -> str:
        """Returns one line."""
        row = self.chosen[self.winner]
        ap = self.figures.loc[row.name, "AP"]
        tried = f"{len(self.figures)} rows of {len(self.chosen)} methods"
        return f"{row.name} is chosen on {images:,} held-out training images: AP {ap:.1f} there, the highest of {tried}"

    def record(self) -> dict[str, Any]:
        """Returns what was tried and chosen as JSON types; `figures` has the numbers."""
        return {
            "criterion": "highest AP on the held-out training images",
            "winner": self.winner,
            "chosen": {method: _describe(row, self.figures) for method, row in self.chosen.items()},
            "tried": {name: _numbers(self.figures.loc[name]) for name in self.figures.index},
        }


def choose(rows: Sequence[Row], figures: pd.DataFrame) -> Selection:
    """Chooses by AP.

    Args:
        rows: that were tried.
        figures: their columns of `evaluate`, indexed by name.

    Raises ValueError if no class has ground truth in the images.
    """
    ap = figures["AP"]
    if ap.isna().any():
        raise ValueError("no class has ground truth in the held-out images, so that no AP can be compared")
    chosen: dict[str, Row] = {}
    for row in rows:
        best = chosen.get(row.setting.method)
        if best is None or ap[row.name] > ap[best.name]:
            chosen[row.setting.method] = row
    return Selection(chosen, max(chosen, key=lambda method: ap[chosen[method].name]), figures)


def _describe(row: Row, figures: pd.DataFrame) -> dict[str, Any]:
    fusion = {"mode": row.fusion.mode, "tail": row.fusion.tail}
    return {"row": row.name, "options": dict(row.setting.options), "fusion": fusion, **_numbers(figures.loc[row.name])}


def _numbers(figures: pd.Series) -> dict[str, float | None]:
    return {str(name): None if pd.isna(value) else round(float(value), 3) for name, value in figures.items()}
