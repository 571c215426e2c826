"""A plot of where the errors are; `fuse.plots` has the set-up of the examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from fuse.plots.axes import axes_or_new, draw_bars, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ERROR_TYPES = {
    "Cls": "wrong class",
    "Loc": "misplaced",
    "Both": "both",
    "Dupe": "repeated",
    "Bkg": "no object",
    "Miss": "missed",
}
"""TIDE's types of errors, and what they are, in the order of the plot."""


def errors(table: pd.DataFrame, *, iou_type: str | None = None, ax: Axes | None = None) -> Axes:
    """Plots how many points of AP50 each type of error costs, a bar per row.

    >>> table = fuse.error_table(annotations, rows, classes)
    >>> [text.get_text() for text in fuse.plots.errors(table).get_xticklabels()][:2]
    ['Cls\\nwrong\\nclass', 'Loc\\nmisplaced']

    Args:
        table: of `fuse.error_table`.
        iou_type: "segm" or "bbox"; by default the first of the table.
        ax: to draw into; None makes a new figure.

    Raises ValueError for an IoU type that the table lacks.
    """
    found = table.index.unique("iou_type").tolist()
    if (iou_type := iou_type or found[0]) not in found:
        raise ValueError(f"iou_type is {iou_type!r}, expected {' or '.join(map(repr, found))}")
    ax = axes_or_new(ax)
    shown = table.loc[iou_type][list(ERROR_TYPES)]
    for i, (name, values) in enumerate(shown.iterrows()):
        draw_bars(ax, values.to_numpy(float), str(name), i, len(shown))
    names = [f"{name}\n{text}".replace(" ", "\n") for name, text in ERROR_TYPES.items()]
    ax.set_xticks(range(len(names)), names, fontsize="small")
    ax.set(ylabel="points of AP50 lost")
    return finish(ax)
