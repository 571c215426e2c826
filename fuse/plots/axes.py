"""Axes of the plots, and colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from extract.utils.errors import shortened
from extract.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
"""Of Okabe and Ito, which colour-blind readers tell apart; the first is of the row before, the second of that after."""
HATCHES = ("", "//", "..", "xx")
MAX_NAME = 24
"""Characters of a name on an axis or in a legend."""
BAR_WIDTH = 0.8
"""Of all bars of a group together; groups are 1 apart."""
WIDTH = 8
"""Of a new figure in inches."""
LEGEND_CHARACTERS = 9
"""In a line of a legend, for each inch of the figure's width."""


def axes_or_new(ax: Axes | None, height: float = 4) -> Axes:
    """Returns the axes, or those of a new figure of this height in inches."""
    if ax is not None:
        return ax
    return require("matplotlib.pyplot", extra="report").subplots(figsize=(WIDTH, height), layout="constrained")[1]


def count_axis(ax: Axes) -> Axes:
    """Returns the axes with training instances along x, by powers of ten."""
    ax.set(xscale="log", xlabel="training instances of the class")
    ax.xaxis.set_major_formatter("{x:,g}")
    return ax


def finish(ax: Axes) -> Axes:
    """Returns the axes with a legend above, if anything has a label, and without a frame above and at the right."""
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        short = [shortened(label, MAX_NAME) for label in labels]
        most = LEGEND_CHARACTERS * ax.figure.bbox.width / ax.figure.dpi // max(map(len, short))
        columns = min(len(labels), max(1, int(most)))
        where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": columns}
        ax.legend(handles, short, frameon=False, fontsize="small", columnspacing=1, handlelength=1.4, **where)
    return ax


def draw_bars(ax: Axes, heights: np.ndarray, label: str, index: int, count: int, **options: Any) -> None:
    """Draws bar `index` of the `count` bars of each group; `heights` has one for each group."""
    width = BAR_WIDTH / count
    places = np.arange(len(heights)) + (index - (count - 1) / 2) * width
    ax.bar(places, heights, width * 0.92, label=label, **options, **bar_style(index))


def bar_style(index: int) -> dict[str, Any]:
    """Returns colour and hatching of the bars of a row; rows that share a colour differ in hatching."""
    hatch = HATCHES[index // len(COLOURS) % len(HATCHES)]
    return {"color": COLOURS[index % len(COLOURS)], "hatch": hatch, "edgecolor": "white"}
