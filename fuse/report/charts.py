"""The charts of the report, as SVG that takes the colour of its text and axes from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from extract.data.bins import bin_index, bin_names
from extract.utils.errors import shortened
from fuse.plots.ap import ap_by_count as draw_ap_by_count
from fuse.plots.ap import counted
from fuse.plots.ap import per_bin as draw_per_bin
from fuse.plots.axes import COLOURS, MAX_NAME, count_axis, finish
from fuse.plots.errors import errors as draw_errors
from fuse.plots.objects import draw_confusions
from fuse.report.inputs import ReportInputs

INK = "#123456"
"""Colour of text and axes while drawing; `currentColor` takes its place, which is light or dark as the page is."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is a tenth as large as outlines, and can be searched
    "svg.hashsalt": "report",  # equal charts are equal files
    "text.parse_math": False,  # names of classes and rows may have dollar signs
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
SIZE = 5.4, 3.5
"""Of a chart in inches: on a screen of 400 pixels it is not reduced by much, so that its text is legible."""
SCORE_BINS = 20
POINT = r'<use xlink:href="#m\w+" x="[^"]+" y="[^"]+" style="fill: (#\w+); fill-opacity: ([\d.]+)"/>'
DOT = 3.7
"""Diameter of a point in pixels; that of matplotlib's size 14."""
MAX_CLASSES = 12
"""Classes in the chart of confusions."""


def ap_by_count(inputs: ReportInputs, iou_type: str) -> str:
    """Returns AP of each class by training instances, before and after."""
    tables = inputs.tables(iou_type)
    compared = {row: tables[row] for row in inputs.rows}
    return _svg(lambda figure: draw_ap_by_count(compared, tail=inputs.tail, ax=figure.add_subplot()))


def plotted_classes(table: pd.DataFrame) -> list[int]:
    """Returns the rows of the class table whose points `ap_by_count` draws, in the order of the points."""
    return np.flatnonzero(np.isin(table.index, counted(table).index)).tolist()


def bin_intervals(inputs: ReportInputs, iou_type: str) -> dict[str, pd.DataFrame] | None:
    """Returns the summary's intervals of the bins of each row, columns low and high; None if it has none."""
    summary, names = inputs.summary.loc[iou_type], [f"AP{name}" for name in bin_names(inputs.bins)]
    columns = {side: [f"{name}_{side}" for name in names] for side in ("low", "high")}
    if not {*columns["low"], *columns["high"]} <= set(summary.columns):
        return None
    return {
        row: pd.DataFrame({side: summary.loc[row, of].to_numpy(float) for side, of in columns.items()}, index=names)
        for row in summary.index
    }


def per_bin(inputs: ReportInputs, iou_type: str) -> str:
    """Returns AP of each bin of all rows, with the intervals of the summary, or those over classes."""
    tables, intervals = inputs.tables(iou_type), bin_intervals(inputs, iou_type)
    return _svg(lambda figure: draw_per_bin(tables, inputs.bins, intervals=intervals, ax=figure.add_subplot()))


def confusions(inputs: ReportInputs) -> str:
    """Returns what objects of tail classes are taken for; "" if there is no such object."""
    if not inputs.is_tail[inputs.outcomes[inputs.baseline].labels].any():
        return ""

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        draw_confusions(inputs.outcomes, inputs.classes, tail=inputs.tail, max_classes=MAX_CLASSES, ax=ax)
        ax.tick_params(axis="y", labelsize="small")

    return _svg(draw, (SIZE[0], 5.6))


def own_scores(inputs: ReportInputs) -> str:
    """Returns histograms of the score that each object's own class has on it, a chart per bin with objects."""
    index = bin_index(inputs.classes["instance_count"].to_numpy(), inputs.bins)
    labels = inputs.outcomes[inputs.baseline].labels
    kept = [i for i in range(len(inputs.bins) - 1) if (index[labels] == i).any()]

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(max(len(kept), 1), sharex=True, squeeze=False)[:, 0]
        for ax, i in zip(all_axes, kept, strict=False):
            _draw_histograms(ax, inputs, index[labels] == i)
            ax.set_title(f"{bin_names(inputs.bins)[i]} training instances", fontsize="medium", loc="left")
        all_axes[-1].set_xlabel("score of the object's own class")

    return _svg(draw, (SIZE[0], 1 + 1.5 * len(kept)))


def errors(inputs: ReportInputs, iou_type: str) -> str:
    """Returns what each type of error costs, of the rows that are compared."""
    table = inputs.errors.loc[[(iou_type, row) for row in inputs.rows]]
    return _svg(lambda figure: draw_errors(table, ax=figure.add_subplot()))


def weight_norms(inputs: ReportInputs) -> str:
    """Returns the norm of each class's classifier weights by training instances; "" where they are not known."""

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        counts = inputs.classes["instance_count"].to_numpy()
        kept = counts > 0
        for i, (row, norms) in enumerate(inputs.weight_norms.items()):
            ax.scatter(counts[kept], norms[kept], s=14, color=COLOURS[i], alpha=0.5, linewidths=0, label=row)
        ax.set_ylabel("norm of the classifier's weights")
        finish(count_axis(ax))

    return _svg(draw) if inputs.weight_norms else ""


def _draw_histograms(ax: Axes, inputs: ReportInputs, chosen: np.ndarray) -> None:
    """Draws the shares of the objects `chosen` (G,) bool by the score of their own class, of both rows."""
    for i, (row, outcomes) in enumerate(inputs.outcomes.items()):
        scores = outcomes.own_scores[chosen]
        found = scores[~np.isnan(scores)]
        shares = np.histogram(found, SCORE_BINS, (0, 1))[0] * (100 / len(scores))
        label = f"{shortened(row, MAX_NAME)}: on {100 * len(found) / len(scores):.0f}% of the objects"
        ax.stairs(shares, np.linspace(0, 1, SCORE_BINS + 1), color=COLOURS[i], linewidth=2, label=label)
    ax.set(ylabel="% of objects", xlim=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")


def _svg(draw: Callable[[Figure], object], size: tuple[float, float] = SIZE) -> str:
    """Returns what `draw` draws as SVG for a page: without XML declaration and names of groups, which would repeat."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'<g id="points-(\d+)">', r'<g data-points="\1">', text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(rf"{POINT}(?:\s*{POINT})*", _points_as_path, text)


def _points_as_path(points: re.Match[str]) -> str:
    """Returns the points of a scatter plot as one path of round dots: a sixth of the size, and one element."""
    at = re.findall(r'x="([^"]+)" y="([^"]+)"', points[0])
    dots = "".join(f"M{float(x):.1f} {float(y):.1f}h0" for x, y in at)
    style = f"fill: none; stroke: {points[1]}; stroke-opacity: {points[2]}; stroke-width: {DOT}; stroke-linecap: round"
    return f'<path d="{dots}" style="{style}"/>'
