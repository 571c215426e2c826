"""Axes of the plots, and colours that colour-blind readers tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from extract.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
"""Of Okabe and Ito, which colour-blind readers tell apart; the first is of the row before, the second of that after."""
HATCHES = ("", "//", "..", "xx")
LEGEND_COLUMNS = 4


def axes_or_new(ax: Axes | None) -> Axes:
    """Returns the axes, or those of a new figure."""
    if ax is not None:
        return ax
    return require("matplotlib.pyplot", extra="report").subplots(figsize=(8, 4), layout="constrained")[1]


def count_axis(ax: Axes) -> Axes:
    """Returns the axes with training instances along x, by powers of ten."""
    ax.set(xscale="log", xlabel="training instances of the class")
    ax.xaxis.set_major_formatter("{x:,g}")
    return ax


def finish(ax: Axes) -> Axes:
    """Returns the axes with a legend above, if anything has a label, and without a frame above and at the right."""
    ax.spines[["top", "right"]].set_visible(False)
    if labels := ax.get_legend_handles_labels()[1]:
        columns = min(len(labels), LEGEND_COLUMNS)
        where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": columns}
        ax.legend(frameon=False, fontsize="small", columnspacing=1, handlelength=1.4, **where)
    return ax


def bar_style(index: int) -> dict[str, Any]:
    """Returns colour and hatching of the bars of a row; rows that share a colour differ in hatching."""
    hatch = HATCHES[index // len(COLOURS) % len(HATCHES)]
    return {"color": COLOURS[index % len(COLOURS)], "hatch": hatch, "edgecolor": "white"}
